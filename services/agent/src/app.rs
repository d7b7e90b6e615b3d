//! Wiring.

use std::sync::Arc;

use atoll_postgres::{
    Account, Binaries, Launcher, Layout, MemberSettings, ServerOptions, Template,
};
use atoll_runtime::Runtime;
use atoll_telemetry::{Admin, Metrics, admin};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::sleep;

use crate::actor::{Actor, COMMANDS_WAITING_MAX, Handle};
use crate::acts::Acts;
use crate::beats::{BEAT_INTERVAL, Beats};
use crate::config::Config;
use crate::control::ToControl;
use crate::database::Database;
use crate::driving::Driving;
use crate::error::Error;
use crate::leading::Cascade;
use crate::link::{Down, Purpose, Up, listen_up};
use crate::peers::Peers;
use crate::port::Port;
use crate::view::{Seen, View};
use crate::{calls, hindrances, leading, tail};

/// Reports that wait for control; a lost control is told the last progress again.
const OUTBOX_MAX: usize = 64;

/// The hidden subcommand of our own binary.
const EXEC: &str = "postgres-exec";

/// Serves until shutdown. `ready` is called once, with the addresses, when every port listens; the
/// member itself may still be waiting to be admitted.
pub async fn serve(
    config: Config,
    runtime: Runtime,
    ready: impl FnOnce(&str),
) -> Result<(), Error> {
    config.check()?;
    let options = server_options(&config)?;
    let template = template(&config, &options).await?;
    let database = Database::new(runtime.clone(), options);
    let peers = Arc::new(Peers::new(&runtime, &config));
    let (commands, inbox) = mpsc::channel(COMMANDS_WAITING_MAX);
    let (asked, links) = mpsc::channel(COMMANDS_WAITING_MAX);
    let (view_out, view) = watch::channel(View::unborn());
    let actor = Handle {
        commands: commands.clone(),
        view,
    };
    let (seen, lag) = observe(&runtime, &database);

    let listen = async |at| {
        let listened = runtime.listen(at).await;
        listened.map_err(|source| Error::Listen { at, source })
    };
    let (sql, calls_port) = (listen(config.sql).await?, listen(config.calls).await?);
    let replication = listen(config.replication).await?;
    let layout = database.options.layout.clone();
    let down = |path, purpose| {
        let (group, member) = (config.group.clone(), config.member.clone());
        Down::listen(&runtime, peers.clone(), group, member, path, purpose)
    };
    let port = Port::new(&runtime, database.clone());
    let acts = Acts {
        runtime: runtime.clone(),
        database: database.clone(),
        down: down(layout.link_socket(), Purpose::Receiver)?,
        copy: down(layout.copy_socket(), Purpose::Copy)?,
        up: Up::new(),
        port: port.clone(),
        commands,
        fail_after: config.fail_after,
        cells: config.cells.clone(),
        promoting: None,
        opening: None,
        rebuild: 0,
        rebuilding: Arc::new(Mutex::new(())),
        last_start: None,
    };
    let heart = Actor::open(config.member.clone(), acts, view_out, Arc::new(template))?;

    let beats = Beats::new(
        config.group.clone(),
        config.member.clone(),
        actor.view.clone(),
        seen.clone(),
    );
    let addresses = format!("sql={} calls={}", sql.local_addr(), calls_port.local_addr());
    port.listen(sql);
    let (group, member) = (config.group.clone(), config.member.clone());
    listen_up(
        &runtime,
        replication,
        group,
        member,
        database.clone(),
        peers.clone(),
        asked,
    );
    let (group, member) = (config.group.clone(), config.member.clone());
    calls::serve(
        &runtime,
        calls_port,
        group,
        member,
        actor.clone(),
        beats.clone(),
    );
    beats.dial(&runtime, &peers);
    tail::watch(&runtime, &actor, &database);
    let cascade = Cascade::default();
    leading::repeat_follow(&runtime, &config, &peers, &actor, &cascade);
    leading::watch_isolation(&runtime, &actor, &beats, &port, usize::from(config.k));
    to_control(
        &runtime, &config, &actor, seen, lag, beats, port, database, peers, cascade,
    );
    show(&runtime, &config, &actor).await?;
    ready(&addresses);
    heart.run(inbox, links).await
}

#[expect(
    clippy::too_many_arguments,
    reason = "the one place where all parts meet"
)]
fn to_control(
    runtime: &Runtime,
    config: &Config,
    actor: &Handle,
    seen: watch::Receiver<Seen>,
    lag: watch::Receiver<u64>,
    beats: Arc<Beats>,
    port: Arc<Port>,
    database: Arc<Database>,
    peers: Arc<Peers>,
    cascade: Cascade,
) {
    let (reports, outbox) = mpsc::channel(OUTBOX_MAX);
    let driving = Arc::new(Driving {
        runtime: runtime.clone(),
        group: config.group.clone(),
        member: config.member.clone(),
        actor: actor.clone(),
        peers,
        database: database.clone(),
        port: port.clone(),
        reports: reports.clone(),
        fail_after: config.fail_after,
        now: std::sync::Mutex::new(None),
    });
    let to_control = Arc::new(ToControl {
        runtime: runtime.clone(),
        process: config.process.clone(),
        group: config.group.clone(),
        member: config.member.clone(),
        actor: actor.clone(),
        seen,
        lag,
        beats,
        port,
        hindrances: hindrances::watch(runtime, &database, actor),
        database,
        driving,
        cascade,
        reports,
    });
    to_control.run(config, outbox);
}

fn server_options(config: &Config) -> Result<ServerOptions, Error> {
    let binaries = Binaries::find(config.postgres_bin.as_deref())?;
    let account = Account::unprivileged()?;
    let myself = std::env::current_exe()
        .map_err(|error| Error::Config(format!("our own binary cannot be found: {error}")))?;
    let launcher = Launcher::new(vec![myself.into(), EXEC.into()], account);
    let layout = Layout::prepare(&config.data, account)?;
    let settings = MemberSettings {
        member: config.member.clone(),
        others: config.others(),
        k: config.k,
        shared_buffers_mb: config.shared_buffers_mb,
        connections_max: config.connections_max,
    };
    Ok(ServerOptions {
        binaries,
        launcher,
        layout,
        settings,
    })
}

async fn template(config: &Config, options: &ServerOptions) -> Result<Template, Error> {
    let named = config.templates.clone();
    let cache = named.unwrap_or_else(|| {
        let uid = nix::unistd::Uid::effective();
        format!("/var/tmp/atoll-{uid}/templates").into()
    });
    Ok(Template::ensure(&cache, &options.binaries, &options.launcher).await?)
}

/// Reads the log's end as often as it is told to others.
fn observe(
    runtime: &Runtime,
    database: &Arc<Database>,
) -> (watch::Receiver<Seen>, watch::Receiver<u64>) {
    let (seen_out, seen) = watch::channel(None);
    let (lag_out, lag) = watch::channel(0);
    let (database, shutdown) = (database.clone(), runtime.shutdown());
    let work = async move {
        loop {
            let read = database.end().await.ok();
            seen_out.send_replace(read.as_ref().map(|(_, end)| *end));
            if let Some((log, _)) = read {
                let received = log.received.map_or(0, |received| received.0);
                lag_out.send_replace(received.saturating_sub(log.end.0));
            }
            sleep(BEAT_INTERVAL).await;
        }
    };
    runtime.tasks().spawn("observe-log", async move {
        tokio::select! {
            () = work => {}
            () = shutdown.requested() => {}
        }
    });
    (seen, lag)
}

/// Health and metrics.
async fn show(runtime: &Runtime, config: &Config, actor: &Handle) -> Result<(), Error> {
    let (ready, debug) = (actor.view.clone(), actor.view.clone());
    let admin = Admin::new(Metrics::default())
        .ready(move || match &ready.borrow().volume {
            Some(_) => Ok(()),
            None => Err("not admitted yet".into()),
        })
        .debug("member", move || format!("{:#?}\n", *debug.borrow()));
    let at = config.admin;
    admin::serve(runtime, at, admin)
        .await
        .map_err(|source| Error::Listen { at, source })?;
    Ok(())
}
