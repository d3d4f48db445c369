//! Private brokers start, suffer and leave nothing behind.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test fails by it, also outside of its own function")]

use std::io::{BufRead as _, BufReader, ErrorKind};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backplane_conformance::broker::{
    Broker, Folder, Launch, Process, Reachable, Redis, RedisOptions, Reply, StartError,
};
use backplane_core::ErrorKind as Kind;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const DEADLINE: Duration = Duration::from_secs(10);

fn until(what: &str, fact: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !fact() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn is_down(address: SocketAddr) -> bool {
    TcpStream::connect(address).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

async fn set(redis: &Redis, key: &str, value: &str) {
    assert_eq!(redis.command(&["SET", key, value]).await.unwrap(), Reply::Text("OK".into()));
}

#[tokio::test]
async fn it_answers_at_its_url_and_ends_when_dropped() {
    let Some(redis) = Redis::require(RedisOptions::default()).await else { return };
    assert_eq!(redis.url(), format!("redis://127.0.0.1:{}", redis.port()));
    set(&redis, "a", "1").await;
    assert_eq!(redis.command(&["INCR", "a"]).await.unwrap(), Reply::Integer(2));
    assert_eq!(redis.command(&["GET", "b"]).await.unwrap(), Reply::Nil);
    let both = redis.command(&["MGET", "a", "b"]).await.unwrap();
    assert_eq!(both.elements(), [Reply::Text("2".into()), Reply::Nil]);
    assert!(redis.command(&["CLIENT", "LIST"]).await.unwrap().text().contains("cmd=client"));
    assert_eq!(redis.calls().await.unwrap()["incr"], 1);
    assert!(redis.channels().await.unwrap().is_empty());
    let wrong = redis.command(&["NONSENSE"]).await.unwrap_err();
    assert_eq!(wrong.kind(), Kind::Denied);
    assert!(wrong.to_string().contains("unknown command"), "{wrong}");

    let (address, folder) = (redis.address(), redis.process().folder().path().to_owned());
    assert!(folder.exists());
    drop(redis);
    assert!(is_down(address));
    assert!(!folder.exists());
}

#[tokio::test]
async fn killed_and_stopped_it_comes_back_on_its_port_and_empty() {
    let Some(redis) = Redis::require(RedisOptions::default()).await else { return };
    let first = redis.process().id();
    set(&redis, "a", "1").await;
    redis.kill();
    assert!(is_down(redis.address()) && redis.process().id().is_none());
    assert_eq!(redis.command(&["PING"]).await.unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(redis.freeze().unwrap_err().kind(), Kind::Unavailable);

    redis.restart().await.unwrap();
    assert_ne!(redis.process().id(), first);
    assert_eq!(redis.command(&["GET", "a"]).await.unwrap(), Reply::Nil);

    redis.stop().await;
    assert!(is_down(redis.address()));
    redis.stop().await;
    redis.restart().await.unwrap();
    // A restart of one that runs, and even is frozen, is a new one too.
    redis.freeze().unwrap();
    redis.restart().await.unwrap();
    assert_eq!(redis.command(&["PING"]).await.unwrap(), Reply::Text("PONG".into()));
}

#[tokio::test]
async fn frozen_it_accepts_and_is_mute_until_thawed() {
    let Some(redis) = Redis::require(RedisOptions::default()).await else { return };
    let redis = Arc::new(redis);
    redis.freeze().unwrap();
    let asked = tokio::spawn({
        let redis = redis.clone();
        async move { redis.command(&["PING"]).await }
    });
    let mut mute = tokio::net::TcpStream::connect(redis.address()).await.unwrap();
    mute.write_all(b"PING\r\n").await.unwrap();
    let mut byte = [0];
    assert!(tokio::time::timeout(Duration::from_millis(100), mute.read(&mut byte)).await.is_err());
    redis.thaw().unwrap();
    assert_eq!(asked.await.unwrap().unwrap(), Reply::Text("PONG".into()));
    mute.read_exact(&mut byte).await.unwrap();
    assert_eq!(&byte, b"+");
}

#[tokio::test]
async fn frozen_it_ends_when_dropped_too() {
    let Some(redis) = Redis::require(RedisOptions::default()).await else { return };
    let (address, folder) = (redis.address(), redis.process().folder().path().to_owned());
    redis.freeze().unwrap();
    drop(redis);
    assert!(is_down(address) && !folder.exists());
}

#[tokio::test]
async fn frozen_it_can_be_stopped_in_order() {
    let Some(redis) = Redis::require(RedisOptions::default()).await else { return };
    redis.freeze().unwrap();
    let start = Instant::now();
    redis.stop().await;
    assert!(is_down(redis.address()));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[tokio::test]
async fn passwords_users_and_configuration_are_obeyed() {
    let password = "p\"a\\ss: w@rd/é";
    let Some(redis) = Redis::require(RedisOptions {
        password: Some(password.to_owned()),
        users: vec!["bob on >secret resetchannels &news.* -@all +subscribe +publish".to_owned()],
        config: vec!["maxclients 77".to_owned()],
        ..RedisOptions::default()
    })
    .await
    else {
        return;
    };
    assert_eq!(redis.url(), format!("redis://:p%22a%5Css%3A%20w%40rd%2F%C3%A9@127.0.0.1:{}", redis.port()));
    assert_eq!(redis.url_as("bob", "se/cret"), format!("redis://bob:se%2Fcret@127.0.0.1:{}", redis.port()));
    let limit = redis.command(&["CONFIG", "GET", "maxclients"]).await.unwrap();
    assert_eq!(limit.elements()[1], Reply::Text("77".into()));
    let users = redis.command(&["ACL", "LIST"]).await.unwrap().text();
    assert!(users.contains("user bob on") && users.contains("&news.*"), "{users}");

    let mut client = tokio::net::TcpStream::connect(redis.address()).await.unwrap();
    let say = format!("PING\r\n*2\r\n$4\r\nAUTH\r\n${}\r\n{password}\r\nPING\r\n", password.len());
    client.write_all(say.as_bytes()).await.unwrap();
    let mut answers = vec![0; "-NOAUTH Authentication required.\r\n+OK\r\n+PONG\r\n".len()];
    client.read_exact(&mut answers).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&answers), "-NOAUTH Authentication required.\r\n+OK\r\n+PONG\r\n");
}

#[tokio::test]
async fn tls_serves_a_certificate_of_its_private_authority() {
    let options = || RedisOptions { tls: true, ..RedisOptions::default() };
    let Some(redis) = Redis::require(options()).await else { return };
    let other = Redis::start(options()).await.unwrap();
    assert_eq!(redis.url(), format!("rediss://127.0.0.1:{}", redis.port()));
    let ca = &redis.tls().unwrap().ca;
    for name in ["127.0.0.1", "localhost"] {
        assert_eq!(ping_over_tls(&redis, ca, name).await.unwrap(), "+PONG\r\n");
    }
    let wrong_name = ping_over_tls(&redis, ca, "elsewhere.test").await.unwrap_err().to_string();
    assert!(wrong_name.contains("not valid for name"), "{wrong_name}");
    let wrong_authority = ping_over_tls(&redis, &other.tls().unwrap().ca, "localhost").await.unwrap_err();
    assert!(wrong_authority.to_string().contains("certificate"), "{wrong_authority}");
    // The suite's own questions need no TLS.
    assert_eq!(redis.command(&["PING"]).await.unwrap(), Reply::Text("PONG".into()));

    redis.kill();
    redis.restart().await.unwrap();
    assert_eq!(ping_over_tls(&redis, ca, "localhost").await.unwrap(), "+PONG\r\n");
}

async fn ping_over_tls(redis: &Redis, ca: &Path, name: &'static str) -> std::io::Result<String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = tokio::net::TcpStream::connect(redis.address()).await?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect(ServerName::try_from(name).unwrap(), stream).await?;
    stream.write_all(b"PING\r\n").await?;
    let mut answer = vec![0; 7];
    stream.read_exact(&mut answer).await?;
    Ok(String::from_utf8(answer).unwrap())
}

#[tokio::test]
async fn a_server_that_refuses_its_configuration_says_why() {
    let options = RedisOptions { config: vec!["no-such-option 1".to_owned()], ..RedisOptions::default() };
    if Redis::require(RedisOptions::default()).await.is_none() {
        return;
    }
    let error = Redis::start(options).await.unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidConfig);
    assert!(error.to_string().contains("no-such-option"), "{error}");
}

#[tokio::test]
async fn a_port_that_somebody_took_meanwhile_is_waited_for() {
    let Some(redis) = Redis::require(RedisOptions::default()).await else { return };
    redis.kill();
    let thief = TcpListener::bind(redis.address()).unwrap();
    let restart = redis.restart();
    tokio::pin!(restart);
    let early = tokio::time::timeout(Duration::from_millis(200), &mut restart).await;
    assert!(early.is_err(), "{early:?}");
    drop(thief);
    restart.await.unwrap();
    assert_eq!(redis.command(&["PING"]).await.unwrap(), Reply::Text("PONG".into()));
}

#[tokio::test]
async fn reachable_is_the_given_one_or_a_private_one() {
    let Some(redis) = Redis::reachable().await else { return };
    assert!(redis.url().starts_with("redis"), "{}", redis.url());
    assert_eq!(Reachable::<Redis>::Given("redis://elsewhere".to_owned()).url(), "redis://elsewhere");
}

#[tokio::test]
async fn a_whole_group_of_processes_is_frozen_and_killed() {
    let folder = Folder::new("group").unwrap();
    let script = folder.write("children.sh", "sleep $SECONDS_TO_SLEEP & echo $! > child; wait").unwrap();
    let child = folder.path().join("child");
    let launch = Launch::new("group", PathBuf::from("/bin/sh")).argument(script);
    let process = Process::new(launch.variable("SECONDS_TO_SLEEP", "1000"), folder);
    // The file is there before its line is.
    let written = || std::fs::read_to_string(&child).ok().filter(|line| line.ends_with('\n'));
    process.start(async |_| written().is_some()).await.unwrap();
    let id = written().unwrap().trim().to_owned();
    // The states of a process, as `ps` calls them: T stopped, Z dead and not buried yet, nothing when it is gone.
    let state = || {
        let ps = Command::new("ps").args(["-o", "stat=", "-p", &id]).output().unwrap();
        String::from_utf8(ps.stdout).unwrap().trim().chars().next()
    };
    // It may still be on its way to its sleep.
    until("the child sleeps", || state() == Some('S'));
    process.freeze().unwrap();
    until("the child is stopped", || state() == Some('T'));
    process.thaw().unwrap();
    until("the child runs on", || state() == Some('S'));
    process.kill();
    until("the child is gone", || matches!(state(), None | Some('Z')));
}

#[tokio::test]
async fn a_server_that_never_accepts_is_given_up_with_its_output() {
    let folder = Folder::new("mute").unwrap();
    let script = folder.write("mute.sh", "echo not today; sleep 1000").unwrap();
    let mut launch = Launch::new("mute", PathBuf::from("/bin/sh")).argument(script);
    launch.deadline = Duration::from_millis(200);
    let process = Process::new(launch, folder);
    let Err(StartError::Failed(error)) = process.start(async |_| false).await else { panic!("it started") };
    assert_eq!(error.kind(), Kind::Timeout);
    assert!(error.to_string().contains("its output ends: not today"), "{error}");
    assert!(process.id().is_none());
}

/// The other half of `nothing_survives_a_killed_test_process`: does nothing unless that runs it.
#[test]
fn starts_a_broker_and_waits_to_be_killed() {
    if std::env::var_os(DOOMED).is_none() {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        // Started on a thread that ends before the broker is used: that must not end the broker.
        let redis = tokio::task::spawn_blocking(|| {
            tokio::runtime::Handle::current().block_on(Redis::start(RedisOptions::default())).unwrap()
        })
        .await
        .unwrap();
        redis.freeze().unwrap();
        println!("\nSTARTED {} {}", redis.address(), redis.process().folder().path().display());
        std::future::pending::<()>().await;
    });
}

const DOOMED: &str = "BACKPLANE_TEST_DOOMED";

#[tokio::test]
async fn nothing_survives_a_killed_test_process() {
    if Redis::require(RedisOptions::default()).await.is_none() {
        return;
    }
    let mut doomed = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "starts_a_broker_and_waits_to_be_killed", "--nocapture"])
        .env(DOOMED, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(doomed.stdout.take().unwrap());
    let started = output
        .lines()
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("STARTED ").map(str::to_owned))
        .unwrap();
    let (address, folder) = started.split_once(' ').unwrap();
    let (address, folder): (SocketAddr, PathBuf) = (address.parse().unwrap(), folder.into());
    assert!(!is_down(address) && folder.exists());
    doomed.kill().unwrap();
    doomed.wait().unwrap();
    until("the broker is down", || is_down(address));
    until("its folder is gone", || !folder.exists());
}
