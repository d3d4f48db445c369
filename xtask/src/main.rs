//! The project's own commands: `cargo xtask test | brokers | transcripts | bench`.
#![allow(clippy::print_stdout, reason = "a command-line program talks to its terminal")]

mod bench;
mod brokers;
mod command;
mod digest;
mod install;
mod plan;
mod room;
mod tally;
mod test;
mod transcripts;

use std::process::ExitCode;

const USAGE: &str = "\
cargo xtask test [--only NAME]    installs what is missing, runs everything, counts the tests
                                  NAME: only the steps, or else only the tests, whose name contains it
cargo xtask brokers               private brokers until Ctrl-C, their URLs printed
cargo xtask transcripts [FOLDER]  plays recordings of .NET's hub server against ours, names each difference
cargo xtask bench [ARGUMENTS]     the benchmarks, built for speed";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["test"] => test::run(None),
        ["test", "--only", name] => test::run(Some(name)),
        ["brokers"] => brokers::run(),
        ["transcripts"] => transcripts::run(None),
        ["transcripts", folder] => transcripts::run(Some(folder)),
        ["bench", rest @ ..] => bench::run(rest),
        ["help" | "-h" | "--help"] => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}
