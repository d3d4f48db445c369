use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Wake;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::time::timeout;

use super::client::{self, BINARY, CONTINUE, PING, TEXT, frame, more};
use super::*;

const DEADLINE: Duration = Duration::from_secs(10);

fn open(room: usize) -> (WebSocket<DuplexStream>, DuplexStream) {
    let (ours, client) = duplex(room);
    (WebSocket::new(ours, Bytes::new()), client)
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    timeout(DEADLINE, what).await.expect("in time")
}

async fn receive<S: Transport>(socket: &mut S, input: &mut BytesMut) -> Result<(), Ended> {
    within(poll_fn(|context| socket.poll_receive(context, input))).await
}

async fn flush<S: Transport>(socket: &mut S) -> Result<(), Ended> {
    within(poll_fn(|context| socket.poll_flush(context))).await
}

async fn close<S: Transport>(socket: &mut S) {
    within(poll_fn(|context| socket.poll_close(context))).await;
}

/// All that the client gets until the stream ends.
async fn rest(client: &mut DuplexStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    within(client.read_to_end(&mut bytes)).await.unwrap();
    bytes
}

async fn exactly(client: &mut DuplexStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    within(client.read_exact(&mut bytes)).await.unwrap();
    bytes
}

/// The server's close frame.
fn closed(code: u16) -> Vec<u8> {
    let [high, low] = code.to_be_bytes();
    vec![0x88, 2, high, low]
}

#[tokio::test]
async fn messages_are_appended_whatever_their_frames_and_pings_are_answered() {
    let (mut socket, mut client) = open(1 << 10);
    let stream = [
        more(TEXT, b"ab"),
        frame(PING, b"1"),
        frame(PING, b"2"),
        frame(CONTINUE, b"c"),
        frame(BINARY, b"\xFF"),
    ];
    let writing = async {
        for byte in stream.concat() {
            client.write_all(&[byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    let mut input = BytesMut::new();
    let reading = async {
        while input.len() < 4 {
            receive(&mut socket, &mut input).await.unwrap();
        }
    };
    tokio::join!(writing, reading);
    assert_eq!(&input[..], b"abc\xFF");
    flush(&mut socket).await.unwrap();
    assert_eq!(exactly(&mut client, 3).await, [0x8A, 1, b'2'], "only the newest ping is answered");
}

#[tokio::test]
async fn an_empty_frame_wakes_its_reader_and_a_ping_alone_does_not() {
    let (mut socket, mut client) = open(1 << 10);
    let mut input = BytesMut::new();
    client.write_all(&frame(PING, b"")).await.unwrap();
    let nothing = poll_fn(|context| Poll::Ready(socket.poll_receive(context, &mut input).is_pending())).await;
    assert!(nothing);
    client.write_all(&frame(TEXT, b"")).await.unwrap();
    receive(&mut socket, &mut input).await.unwrap();
    assert!(input.is_empty());
}

#[tokio::test]
async fn what_arrived_with_the_upgrade_comes_first_and_in_chunks() {
    let (ours, mut client) = duplex(1 << 10);
    let mut early = frame(BINARY, &vec![b'e'; 2 * CHUNK]);
    let cut = early.split_off(early.len() - 100);
    let mut socket = WebSocket::new(ours, early.into());
    client.write_all(&cut).await.unwrap();
    let mut input = BytesMut::new();
    let mut before = 0;
    while input.len() < 2 * CHUNK {
        receive(&mut socket, &mut input).await.unwrap();
        assert!(input.len() - before <= CHUNK);
        before = input.len();
    }
    assert!(input.iter().all(|byte| *byte == b'e'));
    assert_eq!(socket.early.len(), 0);
}

#[tokio::test]
async fn a_close_of_the_client_is_answered_with_1000_behind_what_it_sent_before() {
    for close_frame in [client::close(1000, "bye"), client::close(3000, ""), frame(client::CLOSE, b"")] {
        let (mut socket, mut client) = open(1 << 10);
        client.write_all(&[frame(TEXT, b"last"), close_frame].concat()).await.unwrap();
        let mut input = BytesMut::new();
        receive(&mut socket, &mut input).await.unwrap();
        assert_eq!(&input[..], b"last");
        for _ in 0..2 {
            let ended = receive(&mut socket, &mut input).await;
            assert!(matches!(ended, Err(Ended::ByClient)), "{ended:?}");
        }
        close(&mut socket).await;
        assert_eq!(rest(&mut client).await, closed(1000));
    }
}

#[tokio::test]
async fn a_violation_is_told_and_then_the_stream_ends() {
    for (bad, code) in [(client::unmasked(TEXT, b"x"), 1002), (frame(TEXT, b"\xFF"), 1007)] {
        let (mut socket, mut client) = open(1 << 10);
        // What the client sends on behind it disturbs nobody.
        client.write_all(&[&frame(TEXT, b"ok")[..], &bad, &[0xFF; 64]].concat()).await.unwrap();
        let mut input = BytesMut::new();
        receive(&mut socket, &mut input).await.unwrap();
        assert_eq!(&input[..], b"ok");
        let ended = receive(&mut socket, &mut input).await;
        assert!(matches!(ended, Err(Ended::Violation(_))), "{ended:?}");
        let hearing = async {
            assert_eq!(rest(&mut client).await, closed(code));
            // It may send more than the stream holds before it sees that: nothing is left unread.
            within(client.write_all(&[0xFF; 10_000])).await.unwrap();
            drop(client);
        };
        tokio::join!(close(&mut socket), hearing);
    }
}

#[tokio::test]
async fn a_stream_that_ends_without_a_close_frame_is_lost() {
    for cut in [&b""[..], b"\x81", b"\x81\xFE\x00"] {
        let (mut socket, mut client) = open(1 << 10);
        client.write_all(cut).await.unwrap();
        drop(client);
        let ended = receive(&mut socket, &mut BytesMut::new()).await;
        assert!(matches!(ended, Err(Ended::Lost(_))), "{ended:?}");
        close(&mut socket).await;
    }
}

#[tokio::test]
async fn our_close_waits_for_that_of_the_client_and_forgets_what_comes_before() {
    let (mut socket, mut client) = open(1 << 10);
    socket.send(Bytes::from_static(b"bye"), TransferFormat::Text);
    let answering = async {
        let expected = [&[0x81, 3][..], b"bye", &closed(1000)].concat();
        assert_eq!(exactly(&mut client, expected.len()).await, expected);
        client.write_all(&frame(TEXT, b"in flight")).await.unwrap();
        client.write_all(&frame(PING, b"?")).await.unwrap();
        client.write_all(&client::close(1000, "")).await.unwrap();
        assert_eq!(rest(&mut client).await, b"", "nothing comes behind a close frame");
    };
    tokio::join!(close(&mut socket), answering);
}

#[tokio::test]
async fn our_close_reads_on_while_it_cannot_write() {
    let (mut socket, mut client) = open(16);
    socket.send(Bytes::from(vec![b'x'; 1_000]), TransferFormat::Binary);
    let client_side = async {
        // The client writes all of its own before it reads: both directions are full meanwhile.
        client.write_all(&frame(BINARY, &[0; 5_000])).await.unwrap();
        client.write_all(&client::close(1000, "")).await.unwrap();
        rest(&mut client).await
    };
    let ((), got) = tokio::join!(close(&mut socket), client_side);
    assert_eq!(got.len(), 4 + 1_000 + 4);
    assert!(got.ends_with(&closed(1000)));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_answer_our_close_keeps_it_open_until_the_caller_gives_up() {
    let (mut socket, mut client) = open(1 << 10);
    let closing = timeout(Duration::from_secs(5), poll_fn(|context| socket.poll_close(context))).await;
    assert!(closing.is_err());
    assert_eq!(exactly(&mut client, 4).await, closed(1000));
    drop(socket);
    assert_eq!(rest(&mut client).await, b"");
}

#[tokio::test]
async fn a_client_that_breaks_the_rules_during_our_close_ends_it_too() {
    let (mut socket, mut client) = open(1 << 10);
    client.write_all(&client::unmasked(TEXT, b"x")).await.unwrap();
    let hearing = async {
        assert_eq!(rest(&mut client).await, closed(1000), "one close frame, no second one");
        drop(client);
    };
    tokio::join!(close(&mut socket), hearing);
}

#[tokio::test]
async fn headers_have_the_shortest_length_and_no_mask() {
    for (length, format, header) in [
        (0, TransferFormat::Text, &[0x81, 0][..]),
        (125, TransferFormat::Text, &[0x81, 125]),
        (126, TransferFormat::Binary, &[0x82, 126, 0, 126]),
        (0xFFFF, TransferFormat::Binary, &[0x82, 126, 0xFF, 0xFF]),
        (0x1_0000, TransferFormat::Text, &[0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
    ] {
        let (mut socket, mut client) = open(1 << 20);
        socket.send(Bytes::from(vec![b'x'; length]), format);
        flush(&mut socket).await.unwrap();
        drop(socket);
        let got = rest(&mut client).await;
        assert_eq!(&got[..header.len()], header);
        assert_eq!(got.len(), header.len() + length);
    }
}

/// A stream that takes at most so many bytes in one write, and every second time none at all.
struct Throttled {
    taken: Vec<u8>,
    most: usize,
    busy: bool,
    vectored: bool,
    /// Slices of the writes, by length.
    writes: Vec<Vec<usize>>,
}

impl Throttled {
    fn new(most: usize, vectored: bool) -> Self {
        Self { taken: Vec::new(), most, busy: false, vectored, writes: Vec::new() }
    }
}

impl AsyncRead for Throttled {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for Throttled {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.busy = !self.busy;
        if self.busy {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = self.taken.len();
        let room = before + self.most;
        for slice in slices {
            let count = slice.len().min(room - self.taken.len());
            self.taken.extend_from_slice(&slice[..count]);
        }
        self.writes.push(slices.iter().map(|slice| slice.len()).collect());
        Poll::Ready(Ok(self.taken.len() - before))
    }

    fn is_write_vectored(&self) -> bool {
        self.vectored
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn short_writes_go_on_where_they_stopped() {
    let payload: Bytes = (0..70_000u32).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let header = [0x82, 127, 0, 0, 0, 0, 0, 1, 0x11, 0x70];
    for most in [1, 3, 9, 10, 11, 4_096, usize::MAX / 2] {
        for vectored in [false, true] {
            let mut socket = WebSocket::new(Throttled::new(most, vectored), Bytes::new());
            socket.send(payload.clone(), TransferFormat::Binary);
            flush(&mut socket).await.unwrap();
            let taken = &socket.stream.taken;
            assert!(taken[..10] == header && taken[10..] == payload, "{most} at once, vectored: {vectored}");
            // Whoever shared the payload has it alone again.
            assert!(socket.writer.is_idle());
        }
    }
}

#[tokio::test]
async fn a_payload_is_not_copied_where_two_slices_can_be_written() {
    let payload = Bytes::from(vec![b'x'; 100_000]);
    let mut socket = WebSocket::new(Throttled::new(usize::MAX / 2, true), Bytes::new());
    socket.send(payload, TransferFormat::Binary);
    flush(&mut socket).await.unwrap();
    assert_eq!(socket.stream.writes, [[10, 100_000]], "one write for header and payload");
}

#[tokio::test]
async fn a_small_frame_is_one_write_where_two_slices_cannot_be_written() {
    let mut socket = WebSocket::new(Throttled::new(usize::MAX / 2, false), Bytes::new());
    socket.send(Bytes::from(vec![b'x'; 900]), TransferFormat::Text);
    flush(&mut socket).await.unwrap();
    assert_eq!(socket.stream.writes, [[904]]);
}

#[tokio::test]
async fn a_pong_waits_for_the_frame_that_is_being_written() {
    let mut socket = WebSocket::new(Throttled::new(4, true), Bytes::new());
    socket.send(Bytes::from_static(b"abcdef"), TransferFormat::Text);
    let context = &mut Context::from_waker(std::task::Waker::noop());
    // The first write is refused, the second one takes four bytes of eight.
    assert!(socket.poll_flush(context).is_pending());
    assert!(socket.poll_flush(context).is_pending());
    assert_eq!(socket.stream.taken, [0x81, 6, b'a', b'b']);
    assert!(!socket.take_in(&frame(PING, b"p"), &mut BytesMut::new()));
    flush(&mut socket).await.unwrap();
    assert_eq!(socket.stream.taken, b"\x81\x06abcdef\x8A\x01p");
}

#[tokio::test]
async fn a_broken_stream_is_lost_when_written() {
    let (mut socket, client) = open(16);
    drop(client);
    socket.send(Bytes::from_static(b"x"), TransferFormat::Text);
    let flushed = flush(&mut socket).await;
    assert!(matches!(flushed, Err(Ended::Lost(_))), "{flushed:?}");
    close(&mut socket).await;
}

/// Counts how often a task is woken.
#[derive(Default)]
struct Wakes(std::sync::atomic::AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}

/// Always ready with one ping.
struct Pings;

impl AsyncRead for Pings {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        buffer.put_slice(&frame(PING, b"!"));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pings {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[test]
fn a_flood_of_pings_leaves_others_their_turn() {
    let wakes = Arc::new(Wakes::default());
    let waker = wakes.clone().into();
    let context = &mut Context::from_waker(&waker);
    let mut socket = pin!(WebSocket::new(Pings, Bytes::new()));
    assert!(socket.poll_receive(context, &mut BytesMut::new()).is_pending());
    assert_eq!(wakes.0.load(std::sync::atomic::Ordering::Relaxed), 1, "its own turn comes again");
}

#[test]
fn a_socket_is_small() {
    let size = size_of::<WebSocket<tokio::net::TcpStream>>();
    assert!(size <= 320, "{size} bytes");
}
