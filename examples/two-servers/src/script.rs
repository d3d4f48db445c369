//! The script: what the two servers play, step by step.

use std::time::Duration;

use backplane::{
    AbortReason, Backplane as _, BackplaneExt as _, ClientInvocation, ClientResult, CloseReason, ErrorKind,
    Health, MembershipChange, Router, Target,
};
use tokio::time::Instant;

use crate::bus::{Fault, SharedBus};
use crate::client::{IGNORED, REFUSED, ended, refusal};
use crate::message::{ask, say};
use crate::stage::Side::{North, South};
use crate::stage::{Failure, Side, Stage, deadline, fail};

/// Plays everything; returns how many arrivals and answers were checked.
pub(crate) async fn play(bus: SharedBus) -> Result<usize, Failure> {
    let mut stage = Stage::open(&bus).await?;
    println!("Two servers, north and south, on one bus.");
    stage.connect(North, "ann", "user-ann").await?;
    stage.connect(North, "bob", "user-bob").await?;
    stage.connect(South, "cleo", "user-cleo").await?;
    stage.connect(South, "ann-2", "user-ann").await?;

    println!("\nMembership: `north joins cleo` changes a connection that lives on south.");
    for (side, name, group) in
        [(North, "ann", "red"), (North, "bob", "blue"), (North, "cleo", "red"), (North, "cleo", "blue")]
    {
        join(&mut stage, side, name, group).await?;
    }

    println!("\nEvery kind of send, both ways, and who hears it:");
    for from in Side::BOTH {
        sends(&mut stage, from).await?;
    }

    println!("\nRemote join and leave take effect before they return:");
    join(&mut stage, South, "bob", "red").await?;
    stage.send(South, &Target::group("red"), &[], &["ann", "bob", "cleo"]).await?;
    leave(&mut stage, South, "bob", "red").await?;
    leave(&mut stage, North, "cleo", "blue").await?;
    stage.send(South, &Target::group("red"), &[], &["ann", "cleo"]).await?;
    stage.send(South, &Target::group("blue"), &[], &["bob"]).await?;

    println!("\nQuestions to a client of the other server:");
    questions(&mut stage).await?;

    println!("\nThe link is lost and regained:");
    match &bus.fault {
        Some(fault) => lose_the_link(&mut stage, fault).await?,
        None => {
            println!("      not played: nothing stands between this bus and its broker that could break it")
        }
    }

    println!("\nA connection of the other server is ended:");
    abort(&mut stage, bus.aborts_remotely()).await?;
    stage.send(South, &Target::user("user-ann"), &[], &["ann"]).await?;
    stage.nothing_left()?;

    println!();
    for side in Side::BOTH {
        let stats = stage.server(side).stats();
        println!(
            "{side}: {} frames published, {} received, {} messages delivered, {} reconnects, {} gaps",
            stats.published, stats.received, stats.delivered, stats.reconnects, stats.gaps
        );
    }
    let checked = stage.checked;
    stage.close().await?;
    Ok(checked)
}

async fn join(stage: &mut Stage, side: Side, name: &str, group: &str) -> Result<(), Failure> {
    let title = format!("{side} joins {name} to {group}");
    let change = MembershipChange::join(stage.id(name), group);
    stage.server(side).update_group(change).await.map_err(|error| fail(&title, &error))?;
    stage.answered(&title, "confirmed");
    Ok(())
}

async fn leave(stage: &mut Stage, side: Side, name: &str, group: &str) -> Result<(), Failure> {
    let title = format!("{side} takes {name} out of {group}");
    let change = MembershipChange::leave(stage.id(name), group);
    stage.server(side).update_group(change).await.map_err(|error| fail(&title, &error))?;
    stage.answered(&title, "confirmed");
    Ok(())
}

/// Red: ann on north, cleo on south. Blue: bob on north, cleo on south.
async fn sends(stage: &mut Stage, from: Side) -> Result<(), Failure> {
    let everybody = ["ann", "bob", "cleo", "ann-2"];
    stage.send(from, &Target::All, &[], &everybody).await?;
    stage.send(from, &Target::All, &["bob", "cleo"], &["ann", "ann-2"]).await?;
    for name in ["bob", "cleo"] {
        stage.send(from, &Target::connection(stage.id(name)), &[], &[name]).await?;
    }
    let connections = ["ann", "cleo", "ann-2"];
    let ids = connections.map(|name| stage.id(name));
    stage.send(from, &Target::connections(ids), &[], &connections).await?;
    stage.send(from, &Target::group("red"), &[], &["ann", "cleo"]).await?;
    // One copy for each group that somebody is in.
    stage.send(from, &Target::groups(["red", "blue"]), &[], &["ann", "bob", "cleo", "cleo"]).await?;
    stage.send(from, &Target::group("red"), &["ann"], &["cleo"]).await?;
    stage.send(from, &Target::group("red"), &["cleo"], &["ann"]).await?;
    stage.send(from, &Target::user("user-ann"), &[], &["ann", "ann-2"]).await?;
    stage.send(from, &Target::users(["user-bob", "user-cleo"]), &[], &["bob", "cleo"]).await?;
    stage.send(from, &Target::group("green"), &[], &[]).await
}

async fn questions(stage: &mut Stage) -> Result<(), Failure> {
    for (side, name) in [(North, "cleo"), (South, "bob")] {
        let title = format!("{side} asks {name}: your name?");
        match question(stage.server(side), stage.id(name), "your name?").await {
            Ok(ClientResult::Value { value, .. }) if value == format!("\"{name}\"") => {
                stage.answered(&title, &String::from_utf8_lossy(&value));
            }
            other => return Err(fail(&title, &format!("{other:?}"))),
        }
        let title = format!("{side} asks {name}: {REFUSED}");
        match question(stage.server(side), stage.id(name), REFUSED).await {
            Ok(ClientResult::Error(text)) if text == refusal(name) => {
                stage.answered(&title, &format!("an error: {text}"));
            }
            other => return Err(fail(&title, &format!("{other:?}"))),
        }
    }
    // Ids that the other server could have given, and nobody has.
    for (side, other) in [(North, South), (South, North)] {
        let title = format!("{side} asks a connection that nobody has");
        let nobody = stage.server(other).new_connection_id();
        match question(stage.server(side), nobody, "your name?").await {
            Err(error) if error.kind() == ErrorKind::ConnectionNotFound => {
                stage.answered(&title, "not found")
            }
            other => return Err(fail(&title, &format!("{other:?}"))),
        }
    }
    let title = format!("north asks cleo: {IGNORED}");
    match question(stage.server(North), stage.id("cleo"), IGNORED).await {
        Err(error) if error.kind() == ErrorKind::Timeout => {
            stage.answered(&title, "no answer, and no longer waited for");
            Ok(())
        }
        other => Err(fail(&title, &format!("{other:?}"))),
    }
}

async fn question(
    server: &Router,
    connection: backplane::ConnectionId,
    question: &'static str,
) -> backplane::Result<ClientResult> {
    let patience = if question == IGNORED { Duration::from_millis(200) } else { deadline() };
    let call = ClientInvocation::new(move |id| ask(id, question)).with_timeout(patience);
    server.invoke(&connection, call).await
}

async fn lose_the_link(stage: &mut Stage, fault: &Fault) -> Result<(), Failure> {
    fault.down();
    for side in Side::BOTH {
        let title = format!("{side} notices");
        wait_for(stage.server(side), Health::is_down).await.map_err(|late| fail(&title, &late))?;
        stage.answered(&title, "down");
        let title = format!("{side} to all, meanwhile");
        match stage.server(side).send_to_all(say("lost")).await {
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                stage.answered(&title, "refused at once: unavailable");
            }
            other => return Err(fail(&title, &format!("{other:?}"))),
        }
    }
    let back = Instant::now();
    fault.up();
    for side in Side::BOTH {
        let title = format!("{side} is back by itself");
        wait_for(stage.server(side), Health::is_up).await.map_err(|late| fail(&title, &late))?;
        stage.answered(
            &title,
            &format!("up, {} ms after the link could be had again", back.elapsed().as_millis()),
        );
    }
    for from in Side::BOTH {
        stage.send(from, &Target::All, &[], &["ann", "bob", "cleo", "ann-2"]).await?;
        stage.send(from, &Target::group("red"), &[], &["ann", "cleo"]).await?;
        stage.send(from, &Target::user("user-ann"), &[], &["ann", "ann-2"]).await?;
    }
    Ok(())
}

async fn wait_for(server: &Router, wanted: impl FnMut(&Health) -> bool) -> Result<(), String> {
    match tokio::time::timeout(deadline(), server.health().wait_for(wanted)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) => Err("the server is gone".to_owned()),
        Err(_) => Err(format!("not within {:?}", deadline())),
    }
}

async fn abort(stage: &mut Stage, possible: bool) -> Result<(), Failure> {
    let title = "north ends the connection of ann-2";
    let reason = AbortReason { message: Some("see you".to_owned()), allow_reconnect: false };
    match stage.server(North).abort(&stage.id("ann-2"), reason.clone()).await {
        Ok(()) => {
            let farewell = ended(&CloseReason::Aborted(reason));
            stage.settle(title, &[("ann-2", farewell)]).await?;
        }
        Err(error) if !possible && error.kind() == ErrorKind::Unsupported => {
            stage.answered(title, "unsupported: this wire format has no such command");
        }
        Err(error) => return Err(fail(title, &error)),
    }
    stage.remove("ann-2");
    Ok(())
}
