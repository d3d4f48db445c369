//! One proxied connection: both directions, in one task.

use std::collections::VecDeque;
use std::io::ErrorKind::WouldBlock;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::{Buf as _, BytesMut};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::watch;

use super::commands::CommandReader;
use super::switches::{Direction, Ending, Meters, Open, Switches};

/// How long the server may take to accept.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// Bytes read at once.
const CHUNK: usize = 64 << 10;

/// Most bytes held of one direction. A frozen or slow reader is felt by the writer behind them.
const HELD: usize = 256 << 10;

/// Most bytes held of a direction that is delayed, so that the delay does not bound the rate.
const HELD_DELAYED: usize = 4 << 20;

/// Why a connection is over before both sides have ended their streams.
enum Over {
    /// One side is gone, without ceremony; so goes the other.
    Broken,
    /// It was told to end.
    Ended(Ending),
}

/// Makes the coming drop of a stream a reset.
pub(super) fn reset(stream: &TcpStream) {
    // Fails only for a socket that is no longer connected, which needs no reset.
    let _ = stream.set_zero_linger();
}

/// Serves a client until both sides have ended, one is gone, or the switches say so: those of `generation`, which was
/// theirs before the client counted as `open`.
pub(super) async fn serve(
    mut client: TcpStream,
    upstream: SocketAddr,
    mut switches: watch::Receiver<Switches>,
    generation: u64,
    open: Open,
) {
    let mut server = match connect(upstream, &mut switches, generation).await {
        Ok(server) => server,
        Err(over) => {
            if !matches!(over, Over::Ended(Ending::Close)) {
                reset(&client);
            }
            return;
        }
    };
    for stream in [&client, &server] {
        // A socket that is already gone says so again at the first read.
        let _ = stream.set_nodelay(true);
    }
    let over = {
        let (client_reads, client_writes) = client.split();
        let (server_reads, server_writes) = server.split();
        let to_server = Pump::new(Direction::ToServer, generation, switches.clone(), open.meters());
        let to_client = Pump::new(Direction::ToClient, generation, switches, open.meters());
        tokio::try_join!(
            to_server.run(client_reads, server_writes),
            to_client.run(server_reads, client_writes)
        )
        .err()
    };
    match over {
        // Both streams ended, or have to: dropping them says so.
        None | Some(Over::Ended(Ending::Close)) => {}
        Some(Over::Broken | Over::Ended(Ending::Reset)) => {
            reset(&client);
            reset(&server);
        }
    }
}

/// Connects to the server, not before something may reach it.
async fn connect(
    upstream: SocketAddr,
    switches: &mut watch::Receiver<Switches>,
    generation: u64,
) -> Result<TcpStream, Over> {
    loop {
        let now = *switches.borrow_and_update();
        if now.generation != generation {
            return Err(Over::Ended(now.ending));
        }
        if !now.frozen[Direction::ToServer as usize] {
            break;
        }
        // The sender is dropped with the proxy, which ends this task too.
        switches.changed().await.map_err(|_| Over::Broken)?;
    }
    match tokio::time::timeout(CONNECT_DEADLINE, TcpStream::connect(upstream)).await {
        Ok(Ok(server)) => Ok(server),
        Ok(Err(_)) | Err(_) => Err(Over::Broken),
    }
}

/// One direction.
struct Pump<'a> {
    direction: Direction,
    generation: u64,
    switches: watch::Receiver<Switches>,
    meters: &'a Meters,
    held: BytesMut,
    /// When how many of the held bytes are due, oldest first. Empty while nothing is delayed.
    due: VecDeque<(Instant, usize)>,
    commands: Option<CommandReader>,
}

/// What a pump has to wait for before it can write on. A change of the switches always ends the wait.
enum Wait {
    /// Nothing: it made progress.
    None,
    /// More to write.
    Input,
    /// Room at the receiver.
    Room,
    /// A point in time.
    Until(Instant),
    /// Only a change of the switches.
    Switches,
}

impl<'a> Pump<'a> {
    fn new(
        direction: Direction,
        generation: u64,
        switches: watch::Receiver<Switches>,
        meters: &'a Meters,
    ) -> Self {
        let commands = (direction == Direction::ToServer).then(CommandReader::default);
        Self {
            direction,
            generation,
            switches,
            meters,
            held: BytesMut::new(),
            due: VecDeque::new(),
            commands,
        }
    }

    /// Until the stream ended and everything was passed on.
    async fn run(mut self, from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> Result<(), Over> {
        let mut ended = false;
        loop {
            // The other connections of this thread want their turn too.
            tokio::task::consume_budget().await;
            let wait = self.write(&to)?;
            if ended && self.held.is_empty() && matches!(wait, Wait::Input) {
                // The other side is told, unless it is gone already, which its own direction finds out.
                let _ = to.shutdown().await;
                return Ok(());
            }
            let may_read = !ended && !matches!(wait, Wait::Switches) && self.held.len() < self.most_held();
            if may_read {
                match self.read(&from) {
                    Ok(0) => {
                        ended = true;
                        continue;
                    }
                    Ok(_) => continue,
                    Err(error) if error.kind() == WouldBlock => {}
                    Err(_) => return Err(Over::Broken),
                }
            }
            let until = match wait {
                Wait::None => continue,
                Wait::Until(instant) => Some(instant),
                Wait::Input | Wait::Room | Wait::Switches => None,
            };
            tokio::select! {
                biased;
                changed = self.switches.changed() => changed.map_err(|_| Over::Broken)?,
                // An error shows at the read or write that follows.
                _ = from.readable(), if may_read => {}
                _ = to.writable(), if matches!(wait, Wait::Room) => {}
                () = sleep_until(until), if until.is_some() => {}
            }
        }
    }

    fn most_held(&self) -> usize {
        if self.due.is_empty() { HELD } else { HELD_DELAYED }
    }

    fn read(&mut self, from: &ReadHalf<'_>) -> std::io::Result<usize> {
        self.held.reserve(CHUNK);
        let read = from.try_read_buf(&mut self.held)?;
        let delay = self.switches.borrow().delay;
        // Either all held bytes have a time or none has; so the order is kept when the delay begins and ends.
        if read > 0 && (!delay.is_zero() || !self.due.is_empty()) {
            let now = Instant::now();
            let before = self.held.len() - read;
            if self.due.is_empty() && before > 0 {
                self.due.push_back((now, before));
            }
            self.due.push_back((now + delay, read));
        }
        Ok(read)
    }

    /// Writes what is due and allowed, as much as there is room for.
    fn write(&mut self, to: &WriteHalf<'_>) -> Result<Wait, Over> {
        // Held to the end: whoever turns a switch waits until the bytes are written, so that afterwards none moves,
        // and whoever reads the meters until they are counted.
        let switches = self.switches.borrow_and_update();
        if switches.generation != self.generation {
            return Err(Over::Ended(switches.ending));
        }
        if switches.frozen[self.direction as usize] {
            return Ok(Wait::Switches);
        }
        let now = Instant::now();
        let mut ready = match self.due.front() {
            None => self.held.len(),
            Some(&(due, _)) if due > now => return Ok(Wait::Until(due)),
            Some(&(_, bytes)) => bytes,
        };
        if ready == 0 {
            return Ok(Wait::Input);
        }
        let lost = self.meters.lost_of(ready, self.direction);
        if lost > 0 {
            take(&mut self.held, &mut self.due, lost);
            return Ok(Wait::None);
        }
        if let Some(rate) = switches.rate {
            match self.meters.allowance(self.direction).lock().of(ready, rate, now) {
                Ok(allowed) => ready = allowed,
                Err(later) => return Ok(Wait::Until(later)),
            }
        }
        let written = match to.try_write(&self.held[..ready]) {
            Ok(written) => written,
            Err(error) if error.kind() == WouldBlock => return Ok(Wait::Room),
            Err(_) => return Err(Over::Broken),
        };
        if switches.rate.is_some() {
            self.meters.allowance(self.direction).lock().spend(written);
        }
        self.meters.moved(written, self.direction);
        if let Some(commands) = &mut self.commands {
            self.meters.count_commands(|counts| commands.read(&self.held[..written], counts));
        }
        take(&mut self.held, &mut self.due, written);
        Ok(Wait::None)
    }
}

/// Removes the first `bytes`, none of which is beyond the first due time.
fn take(held: &mut BytesMut, due: &mut VecDeque<(Instant, usize)>, bytes: usize) {
    held.advance(bytes);
    if let Some((_, first)) = due.front_mut() {
        *first -= bytes;
        if *first == 0 {
            due.pop_front();
        }
    }
}

async fn sleep_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant.into()).await,
        None => std::future::pending().await,
    }
}
