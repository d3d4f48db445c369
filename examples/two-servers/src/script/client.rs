//! A SignalR client in miniature: negotiation, WebSocket, JSON. It keeps what it hears and answers what it is asked.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};
use tokio_util::task::AbortOnDropHandle;

use super::{Failure, deadline};

/// Most arrivals that may wait to be checked; no step makes nearly as many.
const UNCHECKED: usize = 1024;
/// Most calls that may wait to be sent.
const CALLS: usize = 16;
/// Time between two pings.
const PING: Duration = Duration::from_secs(15);
const SEPARATOR: char = '\u{1e}';

/// A question that is answered with an error.
pub(crate) const REFUSED: &str = "your password?";
/// A question that is never answered.
pub(crate) const IGNORED: &str = "are you there?";
/// A question at which one leaves.
pub(crate) const UNBEARABLE: &str = "is it you again?";

type Socket = WebSocketStream<TcpStream>;
type Outcome = Result<Value, String>;

/// A connected client. Leaves when dropped.
pub(crate) struct Client {
    pub(crate) name: &'static str,
    /// What it heard, in order; how its connection ended stands there too.
    pub(crate) arrivals: mpsc::Receiver<String>,
    calls: mpsc::Sender<Call>,
    /// Owns the socket.
    _task: AbortOnDropHandle<()>,
}

struct Call {
    target: &'static str,
    arguments: Value,
    outcome: oneshot::Sender<Outcome>,
}

/// Where a hub is, and whether to negotiate first.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) server: SocketAddr,
    pub(crate) path: &'static str,
    pub(crate) negotiate: bool,
}

impl Client {
    /// Connects as `user`: negotiation where it is wanted, WebSocket, handshake.
    pub(crate) async fn connect(place: Place, name: &'static str, user: &str) -> Result<Self, Failure> {
        let lost = |why: String| Failure(format!("{name} cannot connect: {why}"));
        let opened = timeout(deadline(), open(place, user)).await;
        let (socket, first) =
            opened.map_err(|_| lost(format!("not within {:?}", deadline())))?.map_err(lost)?;
        let (heard, arrivals) = mpsc::channel(UNCHECKED);
        let (calls, orders) = mpsc::channel(CALLS);
        let listener = Listener { name, socket, heard, open: HashMap::new(), last: 0 };
        let task = AbortOnDropHandle::new(tokio::spawn(listener.run(first, orders)));
        Ok(Self { name, arrivals, calls, _task: task })
    }

    /// Calls a method of the hub and awaits what it returns. The inner error is the server's.
    pub(crate) async fn invoke(&self, target: &'static str, arguments: Value) -> Result<Outcome, Failure> {
        let (outcome, answer) = oneshot::channel();
        let lost = |why: &str| Failure(format!("{} calls {target}: {why}", self.name));
        let call = Call { target, arguments, outcome };
        self.calls.send(call).await.map_err(|_| lost("the connection has ended"))?;
        match timeout(deadline(), answer).await {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(_)) => Err(lost("the connection ended before the answer")),
            Err(_) => Err(lost("no answer in time")),
        }
    }

    /// A client that is connected to nobody: it hears what the test puts in.
    #[cfg(test)]
    pub(crate) fn unconnected(name: &'static str) -> (Self, mpsc::Sender<String>) {
        let (heard, arrivals) = mpsc::channel(UNCHECKED);
        let (calls, _) = mpsc::channel(CALLS);
        let task = AbortOnDropHandle::new(tokio::spawn(async {}));
        (Self { name, arrivals, calls, _task: task }, heard)
    }
}

/// Opens a connection; returns what has arrived on it already, too.
async fn open(place: Place, user: &str) -> Result<(Socket, String), String> {
    let Place { server, path, .. } = place;
    let mut url = format!("{path}?user={user}");
    if place.negotiate {
        let token = negotiate(server, path, user).await.map_err(|error| format!("negotiation: {error}"))?;
        url += &format!("&id={token}");
    }
    let stream = TcpStream::connect(server).await.map_err(|error| error.to_string())?;
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let (mut socket, _) =
        client_async(format!("ws://{server}{url}"), stream).await.map_err(|error| error.to_string())?;
    let hello = json!({ "protocol": "json", "version": 1 });
    socket.send(record(&hello)).await.map_err(|error| error.to_string())?;
    match socket.next().await {
        // More may stand behind the answer.
        Some(Ok(Message::Text(text))) => match text.split_once(SEPARATOR) {
            Some(("{}", rest)) => Ok((socket, rest.to_owned())),
            _ => Err(format!("the handshake was answered with {text}")),
        },
        other => Err(format!("the handshake was answered with {other:?}")),
    }
}

/// Asks for a connection; returns its token.
async fn negotiate(server: SocketAddr, path: &str, user: &str) -> Result<String, String> {
    let told = async {
        let mut stream = TcpStream::connect(server).await?;
        let request = format!(
            "POST {path}/negotiate?negotiateVersion=1&user={user} HTTP/1.1\r\nHost: {server}\r\nContent-Length: 0\r\n\
             Connection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut response = String::new();
        stream.read_to_string(&mut response).await?;
        std::io::Result::Ok(response)
    };
    let response = told.await.map_err(|error| error.to_string())?;
    let (head, body) = response.split_once("\r\n\r\n").ok_or("no HTTP response")?;
    if !head.starts_with("HTTP/1.1 200 ") {
        return Err(head.lines().next().unwrap_or_default().to_owned());
    }
    let body: Value = serde_json::from_str(body).map_err(|error| error.to_string())?;
    Ok(body["connectionToken"].as_str().ok_or("no token")?.to_owned())
}

fn record(message: &Value) -> Message {
    Message::text(format!("{message}{SEPARATOR}"))
}

struct Listener {
    name: &'static str,
    socket: Socket,
    heard: mpsc::Sender<String>,
    /// Calls without an answer yet, by invocation id.
    open: HashMap<String, oneshot::Sender<Outcome>>,
    last: u64,
}

impl Listener {
    async fn run(mut self, first: String, mut orders: mpsc::Receiver<Call>) {
        if self.hear_all(&first).await.is_err() {
            return;
        }
        let mut ping = tokio::time::interval(PING);
        let ended = loop {
            tokio::select! {
                call = orders.recv() => {
                    let Some(call) = call else { return };
                    self.last += 1;
                    let id = self.last.to_string();
                    let message = json!({
                        "type": 1, "invocationId": id, "target": call.target, "arguments": call.arguments
                    });
                    self.open.insert(id, call.outcome);
                    if let Err(error) = self.socket.send(record(&message)).await {
                        break error.to_string();
                    }
                }
                _ = ping.tick() => {
                    if let Err(error) = self.socket.send(record(&json!({ "type": 6 }))).await {
                        break error.to_string();
                    }
                }
                message = self.socket.next() => match message {
                    Some(Ok(Message::Text(text))) => {
                        if self.hear_all(&text).await.is_err() {
                            return;
                        }
                    }
                    Some(Ok(Message::Close(Some(close)))) => break u16::from(close.code).to_string(),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => break error.to_string(),
                    None => break "without a close frame".to_owned(),
                }
            }
        };
        let _ = self.heard.send(format!("ended: {ended}")).await;
    }

    async fn hear_all(&mut self, records: &str) -> Result<(), Gone> {
        for record in records.split_terminator(SEPARATOR) {
            self.hear(record).await?;
        }
        Ok(())
    }

    async fn hear(&mut self, record: &str) -> Result<(), Gone> {
        let message: Value = serde_json::from_str(record).unwrap_or_default();
        let arrival = match message["type"].as_u64() {
            Some(1) if message["target"] == "Question" => return self.answer(&message).await,
            Some(1) => arrival(&message),
            Some(3) => {
                let id = message["invocationId"].as_str().unwrap_or_default();
                if let Some(outcome) = self.open.remove(id) {
                    // The caller may have given up.
                    let _ = outcome.send(match message["error"].as_str() {
                        Some(error) => Err(error.to_owned()),
                        None => Ok(message["result"].clone()),
                    });
                    return Ok(());
                }
                format!("an answer to nothing: {record}")
            }
            Some(6) => return Ok(()),
            Some(7) => {
                let reconnect = message["allowReconnect"] == true;
                let error = message["error"].as_str().map(|error| format!(", {error}")).unwrap_or_default();
                format!("close{error}{}", if reconnect { ", may come back" } else { "" })
            }
            _ => format!("unreadable: {record}"),
        };
        self.heard.send(arrival).await.map_err(|_| Gone)
    }

    async fn answer(&mut self, message: &Value) -> Result<(), Gone> {
        let question = message["arguments"].as_array().and_then(|all| all.last()).and_then(Value::as_str);
        let mut answer = json!({ "type": 3, "invocationId": message["invocationId"] });
        match question {
            Some(IGNORED) => return Ok(()),
            Some(UNBEARABLE) => return Err(Gone),
            Some(REFUSED) => answer["error"] = refusal(self.name).into(),
            _ => answer["result"] = self.name.into(),
        }
        self.socket.send(record(&answer)).await.map_err(|_| Gone)
    }
}

/// The client leaves, or nobody listens to it.
struct Gone;

/// What was said, or else the call as it came.
fn arrival(message: &Value) -> String {
    let (target, arguments) = (message["target"].as_str().unwrap_or_default(), &message["arguments"]);
    match target {
        "Say" => arguments[0].as_str().unwrap_or_default().to_owned(),
        "LinkChanged" => format!("LinkChanged: {}", if arguments[0]["up"] == true { "up" } else { "down" }),
        "Hello" | "Here" => format!("{target}: {}", arguments[0]["name"].as_str().unwrap_or_default()),
        _ => format!("{target}{arguments}"),
    }
}

/// How the client called `name` declines.
pub(crate) fn refusal(name: &str) -> String {
    format!("{name} does not tell")
}
