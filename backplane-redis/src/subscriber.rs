//! The subscribing connection: reads deliveries straight from its buffer, as long as the inbox has room.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use backplane_core::{Delivery, Error, ErrorKind, LossReason, Result, Topic};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::AsyncWrite;
use tokio::time::Instant;

use crate::commands::Commands;
use crate::heartbeat::{Beat, Heartbeat};
use crate::inbox::Inbox;
use crate::publisher::{poll_shutdown, silent};
use crate::resp::{self, Parsed, Value};
use crate::shared::{Call, Shared, Verb};
use crate::socket::Socket;

/// Bytes read at once: some 300 small messages.
const INPUT: usize = 64 << 10;
/// Reads per turn of the task, so that the other connection and the reader of the inbox get their turn.
const READS: usize = 4;
/// Commands are packed while fewer bytes than this wait to be written.
const WRITE: usize = 64 << 10;
/// A frame from this size on that is not all here yet is collected where it will stay.
const DIRECT: usize = 16 << 10;
/// First allocation for a collected frame; it doubles as bytes arrive, so that a length alone allocates little.
const FIRST: usize = 256 << 10;

pub(crate) struct Subscriber {
    socket: Socket,
    shared: Arc<Shared>,
    inbox: Arc<Inbox>,
    pub(crate) heartbeat: Heartbeat,
    pub(crate) commands: Commands,
    /// Before `connect` returned nothing is delivered: nobody could take it, and waiting for room in the inbox would
    /// keep the confirmations behind it from us. No promise covers what was published before.
    delivering: bool,
    /// Reading waits for room in the inbox.
    resting: bool,
    /// A frame is not taken beyond this.
    max_frame: usize,
    input: BytesMut,
    body: Body,
    run: Vec<Delivery>,
    out: Vec<u8>,
    written: usize,
    unflushed: bool,
}

/// The frame in whose midst the stream is.
enum Body {
    None,
    /// Into `frame`, until it and its CRLF are `total` bytes.
    Collect {
        topic: Topic,
        frame: Vec<u8>,
        total: usize,
    },
    /// That many more bytes are thrown away.
    Skip {
        left: usize,
    },
}

impl Subscriber {
    pub(crate) fn new(
        socket: Socket,
        shared: Arc<Shared>,
        inbox: Arc<Inbox>,
        heartbeat: Heartbeat,
        max_frame: usize,
    ) -> Self {
        Self {
            socket,
            shared,
            inbox,
            heartbeat,
            commands: Commands::default(),
            delivering: false,
            resting: false,
            max_frame,
            input: BytesMut::with_capacity(2 * INPUT),
            body: Body::None,
            run: Vec::new(),
            out: Vec::new(),
            written: 0,
            unflushed: false,
        }
    }

    pub(crate) fn accept(&mut self, call: Call) {
        self.commands.accept(call, &self.shared);
    }

    /// From now on frames are delivered.
    pub(crate) fn deliver(&mut self) {
        self.delivering = true;
    }

    /// From now on frames are thrown away, and room in the inbox does not matter.
    pub(crate) fn discard(&mut self) {
        self.delivering = false;
    }

    /// Writes and reads what can be without waiting. Whether to be called again at once.
    pub(crate) fn drive(&mut self, cx: &mut Context<'_>) -> Result<bool> {
        if let Poll::Ready(Err(error)) = self.poll_write(cx) {
            return Err(broken(error));
        }
        for _ in 0..READS {
            if self.delivering && !self.inbox.has_room() {
                self.resting = true;
                return Ok(false);
            }
            if self.resting {
                // Its clock has rested with us.
                self.resting = false;
                self.heartbeat.heard(Instant::now());
            }
            match self.poll_fill(cx) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Err(error)) => return Err(broken(error)),
                Poll::Ready(Ok(())) => {
                    self.heartbeat.heard(Instant::now());
                    let read = self.read();
                    self.inbox.push(&mut self.run);
                    read?;
                }
            }
        }
        Ok(true)
    }

    /// Ready when all is written.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.written < self.out.len() {
                self.written += ready!(Pin::new(&mut self.socket).poll_write(cx, &self.out[self.written..]))?;
                self.unflushed = true;
                continue;
            }
            self.out.clear();
            self.out.shrink_to(2 * WRITE);
            self.written = 0;
            while self.out.len() < WRITE && self.commands.pack(&mut self.out) {}
            if self.out.is_empty() {
                break;
            }
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.socket).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads into the buffer, or straight into the frame that is being collected.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Body::Collect { frame, total, .. } = &mut self.body
            && self.input.is_empty()
        {
            if frame.len() == frame.capacity() {
                frame.reserve_exact(frame.capacity().min(*total - frame.len()));
            }
            let room = (frame.capacity() - frame.len()).min(*total - frame.len());
            ready!(self.socket.poll_fill(cx, &mut frame.limit(room)))?;
        } else {
            self.input.reserve(INPUT);
            ready!(self.socket.poll_fill(cx, &mut self.input))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Takes apart what was read.
    fn read(&mut self) -> Result<()> {
        let mut input = std::mem::take(&mut self.input);
        let mut at = 0;
        let result = loop {
            if !matches!(self.body, Body::None) {
                match self.continue_body(&input[at..]) {
                    Ok((taken, done)) => {
                        at += taken;
                        if !done {
                            break Ok(());
                        }
                    }
                    Err(error) => break Err(error),
                }
            }
            match resp::parse(&input[at..]) {
                Ok(Parsed::Value(Value::Message { channel, frame }, length)) => {
                    if self.delivering
                        && let Some(topic) = self.commands.topics.find(channel)
                    {
                        // Copied: a slice would keep the whole read buffer alive.
                        let frame = Bytes::copy_from_slice(frame);
                        self.run.push(Delivery::Frame { topic, frame, position: None });
                    }
                    at += length;
                }
                Ok(Parsed::Value(value, length)) => {
                    if let Err(error) = self.reply(&value) {
                        break Err(error);
                    }
                    at += length;
                }
                Ok(Parsed::Begun { channel, start, length }) if length >= DIRECT => {
                    self.body = self.begin_body(channel, length);
                    at += start;
                }
                Ok(Parsed::Begun { .. } | Parsed::Incomplete) => break Ok(()),
                Err(error) => break Err(Error::new(ErrorKind::Unavailable, "link").with_source(error)),
            }
        };
        input.advance(at);
        self.input = input;
        result
    }

    fn reply(&mut self, value: &Value<'_>) -> Result<()> {
        match value {
            Value::Subscribed => self.commands.confirmed(Verb::Subscribe, &self.shared),
            Value::Unsubscribed => self.commands.confirmed(Verb::Unsubscribe, &self.shared),
            Value::Pong => {
                self.heartbeat.answered();
                self.commands.pong()
            }
            Value::Error(line) => {
                if self.commands.refused(line, &self.shared)? {
                    self.heartbeat.answered();
                }
                Ok(())
            }
            Value::Push | Value::Message { .. } => Ok(()),
            Value::Integer(_) | Value::Other => Err(Error::new(ErrorKind::Unavailable, "link")
                .with_context("the server sent a reply that no command asked for")),
        }
    }

    fn begin_body(&mut self, channel: &[u8], length: usize) -> Body {
        // With its CRLF.
        let total = length + 2;
        match self.commands.topics.find(channel) {
            Some(topic) if self.delivering => {
                if length > self.max_frame {
                    self.run
                        .push(Delivery::Lost { topics: Some(vec![topic]), reason: LossReason::Unreadable });
                    return Body::Skip { left: total };
                }
                Body::Collect { topic, frame: Vec::with_capacity(total.min(FIRST)), total }
            }
            _ => Body::Skip { left: total },
        }
    }

    /// Gives the frame in whose midst we are what is in the buffer. How much that was, and whether the frame is over.
    fn continue_body(&mut self, input: &[u8]) -> Result<(usize, bool)> {
        match &mut self.body {
            Body::None => Ok((0, true)),
            Body::Skip { left } => {
                let taken = input.len().min(*left);
                *left -= taken;
                let done = *left == 0;
                if done {
                    self.body = Body::None;
                }
                Ok((taken, done))
            }
            Body::Collect { topic, frame, total } => {
                let taken = input.len().min(*total - frame.len());
                frame.extend_from_slice(&input[..taken]);
                if frame.len() < *total {
                    return Ok((taken, false));
                }
                if !frame.ends_with(b"\r\n") {
                    return Err(Error::new(ErrorKind::Unavailable, "link")
                        .with_context("a message does not end where it says"));
                }
                frame.truncate(*total - 2);
                let frame = Bytes::from(std::mem::take(frame));
                self.run.push(Delivery::Frame { topic: topic.clone(), frame, position: None });
                self.body = Body::None;
                Ok((taken, true))
            }
        }
    }

    /// Asks whether the server lives, if it is time; an error if it is dead. While we do not read, its clock rests.
    pub(crate) fn beat(&mut self, now: Instant) -> Result<()> {
        if self.resting {
            self.heartbeat.heard(now);
            return Ok(());
        }
        match self.heartbeat.beat(now) {
            Beat::Wait => Ok(()),
            Beat::Ask => {
                self.commands.ping(&mut self.out);
                Ok(())
            }
            Beat::Dead => Err(silent("subscribing")),
        }
    }

    /// Ends our direction of the connection and awaits that the server ends its own: then it has freed it.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        poll_shutdown(&mut self.socket, &mut self.input, cx)
    }
}

fn broken(error: io::Error) -> Error {
    let context = if error.kind() == io::ErrorKind::UnexpectedEof {
        "the server ended the subscribing connection (stopped, killed the client, or cut a slow subscriber: \
         client-output-buffer-limit)"
    } else {
        "the subscribing connection broke"
    };
    Error::new(ErrorKind::Unavailable, "link").with_context(context).with_source(error)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::time::Duration;

    use futures::StreamExt;
    use proptest::prelude::*;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::inbox::Inbound;

    const MAX_FRAME: usize = 100_000;

    /// A subscriber that counts `room` as subscribed, and the other end of its connection.
    async fn subscriber() -> (Subscriber, Inbound, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (peer, _) = listener.accept().await.unwrap();
        let shared = Arc::new(Shared::new(Duration::from_secs(5)));
        let inbox = Inbox::new(16 << 20);
        let heartbeat = Heartbeat::new(Duration::from_secs(10), Instant::now());
        let inbound = Inbound::new(inbox.clone(), shared.clone());
        let mut subscriber = Subscriber::new(Socket::Plain(socket), shared, inbox, heartbeat, MAX_FRAME);
        subscriber.commands.topics.claim(vec![Topic::from("room")]);
        subscriber.deliver();
        (subscriber, inbound, peer)
    }

    fn message(kind: char, channel: &str, frame: &[u8]) -> Vec<u8> {
        let head =
            format!("{kind}3\r\n$7\r\nmessage\r\n${}\r\n{channel}\r\n${}\r\n", channel.len(), frame.len());
        [head.as_bytes(), frame, b"\r\n"].concat()
    }

    fn arrivals(run: &mut Vec<Delivery>) -> Vec<Option<Bytes>> {
        run.drain(..)
            .map(|delivery| match delivery {
                Delivery::Frame { topic, frame, position: None } if topic == Topic::from("room") => {
                    Some(frame)
                }
                Delivery::Lost { topics: Some(topics), reason: LossReason::Unreadable }
                    if topics == [Topic::from("room")] =>
                {
                    None
                }
                other => panic!("{other:?}"),
            })
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn any_split_of_the_stream_gives_the_same_frames(
            frames in proptest::collection::vec((0_usize..6, any::<bool>()), 1..12),
            pieces in proptest::collection::vec(1_usize..40_000, 1..40),
        ) {
            let sizes = [0, 1, 300, DIRECT, MAX_FRAME, MAX_FRAME + 1];
            let mut stream = Vec::new();
            let mut expected = Vec::new();
            for (number, (size, resp3)) in frames.into_iter().enumerate() {
                let frame = vec![u8::try_from(number).unwrap(); sizes[size]];
                let kind = if resp3 { '>' } else { '*' };
                stream.extend(message(kind, "room", &frame));
                stream.extend(message(kind, "elsewhere", &frame));
                expected.push((frame.len() <= MAX_FRAME).then(|| Bytes::from(frame)));
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let arrived = runtime.block_on(async {
                let (mut subscriber, _inbound, _peer) = subscriber().await;
                let mut rest = &stream[..];
                let mut pieces: VecDeque<_> = pieces.into();
                let mut arrived = Vec::new();
                while !rest.is_empty() {
                    let length = pieces.pop_front().unwrap();
                    pieces.push_back(length);
                    let (piece, after) = rest.split_at(length.min(rest.len()));
                    subscriber.input.extend_from_slice(piece);
                    subscriber.read().unwrap();
                    arrived.extend(arrivals(&mut subscriber.run));
                    rest = after;
                }
                arrived
            });
            prop_assert_eq!(arrived, expected);
        }
    }

    #[tokio::test]
    async fn a_length_alone_allocates_little() {
        let (mut subscriber, _inbound, _peer) = subscriber().await;
        subscriber.max_frame = 512 << 20;
        subscriber.input.extend_from_slice(b"*3\r\n$7\r\nmessage\r\n$4\r\nroom\r\n$500000000\r\nabc");
        subscriber.read().unwrap();
        let Body::Collect { frame, total, .. } = &subscriber.body else { panic!("it is collected") };
        assert_eq!((frame.as_slice(), *total), (&b"abc"[..], 500_000_002));
        assert!(frame.capacity() <= FIRST);
    }

    #[tokio::test]
    async fn a_small_frame_does_not_pin_the_read_buffer() {
        let (mut subscriber, _inbound, _peer) = subscriber().await;
        subscriber.input.extend_from_slice(&message('*', "room", b"small"));
        let buffer = subscriber.input.as_ptr_range();
        subscriber.read().unwrap();
        let frames = arrivals(&mut subscriber.run);
        assert!(!buffer.contains(&frames[0].as_ref().unwrap().as_ptr()));
    }

    #[tokio::test]
    async fn a_collected_frame_is_read_from_the_socket_into_its_place() {
        let (mut subscriber, mut inbound, mut peer) = subscriber().await;
        let frame = Bytes::from(vec![9; MAX_FRAME]);
        let bytes = [message('*', "room", &frame), message('*', "room", b"next")].concat();
        let sending = tokio::spawn(async move {
            tokio::io::AsyncWriteExt::write_all(&mut peer, &bytes).await.unwrap();
            peer
        });
        for expected in [frame, Bytes::from_static(b"next")] {
            let arrived = tokio::select! {
                delivery = inbound.next() => delivery.unwrap().unwrap(),
                end = std::future::poll_fn(|cx| match subscriber.drive(cx) {
                    Ok(again) => { if again { cx.waker().wake_by_ref() } Poll::Pending }
                    Err(error) => Poll::Ready(error),
                }) => panic!("{end}"),
            };
            assert_eq!(arrivals(&mut vec![arrived]), [Some(expected)]);
        }
        sending.await.unwrap();
    }

    #[tokio::test]
    async fn a_full_inbox_stops_reading_and_its_clock() {
        let (mut subscriber, mut inbound, mut peer) = subscriber().await;
        let bound = 16 << 20;
        let writing = tokio::spawn(async move {
            let bytes = message('*', "room", &[1; 60_000]).repeat(700);
            let _ = tokio::io::AsyncWriteExt::write_all(&mut peer, &bytes).await;
            peer
        });
        std::future::poll_fn(|cx| {
            if subscriber.drive(cx).unwrap() {
                cx.waker().wake_by_ref();
            }
            if subscriber.resting { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        let later = Instant::now() + Duration::from_secs(60);
        subscriber.beat(later).expect("nobody dies of our own pause");

        let mut taken = 0;
        let mut cx = Context::from_waker(std::task::Waker::noop());
        while let Poll::Ready(Some(Ok(Delivery::Frame { frame, .. }))) = inbound.poll_next_unpin(&mut cx) {
            taken += frame.len();
        }
        assert!((bound - 200_000..bound + 200_000).contains(&taken), "{taken}");
        assert!(subscriber.inbox.has_room());
        writing.abort();
    }
}
