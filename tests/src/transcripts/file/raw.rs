//! The keys of the JSON form, and how they become typed steps.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::{Act, Answer, Ending, FormError, Frame, Framing, Record, Request, Step, TcpEnd, Transcript};
use crate::transcripts::cut;
use crate::transcripts::template::Template;

pub(super) fn parse(text: &str) -> Result<Transcript, FormError> {
    let raw: RawTranscript = serde_json::from_str(text).map_err(|error| FormError(error.to_string()))?;
    let asks = raw.name.starts_with("ask-");
    let step = |(index, step): (usize, RawStep)| {
        step.typed(asks).map_err(|what| FormError(format!("step {}: {what}", index + 1)))
    };
    Ok(Transcript {
        keepalive: raw.options.contains_key("keepalive"),
        switches: switches(&raw.options)?,
        steps: raw.steps.into_iter().enumerate().map(step).collect::<Result<_, _>>()?,
        name: raw.name,
        about: raw.about,
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTranscript {
    name: String,
    about: String,
    options: BTreeMap<String, Value>,
    steps: Vec<RawStep>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStep {
    http: Option<RawRequest>,
    http_done: Option<String>,
    pending: Option<String>,
    ws: Option<String>,
    sse: Option<String>,
    note: Option<String>,
    conn: Option<String>,
    path: Option<String>,
    headers_sent: Option<BTreeMap<String, String>>,
    version_sent: Option<u32>,
    status: Option<u16>,
    headers: Option<BTreeMap<String, String>>,
    body: Option<String>,
    body_hex: Option<String>,
    text: Option<String>,
    text_start: Option<String>,
    text_repeat: Option<String>,
    hex: Option<String>,
    hex_start: Option<String>,
    bytes: Option<usize>,
    count: Option<usize>,
    as_text: Option<String>,
    #[serde(rename = "msg")]
    _decoded: Option<Value>,
    fin: Option<bool>,
    continuation: Option<bool>,
    code: Option<u16>,
    reason: Option<String>,
    empty: Option<bool>,
    tcp: Option<String>,
    for_ms: Option<u64>,
    raw: Option<String>,
    after_ms: Option<u64>,
    #[serde(rename = "same_frame")]
    _same_frame: Option<bool>,
    #[serde(rename = "fragments")]
    _fragments: Option<Value>,
    #[serde(rename = "chunk_sizes")]
    _chunk_sizes: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRequest {
    method: String,
    path: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    body: Option<String>,
    body_hex: Option<String>,
    body_repeat: Option<RawRepeat>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRepeat {
    byte: String,
    count: usize,
}

fn switches(options: &BTreeMap<String, Value>) -> Result<Vec<String>, FormError> {
    let mut switches = Vec::new();
    for (name, value) in options {
        let value = match value {
            Value::Bool(true) => None,
            Value::Number(number) => Some(number.to_string()),
            Value::String(text) => Some(text.clone()),
            _ => return Err(FormError(format!("option {name} has the value {value}"))),
        };
        switches.push(format!("--{name}"));
        switches.extend(value);
    }
    Ok(switches)
}

/// The text with ids of the server's questions as placeholders.
fn text(asks: bool, text: &str) -> Template {
    if !asks {
        return Template::text(text);
    }
    let mut text = text.to_owned();
    for number in 1..100 {
        if !text.contains(&format!("s{number}")) {
            continue;
        }
        text = text
            .replace(
                &format!("\"invocationId\":\"s{number}\""),
                &format!("\"invocationId\":\"<question:{number}>\""),
            )
            .replace(&format!("'s{number}'"), &format!("'<question:{number}>'"));
    }
    Template::text(&text)
}

fn hex(digits: &str) -> Result<Template, String> {
    Template::hex(digits).ok_or_else(|| format!("{digits:?} is not hexadecimal"))
}

fn needed<T>(value: Option<T>, key: &str) -> Result<T, String> {
    value.ok_or_else(|| format!("{key} is missing"))
}

fn tcp_end(word: Option<String>) -> Result<TcpEnd, String> {
    match word.as_deref() {
        Some("fin") => Ok(TcpEnd::Fin),
        Some("rst") => Ok(TcpEnd::Rst),
        other => Err(format!("tcp ends with {other:?}")),
    }
}

impl RawStep {
    fn typed(mut self, asks: bool) -> Result<Step, String> {
        let connection = self.conn.take().unwrap_or_default();
        let after = Duration::from_millis(self.after_ms.unwrap_or(0));
        let act = if let Some(request) = self.http.take() {
            let request = request.typed()?;
            match self.pending.take() {
                Some(label) => Act::Pending(request, label),
                None => Act::Request(request, self.answer()?),
            }
        } else if let Some(label) = self.http_done.take() {
            Act::Done(label, self.answer()?)
        } else if let Some(word) = self.ws.take() {
            self.websocket(&word, asks)?
        } else if let Some(word) = self.sse.take() {
            self.events(&word)?
        } else {
            note(&needed(self.note.take(), "an act")?)?
        };
        Ok(Step { connection, after, act })
    }

    fn answer(&mut self) -> Result<Answer, String> {
        let body = match (self.body.take(), self.body_hex.take()) {
            (Some(text), None) => Some(Template::text(&text)),
            (None, Some(digits)) => Some(hex(&digits)?),
            (None, None) => None,
            _ => return Err("two bodies".to_owned()),
        };
        let status = needed(self.status, "status")?;
        Ok(Answer { status, headers: self.headers.take().unwrap_or_default(), body })
    }

    /// A GET with the headers that the recorder sent besides the usual ones.
    fn get(&mut self) -> Result<Request, String> {
        Ok(Request {
            method: "GET".to_owned(),
            path: Template::text(&needed(self.path.take(), "path")?),
            headers: self.headers_sent.take().unwrap_or_default().into_iter().collect(),
            body: Template::default(),
        })
    }

    fn websocket(mut self, word: &str, asks: bool) -> Result<Act, String> {
        Ok(match word {
            "open" => Act::Open {
                request: self.get()?,
                version: self.version_sent.unwrap_or(13),
                answer: self.answer()?,
            },
            "send" => Act::Send(self.frame(asks)?),
            "close" => {
                let reason = self.reason.take().unwrap_or_default();
                let code = match (self.code, self.empty) {
                    (Some(code), None) => code.to_be_bytes().to_vec(),
                    (None, Some(true)) => Vec::new(),
                    _ => return Err("a close frame needs a code, or empty".to_owned()),
                };
                Act::Send(Frame::new(8, Template::bytes([code, reason.into_bytes()].concat())))
            }
            "close-frame" => Act::Send(Frame::new(8, hex(&needed(self.hex.take(), "hex")?)?)),
            "frame-opcode-3" => Act::Send(Frame::new(3, hex(&needed(self.hex.take(), "hex")?)?)),
            "recv" => Act::Receive(self.record(asks)?),
            "closed" => Act::Closed(match self.code {
                Some(1006) => Ending::Tcp(tcp_end(self.tcp.take())?),
                code => Ending::Frame(code, self.reason.take().unwrap_or_default()),
            }),
            "tcp_end" => Act::TcpEnd(tcp_end(self.tcp.take())?),
            "tcp_still_open" => Act::StillOpen(Duration::from_millis(needed(self.for_ms, "for_ms")?)),
            "quiet" => Act::Quiet(Duration::from_millis(needed(self.for_ms, "for_ms")?)),
            "drop" => Act::Drop(tcp_end(self.tcp.take())?),
            other => return Err(format!("ws {other:?} is not known")),
        })
    }

    fn frame(mut self, asks: bool) -> Result<Frame, String> {
        let open_end = self.conn.as_deref() == Some("no-end");
        let note = self.note.take();
        let mut frame = if let Some(sent) = &self.text {
            Frame::new(1, text(asks, sent))
        } else if let Some(digits) = &self.hex {
            Frame::new(2, hex(digits)?)
        } else if let Some(one) = &self.text_repeat {
            Frame::new(1, Template::bytes(one.repeat(needed(self.count, "count")?)))
        } else {
            let (opcode, start) = self.start()?;
            let whole = cut::restore(&start, needed(self.bytes, "bytes")?, note.as_deref(), open_end)?;
            Frame::new(opcode, Template::bytes(whole))
        };
        match note.as_deref() {
            Some("RSV1 set") => frame.reserved = true,
            Some("frame without mask") => frame.masked = false,
            Some("in a text frame" | "these bytes in a text frame") => frame.opcode = 1,
            // The others repeat in words what the bytes say.
            _ => {}
        }
        if self.continuation == Some(true) {
            frame.opcode = 0;
        }
        frame.last = self.fin.unwrap_or(true);
        Ok(frame)
    }

    fn start(&self) -> Result<(u8, Vec<u8>), String> {
        if let Some(start) = &self.text_start {
            return Ok((1, start.clone().into_bytes()));
        }
        let start = hex(needed(self.hex_start.as_deref(), "text or hex")?)?;
        Ok((2, needed(start.literal_bytes(), "a start without placeholders")?))
    }

    fn record(self, asks: bool) -> Result<Record, String> {
        let separated = self.as_text.is_some();
        let (bytes, binary) = if let Some(received) = &self.text {
            (text(asks, received), false)
        } else if let Some(digits) = &self.hex {
            (hex(digits)?, true)
        } else {
            let (opcode, start) = self.start()?;
            let whole = cut::restore(&start, needed(self.bytes, "bytes")?, None, false)?;
            (Template::bytes(whole), opcode == 2)
        };
        let framing = if binary && !separated { Framing::Length } else { Framing::Separator };
        Ok(Record { bytes, binary, framing })
    }

    fn events(mut self, word: &str) -> Result<Act, String> {
        Ok(match word {
            "open" => Act::SseOpen(self.get()?, self.answer()?),
            "recv" => Act::SseReceive(Template::text(&needed(self.raw.take(), "raw")?)),
            "end" => Act::SseEnd,
            "abort" => Act::SseAbort,
            other => return Err(format!("sse {other:?} is not known")),
        })
    }
}

impl Frame {
    fn new(opcode: u8, payload: Template) -> Self {
        Self { opcode, last: true, reserved: false, masked: true, payload }
    }
}

impl RawRequest {
    fn typed(self) -> Result<Request, String> {
        let body = match (self.body, self.body_hex, self.body_repeat) {
            (None, None, None) => Template::default(),
            (Some(text), None, None) => Template::text(&text),
            (None, Some(digits), None) => hex(&digits)?,
            (None, None, Some(repeat)) => Template::bytes(repeat.byte.repeat(repeat.count)),
            _ => return Err("two bodies".to_owned()),
        };
        let headers = self.headers.into_iter().collect();
        Ok(Request { method: self.method, path: Template::text(&self.path), headers, body })
    }
}

fn note(note: &str) -> Result<Act, String> {
    if note == "SIGTERM to the server" {
        return Ok(Act::Terminate);
    }
    if let Some(code) = note.strip_prefix("server exit code ") {
        return Ok(Act::ExitCode(code.parse().map_err(|_| format!("no exit code in {note:?}"))?));
    }
    let label =
        note.strip_prefix("pending poll ").and_then(|rest| rest.strip_suffix(" dropped by the client"));
    label.map(|label| Act::DropPending(label.to_owned())).ok_or_else(|| format!("note {note:?} is not known"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(step: &str) -> Result<Act, FormError> {
        let text = format!(r#"{{"name":"ask-x","about":"","options":{{}},"steps":[{step}]}}"#);
        Transcript::parse(&text).map(|mut transcript| transcript.steps.remove(0).act)
    }

    #[test]
    fn unknown_keys_notes_and_words_are_refused() {
        for step in [
            r#"{"ws":"recv","text":"x","surprise":1}"#,
            r#"{"ws":"wave","text":"x"}"#,
            r#"{"note":"something else"}"#,
            r#"{"http":{"method":"GET","path":"/","cookie":1},"status":200}"#,
            r#"{"ws":"tcp_end"}"#,
        ] {
            assert!(one(step).is_err(), "{step}");
        }
    }

    #[test]
    fn the_ids_of_questions_are_placeholders() {
        let act =
            one(r#"{"ws":"recv","text":"{\"invocationId\":\"s12\",\"result\":\"s12\"}\u001e"}"#).unwrap();
        let Act::Receive(record) = act else { panic!("{act:?}") };
        assert_eq!(record.bytes.source(), "{\"invocationId\":\"<question:12>\",\"result\":\"s12\"}\u{1e}");
    }

    #[test]
    fn bad_frames_are_as_bad_as_recorded() {
        let frame = |step: &str| match one(step).unwrap() {
            Act::Send(frame) => (frame.opcode, frame.last, frame.reserved, frame.masked),
            other => panic!("{other:?}"),
        };
        assert_eq!(frame(r#"{"ws":"send","text":"x","note":"RSV1 set"}"#), (1, true, true, true));
        assert_eq!(frame(r#"{"ws":"send","text":"x","note":"frame without mask"}"#), (1, true, false, false));
        assert_eq!(frame(r#"{"ws":"send","text":"x","fin":false}"#), (1, false, false, true));
        assert_eq!(frame(r#"{"ws":"send","text":"x","continuation":true}"#), (0, true, false, true));
        assert_eq!(frame(r#"{"ws":"send","hex":"ff","note":"in a text frame"}"#), (1, true, false, true));
        assert_eq!(frame(r#"{"ws":"frame-opcode-3","hex":"78"}"#), (3, true, false, true));
    }
}
