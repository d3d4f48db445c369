//! What a client's bytes mean as WebSocket frames. No I/O; nothing is assembled.

use std::io::Cursor;

use bytes::{Bytes, BytesMut};
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};

use super::utf8::Utf8;

/// The longest header of a frame.
const MAX_HEADER: usize = 14;
/// The longest payload of a control frame.
const MAX_CONTROL: u64 = 125;

/// Reads frames as they arrive and holds only what is unfinished: part of a header, of a character, of a control frame.
#[derive(Default)]
pub(super) struct Reader {
    header: [u8; MAX_HEADER],
    /// How much of `header` has arrived.
    header_len: u8,
    /// The frame whose payload is arriving.
    frame: Option<Frame>,
    /// The message whose last frame has not ended.
    message: Option<Message>,
    utf8: Utf8,
    /// The payload of a control frame so far.
    control: Vec<u8>,
}

/// A frame whose header was read.
#[derive(Clone, Copy, Debug)]
struct Frame {
    opcode: OpCode,
    is_final: bool,
    /// Bytes of its payload that have not arrived.
    left: u64,
    /// The mask, turned so that its first byte is for the next byte of the payload.
    mask: [u8; 4],
}

/// What a message says it consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    Text,
    Binary,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Some of a message was appended to the input; maybe nothing, when a frame was empty.
    Data,
    /// A ping with this payload.
    Ping(Bytes),
    /// The client's close frame, well formed.
    Close,
}

/// A rule that the client broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Violation {
    /// What the client is told.
    pub(super) code: CloseCode,
    /// What the log is told.
    pub(super) what: &'static str,
}

const fn broken(what: &'static str) -> Violation {
    Violation { code: CloseCode::Protocol, what }
}

const NOT_TEXT: Violation = Violation { code: CloseCode::Invalid, what: "a text message that is not UTF-8" };

impl Reader {
    /// Reads on in `bytes`, which becomes shorter, until something is found or all of it was taken (`None`).
    ///
    /// # Errors
    /// A [`Violation`]; the reader is of no use afterwards.
    pub(super) fn next(
        &mut self,
        bytes: &mut &[u8],
        input: &mut BytesMut,
    ) -> Result<Option<Found>, Violation> {
        loop {
            if self.frame.is_none() {
                match self.read_header(bytes)? {
                    Some(frame) => self.frame = Some(frame),
                    None => return Ok(None),
                }
            }
            let frame = self.frame.as_mut().expect("it was just made sure of");
            let here = usize::try_from(frame.left).unwrap_or(usize::MAX).min(bytes.len());
            if here == 0 && frame.left > 0 {
                return Ok(None);
            }
            let (piece, rest) = bytes.split_at(here);
            *bytes = rest;
            frame.left -= here as u64;
            let frame = *frame;
            if let Some(frame) = &mut self.frame {
                frame.mask.rotate_left(here % 4);
            }
            let ends = frame.left == 0;
            if ends {
                self.frame = None;
            }
            match frame.opcode {
                OpCode::Data(_) => {
                    self.read_data(piece, frame, ends, input)?;
                    return Ok(Some(Found::Data));
                }
                OpCode::Control(control) => {
                    let start = self.control.len();
                    self.control.extend_from_slice(piece);
                    unmask(&mut self.control[start..], frame.mask);
                    if ends && let Some(found) = self.read_control(control)? {
                        return Ok(Some(found));
                    }
                }
            }
        }
    }

    /// Completes the header of the next frame and checks it.
    fn read_header(&mut self, bytes: &mut &[u8]) -> Result<Option<Frame>, Violation> {
        let before = usize::from(self.header_len);
        let tried = (MAX_HEADER - before).min(bytes.len());
        self.header[before..before + tried].copy_from_slice(&bytes[..tried]);
        let mut cursor = Cursor::new(&self.header[..before + tried]);
        let parsed = FrameHeader::parse(&mut cursor).map_err(|_| broken("an unknown opcode"))?;
        let Some((header, length)) = parsed else {
            *bytes = &bytes[tried..];
            self.header_len = u8::try_from(before + tried).expect("it is shorter than a header");
            return Ok(None);
        };
        let taken = usize::try_from(cursor.position()).expect("it is within a header") - before;
        *bytes = &bytes[taken..];
        self.header_len = 0;
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(broken("a reserved bit"));
        }
        let Some(mask) = header.mask else {
            return Err(broken("a frame without a mask"));
        };
        if i64::try_from(length).is_err() {
            return Err(broken("an impossible length"));
        }
        let message = match header.opcode {
            OpCode::Control(_) if length > MAX_CONTROL => {
                return Err(broken("a control frame that is too long"));
            }
            OpCode::Control(_) if !header.is_final => return Err(broken("a fragmented control frame")),
            OpCode::Data(Data::Continue) if self.message.is_none() => {
                return Err(broken("a continuation of nothing"));
            }
            OpCode::Data(Data::Text | Data::Binary) if self.message.is_some() => {
                return Err(broken("a new message inside another"));
            }
            OpCode::Data(Data::Text) => Some(Message::Text),
            OpCode::Data(Data::Binary) => Some(Message::Binary),
            OpCode::Data(Data::Continue) | OpCode::Control(_) => self.message,
            OpCode::Data(Data::Reserved(_)) => return Err(broken("an unknown opcode")),
        };
        self.message = message;
        Ok(Some(Frame { opcode: header.opcode, is_final: header.is_final, left: length, mask }))
    }

    /// Appends a piece of a message.
    fn read_data(
        &mut self,
        piece: &[u8],
        frame: Frame,
        ends: bool,
        input: &mut BytesMut,
    ) -> Result<(), Violation> {
        let start = input.len();
        input.extend_from_slice(piece);
        unmask(&mut input[start..], frame.mask);
        let message_ends = ends && frame.is_final;
        if self.message == Some(Message::Text)
            && !(self.utf8.accepts(&input[start..]) && (!message_ends || self.utf8.is_complete()))
        {
            input.truncate(start);
            return Err(NOT_TEXT);
        }
        if message_ends {
            self.message = None;
        }
        Ok(())
    }

    /// Understands a control frame whose payload is complete.
    fn read_control(&mut self, control: Control) -> Result<Option<Found>, Violation> {
        let payload = std::mem::take(&mut self.control);
        match control {
            Control::Ping => Ok(Some(Found::Ping(payload.into()))),
            Control::Pong => Ok(None),
            Control::Close => {
                check_close(&payload)?;
                Ok(Some(Found::Close))
            }
            Control::Reserved(_) => Err(broken("an unknown opcode")),
        }
    }
}

/// The body of a close frame is empty, or a code and a text.
fn check_close(payload: &[u8]) -> Result<(), Violation> {
    match payload {
        [] => Ok(()),
        [_] => Err(broken("a close frame with half a code")),
        [high, low, reason @ ..] => {
            if !CloseCode::from(u16::from_be_bytes([*high, *low])).is_allowed() {
                return Err(broken("a close frame with a code that may not be sent"));
            }
            std::str::from_utf8(reason)
                .map(drop)
                .map_err(|_| broken("a close frame whose reason is not UTF-8"))
        }
    }
}

/// Takes the mask off. (tungstenite does it only for whole frames.)
fn unmask(bytes: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, tail) = bytes.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in tail.iter_mut().zip(mask.into_iter().cycle()) {
        *byte ^= mask;
    }
}

#[cfg(test)]
mod tests;
