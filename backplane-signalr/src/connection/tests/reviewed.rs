//! Faults that a review found.

use super::*;

#[tokio::test]
async fn on_disconnected_may_wait_for_a_lock_that_a_running_call_holds() {
    type State = (tokio::sync::Mutex<()>, mpsc::UnboundedSender<&'static str>, Notify);
    let (sender, mut seen) = mpsc::unbounded_channel();
    let hub = Hub::new((tokio::sync::Mutex::new(()), sender, Notify::new()))
        .method("Work", async |hub: HubContext<State>| {
            let _lock = hub.state().0.lock().await;
            hub.state().1.send("working").unwrap();
            hub.state().2.notified().await;
            Ok(())
        })
        .on_disconnected(async |hub: HubContext<State>, _| {
            hub.state().2.notify_one();
            let _lock = hub.state().0.lock().await;
            hub.state().1.send("left").unwrap();
            Ok(())
        });
    let server = hub.serve(node(&MemoryBus::new()).await).unwrap();
    let client = Client::open(&server).await;
    client.call("1", "Work", json!([]));
    assert_eq!(timeout(SOON, seen.recv()).await.unwrap(), Some("working"));
    client.leave();
    assert_eq!(timeout(SOON, seen.recv()).await.unwrap(), Some("left"));
}

struct Bomb;

impl serde::Serialize for Bomb {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        panic!("boom")
    }
}

impl<'de> serde::Deserialize<'de> for Bomb {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        panic!("boom")
    }
}

#[tokio::test]
async fn arguments_and_results_that_panic_are_errors_of_their_call_alone() {
    let hub = Hub::new(())
        .method("Give", async |_: HubContext<()>| Ok(Bomb))
        .method("Take", async |_: HubContext<()>, _: Bomb| Ok(()))
        .method("Add", async |_: HubContext<()>, a: i32, b: i32| Ok(a + b));
    let server = hub.serve(node(&MemoryBus::new()).await).unwrap();
    let client = Client::open(&server).await;
    client.call("1", "Give", json!([]));
    let text = "An unexpected error occurred invoking 'Give' on the server.";
    assert_eq!(client.next().await, json!({"type": 3, "invocationId": "1", "error": text}));
    client.call("2", "Take", json!([1]));
    let text = "Failed to invoke 'Take' due to an error on the server.";
    assert_eq!(client.next().await, json!({"type": 3, "invocationId": "2", "error": text}));
    client.call("3", "Add", json!([1, 2]));
    assert_eq!(client.next().await, completion("3", 3));
}

#[tokio::test]
async fn what_was_sent_before_an_abort_or_a_refusal_arrives_before_the_close() {
    let hub = Hub::new(()).method("Kick", async |hub: HubContext<()>| {
        hub.clients().caller().send("Kicked", ("spam",)).await?;
        hub.abort();
        Ok(())
    });
    let server = hub.serve(node(&MemoryBus::new()).await).unwrap();
    let client = Client::open(&server).await;
    client.call("1", "Kick", json!([]));
    assert_eq!(client.next().await, json!({"type": 1, "target": "Kicked", "arguments": ["spam"]}));
    assert_eq!(client.next().await, json!({"type": 7}));

    let hub = Hub::new(()).on_connected(async |hub: HubContext<()>| {
        hub.clients().caller().send("Full", ("north",)).await?;
        Err(HubError::public("full"))
    });
    let server = hub.serve(node(&MemoryBus::new()).await).unwrap();
    let client = Client::open(&server).await;
    assert_eq!(client.next().await, json!({"type": 1, "target": "Full", "arguments": ["north"]}));
    assert_eq!(client.next().await["type"], 7);
}

#[tokio::test]
async fn a_client_cannot_make_its_calls_ask_without_bound() {
    let started = Arc::new(AtomicUsize::new(0));
    let hub = Hub::new(started.clone()).method("Ask", async |hub: HubContext<Arc<AtomicUsize>>| {
        hub.state().fetch_add(1, Ordering::Relaxed);
        Ok(hub.clients().caller().invoke::<String>("Name", ()).await?)
    });
    let server = hub.serve(node(&MemoryBus::new()).await).unwrap();
    let client = Client::open(&server).await;
    for number in 0..5_000 {
        client.call(&number.to_string(), "Ask", json!([]));
    }
    let refused = |record: &Value| record["type"] == 3;
    while !refused(&client.next().await) {}
    client.until(|pipe| pipe.to_server.is_empty().then_some(())).await;
    assert!(started.load(Ordering::Relaxed) <= 1_001, "{started:?}");
}
