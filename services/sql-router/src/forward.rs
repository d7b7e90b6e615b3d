//! To the primary and back: what is sent, and what its answers mean.

use std::sync::Arc;

use atoll_pgwire::backend::{self, Status, tag};
use atoll_pgwire::{Frame, frontend};
use bytes::Bytes;
use tokio::time::Instant;
use tracing::warn;

use crate::backend::Backend;
use crate::error::Refusal;
use crate::identify::Committed;
use crate::lost::error;
use crate::route::is_ours;
use crate::session::{
    Attached, Expect, Named, Prepared, Purpose, Seen, Sent, Session, State, Stop, Unit,
};

impl Session {
    /// Sends something to the primary, and remembers it while the unit may have to be sent again.
    pub(crate) fn send(&mut self, sent: Sent) {
        self.unit.sent = true;
        if let Some(replay) = &mut self.unit.replay {
            replay.bytes += sent.bytes.len();
            if replay.bytes > self.shared.limits.replay_bytes {
                self.no_replay();
            } else {
                replay.sent.push(sent.clone());
            }
        }
        self.put(sent);
    }

    fn put(&mut self, sent: Sent) {
        let limit = self.shared.limits.statements_per_connection_max;
        let Some(attached) = &mut self.attached else {
            return;
        };
        if let Some(prepared) = &sent.needs {
            prepare(attached, prepared, limit);
        }
        attached.backend.side.output.extend_from_slice(&sent.bytes);
        attached.expects.extend(sent.expects);
        self.pass_ours();
    }

    /// An answer of the router's own, in its turn.
    pub(crate) fn reply(&mut self, answer: Bytes) {
        if self.attached.is_some() && self.unit.sent {
            let expects = vec![Expect::Ours(answer)];
            self.send(Sent {
                needs: None,
                bytes: Bytes::new(),
                expects,
            });
        } else {
            self.client.output.extend_from_slice(&answer);
        }
    }

    fn pass_ours(&mut self) {
        while let Some(attached) = &mut self.attached
            && matches!(attached.expects.front(), Some(Expect::Ours(_)))
            && let Some(Expect::Ours(answer)) = attached.expects.pop_front()
        {
            self.emit(&answer, Weight::Light);
        }
    }

    /// From here on the unit cannot be sent again.
    pub(crate) fn no_replay(&mut self) {
        self.unit.replay = None;
        let staged = std::mem::take(&mut self.unit.staged);
        self.client.output.extend_from_slice(&staged);
    }

    pub(crate) fn emit(&mut self, bytes: &Bytes, weight: Weight) {
        if self.unit.unknown {
            return;
        }
        let staging =
            self.unit.denied.is_some() || self.unit.replay.is_some() && weight == Weight::Light;
        if staging {
            self.unit.staged.extend_from_slice(bytes);
        } else {
            self.no_replay();
            self.client.output.extend_from_slice(bytes);
        }
    }

    /// Takes all answers that are here, up to the end of the unit.
    pub(crate) fn take_answers(&mut self) {
        loop {
            if self.unit.denied.is_some() && self.at_ready() {
                return;
            }
            let Some(attached) = &mut self.attached else {
                return;
            };
            match attached.backend.decode() {
                Ok(Some(frame)) => {
                    if let Err(error) = self.on_answer(&frame) {
                        self.on_lost(&error.to_string());
                    }
                }
                Ok(None) => return,
                Err(error) => self.on_lost(&error.to_string()),
            }
        }
    }

    /// Whether the primary has said all that it has to say in this unit.
    pub(crate) fn at_ready(&self) -> bool {
        self.attached
            .as_ref()
            .is_some_and(|attached| attached.expects.is_empty())
    }

    fn on_answer(&mut self, frame: &Frame) -> Result<(), atoll_pgwire::FrameError> {
        let raw = frame.raw();
        match frame.tag() {
            tag::NOTICE => {
                if backend::fields(frame.body())?.is_sync_wait_cancelled() {
                    warn!("a commit stopped waiting for its standbys; its outcome is unknown");
                    self.unit.unknown = true;
                } else {
                    self.emit(raw, Weight::Light);
                }
            }
            tag::PARAMETER_STATUS => {
                let (name, value) = backend::parameter_status(frame.body())?;
                if let Some(attached) = &mut self.attached {
                    attached
                        .backend
                        .parameters
                        .insert(name.clone(), value.clone());
                }
                if !is_ours(&name) {
                    self.told.insert(name, value);
                    self.emit(raw, Weight::Light);
                }
            }
            tag::NOTIFICATION => {}
            tag::ERROR => self.on_error(frame)?,
            tag::READY_FOR_QUERY => self.on_ready(backend::ready_for_query(&frame.body())?),
            tag::COPY_IN | tag::COPY_OUT | tag::COPY_BOTH => {
                return Err(atoll_pgwire::FrameError::Body(
                    "a COPY that was not asked for",
                ));
            }
            _ => self.on_result(frame)?,
        }
        Ok(())
    }

    fn on_result(&mut self, frame: &Frame) -> Result<(), atoll_pgwire::FrameError> {
        let Some(attached) = &mut self.attached else {
            return Ok(());
        };
        let tag = frame.tag();
        let ends = match (attached.expects.front(), tag) {
            (Some(Expect::Parse(_)), tag::PARSE_COMPLETE) => {
                attached.expects.pop_front();
                self.pass_ours();
                return Ok(());
            }
            (Some(Expect::Close(Seen::ByRouter)), tag::CLOSE_COMPLETE) => {
                attached.expects.pop_front();
                self.pass_ours();
                return Ok(());
            }
            (Some(Expect::Describe(statement)), tag::PARAMETER_DESCRIPTION) => {
                if let Some(statement) = statement {
                    // Described before: the types are the same.
                    drop(
                        statement
                            .described
                            .set(backend::parameter_description(frame.body())?),
                    );
                }
                false
            }
            (Some(Expect::Bind), tag::BIND_COMPLETE)
            | (Some(Expect::Close(_)), tag::CLOSE_COMPLETE)
            | (Some(Expect::Describe(_)), tag::ROW_DESCRIPTION | tag::NO_DATA) => true,
            (
                Some(Expect::Execute),
                tag::COMMAND_COMPLETE | tag::EMPTY_QUERY | tag::PORTAL_SUSPENDED,
            ) => true,
            (Some(Expect::Execute), tag::DATA_ROW) | (Some(Expect::Query), _) => false,
            _ => {
                return Err(atoll_pgwire::FrameError::Body(
                    "an answer to nothing that was asked",
                ));
            }
        };
        if ends {
            attached.expects.pop_front();
        }
        if tag == tag::COMMAND_COMPLETE {
            self.unit.last_tag = backend::command_complete(frame.body())?;
        }
        let light = matches!(
            tag,
            tag::BIND_COMPLETE
                | tag::CLOSE_COMPLETE
                | tag::NO_DATA
                | tag::PARAMETER_DESCRIPTION
                | tag::ROW_DESCRIPTION
        );
        self.emit(
            frame.raw(),
            if light { Weight::Light } else { Weight::Result },
        );
        self.pass_ours();
        Ok(())
    }

    fn on_error(&mut self, frame: &Frame) -> Result<(), atoll_pgwire::FrameError> {
        let fields = backend::fields(frame.body())?;
        if matches!(fields.get(b'V'), Some(b"FATAL" | b"PANIC")) {
            // The connection ends after this; what it means for the client is ours to say.
            self.on_lost(&fields.message());
            return Ok(());
        }
        let Some(attached) = &mut self.attached else {
            return Ok(());
        };
        let mut complete = false;
        while let Some(expect) = attached.expects.front() {
            match expect {
                Expect::Query => {
                    complete = true;
                    break;
                }
                Expect::Sync(seen) => {
                    complete = *seen == Seen::ByClient;
                    break;
                }
                Expect::Parse(number) => {
                    attached.backend.forget_prepared(*number);
                    attached.backend.unnamed = None;
                }
                _ => {}
            }
            attached.expects.pop_front();
        }
        self.unit.failed = true;
        let executes = attached.purpose == Purpose::Execute;
        if !executes {
            self.fail_begun();
        }
        if let Some(refusal) = self.unit.instead.take() {
            let error = error(&refusal);
            self.emit(&error, Weight::Result);
        } else if executes && complete && fields.code() == b"42501" {
            self.unit.denied = Some(frame.raw().clone());
        } else {
            self.emit(frame.raw(), Weight::Result);
        }
        Ok(())
    }

    fn on_ready(&mut self, status: Status) {
        let Some(attached) = &mut self.attached else {
            return;
        };
        let expect = attached.expects.pop_front();
        attached.idle_since = Instant::now();
        if attached.purpose == Purpose::Execute {
            // Whether the client hears of it now or after a look at the shard's owner.
            self.state = match status {
                Status::Idle if self.unit.denied.is_none() => self.state.clone(),
                status => State::Open(status),
            };
        }
        if matches!(expect, Some(Expect::Sync(Seen::ByRouter))) || self.unit.denied.is_some() {
            return;
        }
        self.end_unit(status);
    }

    /// The primary is ready again, and so is the client.
    pub(crate) fn end_unit(&mut self, status: Status) {
        if self.unit.unknown {
            let why = "The wait for the standbys was cancelled; the commit may be lost.".to_owned();
            self.unit.unknown = false;
            self.unit.staged.clear();
            self.unit.replay = None;
            self.attached = None;
            self.shared.metrics.unknown.inc();
            self.finish(&Refusal::OutcomeUnknown(why));
            return;
        }
        self.no_replay();
        let purpose = self.attached.as_ref().map(|attached| attached.purpose);
        if purpose == Some(Purpose::Execute) {
            if status == Status::Idle {
                let unit = &self.unit;
                let undone = unit.failed || unit.last_tag.as_ref() == b"ROLLBACK";
                if let (Some(attached), false) = (&mut self.attached, undone) {
                    // The connection holds them now, until another client has it.
                    for (name, statement) in self.settings.pending.clone() {
                        match statement {
                            Some(sql) => attached.backend.settings.insert(name, sql),
                            None => attached.backend.settings.remove(&name),
                        };
                    }
                }
                self.end_transaction(if undone {
                    Committed::No
                } else {
                    Committed::Yes
                });
                self.shared.metrics.transactions.inc();
                self.release();
            } else {
                self.state = State::Open(status);
            }
        } else {
            self.release();
        }
        self.put_ready();
        self.unit = Unit::default();
    }

    /// Gives the connection back to the pool.
    pub(crate) fn release(&mut self) {
        if let Some(attached) = self.attached.take() {
            self.shared.pools.give_back(attached.backend);
        }
    }

    /// Reads what is left to come from a primary that was only asked for types, and lets it go.
    pub(crate) async fn finish_describing(&mut self) -> Result<(), Stop> {
        let Some(attached) = &mut self.attached else {
            return Ok(());
        };
        if self.unit.sent {
            frontend::put_sync(&mut attached.backend.side.output);
            attached.expects.push_back(Expect::Sync(Seen::ByRouter));
        }
        let limit = Instant::now() + self.shared.limits.own_statement();
        loop {
            self.take_answers();
            let Some(attached) = &mut self.attached else {
                break;
            };
            if attached.expects.is_empty() {
                break;
            }
            let read = tokio::time::timeout_at(limit, attached.backend.side.read()).await;
            match read {
                Ok(Ok(())) => {}
                Ok(Err(error)) => self.on_lost(&error.to_string()),
                Err(_) => self.on_lost("no answer in time"),
            }
        }
        self.release();
        self.unit.sent = false;
        Ok(())
    }
}

/// Whether an answer says something about results: then the client may act on it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weight {
    Light,
    Result,
}

/// Has a statement prepared on this connection, if it is not.
fn prepare(attached: &mut Attached, prepared: &Arc<Prepared>, limit: usize) {
    let statement = &prepared.statement;
    let backend: &mut Backend = &mut attached.backend;
    let name = match prepared.named {
        Named::No if backend.unnamed == Some(statement.number) => return,
        Named::No => {
            backend.unnamed = Some(statement.number);
            Bytes::new()
        }
        Named::Yes if backend.uses_prepared(statement) => return,
        Named::Yes => {
            if let Some(oldest) = backend.add_prepared(statement, limit) {
                let oldest = frontend::Target::Statement(oldest.name.clone());
                frontend::put_close(&mut backend.side.output, &oldest);
                attached.expects.push_back(Expect::Close(Seen::ByRouter));
            }
            statement.name.clone()
        }
    };
    frontend::put_parse(
        &mut backend.side.output,
        &name,
        &statement.query,
        &statement.types,
    );
    attached.expects.push_back(Expect::Parse(statement.number));
}
