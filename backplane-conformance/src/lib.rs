//! Proves that a bus keeps the contracts of the backplane.
//!
//! [`bus::contracts`] are the promises of the seam (B1-B12), [`cluster::contracts`] those of routers over it. Both run
//! on any [`Harness`]. [`broker`] starts private brokers, [`proxy`] stands between them and a bus to provoke faults,
//! [`broken`] holds the negative controls that prove the suite itself, [`history`] judges what a run under faults
//! delivered.

pub mod broken;
pub mod broker;
pub mod bus;
pub mod cluster;
mod harness;
pub mod history;
pub mod proxy;
mod report;

pub use harness::{Faults, Harness, MemoryHarness};
pub use report::{Broken, Contract, Kept, Outcome, Report, Row, bound, run};
