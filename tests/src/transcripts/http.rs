//! A tiny HTTP/1.1 client: one request, one answer, nothing done behind one's back.

use std::net::SocketAddr;

use tokio::time::Instant;

use super::compare::show;
use super::file::Request;
use super::socket::{Fill, Socket};
use super::template::Bindings;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// For instance 200.
    pub status: u16,
    /// In the order and spelling of the server.
    pub headers: Vec<(String, String)>,
    /// Without its transfer encoding.
    pub body: Vec<u8>,
}

impl Response {
    /// Status and body for a person.
    #[must_use]
    pub fn summary(&self) -> String {
        format!("status {} {}", self.status, show(&self.body)).trim_end().to_owned()
    }

    fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(header, _)| header.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// A request that was sent, whose answer has not been read.
#[derive(Debug)]
pub struct Exchange {
    socket: Socket,
    is_head: bool,
}

impl Exchange {
    /// Sends `request` on a connection of its own. `extra`: headers that belong to this kind of request.
    ///
    /// # Errors
    /// No connection, or a placeholder whose value is not known.
    pub async fn send(
        address: SocketAddr,
        request: &Request,
        extra: &[(&str, &str)],
        bindings: &Bindings,
    ) -> Result<Self, String> {
        let path = String::from_utf8_lossy(&request.path.fill(bindings)?).into_owned();
        let body = request.body.fill(bindings)?;
        let mut head = format!("{} {path} HTTP/1.1\r\nHost: {address}\r\n", request.method);
        let given = |name: &str| request.headers.iter().any(|(header, _)| header.eq_ignore_ascii_case(name));
        let mut add = |name: &str, value: &str| {
            head.push_str(name);
            head.push_str(": ");
            head.push_str(value);
            head.push_str("\r\n");
        };
        for (name, value) in extra {
            add(name, value);
        }
        for (name, value) in &request.headers {
            add(name, value);
        }
        let bodiless = matches!(request.method.as_str(), "GET" | "HEAD" | "OPTIONS") && body.is_empty();
        if !bodiless && !given("content-length") && !given("transfer-encoding") {
            add("Content-Length", &body.len().to_string());
        }
        head.push_str("\r\n");
        let mut socket = Socket::connect(address).await?;
        socket.send(&[head.as_bytes(), &body].concat()).await;
        Ok(Self { socket, is_head: request.method == "HEAD" })
    }

    /// Reads status line and headers. What follows stays in the socket.
    ///
    /// # Errors
    /// What came instead.
    pub async fn head(&mut self, deadline: Instant) -> Result<Response, String> {
        let end = loop {
            if let Some(end) = find(&self.socket.buffer, b"\r\n\r\n") {
                break end;
            }
            self.more(deadline).await?;
        };
        let head = self.socket.buffer.split_to(end + 4);
        let head = String::from_utf8_lossy(&head[..end]).into_owned();
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
        let status = status.ok_or_else(|| format!("no status line: {}", show(head.as_bytes())))?;
        let header =
            |line: &str| line.split_once(':').map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
        Ok(Response { status, headers: lines.filter_map(header).collect(), body: Vec::new() })
    }

    /// Reads the whole answer.
    ///
    /// # Errors
    /// What came instead.
    pub async fn answer(&mut self, deadline: Instant) -> Result<Response, String> {
        let mut response = self.head(deadline).await?;
        if self.is_head || response.status < 200 || matches!(response.status, 204 | 304) {
            return Ok(response);
        }
        let chunked =
            response.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
        let length = response.header("content-length").map(str::parse::<usize>);
        response.body = match length {
            _ if chunked => {
                let mut body = Vec::new();
                while let Some(chunk) = self.chunk(deadline).await? {
                    body.extend(chunk);
                }
                body
            }
            Some(Ok(length)) => {
                while self.socket.buffer.len() < length {
                    self.more(deadline).await?;
                }
                self.socket.buffer.split_to(length).to_vec()
            }
            Some(Err(_)) => return Err("a Content-Length that is no number".to_owned()),
            None => {
                while self.more(deadline).await.is_ok() {}
                self.socket.buffer.split().to_vec()
            }
        };
        Ok(response)
    }

    /// The next chunk of a chunked body; `None` after the last.
    ///
    /// # Errors
    /// What came instead.
    pub async fn chunk(&mut self, deadline: Instant) -> Result<Option<Vec<u8>>, String> {
        loop {
            if let Some((size, whole, start)) = chunk_at(&self.socket.buffer)?
                && self.socket.buffer.len() >= whole
            {
                let chunk = self.socket.buffer.split_to(whole);
                return Ok((size > 0).then(|| chunk[start..start + size].to_vec()));
            }
            self.more(deadline).await?;
        }
    }

    async fn more(&mut self, deadline: Instant) -> Result<(), String> {
        match self.socket.fill(deadline).await {
            Fill::More => Ok(()),
            Fill::End(end) => Err(format!("the end of TCP ({end:?}) after {:?}", show(&self.socket.buffer))),
            Fill::Nothing if self.socket.buffer.is_empty() => Err(NOTHING.to_owned()),
            Fill::Nothing => Err(format!("{NOTHING} after {:?}", show(&self.socket.buffer))),
        }
    }

    /// The connection, for what comes after the head.
    #[must_use]
    pub fn into_socket(self) -> Socket {
        self.socket
    }
}

/// What is said where nothing came before the deadline.
pub const NOTHING: &str = "nothing";

/// The chunk that `buffer` starts with, when its size line is there: its size, its bytes with everything around, and
/// where in them it starts.
fn chunk_at(buffer: &[u8]) -> Result<Option<(usize, usize, usize)>, String> {
    let Some(line) = find(buffer, b"\r\n") else { return Ok(None) };
    let digits = std::str::from_utf8(&buffer[..line]).unwrap_or_default();
    let digits = digits.split(';').next().unwrap_or_default().trim();
    let size = usize::from_str_radix(digits, 16).map_err(|_| format!("no chunk size: {digits:?}"))?;
    Ok(Some((size, line + 2 + size + 2, line + 2)))
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
