//! The hub of the recordings (`tests/transcripts/http`) on our server, with a switch for each option that they used.
//! Prints `READY port` when it serves; ends in order, with exit code 0, on SIGTERM.
#![allow(clippy::print_stdout, reason = "a command-line program talks to its terminal")]

mod cors;
#[path = "../../../../examples/two-servers/src/http.rs"]
mod http;
mod hub;
mod switches;

use std::error::Error;
use std::io;
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use backplane::Backplane as _;
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use switches::Switches;

/// How long requests that are being served at the end may take.
const GRACE: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> ExitCode {
    let switches = match Switches::parse(std::env::args().skip(1)) {
        Ok(switches) => switches,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    match serve(switches).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// With room for thousands that come at once: of a client that finds the kernel's queue full and then says nothing, the
/// server never hears.
fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind((Ipv4Addr::LOCALHOST, port).into())?;
    socket.listen(4096)
}

async fn serve(switches: Switches) -> Result<(), Box<dyn Error>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let node = Arc::new(backplane::resolve(&switches.url)?.open().await?);
    let hub = hub::hub().options(switches.options).serve(node.clone())?;
    let mut app = hub.mount("/chatHub", axum::Router::new());
    if switches.cors {
        app = app.layer(axum::middleware::from_fn(cors::policy));
    }
    let listener = listen(switches.port)?;
    println!("READY {}", listener.local_addr()?.port());

    let stop = CancellationToken::new();
    let serving =
        AbortOnDropHandle::new(tokio::spawn(http::serve(listener, app, switches.heads, stop.clone())));
    terminate.recv().await;
    hub.shutdown().await;
    stop.cancel();
    tokio::time::timeout(GRACE, serving).await.map_err(|_| "requests did not end in time")??;
    node.shutdown().await?;
    Ok(())
}
