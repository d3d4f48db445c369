//! A stream of server-sent events, and the hub records in it.

use tokio::time::Instant;

use super::file::{Ending, TcpEnd};
use super::http::{Exchange, NOTHING};
use super::websocket::Got;

/// An event stream after its head.
#[derive(Debug)]
pub struct Events {
    exchange: Exchange,
    /// Body that is not yet a whole event.
    body: String,
    /// Data of events that was not taken.
    data: String,
    comments: usize,
    ended: bool,
}

impl Events {
    /// Takes over a request whose head was accepted.
    #[must_use]
    pub fn new(exchange: Exchange) -> Self {
        Self { exchange, body: String::new(), data: String::new(), comments: 0, ended: false }
    }

    /// Waits for the empty comment that opens a stream.
    pub async fn comment(&mut self, deadline: Instant) -> Got {
        while self.comments == 0 {
            if let Some(got) = self.more(deadline).await {
                return got;
            }
        }
        self.comments -= 1;
        Got::Record(b":\r\n".to_vec(), false)
    }

    /// The next hub record, or what came instead. Which records share an event depends on time.
    pub async fn record(&mut self, deadline: Instant) -> Got {
        loop {
            if let Some(end) = self.data.find('\u{1e}') {
                let rest = self.data.split_off(end + 1);
                return Got::Record(std::mem::replace(&mut self.data, rest).into_bytes(), false);
            }
            if let Some(got) = self.more(deadline).await {
                return got;
            }
        }
    }

    /// Ends TCP from this side.
    pub async fn end(self, how: TcpEnd) {
        self.exchange.into_socket().end(how).await;
    }

    /// Reads on; `Some` when there is nothing more to read.
    async fn more(&mut self, deadline: Instant) -> Option<Got> {
        if self.ended {
            return Some(Got::End(Ending::Frame(None, String::new())));
        }
        match self.exchange.chunk(deadline).await {
            Ok(Some(chunk)) => self.body.push_str(&String::from_utf8_lossy(&chunk)),
            Ok(None) => self.ended = true,
            Err(what) if what.starts_with(NOTHING) => {
                return Some(Got::Nothing(self.data.clone().into_bytes()));
            }
            Err(what) => return Some(Got::Fault(what)),
        }
        self.parse().err().map(Got::Fault)
    }

    fn parse(&mut self) -> Result<(), String> {
        loop {
            if let Some(rest) = self.body.strip_prefix(":\r\n") {
                self.body = rest.to_owned();
                self.comments += 1;
                continue;
            }
            let Some(end) = self.body.find("\r\n\r\n") else { return Ok(()) };
            let event: String = self.body.drain(..end + 4).collect();
            let lines = event.trim_end_matches("\r\n").split("\r\n").map(|line| line.strip_prefix("data: "));
            let lines: Option<Vec<&str>> = lines.collect();
            let lines = lines.ok_or_else(|| format!("an event that is not data: {event:?}"))?;
            self.data.push_str(&lines.join("\n"));
        }
    }
}
