//! A TCP connection whose every wait has a deadline.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::file::TcpEnd;

/// The longest wait for a connection or for the kernel to take what is sent.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);

/// What a wait for bytes ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// There are more bytes in the buffer.
    More,
    /// TCP has ended; nothing will come.
    End(TcpEnd),
    /// The deadline has passed.
    Nothing,
}

/// A TCP connection and what came on it and was not taken.
#[derive(Debug)]
pub struct Socket {
    stream: TcpStream,
    /// What came and was not taken.
    pub buffer: BytesMut,
    end: Option<TcpEnd>,
    /// A reset was told to a `send`; the operating system tells it once.
    reset: bool,
}

impl Socket {
    /// Connects.
    ///
    /// # Errors
    /// The operating system's, or a deadline of 10 s.
    pub async fn connect(address: SocketAddr) -> Result<Self, String> {
        let connecting = timeout_at(Instant::now() + WRITE_DEADLINE, TcpStream::connect(address)).await;
        let stream = connecting.map_err(|_| "not connected in time")?.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        Ok(Self { stream, buffer: BytesMut::new(), end: None, reset: false })
    }

    /// Sends all of `bytes`. A server that has gone away is no error here: the answer that does not come shows it.
    pub async fn send(&mut self, bytes: &[u8]) {
        let sending = timeout_at(Instant::now() + WRITE_DEADLINE, self.stream.write_all(bytes));
        if let Ok(Err(error)) = sending.await {
            self.reset |= error.kind() == ErrorKind::ConnectionReset;
        }
    }

    /// Waits for more bytes. What is there already is read, also when `deadline` has passed.
    pub async fn fill(&mut self, deadline: Instant) -> Fill {
        if let Some(end) = self.end {
            return Fill::End(end);
        }
        let read = match timeout_at(deadline, self.stream.read_buf(&mut self.buffer)).await {
            Err(_) => return Fill::Nothing,
            Ok(read) => read,
        };
        let end = match read {
            Ok(0) if self.reset => TcpEnd::Rst,
            Ok(0) => TcpEnd::Fin,
            Ok(_) => return Fill::More,
            Err(error) if error.kind() == ErrorKind::Interrupted => return Fill::Nothing,
            Err(_) => TcpEnd::Rst,
        };
        self.end = Some(end);
        Fill::End(end)
    }

    /// Ends TCP from this side, in order or by a reset.
    pub async fn end(mut self, how: TcpEnd) {
        match how {
            TcpEnd::Rst => {
                // Bytes that were never read make it a reset too, should the option be refused.
                let _ = self.stream.set_zero_linger();
            }
            TcpEnd::Fin => {
                // What is unread would turn the end into a reset.
                let mut rest = [0; 4096];
                while matches!(self.stream.try_read(&mut rest), Ok(1..)) {}
                let _ = self.stream.shutdown().await;
            }
        }
    }
}
