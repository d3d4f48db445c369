//! The custom bus passes the suite, and stays as small as it is meant to be.

use std::process::Command;

#[test]
fn the_suite_acquits_the_custom_bus() {
    let run = Command::new(env!("CARGO_BIN_EXE_custom-bus")).output().expect("the example was built");
    let report = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{report}");
    assert!(report.contains(" 0 broken,"), "{report}");
    assert!(report.contains("kept    B1 "), "{report}");
}

#[test]
fn a_bus_takes_under_150_lines() {
    let lines = include_str!("../src/lib.rs").lines().count();
    assert!(lines < 150, "{lines} lines");
}
