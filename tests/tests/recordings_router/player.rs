//! Plays a recording with our node in the place of one server, and compares each step.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use backplane_conformance::broker::Redis;
use backplane_core::{Backplane as _, Bus, ClientResult, CloseReason, HubName, Reach, Topic};
use backplane_tests::recording::{Actor, Client, Event, Recording};
use backplane_tests::wiretap::Change as Subscription;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::deviations::{Change, DEVIATIONS, Deviation};
use crate::outcome::Outcome;
use crate::script::{actions, places, server_name};
use crate::stage::Stage;
use crate::tally::Tally;

/// How long a group change of ours waits where nobody will answer; .NET waits 34 s.
pub(crate) const GROUP_DEADLINE: Duration = Duration::from_millis(700);

/// Pairs of our id of a question and the recorded one, of the same length.
pub(crate) type Ids = Arc<Mutex<Vec<(String, String)>>>;

pub(crate) struct Call {
    pub(crate) task: JoinHandle<(Outcome, Duration)>,
    /// The type that `AskAs` was told to want.
    pub(crate) kind: Option<String>,
    /// The recorded id of its question.
    pub(crate) question: Option<String>,
    /// How long it may take.
    pub(crate) deadline: Option<Duration>,
}

pub(crate) struct Player<'r> {
    pub(crate) recording: &'r Recording,
    pub(crate) server: &'r str,
    pub(crate) stage: Stage,
    pub(crate) redis: Option<&'r Redis>,
    pub(crate) ids: Ids,
    pub(crate) calls: HashMap<(String, u64), Call>,
    /// What clients answered, ours and others', by the recorded id of the question.
    pub(crate) answers: HashMap<String, ClientResult>,
    /// What the recorded server is subscribed to, with our deviations.
    pub(crate) subscribed: BTreeSet<String>,
    pub(crate) changes: Vec<Subscription>,
    /// Clients of ours that are gone, and why.
    pub(crate) gone: BTreeMap<String, Gone>,
    pub(crate) used: BTreeSet<(usize, usize)>,
    /// The steps of the action that is played.
    pub(crate) action: Range<usize>,
    pub(crate) refused: i64,
    pub(crate) lacking: u64,
    pub(crate) tally: Tally,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Gone {
    /// By its own will, or as its hub wanted.
    Left,
    /// Never registered: the hub server refused it.
    Refused,
    /// It answered a question that was put to another.
    Denied,
    Closed(CloseReason),
}

/// Plays `recording` with our node in the place of `server`.
pub(crate) async fn play(
    recording: &Recording,
    server: &str,
    bus: &Arc<dyn Bus>,
    redis: Option<&Redis>,
) -> Tally {
    let hubs = hubs(recording);
    let stage = Stage::open(recording, server, &hubs, bus).await;
    let mut player = Player {
        recording,
        server,
        stage,
        redis,
        ids: Ids::default(),
        calls: HashMap::new(),
        answers: HashMap::new(),
        subscribed: BTreeSet::new(),
        changes: Vec::new(),
        gone: BTreeMap::new(),
        used: BTreeSet::new(),
        action: 0..0,
        refused: 0,
        lacking: 0,
        tally: Tally::default(),
    };
    player.start(&hubs);
    for action in actions(recording) {
        if !player.act(action).await {
            break;
        }
    }
    player.end().await
}

/// All hubs in the order of their appearance.
fn hubs(recording: &Recording) -> Vec<HubName> {
    let mut hubs: Vec<HubName> = Vec::new();
    for step in &recording.steps {
        let channels = match &step.event {
            Event::Publish { channel, .. } => std::slice::from_ref(channel),
            Event::Subscribe { channels, .. } => channels,
            _ => continue,
        };
        for channel in channels.iter().filter_map(|channel| recording.channel(channel)) {
            let hub = HubName::from(channel.hub);
            // A foreign publisher also tries the name in other case.
            if !hubs.contains(&hub) && hub.as_str() != "demo.chathub" {
                hubs.push(hub);
            }
        }
    }
    hubs
}

impl Player<'_> {
    pub(crate) fn ours(&self, actor: &Actor) -> bool {
        matches!(actor, Actor::Server(letter) if letter == self.server)
    }

    pub(crate) fn is_ours(&self, client: &Client) -> bool {
        client.server == self.server
    }

    /// The first word of every complaint.
    pub(crate) fn place(&self, step: usize) -> String {
        format!("{}, ours as {}, step {}", self.recording.name, self.server, step + 1)
    }

    pub(crate) fn deviations(&self) -> impl Iterator<Item = (usize, &'static Deviation)> {
        let (file, server) = (self.recording.name.clone(), self.server.to_owned());
        let of_play = move |it: &Deviation| it.file == file && it.server == server;
        DEVIATIONS.iter().enumerate().filter(move |(_, deviation)| of_play(deviation))
    }

    /// The deviation at this step that `wanted` picks; it has occurred.
    pub(crate) fn deviates<T>(
        &mut self,
        step: usize,
        wanted: impl Fn(&'static Change) -> Option<T>,
    ) -> Option<T> {
        let found = self.deviations().find_map(|(index, deviation)| {
            let picked = wanted(&deviation.change)?;
            deviation.steps.contains(&(step + 1)).then_some((index, picked))
        });
        let (index, picked) = found?;
        self.used.insert((index, step + 1));
        Some(picked)
    }

    pub(crate) fn is_missing(&mut self, step: usize) -> bool {
        self.deviates(step, |change| (*change == Change::Missing).then_some(())).is_some()
    }

    /// What the action holds beside the recorded.
    pub(crate) fn beside<T: Debug>(&mut self, wanted: impl Fn(&'static Change) -> Option<T>) -> Vec<T> {
        self.action.clone().filter_map(|step| self.deviates(step, &wanted)).collect()
    }

    /// Our ids of questions in the place of the recorded ones.
    pub(crate) fn to_ours(&self, bytes: &[u8]) -> Bytes {
        let ids = self.ids.lock();
        replace(bytes, ids.iter().map(|(ours, recorded)| (recorded.as_str(), ours.as_str())))
    }

    pub(crate) fn to_recorded(&self, bytes: &[u8]) -> Bytes {
        let ids = self.ids.lock();
        replace(bytes, ids.iter().map(|(ours, recorded)| (ours.as_str(), recorded.as_str())))
    }

    /// The start of our node: as recorded where it is, else four channels for each hub.
    pub(crate) fn start(&mut self, hubs: &[HubName]) {
        let begins =
            self.recording.steps.first().is_some_and(|step| matches!(step.event, Event::Subscribe { .. }));
        let foreign =
            matches!(&self.recording.steps[0].event, Event::Subscribe { by: Actor::Foreign(_), .. });
        if begins && !foreign {
            return;
        }
        let (prefix, name) = (self.recording.prefix(), server_name(self.server));
        for hub in hubs {
            for kind in [
                "all",
                "internal:groups",
                &format!("internal:ack:{name}"),
                &format!("internal:return:{name}"),
            ] {
                self.subscribe(format!("{prefix}{hub}:{kind}"));
            }
        }
    }

    pub(crate) fn subscribe(&mut self, channel: String) {
        self.changes.push(Subscription::Subscribed(Topic::from(channel.as_str())));
        self.subscribed.insert(channel);
    }

    pub(crate) fn unsubscribe(&mut self, channel: &str) {
        self.changes.push(Subscription::Unsubscribed(Topic::from(channel)));
        self.subscribed.remove(channel);
    }

    /// Plays one action; `false`: our node was killed in it.
    pub(crate) async fn act(&mut self, action: Range<usize>) -> bool {
        self.action = action.clone();
        self.unrecorded(action.start).await;
        let mut arrivals: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for step in action.clone() {
            self.tally.steps += 1;
            let recording = self.recording;
            match &recording.steps[step].event {
                Event::Note(note) if note == "server B is killed (SIGKILL)" => {
                    if self.server == "B" {
                        return false;
                    }
                    self.stage.others.remove(&Actor::Server("B".to_owned()));
                }
                Event::Note(_) | Event::Tcp { .. } => {}
                Event::Housekeeping { command, .. } => panic!("{}: {command:?}", self.place(step)),
                Event::Log { server, line } if server == self.server => self.logged(step, line),
                Event::Log { .. } => {}
                Event::Does { client, action, wire } => self.does(step, client, action, wire.as_ref()).await,
                Event::Receives { client, what, .. } if self.is_ours(client) => {
                    if self.receives(step, client, what).await {
                        arrivals.entry(client.name.clone()).or_default().push(step);
                    }
                }
                Event::Receives { .. } => {}
                Event::Publish { by, channel, payload, receivers, .. } => {
                    let reach = if self.ours(by) {
                        self.published(step, channel, payload).await
                    } else {
                        let payload = self.to_ours(payload);
                        let link = &self.stage.others[by].link;
                        let reached = link.publish(Topic::from(channel.as_str()), payload).await;
                        match reached {
                            Ok(Reach::Nodes(reach)) => Some(reach),
                            other => panic!("{}: {other:?}", self.place(step)),
                        }
                    };
                    if let Some(reach) = reach {
                        self.reached(step, *receivers, reach);
                    }
                }
                Event::Subscribe { by, channels } => {
                    if self.ours(by) {
                        channels.iter().for_each(|channel| self.subscribe(channel.clone()));
                    } else {
                        self.stage.others[by]
                            .link
                            .subscribe(&topics(channels))
                            .await
                            .expect("a bare link subscribes");
                    }
                }
                Event::Unsubscribe { by, channels } => {
                    if self.ours(by) {
                        channels.iter().for_each(|channel| self.unsubscribe(channel));
                    } else {
                        let link = &self.stage.others[by].link;
                        link.unsubscribe(&topics(channels)).await.expect("a bare link unsubscribes");
                    }
                }
                Event::Push { to, channel, payload, .. } => self.pushed(step, to, channel, payload).await,
            }
        }
        self.stage.settle(self.recording.prefix()).await;
        self.compare_arrivals(arrivals);
        self.compare_leftovers();
        self.compare_subscriptions().await;
        self.tally.actions += 1;
        true
    }

    /// All is over.
    pub(crate) async fn end(mut self) -> Tally {
        let file = format!("{}, ours as {}", self.recording.name, self.server);
        let killed = self.recording.name == "client-results-timeout" && self.server == "B";
        assert!(self.calls.is_empty() || killed, "{file}: {:?}", self.calls.keys());
        let listed: BTreeSet<(usize, usize)> = self
            .deviations()
            .flat_map(|(index, deviation)| deviation.steps.iter().map(move |step| (index, *step)))
            .collect();
        let vanished: Vec<String> = listed
            .difference(&self.used)
            .map(|(index, step)| format!("{file}, step {step} no longer deviates: {:?}", DEVIATIONS[*index]))
            .collect();
        assert!(vanished.is_empty(), "{vanished:#?}");
        self.tally.deviations = listed.len();

        let router = self.stage.routers.values().next().expect("there is a hub").clone();
        let stats = router.stats();
        self.refused += refused_in_silence(&self.recording.name, self.server);
        assert_eq!(i64::try_from(stats.malformed), Ok(self.refused), "{file}: unreadable frames");
        assert_eq!(stats.missing_protocol, self.lacking, "{file}: messages that lacked a client's protocol");
        assert_eq!((stats.gaps, stats.reconnects, stats.overflows), (0, 0, 0), "{file}: {stats:?}");
        self.tally.refused = stats.malformed;
        self.stage.clients.clear();
        router.shutdown().await.expect("our node leaves");
        self.tally
    }
}

/// Frames that .NET servers refuse without a line in the log: on the channels of connections, acknowledgements and
/// results.
fn refused_in_silence(file: &str, server: &str) -> i64 {
    match (file, server) {
        ("foreign-control", "A") => 6,
        ("foreign-questions", "A") => 1,
        _ => 0,
    }
}

fn topics(channels: &[String]) -> Vec<Topic> {
    channels.iter().map(|channel| Topic::from(channel.as_str())).collect()
}

/// Replaces names by names of the same length.
fn replace<'a>(bytes: &[u8], names: impl Iterator<Item = (&'a str, &'a str)>) -> Bytes {
    let mut replaced = bytes.to_vec();
    for (from, to) in names {
        for at in places(bytes, from.as_bytes()) {
            replaced[at..at + to.len()].copy_from_slice(to.as_bytes());
        }
    }
    replaced.into()
}
