//! How a frame travels into the stream, and what the stream answers.

use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;
use async_nats::{Client, HeaderMap, Subject};
use backplane_core::{Error, ErrorKind, Reach, Result};
use bytes::Bytes;

use crate::errors::lost;

/// What replies and identities begin with; the number of the frame follows.
#[derive(Clone, Debug)]
pub(super) struct Names {
    /// Where acknowledgements arrive.
    pub(super) acks: String,
    /// What identifies a message for the server.
    pub(super) message_id: String,
}

/// Hands frames to the connection, and empty messages to the subjects `words`; waits while it cannot take more.
pub(super) async fn write(
    client: Client,
    words: Vec<Subject>,
    frames: Vec<(u64, Subject, Bytes)>,
    names: Names,
) -> Result<()> {
    for subject in words {
        client.publish(subject, Bytes::new()).await.map_err(lost)?;
    }
    for (number, subject, frame) in frames {
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, format!("{}.{number}", names.message_id));
        let reply = format!("{}.{number}", names.acks);
        client.publish_with_reply_and_headers(subject, reply, headers, frame).await.map_err(lost)?;
    }
    Ok(())
}

/// What an acknowledgement says.
pub(super) fn answer(payload: &Bytes) -> Result<Reach> {
    // As the server writes it; reading all of the JSON would take longer than sending the frame.
    if payload.starts_with(b"{\"stream\":") && !payload.windows(8).any(|window| window == b"\"error\":") {
        return Ok(Reach::Unknown);
    }
    let reply = match serde_json::from_slice::<Response<PublishAck>>(payload) {
        Ok(Response::Ok(_)) => return Ok(Reach::Unknown),
        Ok(Response::Err { error }) => error,
        Err(error) => return Err(Error::new(ErrorKind::Malformed, "publish").with_source(error)),
    };
    let kind = match reply.error_code() {
        ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM => ErrorKind::TooLarge,
        ErrorCode::STREAM_SEALED => ErrorKind::Denied,
        // States that pass: no leader, no room.
        _ => ErrorKind::Unavailable,
    };
    Err(Error::new(kind, "publish").with_context("the stream did not take it").with_source(reply))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledgement_is_told_from_a_refusal_and_from_nonsense() {
        let kind =
            |text: &'static str| answer(&Bytes::from_static(text.as_bytes())).map_err(|error| error.kind());
        assert_eq!(kind(r#"{"stream":"s", "seq":7}"#), Ok(Reach::Unknown));
        assert_eq!(kind(r#"{"stream":"s","seq":7,"duplicate":true}"#), Ok(Reach::Unknown));
        for (code, expected) in
            [("10054", ErrorKind::TooLarge), ("10109", ErrorKind::Denied), ("10077", ErrorKind::Unavailable)]
        {
            let error = format!(r#""error":{{"code":400,"err_code":{code},"description":"no"}}"#);
            for text in [format!("{{{error}}}"), format!(r#"{{"stream":"s","seq":0,{error}}}"#)] {
                assert_eq!(answer(&Bytes::from(text.clone())).unwrap_err().kind(), expected, "{text}");
            }
        }
        assert_eq!(kind("-ERR"), Err(ErrorKind::Malformed));
    }
}
