//! A private `redis-server` on a free port with a folder of its own, gone when dropped; and what tests ask it.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use backplane_core::{Attach, Bus, Delivery, ErrorKind, Link, NodeId, Outgoing, Reach, Result, Topic};
use backplane_redis::{RedisBus, RedisConfig};
use bytes::Bytes;
use futures::StreamExt;

/// No test waits longer than this for anything.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
/// The heartbeat bound of tests that provoke faults.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(2);

pub(crate) struct Server {
    process: Child,
    pub(crate) port: u16,
    folder: tempfile::TempDir,
}

/// Starts a server or returns from the test.
macro_rules! server {
    ($($argument:expr),*) => {
        match $crate::server::Server::start(&[$($argument),*]) {
            Some(server) => server,
            None => return,
        }
    };
}
pub(crate) use server;

impl Server {
    /// `None`: there is no `redis-server`, and nobody requires one.
    pub(crate) fn start(arguments: &[&str]) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        Self::start_in(folder, arguments)
    }

    pub(crate) fn start_in(folder: tempfile::TempDir, arguments: &[&str]) -> Option<Self> {
        // Between choosing a free port and the server's bind another process may take it.
        for _ in 0..10 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let mut process = match Self::spawn(folder.path(), port, arguments) {
                Ok(process) => process,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    let required = std::env::var("BACKPLANE_TEST_REQUIRE").unwrap_or_default();
                    assert!(
                        !required.split(',').any(|name| name == "redis"),
                        "redis-server is required: {error}"
                    );
                    println!("SKIPPED: there is no redis-server");
                    return None;
                }
                Err(error) => panic!("{error}"),
            };
            let mut output = BufReader::new(process.stdout.take().unwrap());
            let mut log = String::new();
            while output.read_line(&mut log).unwrap() > 0 {
                if log.contains("Ready to accept connections") || log.contains("Sentinel ID is") {
                    // Somebody must read what else it prints.
                    std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
                    return Some(Self { process, port, folder });
                }
            }
            process.wait().unwrap();
            assert!(log.contains("Address already in use"), "redis-server did not start: {log}");
        }
        panic!("no free port");
    }

    /// A Redis Sentinel that watches nothing, with the `sentinel.conf` in `folder`.
    pub(crate) fn start_sentinel(folder: tempfile::TempDir) -> Option<Self> {
        Self::start_in(folder, &["--sentinel"])
    }

    fn spawn(folder: &Path, port: u16, arguments: &[&str]) -> std::io::Result<Child> {
        let port = port.to_string();
        let listen = if arguments.contains(&"--tls-port") { ["--port", "0"] } else { ["--port", &port] };
        let arguments = arguments.iter().map(|argument| if *argument == "PORT" { &port } else { *argument });
        let sentinel = arguments.clone().any(|argument| argument == "--sentinel");
        let stateless: &[&str] = if sentinel { &[] } else { &["--save", "", "--appendonly", "no"] };
        Command::new("redis-server")
            .args(sentinel.then_some("sentinel.conf"))
            .args(listen)
            .args(["--bind", "127.0.0.1", "--daemonize", "no"])
            .args(stateless)
            .args(arguments)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn config(&self) -> RedisConfig {
        RedisConfig { port: self.port, ..RedisConfig::default() }
    }

    pub(crate) fn bus(&self) -> RedisBus {
        RedisBus::new(self.config()).unwrap()
    }

    /// Runs a command on a connection of its own.
    pub(crate) fn ask<T: redis::FromRedisValue>(&self, command: &[&str]) -> T {
        let client = redis::Client::open(("127.0.0.1", self.port)).unwrap();
        let mut connection = client.get_connection().unwrap();
        let mut packed = redis::cmd(command[0]);
        packed.arg(&command[1..]).query(&mut connection).unwrap()
    }

    /// How many connections of links there are.
    pub(crate) fn link_connections(&self) -> usize {
        self.ask::<String>(&["CLIENT", "LIST"])
            .lines()
            .filter(|line| line.contains(" name=backplane-"))
            .count()
    }

    pub(crate) fn subscribers(&self, topic: &str) -> usize {
        self.ask::<(String, usize)>(&["PUBSUB", "NUMSUB", topic]).1
    }

    /// How often a command ran.
    pub(crate) fn calls(&self, command: &str) -> u64 {
        let statistics = self.ask::<String>(&["INFO", "commandstats"]);
        let start = format!("cmdstat_{command}:calls=");
        let Some(line) = statistics.lines().find_map(|line| line.strip_prefix(&start)) else { return 0 };
        line.split(',').next().unwrap().parse().unwrap()
    }

    /// Asks again and again until the answer is right.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !condition(self) {
            assert!(start.elapsed() < DEADLINE, "never: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    pub(crate) fn freeze(&self) {
        self.signal("-STOP");
    }

    pub(crate) fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.process.id().to_string()]).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(crate) fn attach(topics: &[Topic]) -> Attach<'_> {
    Attach {
        node: NodeId::random(),
        attempt: 1,
        topics,
        resume: None,
        deadline: Duration::from_secs(10),
        heartbeat: HEARTBEAT,
    }
}

pub(crate) async fn connect(bus: &RedisBus, topics: &[Topic]) -> Link {
    bus.connect(attach(topics)).await.unwrap()
}

pub(crate) async fn refused(config: RedisConfig) -> backplane_core::Error {
    RedisBus::new(config).unwrap().connect(attach(&[])).await.expect_err("it is refused")
}

pub(crate) fn outgoing(topic: &str, frame: impl Into<Bytes>) -> Outgoing {
    Outgoing { topic: Topic::from(topic), frame: frame.into() }
}

/// Publishes one frame and expects its reach.
pub(crate) async fn publish(link: &Link, topic: &str, frame: impl Into<Bytes>) -> Result<u32> {
    let mut outcomes = tokio::time::timeout(DEADLINE, link.sender.publish(vec![outgoing(topic, frame)]))
        .await
        .expect("an outcome in time");
    assert_eq!(outcomes.len(), 1);
    outcomes.remove(0).map(|reach| match reach {
        Reach::Nodes(nodes) => nodes,
        Reach::Unknown => panic!("a single server tells the reach"),
    })
}

/// The next frame, as topic and bytes.
pub(crate) async fn next(link: &mut Link) -> (Topic, Bytes) {
    match tokio::time::timeout(DEADLINE, link.inbound.next()).await.expect("a delivery in time") {
        Some(Ok(Delivery::Frame { topic, frame, .. })) => (topic, frame),
        other => panic!("{other:?}"),
    }
}

/// How the link ends, after whatever frames come before.
pub(crate) async fn end(link: &mut Link) -> Option<ErrorKind> {
    let last = async {
        loop {
            match link.inbound.next().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => break Some(error.kind()),
                None => break None,
            }
        }
    };
    let last = tokio::time::timeout(DEADLINE, last).await.expect("the link ends in time");
    assert!(link.inbound.next().await.is_none(), "nothing follows the end");
    last
}
