//! The handshake: the first record of each connection, always JSON, by which a client says what it speaks.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::json::{self, Broken, Scanner};
use super::{HubProtocol, ProtocolError, TransferFormat};

/// The highest version of a hub protocol that is served; all below are, 0 and negative ones too. Version 2 says that
/// the client understands the messages of stateful reconnect.
const MAX_VERSION: i32 = 2;

/// What a client is told when its handshake took too long, was too long, or came while the server shut down.
pub(crate) const CANCELED: &str = "Handshake was canceled.";

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// The hub protocol's name as the client wrote it.
    pub(crate) protocol: String,
    /// The version of the protocol.
    pub(crate) version: i32,
}

/// No request could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HandshakeError {
    /// The record is longer than allowed.
    TooLarge,
    /// The record is no handshake request, with what .NET calls the error and its text.
    Malformed { name: &'static str, message: String },
}

impl HandshakeError {
    /// What the client is told; the reason only with detailed errors.
    pub(crate) fn text(&self, detailed: bool) -> String {
        match self {
            Self::TooLarge => CANCELED.to_owned(),
            Self::Malformed { name, message } if detailed => {
                format!("An unexpected error occurred during connection handshake. {name}: {message}")
            }
            Self::Malformed { .. } => "An unexpected error occurred during connection handshake.".to_owned(),
        }
    }

    fn invalid(message: impl Into<String>) -> Self {
        Self::Malformed { name: "InvalidDataException", message: message.into() }
    }
}

impl From<Broken> for HandshakeError {
    fn from(broken: Broken) -> Self {
        Self::Malformed { name: "JsonReaderException", message: broken.to_string() }
    }
}

/// Takes the request off `input`, and nothing behind its separator; `None`: it is not complete yet. `max` bounds it in
/// bytes, separator included.
///
/// # Errors
/// [`HandshakeError`]: the connection is refused with its text.
pub(crate) fn next_request(
    input: &mut BytesMut,
    searched: &mut usize,
    max: usize,
) -> Result<Option<Request>, HandshakeError> {
    match json::next_record(input, searched, max) {
        Ok(Some(record)) => read(&record).map(Some),
        Ok(None) => Ok(None),
        Err(ProtocolError::RecordTooLarge(_)) => Err(HandshakeError::TooLarge),
        Err(ProtocolError::Malformed(reason)) => Err(HandshakeError::invalid(reason)),
    }
}

/// Member names are case-sensitive, repeated ones the last wins, unknown ones and text behind the object are ignored.
fn read(record: &[u8]) -> Result<Request, HandshakeError> {
    let mut scanner = Scanner::new(record);
    if !scanner.enter_object()? {
        return Err(HandshakeError::invalid(format!(
            "Unexpected JSON Token Type '{}'. Expected a JSON Object.",
            scanner.kind()?
        )));
    }
    let (mut protocol, mut version) = (None, None);
    while let Some(name) = scanner.next_member()? {
        let value = scanner.value()?;
        match &*name {
            b"protocol" if value.starts_with(b"\"") => protocol = Some(json::text(value)?.into_owned()),
            b"protocol" => {
                return Err(HandshakeError::invalid("Expected 'protocol' to be of type String."));
            }
            b"version" if json::is_number(value) => {
                version = Some(json::integer::<i32>(value).ok_or(HandshakeError::Malformed {
                    name: "FormatException",
                    message: "'version' is no 32-bit integer.".to_owned(),
                })?);
            }
            b"version" => {
                return Err(HandshakeError::invalid("Expected 'version' to be of type Number."));
            }
            _ => {}
        }
    }
    let missing = |name: &str| {
        HandshakeError::invalid(format!(
            "Missing required property '{name}'. Message content: {}",
            String::from_utf8_lossy(record)
        ))
    };
    Ok(Request {
        protocol: protocol.ok_or_else(|| missing("protocol"))?,
        version: version.ok_or_else(|| missing("version"))?,
    })
}

/// Finds the protocol that a client asks for among those of the hub, in any case; `carries` says whether the transport
/// can carry a format.
///
/// # Errors
/// Why not, for the client.
pub(crate) fn choose(
    request: &Request,
    protocols: &[Arc<dyn HubProtocol>],
    carries: impl Fn(TransferFormat) -> bool,
) -> Result<Arc<dyn HubProtocol>, String> {
    let Request { protocol: name, version } = request;
    let protocol = protocols
        .iter()
        .find(|known| known.protocol().as_str().eq_ignore_ascii_case(name))
        .ok_or_else(|| format!("The protocol '{name}' is not supported."))?;
    if *version > MAX_VERSION {
        return Err(format!("The server does not support version {version} of the '{name}' protocol."));
    }
    let format = protocol.transfer_format();
    if !carries(format) {
        return Err(format!(
            "Cannot use the '{}' protocol on the current transport. The transport does not support '{}' transfer format.",
            protocol.protocol().as_str(),
            format.as_str()
        ));
    }
    Ok(protocol.clone())
}

/// The answer to a request that is granted.
pub(crate) fn accepted() -> Bytes {
    Bytes::from_static(b"{}\x1e")
}

/// The answer to a request that is refused. The transport closes behind it.
pub(crate) fn refused(error: &str) -> Bytes {
    let mut record = BytesMut::with_capacity(error.len() + 16);
    record.extend_from_slice(b"{\"error\":");
    json::write_string(error, &mut record);
    record.extend_from_slice(b"}\x1e");
    record.freeze()
}

#[cfg(test)]
mod tests {
    use super::super::Json;
    use super::*;

    fn ask(record: &str) -> Result<Request, HandshakeError> {
        let mut input = BytesMut::from(record);
        let request = next_request(&mut input, &mut 0, 32 << 10)?.expect("the record is complete");
        assert!(input.is_empty());
        Ok(request)
    }

    /// What the server of the recordings answers: `detailed` errors or not, `json` only.
    fn answer(record: &str, detailed: bool) -> String {
        let protocols: [Arc<dyn HubProtocol>; 1] = [Arc::new(Json)];
        let answer = match ask(record) {
            Ok(request) => match choose(&request, &protocols, |format| format == TransferFormat::Text) {
                Ok(protocol) => {
                    assert_eq!(protocol.protocol(), Json.protocol());
                    accepted()
                }
                Err(text) => refused(&text),
            },
            Err(error) => refused(&error.text(detailed)),
        };
        String::from_utf8(answer.to_vec()).unwrap()
    }

    #[test]
    fn requests_that_are_granted() {
        for record in [
            "{\"protocol\":\"json\",\"version\":1}\x1e",
            "{\"protocol\":\"json\",\"version\":0}\x1e",
            "{\"protocol\":\"json\",\"version\":2}\x1e",
            "{\"protocol\":\"json\",\"version\":-1}\x1e",
            "{\"protocol\":\"JSon\",\"version\":1}\x1e",
            "{\"x\":{\"protocol\":[1,{\"version\":9}]},\"version\":1,\"protocol\":\"json\",\"type\":0}\x1e",
            "{\"protocol\":\"x\",\"version\":9,\"protocol\":\"json\",\"version\":1}\x1e",
            "{\"protocol\":\"json\",\"version\":1}xyz\x1e",
            " {\n \"protocol\" : \"json\" , \"version\":1 }\r\n \x1e",
        ] {
            assert_eq!(answer(record, false), "{}\x1e", "{record}");
        }
    }

    #[test]
    fn requests_that_are_no_requests() {
        for record in [
            "[]\x1e",
            "\u{feff}{\"protocol\":\"json\",\"version\":1}\x1e",
            "{}\x1e",
            "{\"type\":1,\"invocationId\":\"1\",\"target\":\"Sum\",\"arguments\":[1,2]}\x1e",
            "{\"protocol\":\"json\"}\x1e",
            "hello\x1e",
            "\x1e",
            "{\"protocol\":null,\"version\":1}\x1e",
            "{\"protocol\":\"json\",\"version\":1.0}\x1e",
            "{\"protocol\":\"json\",\"version\":1.5}\x1e",
            "{\"protocol\":\"json\",\"version\":null}\x1e",
            "{\"protocol\":\"json\",\"version\":\"1\"}\x1e",
            "{\"protocol\":\"json\",\"version\":4294967297}\x1e",
        ] {
            assert_eq!(
                answer(record, false),
                "{\"error\":\"An unexpected error occurred during connection handshake.\"}\x1e",
                "{record}"
            );
        }
    }

    #[test]
    fn with_detailed_errors_the_client_is_told_why() {
        for (record, detail) in [
            ("[]\x1e", "Unexpected JSON Token Type 'Array'. Expected a JSON Object."),
            (
                "{\"version\":1}\x1e",
                "Missing required property 'protocol'. Message content: {\\\"version\\\":1}",
            ),
            (
                "{\"protocol\":\"json\"}\x1e",
                "Missing required property 'version'. Message content: {\\\"protocol\\\":\\\"json\\\"}",
            ),
            ("{\"protocol\":null,\"version\":1}\x1e", "Expected 'protocol' to be of type String."),
            ("{\"protocol\":\"json\",\"version\":\"1\"}\x1e", "Expected 'version' to be of type Number."),
        ] {
            assert_eq!(
                answer(record, true),
                format!(
                    "{{\"error\":\"An unexpected error occurred during connection handshake. \
                     InvalidDataException: {detail}\"}}\x1e"
                )
            );
        }
    }

    #[test]
    fn refusals_name_what_was_asked_for() {
        for (record, text) in [
            ("{\"protocol\":\"nope\",\"version\":1}\x1e", "The protocol 'nope' is not supported."),
            (
                "{\"protocol\":\"a\\\"b<é>'\\u0001\",\"version\":1}\x1e",
                "The protocol 'a\\\"b<é>'\\u0001' is not supported.",
            ),
            (
                "{\"protocol\":\"messagepack\",\"version\":1}\x1e",
                "The protocol 'messagepack' is not supported.",
            ),
            (
                "{\"protocol\":\"json\",\"version\":3}\x1e",
                "The server does not support version 3 of the 'json' protocol.",
            ),
        ] {
            assert_eq!(answer(record, true), format!("{{\"error\":\"{text}\"}}\x1e"));
        }
    }

    #[test]
    fn a_format_that_the_transport_cannot_carry_is_refused() {
        let request = Request { protocol: "json".into(), version: 1 };
        let protocols: [Arc<dyn HubProtocol>; 1] = [Arc::new(Json)];
        assert_eq!(
            choose(&request, &protocols, |_| false).unwrap_err(),
            "Cannot use the 'json' protocol on the current transport. \
             The transport does not support 'Text' transfer format."
        );
    }

    #[test]
    fn what_follows_the_request_stays() {
        let mut input = BytesMut::from("{\"protocol\":\"json\",");
        assert_eq!(next_request(&mut input, &mut 0, 1024), Ok(None));
        input.extend_from_slice(b"\"version\":1}\x1e{\"type\":6}\x1e");
        let request = Request { protocol: "json".into(), version: 1 };
        assert_eq!(next_request(&mut input, &mut 0, 1024), Ok(Some(request)));
        assert_eq!(input, "{\"type\":6}\x1e");
    }

    #[test]
    fn a_request_over_the_limit_is_canceled() {
        for record in [
            format!("{{\"protocol\":\"json\",\"version\":1,\"x\":\"{}\"}}\x1e", "y".repeat(2_000)),
            "x".repeat(2_000),
        ] {
            let error = next_request(&mut BytesMut::from(&record[..]), &mut 0, 1024).unwrap_err();
            assert_eq!(error, HandshakeError::TooLarge);
            assert_eq!(error.text(true), "Handshake was canceled.");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(mut record: Vec<u8>) {
            record.push(0x1E);
            let _ = next_request(&mut BytesMut::from(&record[..]), &mut 0, 1024);
        }
    }
}
