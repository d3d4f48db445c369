//! B11: loss is never silent. Whoever reads slowly or loses the link receives everything, or is told.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use backplane_core::{Delivery, ErrorKind, Outgoing, Topic};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::StreamExt as _;
use tokio::time::{sleep, timeout};

use super::ledger::few;
use super::probe::{Probe, WAIT, within};
use super::publisher::Publisher;
use super::space::{NO_FAULTS, Space};
use crate::ensure;
use crate::harness::Harness;
use crate::report::{Broken, Kept, Outcome, bound};

/// Small frames of the flood: more than a queue counted in frames is likely to hold.
const SMALL: u32 = 20_000;

/// Bytes of the flood's large frames together: more than a queue counted in bytes is likely to hold.
const LARGE: usize = 64 << 20;

/// The number of the frames that end a flood; they are repeated until one arrives.
const LAST: u32 = u32::MAX;

fn flood_frame(topic: &Topic, number: u32, size: usize) -> Outgoing {
    let mut frame = BytesMut::zeroed(size.max(4));
    (&mut frame[..4]).put_u32(number);
    Outgoing { topic: topic.clone(), frame: frame.freeze() }
}

fn number(frame: &Bytes) -> Option<u32> {
    Some(u32::from_be_bytes(*frame.first_chunk()?))
}

/// What a reader found out.
#[derive(Debug, Default)]
struct Read {
    arrived: HashSet<u32>,
    /// It was told of a loss, or the link ended with an error.
    told: bool,
    /// The link still lives.
    alive: bool,
}

/// Reads until the last frame, which is published until it arrives, or the end of the link.
async fn read_out(reader: &mut Probe, publisher: &Publisher, topic: &Topic) -> Result<Read, Broken> {
    let mut read = Read::default();
    let fencing = async {
        loop {
            // A refusal is no loss, and a link that died ends the reading.
            let _ = publisher.offer(vec![flood_frame(topic, LAST, 4)]).await;
            sleep(Duration::from_millis(300)).await;
        }
    };
    let reading = async {
        loop {
            match timeout(bound(WAIT), reader.inbound.next()).await {
                Ok(Some(Ok(Delivery::Frame { frame, .. }))) => match number(&frame) {
                    Some(LAST) => {
                        read.alive = true;
                        return Ok(());
                    }
                    Some(number) => {
                        read.arrived.insert(number);
                    }
                    None => {}
                },
                Ok(Some(Ok(Delivery::Lost { .. }))) => read.told = true,
                Ok(Some(Err(_))) => {
                    read.told = true;
                    return Ok(());
                }
                Ok(None) => return Err(Broken("inbound ended without an error".to_owned())),
                Err(_) => return Err(Broken(format!("inbound went quiet for {WAIT:?} amid the flood"))),
            }
        }
    };
    tokio::select! {
        biased;
        () = fencing => {}
        ended = reading => ended?,
    }
    Ok(read)
}

fn nothing_silent(read: &Read, accepted: &[u32], when: &str) -> Result<(), Broken> {
    let missing: Vec<u32> =
        accepted.iter().filter(|number| !read.arrived.contains(number)).copied().collect();
    let honest = missing.is_empty() || read.told;
    ensure!(
        honest,
        "{when}: of {} accepted frames {} are missing, and nobody was told",
        accepted.len(),
        few(&missing)
    );
    Ok(())
}

/// Publishes, and remembers which numbers the bus accepted. What it refuses it has told.
async fn offer(publisher: &Publisher, batch: Vec<Outgoing>, accepted: &mut Vec<u32>) -> Result<(), Broken> {
    let numbers: Vec<_> = batch.iter().filter_map(|out| number(&out.frame)).collect();
    let results = within(WAIT * 2, "publish", publisher.sender.publish(batch)).await?;
    for (number, result) in numbers.into_iter().zip(results) {
        match result {
            Ok(_) => accepted.push(number),
            Err(error) => {
                let told = matches!(
                    error.kind(),
                    ErrorKind::Overloaded | ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Closed
                );
                ensure!(told, "a frame of the flood was refused with {error}");
            }
        }
    }
    Ok(())
}

pub(super) async fn a_reader_that_falls_behind_is_told(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let topic = space.topic("flood");
    let publisher = space.publisher().await?;
    let mut reader = space.reader(std::slice::from_ref(&topic)).await?;
    let mut accepted = Vec::new();
    for start in (0..SMALL).step_by(500) {
        let batch = (start..start + 500).map(|number| flood_frame(&topic, number, 64)).collect();
        offer(&publisher, batch, &mut accepted).await?;
    }
    let size = publisher.limits.max_frame.min(64 << 10);
    let large = u32::try_from(LARGE / size).unwrap_or(u32::MAX).min(20_000);
    for start in (0..large).step_by(16) {
        let numbers = start..(start + 16).min(large);
        let batch = numbers.map(|number| flood_frame(&topic, SMALL + number, size)).collect();
        offer(&publisher, batch, &mut accepted).await?;
    }
    let read = read_out(&mut reader, &publisher, &topic).await?;
    nothing_silent(&read, &accepted, "not read for a while")?;
    if read.alive {
        // The flood is over and so is what it did: what follows arrives.
        let mut after = Vec::new();
        let numbers = 1_000_000..1_000_010;
        offer(&publisher, numbers.map(|number| flood_frame(&topic, number, 64)).collect(), &mut after)
            .await?;
        // Frames that end the flood may still be on their way: the reading goes on to the last of the new ones.
        let mut waiting: HashSet<u32> = after.into_iter().collect();
        while !waiting.is_empty() {
            let arrival = reader.next("what was published after the flood").await?;
            if let Some(number) = number(&arrival.frame) {
                waiting.remove(&number);
            }
        }
    }
    Ok(Kept::Yes)
}

pub(super) async fn a_short_freeze_loses_nothing_in_silence(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let Some(faults) = space.faults() else { return Ok(NO_FAULTS) };
    let topic = space.topic("freeze");
    let heartbeat = Duration::from_secs(4);
    let publisher = space.link_with_heartbeat(&[], heartbeat).await?;
    let mut reader = space.link_with_heartbeat(std::slice::from_ref(&topic), heartbeat).await?;
    reader.propagated().await;
    let mut accepted = Vec::new();
    let batch = |start: u32| (start..start + 20).map(|number| flood_frame(&topic, number, 64)).collect();
    offer(&publisher.out, batch(0), &mut accepted).await?;
    faults.freeze().await;
    let mut frozen = Vec::new();
    let publishing = offer(&publisher.out, batch(20), &mut frozen);
    let thawing = async {
        // The freeze itself takes time, far less than the heartbeat bound.
        sleep(Duration::from_millis(300)).await;
        faults.thaw().await;
        Ok(())
    };
    tokio::try_join!(publishing, thawing)?;
    accepted.append(&mut frozen);
    offer(&publisher.out, batch(40), &mut accepted).await?;
    let read = read_out(&mut reader, &publisher.out, &topic).await?;
    nothing_silent(&read, &accepted, "frozen for less than the heartbeat bound")?;
    Ok(Kept::Yes)
}

pub(super) async fn nothing_is_missing_before_the_error_of_a_cut_link(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let Some(faults) = space.faults() else { return Ok(NO_FAULTS) };
    for round in 0..3 {
        let topic = space.topic(format_args!("cut{round}"));
        let publisher = space.publisher().await?;
        let mut reader = space.reader(std::slice::from_ref(&topic)).await?;
        let mut accepted = Vec::new();
        let publishing = async {
            for start in (0..60).step_by(5) {
                if start == 15 + 15 * round {
                    faults.cut().await;
                }
                let batch = (start..start + 5).map(|number| flood_frame(&topic, number, 64)).collect();
                if offer(&publisher, batch, &mut accepted).await.is_err() {
                    // How a sender answers when its link is dead is another contract's matter.
                    break;
                }
            }
            Ok::<_, Broken>(())
        };
        let mut arrived = Vec::new();
        let reading = async {
            loop {
                match timeout(bound(WAIT), reader.inbound.next()).await {
                    Ok(Some(Ok(Delivery::Frame { frame, .. }))) => arrived.extend(number(&frame)),
                    Ok(Some(Ok(Delivery::Lost { .. })) | None | Some(Err(_))) => return Ok(()),
                    // A link that goes quiet is another contract's matter.
                    Err(_) => return Ok(()),
                }
            }
        };
        tokio::try_join!(publishing, reading)?;
        // Whatever order and repeats others judge: up to the last frame before the error there is no hole.
        let seen: HashSet<u32> = arrived.iter().copied().collect();
        let highest = arrived.iter().max().map_or(0, |highest| highest + 1);
        let holes: Vec<u32> = (0..highest).filter(|number| !seen.contains(number)).collect();
        ensure!(holes.is_empty(), "before the link ended {} of {highest} were missing", few(&holes));
    }
    Ok(Kept::Yes)
}
