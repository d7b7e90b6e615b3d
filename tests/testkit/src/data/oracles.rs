//! What must hold of a group after a fault, read from PostgreSQL itself.

use std::collections::BTreeSet;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use atoll_postgres::{Binaries, DATABASE, SUPERUSER, Session};
use atoll_streams::agent::{MemberRole, RowsHashed, TableHash};
use atoll_topology::Lsn;
use tokio::process::Command;
use tokio::time::{Duration, Instant, sleep};

use super::group::{Group, JOIN_LIMIT};
use super::writers::Tally;

/// For a fact inside of one PostgreSQL.
const LOOK_LIMIT: Duration = Duration::from_secs(20);

/// PostgreSQL announces none of what is looked for.
const LOOK: Duration = Duration::from_millis(10);

impl Group {
    /// (term, timeline) of each term row, as a member has them.
    pub async fn term_rows(&self, at: usize) -> Result<Vec<(i64, i64)>> {
        let client = self.client(at, "cell_a").await?;
        let sql = "SELECT term, timeline FROM atoll.term ORDER BY term";
        let rows = client.query(sql, &[]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// Waits until all members follow the primary, compares every row, and has each member's
    /// tables and indexes checked.
    pub async fn members_are_equal(&self) -> Result<Vec<TableHash>> {
        self.members_are_joined().await?;
        let primary = self.primary();
        // First, because its extension has to reach the others.
        self.is_sound(primary, Amcheck::Install).await?;
        let term = self.record.open_term();
        let id = format!("hash-{term}-{}", self.runtime.wall_clock().0);
        let leader = self
            .control
            .hash(&self.member(primary), &id, Lsn(0))
            .await?;
        ensure!(leader.error.is_none(), "{leader:?}");
        for at in (0..3).filter(|at| *at != primary) {
            let hashed = self.hash(at, &id, leader.lsn).await?;
            ensure!(
                hashed.tables == leader.tables,
                "{} differs: {:?} and {:?}",
                self.member(at),
                hashed.tables,
                leader.tables
            );
            self.is_sound(at, Amcheck::Installed).await?;
        }
        Ok(leader.tables)
    }

    /// A member's row hashes. One that has just joined may still start once more.
    async fn hash(&self, at: usize, id: &str, at_least: Lsn) -> Result<RowsHashed> {
        let started = Instant::now();
        for attempt in 0.. {
            let id = format!("{id}-{attempt}");
            let hashed = self.control.hash(&self.member(at), &id, at_least).await?;
            if hashed.error.is_none() {
                return Ok(hashed);
            }
            ensure!(
                started.elapsed() < JOIN_LIMIT,
                "{hashed:?}\n{}",
                self.logs()
            );
            self.until_joined(at).await?;
            sleep(LOOK).await;
        }
        unreachable!("it ends within its limit")
    }

    /// pg_amcheck: every heap, and every index against its heap, catalogs included.
    async fn is_sound(&self, at: usize, extension: Amcheck) -> Result<()> {
        let binaries = Binaries::find(None)?;
        let mut command = Command::new(binaries.program("pg_amcheck"));
        command
            .arg("--host")
            .arg(self.agents[at].folder().join("run"))
            .args(["--username", SUPERUSER, "--database", DATABASE])
            .arg("--heapallindexed");
        if extension == Amcheck::Install {
            command.arg("--install-missing");
        }
        let checked = command.stdin(Stdio::null()).output().await?;
        ensure!(
            checked.status.success() && checked.stdout.is_empty(),
            "pg_amcheck of {}: {}{}",
            self.member(at),
            String::from_utf8_lossy(&checked.stdout),
            String::from_utf8_lossy(&checked.stderr)
        );
        Ok(())
    }

    /// Waits until all members follow the primary.
    pub async fn members_are_joined(&self) -> Result<()> {
        let primary = self.primary();
        for at in (0..3).filter(|at| *at != primary) {
            self.until_joined(at).await?;
        }
        Ok(())
    }

    /// Waits until this member follows the primary.
    pub async fn until_joined(&self, at: usize) -> Result<()> {
        let term = self.record.open_term();
        let (member, leader) = (self.member(at), self.member(self.primary()));
        let what = format!("{member} following {leader}");
        let joined = self.control.until(JOIN_LIMIT, &what, |control| {
            control.status(&member).filter(|status| {
                status.role == MemberRole::Following
                    && status.promise == term
                    && status.upstream.as_ref() == Some(&leader)
            })
        });
        joined.await.map_err(|error| error.context(self.logs()))?;
        Ok(())
    }

    /// Every acknowledged id must be there; ids of unknown outcome may be; no others.
    pub async fn nothing_is_lost(&self, tally: &Tally, cell: &str) -> Result<()> {
        let missing = self.missing(tally, cell).await?;
        ensure!(
            missing == 0,
            "{missing} of {} acknowledged writes are lost\n{}",
            tally.acknowledged.len(),
            self.logs()
        );
        Ok(())
    }

    /// How many acknowledged ids are missing on the primary, as its clients see it.
    pub async fn missing(&self, tally: &Tally, cell: &str) -> Result<usize> {
        let client = self.client(self.primary(), &format!("cell_{cell}")).await?;
        let rows = client.query("SELECT id FROM s00000.t", &[]).await?;
        lacks(rows.iter().map(|row| row.get(0)).collect(), tally)
    }

    /// How many acknowledged ids are missing on this member, whatever it is.
    pub async fn missing_on(&self, at: usize, tally: &Tally) -> Result<usize> {
        lacks(self.ids(at).await?, tally)
    }

    /// The ids that a session on this member sees in shard 0.
    pub async fn ids(&self, at: usize) -> Result<BTreeSet<i64>> {
        let session = self.inside(at, SUPERUSER).await?;
        let rows = session.rows("ids", "SELECT id FROM s00000.t").await?;
        let id = |row: Vec<Option<String>>| {
            Ok(row.into_iter().flatten().next().context("null")?.parse()?)
        };
        rows.into_iter().map(id).collect()
    }

    /// Waits until at least `count` commits on this member wait for its quorum.
    pub async fn until_commits_wait(&self, at: usize, count: i64) -> Result<()> {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        self.until_inside(at, sql, |value| {
            value.parse().is_ok_and(|found: i64| found >= count)
        })
        .await
    }

    /// Waits until the value that this query gives on this member is as wanted.
    pub async fn until_inside(
        &self,
        at: usize,
        sql: &str,
        fits: impl Fn(&str) -> bool,
    ) -> Result<()> {
        let (started, mut last) = (Instant::now(), String::from("nothing"));
        loop {
            // It may not be up yet.
            let found = match self.inside(at, SUPERUSER).await {
                Ok(session) => session.value("look", sql).await,
                Err(error) => {
                    last = error.to_string();
                    Ok(None)
                }
            };
            if let Some(value) = found? {
                if fits(&value) {
                    return Ok(());
                }
                last = value;
            }
            ensure!(
                started.elapsed() < LOOK_LIMIT,
                "{sql} on {}: not within {LOOK_LIMIT:?}; last seen {last}\n{}",
                self.member(at),
                self.logs()
            );
            sleep(LOOK).await;
        }
    }

    /// A session that goes past the agent, over PostgreSQL's own socket: for what only a person
    /// with a shell on the machine could do.
    pub async fn inside(&self, at: usize, role: &str) -> Result<Session> {
        let socket = self.agents[at].folder().join("run/.s.PGSQL.5432");
        Ok(Session::open_as(&self.runtime, &socket, role).await?)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Amcheck {
    Install,
    Installed,
}

fn lacks(present: BTreeSet<i64>, tally: &Tally) -> Result<usize> {
    let stray: Vec<_> = present
        .iter()
        .filter(|id| !tally.acknowledged.contains(id) && !tally.unknown.contains(id))
        .collect();
    ensure!(stray.is_empty(), "rows that nobody wrote: {stray:?}");
    Ok(tally.acknowledged.difference(&present).count())
}
