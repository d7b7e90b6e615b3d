//! Calls between members, orders from control, reports to it: the domain's messages on the wire.

mod calls;
mod orders;
mod reports;
mod rows;

pub use calls::{Sent, answer, answer_message, call, call_message};
pub use orders::Order;
pub use reports::{
    AgentReport, Beat, Heard, MemberRole, MemberStatus, PostgresExit, ReportBody, RowsHashed,
    SchemaApplied, TableHash,
};

#[cfg(test)]
mod tests {
    use atoll_ownership::{
        Admitted, Answer, Call, DriveOrder, Grant, JoinPath, LogEnd, OpKind, Progress, Recruit,
        Refused, TermRow,
    };
    use atoll_topology::{
        CellId, Epoch, GroupId, Lsn, MemberId, Position, ProcessId, ShardId, Term,
    };
    use proptest::prelude::*;
    use prost::Message;

    use super::*;
    use crate::proto::agent as wire;

    fn group() -> GroupId {
        GroupId::parse("g1").unwrap()
    }

    fn member(n: u8) -> MemberId {
        MemberId::parse(format!("g1-{n}")).unwrap()
    }

    fn row() -> TermRow {
        TermRow {
            term: Term::new(3),
            timeline: 2,
            fork: Lsn(0x16B_3748),
            primary: member(2),
            members: vec![member(1), member(2), member(3)],
            k: 1,
            op: "switch-1".into(),
        }
    }

    fn end() -> LogEnd {
        let position = Position {
            term: Term::new(3),
            lsn: Lsn(u64::MAX),
        };
        LogEnd {
            position,
            timeline: 2,
        }
    }

    /// Over the wire and back.
    fn sent<M: Message + Default>(message: &M) -> M {
        M::decode(message.encode_to_vec().as_slice()).unwrap()
    }

    #[test]
    fn every_call_arrives_as_it_was_sent() {
        let term = Term::new(4);
        let calls = [
            Call::Prepare { term },
            Call::Demote {
                term,
                target: member(2),
            },
            Call::Follow {
                term,
                upstream: member(2),
                history: vec![row()],
                settled: true,
            },
            Call::Halt { term },
            Call::Keep {
                term,
                open: Term::new(2),
            },
        ];
        for expected in calls {
            let message = sent(&call_message(&group(), &member(1), &member(2), &expected));
            let (arrived, to) = call(&message).unwrap();
            assert_eq!(
                (arrived.message, arrived.from, to),
                (expected, member(1), member(2))
            );
        }
    }

    #[test]
    fn every_answer_arrives_as_it_was_sent() {
        let term = Term::new(4);
        let refusals = [
            Refused::Promised { promise: term },
            Refused::NotPrimary,
            Refused::Leading,
            Refused::NotReady,
            Refused::Lost,
            Refused::Failed {
                reason: "disk full".into(),
            },
        ];
        let paths = [JoinPath::Stream, JoinPath::Rewind, JoinPath::Clone];
        let recruit = Recruit {
            end: end(),
            history: vec![row()],
            left: Lsn(4),
            primary: true,
        };
        let prepared = |recruit| Answer::Prepared {
            term,
            volume: "v1".into(),
            recruit,
        };
        let mut answers = vec![
            prepared(None),
            prepared(Some(recruit)),
            Answer::Demoted {
                term,
                end: end(),
                history: vec![row(), row()],
            },
            Answer::Halted { term },
            Answer::Kept { term },
        ];
        answers.extend(paths.map(|path| Answer::Following { term, path }));
        answers.extend(refusals.map(|why| Answer::Refused { term, why }));
        for expected in answers {
            let message = sent(&answer_message(&group(), &member(3), &expected));
            let arrived = answer(&message).unwrap();
            assert_eq!((arrived.message, arrived.from), (expected, member(3)));
        }
    }

    #[test]
    fn every_order_arrives_as_it_was_sent() {
        let drive = |kind, open| {
            Order::Drive(DriveOrder {
                group: group(),
                kind,
                term: Term::new(4),
                open,
                target: member(2),
                members: vec![Admitted {
                    id: member(1),
                    volume: "v1".into(),
                }],
                k: 1,
                grants: vec![Grant {
                    shard: ShardId(17),
                    epoch: Epoch::new(5),
                    cell: CellId::parse("hz-1").unwrap(),
                }],
                op: "switch-1".into(),
            })
        };
        let orders = [
            Order::Admit {
                group: group(),
                member: member(1),
                volume: "v1".into(),
            },
            drive(OpKind::Failover, None),
            drive(OpKind::Switchover, Some((Term::new(3), member(1)))),
            drive(OpKind::OwnerChange, Some((Term::new(3), member(1)))),
            drive(OpKind::CallOff, Some((Term::new(3), member(1)))),
            Order::StandDown {
                group: group(),
                term: Term::new(4),
                op: "switch-1".into(),
            },
            Order::Cascade {
                group: group(),
                term: Term::new(4),
                through: member(2),
            },
            Order::ApplySchema {
                id: "s1".into(),
                sql: "CREATE TABLE t ()".into(),
                shards: vec![ShardId(0)],
            },
            Order::HashRows {
                id: "h1".into(),
                shards: vec![],
                at_least: Lsn(9),
            },
        ];
        for expected in orders {
            let arrived = Order::try_from(sent(&wire::AgentOrder::from(&expected))).unwrap();
            assert_eq!(arrived, expected);
        }
    }

    fn status(role: MemberRole) -> MemberStatus {
        MemberStatus {
            promise: Term::new(4),
            role,
            volume: Some("v1".into()),
            position: Some(end()),
            led: Some(Term::new(3)),
            open: None,
            upstream: Some(member(2)),
            heard: vec![Heard {
                member: member(3),
                ago_ms: 12,
                promise: Term::new(4),
            }],
            exit: Some(PostgresExit {
                unix_ms: 9,
                ordered: false,
                status: "signal 9".into(),
            }),
            replay_lag_bytes: 7,
            oldest_transaction_ms: 40,
            broken_privilege: Some("a grant to PUBLIC: s00017.account".into()),
        }
    }

    #[test]
    fn every_report_arrives_as_it_was_sent() {
        let progress = |progress| ReportBody::Progress {
            term: Term::new(4),
            op: "switch-1".into(),
            progress,
        };
        let applied = SchemaApplied {
            id: "s1".into(),
            shards: vec![(ShardId(0), Ok(())), (ShardId(1), Err("exists".into()))],
            error: None,
        };
        let hashed = RowsHashed {
            id: "h1".into(),
            lsn: Lsn(8),
            tables: vec![TableHash {
                shard: ShardId(3),
                table: "account".into(),
                rows: 2,
                hash: u64::MAX,
            }],
            error: None,
        };
        let gave_up = Progress::GaveUp {
            reason: "behind".into(),
            better: Some(member(3)),
        };
        let bodies = [
            ReportBody::Status(status(MemberRole::Sealed)),
            ReportBody::Status(status(MemberRole::Demoted)),
            progress(Progress::Recruiting),
            progress(Progress::CatchingUp),
            progress(Progress::Promoting),
            progress(Progress::Opening),
            progress(Progress::Open { row: Some(row()) }),
            progress(Progress::Open { row: None }),
            progress(gave_up),
            ReportBody::SchemaApplied(applied),
            ReportBody::RowsHashed(hashed),
        ];
        for body in bodies {
            let expected = AgentReport {
                process: ProcessId::parse("g1-agent-1").unwrap(),
                group: group(),
                member: member(1),
                unix_ms: 77,
                body,
            };
            let arrived = AgentReport::try_from(sent(&wire::AgentReport::from(&expected))).unwrap();
            assert_eq!(arrived, expected);
        }
        let beat = Beat {
            group: group(),
            member: member(1),
            promise: Term::new(4),
            role: MemberRole::Serving,
            position: None,
            number: 5,
            heard: 4,
        };
        assert_eq!(
            Beat::try_from(sent(&wire::Beat::from(&beat))).unwrap(),
            beat
        );
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_and_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(message) = wire::MemberCall::decode(bytes.as_slice()) {
                prop_assert!(call(&message).is_err());
            }
            if let Ok(message) = wire::MemberAnswer::decode(bytes.as_slice()) {
                prop_assert!(answer(&message).is_err());
            }
            if let Ok(message) = wire::AgentReport::decode(bytes.as_slice()) {
                prop_assert!(AgentReport::try_from(message).is_err());
            }
            if let Ok(message) = wire::AgentOrder::decode(bytes.as_slice()) {
                // An order may be made of defaults alone; it must only not panic.
                drop(Order::try_from(message));
            }
        }
    }
}
