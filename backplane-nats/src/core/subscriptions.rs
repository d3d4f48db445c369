//! Which topics this link reads, as of the commands sent so far.

use std::collections::HashMap;

use backplane_core::Topic;
use foldhash::fast::RandomState;

/// The topics of one link. Calls may overlap, so a topic counts as subscribed (`kept`) once any call was told so, and
/// a failed call takes back only what no other call wants.
#[derive(Debug, Default)]
pub(crate) struct Subscriptions {
    topics: HashMap<Topic, Standing, RandomState>,
    serial: u64,
}

#[derive(Debug)]
struct Standing {
    /// Tells this stay of the topic from an earlier one that an `unsubscribe` ended.
    serial: u64,
    /// Calls that wait for its confirmation.
    waiting: usize,
    /// Whether a call was answered `Ok` for it.
    kept: bool,
    /// Where its messages arrive, once it was asked for.
    slot: Option<usize>,
}

/// A topic that a call of subscribe relies on.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) topic: Topic,
    pub(crate) serial: u64,
    /// Whether the server has to be asked: a second subscription to the same subject would deliver everything twice.
    pub(crate) new: bool,
}

impl Subscriptions {
    /// A call of subscribe: which of its topics are not confirmed yet.
    pub(crate) fn claim(&mut self, topics: Vec<Topic>) -> Vec<Claim> {
        let mut claims = Vec::new();
        for topic in topics {
            let mut new = false;
            let standing = self.topics.entry(topic.clone()).or_insert_with(|| {
                self.serial += 1;
                new = true;
                Standing { serial: self.serial, waiting: 0, kept: false, slot: None }
            });
            if !standing.kept {
                standing.waiting += 1;
                claims.push(Claim { topic, serial: standing.serial, new });
            }
        }
        claims
    }

    /// It was asked for, and arrives in `slot`.
    pub(crate) fn asked(&mut self, topic: &Topic, serial: u64, slot: usize) {
        if let Some(standing) = self.topics.get_mut(topic)
            && standing.serial == serial
        {
            standing.slot = Some(slot);
        }
    }

    /// A call of subscribe is answered. If it failed: the slots of topics that are no longer wanted.
    pub(crate) fn settle(&mut self, claims: &[Claim], confirmed: bool) -> Vec<usize> {
        let mut unwanted = Vec::new();
        for Claim { topic, serial, .. } in claims {
            let Some(standing) = self.topics.get_mut(topic) else { continue };
            if standing.serial != *serial {
                continue;
            }
            standing.waiting -= 1;
            standing.kept |= confirmed;
            if standing.waiting == 0 && !standing.kept {
                unwanted.extend(standing.slot);
                self.topics.remove(topic);
            }
        }
        unwanted
    }

    /// A call of unsubscribe: the slots to be freed.
    pub(crate) fn release(&mut self, topics: &[Topic]) -> Vec<usize> {
        topics.iter().filter_map(|topic| self.topics.remove(topic)?.slot).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topics(names: &[&str]) -> Vec<Topic> {
        names.iter().map(|name| Topic::from(*name)).collect()
    }

    fn names(claims: &[Claim]) -> Vec<(String, bool)> {
        claims.iter().map(|claim| (claim.topic.to_string(), claim.new)).collect()
    }

    fn asked(table: &mut Subscriptions, claims: &[Claim]) {
        for claim in claims.iter().filter(|claim| claim.new) {
            table.asked(&claim.topic, claim.serial, claim.serial as usize);
        }
    }

    #[test]
    fn what_is_kept_or_asked_for_is_not_asked_for_again() {
        let mut table = Subscriptions::default();
        let first = table.claim(topics(&["a", "b", "a"]));
        let new = [("a", true), ("b", true), ("a", false)].map(|(name, new)| (name.to_owned(), new));
        assert_eq!(names(&first), new);
        asked(&mut table, &first);
        assert_eq!(names(&table.claim(topics(&["b"]))), [("b".to_owned(), false)]);
        assert!(table.settle(&first, true).is_empty());
        assert_eq!(names(&table.claim(topics(&["b", "c"]))), [("c".to_owned(), true)]);
    }

    #[test]
    fn a_failed_call_takes_back_only_what_nobody_else_wants() {
        let mut table = Subscriptions::default();
        let kept = table.claim(topics(&["a"]));
        asked(&mut table, &kept);
        table.settle(&kept, true);
        let failing = table.claim(topics(&["a", "b", "c"]));
        asked(&mut table, &failing);
        let other = table.claim(topics(&["c"]));
        assert_eq!(table.settle(&failing, false), [2]);
        assert!(table.settle(&other, true).is_empty());
        assert_eq!(table.release(&topics(&["a", "b", "c"])), [1, 3]);
    }

    #[test]
    fn a_call_that_fails_late_spares_the_topic_of_a_later_stay() {
        let mut table = Subscriptions::default();
        let late = table.claim(topics(&["a"]));
        asked(&mut table, &late);
        assert_eq!(table.release(&topics(&["a", "unknown"])), [1]);
        let again = table.claim(topics(&["a"]));
        asked(&mut table, &again);
        assert!(table.settle(&late, false).is_empty());
        table.settle(&again, true);
        assert_eq!(table.release(&topics(&["a"])), [2]);
    }
}
