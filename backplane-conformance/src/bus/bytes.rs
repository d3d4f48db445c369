//! B2: any bytes arrive intact, up to the limit; one byte more is `TooLarge` before anything is sent.

use std::sync::Arc;

use backplane_core::{ErrorKind, Outgoing};
use bytes::Bytes;

use super::ledger::{Ledger, numbered, run};
use super::space::Space;
use crate::ensure;
use crate::harness::Harness;
use crate::report::{Kept, Outcome};

/// The largest frame that is really sent: a bus that takes more is believed.
const LARGEST_SENT: usize = 64 << 20;

/// The largest frame that is offered in order to be refused. A bus that refuses it does not touch its bytes.
const LARGEST_REFUSED: usize = 1 << 30;

pub(super) async fn any_bytes_arrive_unchanged(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let topic = space.topic("bytes");
    let publisher = space.publisher().await?;
    let mut reader = space.reader(std::slice::from_ref(&topic)).await?;
    let every: Vec<u8> = (0..=u8::MAX).collect();
    let mut frames: Vec<Vec<u8>> = vec![Vec::new(), every.clone(), every.into_iter().rev().collect()];
    frames.extend(
        [0, b'\n', b'\r', b' ', b'\'', b'\\', b'$', b'+', b'-', b'*', 0x1e, 0x7f, 0x80, 0xff]
            .map(|byte| vec![byte]),
    );
    frames.extend(
        [&b"\r\n"[..], b"null", b"{}", b"\0\0\0\0", b"\xef\xbb\xbf", b"\xc3\x28", b"%00%s"]
            .map(<[u8]>::to_vec),
    );
    for length in [126, 127, 128, 255, 256, 257, 1023, 1024, 4095, 4096, 8191, 32_767, 65_535, 65_536, 70_001]
    {
        if length <= publisher.limits.max_frame {
            frames.push((0..length).map(|index| (index * 31 % 251) as u8).collect());
        }
    }
    for (number, frame) in frames.into_iter().enumerate() {
        // A marker after each: a frame that comes back different shows at once, not after a wait.
        let (frame, marker) = (Bytes::from(frame), numbered(&publisher, &topic, number as u32, 0));
        publisher
            .accept(vec![Outgoing { topic: topic.clone(), frame: frame.clone() }, marker.clone()])
            .await?;
        let mut found = false;
        let mut passed = false;
        while !(found && passed) {
            let arrival = match reader.next("a frame and the one after it").await {
                Ok(arrival) => arrival,
                Err(why) if !passed => return Err(why),
                Err(_) => break,
            };
            found |= arrival.frame == frame;
            passed |= arrival.frame == marker.frame;
        }
        let start = frame.slice(..frame.len().min(8));
        ensure!(found, "a frame of {} bytes beginning {start:?} did not arrive as it was", frame.len());
    }
    Ok(Kept::Yes)
}

pub(super) async fn many_frames_arrive_undamaged(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let topic = space.topic("intact");
    let publisher = space.publisher().await?;
    let mut reader = space.reader(std::slice::from_ref(&topic)).await?;
    let publishing = async {
        for start in (0..2_000).step_by(100) {
            publisher.accept(run(&publisher, &topic, start..start + 100)).await?;
        }
        Ok(())
    };
    let arrivals = reader.collect(&[(&publisher, &topic)], publishing).await?;
    let damaged = Ledger::of(&arrivals).damaged;
    ensure!(damaged.is_empty(), "{} frames arrived damaged, the first of {}", damaged.len(), damaged[0]);
    Ok(Kept::Yes)
}

pub(super) async fn a_frame_arrives_under_its_own_topic(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let topics = space.topics("own", 20);
    let publisher = space.publisher().await?;
    let mut reader = space.reader(&topics).await?;
    let publishing = async {
        for number in 0..4 {
            publisher
                .accept(topics.iter().map(|topic| numbered(&publisher, topic, number, 0)).collect())
                .await?;
        }
        Ok(())
    };
    let arrivals = reader.collect(&[(&publisher, &topics[19])], publishing).await?;
    let misplaced = Ledger::of(&arrivals).misplaced;
    ensure!(misplaced.is_empty(), "{} frames, the first: {}", misplaced.len(), misplaced[0]);
    Ok(Kept::Yes)
}

pub(super) async fn a_frame_of_the_limit_arrives(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let topic = space.topic("limit");
    let publisher = space.publisher().await?;
    let mut reader = space.reader(std::slice::from_ref(&topic)).await?;
    let frame = Bytes::from(vec![0xa5; publisher.limits.max_frame.min(LARGEST_SENT)]);
    publisher.send(&topic, frame.clone()).await?;
    reader.expect(&topic, &frame).await?;
    Ok(Kept::Yes)
}

pub(super) async fn one_byte_more_is_too_large_and_sends_nothing(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let topic = space.topic("limit");
    let publisher = space.publisher().await?;
    let mut reader = space.reader(std::slice::from_ref(&topic)).await?;
    let limit = publisher.limits.max_frame;
    if limit >= LARGEST_REFUSED {
        return Ok(Kept::NotApplicable("takes frames of a gibibyte: not tried beyond"));
    }
    let large = Bytes::from(vec![0; limit + 1]);
    let batch = vec![
        numbered(&publisher, &topic, 0, 0),
        Outgoing { topic: topic.clone(), frame: large.clone() },
        numbered(&publisher, &topic, 1, 0),
    ];
    let mut results = Vec::new();
    let offering = async {
        results = publisher.offer(batch).await?;
        Ok(())
    };
    let arrivals = reader.collect(&[(&publisher, &topic)], offering).await?;
    ensure!(
        matches!(results.get(1), Some(Err(error)) if error.kind() == ErrorKind::TooLarge),
        "the answer to a frame of {limit} + 1 bytes was {:?}, not TooLarge",
        results.get(1)
    );
    let neighbours = matches!(&results[..], [Ok(_), Err(_), Ok(_)]);
    ensure!(neighbours, "a frame that is too large took others of its batch with it: {results:?}");
    let sent = arrivals.iter().any(|arrival| arrival.frame.len() > 1024);
    ensure!(!sent, "something of a frame that was refused as too large was sent");
    let missing = Ledger::of(&arrivals).missing(&topic, &publisher, 2);
    ensure!(missing.is_empty(), "the neighbours of a frame that was too large did not arrive");
    Ok(Kept::Yes)
}
