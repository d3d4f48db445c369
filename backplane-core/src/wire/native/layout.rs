//! What encoder and decoder must agree on: offsets and numbers of the tables in `wire/native/mod.rs`.

use crate::id::NodeId;

pub(super) const VERSION: u8 = 1;

const ORIGIN: usize = 2;
const SEQ: usize = ORIGIN + NodeId::LEN;
const PREV: usize = SEQ + size_of::<u64>();

/// Length of the header; the body starts here.
pub(super) const HEADER_LEN: usize = PREV + size_of::<u64>();

/// What a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Message = 1,
    Direct = 2,
    ChangeGroup = 3,
    Ack = 4,
    Invoke = 5,
    CancelInvoke = 6,
    Complete = 7,
    Abort = 8,
    Beat = 9,
}

impl Kind {
    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Message,
            2 => Self::Direct,
            3 => Self::ChangeGroup,
            4 => Self::Ack,
            5 => Self::Invoke,
            6 => Self::CancelInvoke,
            7 => Self::Complete,
            8 => Self::Abort,
            9 => Self::Beat,
            _ => return None,
        })
    }
}

/// Flags of [`Kind::Message`].
pub(super) mod message {
    pub(in super::super) const EXCEPT: u8 = 1;
    pub(in super::super) const HUB: u8 = 2;
    pub(in super::super) const NAME: u8 = 4;
}

/// Flags of [`Kind::Abort`].
pub(super) mod abort {
    pub(in super::super) const ALLOW_RECONNECT: u8 = 1;
    pub(in super::super) const REASON: u8 = 2;
}

/// Flags of [`Kind::Beat`].
pub(super) mod beat {
    pub(in super::super) const LEAVING: u8 = 1;
}

/// Membership in [`Kind::ChangeGroup`].
pub(super) mod membership {
    pub(in super::super) const LEAVE: u8 = 0;
    pub(in super::super) const JOIN: u8 = 1;
}

/// Outcomes of [`Kind::Ack`].
pub(super) mod outcome {
    pub(in super::super) const DONE: u8 = 0;
    pub(in super::super) const NOT_FOUND: u8 = 1;
    pub(in super::super) const FAILED: u8 = 2;
}

/// Endings of [`Kind::Complete`].
pub(super) mod completion {
    pub(in super::super) const VOID: u8 = 0;
    pub(in super::super) const VALUE: u8 = 1;
    pub(in super::super) const ERROR: u8 = 2;
    pub(in super::super) const DISCONNECTED: u8 = 3;
    pub(in super::super) const NOT_FOUND: u8 = 4;
    pub(in super::super) const UNREADABLE: u8 = 5;
}

/// Protocols. New codes cannot be added within version 1: every name can travel as text.
pub(super) mod protocol {
    pub(in super::super) const NAMED: u8 = 0;
    pub(in super::super) const JSON: u8 = 1;
    pub(in super::super) const MESSAGEPACK: u8 = 2;
}

/// A header whose seq and prev wait for [`stamp`].
pub(super) fn header(kind: Kind, origin: NodeId) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[0] = VERSION;
    header[1] = kind as u8;
    header[ORIGIN..SEQ].copy_from_slice(origin.as_bytes());
    header
}

/// Writes seq and prev; leaves alone what is too short to be a frame.
pub(super) fn stamp(frame: &mut [u8], seq: u64, prev: u64) {
    if let Some(header) = frame.first_chunk_mut::<HEADER_LEN>() {
        header[SEQ..PREV].copy_from_slice(&seq.to_be_bytes());
        header[PREV..].copy_from_slice(&prev.to_be_bytes());
    }
}

/// Origin, seq and prev of a header.
pub(super) fn origin_seq_prev(header: &[u8; HEADER_LEN]) -> (NodeId, u64, u64) {
    let number =
        |at: usize| u64::from_be_bytes(header[at..at + 8].try_into().expect("eight bytes were sliced"));
    let origin = header[ORIGIN..SEQ].try_into().expect("six bytes were sliced");
    (NodeId::from_bytes(origin), number(SEQ), number(PREV))
}
