//! Group membership of local connections, both ways.
//!
//! A join has two steps, because the broker confirms the group's topic in between: [`begin_join`](Groups::begin_join)
//! and [`commit_join`](Groups::commit_join). A leave that comes between them wins.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use foldhash::fast::RandomState;

use crate::id::{ConnectionId, GroupName};
use crate::router::InterestGuard;
use crate::router::connections::{Connection, Members};

/// See the module.
#[derive(Default)]
pub(crate) struct Groups {
    groups: HashMap<GroupName, Group, RandomState>,
    of_connection: HashMap<ConnectionId, Memberships, RandomState>,
    last_ticket: u64,
}

struct Group {
    members: Members,
    /// Frees the topic when the last member has left.
    interest: InterestGuard,
}

#[derive(Default)]
struct Memberships {
    groups: HashSet<GroupName, RandomState>,
    joining: Vec<(u64, GroupName)>,
}

/// Names one join under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct JoinTicket(u64);

impl Groups {
    /// A join of a registered connection begins.
    pub(crate) fn begin_join(&mut self, connection: &ConnectionId, group: &GroupName) -> JoinTicket {
        self.last_ticket += 1;
        let memberships = self.of_connection.entry(connection.clone()).or_default();
        memberships.joining.push((self.last_ticket, group.clone()));
        JoinTicket(self.last_ticket)
    }

    /// The topic is confirmed: the connection becomes a member, unless it has left or gone meanwhile. Hands the
    /// interest back where it is not needed (drop it once the lock is released).
    pub(crate) fn commit_join(
        &mut self,
        ticket: JoinTicket,
        connection: &Arc<Connection>,
        group: &GroupName,
        interest: InterestGuard,
    ) -> Option<InterestGuard> {
        if !self.end_join(ticket, &connection.id) {
            return Some(interest);
        }
        let memberships = self.of_connection.entry(connection.id.clone()).or_default();
        memberships.groups.insert(group.clone());
        match self.groups.get_mut(group) {
            Some(existing) => {
                existing.members.insert(connection.id.clone(), connection.clone());
                Some(interest)
            }
            None => {
                let members = Members::from_iter([(connection.id.clone(), connection.clone())]);
                self.groups.insert(group.clone(), Group { members, interest });
                None
            }
        }
    }

    /// A join ends, one way or the other. `false`: a leave or the end of the connection came first.
    pub(crate) fn end_join(&mut self, ticket: JoinTicket, connection: &ConnectionId) -> bool {
        let Some(memberships) = self.of_connection.get_mut(connection) else { return false };
        let Some(index) = memberships.joining.iter().position(|(number, _)| *number == ticket.0) else {
            return false;
        };
        memberships.joining.swap_remove(index);
        self.drop_if_empty(connection);
        true
    }

    /// Ends a membership, and any join of it under way. Hands back what to drop once the lock is released.
    pub(crate) fn leave(&mut self, connection: &ConnectionId, group: &GroupName) -> Option<InterestGuard> {
        let memberships = self.of_connection.get_mut(connection)?;
        memberships.joining.retain(|(_, joining)| joining != group);
        let member = memberships.groups.remove(group);
        self.drop_if_empty(connection);
        if member { self.remove_member(connection, group) } else { None }
    }

    /// Ends all memberships of a connection.
    pub(crate) fn remove_connection(&mut self, connection: &ConnectionId) -> Vec<InterestGuard> {
        let Some(memberships) = self.of_connection.remove(connection) else { return Vec::new() };
        memberships.groups.iter().filter_map(|group| self.remove_member(connection, group)).collect()
    }

    /// The members of a group.
    pub(crate) fn members(&self, group: &GroupName) -> Option<&Members> {
        self.groups.get(group).map(|group| &group.members)
    }

    fn remove_member(&mut self, connection: &ConnectionId, name: &GroupName) -> Option<InterestGuard> {
        let group = self.groups.get_mut(name)?;
        group.members.swap_remove(connection);
        if !group.members.is_empty() {
            return None;
        }
        self.groups.remove(name).map(|group| group.interest)
    }

    fn drop_if_empty(&mut self, connection: &ConnectionId) {
        if self.of_connection.get(connection).is_some_and(|it| it.groups.is_empty() && it.joining.is_empty())
        {
            self.of_connection.remove(connection);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Protocol;
    use crate::outbound::{OutboundLimits, outbound};

    fn connection(id: &str) -> Arc<Connection> {
        let (sender, _) = outbound(OutboundLimits::default());
        Arc::new(Connection { id: id.into(), user: None, protocol: Protocol::JSON, outbound: sender })
    }

    fn join(groups: &mut Groups, connection: &Arc<Connection>, group: &str) {
        let ticket = groups.begin_join(&connection.id, &group.into());
        drop(groups.commit_join(ticket, connection, &group.into(), InterestGuard::detached()));
    }

    #[test]
    fn joining_twice_is_one_membership_and_the_last_leave_frees_the_topic() {
        let mut groups = Groups::default();
        let (a, b) = (connection("a"), connection("b"));
        join(&mut groups, &a, "g");
        join(&mut groups, &a, "g");
        join(&mut groups, &b, "g");
        assert_eq!(groups.members(&"g".into()).unwrap().len(), 2);
        assert!(groups.leave(&a.id, &"g".into()).is_none());
        assert!(groups.leave(&a.id, &"g".into()).is_none());
        assert_eq!(groups.remove_connection(&b.id).len(), 1);
        assert!(groups.members(&"g".into()).is_none());
        assert!(groups.of_connection.is_empty());
    }

    #[test]
    fn a_leave_that_overtakes_its_join_wins() {
        let mut groups = Groups::default();
        let a = connection("a");
        let ticket = groups.begin_join(&a.id, &"g".into());
        assert!(groups.leave(&a.id, &"g".into()).is_none());
        assert!(groups.commit_join(ticket, &a, &"g".into(), InterestGuard::detached()).is_some());
        assert!(groups.members(&"g".into()).is_none());
        assert!(groups.of_connection.is_empty());
    }

    #[test]
    fn names_that_differ_by_case_are_different_groups() {
        let mut groups = Groups::default();
        let a = connection("a");
        join(&mut groups, &a, "Room");
        join(&mut groups, &a, "room");
        assert!(groups.leave(&a.id, &"room".into()).is_some());
        assert!(groups.members(&"Room".into()).is_some());
    }
}
