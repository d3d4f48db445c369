//! Negotiation: which version, and what the client is told (spec: Microsoft's TransportProtocols.md, versions 0 and 1).

use backplane_core::ConnectionId;
use serde::Serialize;

use super::websocket;
use crate::mount::query;
use crate::options::Transports;

/// The highest version that is spoken; a client that asks for more is answered with this one.
const HIGHEST: u32 = 1;

/// Why a client gets an error instead of a connection, in its answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Its version is no number of 32 bits.
    NotANumber,
    /// Its version is below the lowest that is served.
    TooLow(i32),
}

/// The version that both speak: the one of the query (`negotiateVersion`, 0 when missing), at most 1.
pub(crate) fn version(query: &str, lowest: u32) -> Result<u32, Refusal> {
    let mut values = query::values(query, "negotiateVersion");
    let asked = match values.next() {
        None => 0,
        Some(text) if values.next().is_none() => {
            let blank = |c: char| matches!(c, ' ' | '\t'..='\r');
            text.trim_matches(blank).parse::<i32>().map_err(|_| Refusal::NotANumber)?
        }
        Some(_) => return Err(Refusal::NotANumber),
    };
    match u32::try_from(asked) {
        Ok(version) if version >= lowest => Ok(version.min(HIGHEST)),
        _ => Err(Refusal::TooLow(asked)),
    }
}

/// What a client is told of its new connection, as JSON. The members stand in the order of ASP.NET Core.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Answer<'a> {
    /// The version that both speak.
    pub(crate) negotiate_version: u32,
    /// Public: other clients may learn it.
    pub(crate) connection_id: &'a str,
    /// Secret: whoever knows it can take the connection. In version 0 the id is used for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) connection_token: Option<&'a str>,
    available_transports: &'static [Offer],
}

/// A transport and what it carries.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Offer {
    transport: &'static str,
    transfer_formats: &'static [&'static str],
}

const WEB_SOCKETS: &[Offer] = &[Offer { transport: websocket::NAME, transfer_formats: &["Text", "Binary"] }];

impl<'a> Answer<'a> {
    pub(crate) fn new(
        version: u32,
        connection: &'a ConnectionId,
        token: &'a str,
        served: Transports,
    ) -> Self {
        Self {
            negotiate_version: version,
            connection_id: connection.as_str(),
            connection_token: (version > 0).then_some(token),
            available_transports: if served.web_sockets { WEB_SOCKETS } else { &[] },
        }
    }

    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("it consists of text and numbers")
    }
}

impl Refusal {
    /// The answer; its status is 200.
    pub(crate) fn to_json(&self) -> String {
        let error = match self {
            Self::NotANumber => "The client requested a non-integer protocol version.".to_owned(),
            Self::TooLow(version) => format!(
                "The client requested version '{version}', but the server does not support this version."
            ),
        };
        serde_json::json!({ "error": error }).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_recorded() {
        for (query, lowest, expected) in [
            ("", 0, Ok(0)),
            ("negotiateVersion=0", 0, Ok(0)),
            ("negotiateVersion=1", 0, Ok(1)),
            ("negotiateVersion=99", 0, Ok(1)),
            ("NEGOTIATEversion=1", 0, Ok(1)),
            ("negotiateVersion=%201", 0, Ok(1)),
            ("negotiateVersion=+1", 0, Ok(1)),
            ("negotiateVersion=%2B1", 0, Ok(1)),
            ("a=b&negotiateVersion=1&useAck=true", 0, Ok(1)),
            ("negotiateVersion=", 0, Err(Refusal::NotANumber)),
            ("negotiateVersion", 0, Err(Refusal::NotANumber)),
            ("negotiateVersion=abc", 0, Err(Refusal::NotANumber)),
            ("negotiateVersion=1.0", 0, Err(Refusal::NotANumber)),
            ("negotiateVersion=4294967297", 0, Err(Refusal::NotANumber)),
            ("negotiateVersion=1&negotiateVersion=1", 0, Err(Refusal::NotANumber)),
            ("negotiateVersion=-1", 0, Err(Refusal::TooLow(-1))),
            ("", 1, Err(Refusal::TooLow(0))),
            ("negotiateVersion=0", 1, Err(Refusal::TooLow(0))),
            ("negotiateVersion=2", 1, Ok(1)),
        ] {
            assert_eq!(version(query, lowest), expected, "{query:?} with at least {lowest}");
        }
    }

    #[test]
    fn answers_byte_by_byte() {
        let id = ConnectionId::from("id");
        let served = Transports::default();
        assert_eq!(
            Answer::new(1, &id, "token", served).to_json(),
            r#"{"negotiateVersion":1,"connectionId":"id","connectionToken":"token","availableTransports":[{"transport":"WebSockets","transferFormats":["Text","Binary"]}]}"#
        );
        assert_eq!(
            Answer::new(0, &id, "id", served).to_json(),
            r#"{"negotiateVersion":0,"connectionId":"id","availableTransports":[{"transport":"WebSockets","transferFormats":["Text","Binary"]}]}"#
        );
        assert_eq!(
            Answer::new(1, &id, "token", Transports { web_sockets: false }).to_json(),
            r#"{"negotiateVersion":1,"connectionId":"id","connectionToken":"token","availableTransports":[]}"#
        );
        assert_eq!(
            Refusal::TooLow(-1).to_json(),
            r#"{"error":"The client requested version '-1', but the server does not support this version."}"#
        );
        assert_eq!(
            Refusal::NotANumber.to_json(),
            r#"{"error":"The client requested a non-integer protocol version."}"#
        );
    }
}
