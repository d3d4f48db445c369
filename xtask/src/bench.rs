//! `cargo xtask bench`: the benchmarks, built for speed.

use std::process::ExitCode;

use crate::command::{self, cargo};

pub(crate) fn run(arguments: &[&str]) -> ExitCode {
    let bench = ["run", "--release", "-p", "backplane-tests", "--bin", "bench", "--"];
    let ran = command::run(cargo(&[&bench[..], arguments].concat()));
    if ran.success { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
