//! Questions to control, and orders: the API for what programs read, the command line for what
//! people do.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use atoll_api::{Execution, Plan, RowHashes, WorldStatus};
use atoll_runtime::Runtime;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::timeout;

/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// How long a replica of control may take to say that it is there, where there are others.
const REPLICA_LIMIT: Duration = Duration::from_millis(1_500);
/// How long a command may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(120);
/// The most that is read of an answer.
const ANSWER_BYTES_MAX: u64 = 64 * 1024 * 1024;

pub(crate) struct Ask {
    runtime: Runtime,
    controls: Vec<SocketAddr>,
    atoll: PathBuf,
    world: PathBuf,
}

impl Ask {
    pub(crate) fn new(
        runtime: Runtime,
        controls: Vec<SocketAddr>,
        atoll: &Path,
        world: &Path,
    ) -> Self {
        Self {
            runtime,
            controls,
            atoll: atoll.to_path_buf(),
            world: world.to_path_buf(),
        }
    }

    /// Everything that control knows.
    pub(crate) async fn status(&self) -> Result<WorldStatus> {
        self.get("/status").await
    }

    /// Whether all members of each group hold the same rows.
    pub(crate) async fn rows(&self) -> Result<RowHashes> {
        self.get("/rows").await
    }

    /// All executions.
    pub(crate) async fn executions(&self) -> Result<Vec<Execution>> {
        #[derive(Deserialize)]
        struct Executions {
            items: Vec<Execution>,
        }
        Ok(self
            .get::<Executions>("/apis/atoll.dev/v1/executions")
            .await?
            .items)
    }

    /// `atoll switch plan …`: what would happen.
    pub(crate) async fn plan(&self, target: &[&str]) -> Result<Plan> {
        let words: Vec<&str> = ["switch", "plan"].iter().chain(target).copied().collect();
        self.command(&words).await
    }

    /// `atoll switch run --plan HASH`: returns when it is over.
    pub(crate) async fn run(&self, plan: &str, name: &str) -> Result<Execution> {
        self.command(&["switch", "run", "--plan", plan, "--name", name])
            .await
    }

    /// `atoll schema apply -f …`: the tables of another application, in every shard.
    pub(crate) async fn apply_schema(&self, file: &Path) -> Result<()> {
        let file = file.display().to_string();
        let _: serde_json::Value = self.command(&["schema", "apply", "-f", &file]).await?;
        Ok(())
    }

    async fn command<T: DeserializeOwned>(&self, words: &[&str]) -> Result<T> {
        let output = Command::new(&self.atoll)
            .args(words)
            .args(["-o", "json", "--world"])
            .arg(&self.world)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let line = format!("atoll {}", words.join(" "));
        let output = timeout(COMMAND_LIMIT, output)
            .await
            .with_context(|| format!("`{line}` took longer than {COMMAND_LIMIT:?}"))??;
        // 10: done, with warnings.
        let good = matches!(output.status.code(), Some(0 | 10));
        ensure!(
            good,
            "`{line}` failed:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("`{line}` printed something else than expected"))
    }

    /// A replica that is there, and that has a majority of the store.
    async fn replica(&self) -> Result<SocketAddr> {
        let [others @ .., last] = self.controls.as_slice() else {
            bail!("the world has no control");
        };
        for control in others {
            let answer = timeout(REPLICA_LIMIT, self.fetch(*control, "/status")).await;
            if let Ok(Ok(answer)) = answer
                && answer.contains(" 200 ")
                && !answer.contains("\"readOnly\":true")
            {
                return Ok(*control);
            }
        }
        Ok(*last)
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let control = self.replica().await?;
        let asked = timeout(ANSWER_LIMIT, self.fetch(control, path));
        let answer = asked
            .await
            .with_context(|| format!("GET {path}: no answer"))??;
        let Some((head, body)) = answer.split_once("\r\n\r\n") else {
            bail!("GET {path}: the answer broke off");
        };
        let status = head.lines().next().unwrap_or_default();
        ensure!(status.contains(" 200 "), "GET {path}: {status}\n{body}");
        serde_json::from_str(body).with_context(|| format!("GET {path}: not as known"))
    }

    /// One question on one connection; HTTP/1.0, so that the answer ends where the connection does.
    async fn fetch(&self, control: SocketAddr, path: &str) -> Result<String> {
        let mut stream = self
            .runtime
            .connect(control)
            .await
            .context("control does not answer")?;
        let request = format!("GET {path} HTTP/1.0\r\nhost: {control}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream
            .take(ANSWER_BYTES_MAX)
            .read_to_string(&mut answer)
            .await?;
        Ok(answer)
    }
}
