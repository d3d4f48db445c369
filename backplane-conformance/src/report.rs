//! Contracts and what became of them: contract, verdict, time.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::BoxFuture;

use crate::harness::Harness;

/// One promise, and the code that tries to catch a bus breaking it.
#[derive(Clone, Copy)]
pub struct Contract {
    /// `B1` ... `B12` for bus contracts, `cluster` for those of the whole.
    pub id: &'static str,
    /// What is promised, in snake_case; unique.
    pub name: &'static str,
    /// How long it may run before it counts as hanging (broken); [`bound`] stretches it.
    pub deadline: Duration,
    /// Tries it.
    pub run: fn(Arc<dyn Harness>) -> BoxFuture<'static, Outcome>,
}

impl fmt::Debug for Contract {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.id, self.name)
    }
}

/// What one run of a contract found. `Err` says how the promise was broken.
pub type Outcome = Result<Kept, Broken>;

/// The promise was kept, or there was nothing to keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It held.
    Yes,
    /// This bus promises nothing of the kind, or the harness cannot provoke it; the text says which.
    NotApplicable(&'static str),
}

/// How a promise was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken(pub String);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<backplane_core::Error> for Broken {
    fn from(error: backplane_core::Error) -> Self {
        Self(format!("unexpected error: {error}"))
    }
}

/// Fails a contract unless a condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err($crate::Broken(format!($($text)+)));
        }
    };
}

/// What became of one contract.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its id.
    pub id: &'static str,
    /// Its name.
    pub name: &'static str,
    /// What was found.
    pub outcome: Outcome,
    /// How long it took.
    pub time: Duration,
}

/// What became of a list of contracts on one bus.
#[derive(Clone, Debug)]
pub struct Report {
    /// The harness.
    pub bus: String,
    /// One row for each contract, in the order of the run.
    pub rows: Vec<Row>,
}

impl Report {
    /// Runs `contracts` one after another. A contract that panics or hangs past its deadline is broken.
    pub async fn of(harness: Arc<dyn Harness>, contracts: &[Contract]) -> Self {
        let mut rows = Vec::with_capacity(contracts.len());
        for contract in contracts {
            rows.push(run(contract, harness.clone()).await);
        }
        Self { bus: harness.name().to_owned(), rows }
    }

    /// The rows of broken contracts.
    pub fn broken(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| row.outcome.is_err())
    }

    /// Whether every contract was kept or not applicable.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.broken().next().is_none()
    }

    /// # Panics
    /// With the whole report, unless every contract was kept.
    pub fn assert_clean(&self) {
        assert!(self.is_clean(), "{self}");
    }
}

/// A time bound of a test, multiplied by `BACKPLANE_DEADLINE_FACTOR` (a whole number above 0, default 1) for slow
/// machines. Bounds on memory, counts and ratios are never multiplied.
///
/// # Panics
/// When the variable is set to anything but a whole number above 0.
#[must_use]
pub fn bound(time: Duration) -> Duration {
    let factor = std::env::var("BACKPLANE_DEADLINE_FACTOR").map_or(1, |factor| {
        let factor = factor.parse().expect("BACKPLANE_DEADLINE_FACTOR is a whole number");
        assert!(factor > 0, "BACKPLANE_DEADLINE_FACTOR is above 0");
        factor
    });
    time * factor
}

/// Runs one contract: a panic or a hang past its deadline is a broken promise too.
pub async fn run(contract: &Contract, harness: Arc<dyn Harness>) -> Row {
    let start = Instant::now();
    let attempt = std::panic::AssertUnwindSafe((contract.run)(harness)).catch_unwind();
    let deadline = bound(contract.deadline);
    let outcome = match tokio::time::timeout(deadline, attempt).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(panic)) => Err(Broken(format!("panicked: {}", panic_text(&*panic)))),
        Err(_) => Err(Broken(format!("still running after {deadline:?}"))),
    };
    Row { id: contract.id, name: contract.name, outcome, time: start.elapsed() }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("(no text)")
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.bus)?;
        for row in &self.rows {
            let time = row.time.as_millis();
            match &row.outcome {
                Ok(Kept::Yes) => writeln!(f, "  kept    {:8} {} ({time} ms)", row.id, row.name)?,
                Ok(Kept::NotApplicable(why)) => writeln!(f, "  n/a     {:8} {}: {why}", row.id, row.name)?,
                Err(how) => writeln!(f, "  BROKEN  {:8} {} ({time} ms): {how}", row.id, row.name)?,
            }
        }
        let broken = self.broken().count();
        let skipped =
            self.rows.iter().filter(|row| matches!(row.outcome, Ok(Kept::NotApplicable(_)))).count();
        write!(f, "  {} kept, {broken} broken, {skipped} not applicable", self.rows.len() - broken - skipped)
    }
}
