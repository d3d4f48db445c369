//! The processes that a server starts for itself, and that are not in its group.

use std::time::{Duration, Instant};

use backplane_core::{Error, ErrorKind, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::report::bound;

/// How long a signal may take to show.
const DEADLINE: Duration = Duration::from_secs(2);

/// The children of a process, as far as the kernel shows them in `/proc`.
pub(super) fn children(parent: u32) -> Vec<Pid> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    processes
        .filter_map(|entry| {
            let id: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let (_, its_parent) = state(id)?;
            (its_parent == parent).then(|| Pid::from_raw(id))?
        })
        .collect()
}

/// Signals each of them, and waits until it shows: until they are gone after [`Signal::KILL`], stopped after
/// [`Signal::STOP`].
///
/// # Errors
/// [`Timeout`](ErrorKind::Timeout) with those on which it does not show.
pub(super) fn signal(processes: &[Pid], signal: Signal) -> Result<()> {
    for process in processes {
        // One that has ended meanwhile needs no signal.
        let _ = kill_process(*process, signal);
    }
    let deadline = Instant::now() + bound(DEADLINE);
    let done = |process: &Pid| match state(process.as_raw_nonzero().get()) {
        None | Some(('Z' | 'X', _)) => true,
        Some((state, _)) if signal == Signal::STOP => matches!(state, 'T' | 't'),
        Some(_) => signal != Signal::KILL,
    };
    while !processes.iter().all(done) {
        if Instant::now() >= deadline {
            let left: Vec<&Pid> = processes.iter().filter(|process| !done(process)).collect();
            let context = format!("{signal:?} does not show on {left:?} after {:?}", bound(DEADLINE));
            return Err(Error::new(ErrorKind::Timeout, "signal").with_context(context));
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    Ok(())
}

/// State and parent of a process.
fn state(id: i32) -> Option<(char, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name stands in brackets, and may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}
