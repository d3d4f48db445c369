//! The script: what two servers play with real clients over WebSockets, step by step.

mod client;
mod hub;
mod stage;

use std::fmt;
use std::time::Duration;

use backplane::{Backplane as _, Health, Router};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::bus::{self, Fault, SharedBus};
use client::{Client, IGNORED, REFUSED, UNBEARABLE, refusal};
use hub::{Audience, UNSUPPORTED};
use stage::Side::{North, South};
use stage::{Side, Stage, expect, fail};

/// What went wrong, in one line.
#[derive(Debug)]
struct Failure(String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<backplane::Error> for Failure {
    fn from(error: backplane::Error) -> Self {
        Self(error.to_string())
    }
}

/// How long an arrival may take.
fn deadline() -> Duration {
    backplane_conformance::bound(Duration::from_secs(10))
}

/// What a question that is never answered is given, in milliseconds.
const IMPATIENCE: u64 = 200;
const DOWN: &str = "The link of this server is down. The message was not sent.";
const EVERYBODY: [&str; 4] = ["ann", "bob", "cleo", "ann-2"];

/// Plays on the bus behind the URL.
pub(crate) async fn run(url: &str) -> Result<(), crate::Failure> {
    let bus = bus::open_breakable(url).await.map_err(|error| crate::Failure::Wrong(error.to_string()))?;
    let checked = play(bus).await.map_err(|failure| crate::Failure::Late(failure.to_string()))?;
    println!("\n{checked} arrivals and answers, all as expected.");
    Ok(())
}

/// Plays everything; returns how many arrivals and answers were checked.
async fn play(bus: SharedBus) -> Result<usize, Failure> {
    let mut stage = Stage::open(&bus).await?;
    println!("Two servers, north and south, on {}. Their clients:", bus.name());
    stage.connect(North, "ann", "user-ann", true).await?;
    stage.connect(North, "bob", "user-bob", false).await?;
    stage.connect(South, "cleo", "user-cleo", true).await?;
    stage.connect(South, "ann-2", "user-ann", false).await?;

    println!("\nMembership: ann of north joins cleo, who is connected to south.");
    for (caller, name, group) in
        [("ann", "ann", "red"), ("cleo", "bob", "blue"), ("ann", "cleo", "red"), ("ann", "cleo", "blue")]
    {
        member(&mut stage, caller, "Join", name, group).await?;
    }

    println!("\nEvery kind of send, both ways, and who hears it:");
    for caller in ["ann", "cleo"] {
        sends(&mut stage, caller).await?;
    }

    println!("\nRemote join and leave take effect before they return:");
    member(&mut stage, "cleo", "Join", "bob", "red").await?;
    stage.send("cleo", &Audience::Group("red".into()), &["ann", "bob", "cleo"]).await?;
    member(&mut stage, "cleo", "Leave", "bob", "red").await?;
    member(&mut stage, "ann", "Leave", "cleo", "blue").await?;
    stage.send("cleo", &Audience::Group("red".into()), &["ann", "cleo"]).await?;
    stage.send("cleo", &Audience::Group("blue".into()), &["bob"]).await?;

    println!("\nQuestions to a client of the other server:");
    questions(&mut stage).await?;

    println!("\nThe page's hub, on the same servers:");
    let mut pages = pages(&mut stage).await?;

    println!("\nThe link is lost and regained:");
    match &bus.fault {
        Some(fault) => lose_the_link(&mut stage, fault, &mut pages).await?,
        None => {
            println!("      not played: nothing stands between this bus and its broker that could break it")
        }
    }
    drop(pages);

    println!("\nThe end:");
    end(&mut stage, bus.aborts_remotely()).await?;
    stage.send("cleo", &Audience::User("user-ann".into()), &["ann"]).await?;
    stage.nothing_left()?;
    let stats = Side::BOTH.map(|side| (side, stage.node(side).stats()));
    let checked = stage.close().await?;

    println!();
    for (side, stats) in stats {
        println!(
            "{side}: {} frames published, {} received, {} messages delivered, {} reconnects, {} gaps",
            stats.published, stats.received, stats.delivered, stats.reconnects, stats.gaps
        );
    }
    Ok(checked)
}

async fn member(
    stage: &mut Stage,
    caller: &str,
    method: &'static str,
    name: &str,
    group: &str,
) -> Result<(), Failure> {
    let title = match method {
        "Join" => format!("{caller} joins {name} to {group}"),
        _ => format!("{caller} takes {name} out of {group}"),
    };
    stage.call(&title, caller, method, json!([stage.id(name), group]), Ok(Value::Null)).await
}

/// Red: ann on north, cleo on south. Blue: bob on north, cleo on south.
async fn sends(stage: &mut Stage, caller: &str) -> Result<(), Failure> {
    let others: Vec<_> = EVERYBODY.into_iter().filter(|name| *name != caller).collect();
    let other_red = if caller == "ann" { "cleo" } else { "ann" };
    let text = str::to_owned;
    let steps: [(Audience, &[&str]); 14] = [
        (Audience::All, &EVERYBODY),
        (Audience::AllExcept(stage.ids(&["bob", "cleo"])), &["ann", "ann-2"]),
        (Audience::Others, &others),
        (Audience::Caller, &[caller]),
        (Audience::Client(stage.id("bob")), &["bob"]),
        (Audience::Client(stage.id("ann-2")), &["ann-2"]),
        (Audience::Clients(stage.ids(&["ann", "cleo", "ann-2"])), &["ann", "cleo", "ann-2"]),
        (Audience::Group(text("red")), &["ann", "cleo"]),
        // One copy for each group that somebody is in.
        (Audience::Groups(vec![text("red"), text("blue")]), &["ann", "bob", "cleo", "cleo"]),
        (Audience::GroupExcept(text("red"), stage.ids(&["ann"])), &["cleo"]),
        (Audience::OthersInGroup(text("red")), &[other_red]),
        (Audience::User(text("user-ann")), &["ann", "ann-2"]),
        (Audience::Users(vec![text("user-bob"), text("user-cleo")]), &["bob", "cleo"]),
        (Audience::Group(text("green")), &[]),
    ];
    for (audience, expected) in steps {
        stage.send(caller, &audience, expected).await?;
    }
    Ok(())
}

async fn questions(stage: &mut Stage) -> Result<(), Failure> {
    let patience = u64::try_from(deadline().as_millis()).unwrap_or(u64::MAX);
    for (caller, name) in [("ann", "cleo"), ("cleo", "bob")] {
        let title = format!("{caller} asks {name}: your name?");
        let asked = json!([stage.id(name), "your name?", patience]);
        stage.call(&title, caller, "Ask", asked, Ok(name.into())).await?;
        let title = format!("{caller} asks {name}: {REFUSED}");
        let asked = json!([stage.id(name), REFUSED, patience]);
        let refused = format!("They refused: {}", refusal(name));
        stage.call(&title, caller, "Ask", asked, Err(&refused)).await?;
    }
    let title = format!("ann asks cleo: {IGNORED}");
    let asked = json!([stage.id("cleo"), IGNORED, IMPATIENCE]);
    stage.call(&title, "ann", "Ask", asked, Err("They did not answer in time.")).await?;
    // Ids that a server could have given, and nobody has.
    for (caller, other) in [("ann", South), ("cleo", North)] {
        let title = format!("{caller} asks a connection that nobody has");
        let nobody = stage.node(other).new_connection_id().to_string();
        let asked = json!([nobody, "your name?", patience]);
        stage.call(&title, caller, "Ask", asked, Err("There is no such client on any server.")).await?;
    }
    stage.connect(South, "dora", "user-dora", true).await?;
    let title = format!("ann asks dora: {UNBEARABLE}");
    let asked = json!([stage.id("dora"), UNBEARABLE, patience]);
    stage.call(&title, "ann", "Ask", asked, Err("They left before they answered.")).await?;
    stage.remove("dora");
    Ok(())
}

/// A client on each side, as the page is one: who is there, and a message both ways.
async fn pages(stage: &mut Stage) -> Result<[Client; 2], Failure> {
    let mut north = Client::connect(stage.chat(North), "page-n", "Nora").await?;
    let mut south = Client::connect(stage.chat(South), "page-s", "Sam").await?;
    let title = "page-s says hello";
    called(&south, title, "Hello", json!([])).await?;
    expect(&mut north, title, "Hello: Sam", deadline()).await?;
    stage.answered(title, "page-n");
    let title = "page-n answers that it is here";
    let id = called(&south, title, "Server", json!([])).await?["connection"].clone();
    called(&north, title, "Here", json!([id])).await?;
    expect(&mut south, title, "Here: Nora", deadline()).await?;
    stage.answered(title, "page-s");
    for (from, user) in [(North, "Nora"), (South, "Sam")] {
        let title = format!("SendMessage({user:?}, \"hi\") on {from}");
        let caller = if from == North { &north } else { &south };
        called(caller, &title, "SendMessage", json!([user, "hi"])).await?;
        for page in [&mut north, &mut south] {
            expect(page, &title, &format!("ReceiveMessage[\"{user}\",\"hi\"]"), deadline()).await?;
        }
        stage.checked += 1;
        stage.answered(&title, "page-n page-s");
    }
    Ok([north, south])
}

async fn called(
    client: &Client,
    title: &str,
    method: &'static str,
    arguments: Value,
) -> Result<Value, Failure> {
    client.invoke(method, arguments).await?.map_err(|error| fail(title, &error))
}

async fn lose_the_link(stage: &mut Stage, fault: &Fault, pages: &mut [Client; 2]) -> Result<(), Failure> {
    fault.down();
    for (side, caller, page) in [(North, "ann", 0), (South, "cleo", 1)] {
        let title = format!("{side} notices");
        wait_for(stage.node(side), Health::is_down).await.map_err(|late| fail(&title, &late))?;
        stage.answered(&title, "down");
        let title = format!("{side} tells its own clients");
        expect(&mut pages[page], &title, "LinkChanged: down", deadline()).await?;
        stage.answered(&title, pages[page].name);
        let title = format!("{caller} to all, meanwhile");
        stage.call(&title, caller, "Send", json!([Audience::All, "lost"]), Err(DOWN)).await?;
        let title = format!("eve comes to {side}, meanwhile");
        let mut eve = Client::connect(stage.hub(side), "eve", "user-eve").await?;
        // Within the deadline of a registration at most.
        let told = tokio::time::timeout(deadline(), eve.arrivals.recv()).await;
        match told {
            Ok(Some(told)) if told.starts_with("close, ") && told.ends_with("may come back") => {
                stage.answered(&title, &told);
            }
            other => return Err(fail(&title, &format!("{other:?}"))),
        }
    }
    let back = Instant::now();
    fault.up();
    for (side, page) in [(North, 0), (South, 1)] {
        let title = format!("{side} is back by itself");
        wait_for(stage.node(side), Health::is_up).await.map_err(|late| fail(&title, &late))?;
        let took = format!("up, {} ms after the link could be had again", back.elapsed().as_millis());
        stage.answered(&title, &took);
        let title = format!("{side} tells its own clients");
        // What may have been lost meanwhile is told too, before or after.
        until(&mut pages[page], &title, "LinkChanged: up", "MayHaveLost[]").await?;
        stage.answered(&title, pages[page].name);
    }
    for caller in ["ann", "cleo"] {
        stage.send(caller, &Audience::All, &EVERYBODY).await?;
        stage.send(caller, &Audience::Group("red".into()), &["ann", "cleo"]).await?;
        stage.send(caller, &Audience::User("user-ann".into()), &["ann", "ann-2"]).await?;
    }
    Ok(())
}

/// Waits for an arrival, past any number of another.
async fn until(client: &mut Client, title: &str, wanted: &str, past: &str) -> Result<(), Failure> {
    let by = Instant::now() + deadline();
    loop {
        match tokio::time::timeout_at(by, client.arrivals.recv()).await {
            Ok(Some(text)) if text == wanted => return Ok(()),
            Ok(Some(text)) if text == past => {}
            other => return Err(fail(title, &format!("{} heard {other:?}", client.name))),
        }
    }
}

async fn wait_for(server: &Router, wanted: impl FnMut(&Health) -> bool) -> Result<(), String> {
    match tokio::time::timeout(deadline(), server.health().wait_for(wanted)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) => Err("the server is gone".to_owned()),
        Err(_) => Err(format!("not within {:?}", deadline())),
    }
}

async fn end(stage: &mut Stage, possible: bool) -> Result<(), Failure> {
    let title = "ann ends the connection of ann-2";
    let connection = json!([stage.id("ann-2")]);
    if possible {
        stage.call(title, "ann", "End", connection, Ok(Value::Null)).await?;
        stage.settle("ann-2 is told", &[("ann-2", "close".to_owned())]).await?;
    } else {
        stage.call(title, "ann", "End", connection, Err(UNSUPPORTED)).await?;
    }
    stage.remove("ann-2");
    Ok(())
}
