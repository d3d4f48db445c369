//! Which rows a link wants, by topic and by the key that stands for a topic in the table.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use backplane_core::Topic;

use crate::store::{MOST_KEYS, Want};

/// What stands for a topic in the table: 64-bit FNV-1a of its bytes. The same on all nodes and in all versions. Topics that
/// share a key are told apart when their rows are read.
pub(crate) fn topic_key(topic: &[u8]) -> i64 {
    let hash = topic.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    hash.cast_signed()
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Interest {
    /// Hardly ever more than one topic for a key.
    topics: HashMap<i64, Vec<Wanted>>,
    /// The keys, when there are few enough for a statement; else empty.
    keys: Vec<i64>,
    stale: bool,
}

#[derive(Debug)]
struct Wanted {
    topic: Topic,
    /// Rows up to this id were begun before it was wanted.
    after: i64,
}

impl Interest {
    pub(super) fn new(topics: &[Topic]) -> Self {
        let mut interest = Self::default();
        interest.add(topics, i64::MIN);
        interest
    }

    /// Wants those rows of `topics` that come after the one with the id `after`.
    pub(super) fn add(&mut self, topics: &[Topic], after: i64) {
        for topic in topics {
            let same = self.topics.entry(topic_key(topic.as_bytes())).or_default();
            if same.iter().all(|other| other.topic != *topic) {
                same.push(Wanted { topic: topic.clone(), after });
            }
        }
        self.stale = true;
    }

    /// Numbers that were handed out before may come again.
    pub(super) fn renumbered(&mut self) {
        self.topics.values_mut().flatten().for_each(|wanted| wanted.after = i64::MIN);
    }

    /// Wants them no longer.
    pub(super) fn remove(&mut self, topics: &[Topic]) {
        for topic in topics {
            if let Entry::Occupied(mut same) = self.topics.entry(topic_key(topic.as_bytes())) {
                same.get_mut().retain(|other| other.topic != *topic);
                if same.get().is_empty() {
                    same.remove();
                }
            }
        }
        self.stale = true;
    }

    /// What a statement is to read, of rows that hold so many bytes at most.
    pub(super) fn want(&mut self, most: usize) -> Want<'_> {
        if std::mem::take(&mut self.stale) {
            self.keys.clear();
            if self.topics.len() <= MOST_KEYS {
                self.keys.extend(self.topics.keys());
                // One order, so that the database sees one statement.
                self.keys.sort_unstable();
            }
        }
        if self.keys.is_empty() { Want::NoContent } else { Want::Keys(&self.keys, most) }
    }

    /// Whether the row `id` of that key may be wanted.
    pub(super) fn may_want(&self, key: i64, id: i64) -> bool {
        self.wanted(key, id).next().is_some()
    }

    /// The topics that the row `id` of that key may have, of those that are wanted.
    pub(super) fn topics(&self, key: i64, id: i64) -> Vec<Topic> {
        self.wanted(key, id).cloned().collect()
    }

    /// Our own copy of the topic of the row `id`, which all deliveries share, if it is wanted.
    pub(super) fn intern(&self, key: i64, id: i64, topic: &Topic) -> Option<Topic> {
        self.wanted(key, id).find(|ours| *ours == topic).cloned()
    }

    fn wanted(&self, key: i64, id: i64) -> impl Iterator<Item = &Topic> {
        let same = self.topics.get(&key).map_or(&[][..], Vec::as_slice);
        same.iter().filter(move |wanted| wanted.after < id).map(|wanted| &wanted.topic)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_fnv_1a_for_ever() {
        assert_eq!(topic_key(b"").cast_unsigned(), 0xcbf2_9ce4_8422_2325);
        assert_eq!(topic_key(b"a").cast_unsigned(), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(topic_key(b"foobar").cast_unsigned(), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn few_keys_stand_in_the_statement_and_many_do_not() {
        let topics: Vec<Topic> = (0..=MOST_KEYS).map(|number| Topic::from(format!("t{number}"))).collect();
        let mut interest = Interest::new(&topics[..MOST_KEYS]);
        interest.add(&topics[..2], 0);
        assert!(
            matches!(interest.want(9), Want::Keys(keys, 9) if keys.len() == MOST_KEYS && keys.is_sorted())
        );
        interest.add(&topics[MOST_KEYS..], 0);
        assert!(matches!(interest.want(9), Want::NoContent));
        interest.remove(&topics);
        assert!(matches!(interest.want(9), Want::NoContent));
        assert!(!interest.may_want(topic_key(b"t1"), 1));
        interest.add(&topics[1..2], 0);
        assert!(matches!(interest.want(9), Want::Keys([_], 9)));
    }

    #[test]
    fn a_key_is_shared_by_topics_that_are_told_apart() {
        let (one, other) = (Topic::from("one"), Topic::from("other"));
        let mut interest = Interest::default();
        let wanted = |topic: &Topic, after| Wanted { topic: topic.clone(), after };
        interest.topics.insert(5, vec![wanted(&one, 0), wanted(&other, 7)]);
        assert_eq!(interest.intern(5, 8, &other), Some(other.clone()));
        assert_eq!(interest.intern(5, 7, &other), None, "from before it was wanted");
        assert_eq!((interest.topics(5, 7), interest.topics(5, 8).len()), (vec![one.clone()], 2));
        assert_eq!(interest.intern(5, 8, &Topic::from("third")), None);
        assert_eq!(interest.intern(6, 8, &one), None);
        interest.renumbered();
        assert_eq!(interest.intern(5, 1, &other), Some(other));
    }
}
