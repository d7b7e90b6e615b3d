//! Whose log a leader has given up: one at a time, and none while another member comes up.
//!
//! A log that is being rewound or cloned cannot be read, nor can one that was and has not come up
//! since. Where two of three members are in that state, a failure of the leader leaves one log that
//! can be read, and nobody may open the group on that alone, though all three machines run. So a
//! leader first asks everybody without `settled` (whose log fits is linked by that, and waits for
//! nobody), and then gives turns.
//!
//! What it knows is volatile and counts for one term: who leads anew knows nothing and asks again.
//! No safety rests on it.

use std::collections::BTreeMap;

use atoll_topology::{MemberId, Term};

use crate::messages::{Answer, JoinPath, Refused};

/// What a leader knows of the others, and whose turn it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Rejoin {
    term: Term,
    /// Awaited standbys.
    k: usize,
    others: BTreeMap<MemberId, Other>,
    /// Who was last asked to give its log up, and has not come up since.
    turn: Option<MemberId>,
    #[cfg(feature = "mutants")]
    all_at_once: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Other {
    /// It has not answered under this term.
    Unheard,
    /// It follows; its log has not been compared with the settled rows.
    Linked,
    /// It follows, and its log fits the settled rows.
    Streams,
    /// Its log does not fit, and it waits.
    Off(JoinPath),
    /// It is coming up, or being rewound or cloned.
    ComingUp,
    /// The same, and for so long that the quorum does not wait for it.
    Late,
    /// It does not answer, or cannot take part.
    Away,
}

impl Rejoin {
    /// The term that is led, with these others and k of them awaited; what was known under another
    /// one, or of other members, is forgotten.
    pub fn lead<'a>(
        &mut self,
        term: Term,
        k: usize,
        others: impl Iterator<Item = &'a MemberId> + Clone,
    ) {
        let known = others.clone().all(|id| self.others.contains_key(id))
            && others.clone().count() == self.others.len();
        if self.term != term || !known {
            self.turn = None;
            self.others = others.map(|id| (id.clone(), Other::Unheard)).collect();
        }
        (self.term, self.k) = (term, k);
    }

    /// The term that is led.
    pub fn term(&self) -> Term {
        self.term
    }

    /// Whether the next `Follow` to this member may have it give its log up. Where it may, it is
    /// this member's turn until it has come up.
    pub fn settled(&mut self, member: &MemberId) -> bool {
        let may = self.may_settle(member);
        if may && self.others.get(member) != Some(&Other::Streams) {
            self.turn = Some(member.clone());
        }
        may
    }

    /// The same, and nobody's turn begins.
    pub fn may_settle(&self, member: &MemberId) -> bool {
        #[cfg(feature = "mutants")]
        if self.all_at_once {
            return true;
        }
        match self.others.get(member) {
            // Its log was found to fit: there is nothing that it would give up.
            Some(Other::Streams) => true,
            _ if self.turn.as_ref() == Some(member) => true,
            Some(own @ (Other::Linked | Other::Off(_))) => !self.holds_up(member, *own),
            _ => false,
        }
    }

    /// Whether another member comes first.
    fn holds_up(&self, member: &MemberId, own: Other) -> bool {
        let mut rest = self.others.iter().filter(|(id, _)| *id != member);
        let quorum = self.streaming() >= self.k;
        rest.any(|(id, other)| match other {
            // The quorum goes before the next failure; the spare waits.
            Other::Late => quorum,
            _ if self.turn.as_ref() == Some(id) => true,
            // It may be coming up.
            Other::Unheard | Other::ComingUp => true,
            // Mostly it was half rebuilt under another term: it has nothing left to give up.
            Other::Off(JoinPath::Clone) => own == Other::Off(JoinPath::Rewind),
            Other::Linked | Other::Streams | Other::Off(_) | Other::Away => false,
        })
    }

    fn streaming(&self) -> usize {
        let streams = |other: &&Other| **other == Other::Streams;
        self.others.values().filter(streams).count()
    }

    /// A member has answered a `Follow`.
    pub fn heard(&mut self, member: &MemberId, answer: &Answer) {
        let turn = self.turn.as_ref() == Some(member);
        let Some(other) = self.others.get_mut(member) else {
            return;
        };
        if answer.term() != self.term {
            return;
        }
        let settled = turn || *other == Other::Streams;
        *other = match answer {
            Answer::Following { path, .. } => match path {
                JoinPath::Stream if settled => Other::Streams,
                JoinPath::Stream => Other::Linked,
                JoinPath::Rewind | JoinPath::Clone if settled => Other::ComingUp,
                JoinPath::Rewind | JoinPath::Clone => Other::Off(*path),
            },
            Answer::Refused {
                why: Refused::NotReady,
                ..
            } if *other == Other::Late => Other::Late,
            Answer::Refused {
                why: Refused::NotReady,
                ..
            } => Other::ComingUp,
            Answer::Refused { .. } => Other::Away,
            // Not of a leader's call.
            _ => return,
        };
        if turn && matches!(*other, Other::Streams | Other::Away) {
            self.turn = None;
        }
    }

    /// A member has not answered for so long that nobody waits for it, until it answers again.
    pub fn lost(&mut self, member: &MemberId) {
        self.known_as(member, Other::Away);
        if self.turn.as_ref() == Some(member) {
            self.turn = None;
        }
    }

    /// A member has been coming up for so long that, where the quorum cannot be had otherwise, the
    /// next one's log is given up as well.
    pub fn late(&mut self, member: &MemberId) {
        if self.comes_up(member) {
            self.known_as(member, Other::Late);
        }
    }

    fn known_as(&mut self, member: &MemberId, as_what: Other) {
        if let Some(other) = self.others.get_mut(member) {
            *other = as_what;
        }
    }

    /// Whether a member is coming up, or being rewound or cloned.
    pub fn comes_up(&self, member: &MemberId) -> bool {
        matches!(self.others.get(member), Some(Other::ComingUp | Other::Late))
    }

    /// Without the protection.
    #[cfg(feature = "mutants")]
    pub(crate) fn all_at_once() -> Self {
        Self {
            all_at_once: true,
            ..Self::default()
        }
    }

    /// Whether the others would wait for it.
    #[cfg(feature = "mutants")]
    pub(crate) fn waited_for(&self, member: &MemberId) -> bool {
        let other = self.others.get(member);
        self.turn.as_ref() == Some(member)
            || !matches!(other, Some(Other::Linked | Other::Streams | Other::Away))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERM: Term = Term::new(5);

    fn id(name: &str) -> MemberId {
        MemberId::parse(name).unwrap()
    }

    /// A leads, and has heard nobody.
    fn leader(others: &[&str], k: usize) -> Rejoin {
        let ids: Vec<MemberId> = others.iter().map(|name| id(name)).collect();
        let mut rejoin = Rejoin::default();
        rejoin.lead(TERM, k, ids.iter());
        rejoin
    }

    /// One call and its answer: whether it was settled.
    fn asked(rejoin: &mut Rejoin, who: &str, answer: Answer) -> bool {
        let settled = rejoin.settled(&id(who));
        rejoin.heard(&id(who), &answer);
        settled
    }

    fn follows(path: JoinPath) -> Answer {
        Answer::Following { term: TERM, path }
    }

    fn refuses(why: Refused) -> Answer {
        Answer::Refused { term: TERM, why }
    }

    const NOT_READY: Refused = Refused::NotReady;
    use JoinPath::{Clone, Rewind, Stream};

    #[test]
    fn whose_log_fits_is_linked_at_once_and_found_to_fit_for_good_one_after_the_other() {
        let mut rejoin = leader(&["b", "c"], 1);
        assert!(!asked(&mut rejoin, "b", follows(Stream)), "it is linked");
        assert!(
            !asked(&mut rejoin, "c", follows(Stream)),
            "it is linked too"
        );
        for _ in 0..2 {
            assert!(asked(&mut rejoin, "b", follows(Stream)));
            assert!(asked(&mut rejoin, "c", follows(Stream)));
        }
    }

    #[test]
    fn no_log_is_given_up_before_everybody_has_said_how_he_is() {
        let mut rejoin = leader(&["b", "c"], 1);
        for _ in 0..3 {
            assert!(!asked(&mut rejoin, "c", follows(Rewind)));
        }
        assert!(!asked(&mut rejoin, "b", follows(Stream)));
        assert!(asked(&mut rejoin, "c", follows(Rewind)));
    }

    #[test]
    fn who_is_coming_up_already_is_waited_for() {
        let mut rejoin = leader(&["b", "c"], 1);
        asked(&mut rejoin, "b", refuses(NOT_READY));
        for _ in 0..3 {
            assert!(!asked(&mut rejoin, "c", follows(Rewind)));
        }
        asked(&mut rejoin, "b", follows(Stream));
        assert!(asked(&mut rejoin, "c", follows(Rewind)));
    }

    #[test]
    fn of_two_that_must_be_rewound_the_second_waits_until_the_first_has_come_up() {
        let mut rejoin = leader(&["b", "c"], 1);
        asked(&mut rejoin, "b", follows(Rewind));
        asked(&mut rejoin, "c", follows(Rewind));
        assert!(asked(&mut rejoin, "c", follows(Rewind)), "it was first");
        for answer in [NOT_READY, NOT_READY] {
            assert!(!asked(&mut rejoin, "b", follows(Rewind)));
            assert!(asked(&mut rejoin, "c", refuses(answer)));
        }
        // Its rewind has failed: it is asked once more.
        assert!(asked(&mut rejoin, "c", follows(Clone)));
        assert!(!asked(&mut rejoin, "b", follows(Rewind)));
        assert!(asked(&mut rejoin, "c", follows(Stream)));
        assert!(asked(&mut rejoin, "b", follows(Rewind)));
    }

    #[test]
    fn who_has_nothing_left_to_give_up_goes_first() {
        let mut rejoin = leader(&["b", "c"], 1);
        asked(&mut rejoin, "b", follows(Rewind));
        asked(&mut rejoin, "c", follows(Clone));
        assert!(!asked(&mut rejoin, "b", follows(Rewind)));
        assert!(asked(&mut rejoin, "c", follows(Clone)));
        assert!(!asked(&mut rejoin, "b", follows(Rewind)));
    }

    #[test]
    fn a_member_that_does_not_answer_or_cannot_take_part_is_not_waited_for() {
        let mut rejoin = leader(&["b", "c"], 1);
        asked(&mut rejoin, "c", follows(Rewind));
        rejoin.lost(&id("b"));
        assert!(asked(&mut rejoin, "c", follows(Rewind)));
        rejoin.lost(&id("c"));
        asked(&mut rejoin, "b", follows(Rewind));
        assert!(asked(&mut rejoin, "b", follows(Rewind)), "C had its turn");
        asked(&mut rejoin, "b", refuses(Refused::Lost));
        asked(&mut rejoin, "c", follows(Clone));
        assert!(asked(&mut rejoin, "c", follows(Clone)), "B had its turn");
    }

    #[test]
    fn the_quorum_does_not_wait_for_ever_for_one_that_does_not_come_up() {
        let mut rejoin = leader(&["b", "c"], 1);
        asked(&mut rejoin, "b", refuses(NOT_READY));
        asked(&mut rejoin, "c", follows(Rewind));
        rejoin.late(&id("b"));
        asked(&mut rejoin, "b", refuses(NOT_READY));
        assert!(asked(&mut rejoin, "c", follows(Rewind)));
    }

    #[test]
    fn what_the_quorum_can_spare_waits_for_one_that_does_not_come_up() {
        let mut rejoin = leader(&["b", "c", "d"], 1);
        for _ in 0..2 {
            asked(&mut rejoin, "b", refuses(NOT_READY));
            asked(&mut rejoin, "c", follows(Rewind));
            asked(&mut rejoin, "d", follows(Stream));
        }
        rejoin.late(&id("b"));
        asked(&mut rejoin, "d", follows(Stream));
        assert!(!asked(&mut rejoin, "c", follows(Rewind)));
        asked(&mut rejoin, "d", refuses(NOT_READY));
        assert!(!asked(&mut rejoin, "c", follows(Rewind)), "D is waited for");
        rejoin.lost(&id("d"));
        assert!(asked(&mut rejoin, "c", follows(Rewind)));
    }

    #[test]
    fn a_log_that_no_longer_fits_is_waited_for_like_any_other() {
        let mut rejoin = leader(&["b", "c"], 1);
        for _ in 0..2 {
            asked(&mut rejoin, "b", follows(Stream));
            asked(&mut rejoin, "c", follows(Rewind));
        }
        assert!(asked(&mut rejoin, "c", follows(Stream)));
        assert!(asked(&mut rejoin, "b", follows(Rewind)));
        asked(&mut rejoin, "c", refuses(Refused::Leading));
        asked(&mut rejoin, "c", follows(Rewind));
        assert!(!asked(&mut rejoin, "c", follows(Rewind)));
    }

    #[test]
    fn what_was_known_under_another_term_is_forgotten() {
        let mut rejoin = leader(&["b", "c"], 1);
        for _ in 0..2 {
            asked(&mut rejoin, "b", follows(Stream));
            asked(&mut rejoin, "c", follows(Stream));
        }
        let others = [id("b"), id("c")];
        rejoin.lead(TERM, 1, others.iter());
        assert!(rejoin.may_settle(&id("b")), "nothing has changed");
        rejoin.lead(TERM.next(), 1, others.iter());
        rejoin.heard(&id("b"), &follows(Stream));
        assert!(!rejoin.may_settle(&id("b")), "an answer of before");
    }
}
