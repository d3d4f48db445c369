//! How a call of a hub method ends: what ours came to, what the recording says, whether that is the same.

use backplane_core::{ClientResult, Protocol};
use serde_json::Value;

use crate::describe;

/// What a hub method came to.
#[derive(Debug, PartialEq)]
pub(crate) enum Outcome {
    /// It returned nothing.
    Done,
    /// What the asked client answered.
    Answer(ClientResult),
    /// The connection is not there, or left; the sentence about it.
    NotFound(String),
    /// Its deadline passed.
    TimedOut,
}

/// What a recorded completion says, where it says it without the client's bytes.
pub(crate) enum Recorded<'a> {
    /// The method returned nothing.
    Nothing,
    /// It returned a value; as a text where it is one, as it is written in JSON otherwise.
    Value(Option<Value>),
    /// The client reported an error.
    ClientError(&'a str),
    /// The client completed without value and without error; a typed hub makes an exception of it.
    NoValue,
    /// The value was not of the type that the hub method wanted: the hub server's business, the value arrived.
    WrongType,
    /// The connection does not exist or left.
    NotFound(String),
    /// The question was given up.
    Canceled,
    /// Something else went wrong.
    Failed,
}

impl<'a> Recorded<'a> {
    /// Reads what stands behind `completion 3: `. `kind`: the type that `AskAs` was told to want.
    pub(crate) fn read(text: &'a str, kind: Option<&str>) -> Self {
        let Some(result) = text.strip_prefix("result ") else { return Self::Failed };
        if result == "null" {
            return Self::Nothing;
        }
        let inner = result.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        let inner = inner.unwrap_or_else(|| panic!("a result in an unknown form: {result}"));
        if let Some(exception) = inner.strip_prefix("exception Microsoft.AspNetCore.SignalR.HubException: ") {
            return match exception {
                "Invocation canceled by the server." => Self::Canceled,
                "Connection disconnected." => Self::NotFound("disconnected".to_owned()),
                "Exception of type 'Microsoft.AspNetCore.SignalR.HubException' was thrown." => Self::NoValue,
                _ if exception.starts_with("Error trying to deserialize result to ") => Self::WrongType,
                client => Self::ClientError(client),
            };
        }
        if let Some(exception) = inner.strip_prefix("exception System.IO.IOException: Connection ") {
            return Self::NotFound(exception.trim_end_matches('.').to_owned());
        }
        let Some(kind) = kind else { return Self::Value(Some(inner.into())) };
        let value = inner.strip_prefix("value ").unwrap_or_else(|| panic!("an unknown answer: {inner}"));
        Self::Value(match (kind, value.split_once(' ')) {
            (_, None) if value == "null" => Some(Value::Null),
            ("string", Some(("String", text))) => Some(text.into()),
            ("int", Some(("Int32", number))) => Some(Value::from(number.parse::<i64>().expect("a number"))),
            // How .NET prints points and bytes says nothing about what was sent.
            ("point", Some(("Point", _))) | ("bytes", Some(("String", _))) => None,
            _ => panic!("an unknown answer: {value}"),
        })
    }
}

/// Whether a call ended as recorded; `sent`: what the asked client answered.
pub(crate) fn agrees(outcome: &Outcome, recorded: &Recorded<'_>, sent: Option<&ClientResult>) -> bool {
    let as_sent = |result: &ClientResult| Some(result) == sent;
    match (outcome, recorded) {
        (Outcome::Done, Recorded::Nothing) | (Outcome::TimedOut, Recorded::Canceled) => true,
        (Outcome::NotFound(context), Recorded::NotFound(wanted)) => context.ends_with(wanted.as_str()),
        (Outcome::Answer(result), Recorded::NoValue) => *result == ClientResult::Void && as_sent(result),
        (Outcome::Answer(result), Recorded::ClientError(text)) => {
            *result == ClientResult::error(*text) && as_sent(result)
        }
        (Outcome::Answer(result), Recorded::Value(value)) => {
            as_sent(result) && value.as_ref().is_none_or(|value| value_of(result).as_ref() == Some(value))
        }
        (Outcome::Answer(result), Recorded::WrongType) => {
            as_sent(result) && matches!(result, ClientResult::Value { .. })
        }
        _ => false,
    }
}

/// A client's value, by readers of our own.
pub(crate) fn value_of(result: &ClientResult) -> Option<Value> {
    match result {
        ClientResult::Value { protocol, value } if *protocol == Protocol::JSON => {
            serde_json::from_slice(value).ok()
        }
        ClientResult::Value { value, .. } => describe::whole(value),
        _ => None,
    }
}
