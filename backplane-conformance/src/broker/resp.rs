//! As much of Redis' protocol (RESP 2) as it takes to ask a server one question.

use std::net::SocketAddr;
use std::time::Duration;

use backplane_core::{Error, ErrorKind, Result};
use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

/// How long one question may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// The longest string and the longest array that is believed.
const MAX_LEN: i64 = 64 << 20;

/// What a server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Nothing.
    Nil,
    /// A number.
    Integer(i64),
    /// A string of any bytes.
    Text(Bytes),
    /// Several answers.
    Array(Vec<Reply>),
}

impl Reply {
    /// The answer as text: strings as they are (what is not UTF-8 replaced), numbers in decimal, the elements of an
    /// array one a line.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Nil => String::new(),
            Self::Integer(number) => number.to_string(),
            Self::Text(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Self::Array(replies) => replies.iter().map(Self::text).collect::<Vec<_>>().join("\n"),
        }
    }

    /// The elements of an array; none of anything else.
    #[must_use]
    pub fn elements(&self) -> &[Reply] {
        match self {
            Self::Array(replies) => replies,
            _ => &[],
        }
    }
}

/// Connects, sends `commands` in one write and returns the answer to the last.
pub(super) async fn ask(server: SocketAddr, commands: &[Vec<&[u8]>]) -> Result<Reply> {
    let asked = async {
        let mut stream = BufReader::new(TcpStream::connect(server).await?);
        let mut request = Vec::new();
        for command in commands {
            request.extend_from_slice(format!("*{}\r\n", command.len()).as_bytes());
            for argument in command {
                request.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
                request.extend_from_slice(argument);
                request.extend_from_slice(b"\r\n");
            }
        }
        stream.write_all(&request).await?;
        let mut last = Reply::Nil;
        for _ in commands {
            last = read(&mut stream).await?;
        }
        Ok(last)
    };
    match tokio::time::timeout(DEADLINE, asked).await {
        Ok(answer) => answer.map_err(Failure::into_error),
        Err(_) => {
            Err(Error::new(ErrorKind::Timeout, "command").with_context(format!("no answer from {server}")))
        }
    }
}

enum Failure {
    Io(std::io::Error),
    Refused(String),
    Malformed(String),
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

impl Failure {
    fn into_error(self) -> Error {
        match self {
            Self::Io(error) => Error::new(ErrorKind::Unavailable, "command").with_source(error),
            Self::Refused(text) => Error::new(ErrorKind::Denied, "command").with_context(text),
            Self::Malformed(line) => Error::new(ErrorKind::Malformed, "command")
                .with_context(format!("unexpected answer {line:?}")),
        }
    }
}

fn read(stream: &mut BufReader<TcpStream>) -> BoxFuture<'_, Result<Reply, Failure>> {
    Box::pin(async move {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Err(Failure::Io(std::io::ErrorKind::UnexpectedEof.into()));
        }
        let line = line.trim_end();
        let malformed = || Failure::Malformed(line.to_owned());
        let (kind, rest) = line.split_at_checked(1).ok_or_else(malformed)?;
        let number = || rest.parse::<i64>().map_err(|_| malformed());
        match kind {
            "+" => Ok(Reply::Text(Bytes::copy_from_slice(rest.as_bytes()))),
            "-" => Err(Failure::Refused(rest.to_owned())),
            ":" => Ok(Reply::Integer(number()?)),
            "$" | "*" if number()? < 0 => Ok(Reply::Nil),
            "$" | "*" if number()? > MAX_LEN => Err(malformed()),
            "$" => {
                let mut text = vec![0; usize::try_from(number()?).map_err(|_| malformed())? + 2];
                stream.read_exact(&mut text).await?;
                text.truncate(text.len() - 2);
                Ok(Reply::Text(text.into()))
            }
            "*" => {
                let mut replies = Vec::new();
                for _ in 0..number()? {
                    replies.push(read(stream).await?);
                }
                Ok(Reply::Array(replies))
            }
            _ => Err(malformed()),
        }
    })
}
