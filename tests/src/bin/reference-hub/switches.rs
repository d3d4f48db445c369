//! The switches: one for each option of the recordings.

use std::sync::Arc;
use std::time::Duration;

use backplane_signalr::{HubOptions, Transports};

/// What the command line says.
#[derive(Debug)]
pub(crate) struct Switches {
    /// 0: any free one.
    pub(crate) port: u16,
    /// The bus.
    pub(crate) url: String,
    /// Whether `http://example.com` may call from its pages.
    pub(crate) cors: bool,
    /// How long a client may take to send a request's head.
    pub(crate) heads: Duration,
    /// Everything that is an option of the hub.
    pub(crate) options: HubOptions,
}

const USAGE: &str = "\
reference-hub [--port N] [--url URL]
  seconds:  --keepalive --timeout --handshake --disconnect --polltimeout --closetimeout --heads (of requests)
  bytes:    --recv (record limit) --resume (resume buffer)
  numbers:  --parallel (calls at once) --minver (lowest negotiate version)
  names:    --transports WebSockets,ServerSentEvents,LongPolling,None
  flags:    --detailed --nomsgpack --noresume --cors --subprotocol";

impl Switches {
    /// # Errors
    /// A switch that is not known or whose value is missing or wrong, with the usage.
    pub(crate) fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut switches = Self {
            port: 0,
            url: "memory:".to_owned(),
            cors: false,
            heads: Duration::from_secs(10),
            options: HubOptions::default(),
        };
        let mut arguments = arguments.into_iter();
        while let Some(switch) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{switch} needs a value\n{USAGE}"));
            let options = &mut switches.options;
            match switch.as_str() {
                "--port" => switches.port = number(&value()?)?,
                "--url" => switches.url = value()?,
                "--keepalive" => options.keep_alive = seconds(&value()?)?,
                "--timeout" => options.client_timeout = seconds(&value()?)?,
                "--handshake" => options.handshake_timeout = seconds(&value()?)?,
                "--disconnect" => options.disconnect_timeout = seconds(&value()?)?,
                "--closetimeout" => options.close_timeout = seconds(&value()?)?,
                "--heads" => switches.heads = seconds(&value()?)?,
                "--recv" => options.max_record = number(&value()?)?,
                "--parallel" => options.parallel_calls = number(&value()?)?,
                "--minver" => options.min_negotiate_version = number(&value()?)?,
                "--transports" => options.transports = transports(&value()?)?,
                "--detailed" => options.detailed_errors = true,
                "--cors" => switches.cors = true,
                "--subprotocol" => options.subprotocol = Some(Arc::new(b_or_the_first)),
                // Long polling and stateful reconnect are not served yet: there is nothing to set.
                "--polltimeout" => drop(seconds(&value()?)?),
                "--resume" => drop(number::<usize>(&value()?)?),
                // Nor is MessagePack: there is nothing to take away.
                "--nomsgpack" | "--noresume" => {}
                _ => return Err(format!("{switch} is not known\n{USAGE}")),
            }
        }
        Ok(switches)
    }
}

fn number<T: std::str::FromStr>(value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{value} is no such number\n{USAGE}"))
}

fn seconds(value: &str) -> Result<Duration, String> {
    Duration::try_from_secs_f64(number(value)?).map_err(|error| format!("{value}: {error}"))
}

fn transports(value: &str) -> Result<Transports, String> {
    let mut transports = Transports { web_sockets: false };
    for name in value.split(',') {
        match name {
            "WebSockets" => transports.web_sockets = true,
            "ServerSentEvents" | "LongPolling" | "None" => {}
            _ => return Err(format!("{name} is no transport\n{USAGE}")),
        }
    }
    Ok(transports)
}

/// The selector of the recordings.
fn b_or_the_first<'a>(offered: &[&'a str]) -> Option<&'a str> {
    offered.iter().find(|name| **name == "b").or(offered.first()).copied()
}
