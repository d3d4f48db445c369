//! Counters of a node, updated without locks.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::health::Stats;

/// One counter.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// Adds. Returns the new count when it has reached another power of two: then the fault that is counted is worth
    /// a line in the log, and a flood of it does not drown the log.
    pub(crate) fn add_worth_a_line(&self, count: u64) -> Option<u64> {
        let before = self.0.fetch_add(count, Ordering::Relaxed);
        let now = before + count;
        (now.checked_ilog2() != before.checked_ilog2()).then_some(now)
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($name:ident),* $(,)?) => {
        /// See [`Stats`] for what each one counts.
        #[derive(Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)*
        }

        impl Counters {
            /// The counters as they stand; the gauges are left to the caller.
            pub(crate) fn read(&self) -> Stats {
                Stats { $($name: self.$name.get(),)* ..Stats::default() }
            }
        }
    };
}

counters! {
    published, publish_failures, received, delivered, unwanted, malformed, repeats_removed, gaps, evictions, overflows,
    missing_protocol, replies_dropped, reconnects,
}
