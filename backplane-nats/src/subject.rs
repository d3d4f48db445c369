//! From a topic to its subject and back.

use std::collections::HashMap;

use async_nats::Subject;
use backplane_core::Topic;
use foldhash::fast::RandomState;

/// Subjects that are remembered for their topics.
const REMEMBERED: usize = 16_384;

/// The subject of a topic, which consists of tokens.
pub(crate) fn subject(prefix: &str, topic: &Topic) -> Subject {
    Subject::from(format!("{prefix}.{}", String::from_utf8_lossy(topic.as_bytes())))
}

/// The topic of a subject; `None`: it has none.
pub(crate) fn topic<'a>(prefix: &str, subject: &'a str) -> Option<&'a [u8]> {
    Some(subject.strip_prefix(prefix)?.strip_prefix('.')?.as_bytes())
}

/// The subjects of topics: the same few thousand again and again.
#[derive(Debug)]
pub(crate) struct Subjects {
    pub(crate) prefix: String,
    known: HashMap<Topic, Subject, RandomState>,
}

impl Subjects {
    pub(crate) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), known: HashMap::default() }
    }

    pub(crate) fn of(&mut self, topic: &Topic) -> Subject {
        if let Some(subject) = self.known.get(topic) {
            return subject.clone();
        }
        let subject = subject(&self.prefix, topic);
        if self.known.len() >= REMEMBERED {
            self.known.clear();
        }
        self.known.insert(topic.clone(), subject.clone());
        subject
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_leads_back_to_its_topic_and_no_other_does() {
        let mut subjects = Subjects::new("app.eu");
        for name in ["a", "a.b"] {
            let name = Topic::from(name);
            let subject = subjects.of(&name);
            assert_eq!(subject, subjects.of(&name));
            assert_eq!(topic("app.eu", &subject), Some(name.as_bytes()));
        }
        for foreign in ["app.eu", "app.eux.a", "app", "_INBOX.1"] {
            assert_eq!(topic("app.eu", foreign), None, "{foreign}");
        }
    }
}
