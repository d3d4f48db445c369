//! Our nodes: the publishing one, and the subscribing server with the hub mounted into an axum application.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::serve::ListenerExt as _;
use backplane_signalr::{Hub, HubContext, HubServer};
use tokio::net::TcpListener;

use super::CONNECTED;
use super::bare::Task;
use crate::part::Cue;
use crate::{Result, machine};

/// Where the hub is mounted.
pub(crate) const PATH: &str = "/chatHub";

/// A hub without clients, to send from.
pub(crate) async fn open(url: &str) -> Result<HubServer> {
    let node = backplane::open(url).await?;
    Ok(Hub::new(()).serve(Arc::new(node))?)
}

/// Prints its port, and that all clients are connected; serves them until it is ended.
pub(crate) async fn serve(task: Task, cue: Cue) -> Result<()> {
    let Task { url, clients } = task;
    machine::allow_open_files(clients)?;
    let node = backplane::open(&url).await?;
    let hub = Hub::new(AtomicUsize::new(0)).on_connected(move |hub: HubContext<AtomicUsize>| async move {
        if hub.state().fetch_add(1, Ordering::Relaxed) + 1 == clients {
            println!("{CONNECTED}");
        }
        Ok(())
    });
    let server = hub.serve(Arc::new(node))?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    cue.ready().await?;
    println!("{}", listener.local_addr()?.port());
    mount_and_serve(listener, &server).await
}

/// Serves the hub in an application of its own, until the process ends.
pub(crate) async fn mount_and_serve(listener: TcpListener, server: &HubServer) -> Result<()> {
    // A socket that refuses the option serves all the same, only later.
    let listener = listener.tap_io(|socket| drop(socket.set_nodelay(true)));
    Ok(axum::serve(listener, server.mount(PATH, axum::Router::new())).await?)
}
