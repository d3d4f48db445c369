//! B10 again: topics are opaque; each is itself and no other, whatever a broker's own syntax makes of it.

use std::sync::Arc;

use backplane_core::{Outgoing, Topic, TopicSyntax};

use super::ledger::{Ledger, few, numbered};
use super::probe::Probe;
use super::space::Space;
use crate::ensure;
use crate::harness::Harness;
use crate::report::{Broken, Kept, Outcome};

/// Numbers of frames to topics that nobody subscribed to.
const UNASKED: u32 = 1;

/// The name of the topic that says that no more comes.
const FENCE: &str = "fence";

/// Reads `wanted` and publishes to those and to `unasked`: each frame arrives under its own topic, and nothing that was
/// not asked for, unless the bus delivers what is none of ours anyway.
async fn each_is_itself(space: &Space, mut reader: Probe, wanted: &[Topic], unasked: &[Topic]) -> Outcome {
    let publisher = space.publisher().await?;
    let strangers = space.topics("stranger", 4);
    let mut batch: Vec<Outgoing> = wanted.iter().map(|topic| numbered(&publisher, topic, 0, 0)).collect();
    let others = unasked.iter().chain(&strangers);
    batch.extend(others.map(|topic| numbered(&publisher, topic, UNASKED, 0)));
    let publishing = async {
        let results = publisher.offer(batch).await?;
        // Whether it minds that nobody listens to the others is another contract's matter.
        results.into_iter().take(wanted.len()).try_for_each(|result| result.map(drop))?;
        Ok(())
    };
    let fences = [(&publisher, &space.topic(FENCE))];
    let mut arrivals = reader.collect(&fences, publishing).await?;
    reader.read_late(&mut arrivals, |arrivals| arrivals.len() >= wanted.len()).await;
    let ledger = Ledger::of(&arrivals);
    ensure!(ledger.misplaced.is_empty(), "{}", ledger.misplaced[0]);
    for topic in wanted {
        let missing = ledger.missing(topic, &publisher, 1);
        ensure!(missing.is_empty(), "{} on {} did not arrive", few(&missing), shown(topic));
    }
    let heard = |topic: &&Topic| ledger.numbers(topic, &publisher).contains(&UNASKED);
    if let Some(topic) = unasked.iter().find(heard) {
        let buckets = strangers.iter().any(|topic| heard(&topic));
        ensure!(buckets, "{} was delivered, and only others like it were subscribed", shown(topic));
    }
    Ok(Kept::Yes)
}

/// A link that was attached to all of `topics`.
async fn attached(space: &Space, topics: &[Topic]) -> Result<Probe, Broken> {
    space.reader(&[topics, &[space.topic(FENCE)]].concat()).await
}

/// A link that subscribed to all of `topics`.
async fn subscribed(space: &Space, topics: &[Topic]) -> Result<Probe, Broken> {
    let reader = space.link(&[]).await?;
    reader.subscribe(&[topics, &[space.topic(FENCE)]].concat()).await?;
    Ok(reader)
}

fn shown(topic: &Topic) -> String {
    let text = topic.to_string();
    match text.char_indices().nth(80) {
        Some((cut, _)) => format!("{}... ({} bytes)", &text[..cut], topic.as_bytes().len()),
        None => text,
    }
}

pub(super) async fn topics_that_differ_only_by_case_are_two(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let wanted = ["room", "Room", "ROOM", "a-b", "A-b"].map(|name| space.topic(name));
    let unasked = ["rOOm", "RooM", "a-B"].map(|name| space.topic(name));
    each_is_itself(&space, attached(&space, &wanted).await?, &wanted, &unasked).await
}

pub(super) async fn long_topics_are_compared_to_their_last_byte(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let long = |last: &str| {
        let start = space.topic("").as_bytes().len();
        space.topic(format!("{}{last}", "x".repeat(Topic::MAX_TOKENS_LEN - start - last.len())))
    };
    let wanted = ["a", "b", ".c", "-1"].map(long);
    let unasked = ["d", ".e", "_"].map(long);
    debug_assert!(wanted.iter().chain(&unasked).all(|topic| topic.as_bytes().len() == Topic::MAX_TOKENS_LEN));
    each_is_itself(&space, attached(&space, &wanted).await?, &wanted, &unasked).await
}

pub(super) async fn topics_that_begin_alike_are_distinct(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let wanted = ["a", "a.b", "a.b.c", "ab", "a_b", "a-b", "1"].map(|name| space.topic(name));
    let unasked = ["b", "a.c", "a.b.c.d", "abc", "a_", "a-", "10"].map(|name| space.topic(name));
    each_is_itself(&space, attached(&space, &wanted).await?, &wanted, &unasked).await
}

pub(super) async fn hostile_topics_are_literal(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    if space.harness.bus().await?.capabilities().topics != TopicSyntax::Any {
        return Ok(Kept::NotApplicable("carries dot-separated tokens only"));
    }
    let long = "l".repeat(10_000);
    let mut wanted: Vec<Topic> = [
        "*",
        "x.*",
        ">",
        "x.>",
        "#",
        "x.#",
        "+",
        "?",
        "[a-z]",
        "%",
        "_",
        "\\",
        "'",
        "\"",
        "`; DROP",
        "$SYS",
        "/",
        "//",
        " ",
        "a b",
        "\t",
        "\r\n",
        "\r\nPUBLISH x y\r\n",
        "\0",
        "a\0b",
        "\u{1f980}",
        "\u{e9}",
        "e\u{301}",
        ".",
        "..",
        "a.",
        "{tag}",
        "-",
        "--",
        ":",
        ",",
        "=",
        "&",
        "<b>",
        "\u{feff}",
        "\u{202e}",
    ]
    .map(|name| space.topic(name))
    .into();
    wanted.push(space.topic(&long));
    wanted.push(Topic::new(&[space.topic("").as_bytes(), &[0xff, 0xfe, 0x80, 0x00]].concat()));
    let mut unasked: Vec<Topic> = ["x", "x.y", "x.y.z", "y", "a", "a\0", "a\0c", "A b", "", "x.**", "e"]
        .map(|name| space.topic(name))
        .into();
    unasked.push(space.topic(format_args!("{long}m")));
    unasked.push(Topic::new(&[space.topic("").as_bytes(), &[0xff, 0xfe]].concat()));
    each_is_itself(&space, attached(&space, &wanted).await?, &wanted, &unasked).await?;
    each_is_itself(&space, subscribed(&space, &wanted).await?, &wanted, &unasked).await
}
