//! Plays one recording, step by step, and notes what differs.

mod events;
mod frames;
mod ordering;
mod requests;
mod wait;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use super::compare::{Strictness, show};
use super::file::{Act, Ending, Framing, Record, Step, TcpEnd, Transcript};
use super::http::Exchange;
use super::lists::{Deviation, Kind};
use super::server::Server;
use super::sse::Events;
use super::template::{Bindings, Template};
use super::websocket::{Got, WebSocket};

/// One thing that is not as recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Which step, from 1; 0 is after the last.
    pub step: usize,
    /// What should have come.
    pub expected: String,
    /// What came.
    pub got: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.step {
            0 => write!(f, "after the last step: ")?,
            step => write!(f, "step {step}: ")?,
        }
        write!(f, "expected {}, got {}", self.expected, self.got)
    }
}

/// How long a play goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// To the last step.
    End,
    /// To the first difference: enough for what is known to differ.
    Difference,
}

/// Plays `transcript` against `server`. Nothing that differs: it is as recorded, or as `deviations` say.
pub async fn play(
    transcript: &Transcript,
    deviations: &[Deviation],
    server: &mut Server,
    until: Until,
) -> Vec<Difference> {
    let mut player = Player::new(transcript, deviations, server);
    for index in 0..transcript.steps.len() {
        player.step(index).await;
        if until == Until::Difference && !player.differences.is_empty() {
            return player.differences;
        }
    }
    player.finish().await
}

struct Player<'a> {
    transcript: &'a Transcript,
    deviations: &'a [Deviation],
    server: &'a mut Server,
    bindings: Bindings,
    websockets: HashMap<String, WebSocket>,
    /// WebSockets whose end a step has asked for.
    ended: BTreeSet<String>,
    events: Option<Events>,
    pending: HashMap<String, Exchange>,
    /// Completions that came before their step, as an `order` allows.
    early: BTreeSet<usize>,
    pings: BTreeMap<String, Pings>,
    differences: Vec<Difference>,
    /// The step that is played, from 0.
    index: usize,
    /// When the step before ended.
    since: Instant,
    /// Until when an answer to this step is waited for.
    deadline: Instant,
    /// Connections on which something did not come: waiting long again teaches nothing.
    late: BTreeSet<String>,
}

/// Pings of a connection in a recording whose runs differed in them.
#[derive(Clone, Copy, Debug, Default)]
struct Pings {
    expected: usize,
    got: usize,
}

impl<'a> Player<'a> {
    fn new(transcript: &'a Transcript, deviations: &'a [Deviation], server: &'a mut Server) -> Self {
        Self {
            transcript,
            deviations,
            server,
            bindings: Bindings::default(),
            websockets: HashMap::new(),
            ended: BTreeSet::new(),
            events: None,
            pending: HashMap::new(),
            early: BTreeSet::new(),
            pings: BTreeMap::new(),
            differences: Vec::new(),
            index: 0,
            since: Instant::now(),
            deadline: Instant::now(),
            late: BTreeSet::new(),
        }
    }

    async fn step(&mut self, index: usize) {
        self.index = index;
        let step = &self.transcript.steps[index];
        if !self.is(&Kind::Absent) {
            let before = self.differences.len();
            self.pause(step).await;
            self.deadline = self.deadline_of(step);
            self.act(step).await;
            if self.differences.len() == before {
                self.check_time(step);
            }
        }
        self.since = Instant::now();
        let also: Vec<String> = self
            .here()
            .filter_map(|deviation| match &deviation.kind {
                Kind::Also(text) => Some(text.clone()),
                _ => None,
            })
            .collect();
        for text in also {
            self.also(step, &text).await;
        }
    }

    fn here(&self) -> impl Iterator<Item = &'a Deviation> + use<'a> {
        let step = self.index + 1;
        self.deviations.iter().filter(move |deviation| deviation.step == step)
    }

    fn is(&self, kind: &Kind) -> bool {
        self.here().any(|deviation| deviation.kind == *kind)
    }

    fn replacement(&self) -> Option<&'a str> {
        self.replacement_at(self.index)
    }

    fn replacement_at(&self, index: usize) -> Option<&'a str> {
        let here = self.deviations.iter().filter(|deviation| deviation.step == index + 1);
        here.map(|deviation| &deviation.kind).find_map(|kind| match kind {
            Kind::Answer(text) | Kind::Or(text) => Some(text.as_str()),
            _ => None,
        })
    }

    fn differs(&mut self, expected: impl Into<String>, got: impl Into<String>) {
        self.differences.push(Difference {
            step: self.index + 1,
            expected: expected.into(),
            got: got.into(),
        });
    }

    /// Notes that `matched` the recording, or the replacement that a deviation names.
    fn judge(&mut self, recorded: Option<(String, String)>, replaced: Option<(String, bool)>, got: &str) {
        match (recorded, replaced) {
            (None, None) | (Some(_), Some((_, true))) => {}
            (None, Some(_)) if self.here().any(|deviation| matches!(deviation.kind, Kind::Or(_))) => {}
            (None, Some((replacement, _))) => {
                self.differs(format!("the deviation {replacement}, which no longer occurs"), got);
            }
            (Some(_), Some((replacement, false))) => self.differs(format!("by deviation {replacement}"), got),
            (Some((expected, got)), None) => self.differs(expected, got),
        }
    }

    fn strictness(&self) -> Strictness {
        Strictness {
            escapes_matter: self.transcript.escapes_matter(),
            asks: self.transcript.name.starts_with("ask-"),
        }
    }

    async fn act(&mut self, step: &'a Step) {
        match &step.act {
            Act::Request(request, answer) => self.request(request, answer).await,
            Act::Pending(request, label) => {
                match Exchange::send(self.server.address, request, &[], &self.bindings).await {
                    Ok(exchange) => drop(self.pending.insert(label.clone(), exchange)),
                    Err(error) => self.differs("a request", error),
                }
            }
            Act::Done(label, answer) => match self.pending.remove(label) {
                Some(mut exchange) => {
                    let response = exchange.answer(self.deadline).await;
                    self.answered(answer, response);
                }
                None => self.differs("an answer", "no request was sent"),
            },
            Act::DropPending(label) => {
                if let Some(exchange) = self.pending.remove(label) {
                    exchange.into_socket().end(TcpEnd::Fin).await;
                }
            }
            Act::Terminate => {
                if let Err(error) = self.server.terminate() {
                    self.differs("SIGTERM", error);
                }
            }
            Act::ExitCode(code) => {
                let got = self.server.exit().await;
                if got != format!("exit code {code}") {
                    self.differs(format!("exit code {code}"), got);
                }
            }
            Act::Open { request, version, answer } => self.open(step, request, *version, answer).await,
            Act::Send(frame) => self.send(step, frame).await,
            Act::Receive(record) => self.receive(step, record).await,
            Act::Closed(ending) => self.closed(step, ending).await,
            Act::TcpEnd(end) => self.tcp_end(step, *end).await,
            Act::StillOpen(time) | Act::Quiet(time) => self.quiet(step, *time).await,
            Act::Drop(how) => {
                self.ended.insert(step.connection.clone());
                match self.websockets.remove(&step.connection) {
                    Some(websocket) => websocket.end(*how).await,
                    None => self.differs("a WebSocket to drop", "none is open"),
                }
            }
            Act::SseOpen(request, answer) => self.sse_open(request, answer).await,
            Act::SseReceive(raw) => self.sse_receive(step, raw).await,
            Act::SseEnd => {
                let got = self.next_event().await;
                if !matches!(got, Some(Got::End(_))) {
                    self.differs(
                        "the end of the event stream",
                        got.as_ref().map_or(NO_STREAM.into(), describe),
                    );
                }
            }
            Act::SseAbort => match self.events.take() {
                Some(events) => events.end(TcpEnd::Fin).await,
                None => self.differs("an event stream to end", NO_STREAM),
            },
        }
    }
}

const NO_WEBSOCKET: &str = "no WebSocket is open";
const NO_STREAM: &str = "no event stream is open";

/// How much longer than other answers the end of TCP may take: as long as the server waits for the other side.
const CLOSE_DEADLINE: Duration = Duration::from_secs(6);

fn is_ping(bytes: &[u8]) -> bool {
    bytes == b"{\"type\":6}\x1e" || bytes == [0x02, 0x91, 0x06]
}

/// The record that a list writes down: JSON without its separator, or `hex` and the bytes of a MessagePack record.
fn written(text: &str) -> Record {
    match text.strip_prefix("hex ").and_then(Template::hex) {
        Some(bytes) => Record { bytes, binary: true, framing: Framing::Length },
        None => {
            let bytes = Template::text(&format!("{text}\u{1e}"));
            Record { bytes, binary: false, framing: Framing::Separator }
        }
    }
}

fn name(end: TcpEnd) -> &'static str {
    match end {
        TcpEnd::Fin => "fin",
        TcpEnd::Rst => "rst",
    }
}

fn quoted(record: &Record) -> String {
    let frame = if record.binary { " (binary)" } else { "" };
    match record.framing {
        Framing::Separator => format!("{}{frame}", show(record.bytes.source().as_bytes())),
        Framing::Length => format!("{}{frame}", show(&record.bytes.stand_in())),
    }
}

fn describe_end(ending: &Ending) -> String {
    match ending {
        Ending::Frame(Some(code), reason) => format!("close frame {code} {reason:?}"),
        Ending::Frame(None, _) => "close frame without a code".to_owned(),
        Ending::Tcp(end) => format!("the end of TCP ({}) without a close frame", name(*end)),
    }
}

fn describe(got: &Got) -> String {
    match got {
        Got::Record(bytes, binary) => format!("{}{}", show(bytes), if *binary { " (binary)" } else { "" }),
        Got::End(ending) => describe_end(ending),
        Got::Fault(what) => what.clone(),
        Got::Nothing(rest) if rest.is_empty() => "nothing".to_owned(),
        Got::Nothing(rest) => format!("nothing but the unfinished {:?}", show(rest)),
    }
}
