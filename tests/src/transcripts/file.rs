//! The form of a recording, as typed steps. Parsing is strict: a key, note or shape that nobody knows is an error that
//! names file and step, so that no recorded fact is passed over unseen.

mod raw;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::template::Template;

/// One scenario.
#[derive(Clone, Debug)]
pub struct Transcript {
    /// The scenario, and the file's name without `.json`.
    pub name: String,
    /// One sentence about it.
    pub about: String,
    /// The server's switches, as arguments of a command line.
    pub switches: Vec<String>,
    /// The interval of the server's pings, where it is not the default.
    pub keepalive: bool,
    /// What was done and what came, in order.
    pub steps: Vec<Step>,
}

/// One thing that was done or that came.
#[derive(Clone, Debug)]
pub struct Step {
    /// Which WebSocket, or an empty text when there is one.
    pub connection: String,
    /// Time since the step before, when it was at least 60 ms.
    pub after: Duration,
    /// What.
    pub act: Act,
}

/// What was done or what came.
#[derive(Clone, Debug)]
pub enum Act {
    /// A request and its answer.
    Request(Request, Answer),
    /// A request whose answer comes in a later step.
    Pending(Request, String),
    /// The answer to a pending request.
    Done(String, Answer),
    /// The client ends a pending request.
    DropPending(String),
    /// The server process is told to stop.
    Terminate,
    /// The server process has ended with this code.
    ExitCode(i32),
    /// A WebSocket is asked for.
    Open {
        /// The upgrade request, without the headers that each has.
        request: Request,
        /// `Sec-WebSocket-Version`.
        version: u32,
        /// 101, or a refusal.
        answer: Answer,
    },
    /// A frame to the server.
    Send(Frame),
    /// One hub record from the server.
    Receive(Record),
    /// A close frame from the server, or the end of TCP without one.
    Closed(Ending),
    /// TCP ended.
    TcpEnd(TcpEnd),
    /// TCP is open and nothing came for this time.
    StillOpen(Duration),
    /// Nothing came for this time.
    Quiet(Duration),
    /// The client ends TCP.
    Drop(TcpEnd),
    /// Server-sent events are asked for.
    SseOpen(Request, Answer),
    /// One event.
    SseReceive(Template),
    /// The event stream ended.
    SseEnd,
    /// The client ends the event stream.
    SseAbort,
}

/// An HTTP request.
#[derive(Clone, Debug)]
pub struct Request {
    /// In capitals.
    pub method: String,
    /// Path and query.
    pub path: Template,
    /// Those that were sent besides the usual ones.
    pub headers: Vec<(String, String)>,
    /// Exactly the bytes after the head.
    pub body: Template,
}

/// An HTTP answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// For instance 200.
    pub status: u16,
    /// All that came, in the recorder's spelling, without those that are not compared.
    pub headers: BTreeMap<String, String>,
    /// The body without its transfer encoding. `None` where the recording has none to compare.
    pub body: Option<Template>,
}

/// A frame from the client, good or bad.
#[derive(Clone, Debug)]
pub struct Frame {
    /// 1 text, 2 binary, 8 close, 0 continuation, or one that does not exist.
    pub opcode: u8,
    /// The last of its message.
    pub last: bool,
    /// First reserved bit.
    pub reserved: bool,
    /// As every client frame has to be.
    pub masked: bool,
    /// Unmasked.
    pub payload: Template,
}

/// A hub record from the server.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its bytes, separator or length prefix included.
    pub bytes: Template,
    /// In a binary frame.
    pub binary: bool,
    /// How its end is found.
    pub framing: Framing,
}

/// How the end of a record is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// A byte 1E after it.
    Separator,
    /// Its length before it.
    Length,
}

/// How a WebSocket ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// A close frame with a code, and perhaps a reason.
    Frame(Option<u16>, String),
    /// The end of TCP without a close frame.
    Tcp(TcpEnd),
}

/// How TCP ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpEnd {
    /// In order.
    Fin,
    /// By a reset.
    Rst,
}

/// A file, or a step of one, that is not of the known form.
#[derive(Debug)]
pub struct FormError(pub String);

impl std::fmt::Display for FormError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for FormError {}

impl Transcript {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// Names file and step of what is not of the known form.
    pub fn read(path: &Path) -> Result<Self, FormError> {
        let file = path.display();
        let text = std::fs::read_to_string(path).map_err(|error| FormError(format!("{file}: {error}")))?;
        Self::parse(&text).map_err(|FormError(what)| FormError(format!("{file}: {what}")))
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// Names the step of what is not of the known form.
    pub fn parse(text: &str) -> Result<Self, FormError> {
        raw::parse(text)
    }

    /// Whether two recordings of it differed: the file holds one of several right answers.
    pub fn runs_differ(&self) -> bool {
        self.about.contains("RUNS DIFFER")
    }

    /// Whether JSON is held to its bytes here: these files are about how the server escapes.
    pub fn escapes_matter(&self) -> bool {
        self.name.starts_with("json-escape-")
    }
}
