//! What counts as the same answer.
//!
//! Not compared: the form of JSON (except in `json-escape-*`), the headers in [`NOT_COMPARED`], and what .NET's own
//! libraries say behind an exception's name ([`DOTNET_SENTENCES`]).

use std::collections::BTreeMap;

use super::file::{Answer, Framing, Record};
use super::http::Response;
use super::json::Json;
use super::msgpack;
use super::template::{Bindings, Template};

/// Headers that depend on the web server below. Names in lower case.
pub const NOT_COMPARED: &[&str] = &[
    "date",
    "server",
    "content-length",
    "transfer-encoding",
    "connection",
    "upgrade",
    "sec-websocket-accept",
];

/// Our own header: on the 404 of a connection that another server may have, it names cause and cure.
pub const HINT: &str = "x-signalr-hint";

const NO_CONNECTION: &[u8] = b"No Connection with that ID";

/// Transports that are not served yet: negotiate may leave them out.
const NOT_SERVED: &[&str] = &["ServerSentEvents", "LongPolling"];

/// Where in an error text .NET's own libraries begin to speak: from the end of each of these on, nothing is compared.
/// What SignalR itself says, also behind an exception's name, is compared.
pub const DOTNET_SENTENCES: &[&str] = &[
    // System.Text.Json, on a client result of another type than asked for.
    "HubException: Error trying to deserialize result to String.",
    "HubException: Error trying to deserialize result to Int32.",
    // The text of an exception that was made without one.
    "HubException: ",
    "NullReferenceException: ",
    "JsonException: ",
    "JsonReaderException: ",
    "MessagePackSerializationException: ",
    "EndOfStreamException: ",
];

/// What of [`DOTNET_SENTENCES`] applies only before this: other texts of that exception are SignalR's own.
const DOTNET_ONLY_BEFORE: &[(&str, &str)] =
    &[("HubException: ", "Exception of type 'Microsoft.AspNetCore.SignalR.HubException' was thrown.")];

/// How far `text` is compared: up to the first sentence of .NET's own libraries.
fn compared(text: &str) -> Option<&str> {
    DOTNET_SENTENCES.iter().find_map(|sentence| {
        let end = text.find(sentence)? + sentence.len();
        let only_before = DOTNET_ONLY_BEFORE.iter().find(|(of, _)| of == sentence);
        let applies = only_before.is_none_or(|(_, theirs)| text[end..].starts_with(theirs));
        applies.then(|| &text[..end])
    })
}

/// Whether a string is the expected one. `error`: it may hold a sentence of .NET's own libraries.
pub fn text_matches(expected: &str, actual: &[u8], error: bool, bindings: &mut Bindings) -> bool {
    match compared(expected).filter(|_| error) {
        Some(compared) => Template::text(compared).starts(actual, bindings),
        None => Template::text(expected).matches(actual, bindings),
    }
}

fn json_matches(expected: &Json, actual: &Json, error: bool, bindings: &mut Bindings) -> bool {
    match (expected, actual) {
        (Json::Text(expected), Json::Text(actual)) => {
            text_matches(expected, actual.as_bytes(), error, bindings)
        }
        (Json::Array(expected), Json::Array(actual)) => {
            expected.len() == actual.len()
                && expected.iter().zip(actual).all(|(left, right)| json_matches(left, right, error, bindings))
        }
        (Json::Object(expected), Json::Object(actual)) => {
            expected.len() == actual.len()
                && expected.iter().zip(actual).all(|((name, left), (actual_name, right))| {
                    name == actual_name && json_matches(left, right, name == "error", bindings)
                })
        }
        (left, right) => left == right,
    }
}

/// Binds only when everything matches.
fn all_or_nothing(bindings: &mut Bindings, matches: impl FnOnce(&mut Bindings) -> bool) -> bool {
    let mut trial = bindings.clone();
    let matched = matches(&mut trial);
    if matched {
        *bindings = trial;
    }
    matched
}

/// Whether `actual` is the JSON `expected`, or where either is no JSON, the same bytes.
fn json_text_matches(expected: &Template, actual: &[u8], bindings: &mut Bindings) -> bool {
    let source = expected.source();
    let parsed = |text: &str| Json::parse(text.strip_suffix('\u{1e}').unwrap_or(text));
    let actual_text = std::str::from_utf8(actual).ok();
    match (parsed(&source), actual_text.and_then(parsed)) {
        (Some(left), Some(right)) => {
            source.ends_with('\u{1e}') == actual.ends_with(b"\x1e")
                && all_or_nothing(bindings, |trial| json_matches(&left, &right, false, trial))
        }
        _ => expected.matches(actual, bindings),
    }
}

/// What a record is held to, besides itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Strictness {
    /// JSON is compared by its bytes.
    pub escapes_matter: bool,
    /// MessagePack ids `sN` are those of the server's questions.
    pub asks: bool,
}

/// Whether the bytes of one record are the expected ones.
pub fn record_matches(
    expected: &Record,
    actual: &[u8],
    strictness: Strictness,
    bindings: &mut Bindings,
) -> bool {
    match expected.framing {
        Framing::Length => msgpack::matches(&expected.bytes, actual, strictness.asks, bindings),
        Framing::Separator if strictness.escapes_matter => expected.bytes.matches(actual, bindings),
        Framing::Separator => json_text_matches(&expected.bytes, actual, bindings),
    }
}

/// What differs in an answer: expected and got, of the first of status, headers and body that does.
pub fn answer_difference(
    expected: &Answer,
    actual: &Response,
    bindings: &mut Bindings,
) -> Option<(String, String)> {
    if expected.status != actual.status {
        return Some((format!("status {}", expected.status), actual.summary()));
    }
    headers_difference(&expected.headers, actual).or_else(|| body_difference(expected, actual, bindings))
}

fn headers_difference(expected: &BTreeMap<String, String>, actual: &Response) -> Option<(String, String)> {
    let compared = |name: &str| !NOT_COMPARED.contains(&name);
    let hinted = actual.status == 404 && actual.body == NO_CONNECTION;
    let mut wanted: BTreeMap<String, &str> =
        expected.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.as_str())).collect();
    wanted.retain(|name, _| compared(name));
    for (name, value) in &actual.headers {
        let name = name.to_ascii_lowercase();
        if !compared(&name) || (hinted && name == HINT) {
            continue;
        }
        match wanted.remove(&name) {
            Some(wanted) if wanted == value => {}
            Some(wanted) => return Some((format!("header {name}: {wanted}"), format!("{name}: {value}"))),
            None => return Some((format!("no header {name}"), format!("{name}: {value}"))),
        }
    }
    let (name, value) = wanted.pop_first()?;
    Some((format!("header {name}: {value}"), "no such header".to_owned()))
}

fn body_difference(
    expected: &Answer,
    actual: &Response,
    bindings: &mut Bindings,
) -> Option<(String, String)> {
    let body = expected.body.as_ref()?;
    let same = if is_json(expected) {
        negotiation_matches(body, &actual.body, bindings)
    } else {
        records_match(body, &actual.body, bindings)
    };
    (!same).then(|| (format!("body {}", body.source()), show(&actual.body)))
}

fn is_json(answer: &Answer) -> bool {
    answer.headers.get("Content-Type").is_some_and(|value| value.starts_with("application/json"))
}

/// JSON records one after the other, or any other bytes.
fn records_match(expected: &Template, actual: &[u8], bindings: &mut Bindings) -> bool {
    let source = expected.source();
    if !source.ends_with('\u{1e}') {
        return expected.matches(actual, bindings);
    }
    let records: Vec<&str> = source.split_inclusive('\u{1e}').collect();
    let actual: Vec<&[u8]> = actual.split_inclusive(|byte| *byte == 0x1e).collect();
    records.len() == actual.len()
        && all_or_nothing(bindings, |trial| {
            records
                .iter()
                .zip(actual)
                .all(|(expected, actual)| json_text_matches(&Template::text(expected), actual, trial))
        })
}

/// The answer of negotiate: what is not served yet may be missing, what is offered must be as recorded.
fn negotiation_matches(expected: &Template, actual: &[u8], bindings: &mut Bindings) -> bool {
    let parsed = std::str::from_utf8(actual).ok().and_then(Json::parse);
    let (Some(Json::Object(mut expected)), Some(Json::Object(actual))) =
        (Json::parse(&expected.source()), parsed)
    else {
        return expected.matches(actual, bindings);
    };
    if !actual.contains_key("useStatefulReconnect") {
        expected.remove("useStatefulReconnect");
    }
    if let (Some(Json::Array(offers)), Some(Json::Array(offered))) =
        (expected.get_mut("availableTransports"), actual.get("availableTransports"))
    {
        offers.retain(|offer| {
            let served = NOT_SERVED.iter().all(|name| transport(offer) != Some(name));
            served || offered.iter().any(|offered| transport(offered) == transport(offer))
        });
    }
    all_or_nothing(bindings, |trial| {
        json_matches(&Json::Object(expected), &Json::Object(actual), false, trial)
    })
}

fn transport(offer: &Json) -> Option<&str> {
    let Json::Object(members) = offer else { return None };
    match members.get("transport")? {
        Json::Text(name) => Some(name),
        _ => None,
    }
}

/// Bytes for a person: text where they are text, else hexadecimal; long ones cut.
pub fn show(bytes: &[u8]) -> String {
    const LIMIT: usize = 400;
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.replace('\u{1e}', "␞"),
        Err(_) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
    };
    match text.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("{}... ({} bytes)", &text[..end], bytes.len()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "AbCdEfGhIjKlMnOpQrStUA";

    fn record(expected: &str, actual: &str, escapes_matter: bool) -> bool {
        let expected = Record { bytes: Template::text(expected), binary: false, framing: Framing::Separator };
        let strictness = Strictness { escapes_matter, asks: false };
        record_matches(&expected, actual.as_bytes(), strictness, &mut Bindings::default())
    }

    fn response(status: u16, headers: &[(&str, &str)], body: &str) -> Response {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Response { status, headers, body: body.as_bytes().to_vec() }
    }

    fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> Answer {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Answer { status, headers, body: Some(Template::text(body)) }
    }

    fn differs(expected: &Answer, actual: &Response) -> Option<(String, String)> {
        answer_difference(expected, actual, &mut Bindings::default())
    }

    #[test]
    fn a_record_is_its_json() {
        assert!(record("{\"type\":3,\"result\":1.0}\u{1e}", "{ \"result\":1, \"type\":3}\u{1e}", false));
        assert!(!record("{\"type\":3,\"result\":1}\u{1e}", "{\"type\":3,\"result\":2}\u{1e}", false));
        assert!(!record("{\"type\":3}\u{1e}", "{\"type\":3,\"result\":null}\u{1e}", false));
        assert!(!record("{\"type\":3}\u{1e}", "{\"type\":3}", false));
        assert!(!record("{\"type\":3}\u{1e}", "not JSON\u{1e}", false));
    }

    #[test]
    fn where_escapes_matter_it_is_its_bytes() {
        assert!(record("{\"r\":\"\\u007F\"}\u{1e}", "{\"r\":\"\u{7f}\"}\u{1e}", false));
        assert!(!record("{\"r\":\"\\u007F\"}\u{1e}", "{\"r\":\"\u{7f}\"}\u{1e}", true));
        assert!(!record("{\"r\":\"\\u007F\"}\u{1e}", "{\"r\":\"\\u007f\"}\u{1e}", true));
        assert!(record("{\"r\":\"\\u007F\"}\u{1e}", "{\"r\":\"\\u007F\"}\u{1e}", true));
    }

    #[test]
    fn sentences_of_dotnet_are_not_compared_but_the_exception_is() {
        let theirs = "{\"error\":\"E 'Move'. NullReferenceException: Object reference not set.\"}\u{1e}";
        assert!(record(theirs, "{\"error\":\"E 'Move'. NullReferenceException: null\"}\u{1e}", false));
        assert!(!record(theirs, "{\"error\":\"E 'Move'. Exception: null\"}\u{1e}", false));
        assert!(!record(theirs, "{\"error\":\"E 'Mov'. NullReferenceException: null\"}\u{1e}", false));
        let own = "{\"error\":\"E. HubException: Method does not exist.\"}\u{1e}";
        assert!(!record(own, "{\"error\":\"E. HubException: No such method.\"}\u{1e}", false));
        let empty = "{\"error\":\"E. HubException: Exception of type 'Microsoft.AspNetCore.SignalR.HubException' was thrown.\"}\u{1e}";
        assert!(record(empty, "{\"error\":\"E. HubException: nothing\"}\u{1e}", false));
        // Only an error may hold one.
        assert!(!record(
            "{\"result\":\"JsonException: a\"}\u{1e}",
            "{\"result\":\"JsonException: b\"}\u{1e}",
            false
        ));
    }

    #[test]
    fn ids_bind_across_records() {
        let mut bindings = Bindings::default();
        let mut matches = |expected: &str, actual: String| {
            let expected =
                Record { bytes: Template::text(expected), binary: false, framing: Framing::Separator };
            record_matches(&expected, actual.as_bytes(), Strictness::default(), &mut bindings)
        };
        assert!(matches("{\"result\":\"<connectionId:1>\"}\u{1e}", format!("{{\"result\":\"{ID}\"}}\u{1e}")));
        let gone = "{\"error\":\"Connection '<connectionId:1>' disconnected.\"}\u{1e}";
        assert!(matches(gone, format!("{{\"error\":\"Connection '{ID}' disconnected.\"}}\u{1e}")));
        let other = "BBBBBBBBBBBBBBBBBBBBBA";
        assert!(!matches(gone, format!("{{\"error\":\"Connection '{other}' disconnected.\"}}\u{1e}")));
    }

    #[test]
    fn headers_are_compared_but_those_of_the_web_server() {
        let expected = answer(404, &[("Content-Type", "text/plain"), ("Transfer-Encoding", "chunked")], "x");
        let got = |headers: &[(&str, &str)]| differs(&expected, &response(404, headers, "x"));
        assert_eq!(got(&[("content-type", "text/plain"), ("Date", "now"), ("content-length", "1")]), None);
        assert!(got(&[]).is_some());
        assert!(got(&[("content-type", "text/html")]).is_some());
        assert!(got(&[("content-type", "text/plain"), ("x-other", "1")]).is_some());
        assert!(got(&[("content-type", "text/plain"), ("x-signalr-hint", "h")]).is_some());
    }

    #[test]
    fn the_hint_belongs_to_an_unknown_connection_only() {
        let body = "No Connection with that ID";
        let expected = answer(404, &[], body);
        assert_eq!(differs(&expected, &response(404, &[("x-signalr-hint", "h")], body)), None);
    }

    #[test]
    fn negotiate_may_offer_less_but_nothing_else() {
        let all = r#"{"availableTransports":[{"transport":"WebSockets","transferFormats":["Text","Binary"]},{"transport":"ServerSentEvents","transferFormats":["Text"]}],"useStatefulReconnect":true}"#;
        let expected = answer(200, &[("Content-Type", "application/json")], all);
        let got = |body: &str| {
            differs(&expected, &response(200, &[("Content-Type", "application/json")], body)).is_none()
        };
        assert!(got(all));
        assert!(got(
            r#"{"availableTransports":[{"transport":"WebSockets","transferFormats":["Text","Binary"]}]}"#
        ));
        assert!(!got(r#"{"availableTransports":[{"transport":"WebSockets","transferFormats":["Text"]}]}"#));
        assert!(!got(r#"{"availableTransports":[]}"#));
        assert!(!got(
            r#"{"availableTransports":[{"transport":"WebSockets","transferFormats":["Text","Binary"]}],"useStatefulReconnect":false}"#
        ));
        assert!(!got(
            r#"{"availableTransports":[{"transport":"WebSockets","transferFormats":["Text","Binary"]}],"extra":1}"#
        ));
    }

    #[test]
    fn a_poll_holds_the_same_records() {
        let expected = answer(200, &[], "{}\u{1e}{\"type\":6}\u{1e}");
        assert_eq!(differs(&expected, &response(200, &[], "{}\u{1e}{ \"type\":6}\u{1e}")), None);
        assert!(differs(&expected, &response(200, &[], "{}\u{1e}")).is_some());
        assert!(differs(&expected, &response(204, &[], "")).is_some());
    }
}
