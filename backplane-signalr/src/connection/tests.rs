//! Whole connections over a transport made of two queues.

mod reviewed;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use backplane_core::{Backplane, BackplaneExt as _, MemoryBus, OutboundLimits, Router, RouterConfig};
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

use crate::options::HubOptions;
use crate::protocol::TransferFormat;
use crate::transport::{Ended, Transport};
use crate::{Disconnect, Hub, HubContext, HubError, HubResult, HubServer};

const SOON: Duration = Duration::from_secs(30);

/// What client and server exchange.
#[derive(Default)]
struct Pipe {
    to_server: VecDeque<Bytes>,
    to_client: Vec<u8>,
    /// The client does not read.
    stuck: bool,
    client_left: bool,
    closed: bool,
    waker: Option<Waker>,
}

#[derive(Clone, Default)]
struct Shared(Arc<(Mutex<Pipe>, Notify)>);

impl Shared {
    fn change(&self, change: impl FnOnce(&mut Pipe)) {
        let mut pipe = self.0.0.lock();
        change(&mut pipe);
        if let Some(waker) = pipe.waker.take() {
            waker.wake();
        }
        drop(pipe);
        self.0.1.notify_one();
    }
}

struct Fake {
    pipe: Shared,
    waiting: Option<Bytes>,
}

impl std::fmt::Debug for Fake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fake")
    }
}

impl Transport for Fake {
    fn name(&self) -> &'static str {
        "Fake"
    }

    fn carries(&self, format: TransferFormat) -> bool {
        format == TransferFormat::Text
    }

    fn poll_receive(&mut self, context: &mut Context<'_>, input: &mut BytesMut) -> Poll<Result<(), Ended>> {
        let mut pipe = self.pipe.0.0.lock();
        if let Some(bytes) = pipe.to_server.pop_front() {
            input.extend_from_slice(&bytes);
            self.pipe.0.1.notify_one();
            return Poll::Ready(Ok(()));
        }
        if pipe.client_left {
            return Poll::Ready(Err(Ended::Lost(std::io::ErrorKind::ConnectionReset.into())));
        }
        pipe.waker = Some(context.waker().clone());
        Poll::Pending
    }

    fn send(&mut self, records: Bytes, _: TransferFormat) {
        assert!(self.waiting.replace(records).is_none(), "one piece at a time");
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        let mut pipe = self.pipe.0.0.lock();
        if self.waiting.is_some() && pipe.stuck {
            pipe.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        if let Some(records) = self.waiting.take() {
            pipe.to_client.extend_from_slice(&records);
            self.pipe.0.1.notify_one();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_close(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.poll_flush(context).is_pending() {
            return Poll::Pending;
        }
        self.pipe.change(|pipe| pipe.closed = true);
        Poll::Ready(())
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.pipe.change(|pipe| pipe.closed = true);
    }
}

/// The client's end.
struct Client(Shared);

impl Client {
    fn connect(server: &HubServer) -> Self {
        let pipe = Shared::default();
        let (request, ()) = http::Request::builder().uri("/hub?user=ann").body(()).unwrap().into_parts();
        let session = server.0.sessions.skip(server.0.new_connection_id(), "Fake");
        let fake = Fake { pipe: pipe.clone(), waiting: None };
        server.0.start(&request, session, async move { Ok(Box::new(fake) as Box<dyn Transport>) });
        Self(pipe)
    }

    /// Connects and shakes hands.
    async fn open(server: &HubServer) -> Self {
        let client = Self::connect(server);
        client.send(&json!({"protocol": "json", "version": 1}));
        assert_eq!(client.next().await, json!({}));
        client
    }

    fn send(&self, message: &Value) {
        let bytes = Bytes::from(format!("{message}\u{1e}"));
        self.0.change(|pipe| pipe.to_server.push_back(bytes));
    }

    fn call(&self, id: &str, target: &str, arguments: Value) {
        self.send(&json!({"type": 1, "invocationId": id, "target": target, "arguments": arguments}));
    }

    fn leave(&self) {
        self.0.change(|pipe| pipe.client_left = true);
    }

    async fn until<T>(&self, mut look: impl FnMut(&mut Pipe) -> Option<T>) -> T {
        let wait = async {
            loop {
                if let Some(found) = look(&mut self.0.0.0.lock()) {
                    return found;
                }
                self.0.0.1.notified().await;
            }
        };
        timeout(SOON, wait).await.expect("it happens soon")
    }

    /// The next record.
    async fn next(&self) -> Value {
        self.until(|pipe| {
            let end = pipe.to_client.iter().position(|byte| *byte == 0x1e)?;
            let record: Vec<u8> = pipe.to_client.drain(..=end).collect();
            Some(serde_json::from_slice(&record[..end]).unwrap())
        })
        .await
    }

    async fn closed(&self) {
        self.until(|pipe| pipe.closed.then_some(())).await;
    }
}

async fn node(bus: &MemoryBus) -> Arc<Router> {
    Arc::new(Router::open(Arc::new(bus.clone()), RouterConfig::default()).await.unwrap())
}

fn completion(id: &str, result: impl Into<Value>) -> Value {
    json!({"type": 3, "invocationId": id, "result": result.into()})
}

#[tokio::test]
async fn what_a_call_sends_to_its_caller_precedes_its_completion() {
    async fn greet(hub: HubContext<()>, name: String) -> HubResult<usize> {
        for _ in 0..3 {
            hub.clients().caller().send("Hello", (&name,)).await?;
        }
        Ok(name.len())
    }
    let hub = Hub::new(()).method("Greet", greet);
    let server = hub.serve(node(&MemoryBus::new()).await).unwrap();
    let client = Client::open(&server).await;
    client.call("1", "greet", json!(["ann"]));
    for _ in 0..3 {
        assert_eq!(client.next().await, json!({"type": 1, "target": "Hello", "arguments": ["ann"]}));
    }
    assert_eq!(client.next().await, completion("1", 3));
}

#[tokio::test]
async fn a_panic_is_an_error_of_its_call_alone() {
    async fn explode(_: HubContext<()>) -> HubResult {
        panic!("boom")
    }
    let hub = Hub::new(())
        .method("Explode", explode)
        .method("Add", async |_: HubContext<()>, a: i32, b: i32| Ok(a + b));
    let server = hub.serve(node(&MemoryBus::new()).await).unwrap();
    let client = Client::open(&server).await;
    client.call("1", "Explode", json!([]));
    let text = "An unexpected error occurred invoking 'Explode' on the server.";
    assert_eq!(client.next().await, json!({"type": 3, "invocationId": "1", "error": text}));
    client.call("2", "Add", json!([1, 2]));
    assert_eq!(client.next().await, completion("2", 3));
}

#[tokio::test]
async fn a_call_that_asks_gives_its_place_away_and_others_wait_for_theirs() {
    async fn ask(hub: HubContext<()>) -> HubResult<String> {
        Ok(hub.clients().caller().invoke("Name", ()).await?)
    }
    async fn wait(hub: HubContext<Notify>) -> HubResult<&'static str> {
        hub.state().notified().await;
        Ok("waited")
    }
    let bus = MemoryBus::new();
    let server = Hub::new(())
        .method("Ask", ask)
        .method("Ping", async |_: HubContext<()>| Ok("pong"))
        .serve(node(&bus).await)
        .unwrap();
    let client = Client::open(&server).await;
    client.call("1", "Ask", json!([]));
    let question = client.next().await;
    client.call("2", "Ping", json!([]));
    assert_eq!(client.next().await, completion("2", "pong"));
    client.send(&json!({"type": 3, "invocationId": question["invocationId"], "result": "ann"}));
    assert_eq!(client.next().await, completion("1", "ann"));

    let hub =
        Hub::new(Notify::new()).method("Wait", wait).method("Release", async |hub: HubContext<Notify>| {
            hub.state().notify_one();
            Ok(())
        });
    let server = hub.serve(node(&bus).await).unwrap();
    let (client, other) = (Client::open(&server).await, Client::open(&server).await);
    client.call("1", "Wait", json!([]));
    client.call("2", "Release", json!([]));
    other.call("3", "Release", json!([]));
    assert_eq!(other.next().await, completion("3", Value::Null));
    assert_eq!(client.next().await, completion("1", "waited"));
    assert_eq!(client.next().await, completion("2", Value::Null));
}

#[tokio::test]
async fn a_client_that_comes_while_the_link_is_down_is_told_so_and_running_ones_stay() {
    let bus = MemoryBus::new();
    let node = node(&bus).await;
    let told = Arc::new(AtomicUsize::new(0));
    let counted = told.clone();
    let hub =
        Hub::new(()).method("Ping", async |_: HubContext<()>| Ok("pong")).on_disconnected(move |_, _| {
            counted.fetch_add(1, Ordering::Relaxed);
            async { Ok(()) }
        });
    let server = hub.serve(node.clone()).unwrap();
    let early = Client::open(&server).await;
    bus.faults().refuse(true);
    bus.faults().cut();
    timeout(SOON, node.health().wait_for(|health| health.is_down())).await.unwrap().unwrap();
    let late = Client::open(&server).await;
    let error =
        "Connection closed with an error. HubException: This server has no link to the others at the moment.";
    let close = json!({"type": 7, "error": error, "allowReconnect": true});
    assert_eq!(late.next().await, close);
    late.closed().await;
    early.call("1", "Ping", json!([]));
    assert_eq!(early.next().await, completion("1", "pong"));
    assert_eq!(told.load(Ordering::Relaxed), 0, "it never was connected");
}

#[tokio::test]
async fn a_lost_client_is_told_to_its_hub_and_can_still_leave_its_groups() {
    let (sender, mut seen) = mpsc::unbounded_channel();
    let node = node(&MemoryBus::new()).await;
    let hub = Hub::new(())
        .on_connected(async |hub: HubContext<()>| Ok(hub.groups().add(hub.connection_id(), "room").await?))
        .on_disconnected(move |hub: HubContext<()>, why: Disconnect| {
            let sender = sender.clone();
            async move {
                hub.groups().remove(hub.connection_id(), "room").await?;
                sender.send((hub.connection_id().clone(), why)).unwrap();
                Ok(())
            }
        });
    let server = hub.serve(node.clone()).unwrap();
    let client = Client::open(&server).await;
    client.leave();
    let (id, why) = timeout(SOON, seen.recv()).await.unwrap().unwrap();
    assert!(matches!(why, Disconnect::Failed(_)), "{why:?}");
    timeout(SOON, async {
        while server.connections() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("its task ends");
    assert!(node.join(&id, &"room".into()).await.is_err(), "it is deregistered");
}

#[tokio::test]
async fn a_refused_connection_is_closed_for_good() {
    let hub = Hub::new(()).on_connected(async |hub: HubContext<()>| {
        assert_eq!(hub.query(), "user=ann");
        Err(HubError::public("not you"))
    });
    let server = hub.serve(node(&MemoryBus::new()).await).unwrap();
    let client = Client::open(&server).await;
    let error = "Connection closed with an error. HubException: not you";
    assert_eq!(client.next().await, json!({"type": 7, "error": error}));
    client.closed().await;
}

#[tokio::test]
async fn shutdown_tells_every_client_that_it_may_come_back() {
    let node = node(&MemoryBus::new()).await;
    let server = Hub::new(()).serve(node).unwrap();
    let clients = [Client::open(&server).await, Client::open(&server).await];
    let hesitating = Client::connect(&server);
    timeout(SOON, server.shutdown()).await.unwrap();
    for client in &clients {
        assert_eq!(client.next().await, json!({"type": 7, "allowReconnect": true}));
        client.closed().await;
    }
    assert_eq!(hesitating.next().await, json!({"error": "Handshake was canceled."}));
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn a_client_that_does_not_read_is_disconnected_and_nobody_waits_for_it() {
    let node = node(&MemoryBus::new()).await;
    let outbound = OutboundLimits { messages: 100, ..OutboundLimits::default() };
    let options = HubOptions { outbound, ..HubOptions::default() };
    let server = Hub::new(()).options(options).serve(node).unwrap();
    let (slow, quick) = (Client::open(&server).await, Client::open(&server).await);
    slow.0.change(|pipe| pipe.stuck = true);
    for number in 0..200 {
        server.clients().all().send("Tick", (number,)).await.unwrap();
        assert_eq!(quick.next().await["arguments"], json!([number]));
    }
    timeout(SOON, async {
        while server.connections() > 1 {
            tokio::task::yield_now().await;
            slow.0.change(|pipe| pipe.stuck = false);
        }
    })
    .await
    .expect("the slow one is gone");
    slow.closed().await;
}

#[tokio::test(start_paused = true)]
async fn a_write_that_does_not_get_through_cuts_the_connection() {
    let server = Hub::new(()).serve(node(&MemoryBus::new()).await).unwrap();
    let client = Client::open(&server).await;
    client.0.change(|pipe| pipe.stuck = true);
    server.clients().all().send("Tick", ()).await.unwrap();
    let start = tokio::time::Instant::now();
    client.until(|pipe| pipe.closed.then_some(())).await;
    assert!(start.elapsed() >= HubOptions::default().send_timeout - Duration::from_millis(1));
}

#[tokio::test(start_paused = true)]
async fn pings_come_and_a_client_that_fell_silent_is_let_go() {
    let options = HubOptions {
        keep_alive: Duration::from_secs(1),
        client_timeout: Duration::from_secs(3),
        ..HubOptions::default()
    };
    let server = Hub::new(()).options(options).serve(node(&MemoryBus::new()).await).unwrap();
    let client = Client::open(&server).await;
    assert_eq!(client.next().await, json!({"type": 6}));
    client.send(&json!({"type": 6}));
    let mut pings = 0;
    loop {
        match client.next().await {
            ping if ping == json!({"type": 6}) => pings += 1,
            close => {
                let text = "Connection closed with an error.";
                assert_eq!(close, json!({"type": 7, "error": text, "allowReconnect": true}));
                break;
            }
        }
    }
    assert!((2..=3).contains(&pings), "{pings}");
}

#[tokio::test]
async fn input_behind_a_waiting_call_is_bounded() {
    let hub = Hub::new(Notify::new()).method("Wait", async |hub: HubContext<Notify>| {
        hub.state().notified().await;
        Ok(())
    });
    let server = hub.serve(node(&MemoryBus::new()).await).unwrap();
    let client = Client::open(&server).await;
    client.call("1", "Wait", json!([]));
    for number in 0..5_000 {
        client.call(&number.to_string(), "Wait", json!([]));
    }
    // It stops reading: what it took stays far below what was sent.
    let rest = client.until(|pipe| (pipe.to_server.len() < 5_000).then_some(pipe.to_server.len())).await;
    assert!(rest > 0);
    tokio::task::yield_now().await;
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    let taken = 5_001 - client.0.0.0.lock().to_server.len();
    assert!(taken < 2_000, "{taken} calls were taken in");
}
