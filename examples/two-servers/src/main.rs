//! Two servers that act as one: a page to try it on, and a scripted run that checks it.
//!
//! ```text
//! cargo run -p two-servers                                           two servers on an embedded bus, a page on each
//! cargo run -p two-servers -- --url redis://localhost                with Redis between them
//! cargo run -p two-servers -- --port 5001 --url redis://localhost    one server: its partner runs elsewhere
//! cargo run -p two-servers -- --balance 5000                         why a load balancer needs affinity
//! cargo run -p two-servers -- --script                               every kind of message, played and checked
//! ```
//!
//! Exit code 0: ended in order, and in the script everything arrived and nothing else did. 1: it did not. 2: the command
//! line or the URL is wrong, a port is in use, or the broker is not there.
#![allow(clippy::print_stdout, reason = "a demonstration talks to its terminal")]

mod arguments;
mod balance;
mod bus;
mod chat;
mod http;
mod link;
mod page;
mod script;
mod serve;
mod server;

use std::process::ExitCode;

use arguments::{Arguments, Run};
use tracing_subscriber::EnvFilter;

/// Why it did not end well.
pub(crate) enum Failure {
    /// It was called wrongly, or something it needs is not there: exit code 2.
    Wrong(String),
    /// It went wrong: exit code 1.
    Late(String),
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args().skip(1)) {
        Ok(Some(arguments)) => arguments,
        Ok(None) => {
            println!("{}", arguments::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(wrong) => return refuse(&wrong),
    };
    // The script breaks things on purpose, and what is said about it would only be in the way.
    let quiet = if arguments.run == Run::Script { "off" } else { "warn,backplane_core=error" };
    let said = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(quiet));
    tracing_subscriber::fmt().with_env_filter(said).with_writer(std::io::stderr).init();
    let ended = match arguments.run {
        Run::Script => script::run(&arguments.url).await,
        Run::Serve(wanted) => serve::run(wanted, &arguments.url).await,
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Wrong(why)) => refuse(&why),
        Err(Failure::Late(why)) => {
            eprintln!("two-servers: FAILED: {why}");
            ExitCode::FAILURE
        }
    }
}

/// One clear line, and the exit code of a wrong call.
fn refuse(why: &str) -> ExitCode {
    eprintln!("two-servers: {}", why.replace(['\r', '\n'], " "));
    ExitCode::from(2)
}
