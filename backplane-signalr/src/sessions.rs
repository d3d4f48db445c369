//! Which connection tokens are known here: negotiated ones that wait for their transport, and those in use.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use backplane_core::ConnectionId;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use foldhash::{HashMap, HashMapExt as _};
use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

/// Below this many tokens a table is never made smaller.
const SMALL: usize = 1_024;

/// The tokens of one hub on this server. An entry costs some 150 bytes, token included.
///
/// A token that waits becomes unknown `patience` after its negotiation. Its memory is given back by a task that lives
/// only while tokens wait, and ends with its owner, the `Sessions`.
pub(crate) struct Sessions {
    tokens: Mutex<Tokens>,
    patience: Duration,
    max_waiting: usize,
}

struct Tokens {
    known: HashMap<Arc<str>, Place>,
    /// Those that wait, in the order of their negotiation, which is that of their expiry.
    waiting: BTreeMap<u64, Waiting>,
    /// Number of the next negotiation.
    next: u64,
    /// The task that forgets the expired ones, while there is something to expire.
    purge: Option<AbortHandle>,
}

/// What a known token stands for.
#[derive(Clone, Copy)]
enum Place {
    /// A negotiation that waits, by its number.
    Waiting(u64),
    /// A connection, by the name of its transport.
    InUse(&'static str),
}

struct Waiting {
    token: Arc<str>,
    connection: ConnectionId,
    expires: Instant,
}

/// A token that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// It waits for its transport.
    Waiting,
    /// It has one, of this name.
    InUse(&'static str),
}

/// Why a token could not be claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// It was not negotiated here, has expired, or its connection has ended.
    Unknown,
    /// It has a transport, of this name.
    InUse(&'static str),
}

/// As many negotiations wait as may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// A token in use. Dropping it makes the token unknown.
pub(crate) struct Session {
    sessions: Arc<Sessions>,
    token: Arc<str>,
    connection: ConnectionId,
}

impl Session {
    /// The connection that was negotiated.
    pub(crate) fn connection(&self) -> &ConnectionId {
        &self.connection
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut tokens = self.sessions.tokens.lock();
        tokens.known.remove(&self.token);
        tokens.trim();
    }
}

impl Sessions {
    /// None yet. At most `max_waiting` wait at the same time, each at most `patience`.
    pub(crate) fn new(patience: Duration, max_waiting: usize) -> Arc<Self> {
        let tokens = Tokens { known: HashMap::new(), waiting: BTreeMap::new(), next: 0, purge: None };
        Arc::new(Self { tokens: Mutex::new(tokens), patience, max_waiting })
    }

    /// Makes `connection` wait for its transport. The token is 16 random bytes; in version 0 it is the id.
    ///
    /// # Errors
    /// [`Full`].
    ///
    /// # Panics
    /// When the operating system has no randomness to give; nothing safe can be done then.
    pub(crate) fn negotiate(
        self: &Arc<Self>,
        connection: ConnectionId,
        version: u32,
    ) -> Result<Arc<str>, Full> {
        let token: Arc<str> = if version == 0 { connection.as_str().into() } else { random_token() };
        let now = Instant::now();
        let mut tokens = self.tokens.lock();
        tokens.forget_expired(now);
        if tokens.waiting.len() >= self.max_waiting {
            return Err(Full);
        }
        let number = tokens.next;
        tokens.next += 1;
        tokens.known.insert(token.clone(), Place::Waiting(number));
        let expires = now + self.patience;
        tokens.waiting.insert(number, Waiting { token: token.clone(), connection, expires });
        if tokens.purge.is_none() {
            let purge = tokio::spawn(purge(Arc::downgrade(self), expires));
            tokens.purge = Some(purge.abort_handle());
        }
        Ok(token)
    }

    /// What a token stands for; `None`: unknown.
    pub(crate) fn find(&self, token: &str) -> Option<Found> {
        let tokens = self.tokens.lock();
        match *tokens.known.get(token)? {
            Place::InUse(transport) => Some(Found::InUse(transport)),
            Place::Waiting(number) => {
                let waiting = tokens.waiting.get(&number)?;
                (waiting.expires > Instant::now()).then_some(Found::Waiting)
            }
        }
    }

    /// Takes a token that waits for a transport of this name.
    ///
    /// # Errors
    /// [`Refused`].
    pub(crate) fn claim(self: &Arc<Self>, token: &str, transport: &'static str) -> Result<Session, Refused> {
        let now = Instant::now();
        let mut tokens = self.tokens.lock();
        tokens.forget_expired(now);
        let Tokens { known, waiting, .. } = &mut *tokens;
        let place = known.get_mut(token).ok_or(Refused::Unknown)?;
        let number = match *place {
            Place::InUse(transport) => return Err(Refused::InUse(transport)),
            Place::Waiting(number) => number,
        };
        let Waiting { token, connection, .. } = waiting.remove(&number).ok_or(Refused::Unknown)?;
        *place = Place::InUse(transport);
        Ok(Session { sessions: self.clone(), token, connection })
    }

    /// A connection without negotiation. As in version 0 its id is its token.
    pub(crate) fn skip(self: &Arc<Self>, connection: ConnectionId, transport: &'static str) -> Session {
        let token: Arc<str> = connection.as_str().into();
        self.tokens.lock().known.insert(token.clone(), Place::InUse(transport));
        Session { sessions: self.clone(), token, connection }
    }

    /// Forgets what has expired. When to look again; `None`: nothing waits, and the task ends.
    fn purge(&self) -> Option<Instant> {
        let mut tokens = self.tokens.lock();
        tokens.forget_expired(Instant::now());
        let Some((_, first)) = tokens.waiting.first_key_value() else {
            tokens.purge = None;
            return None;
        };
        // A little later, so that many that expire one after the other cost few rounds. Requests do not see the delay.
        Some(first.expires + self.patience / 16)
    }
}

impl Drop for Sessions {
    fn drop(&mut self) {
        if let Some(purge) = self.tokens.get_mut().purge.take() {
            purge.abort();
        }
    }
}

impl Tokens {
    fn forget_expired(&mut self, now: Instant) {
        let before = self.waiting.len();
        while let Some(first) = self.waiting.first_entry()
            && first.get().expires <= now
        {
            self.known.remove(&first.remove().token);
        }
        if self.waiting.len() < before {
            self.trim();
        }
    }

    /// Gives memory back when most of it is not needed any more.
    fn trim(&mut self) {
        let (len, room) = (self.known.len(), self.known.capacity());
        if room > SMALL && len < room / 8 {
            self.known.shrink_to((len * 2).max(SMALL / 2));
        }
    }
}

/// Forgets what expires, while anything waits and anybody owns the sessions.
async fn purge(sessions: Weak<Sessions>, mut next: Instant) {
    loop {
        sleep_until(next).await;
        let Some(sessions) = sessions.upgrade() else { return };
        match sessions.purge() {
            Some(later) => next = later,
            None => return,
        }
    }
}

fn random_token() -> Arc<str> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the operating system provides randomness");
    URL_SAFE_NO_PAD.encode(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(15);

    fn sessions(max: usize) -> Arc<Sessions> {
        Sessions::new(PATIENCE, max)
    }

    fn purges(sessions: &Sessions) -> bool {
        sessions.tokens.lock().purge.is_some()
    }

    /// Known tokens, waiting tokens.
    fn counts(sessions: &Sessions) -> (usize, usize) {
        let tokens = sessions.tokens.lock();
        (tokens.known.len(), tokens.waiting.len())
    }

    #[tokio::test]
    async fn a_token_of_version_1_is_secret_and_one_of_version_0_is_the_id() {
        let sessions = sessions(8);
        let first = sessions.negotiate("a".into(), 1).unwrap();
        let second = sessions.negotiate("b".into(), 1).unwrap();
        assert_ne!(first, second);
        for token in [&first, &second] {
            assert_eq!(URL_SAFE_NO_PAD.decode(&**token).unwrap().len(), 16);
        }
        assert_eq!(&*sessions.negotiate("c".into(), 0).unwrap(), "c");
        assert_eq!(sessions.find("a"), None, "the id does not stand for the token");
    }

    #[tokio::test]
    async fn a_token_is_claimed_once_and_unknown_when_its_session_ended() {
        let sessions = sessions(8);
        let token = sessions.negotiate("a".into(), 1).unwrap();
        assert_eq!(sessions.find(&token), Some(Found::Waiting));
        let session = sessions.claim(&token, "WebSockets").ok().unwrap();
        assert_eq!(session.connection().as_str(), "a");
        assert_eq!(sessions.find(&token), Some(Found::InUse("WebSockets")));
        assert_eq!(sessions.claim(&token, "LongPolling").err(), Some(Refused::InUse("WebSockets")));
        drop(session);
        assert_eq!(sessions.find(&token), None);
        assert_eq!(sessions.claim(&token, "WebSockets").err(), Some(Refused::Unknown));
        assert_eq!(counts(&sessions), (0, 0));
    }

    #[tokio::test]
    async fn without_negotiation_the_id_is_the_token() {
        let sessions = sessions(0);
        let session = sessions.skip("a".into(), "WebSockets");
        assert_eq!(sessions.find("a"), Some(Found::InUse("WebSockets")));
        drop(session);
        assert_eq!(counts(&sessions), (0, 0));
        assert!(!purges(&sessions), "nothing ever waited");
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_that_waited_too_long_is_unknown_at_once() {
        let sessions = sessions(8);
        let token = sessions.negotiate("a".into(), 1).unwrap();
        tokio::time::advance(PATIENCE - Duration::from_millis(1)).await;
        assert_eq!(sessions.find(&token), Some(Found::Waiting));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(sessions.find(&token), None);
        assert_eq!(sessions.claim(&token, "WebSockets").err(), Some(Refused::Unknown));
    }

    #[tokio::test(start_paused = true)]
    async fn the_memory_of_the_expired_is_given_back_without_a_request_and_the_task_ends() {
        let sessions = sessions(100_000);
        for number in 0..10_000 {
            sessions.negotiate(format!("{number}").into(), 1).unwrap();
        }
        let kept = sessions.negotiate("kept".into(), 0).unwrap();
        let kept = sessions.claim(&kept, "WebSockets").ok().unwrap();
        let full = sessions.tokens.lock().known.capacity();
        assert!(purges(&sessions));
        // Time moves by itself while everything waits; the task has had its turn before this ends.
        tokio::time::sleep(PATIENCE * 2).await;
        assert_eq!(counts(&sessions), (1, 0));
        assert!(sessions.tokens.lock().known.capacity() < full / 4);
        assert!(!purges(&sessions), "nothing waits any more");
        drop(kept);
        // The next one that waits has its task again.
        sessions.negotiate("late".into(), 1).unwrap();
        tokio::time::sleep(PATIENCE * 2).await;
        assert_eq!(counts(&sessions), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_wait_and_no_more_until_one_left() {
        let sessions = sessions(2);
        let first = sessions.negotiate("a".into(), 1).unwrap();
        sessions.negotiate("b".into(), 1).unwrap();
        assert_eq!(sessions.negotiate("c".into(), 1), Err(Full));
        let _session = sessions.claim(&first, "WebSockets").ok().unwrap();
        sessions.negotiate("d".into(), 1).unwrap();
        assert_eq!(sessions.negotiate("e".into(), 1), Err(Full));
        tokio::time::advance(PATIENCE).await;
        sessions.negotiate("f".into(), 1).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_task_ends_with_its_owner() {
        let sessions = sessions(2);
        sessions.negotiate("a".into(), 1).unwrap();
        let task = sessions.tokens.lock().purge.clone().unwrap();
        let weak = Arc::downgrade(&sessions);
        drop(sessions);
        assert!(weak.upgrade().is_none(), "the task holds nothing");
        tokio::task::yield_now().await;
        assert!(task.is_finished());
    }
}
