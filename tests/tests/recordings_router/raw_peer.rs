//! Two of our nodes and a peer that shares nothing with them but the bytes: it speaks plain PUBLISH and SUBSCRIBE to
//! Redis, and builds and reads payloads by itself.

use std::time::Duration;

use backplane_conformance::bound;
use backplane_conformance::broker::{Broker as _, Redis, RedisOptions};
use backplane_core::{
    Backplane as _, BackplaneExt as _, ClientInvocation, ClientResult, ConnectionId, EncodedMessage,
    ErrorKind, MembershipChange, Protocol, Router, RouterConfig, Target, Wire,
};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::client::LocalClient;
use crate::describe;
use crate::raw_bytes::{
    array, bin, blobs, described, framed, hex, json_blob, message, messagepack_blob, text,
};
use crate::resp::Resp;

const HUB: &str = "Demo.ChatHub";
const PEER: &str = "PEER_00000000000000000000000000000000";
/// The peer's only connection, which is the user `pu`.
const THEIRS: &str = "peerAAAAAAAAAAAAAAAAAA";
/// How long a group change of our nodes waits.
fn ack_deadline() -> Duration {
    bound(Duration::from_millis(400))
}

struct Fleet {
    one: Router,
    two: Router,
    /// Speaks JSON on node one; user `u`, group `room`.
    a: LocalClient,
    /// Speaks MessagePack on node two; user `u`, groups `room` and `hall`.
    b: LocalClient,
    peer: Peer,
    _redis: Redis,
}

/// The raw peer: a connection that hears and one that speaks.
struct Peer {
    hears: Resp,
    speaks: Resp,
    marks: usize,
}

impl Fleet {
    async fn start() -> Option<Self> {
        let redis = Redis::require(RedisOptions::default()).await?;
        let mut peer = Peer {
            hears: Resp::connect(redis.address()).await,
            speaks: Resp::connect(redis.address()).await,
            marks: 0,
        };
        let names =
            ["all", "internal:groups", &format!("internal:ack:{PEER}"), &format!("internal:return:{PEER}")]
                .map(channel);
        let names = names.into_iter().chain([channel(format!("connection:{THEIRS}")), channel("user:pu")]);
        let names: Vec<String> = names.chain([channel("group:room")]).collect();
        peer.hears.subscribe(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
        let (one, two) = (node(&redis, "NODE_1").await, node(&redis, "NODE_2").await);
        let a = LocalClient::connect(&one, "aAAAAAAAAAAAAAAAAAAAAA", Protocol::JSON, Some("u")).await;
        let b = LocalClient::connect(&two, "bAAAAAAAAAAAAAAAAAAAAA", Protocol::MESSAGEPACK, Some("u")).await;
        let (a, b) = (a.expect("it registers"), b.expect("it registers"));
        one.join(&a.id, &"room".into()).await.expect("it joins");
        two.join(&b.id, &"room".into()).await.expect("it joins");
        two.join(&b.id, &"hall".into()).await.expect("it joins");
        Some(Self { one, two, a, b, peer, _redis: redis })
    }

    /// What `a` and `b` got since the last call, once all that was published by now has been handled.
    async fn arrived(&mut self) -> [Vec<String>; 2] {
        self.peer.marks += 1;
        let text = format!("mark {}", self.peer.marks);
        assert_eq!(self.peer.say("all", &message(&[], &text)).await, 3);
        let mut arrived = [Vec::new(), Vec::new()];
        for (client, arrived) in [&mut self.a, &mut self.b].into_iter().zip(&mut arrived) {
            let mark =
                if client.protocol == Protocol::JSON { json_blob(&text) } else { messagepack_blob(&text) };
            client.read_up_to(&mark).await.expect("the client is not disconnected");
            for arrival in client.take() {
                match arrival.what {
                    crate::client::Message::Invocation { arguments, .. } => {
                        arrived.push(arguments[0].as_str().expect("a text").to_owned());
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        // The peer hears its own mark too, behind everything else.
        let mark = ("all".to_owned(), described(&[], &text));
        assert_eq!(self.peer.hear().await, mark, "the peer got more than was asked about");
        arrived
    }
}

impl Peer {
    async fn say(&mut self, on: &str, payload: &[u8]) -> u64 {
        self.speaks.publish(&channel(on), payload).await
    }

    /// The next message, with the hub's name taken off, read by our own reader.
    async fn hear(&mut self) -> (String, Value) {
        let (on, payload) = self.hears.next().await;
        let on = on.strip_prefix(&channel("")).expect("a channel of the hub").to_owned();
        (on, describe::whole(&payload).expect("MessagePack, all of it"))
    }
}

async fn node(redis: &Redis, name: &str) -> Router {
    let bus = backplane::open_bus(&redis.url()).expect("a Redis bus");
    let config = RouterConfig {
        hub: HUB.into(),
        wire: Wire::AspNetCore { server_name: Some(name.to_owned()) },
        ack_timeout: ack_deadline(),
        ..RouterConfig::default()
    };
    Router::open(bus, config).await.expect("the node opens")
}

fn channel(rest: impl AsRef<str>) -> String {
    format!("{HUB}:{}", rest.as_ref())
}

fn encoded(argument: &str) -> EncodedMessage {
    EncodedMessage::new([
        (Protocol::JSON, json_blob(argument).into()),
        (Protocol::MESSAGEPACK, messagepack_blob(argument).into()),
    ])
}

/// Whom to, whom not to, where the peer hears it, how often a and b get it.
type FromOurs<'a> = (Target, Vec<ConnectionId>, &'a [&'a str], [usize; 2]);

#[tokio::test]
async fn every_kind_of_send_goes_from_our_nodes_to_a_raw_peer_and_to_each_other() {
    let Some(mut fleet) = Fleet::start().await else { return };
    let (a, b) = (fleet.a.id.clone(), fleet.b.id.clone());
    let theirs = ConnectionId::from(THEIRS);
    let to_peer = format!("connection:{THEIRS}");
    let peers: &[&str] = &[&to_peer];
    let kinds: Vec<FromOurs> = vec![
        (Target::All, vec![], &["all"], [1, 1]),
        (Target::All, vec![a.clone(), theirs.clone()], &["all"], [0, 1]),
        (Target::All, vec![b.clone()], &["all"], [1, 0]),
        (Target::connection(&theirs), vec![], peers, [0, 0]),
        (Target::connection(&b), vec![], &[], [0, 1]),
        (Target::connection(&a), vec![], &[], [1, 0]),
        (Target::connections([&a, &b, &theirs, &b, &theirs]), vec![], peers, [1, 1]),
        (Target::group("room"), vec![], &["group:room"], [1, 1]),
        (Target::groups(["room", "hall", "nosuch"]), vec![], &["group:room"], [1, 2]),
        (Target::group("room"), vec![b.clone(), theirs.clone()], &["group:room"], [1, 0]),
        (Target::user("pu"), vec![], &["user:pu"], [0, 0]),
        (Target::user("u"), vec![], &[], [1, 1]),
        (Target::users(["u", "pu", "nobody", "u"]), vec![], &["user:pu"], [1, 1]),
    ];
    let nodes = [fleet.one.clone(), fleet.two.clone()];
    for (number, (target, except, heard, copies)) in kinds.iter().enumerate() {
        for (from, node) in nodes.iter().enumerate() {
            let argument = format!("{number} from {from}");
            node.send(target, except, encoded(&argument)).await.expect("Redis accepts");
            let excluded: Vec<&str> = except.iter().map(ConnectionId::as_str).collect();
            for on in *heard {
                let expected = ((*on).to_owned(), described(&excluded, &argument));
                assert_eq!(fleet.peer.hear().await, expected, "{target:?}");
            }
            let expected = copies.map(|copies| vec![argument.clone(); copies]);
            assert_eq!(fleet.arrived().await, expected, "{target:?} but {except:?}");
        }
    }
}

/// On which channels, whom not to, how many get it in all, how often a and b get it, how often the peer hears itself.
type FromPeer<'a> = (&'a [&'a str], &'a [&'a str], u64, [usize; 2], usize);

#[tokio::test]
async fn every_kind_of_send_goes_from_a_raw_peer_to_our_nodes() {
    let Some(mut fleet) = Fleet::start().await else { return };
    let (a, b) = (fleet.a.id.to_string(), fleet.b.id.to_string());
    let (to_a, to_b) = (format!("connection:{a}"), format!("connection:{b}"));
    let kinds: [FromPeer<'_>; 8] = [
        (&["all"], &[], 3, [1, 1], 1),
        (&["all"], &[&a, "nobody"], 3, [0, 1], 1),
        (&[&to_a], &[], 1, [1, 0], 0),
        (&[&to_a, &to_b, "connection:nobody"], &[], 2, [1, 1], 0),
        (&["group:room"], &[], 3, [1, 1], 1),
        (&["group:room", "group:hall"], &[], 4, [1, 2], 1),
        (&["group:room"], &[&b], 3, [1, 0], 1),
        (&["user:u", "user:pu"], &[], 3, [1, 1], 1),
    ];
    for (number, (channels, excluded, reach, copies, heard)) in kinds.into_iter().enumerate() {
        let argument = format!("peer {number}");
        let mut reached = 0;
        for on in channels {
            reached += fleet.peer.say(on, &message(excluded, &argument)).await;
        }
        assert_eq!(reached, reach, "{channels:?}");
        for _ in 0..heard {
            assert_eq!(fleet.peer.hear().await.1, described(excluded, &argument));
        }
        assert_eq!(
            fleet.arrived().await,
            copies.map(|copies| vec![argument.clone(); copies]),
            "{channels:?}"
        );
    }
}

#[tokio::test]
async fn memberships_change_with_acknowledgements_both_ways() {
    let Some(mut fleet) = Fleet::start().await else { return };
    // Ours asks, the peer does it and acknowledges.
    let name = ["NODE_1", "NODE_2"];
    for (node, name) in [fleet.one.clone(), fleet.two.clone()].into_iter().zip(name) {
        for (id, action) in [(1_u8, 1_u8), (2, 2)] {
            let change = if action == 1 {
                MembershipChange::join(THEIRS, "cellar")
            } else {
                MembershipChange::leave(THEIRS, "cellar")
            };
            let asked = tokio::spawn({
                let node = node.clone();
                // Long enough for the peer, however busy the machine is.
                async move { node.update_group(change.with_timeout(Duration::from_secs(20))).await }
            });
            let command = json!([id, name, action, "cellar", THEIRS]);
            assert_eq!(fleet.peer.hear().await, ("internal:groups".to_owned(), command));
            let cellar = channel("group:cellar");
            if action == 1 {
                fleet.peer.hears.subscribe(&[&cellar]).await;
            } else {
                fleet.peer.hears.unsubscribe(&[&cellar]).await;
            }
            assert!(!asked.is_finished(), "it waits for the acknowledgement");
            assert_eq!(fleet.peer.say(&format!("internal:ack:{name}"), &array(&[vec![id]])).await, 1);
            asked.await.expect("it does not panic").expect("the peer acknowledged");
            node.send_to_group(&"cellar".into(), encoded("down here")).await.expect("Redis accepts");
            if action == 1 {
                assert_eq!(fleet.peer.hear().await, ("group:cellar".to_owned(), described(&[], "down here")));
            }
        }
    }
    // The peer asks, ours do it and acknowledge: joined when the acknowledgement is there.
    let ids = [fleet.a.id.to_string(), fleet.b.id.to_string()];
    for (at, id) in ids.iter().enumerate() {
        for (number, action, members) in [(0x2A_u8, 1_u8, 1), (0x2B, 1, 1), (0x2C, 2, 0), (0x2D, 2, 0)] {
            let command = array(&[vec![number], text(PEER), vec![action], text("attic"), text(id)]);
            assert_eq!(fleet.peer.say("internal:groups", &command).await, 3);
            let echo = json!([number, PEER, action, "attic", id]);
            assert_eq!(fleet.peer.hear().await, ("internal:groups".to_owned(), echo));
            assert_eq!(fleet.peer.hear().await, (format!("internal:ack:{PEER}"), json!([number])));
            if members == 1 {
                assert_eq!(fleet.peer.say("group:attic", &message(&[], "up here")).await, 1);
            } else {
                // Freed in the background: the receivers may still be counted, but nobody is a member.
                fleet.peer.say("group:attic", &message(&[], "up here")).await;
            }
            let mut expected = [vec![], vec![]];
            expected[at] = vec!["up here".to_owned(); members];
            assert_eq!(fleet.arrived().await, expected);
        }
    }
}

/// In which protocol, the completion with its id, what our node makes of it.
type Answer = (&'static str, fn(&str) -> Vec<u8>, ClientResult);

#[tokio::test]
async fn questions_are_answered_both_ways() {
    let Some(mut fleet) = Fleet::start().await else { return };
    // Ours asks a connection of the peer.
    let completions: [Answer; 4] = [
        (
            "json",
            |id| {
                format!("{{\"type\":3,\"invocationId\":\"{id}\",\"result\":{{\"x\": 1}}}}\u{1e}").into_bytes()
            },
            ClientResult::value(Protocol::JSON, "{\"x\": 1}"),
        ),
        (
            "messagepack",
            |id| framed(array(&[vec![3], vec![0x80], text(id), vec![3], vec![0x2A]])),
            ClientResult::value(Protocol::MESSAGEPACK, &b"\x2A"[..]),
        ),
        (
            "json",
            |id| format!("{{\"type\":3,\"invocationId\":\"{id}\",\"error\":\"no\"}}\u{1e}").into_bytes(),
            ClientResult::error("no"),
        ),
        ("messagepack", |id| framed(array(&[vec![3], vec![0x80], text(id), vec![2]])), ClientResult::Void),
    ];
    for (node, name) in [(fleet.one.clone(), "NODE_1"), (fleet.two.clone(), "NODE_2")] {
        for (protocol, completion, expected) in &completions {
            let asked = tokio::spawn({
                let node = node.clone();
                async move { node.invoke(&THEIRS.into(), ClientInvocation::new(|_| encoded("?"))).await }
            });
            let (on, question) = fleet.peer.hear().await;
            assert_eq!(on, format!("connection:{THEIRS}"));
            assert_eq!(question[3], format!("{HUB}:internal:return:{name}"));
            let id = question[2].as_str().expect("an id").to_owned();
            assert_eq!(id.len(), 22);
            let Value::Array(described) = described(&[], "?") else { unreachable!("it is an array") };
            assert_eq!(question.as_array().expect("an array")[..2], described);
            let answer = array(&[text(protocol), bin(&completion(&id))]);
            assert_eq!(fleet.peer.say(&format!("internal:return:{name}"), &answer).await, 1);
            assert_eq!(asked.await.expect("it does not panic").expect("the peer answered"), *expected);
        }
    }
    // The peer asks connections of ours: an answer, then one that leaves instead.
    let question = |id: &str| {
        let back = format!("{HUB}:internal:return:{PEER}");
        array(&[array(&[]), blobs(&json_blob("?"), &messagepack_blob("?")), text(id), text(&back)])
    };
    let (a, b) = (fleet.a.id.to_string(), fleet.b.id.to_string());
    let back = format!("internal:return:{PEER}");
    assert_eq!(fleet.peer.say(&format!("connection:{a}"), &question("q1")).await, 1);
    assert_eq!(fleet.peer.say(&format!("connection:{b}"), &question("q2")).await, 1);
    assert_eq!(fleet.arrived().await, [vec!["?".to_owned()], vec!["?".to_owned()]]);
    let value = ClientResult::value(Protocol::JSON, "\"one\"");
    fleet.a.registration.complete(&"q1".into(), value).expect("the answer is sent");
    let answer = b"{\"type\":3,\"invocationId\":\"q1\",\"result\":\"one\"}\x1e";
    assert_eq!(fleet.peer.hear().await, (back.clone(), json!(["json", {"bin": hex(answer)}])));
    let value = ClientResult::value(Protocol::MESSAGEPACK, &b"\xA3two"[..]);
    fleet.b.registration.complete(&"q2".into(), value).expect("the answer is sent");
    let answer = framed(array(&[vec![3], vec![0x80], text("q2"), vec![3], text("two")]));
    assert_eq!(fleet.peer.hear().await, (back.clone(), json!(["messagepack", {"bin": hex(&answer)}])));

    assert_eq!(fleet.peer.say(&format!("connection:{a}"), &question("q3")).await, 1);
    assert_eq!(fleet.arrived().await, [vec!["?".to_owned()], vec![]]);
    let Fleet { a, mut peer, .. } = fleet;
    drop(a);
    let answer = b"{\"type\":3,\"invocationId\":\"q3\",\"error\":\"Connection disconnected.\"}\x1e";
    assert_eq!(peer.hear().await, (back, json!(["json", {"bin": hex(answer)}])));
}

#[tokio::test]
async fn what_nobody_has_ends_typed_and_in_time() {
    let Some(mut fleet) = Fleet::start().await else { return };
    let nobody = ConnectionId::from("nobodyAAAAAAAAAAAAAAAA");
    // A question: its PUBLISH reached nobody, which ends it at once and not at its deadline of 30 s.
    let began = Instant::now();
    let error = fleet.one.invoke(&nobody, ClientInvocation::new(|_| encoded("?"))).await.expect_err("nobody");
    assert_eq!(error.kind(), ErrorKind::ConnectionNotFound, "{error}");
    assert!(began.elapsed() < bound(Duration::from_secs(5)), "{:?}", began.elapsed());
    println!("a question to nobody ended after {:?}", began.elapsed());
    // A group change: the command channel always has readers, so only the deadline ends it.
    let began = Instant::now();
    let error = fleet.one.join(&nobody, &"room".into()).await.expect_err("nobody");
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    let took = began.elapsed();
    assert!(took >= ack_deadline() && took < ack_deadline() + bound(Duration::from_secs(5)), "{took:?}");
    println!("a group change of nobody ended after {took:?}");
    assert_eq!(fleet.peer.hear().await.0, "internal:groups");
    assert_eq!(fleet.one.stats().pending, 0, "nothing is left behind");
    assert_eq!(fleet.arrived().await, [Vec::<String>::new(), vec![]]);
}
