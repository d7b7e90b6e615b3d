//! An agent at work: one input of its member at a time, and the outputs in order.

use std::rc::Rc;

use atoll_topology::{MemberId, ShardId, Term};

use super::checks::Violation;
use super::log::Cell;
use super::message::Message;
use super::node::{Asker, At, Awaited, Link, Postgres, Statement, Work};
use super::story;
use super::world::{Stepped, World};
use crate::driver::{self, Driver};
use crate::member::{Input, Output};
use crate::messages::{Answer, Call, DriveOrder, Progress};

impl World {
    /// The next input, and this many outputs of it; or outputs that are left of the last one.
    pub(super) fn work(&mut self, at: At, outputs: u8) -> Stepped {
        let node = self.at(at);
        if !node.alive {
            return Ok(false);
        }
        if node.idle() {
            let Some((asker, input)) = node.inbox.pop_front() else {
                return Ok(false);
            };
            self.take_input(at, asker, input);
        }
        for _ in 0..outputs {
            let Some(output) = self.at(at).queue.pop_front() else {
                return Ok(true);
            };
            self.perform(at, output)?;
        }
        Ok(true)
    }

    fn take_input(&mut self, at: At, asker: Asker, input: Input) {
        self.tell(|| story::input(&input));
        let promotion = match &input {
            Input::Promote { term } => Some(*term),
            _ => None,
        };
        let opens = matches!(input, Input::Open { .. });
        let node = self.at(at);
        node.asker = asker;
        let outputs = node.member.step(input);
        if outputs.is_empty() {
            // A running primary that wins again has nothing to wait for.
            if let Some(term) = promotion {
                node.promoting = Some((term, asker));
            }
            // It serves already.
            if opens {
                self.report(at);
            }
            return;
        }
        node.queue.extend(outputs);
    }

    fn perform(&mut self, at: At, output: Output) -> Result<(), Violation> {
        self.tell(|| story::output(&output));
        match output {
            Output::Persist(durable) => {
                let node = self.at(at);
                if node.disk.promise.supersedes(durable.promise) {
                    let (id, old, new) = (&node.id, node.disk.promise, durable.promise);
                    let what = format!("{id} promises {new} after {old}");
                    return Self::broke("EPOCH_GROWS", what);
                }
                node.promised = node.promised.newest(durable.promise);
                node.disk = durable;
            }
            Output::ClosePort => self.at(at).cut_sessions(),
            Output::CutLinks { except } => {
                let except = except.as_ref().map(Self::index);
                self.cut_links(at, except);
            }
            Output::CutUpstream | Output::AwaitReceiverGone => self.at(at).link = None,
            Output::AnswerPrepared { term } => {
                let node = self.node(at);
                let (volume, recruit) = (node.nonce(), node.recruit());
                self.reply(
                    at,
                    Answer::Prepared {
                        term,
                        volume,
                        recruit,
                    },
                );
            }
            Output::AnswerDemoted { term } => {
                let log = &self.node(at).log;
                let (end, history) = (log.end(), log.rows().to_vec());
                self.reply(at, Answer::Demoted { term, end, history });
            }
            Output::Answer(answer) => self.reply(at, answer),
            Output::CompareLogs => {
                let node = self.at(at);
                let end = node.log.end();
                for output in node.member.step(Input::Compared(end)).into_iter().rev() {
                    node.queue.push_front(output);
                }
            }
            Output::Link { upstream, term } => self.link(at, Self::index(&upstream), term),
            Output::StopPostgres => self.end_postgres(at),
            Output::StartStandby => {
                let node = self.at(at);
                node.postgres = Postgres::Starting;
                let durable = node.member.durable();
                if let Some(upstream) = &durable.upstream {
                    let (upstream, term) = (Self::index(upstream), durable.promise);
                    self.link(at, upstream, term);
                }
            }
            Output::Rebuild {
                upstream,
                term,
                path,
            } => {
                self.end_postgres(at);
                self.at(at).rebuilding = Some((Self::index(&upstream), term, path));
            }
            Output::Promote { term } => {
                let node = self.at(at);
                node.needed = term;
                node.promoting = Some((term, node.asker));
            }
            Output::OpeningTransaction { term, grants } => {
                let what = Work::Opening {
                    term,
                    grants,
                    listed: self.ordered(at),
                    in_place: false,
                };
                let run = match self.node(at).asker {
                    Asker::Driver(run) => run,
                    Asker::Nobody | Asker::Member(_) => 0,
                };
                self.begin_statement(at, run, what);
            }
            Output::OpenPort { term } => self.open_port(at, term)?,
            Output::Deny(why) => {
                let asker = self.node(at).asker;
                let reason = why.to_string();
                self.told_driver(at, asker, driver::Input::Denied { reason })?;
            }
        }
        Ok(())
    }

    fn link(&mut self, at: At, upstream: At, term: Term) {
        let node = self.at(at);
        match &mut node.link {
            // It stays as it is; the next greeting carries the newer promise.
            Some(link) if link.upstream == upstream => link.term = term,
            _ => {
                node.link = Some(Link {
                    upstream,
                    term,
                    established: false,
                    known: Term::ZERO,
                });
            }
        }
    }

    /// A member has answered: what it has promised is known now, and it need not be asked again.
    pub(super) fn heard(&mut self, at: At, from: At, answer: &Answer) {
        let (node, id) = (
            &mut self.nodes[usize::from(at)],
            &self.ids[usize::from(from)],
        );
        if node.member.leading() == Some(answer.term()) {
            node.rejoin.heard(id, answer);
        }
        let link = &mut self.at(from).link;
        if let (Some(link), Some(term)) = (link, answer.promised())
            && link.upstream == at
            && link.established
        {
            link.known = link.known.newest(term);
        }
        if !answer.asks_again() {
            let asked = &mut self.at(at).asked;
            asked.retain(|(to, call)| *to != from || !answers(answer, call));
        }
    }

    pub(super) fn begin_statement(&mut self, at: At, run: u32, what: Work) {
        self.at(at).statements.push(Statement {
            heard: true,
            run,
            what,
        });
    }

    pub(super) fn cut_links(&mut self, at: At, except: Option<At>) {
        let node = self.at(at);
        if node.link.is_some_and(|link| Some(link.upstream) != except) {
            node.link = None;
        }
        for (other, node) in (0..).zip(&mut self.nodes) {
            if let Some(link) = node.link.as_mut()
                && link.upstream == at
                && Some(other) != except
            {
                link.established = false;
            }
        }
    }

    pub(super) fn end_postgres(&mut self, at: At) {
        self.cut_links(at, None);
        self.at(at).postgres_ended();
    }

    fn reply(&mut self, at: At, answer: Answer) {
        if let Asker::Member(to) = self.node(at).asker {
            self.tell(|| format!("answers {}", story::answer(&answer)));
            self.send(Message::Answer {
                from: at,
                to,
                answer,
            });
        }
    }

    /// Begins to drive, unless this very order is under way or done.
    pub(super) fn take_order(
        &mut self,
        at: At,
        order: &Rc<DriveOrder>,
        leaving: Vec<(ShardId, Cell)>,
    ) -> Result<(), Violation> {
        if let Some(driver) = &self.node(at).driver {
            let same = driver.order() == order.as_ref();
            if same || driver.order().term.supersedes(order.term) {
                return Ok(());
            }
        }
        let driver = match self.mutant {
            Some(mutant) => Driver::weakened(order.as_ref().clone(), mutant.driver()),
            None => Driver::new(order.as_ref().clone()),
        };
        let node = self.at(at);
        node.forget_driver();
        node.driver = Some(driver);
        node.run += 1;
        node.leaving = leaving;
        self.drive(at, driver::Input::Start)
    }

    /// Tells the driver that asked, if it is still the one.
    pub(super) fn told_driver(
        &mut self,
        at: At,
        asker: Asker,
        input: driver::Input,
    ) -> Result<(), Violation> {
        if asker == Asker::Driver(self.node(at).run) {
            self.drive(at, input)
        } else {
            Ok(())
        }
    }

    /// Feeds a member's driver and does what it asks for.
    pub(super) fn drive(&mut self, at: At, input: driver::Input) -> Result<(), Violation> {
        let Some(driver) = &mut self.at(at).driver else {
            return Ok(());
        };
        for output in driver.step(input) {
            self.tell(|| story::driver(&output));
            self.perform_driver(at, output)?;
        }
        Ok(())
    }

    fn perform_driver(&mut self, at: At, output: driver::Output) -> Result<(), Violation> {
        match output {
            driver::Output::Call { to, call } => {
                let to = Self::index(&to);
                let node = self.at(at);
                // A newer call to the same member takes the older one's place.
                node.asked.retain(|(asked, _)| *asked != to);
                node.asked.push((to, call.clone()));
                self.send(Message::Call { from: at, to, call });
            }
            driver::Output::AwaitReplayed(lsn) => self.at(at).replay_target = Some(lsn),
            driver::Output::Promote { term } => self.order_member(at, Input::Promote { term }),
            driver::Output::OpeningTransaction { term, grants } => {
                // The list that its commits wait for is the one of the op's record.
                self.at(at).awaited = self.ordered(at);
                self.order_member(at, Input::OpeningTransaction { term, grants });
            }
            driver::Output::ChangeOwners { term, grants } => {
                let member = &self.node(at).member;
                if member.leading() == Some(term) && member.durable().promise == term {
                    self.begin_statement(at, self.node(at).run, Work::Owners { grants });
                } else {
                    self.denied(at, "not ready")?;
                }
            }
            driver::Output::KeepOpen { term, grants } => {
                let member = &self.node(at).member;
                if member.leading().is_some() && member.durable().promise == term {
                    let what = Work::Opening {
                        term,
                        grants,
                        listed: self.ordered(at),
                        in_place: true,
                    };
                    self.begin_statement(at, self.node(at).run, what);
                } else {
                    self.denied(at, "not ready")?;
                }
            }
            driver::Output::Open { term } => self.order_member(at, Input::Open { term }),
            driver::Output::Report(Progress::Open { .. }) => {
                self.at(at).reporting = true;
                // In place, nothing has to open first.
                let serves = self.node(at).driver.as_ref().is_some_and(|driver| {
                    use crate::messages::OpKind::{CallOff, OwnerChange};
                    matches!(driver.order().kind, CallOff | OwnerChange)
                });
                if serves && self.node(at).port.is_some() {
                    self.report(at);
                }
            }
            driver::Output::Report(_) => {}
        }
        Ok(())
    }

    pub(super) fn listed<'a>(ids: impl Iterator<Item = &'a MemberId>) -> Vec<At> {
        ids.map(Self::index).collect()
    }

    /// Members and k of the op that it drives.
    fn ordered(&self, at: At) -> Awaited {
        let node = self.node(at);
        let driver = node.driver.as_ref().map(|driver| Awaited {
            members: Self::listed(driver.order().members.iter().map(|m| &m.id)),
            k: driver.order().k,
        });
        driver.unwrap_or_else(|| node.awaited.clone())
    }

    fn order_member(&mut self, at: At, input: Input) {
        let run = self.node(at).run;
        self.push(at, Asker::Driver(run), input);
    }

    pub(super) fn push(&mut self, at: At, asker: Asker, input: Input) {
        self.at(at).inbox.push_back((asker, input));
    }

    fn denied(&mut self, at: At, reason: &str) -> Result<(), Violation> {
        let reason = reason.to_owned();
        self.drive(at, driver::Input::Denied { reason })
    }

    /// Its driver tells control that the target serves.
    pub(super) fn report(&mut self, at: At) {
        let node = self.at(at);
        let op = node.driver.as_ref().map(|driver| driver.order().op.clone());
        if let Some(op) = op.filter(|_| std::mem::take(&mut node.reporting)) {
            let (group, primary) = (node.group, node.id.clone());
            self.tell(|| "tells control that it serves".to_owned());
            self.send(Message::Opened {
                from: at,
                group,
                op,
                primary,
            });
        }
    }

    /// Who leads repeats `Follow` to the others; ahead of a planned switch, it names the coming
    /// primary to some. The services do that only with as many as the quorum can spare, one
    /// coming primary at a time, and undo it soon; nothing may depend on that.
    pub(super) fn lead(&mut self, at: At, to: At, through: At) -> bool {
        let node = self.node(at);
        let leads = node.member.leading().zip(node.member.calling());
        let Some((led, term)) = leads.filter(|_| node.alive) else {
            return false;
        };
        let listed = |member| node.awaited.members.contains(member);
        if to == at || to == through || !listed(&to) || !listed(&through) {
            return false;
        }
        let (k, mut others) = (usize::from(node.awaited.k), node.awaited.members.clone());
        others.retain(|other| *other != at);
        let (others, asked) = (self.ids_of(&others), self.ids_of(&[to, through]));
        let kept = self.node(to).member.durable().promise == term;
        let node = self.at(at);
        node.rejoin.lead(led, k, others.iter());
        if term != led && !kept {
            let call = Call::Keep { term, open: led };
            self.send(Message::Call { from: at, to, call });
            return true;
        }
        let call = Call::Follow {
            term,
            upstream: asked[1].clone(),
            history: node.log.rows().to_vec(),
            settled: term == led && node.rejoin.settled(&asked[0]),
        };
        self.send(Message::Call { from: at, to, call });
        true
    }

    pub(super) fn ask_again(&mut self, at: At, to: At) -> bool {
        let node = self.node(at);
        let driving = node.driver.as_ref().is_some_and(|driver| !driver.ended());
        let asked = node.asked.iter().find(|(asked, _)| *asked == to);
        let Some((_, call)) = asked.filter(|_| node.alive && driving).cloned() else {
            return false;
        };
        self.send(Message::Call { from: at, to, call });
        true
    }

    pub(super) fn unreachable(&mut self, at: At, other: At) -> Stepped {
        let from = self.ids[usize::from(other)].clone();
        let node = self.node(at);
        let asked = node.asked.iter().any(|(asked, _)| *asked == other);
        let waits = node.waits_for(&from);
        if !(asked || waits) || !node.alive || self.node(other).alive {
            return Ok(false);
        }
        if waits {
            self.at(at).rejoin.lost(&from);
        }
        if asked {
            self.drive(at, driver::Input::Unreachable { from })?;
        }
        Ok(true)
    }
}

/// Whether this is what the call wanted to hear.
fn answers(answer: &Answer, call: &Call) -> bool {
    answer.term() == call.term()
        && match answer {
            Answer::Prepared { .. } => matches!(call, Call::Prepare { .. }),
            Answer::Demoted { .. } => matches!(call, Call::Demote { .. }),
            Answer::Following { .. } => matches!(call, Call::Follow { .. }),
            Answer::Halted { .. } => matches!(call, Call::Halt { .. }),
            Answer::Kept { .. } => matches!(call, Call::Keep { .. }),
            Answer::Refused { .. } => true,
        }
}
