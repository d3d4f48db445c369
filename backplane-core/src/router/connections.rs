//! The local store of one hub: its connections, by id and by user, and (in [`groups`](super::groups)) their groups.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;
use indexmap::IndexMap;

use crate::error::{Error, ErrorKind, Result};
use crate::id::{ConnectionId, GroupName, Protocol, UserId};
use crate::outbound::OutboundSender;
use crate::router::InterestGuard;
use crate::router::groups::Groups;

/// A registered connection of this node.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) id: ConnectionId,
    pub(crate) user: Option<UserId>,
    pub(crate) protocol: Protocol,
    pub(crate) outbound: OutboundSender,
}

/// Connections in insertion-independent order, with cheap removal and fast iteration.
pub(crate) type Members = IndexMap<ConnectionId, Arc<Connection>, RandomState>;

/// The connections of one hub on this node.
#[derive(Default)]
pub(crate) struct Connections {
    by_id: Members,
    by_user: HashMap<UserId, Members, RandomState>,
    /// The topics each connection needs itself (its own, its user's), freed with it.
    interests: HashMap<ConnectionId, Vec<InterestGuard>, RandomState>,
    pub(crate) groups: Groups,
}

/// What a removed connection leaves to be dropped once the lock is released.
#[derive(Default)]
pub(crate) struct Removed {
    pub(crate) connection: Option<Arc<Connection>>,
    _interests: Vec<InterestGuard>,
}

impl Connections {
    /// Adds a connection.
    pub(crate) fn insert(&mut self, connection: Arc<Connection>) -> Result<()> {
        if self.by_id.contains_key(&connection.id) {
            let context = format!("connection {} is already registered on this node", connection.id);
            return Err(Error::new(ErrorKind::InvalidConfig, "register").with_context(context));
        }
        if let Some(user) = &connection.user {
            self.by_user.entry(user.clone()).or_default().insert(connection.id.clone(), connection.clone());
        }
        self.by_id.insert(connection.id.clone(), connection);
        Ok(())
    }

    /// Keeps the topics of a connection for as long as it is registered; hands them back if it no longer is.
    pub(crate) fn keep(
        &mut self,
        id: &ConnectionId,
        interests: Vec<InterestGuard>,
    ) -> Option<Vec<InterestGuard>> {
        if !self.by_id.contains_key(id) {
            return Some(interests);
        }
        if !interests.is_empty() {
            self.interests.insert(id.clone(), interests);
        }
        None
    }

    /// Takes a connection away, with its memberships.
    pub(crate) fn remove(&mut self, id: &ConnectionId) -> Removed {
        let Some(connection) = self.by_id.swap_remove(id) else { return Removed::default() };
        if let Some(user) = &connection.user
            && let Some(siblings) = self.by_user.get_mut(user)
        {
            siblings.swap_remove(id);
            if siblings.is_empty() {
                self.by_user.remove(user);
            }
        }
        let mut interests = self.interests.remove(id).unwrap_or_default();
        interests.extend(self.groups.remove_connection(id));
        Removed { connection: Some(connection), _interests: interests }
    }

    pub(crate) fn get(&self, id: &ConnectionId) -> Option<&Arc<Connection>> {
        self.by_id.get(id)
    }

    /// All connections.
    pub(crate) fn all(&self) -> &Members {
        &self.by_id
    }

    /// The connections of a user.
    pub(crate) fn of_user(&self, user: &UserId) -> Option<&Members> {
        self.by_user.get(user)
    }

    /// The members of a group.
    pub(crate) fn of_group(&self, group: &GroupName) -> Option<&Members> {
        self.groups.members(group)
    }
}
