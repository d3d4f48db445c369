//! How long a play waits: before a step, for an answer, and after the last step.

use std::time::Duration;

use backplane_conformance::bound;
use tokio::time::{Instant, sleep_until};

use super::{Act, Difference, Kind, Pings, Player, Step, describe, is_ping};
use crate::transcripts::file::Ending;
use crate::transcripts::websocket::Got;

/// How long an answer may take beyond the recorded time.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// The same where something was missing before.
const LATE_DEADLINE: Duration = Duration::from_millis(300);
/// From here on a recorded time is that of a time-out, and is compared.
const TIME_OUT: Duration = Duration::from_millis(900);
/// Heartbeats tick each second, so time-outs vary by that; the rest is for the machine.
const EARLY: Duration = Duration::from_millis(1_150);
const LATE: Duration = Duration::from_millis(2_500);
/// How long nothing may come after the last step.
const AFTERWARDS: Duration = Duration::from_millis(100);
/// By how many pings runs differ.
const PINGS: usize = 2;

impl Player<'_> {
    /// Waits before what the client does, as the recorder did.
    pub(super) async fn pause(&self, step: &Step) {
        if self.index > 0 && is_pause(step) {
            sleep_until(self.since + step.after).await;
        }
    }

    pub(super) fn deadline_of(&self, step: &Step) -> Instant {
        let patience = if self.late.contains(&step.connection) { LATE_DEADLINE } else { ANSWER_DEADLINE };
        Instant::now() + bound(patience) + if is_pause(step) { Duration::ZERO } else { step.after }
    }

    /// Holds a time-out of the server to its time.
    pub(super) fn check_time(&mut self, step: &Step) {
        let elapsed = self.since.elapsed();
        if self.index == 0 || step.after < TIME_OUT || is_pause(step) || self.transcript.runs_differ() {
            return;
        }
        let recorded = format!("it after {} ms", step.after.as_millis());
        if elapsed + EARLY < step.after || elapsed > step.after + bound(LATE) {
            self.differs(recorded, format!("it after {} ms", elapsed.as_millis()));
        }
    }

    /// After the last step: nothing more comes.
    pub(super) async fn finish(mut self) -> Vec<Difference> {
        let deadline = Instant::now() + AFTERWARDS;
        let mut open: Vec<String> = self.websockets.keys().cloned().collect();
        open.retain(|connection| !self.ended.contains(connection));
        open.sort();
        let steps = &self.transcript.steps;
        for connection in open {
            let websocket = self.websockets.get_mut(&connection).expect("it is open");
            while let Some(got) = websocket.leftover(deadline).await {
                // Where pings come often, one more may.
                let ping = matches!(&got, Got::Record(bytes, _) if is_ping(bytes));
                if ping && self.transcript.keepalive {
                    self.pings.entry(connection.clone()).or_default().got += 1;
                    continue;
                }
                let last = steps.iter().rposition(|step| step.connection == connection);
                let on = if connection.is_empty() { String::new() } else { format!(" on {connection}") };
                let expected = format!("nothing more{on} after step {}", last.map_or(0, |last| last + 1));
                self.differences.push(Difference { step: 0, expected, got: describe(&got) });
                if !matches!(got, Got::Record(..)) {
                    break;
                }
            }
        }
        for Pings { expected, got } in self.pings.values().filter(|_| self.transcript.runs_differ()) {
            if expected.abs_diff(*got) > PINGS || *got == 0 {
                let (expected, got) = (format!("about {expected} pings"), got.to_string());
                self.differences.push(Difference { step: 0, expected, got });
            }
        }
        self.differences
    }

    /// Whether the runs of this recording may have ended `step`'s connection before it.
    pub(super) fn may_end_here(&self, step: &Step, got: &Got) -> bool {
        let Got::End(came) = got else { return false };
        let later = &self.transcript.steps[self.index..];
        let closes = |step: &&Step| matches!(&step.act, Act::Closed(ending) if ending == came);
        let free =
            self.transcript.runs_differ() && !self.is(&Kind::Absent) && matches!(came, Ending::Frame(..));
        free && later.iter().filter(|later| later.connection == step.connection).any(|later| closes(&later))
    }
}

/// Whether the recorded time before a step is the recorder's: before what the client does. A poll (a GET that was
/// answered with 200) of a second or more is the server's wait.
fn is_pause(step: &Step) -> bool {
    match &step.act {
        Act::Request(request, answer) => {
            request.method != "GET" || answer.status != 200 || step.after < TIME_OUT
        }
        Act::Pending(..) | Act::Send(..) | Act::Drop(..) | Act::SseAbort | Act::DropPending(..) => true,
        _ => false,
    }
}
