//! The client's side of a WebSocket that speaks the JSON hub protocol: just enough to connect and to read, cheaply.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::record::{LEN, SEPARATOR};
use crate::Result;

/// Connects and shakes hands, the hub's hands too. `query` follows the path of the hub.
pub(crate) async fn connect(address: SocketAddr, query: String) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let request = format!(
        "GET /chatHub{query} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let response = read_head(&mut stream).await?;
    if !response.starts_with("HTTP/1.1 101 ") {
        return Err(format!("the upgrade was answered with {response:?}").into());
    }
    stream.write_all(&masked(b"{\"protocol\":\"json\",\"version\":1}\x1e")).await?;
    let mut header = [0; 2];
    stream.read_exact(&mut header).await?;
    let mut answer = vec![0; usize::from(header[1])];
    stream.read_exact(&mut answer).await?;
    if header[0] != 0x81 || !answer.starts_with(b"{}\x1e") {
        return Err(format!("the handshake was answered with {:?}", String::from_utf8_lossy(&answer)).into());
    }
    Ok(stream)
}

/// Reads a head of HTTP; nothing may follow it at once.
pub(crate) async fn read_head(stream: &mut TcpStream) -> Result<String> {
    let mut head = Vec::with_capacity(512);
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > 4_096 || stream.read_buf(&mut head).await? == 0 {
            return Err(format!("no head of HTTP: {:?}", String::from_utf8_lossy(&head)).into());
        }
    }
    Ok(String::from_utf8(head)?)
}

/// A short text message, masked as a client must. The mask of zeros leaves the payload as it is.
fn masked(payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).ok().filter(|length| *length < 126).expect("a short payload");
    [&[0x81, 0x80 | length, 0, 0, 0, 0], payload].concat()
}

/// The header of an unmasked text message.
pub(crate) fn text_header(length: usize) -> Vec<u8> {
    let bytes = (length as u64).to_be_bytes();
    match length {
        0..126 => vec![0x81, bytes[7]],
        126..=0xffff => vec![0x81, 126, bytes[6], bytes[7]],
        _ => [&[0x81, 127], &bytes[..]].concat(),
    }
}

/// Reads the records from the bytes of a socket, wherever they were cut.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    /// The part of a message's header that has arrived.
    header: Vec<u8>,
    /// How much of the message's payload is still to come.
    left: u64,
    /// The part of a record that has arrived.
    begun: Vec<u8>,
}

impl Incoming {
    /// Reads on. Each record goes to `take`, with its separator.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        while let Some(first) = bytes.first() {
            if self.left > 0 {
                let here = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
                let (payload, rest) = bytes.split_at(here);
                self.left -= here as u64;
                self.records(payload, &mut take)?;
                bytes = rest;
            } else {
                self.header.push(*first);
                bytes = &bytes[1..];
                if let Some(length) = length(&self.header)? {
                    self.left = length;
                    self.header.clear();
                }
            }
        }
        Ok(())
    }

    fn records(&mut self, mut payload: &[u8], take: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        while !payload.is_empty() {
            // Nearly all records are of one length: one look finds the end. Should two others be of that length
            // together, `take` reads no record in them.
            let end = match payload.get(LEN - 1) {
                Some(&SEPARATOR) if self.begun.is_empty() && payload.starts_with(b"{\"type\":1,") => {
                    Some(LEN - 1)
                }
                _ => payload.iter().position(|byte| *byte == SEPARATOR),
            };
            let Some(end) = end else {
                self.begun.extend_from_slice(payload);
                return Ok(());
            };
            let (record, rest) = payload.split_at(end + 1);
            payload = rest;
            if self.begun.is_empty() {
                take(record)?;
            } else {
                self.begun.extend_from_slice(record);
                take(&self.begun)?;
                self.begun.clear();
            }
        }
        Ok(())
    }
}

/// The length of the payload behind this header, of a message with text; `None`: the header is not complete.
fn length(header: &[u8]) -> Result<Option<u64>> {
    let [kind, short, long @ ..] = header else {
        return Ok(None);
    };
    match kind & 0x0f {
        0..=2 => {}
        8 => return Err("the server closed the WebSocket".into()),
        other => return Err(format!("a WebSocket message of kind {other}").into()),
    }
    match short {
        0..126 => Ok(Some(u64::from(*short))),
        126 => Ok(long.try_into().ok().map(|long| u64::from(u16::from_be_bytes(long)))),
        127 => Ok(long.try_into().ok().map(u64::from_be_bytes)),
        _ => Err("the server masks its messages".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_found_wherever_the_bytes_are_cut() {
        let record = super::super::record::encoded(7, super::super::record::Text::Plain);
        let ping = b"{\"type\":6}\x1e".to_vec();
        let sent: Vec<Vec<u8>> = [
            vec![ping.clone(), record.to_vec()],
            vec![record.to_vec(); 3],
            vec![record.to_vec(); 600],
            vec![ping],
        ]
        .concat();
        let messages: [&[Vec<u8>]; 4] = [&sent[..2], &sent[2..5], &sent[5..605], &sent[605..]];
        let stream: Vec<u8> =
            messages.iter().map(|m| m.concat()).flat_map(|m| [text_header(m.len()), m].concat()).collect();
        for piece in [1, 2, 3, 127, 128, 129, 1_000, stream.len()] {
            let (mut incoming, mut read) = (Incoming::default(), Vec::new());
            for piece in stream.chunks(piece) {
                let take = |record: &[u8]| {
                    read.push(record.to_vec());
                    Ok(())
                };
                incoming.feed(piece, take).unwrap();
            }
            assert_eq!(read, sent, "{piece}");
        }
    }

    #[test]
    fn a_closed_or_masked_stream_is_an_error() {
        for bytes in [&[0x88, 2, 3, 0xe8][..], &[0x81, 0x83, 0, 0, 0, 0]] {
            assert!(Incoming::default().feed(bytes, |_| Ok(())).is_err());
        }
    }
}
