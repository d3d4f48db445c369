//! Whom a message is for.

use crate::id::{ConnectionId, GroupName, UserId};

/// The recipients of one send, inside one hub.
///
/// Exceptions are given beside it (`except`): a connection named there does not get the message. Names that occur
/// twice in one list are served once; a connection that is in two listed groups gets one copy for each group.
/// In a list of groups or users an empty name is skipped, as SignalR does; alone it is a name like any other.
/// Unknown connections, empty groups and absent users are no error: the message reaches nobody.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target {
    /// Every connection of the hub on every node.
    All,
    /// One connection, wherever it lives.
    Connection(ConnectionId),
    /// Several connections.
    Connections(Vec<ConnectionId>),
    /// All members of a group.
    Group(GroupName),
    /// All members of several groups.
    Groups(Vec<GroupName>),
    /// All connections of a user.
    User(UserId),
    /// All connections of several users.
    Users(Vec<UserId>),
}

impl Target {
    /// Every connection of the hub.
    #[must_use]
    pub fn all() -> Self {
        Self::All
    }

    /// One connection.
    pub fn connection(id: impl Into<ConnectionId>) -> Self {
        Self::Connection(id.into())
    }

    /// Several connections.
    pub fn connections<I: Into<ConnectionId>>(ids: impl IntoIterator<Item = I>) -> Self {
        Self::Connections(ids.into_iter().map(Into::into).collect())
    }

    /// One group.
    pub fn group(name: impl Into<GroupName>) -> Self {
        Self::Group(name.into())
    }

    /// Several groups.
    pub fn groups<G: Into<GroupName>>(names: impl IntoIterator<Item = G>) -> Self {
        Self::Groups(names.into_iter().map(Into::into).collect())
    }

    /// One user.
    pub fn user(id: impl Into<UserId>) -> Self {
        Self::User(id.into())
    }

    /// Several users.
    pub fn users<U: Into<UserId>>(ids: impl IntoIterator<Item = U>) -> Self {
        Self::Users(ids.into_iter().map(Into::into).collect())
    }
}
