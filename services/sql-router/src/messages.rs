//! The client's messages, one by one.

use std::sync::Arc;

use atoll_pgwire::backend::{put_parameter_description, put_text_column, tag as answer};
use atoll_pgwire::frontend::{self, Target, tag};
use atoll_pgwire::hint::Scope;
use atoll_pgwire::{Frame, FrameError};
use atoll_topology::ShardId;
use bytes::{Bytes, BytesMut};

use crate::error::Refusal;
use crate::identify;
use crate::local::Columns;
use crate::route::empty;
use crate::session::{
    Expect, Named, Portal, Prepared, Purpose, Seen, Sent, ServedBy, Session, State, Stop, Unit,
};
use crate::statement::{Analysed, Kind, analyse};

impl Session {
    /// Takes one message.
    pub(crate) async fn on_client(&mut self, frame: &Frame) -> Result<(), Stop> {
        let (tag, body) = (frame.tag(), frame.body());
        if !self.unit.sent && self.attached.is_some() {
            self.leave_outdated();
            self.notice_loss();
        }
        match tag {
            // After an error up to Sync: PostgreSQL skips too.
            tag::SYNC => {
                self.on_sync();
                return Ok(());
            }
            _ if self.unit.failed => return Ok(()),
            tag::QUERY => {
                return match self.on_query(frontend::query(body)?).await {
                    Err(Stop::Refused(refusal)) => {
                        self.refuse_query(refusal);
                        Ok(())
                    }
                    other => other,
                };
            }
            _ => {}
        }
        let done = match tag {
            tag::PARSE => self.on_parse(frontend::parse(body)?),
            tag::BIND => self.on_bind(frontend::bind(body)?).await,
            tag::DESCRIBE => self.on_describe(frontend::target(body)?).await,
            tag::EXECUTE => self.on_execute(frame, &frontend::execute(body)?),
            tag::CLOSE => self.on_close(frame, frontend::target(body)?),
            tag::FLUSH => {
                self.on_flush();
                Ok(())
            }
            tag::FUNCTION_CALL => {
                let what = "a call of a function by the protocol's FunctionCall";
                Err(Refusal::Feature {
                    what,
                    hint: "Use SELECT.",
                }
                .into())
            }
            _ => return Err(FrameError::Tag(tag).into()),
        };
        match done {
            Err(Stop::Refused(refusal)) => {
                self.refuse_message(refusal);
                Ok(())
            }
            other => other,
        }
    }

    /// One text with any number of statements. Those in front that the router answers are
    /// answered; the rest goes to the primary as one text.
    async fn on_query(&mut self, text: Bytes) -> Result<(), Stop> {
        if self.unit.sent {
            let what = "a Query between an Execute and its Sync";
            return Err(Refusal::Feature {
                what,
                hint: "Send Sync first.",
            }
            .into());
        }
        let found = analyse(&text)?;
        if found.is_empty() {
            self.client
                .output
                .extend_from_slice(&empty(answer::EMPTY_QUERY));
        }
        let mut rest = found.as_slice();
        while let Some((first, others)) = rest.split_first()
            && (self.answers(&first.kind) || matches!(self.state, State::Failed { .. }))
        {
            let answered = self.answer(&first.kind, Columns::ToTell)?;
            self.client.output.extend_from_slice(&answered);
            // A key in front of BEGIN holds for the transaction.
            if let (Kind::Begin(_), Some(user)) =
                (&first.kind, identify::hinted(first.hint.as_ref(), None)?)
            {
                self.keys.set_in_transaction(Scope::Transaction, Some(user));
            }
            rest = others;
        }
        let Some(first) = rest.first() else {
            self.put_ready();
            return Ok(());
        };
        let shard = self.shard_of_all(rest)?;
        let implicit = self.state == State::Idle;
        self.attach(shard, Purpose::Execute).await?;
        for statement in rest {
            self.note_setting(&statement.kind)?;
        }
        self.unit.waiting = true;
        self.unit.executed = true;
        self.unit.may_commit = implicit || rest.iter().any(|s| s.kind.ends_transaction());
        if let Some(attached) = &mut self.attached {
            attached.backend.unnamed = None;
        }
        let mut bytes = BytesMut::new();
        frontend::put_query(&mut bytes, &blanked(&text, first.range.start));
        self.send(Sent {
            needs: None,
            bytes: bytes.freeze(),
            expects: vec![Expect::Query],
        });
        Ok(())
    }

    /// The one shard of several statements.
    fn shard_of_all(&self, statements: &[Analysed]) -> Result<ShardId, Refusal> {
        let mut found: Option<ShardId> = None;
        let mut needed = false;
        for statement in statements {
            let alone = "a statement about the session in one text with others";
            let shard = match &statement.kind {
                Kind::ShowKey | Kind::Deallocate(_) | Kind::DiscardAll | Kind::SetKey(..) => {
                    return Err(Refusal::Feature {
                        what: alone,
                        hint: "Send it by itself.",
                    });
                }
                Kind::Commit | Kind::Rollback | Kind::Begin(_) if statement.hint.is_none() => {
                    continue;
                }
                _ => self.shard(statement.hint.as_ref(), None),
            };
            let shard = match shard {
                // Another statement of the text may say it.
                Err(Refusal::NoKey) => {
                    needed = true;
                    continue;
                }
                other => other?,
            };
            match found {
                Some(held) if held != shard => {
                    return Err(Refusal::TwoShards { held, asked: shard });
                }
                _ => found = Some(shard),
            }
        }
        match (found, &self.attached) {
            (Some(shard), _) => Ok(shard),
            (None, Some(attached)) if !needed => Ok(attached.shard),
            (None, _) => Err(Refusal::NoKey),
        }
    }

    /// Kept until it is used: only then is it known where.
    fn on_parse(&mut self, parse: frontend::Parse) -> Result<(), Stop> {
        let named = if parse.name.is_empty() {
            Named::No
        } else {
            Named::Yes
        };
        if named == Named::Yes {
            if self.statements.contains_key(&parse.name) {
                let name = String::from_utf8_lossy(&parse.name).into_owned();
                return Err(Refusal::Duplicate(name).into());
            }
            let limit = self.shared.limits.statements_per_client_max;
            if self.statements.len() >= limit {
                return Err(Refusal::Limit {
                    name: "statements_per_client_max",
                    limit,
                }
                .into());
            }
        }
        let mut found = analyse(&parse.query)?;
        if found.len() > 1 {
            let text = "cannot insert multiple commands into a prepared statement";
            return Err(Refusal::Syntax(text.to_owned()).into());
        }
        let (kind, hint) = found
            .pop()
            .map_or((Kind::Data, None), |one| (one.kind, one.hint));
        let statement = match named {
            Named::Yes => self.shared.statements.shared(parse.query, parse.types),
            Named::No => self.shared.statements.single(parse.query, parse.types),
        };
        let prepared = Arc::new(Prepared {
            statement,
            kind,
            hint,
            named,
        });
        self.statements.insert(parse.name, prepared);
        self.reply(empty(answer::PARSE_COMPLETE));
        Ok(())
    }

    fn statement(&self, name: &Bytes) -> Result<Arc<Prepared>, Refusal> {
        self.statements
            .get(name)
            .cloned()
            .ok_or_else(|| Refusal::Unknown {
                what: "prepared statement",
                sqlstate: "26000",
                name: String::from_utf8_lossy(name).into_owned(),
            })
    }

    /// A portal by its name. One that the client has not bound can still be there: DECLARE makes
    /// them too, and only the primary knows.
    fn portal(&mut self, name: &Bytes) -> Result<Option<Portal>, Refusal> {
        if let Some(portal) = self.portals.get(name)
            && (portal.by == ServedBy::Router || self.is_engaged())
        {
            return Ok(Some(portal.clone()));
        }
        if self.is_engaged() {
            return Ok(None);
        }
        if let State::Failed { untold } = &mut self.state {
            return Err(untold.take().unwrap_or(Refusal::InFailedTransaction));
        }
        // A primary's portal is gone with its connection.
        self.portals.remove(name);
        Err(Refusal::Unknown {
            what: "portal",
            sqlstate: "34000",
            name: String::from_utf8_lossy(name).into_owned(),
        })
    }

    async fn on_bind(&mut self, bind: frontend::Bind) -> Result<(), Stop> {
        let prepared = self.statement(&bind.statement)?;
        if self.answers(&prepared.kind) || matches!(self.state, State::Failed { .. }) {
            let by = ServedBy::Router;
            self.portals.insert(bind.portal, Portal { prepared, by });
            self.reply(empty(answer::BIND_COMPLETE));
            return Ok(());
        }
        let statement = &prepared.statement;
        let types = statement.described.get().unwrap_or(&statement.types);
        let ends = prepared.kind.ends_transaction();
        let shard = match (&self.attached, ends && prepared.hint.is_none()) {
            (Some(attached), true) => attached.shard,
            _ => self.shard(prepared.hint.as_ref(), Some((&bind, types)))?,
        };
        self.attach(shard, Purpose::Execute).await?;
        if self.unit.failed {
            return Ok(());
        }
        let name = match prepared.named {
            Named::Yes => statement.name.clone(),
            Named::No => Bytes::new(),
        };
        let mut bytes = BytesMut::new();
        frontend::put_bind(&mut bytes, &bind.portal, &name, &bind.rest);
        let needs = Some(Arc::clone(&prepared));
        self.send(Sent {
            needs,
            bytes: bytes.freeze(),
            expects: vec![Expect::Bind],
        });
        self.portals.insert(
            bind.portal,
            Portal {
                prepared,
                by: ServedBy::Primary,
            },
        );
        Ok(())
    }

    async fn on_describe(&mut self, target: Target) -> Result<(), Stop> {
        match target {
            Target::Statement(name) => {
                let prepared = self.statement(&name)?;
                if prepared.kind == Kind::Data && !matches!(self.state, State::Failed { .. }) {
                    return self.describe_statement(prepared).await;
                }
                let mut out = BytesMut::new();
                put_parameter_description(&mut out, &[]);
                self.describe_ours(&prepared.kind, out)?;
            }
            Target::Portal(name) => {
                if let Some(portal) = self.portal(&name)?
                    && portal.by == ServedBy::Router
                {
                    return self.describe_ours(&portal.prepared.kind, BytesMut::new());
                }
                let mut bytes = BytesMut::new();
                frontend::put_describe(&mut bytes, &Target::Portal(name));
                let expects = vec![Expect::Describe(None)];
                self.send(Sent {
                    needs: None,
                    bytes: bytes.freeze(),
                    expects,
                });
            }
        }
        Ok(())
    }

    /// The types of a statement, from any shard if its own is not known yet.
    async fn describe_statement(&mut self, prepared: Arc<Prepared>) -> Result<(), Stop> {
        if self.attached.is_none() {
            let shard = match self.shard(prepared.hint.as_ref(), None) {
                Err(Refusal::NoKey | Refusal::KeyParameter(_)) => self.any_shard()?,
                other => other?,
            };
            self.attach(shard, Purpose::Describe).await?;
        }
        let name = match prepared.named {
            Named::Yes => prepared.statement.name.clone(),
            Named::No => Bytes::new(),
        };
        let mut bytes = BytesMut::new();
        frontend::put_describe(&mut bytes, &Target::Statement(name));
        let expects = vec![Expect::Describe(Some(Arc::clone(&prepared.statement)))];
        self.send(Sent {
            needs: Some(prepared),
            bytes: bytes.freeze(),
            expects,
        });
        Ok(())
    }

    /// The columns of a statement that the router answers.
    fn describe_ours(&mut self, kind: &Kind, mut out: BytesMut) -> Result<(), Stop> {
        if let State::Failed { untold } = &mut self.state
            && *kind == Kind::Data
        {
            return Err(untold.take().unwrap_or(Refusal::InFailedTransaction).into());
        }
        if *kind == Kind::ShowKey {
            put_text_column(&mut out, "atoll.key");
        } else {
            out.extend_from_slice(&empty(answer::NO_DATA));
        }
        self.reply(out.freeze());
        Ok(())
    }

    fn on_execute(&mut self, frame: &Frame, execute: &frontend::Execute) -> Result<(), Stop> {
        let portal = self.portal(&execute.portal)?;
        if let Some(portal) = &portal {
            if portal.by == ServedBy::Router {
                let answered = self.answer(&portal.prepared.kind, Columns::Told)?;
                self.reply(answered);
                return Ok(());
            }
            self.note_setting(&portal.prepared.kind)?;
            self.unit.may_commit |= portal.prepared.kind.ends_transaction();
        }
        self.unit.executed = true;
        let bytes = frame.raw().clone();
        let expects = vec![Expect::Execute];
        self.send(Sent {
            needs: None,
            bytes,
            expects,
        });
        Ok(())
    }

    fn on_close(&mut self, frame: &Frame, target: Target) -> Result<(), Stop> {
        let by = match target {
            Target::Statement(name) => {
                self.statements.remove(&name);
                ServedBy::Router
            }
            Target::Portal(name) => self
                .portals
                .remove(&name)
                .map_or(ServedBy::Primary, |portal| portal.by),
        };
        if by == ServedBy::Primary && self.is_engaged() {
            let expects = vec![Expect::Close(Seen::ByClient)];
            self.send(Sent {
                needs: None,
                bytes: frame.raw().clone(),
                expects,
            });
        } else {
            self.reply(empty(answer::CLOSE_COMPLETE));
        }
        Ok(())
    }

    /// The client wants to see what there is: nothing may be held back for a second try.
    fn on_flush(&mut self) {
        if self.unit.sent {
            self.no_replay();
            let mut bytes = BytesMut::new();
            frontend::put_flush(&mut bytes);
            self.send(Sent {
                needs: None,
                bytes: bytes.freeze(),
                expects: Vec::new(),
            });
        }
    }

    fn on_sync(&mut self) {
        if self.attached.is_none() || !self.unit.sent {
            self.put_ready();
            self.unit = Unit::default();
            return;
        }
        self.unit.waiting = true;
        let implicit = !matches!(self.state, State::Open(_));
        if self.is_engaged() && implicit && self.unit.executed {
            self.unit.may_commit = true;
        }
        let mut bytes = BytesMut::new();
        frontend::put_sync(&mut bytes);
        let expects = vec![Expect::Sync(Seen::ByClient)];
        self.send(Sent {
            needs: None,
            bytes: bytes.freeze(),
            expects,
        });
    }
}

/// The text from `begins` on, at the same place: so the positions in PostgreSQL's errors are those
/// of the client's text.
fn blanked(text: &Bytes, begins: usize) -> Vec<u8> {
    let (front, rest) = text.split_at(begins);
    let letters = front.iter().filter(|byte| **byte & 0xC0 != 0x80).count();
    let mut blanked = vec![b' '; letters];
    blanked.extend_from_slice(rest);
    blanked
}
