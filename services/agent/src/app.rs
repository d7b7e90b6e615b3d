//! Wiring.

use std::sync::Arc;

use atoll_postgres::{
    Account, Binaries, Launcher, Layout, MemberSettings, ServerOptions, Template,
};
use atoll_runtime::Runtime;
use atoll_telemetry::{Admin, Metrics, admin};
use tokio::sync::{Mutex, mpsc, watch};

use crate::actor::{Actor, COMMANDS_WAITING_MAX, Handle};
use crate::acts::Acts;
use crate::config::Config;
use crate::database::Database;
use crate::error::Error;
use crate::gate::Gate;
use crate::link::{Down, Purpose, Up, listen_up};
use crate::local::Local;
use crate::peers::Peers;
use crate::port::Port;
use crate::postgres::Postgres;
use crate::protocol::speak;
use crate::view::View;
use crate::{hindrances, tail};

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

    let listen = async |at| {
        let listened = runtime.listen(at).await;
        listened.map_err(|source| Error::Listen { at, source })
    };
    let (sql, calls) = (listen(config.sql).await?, listen(config.calls).await?);
    let replication = listen(config.replication).await?;
    let layout = database.options.layout.clone();
    let down = |path, purpose| {
        let (group, member) = (config.group.clone(), config.member.clone());
        Down::listen(&runtime, peers.clone(), group, member, path, purpose)
    };
    let gate = Gate::new();
    let acts = Acts {
        runtime: runtime.clone(),
        database: database.clone(),
        down: down(layout.link_socket(), Purpose::Receiver)?,
        copy: down(layout.copy_socket(), Purpose::Copy)?,
        up: Up::new(),
        gate: gate.clone(),
        commands,
        fail_after: config.fail_after,
        cells: config.cells.clone(),
        promoting: None,
        opening: None,
        rebuild: 0,
        rebuilding: Arc::new(Mutex::new(())),
        last_start: None,
        ended: None,
    };
    let heart = Actor::open(config.member.clone(), acts, view_out, Arc::new(template))?;

    let addresses = format!("sql={} calls={}", sql.local_addr(), calls.local_addr());
    Port::new(&runtime, database.clone(), gate.clone()).listen(sql);
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
    tail::watch(&runtime, &actor, &database);
    let postgres: Arc<dyn Postgres> = Arc::new(Local {
        hindrances: hindrances::watch(&runtime, &database, &actor),
        database,
        gate: gate.clone(),
    });
    speak(&runtime, &config, calls, &actor, &peers, &gate, &postgres);
    show(&runtime, &config, &actor).await?;
    ready(&addresses);
    heart.run(inbox, links).await
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
