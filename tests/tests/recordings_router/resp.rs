//! A plain TCP connection to Redis that speaks RESP 2: SUBSCRIBE, UNSUBSCRIBE, PUBLISH, and what is pushed.

use std::collections::VecDeque;
use std::net::SocketAddr;

use backplane_tests::wiretap::PATIENCE;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// One connection.
pub(crate) struct Resp {
    stream: BufReader<TcpStream>,
    pushed: VecDeque<(String, Vec<u8>)>,
}

#[derive(Debug)]
enum Reply {
    Number(u64),
    Bytes(Vec<u8>),
    Array(Vec<Reply>),
}

impl Resp {
    pub(crate) async fn connect(server: SocketAddr) -> Self {
        let stream = TcpStream::connect(server).await.expect("Redis accepts");
        Self { stream: BufReader::new(stream), pushed: VecDeque::new() }
    }

    /// Publishes; how many got it.
    pub(crate) async fn publish(&mut self, channel: &str, payload: &[u8]) -> u64 {
        self.command(&[b"PUBLISH", channel.as_bytes(), payload]).await;
        match self.reply().await {
            Reply::Number(receivers) => receivers,
            other => panic!("PUBLISH answers {other:?}"),
        }
    }

    /// Subscribes; returns when all are confirmed.
    pub(crate) async fn subscribe(&mut self, channels: &[&str]) {
        self.change(b"SUBSCRIBE", "subscribe", channels).await;
    }

    pub(crate) async fn unsubscribe(&mut self, channels: &[&str]) {
        self.change(b"UNSUBSCRIBE", "unsubscribe", channels).await;
    }

    async fn change(&mut self, command: &[u8], confirmed: &str, channels: &[&str]) {
        let words: Vec<&[u8]> =
            [command].into_iter().chain(channels.iter().map(|name| name.as_bytes())).collect();
        self.command(&words).await;
        for channel in channels {
            loop {
                let (kind, on, payload) = self.push().await;
                if kind == confirmed {
                    assert_eq!(on, *channel);
                    break;
                }
                self.pushed.push_back((on, payload));
            }
        }
    }

    /// The next message.
    pub(crate) async fn next(&mut self) -> (String, Vec<u8>) {
        if let Some(pushed) = self.pushed.pop_front() {
            return pushed;
        }
        let (kind, channel, payload) = self.push().await;
        assert_eq!(kind, "message");
        (channel, payload)
    }

    async fn push(&mut self) -> (String, String, Vec<u8>) {
        let text = |bytes| String::from_utf8(bytes).expect("these names are UTF-8");
        let Reply::Array(parts) = self.reply().await else { panic!("a push is an array") };
        match <[Reply; 3]>::try_from(parts) {
            Ok([Reply::Bytes(kind), Reply::Bytes(channel), Reply::Bytes(payload)]) => {
                (text(kind), text(channel), payload)
            }
            Ok([Reply::Bytes(kind), Reply::Bytes(channel), Reply::Number(_)]) => {
                (text(kind), text(channel), Vec::new())
            }
            other => panic!("a push in an unknown form: {other:?}"),
        }
    }

    async fn command(&mut self, words: &[&[u8]]) {
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            request.extend(format!("${}\r\n", word.len()).as_bytes());
            request.extend(*word);
            request.extend(b"\r\n");
        }
        self.stream.write_all(&request).await.expect("Redis reads");
    }

    async fn reply(&mut self) -> Reply {
        timeout(PATIENCE, Box::pin(self.read())).await.expect("Redis has something to say")
    }

    async fn read(&mut self) -> Reply {
        let mut line = String::new();
        self.stream.read_line(&mut line).await.expect("Redis writes");
        let (kind, rest) = line.trim_end().split_at(1);
        let number: u64 = rest.parse().unwrap_or_else(|_| panic!("Redis says {line:?}"));
        let length = usize::try_from(number).expect("lengths are small");
        match kind {
            ":" => Reply::Number(number),
            "$" => {
                let mut bytes = vec![0; length + 2];
                self.stream.read_exact(&mut bytes).await.expect("Redis writes");
                bytes.truncate(length);
                Reply::Bytes(bytes)
            }
            "*" => {
                let mut parts = Vec::new();
                for _ in 0..length {
                    parts.push(Box::pin(self.read()).await);
                }
                Reply::Array(parts)
            }
            _ => panic!("Redis says {line:?}"),
        }
    }
}
