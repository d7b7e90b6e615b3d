//! What a member answers when a driver or a leader calls.

use atoll_topology::{MemberId, Term};

use super::{Comparing, Mark, Member, Output, Role, Stage, refuse};
use crate::line::join_path;
use crate::messages::{Answer, Call, JoinPath, LogEnd, Refused};

impl Member {
    pub(super) fn call(&mut self, call: Call) -> Vec<Output> {
        let term = call.term();
        let promise = self.durable.promise;
        if promise.supersedes(term) && !self.obeys_below(&call) {
            return refuse(term, Refused::Promised { promise });
        }
        match call {
            Call::Prepare { term } => self.prepare(term),
            Call::Demote { term, target } => self.demote(term, target),
            Call::Follow {
                term,
                upstream,
                history,
                settled,
            } => {
                // A log is given up only for the log of whoever wrote the last row: a third member,
                // whom this one is to follow ahead of a switch, may have less than was acknowledged.
                let wrote = history.last().is_some_and(|row| row.primary == upstream);
                self.follow(Comparing {
                    upstream,
                    term,
                    history,
                    settled: settled && wrote,
                })
            }
            Call::Halt { term } => self.halt(term),
            Call::Keep { term, open } => self.keep(term, open),
        }
    }

    /// Never, but for two mutants.
    fn obeys_below(&self, call: &Call) -> bool {
        if weakened!(self, follow_without_promise) && matches!(call, Call::Follow { .. }) {
            return true;
        }
        weakened!(self, no_promise_check)
    }

    fn prepare(&mut self, term: Term) -> Vec<Output> {
        if let Role::Primary { led, .. } = &self.role
            && *led == term
        {
            return refuse(term, Refused::Leading);
        }
        let again = self.durable.promise == term;
        let mut outputs = self.promise(term, None);
        if !weakened!(self, prepare_leaves_sessions) {
            outputs.push(Output::ClosePort);
        }
        // Whoever follows a standby under this very promise may go on: it gets nothing that the
        // standby does not have. So the quorum is there when the target has been promoted.
        outputs.push(match &self.role {
            Role::Standby { .. } if again => Output::CutUpstream,
            _ => Output::CutLinks { except: None },
        });
        match &mut self.role {
            Role::Standby { linked } => {
                *linked = false;
                outputs.push(Output::AwaitReceiverGone);
            }
            Role::Primary { stage, .. } => {
                *stage = match stage {
                    Stage::Promoting | Stage::Overtaken => Stage::Overtaken,
                    _ => Stage::Closed,
                }
            }
            Role::Down | Role::Rebuilding => {}
        }
        // A recruit in any case; but a promise that was read from the disk, or used, makes no
        // primary: a second promotion would take the timeline of a later term.
        self.prepared = self.made.filter(|made| *made == term);
        outputs.push(Output::AnswerPrepared { term });
        outputs
    }

    fn demote(&mut self, term: Term, target: MemberId) -> Vec<Output> {
        let again = term == self.durable.promise;
        let Role::Primary { stage, .. } = &mut self.role else {
            return refuse(term, Refused::NotPrimary);
        };
        match stage {
            Stage::Opened | Stage::Serving | Stage::Isolated if !again => {}
            Stage::Demoted { target: earlier } if again && *earlier == target => {}
            _ => return refuse(term, Refused::NotReady),
        }
        *stage = Stage::Demoted {
            target: target.clone(),
        };
        let mut outputs = self.promise(term, None);
        outputs.push(Output::ClosePort);
        outputs.push(Output::CutLinks {
            except: Some(target),
        });
        outputs.push(Output::AnswerDemoted { term });
        outputs
    }

    fn follow(&mut self, wanted: Comparing) -> Vec<Output> {
        let term = wanted.term;
        if self.durable.mark == Mark::Lost {
            return refuse(term, Refused::Lost);
        }
        if let Role::Primary { led, .. } = &self.role
            && *led == term
        {
            return refuse(term, Refused::Leading);
        }
        let steady = self.durable.promise == term
            && self.durable.upstream.as_ref() == Some(&wanted.upstream);
        match &self.role {
            Role::Standby { linked: true }
                if steady && (!wanted.settled || self.settled == Some(term)) =>
            {
                return vec![Output::Answer(Answer::Following {
                    term,
                    path: JoinPath::Stream,
                })];
            }
            // What it was rebuilt from is not its upstream any more, so it may never come up.
            Role::Down
                if self.durable.mark == Mark::Rebuilt
                    && (self.durable.promise != term
                        || self.durable.upstream.as_ref() != Some(&wanted.upstream)) => {}
            // Coming up, or being rebuilt: the leader asks again.
            Role::Down => return refuse(term, Refused::NotReady),
            Role::Rebuilding if self.comparing.is_some() && self.durable.promise == term => {
                return refuse(term, Refused::NotReady);
            }
            Role::Standby { .. } | Role::Rebuilding | Role::Primary { .. } => {}
        }
        self.prepared = None;
        let same = self.durable.upstream.as_ref() == Some(&wanted.upstream)
            && self.durable.mark != Mark::Rebuilt;
        // A recorded upstream is re-linked after a restart without another look, so a new one is
        // recorded only when the logs have been compared.
        let recorded = if same {
            self.durable.upstream.clone()
        } else {
            None
        };
        let mut outputs = if weakened!(self, follow_without_promise) {
            self.durable.upstream = recorded;
            vec![]
        } else {
            self.promise(term, recorded)
        };
        if let Role::Primary { .. } = self.role {
            self.role = Role::Down;
            outputs.extend([Output::ClosePort, Output::CutLinks { except: None }]);
            outputs.extend([Output::StopPostgres, Output::StartStandby]);
            outputs.extend(refuse(term, Refused::NotReady));
            return outputs;
        }
        if matches!(self.durable.mark, Mark::Rebuilding | Mark::Rebuilt) {
            let path = JoinPath::Clone;
            if !wanted.settled {
                // Whoever asks may not be able to do without it.
                outputs.push(Output::Answer(Answer::Following { term, path }));
                return outputs;
            }
            let upstream = wanted.upstream.clone();
            self.role = Role::Rebuilding;
            // What it has is given up from here on.
            self.durable.mark = Mark::Rebuilding;
            self.durable.upstream = None;
            outputs.push(Output::Persist(self.durable.clone()));
            outputs.push(Output::CutLinks { except: None });
            self.comparing = Some(wanted);
            outputs.push(Output::Rebuild {
                upstream,
                term,
                path,
            });
            outputs.push(Output::Answer(Answer::Following { term, path }));
            return outputs;
        }
        if !same {
            outputs.push(Output::CutLinks { except: None });
            outputs.push(Output::AwaitReceiverGone);
        }
        self.comparing = Some(wanted);
        outputs.push(Output::CompareLogs);
        outputs
    }

    /// The second half of `follow`: the log has been compared with the upstream's rows.
    pub(super) fn compared(&mut self, end: LogEnd) -> Vec<Output> {
        let Some(wanted) = self.comparing.take() else {
            return vec![];
        };
        let Comparing {
            upstream,
            term,
            history,
            settled,
        } = wanted.clone();
        let path = join_path(end, &history);
        let mut outputs = Vec::new();
        // A row that it carries is a newer term's: a list without it is out of date, and a log that
        // may have been acknowledged is not given up for that. The promise can be older than the
        // log where a term was only kept (`Keep`) by the others.
        let carried = end.position.term;
        // A call-off's row is there before its leader has read it.
        let unread = carried == term && !history.iter().any(|row| row.term == carried);
        if (carried.supersedes(term) || unread) && !weakened!(self, no_promise_check) {
            if self.durable.upstream.as_ref() != Some(&upstream) {
                self.role = Role::Standby { linked: false };
            }
            let why = if unread {
                Refused::NotReady
            } else {
                Refused::Promised { promise: carried }
            };
            return refuse(term, why);
        }
        if path == JoinPath::Stream {
            self.settled = settled.then_some(term);
            self.role = Role::Standby { linked: true };
            if self.durable.upstream.as_ref() != Some(&upstream) {
                self.durable.upstream = Some(upstream.clone());
                outputs.push(Output::Persist(self.durable.clone()));
            }
            outputs.push(Output::Link { upstream, term });
        } else if settled {
            self.durable.mark = Mark::Rebuilding;
            self.durable.upstream = None;
            self.role = Role::Rebuilding;
            self.comparing = Some(wanted);
            outputs.push(Output::Persist(self.durable.clone()));
            outputs.push(Output::CutLinks { except: None });
            outputs.push(Output::Rebuild {
                upstream,
                term,
                path,
            });
        } else {
            // It must not carry a log that it cannot continue; the leader comes back when settled.
            self.role = Role::Standby { linked: false };
            self.durable.upstream = None;
            outputs.push(Output::Persist(self.durable.clone()));
            outputs.push(Output::CutLinks { except: None });
        }
        outputs.push(Output::Answer(Answer::Following { term, path }));
        outputs
    }

    fn halt(&mut self, term: Term) -> Vec<Output> {
        let demoted = matches!(
            &self.role,
            Role::Primary {
                stage: Stage::Demoted { .. },
                ..
            }
        );
        let ended = matches!(&self.role, Role::Standby { .. } | Role::Down);
        if ended && term == self.durable.promise {
            // Repeated after its answer was lost.
            return vec![Output::Answer(Answer::Halted { term })];
        }
        if !demoted || term != self.durable.promise {
            return refuse(term, Refused::NotReady);
        }
        self.role = Role::Down;
        vec![
            Output::StopPostgres,
            Output::CutLinks { except: None },
            Output::Answer(Answer::Halted { term }),
            Output::StartStandby,
        ]
    }

    /// Not a recruit: nothing is cut, the log goes on.
    fn keep(&mut self, term: Term, open: Term) -> Vec<Output> {
        let again = self.durable.promise == term;
        if self.durable.promise != open && !again {
            return refuse(
                term,
                Refused::Promised {
                    promise: self.durable.promise,
                },
            );
        }
        self.durable.promise = term;
        let mut outputs = vec![Output::Persist(self.durable.clone())];
        // Where the link has to be made anew, it is made under what both ends have promised; a
        // member that is coming up cannot be told otherwise.
        if matches!(self.role, Role::Down | Role::Standby { linked: true })
            && let Some(upstream) = self.durable.upstream.clone()
        {
            outputs.push(Output::Link { upstream, term });
        }
        outputs.push(Output::Answer(Answer::Kept { term }));
        outputs
    }
}
