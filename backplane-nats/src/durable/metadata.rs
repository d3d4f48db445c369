//! What a consumer tells about a message: the reply subject that it carries.

/// Where a message stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Metadata {
    /// In the stream.
    pub(super) stream: u64,
    /// In the consumer, from 1 without holes.
    pub(super) consumer: u64,
    /// When it was stored, in nanoseconds.
    pub(super) stored: i64,
}

impl Metadata {
    /// From `$JS.ACK.STREAM.CONSUMER.DELIVERED.SEQUENCE.SEQUENCE.TIME.PENDING`, or with a domain and the hash of an
    /// account in front of the stream, and perhaps more behind.
    pub(super) fn read(reply: &str) -> Option<Self> {
        let rest = reply.strip_prefix("$JS.ACK.")?;
        let tokens = rest.split('.').count();
        let skipped = match tokens {
            7 => 3,
            9.. => 5,
            _ => return None,
        };
        let mut numbers = rest.split('.').skip(skipped);
        Some(Self {
            stream: numbers.next()?.parse().ok()?,
            consumer: numbers.next()?.parse().ok()?,
            stored: numbers.next()?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let expected = Some(Metadata { stream: 7, consumer: 3, stored: 1_700_000_000_000_000_001 });
        assert_eq!(Metadata::read("$JS.ACK.s.c.1.7.3.1700000000000000001.0"), expected);
        assert_eq!(Metadata::read("$JS.ACK._.hash.s.c.1.7.3.1700000000000000001.0.token"), expected);
        for wrong in ["", "$JS.ACK.s.c.1.x.3.1.0", "$JS.ACK.s.c.1.7.3.1", "$JS.FC.s.c.x", "_INBOX.1"] {
            assert_eq!(Metadata::read(wrong), None, "{wrong}");
        }
    }
}
