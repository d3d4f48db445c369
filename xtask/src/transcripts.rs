//! `cargo xtask transcripts`: the recordings of .NET's hub server, or a folder of one's own, against the reference hub.

use std::process::ExitCode;

use crate::command::{self, cargo};

/// `folder` is relative to where the command was typed; everything else runs in the root of the workspace.
pub(crate) fn run(folder: Option<&str>) -> ExitCode {
    let folder = match folder.map(std::path::absolute).transpose() {
        Ok(folder) => folder.map(|folder| folder.to_string_lossy().into_owned()),
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let programs = ["build", "-p", "backplane-tests", "--bin", "reference-hub", "--bin", "transcripts"];
    if !command::run(cargo(&programs)).success {
        return ExitCode::FAILURE;
    }
    let play = ["run", "-p", "backplane-tests", "--bin", "transcripts", "--"];
    let played = command::run(cargo(&[&play[..], folder.as_deref().as_slice()].concat()));
    if played.success { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
