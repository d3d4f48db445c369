//! The player is tested by a server that answers exactly as recorded, or in one step wrongly: every recording has to
//! be played without a difference, and every wrong answer has to be named.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::file::{Act, Answer, Ending, Framing, Step, TcpEnd, Transcript};
use super::play::{Difference, Until, play};
use super::run::files;
use super::server::Server;
use super::template::Bindings;
use super::websocket::frame;

/// A server that knows what comes next.
pub(super) struct Mirror<'a> {
    transcript: &'a Transcript,
    listener: TcpListener,
    bindings: Bindings,
    connections: HashMap<String, TcpStream>,
    pending: HashMap<String, TcpStream>,
    events: Option<TcpStream>,
    /// What was answered and stays open, so that its end is no reset.
    answered: Vec<TcpStream>,
    /// The step that is answered wrongly.
    wrong: Option<usize>,
}

type Done = std::io::Result<()>;

impl<'a> Mirror<'a> {
    pub(super) async fn new(transcript: &'a Transcript, wrong: Option<usize>) -> Self {
        Self {
            transcript,
            listener: TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap(),
            bindings: Bindings::examples(),
            connections: HashMap::new(),
            pending: HashMap::new(),
            events: None,
            answered: Vec::new(),
            wrong,
        }
    }

    pub(super) async fn serve(mut self) -> Done {
        for (index, step) in self.transcript.steps.iter().enumerate() {
            let wrong = self.wrong == Some(index);
            self.step(step, wrong).await?;
        }
        // The player looks whether more comes: nothing does.
        std::future::pending().await
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    /// An accepted connection whose request has been read.
    async fn accept(&mut self) -> std::io::Result<TcpStream> {
        let (mut stream, _) = self.listener.accept().await?;
        stream.set_nodelay(true)?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        let head = String::from_utf8_lossy(&head).to_lowercase();
        let length =
            head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
        let mut body = vec![0; length.filter(|length| *length < 1 << 20).unwrap_or(0)];
        stream.read_exact(&mut body).await?;
        while head.contains("transfer-encoding: chunked") && !body.ends_with(b"0\r\n\r\n") {
            body.push(stream.read_u8().await?);
        }
        Ok(stream)
    }

    async fn answer(&self, stream: &mut TcpStream, answer: &Answer, wrong: bool) -> Done {
        let status = if wrong { 418 } else { answer.status };
        let mut head = format!("HTTP/1.1 {status} X\r\n");
        let body = answer.body.as_ref().map_or_else(Vec::new, |body| body.fill(&self.bindings).unwrap());
        let chunked = answer.headers.contains_key("Transfer-Encoding");
        for (name, value) in &answer.headers {
            let name = if name == "Content-Length" { "X-Signalr-Length-Was" } else { name };
            if name != "X-Signalr-Length-Was" {
                head += &format!("{}: {value}\r\n", name.to_lowercase());
            }
        }
        if answer.body.is_none() {
            // An event stream, an upgrade, or a HEAD.
            return stream.write_all(format!("{head}\r\n").as_bytes()).await;
        }
        let body = match (chunked, body.is_empty()) {
            (true, true) => b"0\r\n\r\n".to_vec(),
            (true, false) => [format!("{:x}\r\n", body.len()).as_bytes(), &body, b"\r\n0\r\n\r\n"].concat(),
            (false, _) => {
                head += &format!("Content-Length: {}\r\n", body.len());
                body
            }
        };
        stream.write_all(&[head.as_bytes(), b"\r\n", &body].concat()).await
    }

    async fn step(&mut self, step: &Step, wrong: bool) -> Done {
        let pace = async || {
            // A second earlier is within the heartbeat.
            if step.after > Duration::from_millis(900) {
                tokio::time::sleep(step.after.saturating_sub(Duration::from_secs(1))).await;
            }
        };
        match &step.act {
            Act::Request(_, answer) => {
                let mut stream = self.accept().await?;
                if !is_pause(step) {
                    pace().await;
                }
                self.answer(&mut stream, answer, wrong).await?;
                self.answered.push(stream);
            }
            Act::Pending(_, label) => {
                let stream = self.accept().await?;
                self.pending.insert(label.clone(), stream);
            }
            Act::Done(label, answer) => {
                let mut stream = self.pending.remove(label).unwrap();
                pace().await;
                self.answer(&mut stream, answer, wrong).await?;
                self.answered.push(stream);
            }
            Act::DropPending(label) => drop(self.pending.remove(label)),
            Act::Open { answer, .. } | Act::SseOpen(_, answer) => {
                let mut stream = self.accept().await?;
                pace().await;
                self.answer(&mut stream, answer, wrong).await?;
                match (&step.act, answer.status) {
                    (Act::Open { .. }, 101) => {
                        drop(self.connections.insert(step.connection.clone(), stream));
                    }
                    (Act::SseOpen(..), 200) => self.events = Some(stream),
                    _ => self.answered.push(stream),
                }
            }
            Act::Send(_) => self.read_frame(step).await?,
            Act::Receive(record) => {
                pace().await;
                let payload = match (wrong, record.framing) {
                    (false, _) => record.bytes.fill(&self.bindings).unwrap(),
                    (true, Framing::Separator) => b"{\"type\":6,\"wrong\":1}\x1e".to_vec(),
                    (true, Framing::Length) => vec![3, 0x92, 6, 1],
                };
                let (first, second) = payload.split_at(payload.len() / 2);
                // In two fragments, which must not matter.
                let frames = [
                    frame(if record.binary { 2 } else { 1 }, false, false, false, first),
                    frame(0, true, false, false, second),
                ];
                self.connection(step).write_all(&frames.concat()).await?;
            }
            Act::Closed(ending) => {
                pace().await;
                let mut close = match ending {
                    Ending::Frame(code, reason) => {
                        let code = code.map_or_else(Vec::new, |code| code.to_be_bytes().to_vec());
                        [&code, reason.as_bytes()].concat()
                    }
                    Ending::Tcp(end) => {
                        return end_tcp(self.connections.remove(&step.connection), *end, wrong).await;
                    }
                };
                if wrong {
                    close = 1013_u16.to_be_bytes().to_vec();
                }
                let close = frame(8, true, false, false, &close);
                self.connection(step).write_all(&close).await?;
            }
            Act::TcpEnd(end) => {
                pace().await;
                end_tcp(self.connections.remove(&step.connection), *end, wrong).await?;
            }
            Act::Quiet(time) => tokio::time::sleep(*time).await,
            Act::StillOpen(_) | Act::Terminate | Act::ExitCode(_) => {}
            Act::Drop(_) => drop(self.connections.remove(&step.connection)),
            Act::SseReceive(raw) => {
                pace().await;
                let mut event = raw.fill(&self.bindings).unwrap();
                if wrong {
                    event = b"data: {\"wrong\":1}\x1e\r\n\r\n".to_vec();
                }
                let chunk = [format!("{:x}\r\n", event.len()).as_bytes(), &event, b"\r\n"].concat();
                self.events.as_mut().unwrap().write_all(&chunk).await?;
            }
            Act::SseEnd => {
                let last: &[u8] = if wrong { b"1\r\nx\r\n" } else { b"0\r\n\r\n" };
                self.events.as_mut().unwrap().write_all(last).await?;
            }
            Act::SseAbort => self.events = None,
        }
        Ok(())
    }

    fn connection(&mut self, step: &Step) -> &mut TcpStream {
        self.connections.get_mut(&step.connection).unwrap()
    }

    async fn read_frame(&mut self, step: &Step) -> Done {
        let stream = self.connection(step);
        let _first = stream.read_u8().await?;
        let second = stream.read_u8().await?;
        let length = match second & 0x7f {
            126 => u64::from(stream.read_u16().await?),
            127 => stream.read_u64().await?,
            length => u64::from(length),
        };
        let mask = u64::from(second >> 7) * 4;
        let mut payload = vec![0; (length + mask) as usize];
        stream.read_exact(&mut payload).await.map(drop)
    }
}

async fn end_tcp(stream: Option<TcpStream>, end: TcpEnd, wrong: bool) -> Done {
    let Some(mut stream) = stream else { return Ok(()) };
    if (end == TcpEnd::Rst) != wrong {
        return stream.set_zero_linger();
    }
    // What the client sent last, such as its close frame, would make it a reset.
    let mut rest = [0; 64];
    let _ = tokio::time::timeout(Duration::from_millis(100), stream.read(&mut rest)).await;
    stream.shutdown().await
}

fn is_pause(step: &Step) -> bool {
    matches!(&step.act, Act::Request(request, answer)
        if request.method != "GET" || answer.status != 200 || step.after < Duration::from_millis(900))
}

async fn played(transcript: &Transcript, wrong: Option<usize>) -> Vec<Difference> {
    let mirror = Mirror::new(transcript, wrong).await;
    let mut server = Server::at(mirror.address());
    let until = if wrong.is_some() { Until::Difference } else { Until::End };
    tokio::select! {
        differences = play(transcript, &[], &mut server, until) => differences,
        failed = mirror.serve() => panic!("{}: {failed:?}", transcript.name),
    }
}

/// All recordings but those that stop the server's process.
fn recordings() -> Vec<Transcript> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("transcripts/http");
    let files = files(&folder).unwrap().into_iter();
    let all: Vec<_> =
        files.map(|file| Transcript::read(&file).unwrap_or_else(|error| panic!("{error}"))).collect();
    assert!(all.len() >= 288, "{}", all.len());
    let stops = |transcript: &Transcript| {
        transcript.steps.iter().any(|step| matches!(step.act, Act::Terminate | Act::ExitCode(_)))
    };
    all.into_iter().filter(|transcript| !stops(transcript)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_recording_can_be_played_and_its_own_answers_are_right() {
    let recordings = recordings();
    let plays = recordings.iter().map(|transcript| async {
        let differences = played(transcript, None).await;
        let lines = differences.iter().map(|difference| format!("{}: {difference}\n", transcript.name));
        lines.collect::<String>()
    });
    let differences: String = futures::stream::iter(plays).buffer_unordered(48).collect().await;
    assert!(differences.is_empty(), "{differences}");
}

/// Whether a wrong answer can be told: not where the runs of the recorder differed.
fn is_answer(transcript: &Transcript, step: &Step) -> bool {
    let answer = matches!(
        step.act,
        Act::Request(..)
            | Act::Done(..)
            | Act::Open { .. }
            | Act::Receive(_)
            | Act::Closed(_)
            | Act::TcpEnd(_)
            | Act::SseOpen(..)
            | Act::SseReceive(_)
            | Act::SseEnd
    );
    // The answer to an end that has come already is not given again.
    let ended =
        |step: &Step| matches!(step.act, Act::TcpEnd(TcpEnd::Rst)) && transcript.name.contains("shutdown");
    answer && !transcript.runs_differ() && !ended(step)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_answer_is_named_with_its_step() {
    let recordings = recordings();
    // In each recording a few steps spread over its length, the first and the last among them.
    let mut wrong = Vec::new();
    for transcript in &recordings {
        let steps = transcript.steps.iter().enumerate();
        let answers: Vec<usize> =
            steps.filter(|(_, step)| is_answer(transcript, step)).map(|(index, _)| index).collect();
        let mut picked: Vec<usize> = (0..4)
            .filter_map(|part| answers.get((answers.len().saturating_sub(1)) * part / 3).copied())
            .collect();
        picked.dedup();
        wrong.extend(picked.into_iter().map(|index| (transcript, index)));
    }
    assert!(wrong.len() > 600, "only {} wrong answers", wrong.len());
    let plays = wrong.iter().map(|(transcript, index)| async move {
        match played(transcript, Some(*index)).await.first() {
            Some(difference) if difference.step == index + 1 => String::new(),
            first => format!("{} step {}: {first:?}\n", transcript.name, index + 1),
        }
    });
    let faults: String = futures::stream::iter(plays).buffer_unordered(48).collect().await;
    assert!(faults.is_empty(), "{faults}");
}
