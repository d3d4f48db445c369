//! The bare subscribing server: the `redis` crate's pub/sub stream, and sockets that are written without a hub.

use std::net::Ipv4Addr;

use futures::future::FutureExt as _;
use futures::stream::StreamExt as _;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::unconstrained;

use super::record::{LEN, SEPARATOR};
use super::{CHANNEL, CONNECTED, websocket};
use crate::part::Cue;
use crate::{Result, bare, machine};

/// How many messages are joined at most: as many as our router takes in one turn.
const JOINED: usize = 1_024;

/// What the server is told, the bare one and ours.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Task {
    pub(crate) url: String,
    pub(crate) clients: usize,
}

/// Prints its port, and that all clients are connected; serves them until it is ended.
pub(crate) async fn serve(task: Task, cue: Cue) -> Result<()> {
    machine::allow_open_files(task.clients)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let subscription = bare::subscribed(&task.url, CHANNEL).await?;
    cue.ready().await?;
    println!("{}", listener.local_addr()?.port());
    let mut sockets = Vec::with_capacity(task.clients);
    while sockets.len() < task.clients {
        let (socket, _) = listener.accept().await?;
        sockets.push(upgrade(socket).await?);
    }
    println!("{CONNECTED}");
    // Without tokio's budget: with it the stream hands out 128 messages per turn while the crate's own task reads
    // thousands in one of its.
    unconstrained(fan_out(subscription, sockets)).await
}

/// As little as the clients need: they check neither the key nor the answer to it.
async fn upgrade(mut socket: TcpStream) -> Result<TcpStream> {
    socket.set_nodelay(true)?;
    websocket::read_head(&mut socket).await?;
    socket
        .write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        .await?;
    while socket.read_u8().await? != SEPARATOR {}
    let answer = b"{}\x1e";
    socket.write_all(&[&websocket::text_header(answer.len()), &answer[..]].concat()).await?;
    Ok(socket)
}

/// Takes what has arrived, joins it, writes each socket once; a socket that is full is waited for.
async fn fan_out(subscription: redis::aio::PubSub, mut sockets: Vec<TcpStream>) -> Result<()> {
    let mut messages = subscription.into_on_message();
    let mut joined = Vec::with_capacity(JOINED * LEN);
    while let Some(message) = messages.next().await {
        joined.clear();
        joined.extend_from_slice(message.get_payload_bytes());
        for _ in 1..JOINED {
            match messages.next().now_or_never() {
                Some(Some(message)) => joined.extend_from_slice(message.get_payload_bytes()),
                Some(None) | None => break,
            }
        }
        let frame = [&websocket::text_header(joined.len())[..], &joined].concat();
        for socket in &mut sockets {
            socket.write_all(&frame).await?;
        }
    }
    Err("the subscription ended".into())
}
