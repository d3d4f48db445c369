//! The script as a stranger runs it: as a process, judged by its output and its exit code.

use std::process::{Output, Stdio};
use std::time::Duration;

use backplane_conformance::broker::{Broker as _, Redis, RedisOptions, free_port};

/// How long a whole run may take.
const DEADLINE: Duration = Duration::from_secs(120);

async fn two_servers(arguments: &[&str]) -> Output {
    let run = tokio::process::Command::new(env!("CARGO_BIN_EXE_two-servers"))
        .args(arguments)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    tokio::time::timeout(DEADLINE, run).await.expect("it ends within its deadline").expect("it can be run")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("it prints UTF-8")
}

#[track_caller]
fn played(output: &Output) -> &str {
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}\n{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "");
    assert!(said.trim_end().ends_with("all as expected."), "{said}");
    said
}

/// One line on the error output, nothing but that, and exit code 2.
#[track_caller]
fn refused(output: &Output, says: &str) {
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{}\n{error}", text(&output.stdout));
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.contains(says), "{error}\ndoes not say {says:?}");
    assert!(!error.contains("hunter2"), "{error}");
    assert_eq!(text(&output.stdout), "");
}

#[tokio::test]
async fn the_script_plays_on_the_embedded_bus() {
    let output = two_servers(&["--script"]).await;
    let said = played(&output);
    for line in [
        "ann to all ",
        "cleo to groups red, blue ",
        "ann asks dora",
        "They left before they answered.",
        "is back by itself",
        "ann-2 (close)",
        "close, may come back, ended: 1000",
    ] {
        assert!(said.contains(line), "{line:?} is missing in\n{said}");
    }
}

#[tokio::test]
async fn the_script_plays_in_the_layout_of_dotnet() {
    let output = two_servers(&["--script", "--url", "memory:?wire=aspnetcore&hub=Demo.ChatHub"]).await;
    assert!(played(&output).contains("unsupported: this wire format has no such command"));
}

#[tokio::test]
async fn the_script_plays_through_redis_and_leaves_the_broker_alone() {
    let Some(redis) = Redis::require(RedisOptions::default()).await else { return };
    let before = redis.process().id();
    let output = two_servers(&["--script", "--url", &redis.url()]).await;
    assert!(played(&output).contains("is back by itself"));
    assert!(before.is_some() && redis.process().id() == before);
    let channels = redis.channels().await.expect("it still answers");
    assert!(channels.is_empty(), "left behind: {channels:?}");
}

#[tokio::test]
async fn an_absent_broker_is_one_line_and_code_2() {
    let port = free_port().expect("there is a free port");
    let output = two_servers(&["--script", "--url", &format!("redis://:hunter2@127.0.0.1:{port}")]).await;
    refused(&output, "unavailable");
}

#[tokio::test]
async fn a_broker_that_refuses_us_is_one_line_and_code_2() {
    let options = RedisOptions { password: Some("right".to_owned()), ..RedisOptions::default() };
    let Some(redis) = Redis::require(options).await else { return };
    let url = format!("redis://:hunter2@{}", redis.address());
    refused(&two_servers(&["--script", "--url", &url]).await, "denied");
}

#[tokio::test]
async fn a_wrong_url_is_one_line_and_code_2() {
    for (url, says) in [
        ("carrier-pigeon://roof", "not a known scheme"),
        ("postgres://app:hunter2@localhost?retention=soon", "`retention`"),
        ("amqp://app:hunter2@localhost?prefetch=0", "prefetch"),
        ("nats://app:hunter2@localhost?no_such_thing=1", "no_such_thing"),
        ("nonsense", "not a URL"),
        ("redis://:hunter2@localhost?hartbeat=1s", "hartbeat"),
        ("memory:?wire=morse", "`wire`"),
        ("memory:?history=1", "no bounds"),
    ] {
        refused(&two_servers(&["--script", "--url", url]).await, says);
    }
}

#[tokio::test]
async fn a_wrong_command_line_is_one_line_and_code_2() {
    refused(&two_servers(&["--scrpt"]).await, "--scrpt");
    refused(&two_servers(&["--script", "--url"]).await, "needs a URL");
}
