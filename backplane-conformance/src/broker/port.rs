//! Where a private broker can listen.

use std::hash::{BuildHasher as _, Hasher as _};
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;

/// The lowest port tried: below it live services of the machine.
const LOWEST: u16 = 15_000;

/// How many ports are tried below the kernel's range before taking whatever the kernel gives.
const TRIES: usize = 64;

/// A loopback port on which nobody listens now. Somebody may take it before the server does: start again with
/// another then.
///
/// It lies below the range from which the kernel draws the ports of clients, where possible. Inside that range a
/// client that keeps dialling a server that is down can be given the server's own port, connects to itself, and the
/// server cannot come back.
///
/// # Errors
/// When no port at all can be bound.
pub fn free_port() -> std::io::Result<u16> {
    let range = below_client_ports();
    for _ in 0..TRIES {
        if range.is_empty() {
            break;
        }
        let width = u64::from(range.end - range.start);
        let offset = u16::try_from(random() % width).expect("less than the width of a range of ports");
        if let Ok(port) = bind(range.start + offset) {
            return Ok(port);
        }
    }
    bind(0)
}

fn bind(port: u16) -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, port))?.local_addr()?.port())
}

fn below_client_ports() -> Range<u16> {
    let first = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse().ok());
    // Where the kernel does not say, its range starts at 32,768 or 49,152.
    LOWEST..first.unwrap_or(32_768).max(LOWEST)
}

pub(super) fn random() -> u64 {
    // A new `RandomState` is keyed differently each time.
    std::hash::RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_port_can_be_bound_and_is_no_client_port() {
        let port = free_port().unwrap();
        let range = below_client_ports();
        assert!(range.is_empty() || range.contains(&port), "{port} outside {range:?}");
    }

    #[test]
    fn ports_differ() {
        let ports: std::collections::HashSet<u16> = (0..20).map(|_| free_port().unwrap()).collect();
        assert!(ports.len() > 10, "{ports:?}");
    }
}
