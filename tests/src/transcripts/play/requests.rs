//! Requests and their answers.

use super::Player;
use crate::transcripts::compare::answer_difference;
use crate::transcripts::file::{Answer, Request};
use crate::transcripts::http::{Exchange, Response};
use crate::transcripts::template::Template;

impl Player<'_> {
    pub(super) async fn request(&mut self, request: &Request, answer: &Answer) {
        let mut response = self.exchange(request).await;
        if let (true, Ok(first)) = (self.transcript.runs_differ() && request.method == "GET", &mut response) {
            // Records that came in one poll may come in two.
            let records = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == 0x1e).count();
            let wanted = answer.body.as_ref().map_or(0, |body| records(&body.stand_in()));
            while first.status == 200 && !first.body.is_empty() && records(&first.body) < wanted {
                match self.exchange(request).await {
                    Ok(next) if next.status == 200 && !next.body.is_empty() => first.body.extend(next.body),
                    _ => break,
                }
            }
        }
        self.answered(answer, response);
    }

    pub(super) async fn exchange(&self, request: &Request) -> Result<Response, String> {
        let mut exchange = Exchange::send(self.server.address, request, &[], &self.bindings).await?;
        exchange.answer(self.deadline).await
    }

    pub(super) fn answered(&mut self, expected: &Answer, response: Result<Response, String>) {
        let replacement = self.replacement();
        match response {
            Ok(response) => {
                let recorded = answer_difference(expected, &response, &mut self.bindings);
                let replaced = replacement.map(|text| {
                    let (status, body) = text.split_once(' ').unwrap_or((text, ""));
                    let same_status = status.parse() == Ok(response.status);
                    let same =
                        same_status && Template::text(body).matches(&response.body, &mut self.bindings);
                    (text.to_owned(), same)
                });
                self.judge(recorded, replaced, &response.summary());
            }
            Err(got) => self.differs(format!("status {}", expected.status), got),
        }
    }
}
