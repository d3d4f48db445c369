//! Server-sent events.

use super::{NO_STREAM, Player, describe, is_ping, quoted};
use crate::transcripts::compare::show;
use crate::transcripts::file::{Answer, Framing, Record, Request, Step};
use crate::transcripts::http::Exchange;
use crate::transcripts::sse::Events;
use crate::transcripts::template::Template;
use crate::transcripts::websocket::Got;

impl Player<'_> {
    pub(super) async fn sse_open(&mut self, request: &Request, expected: &Answer) {
        let deadline = self.deadline;
        let opened = async {
            let mut exchange = Exchange::send(self.server.address, request, &[], &self.bindings).await?;
            let response = match expected.status {
                200 => exchange.head(deadline).await?,
                _ => exchange.answer(deadline).await?,
            };
            Ok((exchange, response))
        };
        match opened.await {
            Ok((exchange, response)) => {
                if response.status == 200 && expected.status == 200 {
                    self.events = Some(Events::new(exchange));
                }
                self.answered(expected, Ok(response));
            }
            Err(got) => self.answered(expected, Err(got)),
        }
    }

    pub(super) async fn next_event(&mut self) -> Option<Got> {
        let deadline = self.deadline;
        Some(self.events.as_mut()?.record(deadline).await)
    }

    pub(super) async fn sse_receive(&mut self, step: &Step, raw: &Template) {
        let source = raw.source();
        let deadline = self.deadline;
        let Some(data) = source.strip_prefix("data: ") else {
            let got = match self.events.as_mut() {
                Some(events) => describe(&events.comment(deadline).await),
                None => NO_STREAM.to_owned(),
            };
            if got != show(source.as_bytes()) {
                self.differs(source, got);
            }
            return;
        };
        for expected in data.trim_end_matches("\r\n").split_inclusive('\u{1e}') {
            let record =
                Record { bytes: Template::text(expected), binary: false, framing: Framing::Separator };
            if self.transcript.runs_differ() && is_ping(expected.as_bytes()) {
                self.pings.entry(step.connection.clone()).or_default().expected += 1;
                continue;
            }
            let got = loop {
                let got = self.next_event().await;
                let free =
                    got.as_ref().is_some_and(|got| self.transcript.runs_differ() && self.is_free(step, got));
                if !free {
                    break got;
                }
            };
            if !got.as_ref().is_some_and(|got| self.matches(&record, got)) {
                self.differs(quoted(&record), got.as_ref().map_or(NO_STREAM.to_owned(), describe));
            }
        }
    }
}
