//! `idle`: how much memory a connection takes that is registered, has a user and a group, and says nothing.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use backplane::UserId;
use backplane_signalr::{Disconnect, Hub, HubContext};
use futures::stream::{StreamExt as _, TryStreamExt as _};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::fanout::hub::mount_and_serve;
use crate::fanout::websocket;
use crate::options::Options;
use crate::part::{Cue, Part};
use crate::table::{Bound, Table, Verdict};
use crate::{Result, machine};

/// Names of the parts.
pub(crate) const SERVER: &str = "idle-server";
pub(crate) const CLIENTS: &str = "idle-clients";

/// Connections that come and leave before the server is looked at for the first time.
const WARM_UP: usize = 500;
/// Connections that stay.
const CONNECTIONS: usize = 5_000;
/// How many connect at the same time.
const AT_ONCE: usize = 64;

/// Bytes.
const BOUND: Bound = Bound::CountAtMost(12_000.0);

/// What the server is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ServerTask {
    /// How many connections there will be in turn. It says when there are.
    steps: Vec<usize>,
}

/// What the clients are told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ClientsTask {
    server: SocketAddr,
    clients: usize,
}

pub(crate) async fn run(options: &Options) -> Result<Vec<Verdict>> {
    println!(
        "idle: memory of a server with {CONNECTIONS} registered JSON connections, each with a user and one group"
    );
    println!(
        "  resident memory of the server's process, clients in another; none: after {WARM_UP} came and left; embedded bus"
    );
    let mut table = Table::new(&[("none, kB", 0), ("all, kB", 0), ("bytes per connection", 0)]);
    for _ in 0..options.rounds(3) {
        let mut server = Part::start(SERVER, &ServerTask { steps: vec![WARM_UP, 0, CONNECTIONS] }).await?;
        server.go().await?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, server.told().await?));
        let connect = async |server: &mut Part, clients: usize| {
            let part = Part::start(CLIENTS, &ClientsTask { server: address, clients }).await?;
            server.said(&clients.to_string()).await.map(|()| part)
        };
        let warm_up = connect(&mut server, WARM_UP).await?;
        drop(warm_up);
        server.said("0").await?;
        let none = machine::resident(server.process()?)? as f64;
        let _clients = connect(&mut server, CONNECTIONS).await?;
        let all = machine::resident(server.process()?)? as f64;
        table.round([none / 1e3, all / 1e3, (all - none) / CONNECTIONS as f64]);
    }
    println!("{table}");
    let verdict = Verdict::new("idle, median of bytes per connection", table.median(2), BOUND);
    println!("  {verdict}");
    Ok(vec![verdict])
}

/// The server. Prints its port, then each step that was reached.
pub(crate) async fn serve(task: ServerTask, cue: Cue) -> Result<()> {
    machine::allow_open_files(task.steps.iter().copied().max().unwrap_or_default())?;
    let node = backplane::open("memory:").await?;
    let (here, mut changes) = watch::channel(0_usize);
    let hub = Hub::new(here)
        .user_id(|request| Some(UserId::from(request.uri.query()?)))
        .on_connected(|hub: HubContext<watch::Sender<usize>>| async move {
            hub.groups().add(hub.connection_id(), "idle").await?;
            hub.state().send_modify(|here| *here += 1);
            Ok(())
        })
        .on_disconnected(|hub: HubContext<watch::Sender<usize>>, _: Disconnect| async move {
            hub.state().send_modify(|here| *here -= 1);
            Ok(())
        });
    let server = hub.serve(Arc::new(node))?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    cue.ready().await?;
    println!("{}", listener.local_addr()?.port());
    let steps = async {
        for step in task.steps {
            changes.wait_for(|here| *here == step).await?;
            // The last of a connection goes when its task has ended, of which nobody is told.
            while server.connections() != step {
                sleep(Duration::from_millis(5)).await;
            }
            println!("{step}");
        }
        std::future::pending().await
    };
    tokio::select! {
        served = mount_and_serve(listener, &server) => served,
        told = steps => told,
    }
}

/// The clients: connect and stay until they are ended.
pub(crate) async fn connect(task: ClientsTask, cue: Cue) -> Result<()> {
    let ClientsTask { server, clients } = task;
    machine::allow_open_files(clients)?;
    let connecting = (0..clients).map(|client| websocket::connect(server, format!("?user-{client}")));
    let streams: Vec<TcpStream> =
        futures::stream::iter(connecting).buffer_unordered(AT_ONCE).try_collect().await?;
    cue.ready().await?;
    drop(streams);
    Ok(())
}
