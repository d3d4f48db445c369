//! Plays a folder of recordings (default: the project's own) against the reference hub that was built beside this
//! program, and names each difference. Exit code 1 when something differs that may not.
#![allow(clippy::print_stdout, reason = "a command-line program talks to its terminal")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use backplane_tests::transcripts::lists::Lists;
use backplane_tests::transcripts::run::{Outcome, play_folder};

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(outcome) => {
            println!("{outcome}");
            if outcome.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

async fn run() -> Result<Outcome, String> {
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("transcripts");
    let own = home.join("http");
    let folder = std::env::args_os().nth(1).map_or_else(|| own.clone(), PathBuf::from);
    let same = |left: &Path, right: &Path| {
        left.canonicalize().is_ok_and(|left| right.canonicalize().is_ok_and(|right| left == right))
    };
    let program = std::env::current_exe().map_err(|error| error.to_string())?.with_file_name("reference-hub");
    play_folder(&folder, &program, &Lists::read(&home)?, same(&folder, &own)).await
}
