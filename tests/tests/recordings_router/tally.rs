//! Counts what was compared, for all to see.

/// What was compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) actions: usize,
    /// PUBLISHes of our node, byte for byte.
    pub(crate) publishes: usize,
    /// PUBLISHes whose number of receivers was compared, those of the others included.
    pub(crate) reaches: usize,
    /// Confirmed changes of our node's subscriptions.
    pub(crate) changes: usize,
    /// Messages that reached our node or somebody else, byte for byte.
    pub(crate) pushes: usize,
    /// Hub messages that arrived at clients of our node.
    pub(crate) arrivals: usize,
    /// Hub methods of our node that ended.
    pub(crate) calls: usize,
    /// Clients of our node that came, and that went.
    pub(crate) connections: usize,
    /// Frames that our node refused as unreadable.
    pub(crate) refused: u64,
    /// Steps of the recording that were looked at.
    pub(crate) steps: usize,
    /// Deviations that occurred.
    pub(crate) deviations: usize,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.actions += other.actions;
        self.publishes += other.publishes;
        self.reaches += other.reaches;
        self.changes += other.changes;
        self.pushes += other.pushes;
        self.arrivals += other.arrivals;
        self.calls += other.calls;
        self.connections += other.connections;
        self.refused += other.refused;
        self.steps += other.steps;
        self.deviations += other.deviations;
    }
}
