//! What is sent and received on a WebSocket, and how it ends.

use std::time::Duration;

use tokio::time::Instant;

use super::{CLOSE_DEADLINE, NO_WEBSOCKET, Player, describe, describe_end, is_ping, name, quoted, written};
use crate::transcripts::compare::{record_matches, show};
use crate::transcripts::file::{Act, Answer, Ending, Frame, Framing, Record, Request, Step, TcpEnd};
use crate::transcripts::http::Exchange;
use crate::transcripts::msgpack;
use crate::transcripts::websocket::{Got, WebSocket, frame};

impl Player<'_> {
    pub(super) async fn open(&mut self, step: &Step, request: &Request, version: u32, expected: &Answer) {
        let version = version.to_string();
        let extra = [
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", version.as_str()),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let deadline = self.deadline;
        let opened = async {
            let mut exchange = Exchange::send(self.server.address, request, &extra, &self.bindings).await?;
            let response = match expected.status {
                101 => exchange.head(deadline).await?,
                _ => exchange.answer(deadline).await?,
            };
            Ok((exchange, response))
        };
        match opened.await {
            Ok((exchange, response)) => {
                if response.status == 101 {
                    let websocket =
                        WebSocket::new(exchange.into_socket(), self.answers_close(&step.connection));
                    self.ended.remove(&step.connection);
                    self.websockets.insert(step.connection.clone(), websocket);
                }
                self.answered(expected, Ok(response));
            }
            Err(got) => self.answered(expected, Err(got)),
        }
    }

    /// Whether the recorder answered the server's close frame: where a close with 1000 ended in a reset, it did not.
    pub(super) fn answers_close(&self, connection: &str) -> bool {
        let mut later =
            self.transcript.steps[self.index..].iter().filter(|step| step.connection == connection);
        let closed = later.any(|step| matches!(&step.act, Act::Closed(Ending::Frame(Some(1000), _))));
        let reset = later.any(|step| matches!(&step.act, Act::TcpEnd(TcpEnd::Rst)));
        !(closed && reset)
    }

    pub(super) async fn send(&mut self, step: &Step, sent: &Frame) {
        let payload = sent.payload.fill(&self.bindings).and_then(|payload| {
            let asks = self.strictness().asks && sent.opcode == 2;
            if asks { msgpack::with_question(&payload, &self.bindings) } else { Ok(payload) }
        });
        match (payload, self.websockets.get_mut(&step.connection)) {
            (Ok(payload), Some(websocket)) => {
                let bytes = frame(sent.opcode, sent.last, sent.reserved, sent.masked, &payload);
                websocket.send(sent.opcode, &bytes).await;
            }
            (Err(error), _) => self.differs(format!("to send {}", show(&sent.payload.stand_in())), error),
            (_, None) => self.differs("to send", NO_WEBSOCKET),
        }
    }

    pub(super) async fn next_record(&mut self, step: &Step, framing: Framing) -> Option<Got> {
        let deadline = self.deadline;
        let got = self.websockets.get_mut(&step.connection)?.record(framing, deadline).await;
        if matches!(got, Got::Nothing(_)) {
            self.late.insert(step.connection.clone());
        }
        Some(got)
    }

    pub(super) fn matches(&mut self, record: &Record, got: &Got) -> bool {
        let strictness = self.strictness();
        matches!(got, Got::Record(bytes, binary)
            if *binary == record.binary && record_matches(record, bytes, strictness, &mut self.bindings))
    }

    pub(super) async fn receive(&mut self, step: &Step, record: &Record) {
        if self.early.remove(&self.index) {
            return;
        }
        if self.transcript.runs_differ() && is_ping(&record.bytes.stand_in()) {
            return self.free_ping(step, record.framing).await;
        }
        let replacement = self.replacement().map(written);
        loop {
            let Some(got) = self.next_record(step, record.framing).await else {
                return self.differs(record.bytes.source(), NO_WEBSOCKET);
            };
            if self.transcript.runs_differ() && self.is_free(step, &got) {
                continue;
            }
            if self.may_end_here(step, &got) {
                return;
            }
            let matches = self.matches(record, &got);
            if !matches && self.came_early(step, &got) {
                continue;
            }
            let recorded = (!matches).then(|| (quoted(record), describe(&got)));
            let replaced = replacement.as_ref().map(|other| (quoted(other), self.matches(other, &got)));
            return self.judge(recorded, replaced, &describe(&got));
        }
    }

    /// Reads the record that a deviation says comes besides.
    pub(super) async fn also(&mut self, step: &Step, text: &str) {
        let mut step = step.clone();
        if matches!(step.act, Act::Terminate)
            && let Some(connection) = self.websockets.keys().next()
        {
            step.connection.clone_from(connection);
        }
        step.after = Duration::ZERO;
        self.deadline = self.deadline_of(&step);
        let record = written(text);
        let got = self.next_record(&step, record.framing).await;
        if !got.as_ref().is_some_and(|got| self.matches(&record, got)) {
            let got = got.as_ref().map_or(NO_WEBSOCKET.to_owned(), describe);
            self.differs(format!("by deviation also {text}"), got);
        }
    }

    pub(super) async fn closed(&mut self, step: &Step, expected: &Ending) {
        self.ended.insert(step.connection.clone());
        let replacement = self.replacement();
        loop {
            let Some(got) = self.next_record(step, Framing::Separator).await else {
                return self.differs(describe_end(expected), NO_WEBSOCKET);
            };
            if matches!(got, Got::Record(..)) {
                if !self.transcript.runs_differ() {
                    self.differs(describe_end(expected), describe(&got));
                }
                continue;
            }
            let recorded =
                (got != Got::End(expected.clone())).then(|| (describe_end(expected), describe(&got)));
            let replaced = replacement.map(|text| {
                let ending = text
                    .parse()
                    .map_or(Ending::Tcp(TcpEnd::Rst), |code| Ending::Frame(Some(code), String::new()));
                (text.to_owned(), got == Got::End(ending))
            });
            return self.judge(recorded, replaced, &describe(&got));
        }
    }

    pub(super) async fn tcp_end(&mut self, step: &Step, expected: TcpEnd) {
        self.ended.insert(step.connection.clone());
        let deadline = self.deadline + CLOSE_DEADLINE;
        let Some(websocket) = self.websockets.get_mut(&step.connection) else {
            return self.differs(name(expected), NO_WEBSOCKET);
        };
        let end = websocket.tcp_end(deadline).await;
        let got = end.map_or("TCP is still open", name);
        let replaced = self.replacement().map(|text| (text.to_owned(), text == got));
        let recorded = (end != Some(expected)).then(|| (name(expected).to_owned(), got.to_owned()));
        self.judge(recorded, replaced, got);
    }

    pub(super) async fn quiet(&mut self, step: &Step, time: Duration) {
        let deadline = Instant::now() + time;
        let Some(websocket) = self.websockets.get_mut(&step.connection) else {
            return self.differs("an open WebSocket", NO_WEBSOCKET);
        };
        if let Some(got) = websocket.leftover(deadline).await {
            self.differs(format!("nothing for {} ms", time.as_millis()), describe(&got));
        }
    }
}
