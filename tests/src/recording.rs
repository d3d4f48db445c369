//! Recordings of .NET servers on Redis (`transcripts/redis`, format in its README) as typed steps.
//!
//! Parsing is strict: a key, command or shape that the README does not know is a panic that names file and step, so
//! that no recorded fact is passed over unseen.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

/// One scenario.
#[derive(Clone, Debug)]
pub struct Recording {
    /// The scenario, and the file's name without `.json`.
    pub name: String,
    /// One sentence about it.
    pub about: String,
    /// How each server was started, by its letter.
    pub servers: BTreeMap<String, String>,
    /// How often it was recorded, and whether the runs agree.
    pub runs: String,
    /// What happened, in the order in which the recorder saw it.
    pub steps: Vec<Step>,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Milliseconds since the start note; only where time matters, and different in each run.
    pub at_ms: Option<u64>,
    /// Which of the server's connections to Redis, from 1; only where connections matter.
    pub connection: Option<u32>,
    /// What.
    pub event: Event,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A client acts.
    Does {
        /// Who.
        client: Client,
        /// For instance `invoke 3 ToGroup("room", "hi")`.
        action: String,
        /// The bytes it sends, where given.
        wire: Option<Bytes>,
    },
    /// Something arrives at a client.
    Receives {
        /// Where.
        client: Client,
        /// For instance `m("hi")`.
        what: String,
        /// The bytes of the hub message, where given.
        wire: Option<Bytes>,
    },
    /// A PUBLISH.
    Publish {
        /// Who publishes.
        by: Actor,
        /// What a foreign payload is meant to be.
        about: Option<String>,
        /// The channel, with the application prefix.
        channel: String,
        /// The payload.
        payload: Bytes,
        /// The recorder's description of it; missing where there is nothing to describe.
        decoded: Option<Value>,
        /// Redis' reply: how many got it.
        receivers: u64,
    },
    /// A SUBSCRIBE.
    Subscribe {
        /// Who subscribes.
        by: Actor,
        /// The channels, with the application prefix.
        channels: Vec<String>,
    },
    /// An UNSUBSCRIBE.
    Unsubscribe {
        /// Who unsubscribes.
        by: Actor,
        /// The channels, with the application prefix.
        channels: Vec<String>,
    },
    /// A command of the client library's own.
    Housekeeping {
        /// The server.
        server: String,
        /// The command and its arguments.
        command: Vec<String>,
        /// Redis' reply.
        reply: Value,
    },
    /// A message from Redis.
    Push {
        /// To whom.
        to: Actor,
        /// The channel, with the application prefix.
        channel: String,
        /// The payload.
        payload: Bytes,
        /// The recorder's description, where it repeats it.
        decoded: Option<Value>,
    },
    /// A line of a server's log.
    Log {
        /// The server.
        server: String,
        /// The line.
        line: String,
    },
    /// A connection to Redis opens or ends.
    Tcp {
        /// The server.
        server: String,
        /// `connect`, `closed by server`, `closed by redis`.
        what: String,
    },
    /// What the recorder did.
    Note(String),
}

/// Who speaks to Redis.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Actor {
    /// A .NET server, by its letter.
    Server(String),
    /// The recorder's own Redis client.
    Foreign(String),
}

/// A client and the server that it is connected to: `a1 on A`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    /// Its name, the first characters of its connection id.
    pub name: String,
    /// The letter of its server.
    pub server: String,
}

/// A channel, taken apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Channel {
    /// The full name of the hub type.
    pub hub: String,
    /// What is behind it.
    pub kind: ChannelKind,
}

/// What a channel is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ChannelKind {
    /// All connections.
    All,
    /// Group commands.
    Groups,
    /// Acknowledgements to a server.
    Ack(String),
    /// Client results to a server.
    Return(String),
    /// One connection.
    Connection(String),
    /// The members of a group.
    Group(String),
    /// The connections of a user.
    User(String),
}

impl Recording {
    /// All recordings, by name.
    ///
    /// # Panics
    /// When the folder or one of its files cannot be read or is not as the README says.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let folder = folder();
        let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut files: Vec<PathBuf> =
            entries.map(|entry| entry.expect("the folder of recordings can be listed").path()).collect();
        files.retain(|file| file.extension().is_some_and(|extension| extension == "json"));
        files.sort();
        files.iter().map(|file| Self::read(file)).collect()
    }

    /// The recording of a scenario.
    ///
    /// # Panics
    /// When there is none, or it is not as the README says.
    #[must_use]
    pub fn load(name: &str) -> Self {
        Self::read(&folder().join(format!("{name}.json")))
    }

    fn read(file: &Path) -> Self {
        let text = fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let raw: RawRecording =
            serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let step = |(index, value): (usize, Value)| {
            let place = format!("{}, step {}: {value}", raw.name, index + 1);
            let step: RawStep = serde_json::from_value(value).unwrap_or_else(|e| panic!("{place}: {e}"));
            step.typed().unwrap_or_else(|wrong| panic!("{place}: {wrong}"))
        };
        Self {
            steps: raw.steps.into_iter().enumerate().map(step).collect(),
            name: raw.name,
            about: raw.about,
            servers: raw.servers,
            runs: raw.runs,
        }
    }

    /// The application prefix that its servers were started with.
    #[must_use]
    pub fn prefix(&self) -> &str {
        let rest =
            self.servers.values().find_map(|start| start.split_once("--prefix ").map(|(_, rest)| rest));
        rest.and_then(|rest| rest.split(' ').next()).unwrap_or_default()
    }

    /// Takes a channel apart; `None` if it is none of the layout's, or lacks the prefix.
    #[must_use]
    pub fn channel(&self, channel: &str) -> Option<Channel> {
        Channel::parse(channel.strip_prefix(self.prefix())?)
    }
}

impl Channel {
    /// Takes an un-prefixed channel apart. Names may hold anything, so the first mark behind the hub decides.
    #[must_use]
    pub fn parse(channel: &str) -> Option<Self> {
        let (hub, rest) = channel.split_once(':')?;
        let kind = match rest.split_once(':') {
            None if rest == "all" => ChannelKind::All,
            Some(("connection", id)) => ChannelKind::Connection(id.to_owned()),
            Some(("group", name)) => ChannelKind::Group(name.to_owned()),
            Some(("user", id)) => ChannelKind::User(id.to_owned()),
            Some(("internal", "groups")) => ChannelKind::Groups,
            Some(("internal", rest)) => match rest.split_once(':')? {
                ("ack", server) => ChannelKind::Ack(server.to_owned()),
                ("return", server) => ChannelKind::Return(server.to_owned()),
                _ => return None,
            },
            _ => return None,
        };
        Some(Self { hub: hub.to_owned(), kind })
    }
}

/// Bytes from hexadecimal digits.
///
/// # Errors
/// A sentence, when it is none.
pub fn from_hex(text: &str) -> Result<Bytes, String> {
    let pair = |at| text.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let bytes: Option<Vec<u8>> = (0..text.len()).step_by(2).map(pair).collect();
    bytes.map(Bytes::from).ok_or_else(|| format!("{text:?} is not hexadecimal"))
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("transcripts").join("redis")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRecording {
    name: String,
    about: String,
    servers: BTreeMap<String, String>,
    runs: String,
    steps: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStep {
    client: Option<String>,
    does: Option<String>,
    receives: Option<String>,
    wire_text: Option<String>,
    wire_hex: Option<String>,
    server: Option<String>,
    foreign: Option<String>,
    about: Option<String>,
    command: Option<Vec<String>>,
    push: Option<Vec<String>>,
    payload_hex: Option<String>,
    decoded: Option<Value>,
    #[serde(default)]
    reply: Value,
    log: Option<String>,
    tcp: Option<String>,
    conn: Option<u32>,
    note: Option<String>,
    t_ms: Option<u64>,
}

impl RawStep {
    fn typed(mut self) -> Result<Step, String> {
        let (at_ms, connection) = (self.t_ms, self.conn);
        let event = if let Some(note) = self.note {
            Event::Note(note)
        } else if let Some(client) = self.client.take() {
            self.client_event(&client)?
        } else if let Some(line) = self.log {
            Event::Log { server: self.server.ok_or("a log without its server")?, line }
        } else if let Some(what) = self.tcp {
            Event::Tcp { server: self.server.ok_or("a connection without its server")?, what }
        } else {
            self.redis_event()?
        };
        Ok(Step { at_ms, connection, event })
    }

    fn client_event(self, client: &str) -> Result<Event, String> {
        let (name, server) = client.split_once(" on ").ok_or("a client that is on no server")?;
        let client = Client { name: name.to_owned(), server: server.to_owned() };
        let wire = match (self.wire_text, self.wire_hex) {
            (Some(text), None) => Some(Bytes::from(text)),
            (None, Some(hex)) => Some(from_hex(&hex)?),
            (None, None) => None,
            (Some(_), Some(_)) => return Err("both wire_text and wire_hex".to_owned()),
        };
        match (self.does, self.receives) {
            (Some(action), None) => Ok(Event::Does { client, action, wire }),
            (None, Some(what)) => Ok(Event::Receives { client, what, wire }),
            _ => Err("a client neither does nor receives".to_owned()),
        }
    }

    fn redis_event(self) -> Result<Event, String> {
        let actor = match (self.server, self.foreign) {
            (Some(server), None) => Actor::Server(server),
            (None, Some(foreign)) => Actor::Foreign(foreign),
            _ => return Err("neither a server's step nor a foreign one's".to_owned()),
        };
        let payload = self.payload_hex.as_deref().map(from_hex).transpose()?;
        if let Some(push) = self.push {
            let [kind, channel] = <[String; 2]>::try_from(push).map_err(|_| "a push has two parts")?;
            if kind != "message" {
                return Err(format!("a push of the unknown kind {kind:?}"));
            }
            let payload = payload.ok_or("a push without its payload")?;
            return Ok(Event::Push { to: actor, channel, payload, decoded: self.decoded });
        }
        let command = self.command.ok_or("a step of no known kind")?;
        match (command.first().map(String::as_str), actor) {
            (Some("PUBLISH"), by) => {
                let [_, channel] = <[String; 2]>::try_from(command).map_err(|_| "a PUBLISH has two parts")?;
                Ok(Event::Publish {
                    by,
                    about: self.about,
                    channel,
                    payload: payload.ok_or("a PUBLISH without its payload")?,
                    decoded: self.decoded,
                    receivers: self.reply.as_u64().ok_or("a PUBLISH without its reply")?,
                })
            }
            (Some("SUBSCRIBE"), by) => Ok(Event::Subscribe { by, channels: command[1..].to_vec() }),
            (Some("UNSUBSCRIBE"), by) => Ok(Event::Unsubscribe { by, channels: command[1..].to_vec() }),
            (Some(_), Actor::Server(server)) => {
                Ok(Event::Housekeeping { server, command, reply: self.reply })
            }
            _ => Err("a command of no known kind".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recording_parses_and_is_named_as_its_file() {
        let recordings = Recording::all();
        assert_eq!(recordings.len(), 37);
        for recording in recordings {
            assert_eq!(Recording::load(&recording.name).steps, recording.steps);
        }
    }

    #[test]
    fn channels_come_apart_with_names_that_hold_colons() {
        let channel = |hub: &str, kind| Some(Channel { hub: hub.to_owned(), kind });
        assert_eq!(Channel::parse("Demo.ChatHub:all"), channel("Demo.ChatHub", ChannelKind::All));
        assert_eq!(
            Channel::parse("H:group:a:user:*"),
            channel("H", ChannelKind::Group("a:user:*".to_owned()))
        );
        assert_eq!(Channel::parse("H:group:"), channel("H", ChannelKind::Group(String::new())));
        assert_eq!(Channel::parse("H:internal:ack:S"), channel("H", ChannelKind::Ack("S".to_owned())));
        for none in ["somewhere else", "H:ALL", "H:internal:other:S", "__Booksleeve_MasterChanged"] {
            assert_eq!(Channel::parse(none), None);
        }
    }

    #[test]
    fn the_prefix_is_taken_from_how_the_servers_were_started() {
        let prefixed = Recording::load("prefix-traffic");
        assert_eq!(prefixed.prefix(), "app1:");
        assert_eq!(
            prefixed.channel("app1:Demo.ChatHub:all"),
            Some(Channel { hub: "Demo.ChatHub".to_owned(), kind: ChannelKind::All })
        );
        assert_eq!(prefixed.channel("Demo.ChatHub:all"), None);
        assert_eq!(Recording::load("sends").prefix(), "");
    }
}
