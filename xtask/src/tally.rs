//! How many tests passed, failed and were skipped, read from what the test programs print.

use std::fmt;

/// A count of tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    /// Ignored by an attribute.
    pub(crate) ignored: u64,
    /// Skipped for want of a broker, which a test program counts among those that passed.
    pub(crate) skipped: u64,
}

impl Tally {
    pub(crate) fn is_empty(self) -> bool {
        self == Self::default()
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.skipped += other.skipped;
    }

    /// Reads one line of a test program's output: its sum, or the skip of a test (`SKIPPED name: why`).
    pub(crate) fn read(&mut self, line: &str) {
        if line.starts_with("SKIPPED ") {
            self.skipped += 1;
        } else if let Some(tally) = Self::of_summary(line) {
            self.add(tally);
        }
    }

    /// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s`
    fn of_summary(line: &str) -> Option<Self> {
        let (_verdict, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let count = |what: &str| {
            counts.split("; ").find_map(|part| part.strip_suffix(what)?.trim_end().parse::<u64>().ok())
        };
        Some(Self {
            passed: count("passed")?,
            failed: count("failed")?,
            ignored: count("ignored")?,
            skipped: 0,
        })
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed.saturating_sub(self.skipped), self.failed)?;
        match self.ignored + self.skipped {
            0 => Ok(()),
            skipped => write!(f, ", {skipped} skipped"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(lines: &[&str]) -> Tally {
        let mut tally = Tally::default();
        lines.iter().for_each(|line| tally.read(line));
        tally
    }

    #[test]
    fn summaries_are_summed_and_other_lines_are_not() {
        let tally = tally(&[
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.00s",
            "test some::test ... ok",
            "the test result: ok. 9 passed; 9 failed; 9 ignored",
            "test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s",
        ]);
        assert_eq!(tally.to_string(), "14 passed, 3 failed, 1 skipped");
    }

    #[test]
    fn a_test_without_its_broker_did_not_pass() {
        let tally = tally(&[
            "SKIPPED redis_contracts: redis-server is not installed",
            "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        ]);
        assert_eq!(tally.to_string(), "1 passed, 0 failed, 1 skipped");
    }

    #[test]
    fn nothing_is_said_of_skips_when_there_are_none() {
        let tally = tally(&["test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out"]);
        assert_eq!(tally.to_string(), "1 passed, 0 failed");
    }
}
