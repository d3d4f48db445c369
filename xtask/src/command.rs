//! Runs one command of a step: shown, passed through, and its tests counted.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::sync::mpsc;

use backplane_conformance::broker::REQUIRE_VARIABLE;

use crate::digest::Digest;
use crate::tally::Tally;

/// By how much the tests multiply their deadlines.
const DEADLINE_VARIABLE: &str = "BACKPLANE_DEADLINE_FACTOR";

/// What became of a command.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ran {
    pub(crate) success: bool,
    pub(crate) tally: Tally,
}

/// How many times longer deadlines are on a shared machine (`CI=true`).
const CI_DEADLINE_FACTOR: &str = "5";

/// A machine that builds once and is thrown away gains nothing by what makes its next build faster: 4.5 GB of it.
const INCREMENTAL_VARIABLE: &str = "CARGO_INCREMENTAL";

/// What tests that run here may not go without.
const REQUIRED: &str = "redis,postgres,pgbouncer,mariadb,rabbitmq,nats,node,chromium,nginx";

/// This very cargo, in the root of the workspace. Tests that it runs fail, rather than skip, for want of what they need.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(arguments).current_dir(root());
    let required = match std::env::var(REQUIRE_VARIABLE) {
        Ok(more) if !more.is_empty() => format!("{REQUIRED},{more}"),
        _ => REQUIRED.to_owned(),
    };
    command.env(REQUIRE_VARIABLE, required);
    let ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
    if ci && std::env::var_os(DEADLINE_VARIABLE).is_none() {
        command.env(DEADLINE_VARIABLE, CI_DEADLINE_FACTOR);
    }
    if ci && std::env::var_os(INCREMENTAL_VARIABLE).is_none() {
        command.env(INCREMENTAL_VARIABLE, "0");
    }
    command
}

/// The root of the workspace. Cargo tells where this program's manifest is now, also when the tree was moved.
pub(crate) fn root() -> std::path::PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(
        || std::path::PathBuf::from("."),
        |xtask| std::path::Path::new(&xtask).parent().map(Into::into).unwrap_or_default(),
    )
}

/// As one would type it.
pub(crate) fn shown(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    let program = program.file_name().unwrap_or(program.as_os_str());
    std::iter::once(program)
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs it to its end. Both outputs are passed on line by line as they come; skips are announced on the error output,
/// sums on the other one, and what failed is told once more at the end.
pub(crate) fn run(mut command: Command) -> Ran {
    println!("$ {}", shown(&command));
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            eprintln!("cannot run {}: {error}", shown(&command));
            return Ran::default();
        }
    };
    let (outputs, lines) = mpsc::sync_channel(1024);
    let errors = outputs.clone();
    let stdout = child.stdout.take().expect("the output was piped");
    let stderr = child.stderr.take().expect("the error output was piped");
    let (mut tally, mut digest) = (Tally::default(), Digest::default());
    std::thread::scope(|scope| {
        scope.spawn(move || pass_on(stdout, std::io::stdout(), &outputs));
        scope.spawn(move || pass_on(stderr, std::io::stderr(), &errors));
        for line in lines {
            tally.read(&line);
            digest.read(&line);
        }
    });
    if !digest.lines().is_empty() {
        println!("\n== what failed, in short\n{}", digest.lines().join("\n"));
    }
    let success = child.wait().is_ok_and(|status| status.success());
    Ran { success, tally }
}

fn pass_on(from: impl std::io::Read, mut to: impl std::io::Write, lines: &mpsc::SyncSender<String>) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while matches!(from.read_until(b'\n', &mut line), Ok(1..)) {
        // A closed terminal is no reason to stop the tests.
        let _ = to.write_all(&line).and_then(|()| to.flush());
        if lines.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
            return;
        }
        line.clear();
    }
}

/// Whether a program answers to `--version`.
pub(crate) fn is_installed(command: &mut Command) -> bool {
    command
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Writes what is buffered, so that the next line on the other output stands behind it.
pub(crate) fn flush() {
    // As above.
    let _ = std::io::stdout().flush();
}
