//! A tiny WebSocket client: frames by hand, good and bad, and the hub records in those of the server.

use std::collections::VecDeque;

use bytes::{Buf as _, BytesMut};
use tokio::time::Instant;

use super::file::{Ending, Framing, TcpEnd};
use super::msgpack;
use super::socket::{Fill, Socket};

/// Any key will do: what it protects from is not here.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// What a wait ended with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Got {
    /// A hub record, and whether it began in a binary frame.
    Record(Vec<u8>, bool),
    /// The end of the WebSocket, by a close frame or by that of TCP.
    End(Ending),
    /// Something that no server may send.
    Fault(String),
    /// Nothing before the deadline; the bytes of an unfinished record, if any.
    Nothing(Vec<u8>),
}

/// A WebSocket after its upgrade.
#[derive(Debug)]
pub struct WebSocket {
    socket: Socket,
    /// Payload of data frames that was not taken, and how much of it came under which opcode.
    payload: BytesMut,
    opcodes: VecDeque<(usize, u8)>,
    /// The opcode of the message that is not finished.
    unfinished: Option<u8>,
    ended: Option<Ending>,
    fault: Option<String>,
    /// Whether a close frame of the server is answered.
    answers_close: bool,
    close_sent: bool,
}

/// A frame as bytes. Control of every bit: the server has to refuse bad ones.
#[must_use]
pub fn frame(opcode: u8, last: bool, reserved: bool, masked: bool, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![u8::from(last) << 7 | u8::from(reserved) << 6 | opcode];
    let mask_bit = u8::from(masked) << 7;
    match payload.len() {
        length @ ..126 => bytes.push(mask_bit | length as u8),
        length @ 126..0x1_0000 => {
            bytes.push(mask_bit | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
        length => {
            bytes.push(mask_bit | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    if masked {
        bytes.extend(MASK);
        bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    } else {
        bytes.extend(payload);
    }
    bytes
}

impl WebSocket {
    /// Takes over a connection whose upgrade was accepted.
    #[must_use]
    pub fn new(socket: Socket, answers_close: bool) -> Self {
        Self {
            socket,
            payload: BytesMut::new(),
            opcodes: VecDeque::new(),
            unfinished: None,
            ended: None,
            fault: None,
            answers_close,
            close_sent: false,
        }
    }

    /// Sends bytes that [`frame`] made.
    pub async fn send(&mut self, opcode: u8, frame: &[u8]) {
        self.close_sent |= opcode == CLOSE;
        self.socket.send(frame).await;
    }

    /// The next hub record, or what came instead.
    pub async fn record(&mut self, framing: Framing, deadline: Instant) -> Got {
        loop {
            if let Some(got) = self.take(framing) {
                return got;
            }
            if let Some(fault) = &self.fault {
                return Got::Fault(fault.clone());
            }
            if let Some(ending) = &self.ended {
                return Got::End(ending.clone());
            }
            if !self.read_frame().await && !self.fill(deadline).await {
                return Got::Nothing(self.payload.to_vec());
            }
        }
    }

    /// How TCP ended, after the WebSocket did.
    pub async fn tcp_end(&mut self, deadline: Instant) -> Option<TcpEnd> {
        loop {
            match self.socket.fill(deadline).await {
                Fill::End(end) => return Some(end),
                Fill::Nothing => return None,
                Fill::More => self.socket.buffer.clear(),
            }
        }
    }

    /// Ends TCP from this side.
    pub async fn end(self, how: TcpEnd) {
        self.socket.end(how).await;
    }

    /// What has come and was not asked for.
    pub async fn leftover(&mut self, deadline: Instant) -> Option<Got> {
        let framing = match self.opcodes.front() {
            Some((_, 2)) => Framing::Length,
            _ => Framing::Separator,
        };
        match self.record(framing, deadline).await {
            Got::Nothing(rest) if rest.is_empty() => None,
            got => Some(got),
        }
    }

    async fn fill(&mut self, deadline: Instant) -> bool {
        match self.socket.fill(deadline).await {
            Fill::More => true,
            Fill::Nothing => false,
            Fill::End(end) => {
                self.ended = Some(Ending::Tcp(end));
                true
            }
        }
    }

    fn take(&mut self, framing: Framing) -> Option<Got> {
        let length = match framing {
            Framing::Separator => self.payload.iter().position(|byte| *byte == 0x1e)? + 1,
            Framing::Length => msgpack::split(&self.payload)?.0.len(),
        };
        let binary = self.opcodes.front().is_some_and(|(_, opcode)| *opcode == 2);
        let record = self.payload.split_to(length).to_vec();
        let mut left = length;
        while let Some((size, _)) = self.opcodes.front_mut() {
            if *size > left {
                *size -= left;
                break;
            }
            left -= *size;
            self.opcodes.pop_front();
        }
        Some(Got::Record(record, binary))
    }

    /// Takes one frame out of the bytes that came; `false` when there is none.
    async fn read_frame(&mut self) -> bool {
        let buffer = &self.socket.buffer;
        let (Some(&first), Some(&second)) = (buffer.first(), buffer.get(1)) else { return false };
        let (head, length) = match second & 0x7f {
            126 => match buffer.get(2..4) {
                Some(bytes) => (4, bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte))),
                None => return false,
            },
            127 => match buffer.get(2..10) {
                Some(bytes) => (10, bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte))),
                None => return false,
            },
            length => (2, usize::from(length)),
        };
        if buffer.len() < head + length {
            return false;
        }
        self.socket.buffer.advance(head);
        let payload = self.socket.buffer.split_to(length);
        if second & 0x80 != 0 {
            self.fault = Some("a masked frame".to_owned());
        } else if first & 0x70 != 0 {
            self.fault = Some(format!("a frame with reserved bits, {first:02x}"));
        } else {
            self.accept(first & 0x0f, first & 0x80 != 0, &payload).await;
        }
        true
    }

    async fn accept(&mut self, opcode: u8, last: bool, payload: &[u8]) {
        match (opcode, self.unfinished) {
            (1 | 2, None) | (0, Some(_)) => {
                let message = self.unfinished.unwrap_or(opcode);
                self.payload.extend_from_slice(payload);
                self.opcodes.push_back((payload.len(), message));
                self.unfinished = (!last).then_some(message);
            }
            (CLOSE, _) => self.closed(payload).await,
            (PING, _) => self.socket.send(&frame(PONG, true, false, true, payload)).await,
            (PONG, _) => {}
            (opcode, _) => self.fault = Some(format!("a frame with opcode {opcode} here")),
        }
    }

    async fn closed(&mut self, payload: &[u8]) {
        let code = payload.get(..2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
        let reason = String::from_utf8_lossy(payload.get(2..).unwrap_or_default()).into_owned();
        self.ended = Some(Ending::Frame(code, reason));
        if self.answers_close && !self.close_sent {
            self.close_sent = true;
            self.socket.send(&frame(CLOSE, true, false, true, payload)).await;
        }
    }
}
