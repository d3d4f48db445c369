//! A front before the servers that knows nothing of SignalR: each TCP connection goes to the next server in turn.
//!
//! It shows why a real load balancer needs affinity: a client that negotiates with one server and opens its WebSocket at
//! the next is unknown there.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Most connections at a time; further ones wait in the listener's backlog.
const MOST: usize = 1024;
/// How long a server may take to accept.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// How long to wait when nothing can be accepted, as when the process has no more file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Hands connections on until it is dropped; then all of them are cut.
pub(crate) async fn run(front: TcpListener, servers: Vec<SocketAddr>) {
    let mut turn = servers.iter().cycle().copied();
    let places = Arc::new(Semaphore::new(MOST));
    let mut connections = JoinSet::new();
    loop {
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        while connections.try_join_next().is_some() {}
        let client = match front.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                tracing::warn!(%error, "the front cannot accept");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let server = turn.next().expect("there is at least one server");
        connections.spawn(async move {
            if let Err(error) = hand_on(client, server).await {
                tracing::debug!(%error, %server, "a connection through the front ended");
            }
            drop(place);
        });
    }
}

async fn hand_on(mut client: TcpStream, server: SocketAddr) -> io::Result<()> {
    let mut server = tokio::time::timeout(CONNECT_DEADLINE, TcpStream::connect(server)).await??;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn connections_go_to_the_servers_in_turn() {
        let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = front.local_addr().unwrap();
        let (mut servers, mut addresses) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
            addresses.push(server.local_addr().unwrap());
            servers.push(server);
        }
        let running = tokio::spawn(run(front, addresses));
        let heard = async {
            for round in 0..4 {
                let mut client = TcpStream::connect(address).await.unwrap();
                client.write_all(b"hello").await.unwrap();
                let (mut server, _) = servers[round % 2].accept().await.unwrap();
                let mut read = [0; 5];
                server.read_exact(&mut read).await.unwrap();
                assert_eq!(&read, b"hello");
            }
        };
        tokio::time::timeout(Duration::from_secs(10), heard).await.unwrap();
        running.abort();
    }
}
