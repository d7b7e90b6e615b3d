//! The cached empty database that every member begins as: made once a machine, copied in moments.
//! All members of a group are copies of one template and share its system identifier.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use tokio::time::{Duration, Instant, sleep};

use crate::copying::copy_tree;
use crate::layout::mode;
use crate::sql::{DATABASE, OWNER, REPLICATOR, SUPERUSER};
use crate::{Binaries, Error, Launch, Launcher, Layout};

/// Part of the template's name: raise it when `SCRIPT` or the options change.
const SCHEMA_VERSION: u32 = 3;

/// How long another process may take to make the template.
const BUILD_LIMIT: Duration = Duration::from_secs(120);

/// Large-object functions write outside of every shard's schema, so nobody but we may call them.
const LARGE_OBJECTS: &str = "\
DO $$ DECLARE f record; BEGIN
  FOR f IN SELECT oid::regprocedure AS name FROM pg_proc
    WHERE pronamespace = 'pg_catalog'::regnamespace
      AND (proname LIKE 'lo\\_%' OR proname IN ('lowrite', 'loread'))
  LOOP EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', f.name); END LOOP;
END $$";

/// Functions that run a text as a statement could hide a setting from the router, which refuses
/// them by name; here they are refused by privilege. `set_config` itself stays: applications give
/// their own settings with it, and a setting's name alone cannot be granted.
const TEXT_RUNNERS: &str = "\
DO $$ DECLARE f record; BEGIN
  FOR f IN SELECT oid::regprocedure AS name FROM pg_proc
    WHERE pronamespace = 'pg_catalog'::regnamespace
      AND (proname IN ('query_to_xml', 'query_to_xmlschema', 'query_to_xml_and_xmlschema',
                       'cursor_to_xml', 'cursor_to_xmlschema', 'ts_stat')
           OR oid = 'ts_rewrite(tsquery, text)'::regprocedure)
  LOOP EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', f.name); END LOOP;
END $$";

/// What every group's database begins with.
fn script() -> Vec<String> {
    vec![
        format!("CREATE ROLE {OWNER} NOLOGIN"),
        format!("CREATE ROLE {REPLICATOR} LOGIN REPLICATION"),
        format!("REVOKE ALL ON DATABASE {DATABASE} FROM PUBLIC"),
        "REVOKE ALL ON DATABASE postgres FROM PUBLIC".into(),
        "REVOKE ALL ON DATABASE template1 FROM PUBLIC".into(),
        "DROP SCHEMA public".into(),
        "REVOKE ALL ON LANGUAGE plpgsql FROM PUBLIC".into(),
        LARGE_OBJECTS.replace('\n', " "),
        TEXT_RUNNERS.replace('\n', " "),
        format!("CREATE SCHEMA atoll AUTHORIZATION {OWNER}"),
        "CREATE TABLE atoll.term (term bigint PRIMARY KEY, timeline bigint NOT NULL, \
         fork pg_lsn NOT NULL, \"primary\" text NOT NULL, members text[] NOT NULL, \
         k int NOT NULL, op text NOT NULL)"
            .into(),
        "CREATE TABLE atoll.shard_owner (shard int PRIMARY KEY, epoch bigint NOT NULL, \
         cell text NOT NULL)"
            .into(),
        "CREATE TABLE atoll.schema_journal (shard int NOT NULL, file text NOT NULL, \
         hash text NOT NULL, at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (shard, file))"
            .into(),
        format!("ALTER TABLE atoll.term OWNER TO {OWNER}"),
        format!("ALTER TABLE atoll.shard_owner OWNER TO {OWNER}"),
        format!("ALTER TABLE atoll.schema_journal OWNER TO {OWNER}"),
    ]
}

/// A data directory that is never started, only copied.
#[derive(Debug, Clone)]
pub struct Template {
    data: PathBuf,
}

impl Template {
    /// Finds the template in `cache`, or makes it; safe when several processes ask at once.
    pub async fn ensure(
        cache: &Path,
        binaries: &Binaries,
        launcher: &Launcher,
    ) -> Result<Self, Error> {
        let name = format!("pg-{}-v{SCHEMA_VERSION}", binaries.version());
        let data = cache.join(&name);
        fs::create_dir_all(cache).map_err(Error::file("create", cache))?;
        mode(cache, 0o755)?;
        let _alone = lock(&cache.join(format!("{name}.lock"))).await?;
        if data.join("PG_VERSION").try_exists().unwrap_or(false) {
            return Ok(Self { data });
        }
        let building = cache.join(format!("{name}.building"));
        if building.try_exists().unwrap_or(false) {
            fs::remove_dir_all(&building).map_err(Error::file("remove", &building))?;
        }
        fs::create_dir(&building).map_err(Error::file("create", &building))?;
        mode(&building, 0o700)?;
        if let Some(account) = launcher.account() {
            account.give(&building)?;
        }
        build(&building, cache, binaries, launcher).await?;
        fs::rename(&building, &data).map_err(Error::file("rename", &building))?;
        Ok(Self { data })
    }

    /// Copies the template to a member's empty data directory, durably.
    pub async fn copy_to(&self, layout: &Layout, launcher: &Launcher) -> Result<(), Error> {
        let making = layout.root().join("pg.making");
        if making.try_exists().unwrap_or(false) {
            fs::remove_dir_all(&making).map_err(Error::file("remove", &making))?;
        }
        copy_tree(self.data.clone(), making.clone(), launcher.account()).await?;
        fs::rename(&making, layout.data()).map_err(Error::file("rename", &making))?;
        let root = fs::File::open(layout.root()).map_err(Error::file("open", layout.root()))?;
        root.sync_all().map_err(Error::file("sync", layout.root()))
    }
}

async fn lock(path: &Path) -> Result<Flock<fs::File>, Error> {
    let started = Instant::now();
    loop {
        let file = fs::File::create(path).map_err(Error::file("open", path))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((_, nix::Error::EWOULDBLOCK)) if started.elapsed() < BUILD_LIMIT => {
                // Another process is making it; a lock has no event to wait for.
                sleep(Duration::from_millis(20)).await;
            }
            Err((_, errno)) => return Err(Error::file("lock", path)(errno.into())),
        }
    }
}

async fn build(
    data: &Path,
    cache: &Path,
    binaries: &Binaries,
    launcher: &Launcher,
) -> Result<(), Error> {
    let log = cache.join("template.log");
    let launch = |program: &str, args: Vec<&str>, input: Option<PathBuf>| {
        let mut words: Vec<std::ffi::OsString> = vec!["-D".into(), data.into()];
        if program == "postgres" {
            words.insert(0, "--single".into());
        }
        words.extend(args.into_iter().map(Into::into));
        Launch {
            program: binaries.program(program),
            args: words,
            dir: data.to_owned(),
            log: log.clone(),
            input,
        }
    };
    let options = vec![
        "--wal-segsize=1",
        "--data-checksums",
        "--auth=trust",
        "--encoding=UTF8",
        "--locale=C",
        "--no-sync",
        "--no-instructions",
        "-U",
        SUPERUSER,
    ];
    launcher.run(launch("initdb", options, None)).await?;
    // A single-user server goes on after an error, so each script is made to end with a witness.
    let scripts = [
        ("postgres", vec![format!("CREATE DATABASE {DATABASE}")]),
        (DATABASE, script()),
    ];
    for (database, statements) in scripts {
        let path = cache.join("template.sql");
        fs::write(&path, statements.join("\n") + "\n").map_err(Error::file("write", &path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
            .map_err(Error::file("set the mode of", &path))?;
        let from = fs::metadata(&log).map_or(0, |meta| meta.len());
        // A standby refuses a log whose primary allowed more sessions than it does itself.
        let fewer = "max_connections=10";
        let args = vec![
            "-c",
            "exit_on_error=on",
            "-c",
            "fsync=off",
            "-c",
            fewer,
            database,
        ];
        launcher.run(launch("postgres", args, Some(path))).await?;
        let said = fs::read(&log).unwrap_or_default();
        let start = usize::try_from(from).unwrap_or(0).min(said.len());
        let said = String::from_utf8_lossy(&said[start..]).into_owned();
        if let Some(line) = said.lines().find(|line| line.contains("ERROR")) {
            return Err(Error::Program {
                program: "postgres --single".into(),
                tail: line.into(),
            });
        }
    }
    Ok(())
}
