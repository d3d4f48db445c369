//! Two servers that act as one: every kind of message between them, played and checked.
//!
//! ```text
//! cargo run -p two-servers -- --script                               an embedded bus
//! cargo run -p two-servers -- --script --url redis://localhost       through Redis
//! ```
//!
//! Each step is printed and each arrival is checked. Exit code 0: everything arrived, and nothing else did. 1: something
//! is missing or too much. 2: the command line or the URL is wrong, or the broker is not there. `RUST_LOG=info` shows
//! what the backplane itself has to say.
#![allow(clippy::print_stdout, reason = "a demonstration talks to its terminal")]

mod arguments;
mod bus;
mod client;
mod message;
mod script;
mod stage;

use std::process::ExitCode;

use arguments::Arguments;
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    let quiet = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("off"));
    tracing_subscriber::fmt().with_env_filter(quiet).with_writer(std::io::stderr).init();
    let arguments = match Arguments::parse(std::env::args().skip(1)) {
        Ok(Some(arguments)) => arguments,
        Ok(None) => {
            println!("{}", arguments::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(wrong) => return refuse(&wrong),
    };
    if !arguments.script {
        println!(
            "There is no page to look at yet: it comes with the hub server. This is the script (--script).\n"
        );
    }
    let shared = match bus::open(&arguments.url).await {
        Ok(shared) => shared,
        Err(error) => return refuse(&error.to_string()),
    };
    match script::play(shared).await {
        Ok(checked) => {
            println!("\n{checked} arrivals and answers, all as expected.");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("two-servers: FAILED: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// One clear line, and the exit code of a wrong call.
fn refuse(why: &str) -> ExitCode {
    eprintln!("two-servers: {}", why.replace(['\r', '\n'], " "));
    ExitCode::from(2)
}
