//! Two servers with their clients, and the check that is made after each step: everything expected arrived, and nothing
//! else did.

use std::fmt;
use std::time::Duration;

use backplane::{Backplane as _, BackplaneExt as _, ConnectionId, Router, Target};
use tokio::time::Instant;

use crate::bus::SharedBus;
use crate::client::Client;
use crate::message::say;

/// The two servers.
#[derive(Clone, Copy, PartialEq, Eq)]
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

/// What went wrong, in one line.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) String);

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

pub(crate) struct Stage {
    north: Router,
    south: Router,
    clients: Vec<Client>,
    steps: usize,
    /// Arrivals and answers that were checked.
    pub(crate) checked: usize,
}

impl Stage {
    pub(crate) async fn open(bus: &SharedBus) -> Result<Self, Failure> {
        let (north, south) = (bus.node().await?, bus.node().await?);
        Ok(Self { north, south, clients: Vec::new(), steps: 0, checked: 0 })
    }

    pub(crate) fn server(&self, side: Side) -> &Router {
        match side {
            Side::North => &self.north,
            Side::South => &self.south,
        }
    }

    pub(crate) async fn connect(
        &mut self,
        side: Side,
        name: &'static str,
        user: &str,
    ) -> Result<(), Failure> {
        let client = Client::connect(self.server(side), name, user).await?;
        println!("      {name} ({user}) connects to {side}");
        self.clients.push(client);
        Ok(())
    }

    /// The connection of a client on the stage.
    pub(crate) fn id(&self, name: &str) -> ConnectionId {
        let client = self.clients.iter().find(|client| client.name == name);
        client.expect("the script asks for clients that it connected").id.clone()
    }

    /// The client has left or was made to leave.
    pub(crate) fn remove(&mut self, name: &str) {
        self.clients.retain(|client| client.name != name);
    }

    /// Sends from one side; exactly `expected` hear it, a client named twice hears it twice.
    pub(crate) async fn send(
        &mut self,
        from: Side,
        target: &Target,
        except: &[&str],
        expected: &[&str],
    ) -> Result<(), Failure> {
        let title = format!("{from} to {}", self.title(target, except));
        let text = format!("message {} of {from}", self.steps + 1);
        let except: Vec<_> = except.iter().map(|name| self.id(name)).collect();
        self.server(from).send(target, &except, say(&text)).await.map_err(|error| fail(&title, &error))?;
        let expected: Vec<_> = expected.iter().map(|name| (*name, text.clone())).collect();
        self.settle(&title, &expected).await
    }

    fn title(&self, target: &Target, except: &[&str]) -> String {
        let name = |id: &ConnectionId| {
            self.clients.iter().find(|client| client.id == *id).map_or("(nobody)", |client| client.name)
        };
        let names = |ids: &[ConnectionId]| ids.iter().map(name).collect::<Vec<_>>().join(", ");
        let mut title = match target {
            Target::Connection(id) => format!("connection {}", name(id)),
            Target::Connections(ids) => format!("connections {}", names(ids)),
            Target::Group(group) => format!("group {group}"),
            Target::Groups(groups) => format!("groups {groups:?}"),
            Target::User(user) => format!("user {user}"),
            Target::Users(users) => format!("users {users:?}"),
            _ => "all".to_owned(),
        };
        if !except.is_empty() {
            title += &format!(" except {}", except.join(", "));
        }
        title.replace(['[', ']', '"'], "")
    }

    /// Waits for what is `expected` (client, text) and for one more message of each server to everybody; anything
    /// beside that is one too many. What comes after these is noticed by the next step.
    pub(crate) async fn settle(&mut self, title: &str, expected: &[(&str, String)]) -> Result<(), Failure> {
        let mut fences = Vec::new();
        for side in Side::BOTH {
            let fence = format!("fence {} of {side}", self.steps + 1);
            self.server(side).send_to_all(say(&fence)).await.map_err(|error| fail(title, &error))?;
            fences.push(fence);
        }
        let until = Instant::now() + deadline();
        for client in &mut self.clients {
            let ours = expected.iter().filter(|(name, _)| *name == client.name).map(|(_, text)| text.clone());
            let mut missing: Vec<String> = ours.collect();
            // A client whose connection ended hears no fence.
            if !missing.iter().any(|text| text.starts_with("ended: ")) {
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
        let mut heard: Vec<_> = expected
            .iter()
            .map(|(name, text)| match text.strip_prefix("ended: ") {
                Some(farewell) => format!("{name} ({farewell})"),
                None => (*name).to_owned(),
            })
            .collect();
        heard.sort_unstable();
        self.checked += expected.len();
        self.told(title, &if heard.is_empty() { "nobody".to_owned() } else { heard.join(" ") });
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
        for client in &mut self.clients {
            if let Ok(text) = client.arrivals.try_recv() {
                return Err(fail("the end", &format!("{} heard {text:?} too", client.name)));
            }
        }
        Ok(())
    }

    pub(crate) async fn close(self) -> Result<(), Failure> {
        drop(self.clients);
        self.north.shutdown().await?;
        self.south.shutdown().await?;
        Ok(())
    }
}

pub(crate) fn fail(title: &str, why: &dyn fmt::Display) -> Failure {
    Failure(format!("{title}: {why}"))
}

/// How long an arrival may take.
pub(crate) fn deadline() -> Duration {
    backplane_conformance::bound(Duration::from_secs(10))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus;

    async fn stage() -> Stage {
        let bus = bus::open("memory:").await.unwrap();
        let mut stage = Stage::open(&bus).await.unwrap();
        stage.connect(Side::North, "ann", "user-ann").await.unwrap();
        stage.connect(Side::South, "bob", "user-bob").await.unwrap();
        stage
    }

    #[tokio::test(start_paused = true)]
    async fn a_missing_arrival_is_a_failure() {
        let mut stage = stage().await;
        let failure =
            stage.send(Side::North, &Target::user("user-ann"), &[], &["ann", "bob"]).await.unwrap_err();
        assert!(failure.0.contains("bob did not hear"), "{failure}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_arrival_too_many_is_a_failure() {
        let mut stage = stage().await;
        let failure = stage.send(Side::South, &Target::All, &[], &["bob"]).await.unwrap_err();
        assert!(failure.0.contains("ann heard \"message 1 of south\" too"), "{failure}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_repeat_is_noticed_at_the_end() {
        let mut stage = stage().await;
        stage.send(Side::North, &Target::All, &[], &["ann", "bob"]).await.unwrap();
        assert!(stage.nothing_left().is_ok());
        let message = say("once more");
        stage.server(Side::North).send_to_connection(&stage.id("ann"), message).await.unwrap();
        let settled = stage.settle("nothing", &[]).await.and_then(|()| stage.nothing_left());
        assert!(settled.unwrap_err().0.contains("once more"));
    }
}
