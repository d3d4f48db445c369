//! Two routers on the memory bus: the shortest proof that the parts are wired. The contracts of the whole stand in
//! `backplane-conformance`.

use std::sync::Arc;
use std::time::Duration;

use backplane_core::{
    AbortReason, Attach, Backplane, BackplaneExt as _, Bus, Capabilities, ClientInvocation, ClientResult,
    CloseReason, EncodedMessage, Error, ErrorKind, Event, Link, LinkSender, LinkState, LocalConnection,
    MembershipChange, MemoryBus, OutboundLimits, OutboundReceiver, Outgoing, Protocol, Reach, Registration,
    Result, Router, RouterConfig, Target, Topic, outbound,
};
use bytes::Bytes;
use futures::future::BoxFuture;

const DEADLINE: Duration = Duration::from_secs(5);

struct Client {
    registration: Registration,
    inbox: OutboundReceiver,
}

impl Client {
    async fn of(router: &Router, user: Option<&str>) -> Self {
        let (sender, inbox) = outbound(OutboundLimits::default());
        let connection = LocalConnection {
            id: router.new_connection_id(),
            user: user.map(Into::into),
            protocol: Protocol::JSON,
            outbound: sender,
        };
        Self { registration: router.register(connection).await.expect("the link is up"), inbox }
    }

    async fn receives(&mut self) -> Bytes {
        tokio::time::timeout(DEADLINE, self.inbox.next()).await.expect("in time").expect("open").bytes
    }
}

fn text(text: &'static str) -> EncodedMessage {
    EncodedMessage::json(Bytes::from_static(text.as_bytes()))
}

async fn pair() -> (MemoryBus, Router, Router) {
    let bus = MemoryBus::new();
    let config = || RouterConfig { heartbeat: Duration::from_millis(500), ..RouterConfig::default() };
    let a = Router::open(Arc::new(bus.clone()), config()).await.expect("the memory bus is there");
    let b = Router::open(Arc::new(bus.clone()), config()).await.expect("the memory bus is there");
    (bus, a, b)
}

#[tokio::test]
async fn every_kind_of_send_reaches_the_other_node() {
    let (_bus, a, b) = pair().await;
    let mut client = Client::of(&b, Some("user")).await;
    let id = client.registration.connection().clone();
    a.update_group(MembershipChange::join(&id, "group")).await.unwrap();
    let targets = [Target::all(), Target::connection(&id), Target::group("group"), Target::user("user")];
    for target in targets {
        a.send(&target, &[], text("hello")).await.unwrap();
        assert_eq!(client.receives().await, "hello");
        b.send(&target, &[], text("here")).await.unwrap();
        assert_eq!(client.receives().await, "here");
    }
    a.send(&Target::all(), std::slice::from_ref(&id), text("not for you")).await.unwrap();
    a.update_group(MembershipChange::leave(&id, "group")).await.unwrap();
    a.send(&Target::group("group"), &[], text("not for you")).await.unwrap();
    a.send(&Target::all(), &[], text("fence")).await.unwrap();
    assert_eq!(client.receives().await, "fence");
    assert_eq!(a.stats().pending, 0);
}

#[tokio::test]
async fn a_client_on_another_node_answers() {
    let (_bus, a, b) = pair().await;
    let mut client = Client::of(&b, None).await;
    let id = client.registration.connection().clone();
    let asked = tokio::spawn({
        let a = a.clone();
        let id = id.clone();
        let call = ClientInvocation::new(|id| EncodedMessage::json(id.as_str().to_owned()));
        async move { a.invoke(&id, call).await }
    });
    let question = String::from_utf8(client.receives().await.to_vec()).unwrap();
    client
        .registration
        .complete(&question.as_str().into(), ClientResult::value(Protocol::JSON, "10"))
        .unwrap();
    assert_eq!(asked.await.unwrap().unwrap(), ClientResult::value(Protocol::JSON, "10"));

    a.abort(&id, AbortReason::default()).await.unwrap();
    assert_eq!(client.inbox.next().await, Err(CloseReason::Aborted(AbortReason::default())));
    drop(client);
    let gone = a.invoke(&id, ClientInvocation::new(|_| text("?"))).await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::ConnectionNotFound);
    let gone = a.update_group(MembershipChange::join(&id, "group")).await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::ConnectionNotFound);
    let never = a.update_group(MembershipChange::join("1234", "group")).await.unwrap_err();
    assert_eq!(never.context(), Some("connection '1234' does not exist"));
}

#[tokio::test]
async fn a_lost_link_is_told_and_comes_back() {
    let (bus, a, b) = pair().await;
    let mut client = Client::of(&b, None).await;
    b.update_group(MembershipChange::join(client.registration.connection(), "group")).await.unwrap();
    let mut gaps = b.gaps();
    bus.faults().refuse(true);
    bus.faults().cut();
    let mut health = a.health();
    health.wait_for(|health| !health.is_up()).await.unwrap();
    let refused = a.send(&Target::all(), &[], text("lost")).await.unwrap_err();
    assert_eq!((refused.kind(), refused.outcome_unknown()), (ErrorKind::Unavailable, false));
    bus.faults().refuse(false);
    for router in [&a, &b] {
        router.wait_until_up().await.unwrap();
    }
    futures::StreamExt::next(&mut gaps).await.unwrap();
    a.send(&Target::group("group"), &[], text("back")).await.unwrap();
    assert_eq!(client.receives().await, "back");
    assert_eq!(b.stats().reconnects, 1);
}

#[tokio::test]
async fn a_killed_node_ends_the_waits_on_it() {
    let (_bus, a, b) = pair().await;
    let mut events = a.events();
    let client = Client::of(&b, None).await;
    let id = client.registration.connection().clone();
    let asked = tokio::spawn({
        let a = a.clone();
        async move { a.invoke(&id, ClientInvocation::new(|_| text("?"))).await }
    });
    let mut client = client;
    client.receives().await;
    // Without farewell: the node and its connections are gone at once.
    let Client { registration, .. } = client;
    std::mem::forget(registration);
    b.shutdown().await.unwrap();
    let error = tokio::time::timeout(DEADLINE, asked).await.expect("in time").unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionNotFound);
    loop {
        if let Event::NodeGone(node) = events.recv().await.unwrap() {
            assert_eq!(node, b.node_id());
            break;
        }
    }
    b.shutdown().await.unwrap();
    assert_eq!(b.send(&Target::all(), &[], text("?")).await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn hubs_of_one_node_do_not_meet() {
    let (_bus, a, b) = pair().await;
    let (other_a, other_b) = (a.hub("other").await.unwrap(), b.hub("other").await.unwrap());
    let mut client = Client::of(&b, None).await;
    let mut other = Client::of(&other_b, None).await;
    a.send(&Target::all(), &[], text("hub")).await.unwrap();
    other_a.send(&Target::all(), &[], text("other")).await.unwrap();
    assert_eq!(client.receives().await, "hub");
    assert_eq!(other.receives().await, "other");
}

/// A process that stood still finds more than a client's queue holds: a client that reads must keep up with it.
#[tokio::test]
async fn a_backlog_is_not_read_past_clients_that_read() {
    assert!(OutboundLimits::default().messages < 60_000 / 3);
    a_backlog_arrives(60_000, "x").await;
}

/// A queue is bounded in bytes as well, of which far fewer deliveries may be too many.
#[tokio::test]
async fn a_backlog_of_large_messages_is_not_read_past_clients_that_read() {
    let message = "x".repeat(12_000);
    assert!(OutboundLimits::default().bytes < 900 * message.len() / 2);
    a_backlog_arrives(900, &message).await;
}

async fn a_backlog_arrives(messages: usize, message: &str) {
    let bus = MemoryBus::default();
    let reader = Router::open(Arc::new(bus.clone()), RouterConfig::default()).await.expect("opens");
    let (sender, mut receiver) = outbound(OutboundLimits::default());
    let id = reader.new_connection_id();
    let client = LocalConnection { id, user: None, protocol: Protocol::JSON, outbound: sender };
    let _registration = reader.register(client).await.expect("registers");
    let received = tokio::spawn(async move {
        let mut received = 0;
        while received < messages {
            received += receiver.next().await.expect("is not disconnected").messages;
        }
    });
    let message = EncodedMessage::json(message.to_owned());
    let writer = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(async move {
            let writer = Router::open(Arc::new(bus), RouterConfig::default()).await.expect("opens");
            for _ in 0..messages / 300 {
                let all = Target::all();
                let sends = (0..300).map(|_| writer.send(&all, &[], message.clone()));
                futures::future::try_join_all(sends).await.expect("accepted");
            }
            writer.shutdown().await.expect("shuts down");
        });
    });
    // This thread stands still meanwhile, and with it everything that reads.
    writer.join().expect("the writer sends all");
    tokio::time::timeout(Duration::from_secs(30), received)
        .await
        .expect("in time")
        .expect("everything arrives");
    reader.shutdown().await.expect("shuts down");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime")
}

/// A runtime may end between the last poll of whoever opened the node and the first of the node's task.
#[test]
fn a_node_whose_task_never_ran_is_closed_and_leaves_nobody_waiting() {
    let (ending, other) = (runtime(), runtime());
    let node = ending.block_on(Router::open(Arc::new(MemoryBus::new()), RouterConfig::default()));
    let node = node.expect("the memory bus is there");
    drop(ending);
    other.block_on(async {
        let sent = tokio::time::timeout(DEADLINE, node.send_to_all(text("x"))).await.expect("an answer");
        assert_eq!(sent.unwrap_err().kind(), ErrorKind::Closed);
        assert!(matches!(node.health().borrow().state, LinkState::Closed));
        tokio::time::timeout(DEADLINE, node.shutdown()).await.expect("an answer").expect("it is down");
    });
}

/// Answers `Closed` to subscriptions after the first, as a link does that has just died, and never ends.
#[derive(Debug)]
struct Dying(MemoryBus);

#[derive(Debug)]
struct DyingSender(Arc<dyn LinkSender>);

#[async_trait::async_trait]
impl Bus for Dying {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    async fn connect(&self, attach: Attach<'_>) -> Result<Link> {
        let link = self.0.connect(attach).await?;
        Ok(Link { sender: Arc::new(DyingSender(link.sender)), ..link })
    }
}

#[async_trait::async_trait]
impl LinkSender for DyingSender {
    fn publish(&self, batch: Vec<Outgoing>) -> BoxFuture<'static, Vec<Result<Reach>>> {
        self.0.publish(batch)
    }

    async fn subscribe(&self, _: &[Topic]) -> Result<()> {
        Err(Error::new(ErrorKind::Closed, "subscribe"))
    }

    async fn unsubscribe(&self, topics: &[Topic]) -> Result<()> {
        self.0.unsubscribe(topics).await
    }

    async fn close(&self) -> Result<()> {
        self.0.close().await
    }
}

#[tokio::test]
async fn who_joins_while_the_link_dies_hears_of_an_outage_and_not_of_a_shutdown() {
    let node = Router::open(Arc::new(Dying(MemoryBus::new())), RouterConfig::default()).await.expect("opens");
    let (sender, _inbox) = outbound(OutboundLimits::default());
    let id = node.new_connection_id();
    let client = LocalConnection { id, user: Some("ann".into()), protocol: Protocol::JSON, outbound: sender };
    let error = node.register(client).await.expect_err("a user's topic cannot be subscribed to");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.is_retryable());
    node.hub("other").await.expect("its topics are attached with the next link");
    node.shutdown().await.expect("shuts down");
}
