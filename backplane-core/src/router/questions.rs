//! The questions that connections of this node were asked and have not answered: the owner's side of client results.

use std::collections::{HashMap, HashSet};

use foldhash::fast::RandomState;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::id::{ConnectionId, InvocationId, NodeId};
use crate::message::ClientResult;
use crate::wire::{Completion, ReplyTo};

/// Most open questions of one connection; a further one is refused.
const MAX_PER_CONNECTION: usize = 65_536;

/// The open questions of one hub.
#[derive(Default)]
pub(crate) struct Questions {
    open: HashMap<InvocationId, Question, RandomState>,
    of_connection: HashMap<ConnectionId, HashSet<InvocationId, RandomState>, RandomState>,
}

struct Question {
    connection: ConnectionId,
    asker: Asker,
    /// After which nobody waits any more, where the asker told.
    expires: Option<Instant>,
}

/// Who asked.
pub(crate) enum Asker {
    /// A call on this node.
    Here(oneshot::Sender<Result<ClientResult>>),
    /// Another node.
    Remote {
        /// Where the answer goes.
        reply: ReplyTo,
        /// Which node, where the format tells.
        node: Option<NodeId>,
    },
}

impl Questions {
    /// Opens a question. `Err`: its id is taken, or the connection has too many open; the asker comes back.
    pub(crate) fn open(
        &mut self,
        id: InvocationId,
        connection: &ConnectionId,
        asker: Asker,
        expires: Option<Instant>,
    ) -> std::result::Result<(), (Asker, &'static str)> {
        if self.open.contains_key(&id) {
            return Err((
                asker,
                "ID collision occurred when using client results. This is likely a bug in SignalR.",
            ));
        }
        let of_connection = self.of_connection.entry(connection.clone()).or_default();
        if of_connection.len() >= MAX_PER_CONNECTION {
            return Err((asker, "Too many unanswered questions to this connection."));
        }
        of_connection.insert(id.clone());
        self.open.insert(id, Question { connection: connection.clone(), asker, expires });
        Ok(())
    }

    /// A connection answers: whom to tell. `None`: an unknown question.
    pub(crate) fn answer(&mut self, connection: &ConnectionId, id: &InvocationId) -> Result<Option<Asker>> {
        match self.open.get(id) {
            None => Ok(None),
            Some(question) if question.connection != *connection => {
                let context = format!("invocation {id} was not put to connection {connection}");
                Err(Error::new(ErrorKind::Denied, "complete").with_context(context))
            }
            Some(_) => Ok(self.close(id)),
        }
    }

    /// Whether that connection owes that answer.
    pub(crate) fn expects(&self, connection: &ConnectionId, id: &InvocationId) -> bool {
        self.open.get(id).is_some_and(|question| question.connection == *connection)
    }

    /// Forgets a question.
    pub(crate) fn close(&mut self, id: &InvocationId) -> Option<Asker> {
        let question = self.open.remove(id)?;
        if let Some(ids) = self.of_connection.get_mut(&question.connection) {
            ids.remove(id);
            if ids.is_empty() {
                self.of_connection.remove(&question.connection);
            }
        }
        Some(question.asker)
    }

    /// A connection is gone: its questions, and who asked them.
    pub(crate) fn connection_gone(&mut self, connection: &ConnectionId) -> Vec<(InvocationId, Asker)> {
        let ids = self.of_connection.remove(connection).unwrap_or_default();
        ids.into_iter()
            .filter_map(|id| {
                let question = self.open.remove(&id)?;
                Some((id, question.asker))
            })
            .collect()
    }

    /// Ends the questions that calls on this node asked, and forgets all.
    pub(crate) fn fail_local(&mut self, error: &Error) {
        self.of_connection.clear();
        for (_, question) in self.open.drain() {
            if let Asker::Here(asker) = question.asker {
                // Who no longer waits needs no answer.
                let _ = asker.send(Err(error.clone()));
            }
        }
    }

    /// A node is gone: nobody waits for the answers to its questions.
    pub(crate) fn node_gone(&mut self, gone: NodeId) {
        self.forget(
            |question| matches!(question.asker, Asker::Remote { node: Some(node), .. } if node == gone),
        );
    }

    /// Forgets what nobody waits for any more.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.forget(|question| question.expires.is_some_and(|at| at <= now));
    }

    fn forget(&mut self, which: impl Fn(&Question) -> bool) {
        let ids: Vec<InvocationId> =
            self.open.iter().filter(|(_, question)| which(question)).map(|(id, _)| id.clone()).collect();
        for id in ids {
            self.close(&id);
        }
    }

    /// How many are open.
    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }
}

/// What the asker of a local question is told.
pub(crate) fn outcome(connection: &ConnectionId, completion: Completion) -> Result<ClientResult> {
    let not_found =
        |context: String| Err(Error::new(ErrorKind::ConnectionNotFound, "invoke").with_context(context));
    match completion {
        Completion::Answered { result, .. } => Ok(result),
        Completion::Disconnected => not_found(format!("connection '{connection}' disconnected")),
        Completion::NotFound => not_found(format!("connection '{connection}' does not exist")),
        Completion::Unreadable(text) => Err(Error::new(ErrorKind::Malformed, "invoke").with_context(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote() -> Asker {
        Asker::Remote { reply: ReplyTo("node".into()), node: Some(NodeId::from_bytes([1; 6])) }
    }

    #[test]
    fn only_the_asked_connection_can_answer_and_only_once() {
        let mut questions = Questions::default();
        let (asked, other, id) = ("asked".into(), "other".into(), InvocationId::from("1"));
        questions.open(id.clone(), &asked, remote(), None).ok().unwrap();
        assert_eq!(questions.answer(&other, &id).err().unwrap().kind(), ErrorKind::Denied);
        assert!(questions.expects(&asked, &id) && !questions.expects(&other, &id));
        assert!(questions.answer(&asked, &id).unwrap().is_some());
        assert!(questions.answer(&asked, &id).unwrap().is_none());
        assert!(questions.of_connection.is_empty());
    }

    #[test]
    fn ids_do_not_collide_and_ends_are_cleaned_up() {
        let mut questions = Questions::default();
        let (a, b) = ("a".into(), "b".into());
        questions.open("1".into(), &a, remote(), None).ok().unwrap();
        assert!(questions.open("1".into(), &b, remote(), None).is_err());
        questions.open("2".into(), &b, remote(), Some(Instant::now())).ok().unwrap();
        assert_eq!(questions.connection_gone(&a).len(), 1);
        questions.expire(Instant::now());
        assert_eq!(questions.len(), 0);
        questions.open("3".into(), &b, remote(), None).ok().unwrap();
        questions.node_gone(NodeId::from_bytes([2; 6]));
        assert_eq!(questions.len(), 1);
        questions.node_gone(NodeId::from_bytes([1; 6]));
        assert_eq!(questions.len(), 0);
        assert!(questions.of_connection.is_empty());
    }
}
