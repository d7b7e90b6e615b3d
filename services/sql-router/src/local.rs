//! What the router answers itself: BEGIN until something follows it, the key, settings of the
//! session, the names of prepared statements.

use atoll_pgwire::backend::{
    Report, Severity, Status, put_command_complete, put_report, put_text_column, put_text_row,
};
use atoll_pgwire::hint::Scope;
use bytes::{Bytes, BytesMut};

use crate::error::Refusal;
use crate::identify::{self, Committed};
use crate::session::{Session, State};
use crate::statement::Kind;

/// Whether the columns of an answer were told already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Columns {
    /// By Describe.
    Told,
    /// Not yet: a Query's answer begins with them.
    ToTell,
}

impl Session {
    /// Whether the router answers this kind of statement now.
    pub(crate) fn answers(&self, kind: &Kind) -> bool {
        match kind {
            Kind::Data => false,
            Kind::Begin(_)
            | Kind::SetTransaction(_)
            | Kind::Commit
            | Kind::Rollback
            | Kind::Set(..)
            | Kind::Reset(_)
            | Kind::ResetAll => !self.is_engaged(),
            Kind::SetKey(..)
            | Kind::ShowKey
            | Kind::DiscardAll
            | Kind::Deallocate(_)
            | Kind::Ignored(_) => true,
        }
    }

    /// Answers it.
    pub(crate) fn answer(&mut self, kind: &Kind, columns: Columns) -> Result<Bytes, Refusal> {
        if matches!(self.state, State::Failed { .. }) {
            return self.answer_failed(kind);
        }
        if self.state == State::Open(Status::Failed) && !matches!(kind, Kind::Deallocate(_)) {
            return Err(Refusal::InFailedTransaction);
        }
        let mut out = BytesMut::new();
        let tag = match kind {
            Kind::Begin(statement) => {
                match self.state {
                    State::Idle => self.state = State::Begun(vec![statement.clone()]),
                    _ => warn(
                        &mut out,
                        "25001",
                        "there is already a transaction in progress",
                    ),
                }
                "BEGIN"
            }
            Kind::SetTransaction(statement) => {
                match &mut self.state {
                    State::Begun(before) => before.push(statement.clone()),
                    _ => warn(
                        &mut out,
                        "25P01",
                        "SET TRANSACTION can only be used in transaction blocks",
                    ),
                }
                "SET"
            }
            Kind::Commit | Kind::Rollback => {
                let committed = if *kind == Kind::Commit {
                    Committed::Yes
                } else {
                    Committed::No
                };
                if self.state == State::Idle {
                    warn(&mut out, "25P01", "there is no transaction in progress");
                }
                self.end_transaction(committed);
                if committed == Committed::Yes {
                    "COMMIT"
                } else {
                    "ROLLBACK"
                }
            }
            Kind::SetKey(scope, key) => {
                self.set_key(*scope, key.as_deref(), &mut out)?;
                "SET"
            }
            Kind::ShowKey => {
                if columns == Columns::ToTell {
                    put_text_column(&mut out, "atoll.key");
                }
                let key = self
                    .keys
                    .current()
                    .map(|key| key.as_str())
                    .unwrap_or_default();
                put_text_row(&mut out, key);
                "SHOW"
            }
            Kind::Set(name, statement) => {
                self.set(name, Some(statement))?;
                "SET"
            }
            Kind::Reset(name) => {
                self.set(name, None)?;
                "RESET"
            }
            Kind::ResetAll => {
                self.settings.reset_all();
                self.keys.reset();
                "RESET"
            }
            Kind::DiscardAll => {
                if self.state != State::Idle || self.is_engaged() {
                    let (what, hint) = ("DISCARD ALL in a transaction", "End it first.");
                    return Err(Refusal::Feature { what, hint });
                }
                self.settings.reset_all();
                self.keys.reset();
                self.statements.clear();
                self.portals.clear();
                "DISCARD ALL"
            }
            Kind::Deallocate(None) => {
                self.statements.retain(|name, _| name.is_empty());
                "DEALLOCATE ALL"
            }
            Kind::Deallocate(Some(name)) => {
                if self.statements.remove(name.as_bytes()).is_none() {
                    let (what, sqlstate) = ("prepared statement", "26000");
                    return Err(Refusal::Unknown {
                        what,
                        sqlstate,
                        name: name.clone(),
                    });
                }
                "DEALLOCATE"
            }
            Kind::Ignored(tag) => tag,
            // Never asked for: `answers` says no.
            Kind::Data => "SELECT 0",
        };
        Ok(complete(out, tag))
    }

    /// Answers in a transaction that the router has given up. Its client is told before it hears
    /// that a COMMIT came to nothing.
    fn answer_failed(&mut self, kind: &Kind) -> Result<Bytes, Refusal> {
        let untold = match &mut self.state {
            State::Failed { untold } => untold.take(),
            _ => None,
        };
        match (kind, untold) {
            (Kind::Rollback, _) | (Kind::Commit, None) => {
                self.end_transaction(Committed::No);
                Ok(complete(BytesMut::new(), "ROLLBACK"))
            }
            (Kind::Commit, Some(refusal)) => {
                self.end_transaction(Committed::No);
                Err(refusal)
            }
            (_, untold) => Err(untold.unwrap_or(Refusal::InFailedTransaction)),
        }
    }

    fn set_key(
        &mut self,
        scope: Scope,
        key: Option<&str>,
        out: &mut BytesMut,
    ) -> Result<(), Refusal> {
        let user = key.map(identify::user).transpose()?;
        if let Some(user) = &user {
            let table = self.shared.gates.table();
            // Before the first table nothing can be checked; the statement itself will be.
            let shard = identify::shard(&table, user);
            if let (true, Some(attached)) = (self.is_engaged(), &self.attached) {
                let (held, asked) = (attached.shard, shard?);
                if held != asked {
                    return Err(Refusal::TwoShards { held, asked });
                }
            } else if table.version.number > 0 {
                shard?;
            }
        }
        match (&self.state, self.is_engaged(), scope) {
            (State::Idle, false, Scope::Session) => self.keys.set(user),
            (State::Idle, false, Scope::Transaction) => {
                warn(
                    out,
                    "25P01",
                    "SET LOCAL can only be used in transaction blocks",
                );
            }
            _ => self.keys.set_in_transaction(scope, user),
        }
        Ok(())
    }

    /// A setting of the session, while no primary is engaged.
    fn set(&mut self, name: &str, statement: Option<&String>) -> Result<(), Refusal> {
        self.check_settings()?;
        match &mut self.state {
            State::Begun(before) => {
                before.push(statement.map_or_else(
                    || format!("RESET {}", crate::route::quoted(name)),
                    Clone::clone,
                ));
                self.settings
                    .pending
                    .insert(name.to_owned(), statement.cloned());
            }
            _ => self.settings.apply(name.to_owned(), statement.cloned()),
        }
        Ok(())
    }

    /// A setting that is on its way to an engaged primary.
    pub(crate) fn note_setting(&mut self, kind: &Kind) -> Result<(), Refusal> {
        match kind {
            Kind::Set(name, statement) => {
                self.check_settings()?;
                self.settings
                    .pending
                    .insert(name.clone(), Some(statement.clone()));
            }
            Kind::Reset(name) => drop(self.settings.pending.insert(name.clone(), None)),
            Kind::ResetAll => {
                self.settings.reset_all();
                if let Some(attached) = &mut self.attached {
                    // Its search_path is the database's own now.
                    attached.backend.spoilt = true;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn check_settings(&self) -> Result<(), Refusal> {
        let limit = self.shared.limits.settings_per_client_max;
        if self.settings.session.len() + self.settings.pending.len() >= limit {
            return Err(Refusal::Limit {
                name: "settings_per_client_max",
                limit,
            });
        }
        Ok(())
    }
}

fn complete(mut out: BytesMut, tag: &str) -> Bytes {
    put_command_complete(&mut out, tag);
    out.freeze()
}

fn warn(out: &mut BytesMut, sqlstate: &str, message: &str) {
    let severity = Severity::Warning;
    put_report(
        out,
        Report {
            severity,
            sqlstate,
            message,
            detail: "",
            hint: "",
        },
    );
}
