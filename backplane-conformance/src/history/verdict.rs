//! What the judge found, in numbers and in words.

use std::fmt;

use super::stamp::{Stamp, Unreadable};

/// How many findings of a kind are kept; the others are only counted.
const KEPT: usize = 1_000;

/// How many findings of a kind are printed.
const PRINTED: usize = 10;

/// The verdict over a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Owed, never delivered, not excused.
    pub lost: Findings<Lost>,
    /// Delivered once more.
    pub repeated: Findings<Repeated>,
    /// Delivered behind a later one.
    pub reordered: Findings<Reordered>,
    /// Delivered although it must not be.
    pub phantom: Findings<Phantom>,
    /// Delivered damaged.
    pub unreadable: Findings<Strange>,
    /// What the run consisted of.
    pub counts: Counts,
}

/// What a run consisted of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages that the broker accepted.
    pub accepted: u64,
    /// Messages that failed at their sender and reached nobody.
    pub failed: u64,
    /// Messages whose outcome their sender does not know.
    pub unknown: u64,
    /// Deliveries owed: accepted messages times their receivers.
    pub owed: u64,
    /// Deliveries made, repeats and phantoms included.
    pub delivered: u64,
    /// Deliveries lost and excused by a gap.
    pub excused: u64,
    /// Gaps told, to all nodes together.
    pub gaps: u64,
}

/// All findings of one kind: the first ones, and how many there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Findings<T> {
    /// The first 1,000.
    pub first: Vec<T>,
    /// All, those not kept included.
    pub total: u64,
}

impl<T> Default for Findings<T> {
    fn default() -> Self {
        Self { first: Vec::new(), total: 0 }
    }
}

impl<T> Findings<T> {
    pub(super) fn add(&mut self, finding: impl FnOnce() -> T) {
        self.total += 1;
        if self.first.len() < KEPT {
            self.first.push(finding());
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }
}

/// A message that never arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Which.
    pub stamp: Stamp,
    /// Index of the receiver that is owed it.
    pub receiver: usize,
    /// The audience through which it is owed.
    pub audience: String,
    /// Why the gaps told do not excuse it.
    pub why: &'static str,
}

/// A message that arrived again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repeated {
    /// Which.
    pub stamp: Stamp,
    /// Index of the receiver.
    pub receiver: usize,
}

/// A message that arrived too late.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reordered {
    /// Which.
    pub stamp: Stamp,
    /// Index of the receiver.
    pub receiver: usize,
    /// The number of the later message of the same sender and audience that had arrived before it.
    pub behind: u32,
}

/// A message that must not have arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phantom {
    /// Which.
    pub stamp: Stamp,
    /// Index of the receiver.
    pub receiver: usize,
    /// Why it must not.
    pub why: &'static str,
}

/// Bytes that no sender wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strange {
    /// The bytes.
    pub bytes: Unreadable,
    /// Index of the receiver.
    pub receiver: usize,
}

impl Verdict {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.lost.is_empty() && self.nothing_but_losses()
    }

    /// Whether losses are all that is wrong: what is under way may still arrive.
    pub(super) fn only_lost(&self) -> bool {
        !self.lost.is_empty() && self.nothing_but_losses()
    }

    fn nothing_but_losses(&self) -> bool {
        self.repeated.is_empty()
            && self.reordered.is_empty()
            && self.phantom.is_empty()
            && self.unreadable.is_empty()
    }

    /// # Panics
    /// With the whole verdict, unless it is clean.
    pub fn assert_clean(&self) {
        assert!(self.is_clean(), "{self}");
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { accepted, failed, unknown, owed, delivered, excused, gaps } = self.counts;
        write!(
            f,
            "{}: {accepted} messages accepted, {failed} failed, {unknown} of unknown outcome; \
             {owed} deliveries owed, {delivered} made, {excused} excused by {gaps} gaps",
            if self.is_clean() { "clean" } else { "BROKEN" }
        )?;
        list(f, "lost", &self.lost)?;
        list(f, "repeated", &self.repeated)?;
        list(f, "reordered", &self.reordered)?;
        list(f, "phantom", &self.phantom)?;
        list(f, "unreadable", &self.unreadable)
    }
}

fn list<T: fmt::Display>(f: &mut fmt::Formatter<'_>, kind: &str, findings: &Findings<T>) -> fmt::Result {
    if findings.is_empty() {
        return Ok(());
    }
    write!(f, "\n  {} {kind}", findings.total)?;
    for finding in findings.first.iter().take(PRINTED) {
        write!(f, "\n    {finding}")?;
    }
    if findings.total > PRINTED as u64 {
        write!(f, "\n    ...")?;
    }
    Ok(())
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} to {:?} never reached receiver {}: {}",
            self.stamp, self.audience, self.receiver, self.why
        )
    }
}

impl fmt::Display for Repeated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} reached receiver {} again", self.stamp, self.receiver)
    }
}

impl fmt::Display for Reordered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} reached receiver {} behind message {}", self.stamp, self.receiver, self.behind)
    }
}

impl fmt::Display for Phantom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} reached receiver {}: {}", self.stamp, self.receiver, self.why)
    }
}

impl fmt::Display for Strange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "receiver {}: {}", self.receiver, self.bytes)
    }
}
