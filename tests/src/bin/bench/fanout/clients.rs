//! The clients' process: many WebSockets that count their records, check every number, and tell how far all of them are.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures::future::poll_fn;
use futures::stream::{StreamExt as _, TryStreamExt as _};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead as _, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::record::{self, Record, Text};
use super::websocket::{self, Incoming};
use crate::part::Cue;
use crate::{Result, machine};

/// How many connect at the same time.
const AT_ONCE: usize = 64;

/// All clients together are reported after so many messages, when the last of them has them.
const REPORT_EVERY: u64 = 256;

/// All sockets are read into one buffer of this size, in turn.
const BUFFER: usize = 256 << 10;

/// What they are told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Task {
    pub(crate) server: SocketAddr,
    pub(crate) clients: usize,
    pub(crate) warm_up: Duration,
    pub(crate) measured: Duration,
}

/// What they found.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Received {
    /// Records that each client received, the end not counted.
    pub(crate) messages: u64,
    /// Deliveries per second within the measurement.
    pub(crate) rate: f64,
    /// What this process took from the start of the flow to its end.
    pub(crate) processor: Duration,
    /// p50 and p99 in microseconds of the deliveries within the measurement, where records tell when they were sent.
    pub(crate) latencies: Option<(f64, f64)>,
}

/// Plays all clients. Prints the port at which the publisher learns how far they are.
pub(crate) async fn receive(task: Task, cue: Cue) -> Result<Received> {
    let Task { server, clients, warm_up, measured } = task;
    machine::allow_open_files(clients)?;
    let connecting = (0..clients).map(|_| websocket::connect(server, String::new()));
    let streams: Vec<TcpStream> =
        futures::stream::iter(connecting).buffer_unordered(AT_ONCE).try_collect().await?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    cue.ready().await?;
    println!("{}", listener.local_addr()?.port());
    let before = machine::processor_time()?;
    let (reports, reported) = watch::channel(0);
    let ledger = Arc::new(Mutex::new(Ledger::new(clients, warm_up, measured, reports)));
    // Ends with the publisher, or with this process.
    tokio::spawn(report(listener, reported));
    let mut tasks = JoinSet::new();
    for (client, stream) in streams.into_iter().enumerate() {
        tasks.spawn(read_to_the_end(client, stream, ledger.clone()));
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    let processor = machine::processor_time()? - before;
    ledger.lock().received(processor)
}

/// Tells the publisher how many messages all clients have.
async fn report(listener: TcpListener, mut reported: watch::Receiver<u64>) -> Result<()> {
    let (mut publisher, _) = listener.accept().await?;
    publisher.set_nodelay(true)?;
    while reported.changed().await.is_ok() {
        let received = *reported.borrow_and_update();
        publisher.write_u64(received).await?;
    }
    Ok(())
}

async fn read_to_the_end(client: usize, mut stream: TcpStream, ledger: Arc<Mutex<Ledger>>) -> Result<()> {
    let mut incoming = Incoming::default();
    let read = poll_fn(|context| {
        loop {
            match ready!(ledger.lock().poll_read(context, &mut stream, client, &mut incoming)) {
                Ok(false) => {}
                Ok(true) => return Poll::Ready(Ok(())),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    });
    read.await.map_err(|error| format!("client {client} of this round: {error}").into())
}

/// What all clients have received.
#[derive(Debug)]
struct Ledger {
    buffer: Vec<u8>,
    /// The number that each client expects next.
    next: Vec<u64>,
    deliveries: u64,
    /// Where the next report is due, and how many clients are not there yet.
    milestone: u64,
    behind: usize,
    reports: watch::Sender<u64>,
    warm_up: Duration,
    measured: Duration,
    first: Option<Instant>,
    /// When the measurement began and how many deliveries there had been; when it ended, likewise.
    begun: Option<(Instant, u64)>,
    ended: Option<(Instant, u64)>,
    /// Nanoseconds from sending to receipt, within the measurement.
    latencies: Vec<u64>,
}

impl Ledger {
    fn new(clients: usize, warm_up: Duration, measured: Duration, reports: watch::Sender<u64>) -> Self {
        Self {
            buffer: vec![0; BUFFER],
            next: vec![0; clients],
            deliveries: 0,
            milestone: REPORT_EVERY,
            behind: clients,
            reports,
            warm_up,
            measured,
            first: None,
            begun: None,
            ended: None,
            latencies: Vec::new(),
        }
    }

    /// Reads once from the socket of a client. `true`: that was the end.
    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        stream: &mut TcpStream,
        client: usize,
        incoming: &mut Incoming,
    ) -> Poll<Result<bool>> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut arrived = ReadBuf::new(&mut buffer);
        let read = Pin::new(stream).poll_read(context, &mut arrived);
        let taken = read.map(|read| {
            read?;
            match arrived.filled() {
                [] => Err("the server closed the connection".into()),
                bytes => self.take(client, incoming, bytes),
            }
        });
        self.buffer = buffer;
        taken
    }

    fn take(&mut self, client: usize, incoming: &mut Incoming, bytes: &[u8]) -> Result<bool> {
        self.look(Instant::now());
        let measuring = self.begun.is_some() && self.ended.is_none();
        let now = record::monotonic();
        let before = self.next[client];
        let mut next = before;
        let mut ended = false;
        incoming.feed(bytes, |bytes| {
            let record = bytes.try_into().ok().and_then(record::read);
            match record {
                Some(Record { number, text }) if number == next && !ended => {
                    next += 1;
                    match text {
                        Text::Plain => {}
                        Text::Sent(sent) if measuring => {
                            self.latencies.push(u64::try_from(now.saturating_sub(sent).as_nanos())?);
                        }
                        Text::Sent(_) => {}
                        Text::End => ended = true,
                    }
                    Ok(())
                }
                Some(record) => Err(format!("number {next} was due and {record:?} came").into()),
                None if bytes == b"{\"type\":6}\x1e" => Ok(()),
                None => Err(format!("{:?} is no record of ours", String::from_utf8_lossy(bytes)).into()),
            }
        })?;
        self.next[client] = next;
        self.deliveries += next - before - u64::from(ended);
        if before < self.milestone && self.milestone <= next {
            self.behind -= 1;
            if self.behind == 0 {
                self.report();
            }
        }
        Ok(ended)
    }

    /// Every client has reached the milestone.
    fn report(&mut self) {
        let least = self.next.iter().copied().min().unwrap_or_default();
        self.reports.send_replace(least);
        self.milestone = least + REPORT_EVERY;
        self.behind = self.next.iter().filter(|next| **next < self.milestone).count();
    }

    /// Begins and ends the measurement.
    fn look(&mut self, now: Instant) {
        let first = *self.first.get_or_insert(now);
        match (self.begun, self.ended) {
            (None, _) if now >= first + self.warm_up => self.begun = Some((now, self.deliveries)),
            (Some((begun, _)), None) if now >= begun + self.measured => {
                self.ended = Some((now, self.deliveries));
            }
            _ => {}
        }
    }

    fn received(&mut self, processor: Duration) -> Result<Received> {
        let (Some((begun, before)), Some((ended, after))) = (self.begun, self.ended) else {
            return Err("the flow ended before it was measured".into());
        };
        self.latencies.sort_unstable();
        let rank = |share: f64| {
            let rank = (self.latencies.len() as f64 * share).ceil() as usize;
            Some(*self.latencies.get(rank.checked_sub(1)?)? as f64 / 1_000.0)
        };
        Ok(Received {
            // Each client got the end too, or it would still be reading.
            messages: self.next.iter().min().ok_or("there were no clients")? - 1,
            rate: (after - before) as f64 / (ended - begun).as_secs_f64(),
            processor,
            latencies: rank(0.50).zip(rank(0.99)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::record::encoded;
    use super::*;

    fn ledger(clients: usize) -> (Ledger, watch::Receiver<u64>) {
        let (reports, reported) = watch::channel(0);
        (Ledger::new(clients, Duration::ZERO, Duration::from_secs(1), reports), reported)
    }

    fn message(numbers: impl IntoIterator<Item = u64>) -> Vec<u8> {
        let records: Vec<u8> = numbers.into_iter().flat_map(|number| encoded(number, Text::Plain)).collect();
        [websocket::text_header(records.len()), records].concat()
    }

    #[test]
    fn holes_repeats_and_what_follows_the_end_are_errors() {
        let end = [websocket::text_header(record::LEN), encoded(1, Text::End).to_vec()].concat();
        let runs = [
            (message([0, 1, 2]), true),
            (message([1]), false),
            (message([0, 2]), false),
            (message([0, 0]), false),
            ([message([0]), end.clone()].concat(), true),
            ([message([0]), end, message([2])].concat(), false),
            ([websocket::text_header(3), b"{}\x1e".to_vec()].concat(), false),
        ];
        for (bytes, whole) in runs {
            let taken = ledger(1).0.take(0, &mut Incoming::default(), &bytes);
            assert_eq!(taken.is_ok(), whole, "{taken:?}");
        }
    }

    #[test]
    fn the_last_of_the_clients_is_reported() {
        let (mut ledger, reported) = ledger(2);
        let mut incoming = [Incoming::default(), Incoming::default()];
        ledger.take(0, &mut incoming[0], &message(0..3 * REPORT_EVERY)).unwrap();
        assert_eq!(*reported.borrow(), 0);
        ledger.take(1, &mut incoming[1], &message(0..REPORT_EVERY + 7)).unwrap();
        assert_eq!(*reported.borrow(), REPORT_EVERY + 7);
        ledger.take(1, &mut incoming[1], &message(REPORT_EVERY + 7..4 * REPORT_EVERY)).unwrap();
        assert_eq!(*reported.borrow(), 3 * REPORT_EVERY);
        assert_eq!(ledger.deliveries, 7 * REPORT_EVERY);
    }
}
