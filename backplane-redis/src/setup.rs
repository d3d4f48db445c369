//! From an address to a connection that is ready: authenticated, named, and what the server is known.

use backplane_core::{Error, ErrorKind, Result};
use bytes::{Buf, BytesMut};
use redis::Value;
use tokio::io::AsyncWriteExt;

use crate::config::{RedisConfig, Resp};
use crate::refusal::refusal;
use crate::resp;
use crate::socket::Socket;

/// A connection that is ready, and whether its server is a cluster node.
pub(crate) struct Ready {
    pub(crate) socket: Socket,
    pub(crate) cluster: bool,
}

/// What a command of the set-up is for: how its answer is judged.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Authenticate,
    /// Tells mode and role; before Redis 6 the command does not exist.
    Hello,
    Select,
    /// For operators who look at `CLIENT LIST`. A refusal changes nothing.
    Name,
}

/// Connects, authenticates, selects and names, in one round trip after the handshakes.
pub(crate) async fn open(config: &RedisConfig, name: &str) -> Result<Ready> {
    let mut socket = Socket::connect(config).await?;
    let (steps, commands) = commands(config, name);
    let mut input = BytesMut::with_capacity(4 << 10);
    socket.write_all(&commands).await.map_err(|error| broken(config, error))?;
    socket.flush().await.map_err(|error| broken(config, error))?;

    let mut mode = Mode::default();
    for step in steps {
        let line = match reply(config, &mut socket, &mut input).await? {
            Value::ServerError(error) => match error.details() {
                Some(details) => format!("{} {details}", error.code()),
                None => error.code().to_owned(),
            },
            value => {
                if step == Step::Hello {
                    mode = Mode::read(&value);
                }
                continue;
            }
        };
        let error = refusal("connect", line.as_bytes());
        match step {
            // An old server is a single one. With RESP 3 there is no way on.
            Step::Hello if config.resp == Resp::V2 && error.kind() == ErrorKind::Unsupported => {}
            Step::Name => tracing::debug!(%error, "the connection keeps no name"),
            Step::Authenticate | Step::Hello | Step::Select => return Err(error),
        }
    }
    if mode.sentinel {
        return Err(Error::new(ErrorKind::Unsupported, "connect").with_context(format!(
            "{} is a Sentinel; give the address of the master that it watches",
            config.address()
        )));
    }
    if mode.replica && !mode.cluster {
        return Err(Error::new(ErrorKind::Unavailable, "connect").with_context(format!(
            "{} is a replica: a publish there would reach only its own subscribers",
            config.address()
        )));
    }
    if !input.is_empty() {
        return Err(Error::new(ErrorKind::Malformed, "connect").with_context("more replies than commands"));
    }
    Ok(Ready { socket, cluster: mode.cluster })
}

fn commands(config: &RedisConfig, name: &str) -> (Vec<Step>, Vec<u8>) {
    let mut steps = Vec::new();
    let mut packed = Vec::new();
    let mut add = |step, command: &redis::Cmd| {
        steps.push(step);
        command.write_packed_command(&mut packed);
    };
    match config.resp {
        Resp::V2 => {
            if let Some(password) = &config.password {
                let mut auth = redis::cmd("AUTH");
                if let Some(username) = &config.username {
                    auth.arg(username);
                }
                add(Step::Authenticate, auth.arg(password));
            }
            add(Step::Hello, redis::cmd("HELLO").arg(2));
        }
        Resp::V3 => {
            let mut hello = redis::cmd("HELLO");
            hello.arg(3);
            if let Some(password) = &config.password {
                hello.arg("AUTH").arg(config.username.as_deref().unwrap_or("default")).arg(password);
            }
            add(Step::Hello, &hello);
        }
    }
    if config.database != 0 {
        add(Step::Select, redis::cmd("SELECT").arg(config.database));
    }
    add(Step::Name, redis::cmd("CLIENT").arg("SETNAME").arg(name));
    (steps, packed)
}

/// The next reply. Speed does not matter here, so the crate's parser takes it apart.
async fn reply(config: &RedisConfig, socket: &mut Socket, input: &mut BytesMut) -> Result<Value> {
    /// Far above any answer to these commands.
    const LONGEST: usize = 1 << 20;
    let malformed = || Error::new(ErrorKind::Malformed, "connect").with_context(config.address());
    loop {
        if let Some(length) = resp::measure(input).map_err(|error| malformed().with_source(error))? {
            let value =
                redis::parse_redis_value(&input[..length]).map_err(|error| malformed().with_source(error))?;
            input.advance(length);
            return Ok(value);
        }
        if input.len() > LONGEST {
            return Err(malformed());
        }
        std::future::poll_fn(|cx| socket.poll_fill(cx, input))
            .await
            .map_err(|error| broken(config, error))?;
    }
}

fn broken(config: &RedisConfig, error: std::io::Error) -> Error {
    if let Some(refused) = backplane_tls::late_refusal(&error) {
        return refused;
    }
    let hint = match (error.kind(), config.tls.is_some()) {
        (std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::ConnectionReset, false) => {
            " during set-up (if it is a TLS port: rediss://)"
        }
        _ => " during set-up",
    };
    Error::new(ErrorKind::Unavailable, "connect")
        .with_context(format!("{} broke{hint}", config.address()))
        .with_source(error)
}

/// What `HELLO` tells about the server.
#[derive(Clone, Copy, Default)]
struct Mode {
    cluster: bool,
    sentinel: bool,
    replica: bool,
}

impl Mode {
    /// From the answer: a map in RESP 3, the same pairs as a flat array in RESP 2.
    fn read(answer: &Value) -> Self {
        let mut mode = Self::default();
        let mut learn = |key: &Value, value: &Value| {
            let (Some(key), Some(value)) = (text(key), text(value)) else { return };
            match key {
                b"mode" => {
                    mode.cluster = value == b"cluster";
                    mode.sentinel = value == b"sentinel";
                }
                b"role" => mode.replica = matches!(value, b"replica" | b"slave"),
                _ => {}
            }
        };
        match answer {
            Value::Map(pairs) => pairs.iter().for_each(|(key, value)| learn(key, value)),
            Value::Array(items) => {
                for pair in items.chunks_exact(2) {
                    learn(&pair[0], &pair[1]);
                }
            }
            _ => {}
        }
        mode
    }
}

fn text(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.as_bytes()),
        _ => None,
    }
}
