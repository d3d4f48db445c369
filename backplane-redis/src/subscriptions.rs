//! Which topics this link reads, as of the commands sent so far. Interns them: a delivery clones the topic found here.

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
}

/// A topic that a call of subscribe asked Redis for.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) topic: Topic,
    serial: u64,
}

impl Subscriptions {
    /// The interned topic of a channel, if it is subscribed or about to be.
    #[inline]
    pub(crate) fn find(&self, channel: &[u8]) -> Option<Topic> {
        self.topics.get_key_value(channel).map(|(topic, _)| topic.clone())
    }

    /// A call of subscribe: what it has to ask Redis for. A topic whose confirmation another call awaits is asked for
    /// again: this call's own confirmation is what it may rely on.
    pub(crate) fn claim(&mut self, topics: Vec<Topic>) -> Vec<Claim> {
        let mut claims = Vec::new();
        for topic in topics {
            let standing = self.topics.entry(topic.clone()).or_insert_with(|| {
                self.serial += 1;
                Standing { serial: self.serial, waiting: 0, kept: false }
            });
            if !standing.kept {
                standing.waiting += 1;
                claims.push(Claim { topic, serial: standing.serial });
            }
        }
        claims
    }

    /// A call of subscribe is answered. If it failed: the topics that are no longer wanted.
    pub(crate) fn settle(&mut self, claims: &[Claim], confirmed: bool) -> Vec<Topic> {
        let mut unwanted = Vec::new();
        for Claim { topic, serial } in claims {
            let Some(standing) = self.topics.get_mut(topic) else { continue };
            if standing.serial != *serial {
                continue;
            }
            standing.waiting -= 1;
            standing.kept |= confirmed;
            if standing.waiting == 0 && !standing.kept {
                self.topics.remove(topic);
                unwanted.push(topic.clone());
            }
        }
        unwanted
    }

    /// A call of unsubscribe: those that Redis has to be told.
    pub(crate) fn release(&mut self, mut topics: Vec<Topic>) -> Vec<Topic> {
        topics.retain(|topic| self.topics.remove(topic).is_some());
        topics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topics(names: &[&str]) -> Vec<Topic> {
        names.iter().map(|name| Topic::from(*name)).collect()
    }

    fn names(claims: &[Claim]) -> Vec<String> {
        claims.iter().map(|claim| claim.topic.to_string()).collect()
    }

    #[test]
    fn what_is_kept_is_not_asked_for_again() {
        let mut table = Subscriptions::default();
        let first = table.claim(topics(&["a", "b"]));
        assert_eq!(names(&first), ["a", "b"]);
        assert_eq!(table.settle(&first, true), []);
        assert_eq!(names(&table.claim(topics(&["b", "c"]))), ["c"]);
        assert_eq!(table.find(b"a"), Some(Topic::from("a")));
        assert_eq!(table.find(b"x"), None);
    }

    #[test]
    fn a_failed_call_takes_back_only_what_nobody_else_wants() {
        let mut table = Subscriptions::default();
        let kept = table.claim(topics(&["a"]));
        table.settle(&kept, true);
        let failing = table.claim(topics(&["a", "b", "c"]));
        let other = table.claim(topics(&["c"]));
        assert_eq!(table.settle(&failing, false), topics(&["b"]));
        assert_eq!(table.settle(&other, true), []);
        assert!(table.find(b"a").is_some() && table.find(b"b").is_none() && table.find(b"c").is_some());
    }

    #[test]
    fn a_call_that_fails_late_spares_the_topic_of_a_later_stay() {
        let mut table = Subscriptions::default();
        let late = table.claim(topics(&["a"]));
        assert_eq!(table.release(topics(&["a", "unknown"])), topics(&["a"]));
        let again = table.claim(topics(&["a"]));
        assert_eq!(table.settle(&late, false), []);
        table.settle(&again, true);
        assert!(table.find(b"a").is_some());
    }

    #[test]
    fn a_topic_named_twice_in_one_call_is_settled_once_for_each() {
        let mut table = Subscriptions::default();
        let twice = table.claim(topics(&["a", "a"]));
        assert_eq!(table.settle(&twice, false), topics(&["a"]));
        assert_eq!(table.find(b"a"), None);
    }
}
