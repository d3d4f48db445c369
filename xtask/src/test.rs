//! `cargo xtask test`: the whole test run, step by step, and its count.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::command::flush;
use crate::plan::{self, STEPS, Step};
use crate::room::Watch;
use crate::tally::Tally;
use crate::{command, install};

/// Runs all steps, or what `only` picks. The last line on the standard output is the count.
pub(crate) fn run(only: Option<&str>) -> ExitCode {
    let start = Instant::now();
    let watch = Watch::start(&command::root());
    let mut tally = Tally::default();
    let mut times = Vec::new();
    let success = install::everything() && steps(only, &mut tally, &mut times);

    println!("\n== {}, {:.1} s", if success { "done" } else { "FAILED" }, start.elapsed().as_secs_f64());
    for (name, time) in &times {
        println!("{name:>10} {:>7.1} s", time.as_secs_f64());
    }
    println!("{}", watch.stop().after());
    if !success && tally.failed == 0 {
        // What failed was no test, such as a step or the installation: the count must not look like success.
        tally.failed = 1;
    }
    println!("{tally}");
    flush();
    if success { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn steps(only: Option<&str>, tally: &mut Tally, times: &mut Vec<(&'static str, Duration)>) -> bool {
    let picked: Vec<&Step> =
        STEPS.iter().filter(|step| only.is_none_or(|only| step.name.contains(only))).collect();
    if let (true, Some(only)) = (picked.is_empty(), only) {
        return tests_named(only, tally, times);
    }
    picked.into_iter().all(|step| timed(step.name, step.run, tally, times))
}

/// No step has that name: the tests that do.
fn tests_named(name: &str, tally: &mut Tally, times: &mut Vec<(&'static str, Duration)>) -> bool {
    let success = timed("test", || plan::test(Some(name)), tally, times);
    if success && tally.is_empty() {
        let steps: Vec<_> = STEPS.iter().map(|step| step.name).collect();
        println!("no test and no step is called {name}; the steps are {}", steps.join(", "));
        return false;
    }
    success
}

fn timed(
    name: &'static str,
    run: impl FnOnce() -> command::Ran,
    tally: &mut Tally,
    times: &mut Vec<(&'static str, Duration)>,
) -> bool {
    println!("\n== {name}");
    let start = Instant::now();
    let ran = run();
    let time = start.elapsed();
    println!("== {name} {}, {:.1} s", if ran.success { "passed" } else { "FAILED" }, time.as_secs_f64());
    tally.add(ran.tally);
    times.push((name, time));
    ran.success
}
