//! A client of our node, and what arrives at it: bytes, and the hub messages in them.

use backplane_core::{
    Backplane as _, CloseReason, ConnectionId, HubName, LocalConnection, OutboundLimits, OutboundReceiver,
    Protocol, Registration, Router, outbound,
};
use backplane_tests::wiretap::PATIENCE;
use bytes::Bytes;
use serde_json::Value;
use tokio::time::timeout;

use crate::describe;

/// A registered connection of our node.
#[derive(Debug)]
pub(crate) struct LocalClient {
    pub(crate) hub: HubName,
    pub(crate) id: ConnectionId,
    pub(crate) protocol: Protocol,
    pub(crate) registration: Registration,
    receiver: OutboundReceiver,
    /// What arrived and was not taken yet.
    stream: Vec<u8>,
}

/// One hub message as it arrived.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Arrival {
    /// Its bytes, with what frames them.
    pub(crate) wire: Bytes,
    pub(crate) what: Message,
}

/// What a hub message says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Message {
    Invocation { id: Option<String>, target: String, arguments: Value },
    Close,
    Unreadable,
}

impl LocalClient {
    pub(crate) async fn connect(
        router: &Router,
        id: &str,
        protocol: Protocol,
        user: Option<&str>,
    ) -> backplane_core::Result<Self> {
        let (sender, receiver) = outbound(OutboundLimits::default());
        let connection = LocalConnection {
            id: id.into(),
            user: user.map(Into::into),
            protocol: protocol.clone(),
            outbound: sender,
        };
        let registration = router.register(connection).await?;
        let (hub, id) = (router.hub_name().clone(), id.into());
        Ok(Self { hub, id, protocol, registration, receiver, stream: Vec::new() })
    }

    /// Reads until `mark`, which is everybody's last message, has arrived, and takes it off.
    pub(crate) async fn read_up_to(&mut self, mark: &[u8]) -> Result<(), CloseReason> {
        while !self.stream.ends_with(mark) {
            let item = timeout(PATIENCE, self.receiver.next()).await.expect("the mark arrives in time")?;
            self.stream.extend_from_slice(&item.bytes);
        }
        self.stream.truncate(self.stream.len() - mark.len());
        Ok(())
    }

    /// Reads until the queue ends.
    pub(crate) async fn read_to_end(&mut self) -> CloseReason {
        loop {
            match timeout(PATIENCE, self.receiver.next()).await.expect("the queue ends in time") {
                Ok(item) => self.stream.extend_from_slice(&item.bytes),
                Err(reason) => return reason,
            }
        }
    }

    /// The complete messages that arrived since the last call.
    pub(crate) fn take(&mut self) -> Vec<Arrival> {
        if self.protocol == Protocol::JSON {
            self.take_json()
        } else {
            take_messagepack(std::mem::take(&mut self.stream))
        }
    }

    /// What came behind an incomplete record stays for the next call, as in a client.
    fn take_json(&mut self) -> Vec<Arrival> {
        let complete = self.stream.iter().rposition(|byte| *byte == 0x1E).map_or(0, |last| last + 1);
        let records: Vec<u8> = self.stream.drain(..complete).collect();
        let records = records.split_inclusive(|byte| *byte == 0x1E);
        let arrival = |record: &[u8]| Arrival {
            wire: Bytes::copy_from_slice(record),
            what: serde_json::from_slice(&record[..record.len() - 1]).map_or(Message::Unreadable, of_json),
        };
        records.map(arrival).collect()
    }
}

fn take_messagepack(stream: Vec<u8>) -> Vec<Arrival> {
    let mut rest = Bytes::from(stream);
    let mut arrivals = Vec::new();
    while !rest.is_empty() {
        let length = framed_length(&rest).filter(|length| *length <= rest.len()).unwrap_or(rest.len());
        let wire = rest.split_to(length);
        let what = describe::frames(&wire).map_or(Message::Unreadable, of_messagepack);
        arrivals.push(Arrival { wire, what });
    }
    arrivals
}

/// The length of the first frame, its own length included.
fn framed_length(bytes: &[u8]) -> Option<usize> {
    let mut length = 0;
    for (group, byte) in bytes.iter().take(5).enumerate() {
        length |= usize::from(byte & 0x7F) << (7 * group);
        if byte & 0x80 == 0 {
            return Some(length + group + 1);
        }
    }
    None
}

fn of_json(mut record: Value) -> Message {
    match record["type"].as_u64() {
        Some(1) => Message::Invocation {
            id: record["invocationId"].as_str().map(str::to_owned),
            target: record["target"].as_str().expect("a target").to_owned(),
            arguments: record["arguments"].take(),
        },
        Some(7) => Message::Close,
        _ => Message::Unreadable,
    }
}

fn of_messagepack(mut frame: Value) -> Message {
    match frame[0].as_u64() {
        Some(1) => Message::Invocation {
            id: frame[2].as_str().map(str::to_owned),
            target: frame[3].as_str().expect("a target").to_owned(),
            arguments: frame[4].take(),
        },
        Some(7) => Message::Close,
        _ => Message::Unreadable,
    }
}

impl Message {
    /// Reads what a recording says of an arrival: `m("hi")`, `Answer("q") wants a result, invocation id x`.
    pub(crate) fn recorded(text: &str) -> Self {
        match text {
            "Close message" => return Self::Close,
            "bytes that are no hub message" => return Self::Unreadable,
            _ => {}
        }
        let (call, id) = match text.split_once(" wants a result, invocation id ") {
            Some((call, id)) => (call, Some(id.to_owned())),
            None => (text, None),
        };
        let parts = call.strip_suffix(')').and_then(|call| call.split_once('('));
        let (target, arguments) = parts.unwrap_or_else(|| panic!("an arrival in an unknown form: {text}"));
        let arguments = serde_json::from_str(&format!("[{arguments}]"))
            .unwrap_or_else(|error| panic!("the arguments of {text}: {error}"));
        Self::Invocation { id, target: target.to_owned(), arguments }
    }
}
