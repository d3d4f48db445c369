//! Which routing key a topic travels under: its own name, or a hash bucket's.

use backplane_core::{Error, ErrorKind, Result, Topic};
use lapin::types::ShortString;

/// The keys of an exchange. The same on all nodes that use it.
#[derive(Clone, Debug)]
pub(super) enum Routing {
    /// One key for each topic.
    Topics,
    /// These keys; the topic travels in the message's `type`.
    Buckets(Vec<ShortString>),
}

impl Routing {
    pub(super) fn new(buckets: Option<u16>) -> Self {
        match buckets {
            None => Self::Topics,
            // No topic has a colon, so nodes that disagree about buckets are deaf to each other, and not confused.
            Some(buckets) => {
                Self::Buckets((0..buckets).map(|bucket| format!("bucket:{bucket}").into()).collect())
            }
        }
    }

    /// The key, and the name of the topic where the key does not tell it.
    pub(super) fn key(&self, topic: &Topic) -> (ShortString, Option<ShortString>) {
        let name = || ShortString::from(&*String::from_utf8_lossy(topic.as_bytes()));
        match self {
            Self::Topics => (name(), None),
            Self::Buckets(keys) => (keys[bucket(topic, keys.len())].clone(), Some(name())),
        }
    }
}

/// Whether a topic can travel as a routing key and in a property.
pub(super) fn carries(operation: &'static str, topic: &Topic) -> Result<()> {
    if topic.is_tokens() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Unsupported, operation).with_context(format!(
        "RabbitMQ carries topics of dot-separated tokens, up to 200 bytes; not {topic}"
    )))
}

/// FNV-1a, for every node must come to the same result, whatever its version.
fn bucket(topic: &Topic, buckets: usize) -> usize {
    let hash = topic.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    usize::try_from(hash % buckets as u64).expect("less than the number of buckets")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_its_own_key_or_names_itself_in_its_bucket() {
        let topic = Topic::from("app.hub.group.room");
        let (key, name) = Routing::new(None).key(&topic);
        assert_eq!((key.as_str(), name), ("app.hub.group.room", None));
        let (key, name) = Routing::new(Some(256)).key(&topic);
        assert_eq!(name.unwrap().as_str(), "app.hub.group.room");
        // Never to change: nodes of different versions share an exchange.
        assert_eq!(key.as_str(), "bucket:9");
    }

    #[test]
    fn buckets_are_filled_evenly() {
        let mut counts = [0; 256];
        for number in 0..25_600 {
            counts[bucket(&Topic::from(format!("app.hub.group.{number}")), 256)] += 1;
        }
        assert!(counts.iter().all(|count| (40..180).contains(count)), "{counts:?}");
    }

    #[test]
    fn only_tokens_are_carried() {
        assert!(carries("publish", &Topic::from("a.b-c_D")).is_ok());
        for topic in ["", "a b", "a..b", "bucket:1", "ä"] {
            assert_eq!(carries("publish", &Topic::from(topic)).unwrap_err().kind(), ErrorKind::Unsupported);
        }
    }
}
