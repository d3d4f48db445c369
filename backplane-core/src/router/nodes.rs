//! Who is alive: our own echo, and the beats of other nodes.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::id::NodeId;

/// Most nodes remembered to be gone.
const MAX_GONE: usize = 4_096;

/// Judges beats. Owned by the supervisor's task; time is handed in.
pub(crate) struct Nodes {
    bound: Duration,
    others: HashMap<NodeId, Instant>,
    /// Known to be gone, and not heard since: at most [`MAX_GONE`], then forgotten.
    gone: HashSet<NodeId>,
    /// Our own beats that were handed to the link and not heard yet.
    outstanding: VecDeque<(u64, Instant)>,
    /// Since when we hear our own beats without interruption.
    hearing_since: Option<Instant>,
    up_since: Instant,
    /// When the last late echo came: until then we did not hear what was sent.
    deaf_until: Instant,
}

impl Nodes {
    /// `bound` is the heartbeat bound.
    pub(crate) fn new(bound: Duration, now: Instant) -> Self {
        Self {
            bound,
            others: HashMap::new(),
            gone: HashSet::new(),
            outstanding: VecDeque::new(),
            hearing_since: None,
            up_since: now,
            deaf_until: now,
        }
    }

    /// Time between two beats.
    pub(crate) fn beat_interval(bound: Duration) -> Duration {
        bound.mul_f64(0.3)
    }

    /// How long a silent node is believed to live: three beats, and some slack for their journey.
    fn patience(&self) -> Duration {
        Self::beat_interval(self.bound).mul_f64(3.2)
    }

    /// A new link: clocks start anew, the other nodes are kept.
    pub(crate) fn link_up(&mut self, now: Instant) {
        self.up_since = now;
        self.outstanding.clear();
        self.hearing_since = None;
        for heard in self.others.values_mut() {
            *heard = now;
        }
    }

    /// The link was lost: we hear nobody, so silence means nothing.
    pub(crate) fn link_down(&mut self) {
        self.outstanding.clear();
        self.hearing_since = None;
    }

    /// The broker takes nothing from us, and perhaps from nobody: neither our echo nor anybody's beat is missed.
    pub(crate) fn impeded(&mut self) {
        self.link_down();
    }

    /// Our beat was handed to the link.
    pub(crate) fn sent(&mut self, seq: u64, now: Instant) {
        self.outstanding.push_back((seq, now));
    }

    /// Our beat came back. If it took long, everybody's took long: that time counts against nobody.
    pub(crate) fn echoed(&mut self, seq: u64, now: Instant) {
        let late = self.silence(now);
        if late > self.tolerance() {
            for heard in self.others.values_mut() {
                *heard = (*heard + late).min(now);
            }
            self.hearing_since = self.hearing_since.map(|since| (since + late).min(now));
            self.deaf_until = now;
        }
        while self.outstanding.front().is_some_and(|(sent, _)| *sent <= seq) {
            self.outstanding.pop_front();
        }
        self.hearing_since.get_or_insert(now);
    }

    /// How long the journey of a beat may take before it is a silence: a quarter of a beat.
    fn tolerance(&self) -> Duration {
        Self::beat_interval(self.bound) / 4
    }

    /// How long the oldest unheard beat of ours has been on its way.
    pub(crate) fn silence(&self, now: Instant) -> Duration {
        self.outstanding.front().map_or(Duration::ZERO, |(_, sent)| now.saturating_duration_since(*sent))
    }

    /// Whether our own echo has been missing for nine tenths of the bound: the link is in doubt. One that still is at
    /// the next look, a tenth of the bound later, is dead.
    pub(crate) fn is_link_in_doubt(&self, now: Instant) -> bool {
        self.silence(now) >= self.bound.mul_f64(0.9)
    }

    /// Another node's beat. `true`: heard for the first time.
    pub(crate) fn heard(&mut self, node: NodeId, now: Instant) -> bool {
        self.gone.remove(&node);
        self.others.insert(node, now).is_none()
    }

    /// Another node said farewell. `true`: it was known.
    pub(crate) fn left(&mut self, node: NodeId) -> bool {
        self.bury(node);
        self.others.remove(&node).is_some()
    }

    /// Nodes that have just been found silent for three beats while we heard ourselves; they are forgotten here.
    pub(crate) fn silent(&mut self, now: Instant) -> Vec<NodeId> {
        // While we do not hear ourselves, silence means nothing.
        if self.silence(now) > self.tolerance() {
            return Vec::new();
        }
        let patience = self.patience();
        if self.hearing_since.is_none_or(|since| now.saturating_duration_since(since) < patience) {
            return Vec::new();
        }
        let silent: Vec<NodeId> = self
            .others
            .extract_if(|_, heard| now.saturating_duration_since(*heard) >= patience)
            .map(|(node, _)| node)
            .collect();
        silent.iter().for_each(|node| self.bury(*node));
        silent
    }

    /// Whether `node` left or fell silent, and was not heard since.
    pub(crate) fn is_gone(&self, node: NodeId) -> bool {
        self.gone.contains(&node)
    }

    fn bury(&mut self, node: NodeId) {
        if self.gone.len() >= MAX_GONE {
            self.gone.clear();
        }
        self.gone.insert(node);
    }

    /// Whether `node`, for which somebody waits since `waiting`, is known not to live: unheard although we have listened for
    /// long, and long enough since then for its next beat to come. It may have started just before.
    pub(crate) fn is_absent(&self, node: NodeId, waiting: Instant, now: Instant) -> bool {
        // While we do not hear ourselves, silence means nothing.
        if self.silence(now) > self.tolerance() {
            return false;
        }
        let is_since = |since, long: Duration| now.saturating_duration_since(since) >= long;
        let next_beat = Self::beat_interval(self.bound).mul_f64(1.3);
        !self.others.contains_key(&node)
            && self.hearing_since.is_some_and(|since| is_since(since, self.patience()))
            && is_since(self.up_since, self.patience())
            && is_since(waiting.max(self.deaf_until), next_beat)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHER: NodeId = NodeId::from_bytes([1; 6]);
    const BOUND: Duration = Duration::from_secs(10);

    fn at(start: Instant, seconds: f64) -> Instant {
        start + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_missing_echo_is_a_dead_link_after_the_bound() {
        let start = Instant::now();
        let mut nodes = Nodes::new(BOUND, start);
        nodes.sent(1, start);
        nodes.echoed(1, at(start, 0.1));
        assert!(!nodes.is_link_in_doubt(at(start, 100.0)), "nothing is outstanding");
        nodes.sent(2, at(start, 3.0));
        nodes.sent(3, at(start, 6.0));
        assert!(!nodes.is_link_in_doubt(at(start, 11.9)));
        assert!(nodes.is_link_in_doubt(at(start, 12.0)));
    }

    #[test]
    fn a_silent_node_is_gone_after_three_beats_while_we_hear_ourselves() {
        let start = Instant::now();
        let mut nodes = Nodes::new(BOUND, start);
        assert!(nodes.heard(OTHER, start));
        for beat in 0..5_u64 {
            let now = at(start, beat as f64 * 3.0);
            nodes.sent(beat, now);
            nodes.echoed(beat, now);
            let gone = nodes.silent(now);
            assert_eq!(gone.is_empty(), beat < 4, "beat {beat}");
        }
        assert!(nodes.is_absent(OTHER, start, at(start, 12.0)) && nodes.is_gone(OTHER));
        nodes.heard(OTHER, at(start, 13.0));
        assert!(!nodes.is_gone(OTHER));
    }

    #[test]
    fn a_node_that_just_started_has_time_to_be_heard() {
        let start = Instant::now();
        let mut nodes = Nodes::new(BOUND, start);
        for beat in 0..10_u64 {
            let now = at(start, beat as f64 * 3.0);
            nodes.sent(beat, now);
            nodes.echoed(beat, now);
        }
        // We have listened for long, but nobody had asked for it.
        let asked = at(start, 27.0);
        assert!(!nodes.is_absent(OTHER, asked, asked));
        assert!(!nodes.is_absent(OTHER, asked, at(start, 30.8)));
        assert!(nodes.is_absent(OTHER, asked, at(start, 31.0)));
        // While our own beat is missing nobody is missed, and the time until it came does not count.
        nodes.sent(10, at(start, 30.0));
        assert!(!nodes.is_absent(OTHER, asked, at(start, 31.0)));
        nodes.echoed(10, at(start, 32.0));
        assert!(!nodes.is_absent(OTHER, asked, at(start, 35.8)));
        assert!(nodes.is_absent(OTHER, asked, at(start, 36.0)));
        nodes.heard(OTHER, at(start, 36.8));
        assert!(!nodes.is_absent(OTHER, asked, at(start, 40.0)));
    }

    #[test]
    fn nobody_is_missed_while_the_broker_takes_nothing() {
        let start = Instant::now();
        let mut nodes = Nodes::new(BOUND, start);
        nodes.heard(OTHER, start);
        nodes.sent(1, start);
        nodes.echoed(1, start);
        nodes.sent(2, at(start, 3.0));
        nodes.impeded();
        assert!(!nodes.is_link_in_doubt(at(start, 60.0)) && nodes.silent(at(start, 60.0)).is_empty());
        // It takes beats again: whoever stays silent now is gone.
        nodes.sent(3, at(start, 61.0));
        nodes.echoed(3, at(start, 61.0));
        assert!(nodes.silent(at(start, 62.0)).is_empty());
        assert_eq!(nodes.silent(at(start, 71.0)), [OTHER]);
    }

    #[test]
    fn a_freeze_shorter_than_the_bound_kills_nobody() {
        let start = Instant::now();
        let mut nodes = Nodes::new(BOUND, start);
        nodes.heard(OTHER, start);
        for beat in 0..10_u64 {
            let now = at(start, beat as f64 * 3.0);
            nodes.heard(OTHER, now);
            nodes.sent(beat, now);
            nodes.echoed(beat, now);
        }
        // Everything stops at 27 s for 9 s, then our own echo is heard first.
        nodes.sent(10, at(start, 30.0));
        nodes.sent(11, at(start, 33.0));
        assert!(nodes.silent(at(start, 35.9)).is_empty());
        nodes.echoed(11, at(start, 36.0));
        assert!(!nodes.is_link_in_doubt(at(start, 36.0)));
        assert!(nodes.silent(at(start, 37.0)).is_empty());
    }
}
