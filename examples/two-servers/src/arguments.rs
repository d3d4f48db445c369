//! The command line.

use std::net::{IpAddr, Ipv4Addr};

pub(crate) const USAGE: &str = "\
two-servers [--ports PORT,PORT] [--url URL] [--host ADDRESS] [--balance PORT]
two-servers --port PORT --url URL
two-servers --script [--url URL]

  --ports PORT,PORT  starts a server on each of these (default 5001,5002; 0: any free one)
  --port PORT        starts one server; its partner is another terminal's or another machine's
  --url URL          the bus between them: memory: (default), redis://HOST:PORT, rediss://..., amqp://...,
                     nats://..., servicebus://..., postgres://..., mysql://..., mssql://..., sqlite:FILE
  --host ADDRESS     the IP address to listen at (default 127.0.0.1; 0.0.0.0: all)
  --balance PORT     listens there too, and hands each connection to the next server in turn
  --script           plays every kind of message between two servers, checks each arrival, and ends

RUST_LOG=info shows what the servers and the backplane have to say.";

/// Most servers that one process starts.
const MOST: usize = 16;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Arguments {
    pub(crate) run: Run,
    pub(crate) url: String,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Run {
    Script,
    Serve(Serve),
}

/// Where to listen.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Serve {
    pub(crate) host: IpAddr,
    /// One server each.
    pub(crate) ports: Vec<u16>,
    /// The port of the front before them.
    pub(crate) balance: Option<u16>,
}

impl Arguments {
    /// `Ok(None)`: help was asked for. `Err`: one line that says what is wrong. URLs are not repeated in it, since they
    /// may hold a password.
    pub(crate) fn parse(words: impl IntoIterator<Item = String>) -> Result<Option<Self>, String> {
        let mut words = words.into_iter();
        let mut script = false;
        let (mut url, mut host, mut one, mut ports, mut balance) = (None, None, None, None, None);
        while let Some(word) = words.next() {
            let mut behind = |what: &str| {
                let value = words.next().filter(|value| !value.starts_with("--"));
                value.ok_or_else(|| format!("{word} needs {what} behind it"))
            };
            match word.as_str() {
                "--script" => script = true,
                "--url" => once(&mut url, &word, behind("a URL")?)?,
                "--host" => once(&mut host, &word, address(&behind("an IP address")?)?)?,
                "--port" => once(&mut one, &word, port(&behind("a port")?)?)?,
                "--ports" => once(&mut ports, &word, list(&behind("two ports")?)?)?,
                "--balance" => once(&mut balance, &word, port(&behind("a port")?)?)?,
                "--help" | "-h" => return Ok(None),
                option if option.starts_with("--") && !option.contains(':') => {
                    return Err(format!("unknown option {option}; --help lists what there is"));
                }
                _ => return Err("unexpected argument; a URL stands behind --url".to_owned()),
            }
        }
        let url = url.unwrap_or_else(|| "memory:".to_owned());
        if script {
            if host.is_some() || one.is_some() || ports.is_some() || balance.is_some() {
                return Err("--script listens on ports of its own; only --url goes with it".to_owned());
            }
            return Ok(Some(Self { run: Run::Script, url }));
        }
        let ports = match (one, ports) {
            (Some(_), Some(_)) => return Err("either --port or --ports, not both".to_owned()),
            (Some(one), None) => vec![one],
            (None, ports) => ports.unwrap_or_else(|| vec![5001, 5002]),
        };
        let all: Vec<u16> = ports.iter().copied().chain(balance).filter(|port| *port != 0).collect();
        if let Some(twice) = all.iter().enumerate().find(|(at, port)| all[..*at].contains(port)) {
            return Err(format!("port {} is given twice", twice.1));
        }
        let host = host.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        Ok(Some(Self { run: Run::Serve(Serve { host, ports, balance }), url }))
    }
}

fn once<T>(place: &mut Option<T>, option: &str, value: T) -> Result<(), String> {
    if place.replace(value).is_some() {
        return Err(format!("{option} is given twice"));
    }
    Ok(())
}

fn port(word: &str) -> Result<u16, String> {
    word.parse().map_err(|_| format!("`{}` is not a port: a number up to 65535", shown(word)))
}

fn list(word: &str) -> Result<Vec<u16>, String> {
    let ports = word.split(',').map(port).collect::<Result<Vec<_>, _>>()?;
    if !(2..=MOST).contains(&ports.len()) {
        return Err(format!(
            "--ports needs 2 to {MOST} ports with commas between them; --port starts one server"
        ));
    }
    Ok(ports)
}

fn address(word: &str) -> Result<IpAddr, String> {
    word.parse().map_err(|_| format!("`{}` is not an IP address", shown(word)))
}

/// A URL at the wrong place is not repeated.
fn shown(word: &str) -> &str {
    if word.contains("//") || word.contains('@') { "this" } else { word }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Option<Arguments>, String> {
        Arguments::parse(line.split_whitespace().map(str::to_owned))
    }

    fn serve(line: &str) -> Serve {
        match parse(line).unwrap().unwrap().run {
            Run::Serve(serve) => serve,
            Run::Script => panic!("{line:?} is no script"),
        }
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let host = IpAddr::V4(Ipv4Addr::LOCALHOST);
        assert_eq!(serve(""), Serve { host, ports: vec![5001, 5002], balance: None });
        assert_eq!(parse("").unwrap().unwrap().url, "memory:");
        assert_eq!(parse("--help --port").unwrap(), None);
    }

    #[test]
    fn what_is_given_is_taken() {
        let script = Arguments { run: Run::Script, url: "redis://x".to_owned() };
        assert_eq!(parse("--url redis://x --script").unwrap(), Some(script));
        assert_eq!(serve("--ports 0,0").ports, [0, 0]);
        assert_eq!(serve("--port 5002 --url redis://x").ports, [5002]);
        assert_eq!(serve("--balance 5000 --ports 6001,6002,6003").balance, Some(5000));
        assert!(serve("--host ::").host.is_unspecified());
    }

    #[test]
    fn a_wrong_line_is_refused_without_repeating_a_url() {
        for (line, says) in [
            ("--url", "needs a URL"),
            ("--url --script", "needs a URL"),
            ("--url a: --url b:", "--url is given twice"),
            ("--scrpt", "unknown option --scrpt"),
            ("redis://:hunter2@x", "behind --url"),
            ("--url=redis://:hunter2@x", "behind --url"),
            ("--ports redis://:hunter2@x", "`this` is not a port"),
            ("--ports 5001", "--port starts one"),
            ("--ports 5001,5001", "port 5001 is given twice"),
            ("--ports 5001,5002 --balance 5002", "port 5002 is given twice"),
            ("--port 70000", "`70000` is not a port"),
            ("--port 1 --ports 1,2", "not both"),
            ("--port 1 --port 2", "--port is given twice"),
            ("--balance", "needs a port"),
            ("--host roof", "`roof` is not an IP address"),
            ("--script --port 1", "ports of its own"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(says) && !error.contains("hunter2"), "{line}: {error}");
        }
    }
}
