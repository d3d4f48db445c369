//! Two servers with their clients, and the check that is made after each step: everything expected arrived, and nothing
//! else did.

use std::collections::HashMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use backplane::Router;
use backplane_signalr::HubServer;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::client::{Client, Place};
use super::hub::{self, Audience};
use super::{Failure, deadline};
use crate::bus::SharedBus;
use crate::server::{HUB, Server};

/// Where the hub of the script is, beside that of the page.
const SCRIPT_HUB: &str = "/scriptHub";

/// The two servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    North,
    South,
}

impl Side {
    pub(crate) const BOTH: [Self; 2] = [Self::North, Self::South];
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::North => "north",
            Self::South => "south",
        })
    }
}

struct Half {
    server: Server,
    address: SocketAddr,
    hub: HubServer,
}

impl Half {
    async fn open(bus: &SharedBus) -> Result<Self, Failure> {
        let node = bus.node().await?;
        let own = std::sync::Arc::new(node.hub("script").await?);
        let hub = hub::hub().serve(own)?;
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(|error| fail("listen", &error))?;
        let address = listener.local_addr().map_err(|error| fail("listen", &error))?;
        let server = Server::start(listener, address, bus, node, vec![(SCRIPT_HUB, hub.clone())], false)?;
        Ok(Self { server, address, hub })
    }
}

pub(crate) struct Stage {
    north: Half,
    south: Half,
    clients: Vec<Client>,
    /// Their connection ids.
    ids: HashMap<&'static str, String>,
    steps: usize,
    /// Arrivals and answers that were checked.
    pub(crate) checked: usize,
}

impl Stage {
    pub(crate) async fn open(bus: &SharedBus) -> Result<Self, Failure> {
        let (north, south) = (Half::open(bus).await?, Half::open(bus).await?);
        Ok(Self { north, south, clients: Vec::new(), ids: HashMap::new(), steps: 0, checked: 0 })
    }

    fn half(&self, side: Side) -> &Half {
        match side {
            Side::North => &self.north,
            Side::South => &self.south,
        }
    }

    pub(crate) fn node(&self, side: Side) -> &Router {
        &self.half(side).server.node
    }

    /// The hub of the script.
    pub(crate) fn hub(&self, side: Side) -> Place {
        Place { server: self.half(side).address, path: SCRIPT_HUB, negotiate: true }
    }

    /// The hub of the page.
    pub(crate) fn chat(&self, side: Side) -> Place {
        Place { path: HUB, ..self.hub(side) }
    }

    pub(crate) async fn connect(
        &mut self,
        side: Side,
        name: &'static str,
        user: &str,
        negotiate: bool,
    ) -> Result<(), Failure> {
        let client = Client::connect(Place { negotiate, ..self.hub(side) }, name, user).await?;
        let id = client.invoke("Id", json!([])).await?.map_err(|error| fail(name, &error))?;
        self.ids.insert(name, id.as_str().unwrap_or_default().to_owned());
        self.clients.push(client);
        let how = if negotiate { "" } else { ", without negotiation" };
        println!("      {name} ({user}) connects to {side}{how}");
        Ok(())
    }

    pub(crate) fn client(&self, name: &str) -> &Client {
        let client = self.clients.iter().find(|client| client.name == name);
        client.expect("the script asks for clients that it connected")
    }

    /// The connection of a client on the stage.
    pub(crate) fn id(&self, name: &str) -> String {
        self.ids.get(name).expect("the script asks for clients that it connected").clone()
    }

    pub(crate) fn ids(&self, names: &[&str]) -> Vec<String> {
        names.iter().map(|name| self.id(name)).collect()
    }

    /// The client has left or was made to leave.
    pub(crate) fn remove(&mut self, name: &str) {
        self.clients.retain(|client| client.name != name);
    }

    /// `caller` lets its server send; exactly `expected` hear it, a client named twice hears it twice.
    pub(crate) async fn send(
        &mut self,
        caller: &str,
        audience: &Audience,
        expected: &[&str],
    ) -> Result<(), Failure> {
        let title = format!("{caller} to {}", self.title(audience));
        let text = format!("message {} of {caller}", self.steps + 1);
        let sent = self.client(caller).invoke("Send", json!([audience, text])).await?;
        sent.map_err(|error| fail(&title, &error))?;
        let expected: Vec<_> = expected.iter().map(|name| (*name, text.clone())).collect();
        self.settle(&title, &expected).await
    }

    fn title(&self, audience: &Audience) -> String {
        let name = |id: &String| {
            let found = self.ids.iter().find(|(_, known)| *known == id);
            found.map_or("(nobody)", |(name, _)| *name)
        };
        let names = |ids: &[String]| ids.iter().map(name).collect::<Vec<_>>().join(", ");
        match audience {
            Audience::All => "all".to_owned(),
            Audience::AllExcept(ids) => format!("all except {}", names(ids)),
            Audience::Others => "others".to_owned(),
            Audience::Caller => "caller".to_owned(),
            Audience::Client(id) => format!("connection {}", name(id)),
            Audience::Clients(ids) => format!("connections {}", names(ids)),
            Audience::Group(group) => format!("group {group}"),
            Audience::Groups(groups) => format!("groups {}", groups.join(", ")),
            Audience::GroupExcept(group, ids) => format!("group {group} except {}", names(ids)),
            Audience::OthersInGroup(group) => format!("others in group {group}"),
            Audience::User(user) => format!("user {user}"),
            Audience::Users(users) => format!("users {}", users.join(", ")),
        }
    }

    /// Waits for what is `expected` (client, text) and for one more message of each server to everybody; anything
    /// beside that is one too many. What comes after these is noticed by the next step.
    pub(crate) async fn settle(&mut self, title: &str, expected: &[(&str, String)]) -> Result<(), Failure> {
        let mut fences = Vec::new();
        for side in Side::BOTH {
            let fence = format!("fence {} of {side}", self.steps + 1);
            // From outside a hub method.
            let everybody = self.half(side).hub.clients().all();
            everybody.send("Say", (fence.as_str(),)).await.map_err(|error| fail(title, &error))?;
            fences.push(fence);
        }
        hear(&mut self.clients, title, expected, &fences, deadline()).await?;
        let mut heard: Vec<_> = expected
            .iter()
            .map(|(name, text)| match text.starts_with("close") {
                true => format!("{name} ({text})"),
                false => (*name).to_owned(),
            })
            .collect();
        heard.sort_unstable();
        self.checked += expected.len();
        self.told(title, &if heard.is_empty() { "nobody".to_owned() } else { heard.join(" ") });
        Ok(())
    }

    /// A client calls a method, which returns what is expected, or fails with it.
    pub(crate) async fn call(
        &mut self,
        title: &str,
        caller: &str,
        method: &'static str,
        arguments: Value,
        expected: Result<Value, &str>,
    ) -> Result<(), Failure> {
        match (self.client(caller).invoke(method, arguments).await?, expected) {
            (Ok(result), Ok(expected)) if result == expected => {
                let shown = if result.is_null() { "confirmed".to_owned() } else { result.to_string() };
                self.answered(title, &shown);
            }
            (Err(error), Err(expected)) if error.ends_with(expected) => self.answered(title, expected),
            (outcome, _) => return Err(fail(title, &format!("{outcome:?}"))),
        }
        Ok(())
    }

    /// An answer was as expected.
    pub(crate) fn answered(&mut self, title: &str, answer: &str) {
        self.checked += 1;
        self.told(title, answer);
    }

    fn told(&mut self, title: &str, outcome: &str) {
        self.steps += 1;
        println!("  {:>2}  {title:<48} {outcome}", self.steps);
    }

    /// Nothing has arrived that no step expected.
    pub(crate) fn nothing_left(&mut self) -> Result<(), Failure> {
        nothing_left(&mut self.clients)
    }

    /// Ends both servers; whoever is still there is told to come back, and only then its transport ends.
    pub(crate) async fn close(mut self) -> Result<usize, Failure> {
        let title = "both servers end";
        let (north, south) = (self.north.server, self.south.server);
        let ended = tokio::try_join!(north.shutdown(), south.shutdown());
        let farewells = ["close, may come back", "ended: 1000"].map(str::to_owned);
        for client in &mut self.clients {
            for farewell in &farewells {
                expect(client, title, farewell, deadline()).await?;
                self.checked += 1;
            }
        }
        ended?;
        println!("  {:>2}  {title:<48} {}", self.steps + 1, farewells.join(", "));
        Ok(self.checked)
    }
}

/// Each client hears what is expected of it and all fences, within `patience`, and nothing else before the last of them.
/// A client that is told to close hears no fence.
async fn hear(
    clients: &mut [Client],
    title: &str,
    expected: &[(&str, String)],
    fences: &[String],
    patience: Duration,
) -> Result<(), Failure> {
    let until = Instant::now() + patience;
    for client in clients {
        let ours = expected.iter().filter(|(name, _)| *name == client.name).map(|(_, text)| text.clone());
        let mut missing: Vec<String> = ours.collect();
        if !missing.iter().any(|text| text.starts_with("close")) {
            missing.extend(fences.iter().cloned());
        }
        while !missing.is_empty() {
            let arrival = tokio::time::timeout_at(until, client.arrivals.recv()).await;
            let Ok(Some(text)) = arrival else {
                return Err(fail(title, &format!("{} did not hear {missing:?}", client.name)));
            };
            match missing.iter().position(|awaited| *awaited == text) {
                Some(index) => drop(missing.remove(index)),
                None => return Err(fail(title, &format!("{} heard {text:?} too", client.name))),
            }
        }
    }
    Ok(())
}

/// The next that a client hears is this.
pub(crate) async fn expect(
    client: &mut Client,
    title: &str,
    expected: &str,
    patience: Duration,
) -> Result<(), Failure> {
    match tokio::time::timeout(patience, client.arrivals.recv()).await {
        Ok(Some(text)) if text == expected => Ok(()),
        other => Err(fail(title, &format!("{} heard {other:?} instead of {expected:?}", client.name))),
    }
}

fn nothing_left(clients: &mut [Client]) -> Result<(), Failure> {
    for client in clients {
        if let Ok(text) = client.arrivals.try_recv() {
            return Err(fail("the end", &format!("{} heard {text:?} too", client.name)));
        }
    }
    Ok(())
}

pub(crate) fn fail(title: &str, why: &dyn fmt::Display) -> Failure {
    Failure(format!("{title}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// What ann and bob heard, and what the check of a message to both says to it.
    async fn judged(ann: &[&str], bob: &[&str]) -> (Result<(), Failure>, Vec<Client>) {
        let mut clients = Vec::new();
        let mut open = Vec::new();
        for (name, heard) in [("ann", ann), ("bob", bob)] {
            let (client, sender) = Client::unconnected(name);
            for text in heard {
                sender.send((*text).to_owned()).await.unwrap();
            }
            clients.push(client);
            open.push(sender);
        }
        let expected = ["ann", "bob"].map(|name| (name, "hi".to_owned()));
        let judged = hear(&mut clients, "hi to all", &expected, &["fence".to_owned()], PATIENCE).await;
        (judged, clients)
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_expected_is_fine_in_any_order() {
        assert!(judged(&["hi", "fence"], &["fence", "hi"]).await.0.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_missing_arrival_is_a_failure() {
        let failure = judged(&["hi", "fence"], &["fence"]).await.0.unwrap_err();
        assert!(failure.0.contains("bob did not hear [\"hi\"]"), "{failure}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_arrival_too_many_is_a_failure() {
        let failure = judged(&["hi", "hi", "fence"], &["hi", "fence"]).await.0.unwrap_err();
        assert!(failure.0.contains("ann heard \"hi\" too"), "{failure}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_repeat_is_noticed_at_the_end() {
        let (judged, mut clients) = judged(&["hi", "fence"], &["hi", "fence", "hi"]).await;
        assert!(judged.is_ok());
        assert!(nothing_left(&mut clients).unwrap_err().0.contains("bob heard \"hi\" too"));
    }

    #[tokio::test(start_paused = true)]
    async fn something_else_than_expected_is_a_failure() {
        let (mut client, sender) = Client::unconnected("ann");
        sender.send("ho".to_owned()).await.unwrap();
        assert!(expect(&mut client, "hi to ann", "hi", PATIENCE).await.is_err());
    }
}
