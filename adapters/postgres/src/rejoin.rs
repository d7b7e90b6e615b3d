//! Brings a log that left the line back onto it: rewind, and where that cannot see or cannot do
//! it, a clone. The caller's mark stands before either begins and falls after it has ended: while
//! it stands, PostgreSQL is never started.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use crate::server::STANDBY_SIGNAL;
use crate::sql::{DATABASE, REPLICATOR, SUPERUSER};
use crate::{Binaries, Error, Launch, Launcher, Layout};

/// Through what the other member's PostgreSQL is reached: a folder with a socket in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The folder.
    pub folder: PathBuf,
}

/// pg_rewind against a running primary that has made a CHECKPOINT on its timeline.
pub async fn rewind(
    binaries: &Binaries,
    launcher: &Launcher,
    layout: &Layout,
    source: &Source,
) -> Result<(), Error> {
    // "standby mode is not supported by single-user servers", which pg_rewind starts.
    let signal = layout.data().join(STANDBY_SIGNAL);
    match fs::remove_file(&signal) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::file("remove", &signal)(error));
        }
        _ => {}
    }
    let connection = format!(
        "host={} port=5432 user={SUPERUSER} dbname={DATABASE} sslmode=disable",
        source.folder.display()
    );
    let args: Vec<OsString> = vec![
        "--target-pgdata".into(),
        layout.data().into(),
        "--source-server".into(),
        connection.into(),
        "--config-file".into(),
        layout.settings().into(),
    ];
    launcher
        .run(launch(binaries, layout, "pg_rewind", args))
        .await
}

/// pg_basebackup into a folder beside, which then takes the data directory's place.
pub async fn clone(
    binaries: &Binaries,
    launcher: &Launcher,
    layout: &Layout,
    source: &Source,
) -> Result<(), Error> {
    let making = layout.scratch().join("pg.clone");
    if making.try_exists().unwrap_or(false) {
        fs::remove_dir_all(&making).map_err(Error::file("remove", &making))?;
    }
    let connection = format!(
        "host={} port=5432 user={REPLICATOR} application_name=clone sslmode=disable",
        source.folder.display()
    );
    let args: Vec<OsString> = vec![
        "-D".into(),
        making.clone().into(),
        "-d".into(),
        connection.into(),
        "-X".into(),
        "stream".into(),
        "--checkpoint=fast".into(),
        "--no-password".into(),
    ];
    launcher
        .run(launch(binaries, layout, "pg_basebackup", args))
        .await?;
    let data = layout.data();
    if data.try_exists().unwrap_or(false) {
        let old = layout.scratch().join("pg.replaced");
        if old.try_exists().unwrap_or(false) {
            fs::remove_dir_all(&old).map_err(Error::file("remove", &old))?;
        }
        fs::rename(&data, &old).map_err(Error::file("move aside", &data))?;
        fs::rename(&making, &data).map_err(Error::file("move in", &making))?;
        fs::remove_dir_all(&old).map_err(Error::file("remove", &old))?;
    } else {
        fs::rename(&making, &data).map_err(Error::file("move in", &making))?;
    }
    Ok(())
}

fn launch(binaries: &Binaries, layout: &Layout, tool: &str, args: Vec<OsString>) -> Launch {
    Launch {
        program: binaries.program(tool),
        args,
        dir: layout.scratch(),
        log: layout.log(),
        input: None,
    }
}
