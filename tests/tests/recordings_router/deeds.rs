//! What clients do, on our node.

use std::sync::Arc;
use std::time::Duration;

use backplane_core::wire::Completion;
use backplane_core::wire::aspnetcore::read_completion;
use backplane_core::{ErrorKind, Protocol, Topic};
use backplane_tests::recording::{Actor, Client, Event};
use bytes::Bytes;
use serde_json::Value;
use tokio::time::Instant;

use crate::client::LocalClient;
use crate::hub::{Hub, OnQuestion};
use crate::outcome::Outcome;
use crate::player::{Call, GROUP_DEADLINE, Gone, Player};
use crate::script::{Deed, UNRECORDED, What, connection_id, hub_at};

impl Player<'_> {
    /// What happened before this step without being recorded.
    pub(crate) async fn unrecorded(&mut self, step: usize) {
        let range = step + 1..self.action.end + 1;
        let prefix = self.recording.prefix().to_owned();
        for event in
            UNRECORDED.iter().filter(|it| it.file == self.recording.name && range.contains(&it.before))
        {
            assert_eq!(event.before, step + 1, "it happens between two actions");
            let (name, letter) = event.client;
            let client = Client { name: name.to_owned(), server: letter.to_owned() };
            let channel = match &event.what {
                What::Connects(protocol, path) => {
                    if self.is_ours(&client) {
                        self.connect(step, &client, protocol.clone(), None, path).await;
                    }
                    format!("{prefix}{}:connection:{}", hub_at(path), connection_id(name))
                }
                What::Joins(group) => {
                    if self.is_ours(&client) {
                        let hub = self.hub(name);
                        let joined = hub.invoke("Join", &[Value::from(*group)], Arc::new(|_| {})).await;
                        assert_eq!(joined, Outcome::Done);
                    }
                    format!("{prefix}Demo.ChatHub:group:{group}")
                }
            };
            if !self.is_ours(&client) {
                let other = &self.stage.others[&Actor::Server(letter.to_owned())];
                other.link.subscribe(&[Topic::from(channel)]).await.expect("a bare link subscribes");
            } else if !self.subscribed.contains(&channel) {
                self.subscribe(channel);
            }
        }
    }

    pub(crate) async fn does(&mut self, step: usize, client: &Client, action: &str, wire: Option<&Bytes>) {
        let deed = Deed::read(action);
        if let Deed::Complete = deed {
            return self.completes(step, client, wire.expect("a completion has its bytes")).await;
        }
        if !self.is_ours(client) {
            return;
        }
        match deed {
            Deed::Connect { protocol, user, path, rejected } => {
                let refused = self.recording.steps[step + 1..self.action.end].iter().any(|next| {
                    matches!(&next.event, Event::Receives { client: of, what, .. }
                        if of == client && what.starts_with("handshake error "))
                });
                if refused {
                    self.gone.insert(client.name.clone(), Gone::Refused);
                    return;
                }
                self.connect(step, client, protocol, user.as_deref(), path).await;
                if rejected {
                    self.leave(&client.name, Gone::Left);
                }
            }
            Deed::Disconnect => self.leave(&client.name, Gone::Left),
            Deed::Invoke { call, method, arguments } => {
                self.invoke(step, client, call, method, arguments).await
            }
            Deed::Complete => unreachable!("handled above"),
        }
    }

    pub(crate) async fn connect(
        &mut self,
        step: usize,
        client: &Client,
        protocol: Protocol,
        user: Option<&str>,
        path: &str,
    ) {
        let router = &self.stage.routers[hub_at(path)];
        let connected = LocalClient::connect(router, &connection_id(&client.name), protocol, user).await;
        let connected = connected.unwrap_or_else(|error| panic!("{}: {error}", self.place(step)));
        self.stage.clients.insert(client.name.clone(), connected);
        self.tally.connections += 1;
    }

    pub(crate) fn leave(&mut self, name: &str, gone: Gone) {
        let mut client = self.stage.clients.remove(name).expect("who leaves was there");
        assert_eq!(client.take(), [], "{}, {name} left and had not read all", self.recording.name);
        drop(client);
        self.gone.insert(name.to_owned(), gone);
        self.tally.connections += 1;
    }

    pub(crate) fn hub(&self, client: &str) -> Hub {
        let client = &self.stage.clients[client];
        let without = self.recording.servers[self.server].contains("--nomsgpack");
        Hub {
            router: self.stage.routers[client.hub.as_str()].clone(),
            caller: client.id.clone(),
            messagepack: !without && client.hub.as_str() != hub_at("/jsononly"),
            patience: (self.recording.name == "groups-unknown-connection").then_some(GROUP_DEADLINE),
        }
    }

    pub(crate) async fn invoke(
        &mut self,
        step: usize,
        client: &Client,
        call: u64,
        method: &str,
        arguments: Vec<Value>,
    ) {
        if method == "AbortMe" {
            let hub = self.hub(&client.name);
            assert_eq!(hub.invoke(method, &arguments, Arc::new(|_| {})).await, Outcome::Done);
            return self.closes(step, &client.name).await;
        }
        let question = method.starts_with("Ask").then(|| self.question(step));
        let asked: OnQuestion = {
            let (ids, question) = (self.ids.clone(), question.clone());
            Arc::new(move |id| {
                let recorded = question.clone().expect("only questions are asked");
                assert_eq!(id.len(), recorded.len(), "a placeholder of the same length");
                ids.lock().push((id.to_owned(), recorded));
            })
        };
        let kind = (method == "AskAs").then(|| arguments[1].as_str().expect("a type").to_owned());
        let of_question = question.is_some().then(|| arguments.get(2).and_then(Value::as_u64)).flatten();
        let hub = self.hub(&client.name);
        let deadline = of_question.map(Duration::from_millis).or(hub.patience);
        let method = method.to_owned();
        let task = tokio::spawn(async move {
            let began = Instant::now();
            let outcome = hub.invoke(&method, &arguments, asked).await;
            (outcome, began.elapsed())
        });
        let call = self.calls.insert((client.name.clone(), call), Call { task, kind, question, deadline });
        assert!(call.is_none(), "{}: that call is still under way", self.place(step));
    }

    /// The recorded id of the question that the step asks.
    pub(crate) fn question(&self, step: usize) -> String {
        let id = self.recording.steps[step + 1..self.action.end].iter().find_map(|next| match &next.event {
            Event::Publish { decoded: Some(decoded), .. } => {
                decoded["invocation_id"].as_str().map(str::to_owned)
            }
            Event::Receives { what, .. } => {
                what.split_once(" wants a result, invocation id ").map(|(_, id)| id.to_owned())
            }
            _ => None,
        });
        id.unwrap_or_else(|| panic!("{}: a question has an id", self.place(step)))
    }

    /// A client answers a question.
    pub(crate) async fn completes(&mut self, step: usize, client: &Client, wire: &Bytes) {
        let json = wire.last() == Some(&0x1E);
        let protocol = if json { Protocol::JSON } else { Protocol::MESSAGEPACK };
        let read = |bytes: &Bytes| match read_completion(&protocol, bytes) {
            Ok(Some((id, Completion::Answered { result, headers }))) => (id, result, headers),
            other => panic!("a client's answer: {other:?}"),
        };
        let (recorded_id, result, _) = read(wire);
        let denied = self.recording.steps[step + 1..self.action.end].iter().any(|next| {
            matches!(&next.event, Event::Receives { client: of, what, .. }
                if of == client && what.starts_with("Close message, error "))
        });
        if !denied {
            // Of two answers the first counts.
            self.answers.entry(recorded_id.to_string()).or_insert(result);
        }
        if !self.is_ours(client) {
            return;
        }
        let (id, result, headers) = read(&self.to_ours(wire));
        let unexpected = self.recording.steps[step + 1..self.action.end].iter().any(|next| {
            matches!(&next.event, Event::Log { line, .. }
                if line.contains("DefaultHubDispatcher[24]") && line.contains(&format!("'{recorded_id}'")))
        });
        let place = self.place(step);
        let asked = &self.stage.clients[&client.name];
        assert_eq!(asked.protocol, protocol, "{place}");
        if unexpected {
            assert!(!asked.registration.expects(&id), "{place}: {id} is not expected");
        }
        match asked.registration.complete_with_headers(&id, result, headers.unwrap_or_default()) {
            Ok(()) => assert!(!denied, "{place}: the answer was for another client"),
            // An answer for another one: its hub server ends the connection.
            Err(error) if denied && error.kind() == ErrorKind::Denied => {
                self.leave(&client.name, Gone::Denied)
            }
            Err(error) => panic!("{place}: {error}"),
        }
    }

    /// The connection's queue ends; its hub server lets it go.
    pub(crate) async fn closes(&mut self, step: usize, name: &str) {
        let place = self.place(step);
        let client = self.stage.clients.get_mut(name).unwrap_or_else(|| panic!("{place}: {name} is here"));
        let reason = client.read_to_end().await;
        self.leave(name, Gone::Closed(reason));
    }
}
