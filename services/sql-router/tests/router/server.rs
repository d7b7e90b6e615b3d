//! PostgreSQL servers for the tests of this binary; they end with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use tokio_postgres::{Client, NoTls};

/// A running server.
pub(crate) struct Server {
    pub(crate) port: u16,
}

/// What every database begins with: 100 shards, as the agents make them.
const SCRIPT: &str = "
SET synchronous_commit = local;
CREATE SCHEMA atoll;
CREATE TABLE atoll.term (term bigint PRIMARY KEY, timeline bigint, fork pg_lsn, \"primary\" text,
  members text[], k int, op text);
CREATE TABLE atoll.shard_owner (shard int PRIMARY KEY, epoch bigint, cell text);
CREATE TABLE atoll.secret (x int);
DO $$ DECLARE s text; BEGIN
  FOR n IN 0..99 LOOP
    s := 's' || lpad(n::text, 5, '0');
    EXECUTE format('CREATE SCHEMA %I', s);
    EXECUTE format('CREATE TABLE %I.t (id bigint PRIMARY KEY, note text NOT NULL DEFAULT '''')', s);
    INSERT INTO atoll.shard_owner VALUES (n, 1, '');
  END LOOP;
END $$;";

impl Server {
    /// A primary.
    pub(crate) fn plain() -> &'static Self {
        static SERVER: OnceLock<Server> = OnceLock::new();
        SERVER.get_or_init(|| Self::start(""))
    }

    /// Another primary.
    pub(crate) fn other() -> &'static Self {
        static SERVER: OnceLock<Server> = OnceLock::new();
        SERVER.get_or_init(|| Self::start(""))
    }

    /// A primary whose commits wait for ever.
    pub(crate) fn alone() -> &'static Self {
        static SERVER: OnceLock<Server> = OnceLock::new();
        SERVER.get_or_init(|| Self::start("nobody"))
    }

    fn start(standbys: &str) -> Self {
        // One at a time: so that the ports that they take are known to be free.
        static STARTING: Mutex<()> = Mutex::new(());
        let _alone = STARTING.lock().expect("lock");
        let bin = atoll_programs::postgres().expect("PostgreSQL").bin;
        let user = atoll_programs::unprivileged_user().expect("account");
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("port")
            .port();
        let root = &directory(port);
        if let Some(user) = &user {
            std::os::unix::fs::chown(root, Some(user.uid), Some(user.gid)).expect("chown");
        }
        let as_user = |program: &str| match &user {
            None => Command::new(bin.join(program)),
            Some(user) => {
                let mut command = Command::new("setpriv");
                command
                    .args([
                        format!("--reuid={}", user.uid),
                        format!("--regid={}", user.gid),
                    ])
                    .args(["--clear-groups", "--pdeathsig=QUIT"])
                    .arg(bin.join(program));
                command
            }
        };
        let data = root.join("data");
        let log = fs::File::create(root.join("log")).expect("log");
        let made = as_user("initdb")
            .args([
                "--no-sync",
                "--auth=trust",
                "--username=postgres",
                "--encoding=UTF8",
            ])
            .args(["--no-locale", "-D"])
            .arg(&data)
            .stdout(Stdio::null())
            .stderr(log.try_clone().expect("log"))
            .status()
            .expect("initdb");
        assert!(made.success(), "{}", text(&root.join("log")));
        let mut postgres = as_user("postgres");
        let settings = [
            "fsync=off".to_owned(),
            "listen_addresses=127.0.0.1".to_owned(),
            format!("unix_socket_directories={}", root.display()),
            "max_connections=200".to_owned(),
            format!("synchronous_standby_names={standbys}"),
        ];
        postgres
            .arg("-D")
            .arg(&data)
            .args(["-p", &port.to_string()]);
        for setting in &settings {
            postgres.args(["-c", setting]);
        }
        postgres.stdout(Stdio::null()).stderr(log);
        // The signal comes when the thread that started it ends: one that never does.
        std::thread::spawn(move || {
            let mut child = postgres.spawn().expect("postgres");
            // It ends with this process: whoever needs it sooner sees its connections fail.
            child.wait().expect("postgres");
        });
        let server = Self { port };
        let set_up = std::thread::scope(|scope| scope.spawn(|| server.set_up()).join());
        set_up.expect("set up");
        server
    }

    fn set_up(&self) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        runtime.block_on(async {
            let client = loop {
                match connect(self.port, "postgres", "postgres").await {
                    Ok(client) => break client,
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            };
            client
                .batch_execute("SET synchronous_commit = local")
                .await
                .expect("setting");
            client
                .batch_execute("CREATE DATABASE atoll")
                .await
                .expect("database");
            self.superuser()
                .await
                .batch_execute(SCRIPT)
                .await
                .expect("script");
        });
    }

    /// A session past the router.
    pub(crate) async fn superuser(&self) -> Client {
        let client = connect(self.port, "postgres", "atoll")
            .await
            .expect("superuser");
        client
            .batch_execute("SET synchronous_commit = local")
            .await
            .expect("setting");
        client
    }

    /// Makes the cell's role and gives it these shards, at this epoch.
    pub(crate) async fn grant(&self, cell: &str, shards: &[u16], epoch: u64) {
        let client = self.superuser().await;
        let role = format!("cell_{cell}");
        let mut script = format!(
            "DO $$ BEGIN CREATE ROLE {role} LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
             GRANT USAGE ON SCHEMA atoll TO {role};
             GRANT SELECT ON atoll.term, atoll.shard_owner TO {role};"
        );
        for shard in shards {
            script += &format!(
                "GRANT USAGE ON SCHEMA s{shard:05} TO {role};
                 GRANT ALL ON s{shard:05}.t TO {role};
                 UPDATE atoll.shard_owner SET epoch = {epoch}, cell = '{cell}' WHERE shard = {shard};"
            );
        }
        // Tests in parallel touch the same catalogue rows.
        let locked = format!("BEGIN; SELECT pg_advisory_xact_lock(1); {script} COMMIT;");
        client.batch_execute(&locked).await.expect("grant");
    }

    /// Takes the right to write from a cell and names another one as the owner.
    pub(crate) async fn revoke(&self, cell: &str, shard: u16, epoch: u64, to: &str) {
        let client = self.superuser().await;
        let script = format!(
            "BEGIN; REVOKE INSERT, UPDATE, DELETE ON s{shard:05}.t FROM cell_{cell};
             UPDATE atoll.shard_owner SET epoch = {epoch}, cell = '{to}' WHERE shard = {shard}; COMMIT"
        );
        client.batch_execute(&script).await.expect("revoke");
    }

    /// The first column of the first row.
    pub(crate) async fn number(&self, sql: &str) -> i64 {
        self.superuser()
            .await
            .query_one(sql, &[])
            .await
            .expect("query")
            .get(0)
    }

    /// Waits until a query of one number answers `expected`.
    pub(crate) async fn until(&self, sql: &str, expected: i64) {
        let client = self.superuser().await;
        let wait = async {
            loop {
                let got: i64 = client.query_one(sql, &[]).await.expect("query").get(0);
                if got == expected {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(10), wait).await;
        assert!(waited.is_ok(), "never {expected}: {sql}");
    }
}

async fn connect(port: u16, user: &str, database: &str) -> Result<Client, tokio_postgres::Error> {
    let config = format!("host=127.0.0.1 port={port} user={user} dbname={database}");
    let (client, connection) = tokio_postgres::connect(&config, NoTls).await?;
    drive(connection);
    Ok(client)
}

/// Runs a connection for as long as it lasts.
#[expect(clippy::disallowed_methods, reason = "it ends with its client")]
pub(crate) fn drive(
    connection: impl Future<Output = Result<(), tokio_postgres::Error>> + Send + 'static,
) {
    drop(tokio::spawn(connection));
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// A directory of this process. Nobody can remove it when the process ends, so those of processes
/// that have ended are removed here.
fn directory(port: u16) -> PathBuf {
    let base = Path::new("/var/tmp");
    let prefix = "atoll-sql-router-";
    for entry in fs::read_dir(base).expect("directory").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name
            .strip_prefix(prefix)
            .and_then(|rest| rest.split('-').next());
        let ended = |process: &str| !Path::new("/proc").join(process).is_dir();
        if process.is_some_and(ended) {
            // Somebody else may be removing it too.
            fs::remove_dir_all(entry.path()).ok();
        }
    }
    let root = base.join(format!("{prefix}{}-{port}", std::process::id()));
    fs::create_dir(&root).expect("directory");
    root
}
