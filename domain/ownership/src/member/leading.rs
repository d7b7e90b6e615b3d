//! How a member comes to lead, from the order to promote it until its port is open, and stops serving
//! while nobody confirms its term.

use atoll_topology::Term;

use super::{Member, Output, Role, Stage};
use crate::messages::{Grant, Refused};

impl Member {
    pub(super) fn promote(&mut self, term: Term) -> Vec<Output> {
        let over = !matches!(
            self.role,
            Role::Primary {
                stage: Stage::Overtaken,
                ..
            }
        );
        let ready = self.prepared == Some(term) && self.durable.promise == term && over;
        if !ready && !weakened!(self, promote_twice) {
            return vec![Output::Deny(Refused::NotReady)];
        }
        self.prepared = None;
        self.made = None;
        match &self.role {
            Role::Standby { .. } => {
                self.role = Role::Primary {
                    led: term,
                    stage: Stage::Promoting,
                };
                vec![Output::Promote { term }]
            }
            // A running primary that wins again keeps its timeline; only the row is new.
            Role::Primary {
                stage: Stage::Closed,
                ..
            } => {
                self.role = Role::Primary {
                    led: term,
                    stage: Stage::Promoted,
                };
                vec![]
            }
            _ => vec![Output::Deny(Refused::NotReady)],
        }
    }

    pub(super) fn promoted(&mut self, term: Term) -> Vec<Output> {
        // The log of a member that promised a newer term meanwhile is what it shows from here on.
        if let Role::Primary {
            led,
            stage: stage @ Stage::Overtaken,
        } = &mut self.role
            && *led == term
        {
            *stage = Stage::Closed;
        }
        self.advance(term, Stage::Promoting, Stage::Promoted);
        if weakened!(self, opens_before_open) {
            return vec![Output::OpenPort { term }];
        }
        vec![]
    }

    /// What PostgreSQL is now can only be told once it has ended: it comes back as a standby.
    pub(super) fn not_promoted(&mut self, term: Term) -> Vec<Output> {
        match &self.role {
            Role::Primary {
                led,
                stage: Stage::Promoting | Stage::Overtaken,
            } if *led == term => {}
            _ => return vec![],
        }
        self.prepared = None;
        self.made = None;
        self.role = Role::Down;
        vec![
            Output::ClosePort,
            Output::CutLinks { except: None },
            Output::StopPostgres,
            Output::StartStandby,
        ]
    }

    pub(super) fn opening(&mut self, term: Term, grants: Vec<Grant>) -> Vec<Output> {
        match &self.role {
            Role::Primary {
                led,
                stage: Stage::Promoted,
            } if *led == term && self.durable.promise == term => {
                vec![Output::OpeningTransaction { term, grants }]
            }
            _ => vec![Output::Deny(Refused::NotReady)],
        }
    }

    pub(super) fn open(&mut self, term: Term) -> Vec<Output> {
        match &self.role {
            Role::Primary {
                led,
                stage: Stage::Serving,
            } if *led == term => vec![],
            Role::Primary {
                led,
                stage: Stage::Opened,
            } if *led == term && self.durable.promise == term => {
                self.advance(term, Stage::Opened, Stage::Serving);
                vec![Output::OpenPort { term }]
            }
            _ => vec![Output::Deny(Refused::NotReady)],
        }
    }

    pub(super) fn kept_open(&mut self, term: Term) -> Vec<Output> {
        if let Role::Primary {
            led,
            stage: Stage::Serving | Stage::Isolated,
        } = &mut self.role
            && self.durable.promise == term
        {
            *led = term;
        }
        vec![]
    }

    pub(super) fn isolated(&mut self) -> Vec<Output> {
        match &mut self.role {
            Role::Primary {
                stage: stage @ Stage::Serving,
                ..
            } => {
                *stage = Stage::Isolated;
                vec![Output::ClosePort]
            }
            _ => vec![],
        }
    }

    pub(super) fn heard(&mut self) -> Vec<Output> {
        match &mut self.role {
            Role::Primary {
                led,
                stage: stage @ Stage::Isolated,
            } if *led == self.durable.promise => {
                *stage = Stage::Serving;
                vec![Output::OpenPort { term: *led }]
            }
            _ => vec![],
        }
    }
}
