//! Brings a log that left the line back onto it, beside everything else. The mark in the promise
//! file stands since before; it falls when the actor hears that this has ended well.

use std::sync::Arc;

use atoll_ownership::JoinPath;
use atoll_postgres::{SUPERUSER, Session, Source, clone, rewind};
use tokio::time::{Duration, timeout};
use tracing::{info, warn};

use crate::actor::Command;
use crate::acts::Acts;
use crate::database::Database;

/// A clone of a large group; a source that has fallen silent must not hold it for ever.
pub(crate) const REBUILD_LIMIT: Duration = Duration::from_secs(3600);

/// Begins; `Command::Rebuilt` tells the end.
pub(crate) fn spawn(acts: &Acts, path: JoinPath) {
    let (database, copy, commands) = (
        acts.database.clone(),
        acts.copy.clone(),
        acts.commands.clone(),
    );
    let (rebuild, alone) = (acts.rebuild, acts.rebuilding.clone());
    acts.runtime.tasks().spawn("rebuild", async move {
        let alone = alone.lock().await;
        let work = run(&database, path);
        let result = match timeout(REBUILD_LIMIT, work).await {
            Ok(result) => result,
            Err(_) => Err(format!("it took more than {} s", REBUILD_LIMIT.as_secs())),
        };
        copy.seal().await;
        drop(alone);
        // Without an actor the mark stands, and the next start repeats this.
        drop(commands.send(Command::Rebuilt { rebuild, result }).await);
    });
}

async fn run(database: &Arc<Database>, path: JoinPath) -> Result<(), String> {
    database.quit().await.map_err(|error| error.to_string())?;
    let options = &database.options;
    let (binaries, launcher, layout) = (&options.binaries, &options.launcher, &options.layout);
    let source = Source {
        folder: layout.copy(),
    };
    if path == JoinPath::Rewind {
        let rewound = async {
            // pg_rewind reads the source's timeline from its last checkpoint.
            let session =
                Session::open_as(&database.runtime, &layout.copy_socket(), SUPERUSER).await?;
            session
                .execute("checkpoint the source", "CHECKPOINT")
                .await?;
            options.settings.write(layout)?;
            rewind(binaries, launcher, layout, &source).await
        };
        match rewound.await {
            Ok(()) => {
                info!("rewound");
                return Ok(());
            }
            Err(error) => warn!(%error, "the rewind failed; cloning"),
        }
    }
    clone(binaries, launcher, layout, &source)
        .await
        .map_err(|error| error.to_string())?;
    info!("cloned");
    Ok(())
}
