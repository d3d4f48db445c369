//! Runs the servers until somebody ends them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use futures::future::join_all;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::task::AbortOnDropHandle;

use crate::arguments::Serve;
use crate::bus::{self, SharedBus};
use crate::server::{HUB, Server};
use crate::{Failure, balance};

/// Starts everything, says where to look, and ends in order at Ctrl-C or SIGTERM.
pub(crate) async fn run(wanted: Serve, url: &str) -> Result<(), Failure> {
    let wrong = |error: &dyn std::fmt::Display| Failure::Wrong(error.to_string());
    let bus = bus::open(url).map_err(|error| wrong(&error))?;
    // First what fails at once: nothing has been started then.
    let mut listeners = Vec::new();
    for port in &wanted.ports {
        listeners.push(listen(wanted.host, *port).await?);
    }
    let front = match wanted.balance {
        Some(port) => Some(listen(wanted.host, port).await?),
        None => None,
    };
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| wrong(&error))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| wrong(&error))?;

    let (mut servers, mut addresses) = (Vec::new(), Vec::new());
    for (listener, address) in listeners {
        let node = bus.node().await.map_err(|error| wrong(&error))?;
        let started = Server::start(listener, address, &bus, node, Vec::new(), front.is_some());
        servers.push(started.map_err(|error| wrong(&error))?);
        addresses.push(address);
    }
    tell(&bus, &addresses, front.as_ref().map(|(_, address)| *address));
    let front = front.map(|(front, _)| {
        let servers = addresses.iter().map(|address| reachable(*address)).collect();
        AbortOnDropHandle::new(tokio::spawn(balance::run(front, servers)))
    });

    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    println!("\nEnding: the clients are told to come back. Once more ends at once.");
    tokio::select! {
        ended = join_all(servers.into_iter().map(Server::shutdown)) => {
            ended.into_iter().collect::<backplane::Result<()>>().map_err(|error| Failure::Late(error.to_string()))?;
        }
        _ = interrupt.recv() => return Err(Failure::Late("ended at once".to_owned())),
        _ = terminate.recv() => return Err(Failure::Late("ended at once".to_owned())),
    }
    drop(front);
    Ok(())
}

async fn listen(host: IpAddr, port: u16) -> Result<(TcpListener, SocketAddr), Failure> {
    let wanted = SocketAddr::new(host, port);
    let wrong = |error: std::io::Error| {
        let cure = match error.kind() {
            std::io::ErrorKind::AddrInUse => "; --ports and --port name others, 0 is any free one",
            _ => "",
        };
        Failure::Wrong(format!("cannot listen at {wanted}: {}{cure}", plain(&error)))
    };
    let listener = TcpListener::bind(wanted).await.map_err(wrong)?;
    let address = listener.local_addr().map_err(wrong)?;
    Ok((listener, address))
}

/// Without the number of the operating system.
fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

/// Who listens everywhere is found on this machine too.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

fn tell(bus: &SharedBus, servers: &[SocketAddr], front: Option<SocketAddr>) {
    let url = |address: SocketAddr| format!("http://{}", reachable(address));
    match servers.len() {
        1 => println!("A server on {}. Open its page:\n", bus.name()),
        many => println!("{many} servers that act as one, on {}. Open a page of each:\n", bus.name()),
    }
    for server in servers {
        println!("    {}/", url(*server));
    }
    let first = url(servers[0]);
    println!();
    match (servers.len(), bus.is_embedded()) {
        (1, true) => println!(
            "Nobody else can join an embedded bus: with --url redis://... another terminal or machine is its partner."
        ),
        (1, false) => {
            println!("Its partner: the same command with another --port, here or on another machine.")
        }
        _ => println!("Write something in one of them: it appears in the other."),
    }
    println!(
        "Any SignalR client can join in: the hub is {first}{HUB}, its method SendMessage(user, message)"
    );
    println!("reaches every client of every server as ReceiveMessage(user, message).");
    println!("\n    curl -i {first}/health     200 while the link is up, else 503");
    println!("    curl {first}/stats         the counters");
    if let Some(front) = front {
        let front = url(front);
        println!("\nA front hands each connection to the next server in turn:\n");
        println!("    {front}/                   fails: negotiated with one server, connected to the other");
        println!("    {front}/?skip-negotiation  works: one connection, so one server");
    }
    println!("\nCtrl-C ends it.");
}
