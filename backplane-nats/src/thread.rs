//! The thread of a link: the crate's connection, its events and our task, and nothing of them left when it ends.
//!
//! A thread with a runtime of its own, because the crate starts tasks that nobody can stop: its connection dials again on
//! its own, sends what was queued for the lost one, and lives on for as long as anybody holds a subscription. All of that
//! ends with the runtime. And because its tasks take turns, the crate never runs ahead of us: what it reads in one turn
//! is taken from its queues before it reads on, so that those never fill (they would drop in silence).

use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use backplane_core::{Error, ErrorKind, NodeId, Position, Result, Topic};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::config::NatsConfig;
use crate::core::CoreLink;
use crate::dial::{Purpose, dial};
use crate::durable;
use crate::ears::Ears;
use crate::inbox::Inbox;
use crate::shared::Shared;

/// What a link is opened for.
pub(crate) struct Opening {
    pub(crate) config: Arc<NatsConfig>,
    pub(crate) node: NodeId,
    pub(crate) attempt: u64,
    pub(crate) topics: Vec<Topic>,
    pub(crate) resume: Option<Position>,
    /// Until when a server may be tried.
    pub(crate) deadline: Instant,
    pub(crate) heartbeat: Duration,
    pub(crate) shared: Arc<Shared>,
    pub(crate) inbox: Arc<Inbox>,
}

/// What a link is made of.
pub(crate) struct Parts {
    pub(crate) client: Client,
    pub(crate) shared: Arc<Shared>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) ears: Arc<Ears>,
}

/// What is known of a link that is open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opened {
    pub(crate) max_frame: usize,
    pub(crate) resumed: bool,
}

/// Starts the thread. It ends with the link, at the latest when `inbound` is dropped.
pub(crate) fn start(opening: Opening) -> Result<oneshot::Receiver<Result<Opened>>> {
    let failed = |error| {
        Error::new(ErrorKind::Unavailable, "connect")
            .with_context("no thread for the link")
            .with_source(error)
    };
    let (opened, answer) = oneshot::channel();
    std::thread::Builder::new()
        .name("nats-link".to_owned())
        .spawn(move || {
            // Here and not by the caller: a runtime that found no thread may not be dropped inside another one.
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => {
                    let _ = opened.send(Err(failed(error)));
                    return;
                }
            };
            // A task like those of the crate and not the root: tasks take turns in the order of their wake-ups.
            // And without a budget: it takes all that has arrived at each turn.
            let link = runtime.spawn(tokio::task::unconstrained(run(opening, opened)));
            if let Err(error) = runtime.block_on(link) {
                tracing::error!(%error, "the task of a NATS link failed");
            }
            // A name that is being looked up is not waited for.
            runtime.shutdown_background();
        })
        .map_err(failed)?;
    Ok(answer)
}

/// Ends shared state and inbox when opening did not succeed, or panicked.
struct Unopened(Option<(Arc<Shared>, Arc<Inbox>)>);

impl Drop for Unopened {
    fn drop(&mut self) {
        if let Some((shared, inbox)) = self.0.take() {
            let how =
                Err(Error::new(ErrorKind::Unavailable, "connect").with_context("the link was not opened"));
            shared.end(&how);
            inbox.end(how);
        }
    }
}

async fn run(opening: Opening, opened: oneshot::Sender<Result<Opened>>) {
    let mut unopened = Unopened(Some((opening.shared.clone(), opening.inbox.clone())));
    let shared = opening.shared.clone();
    let outcome = tokio::select! {
        biased;
        () = shared.abandoned() => return,
        outcome = open(opening) => outcome,
    };
    match outcome {
        Ok((link, known)) => {
            // The link settles everything when it is dropped.
            unopened.0 = None;
            if opened.send(Ok(known)).is_ok() {
                match link {
                    Kind::Core(link) => link.await,
                    Kind::Durable(link) => link.await,
                }
            }
        }
        Err(error) => {
            let _ = opened.send(Err(error));
        }
    }
}

/// Boxed: both are large.
enum Kind {
    Core(Box<CoreLink>),
    Durable(Box<durable::DurableLink>),
}

async fn open(opening: Opening) -> Result<(Kind, Opened)> {
    let Opening { config, node, attempt, .. } = &opening;
    let ears = Arc::new(Ears::default());
    let name = format!("backplane-{node}-{attempt}");
    let client = dial(&Purpose {
        config,
        name: &name,
        attempt: *attempt,
        heartbeat: opening.heartbeat,
        deadline: opening.deadline,
        ears: &ears,
    })
    .await?;
    let max_payload = client.max_payload();
    let parts = Parts { client, shared: opening.shared.clone(), inbox: opening.inbox.clone(), ears };
    // Of this link alone: a late answer to an earlier one is for nobody. The last token is random.
    let own = parts.client.new_inbox();
    let own = own.rsplit('.').next().unwrap_or_default();
    let unique = format!("{name}-{own}");
    let inbox = format!("{}.{unique}", config.inbox);
    tracing::debug!(name, max_payload, durable = config.durable.is_some(), "NATS connection is ready");
    let limit = |headroom: usize| {
        let most = max_payload.saturating_sub(headroom);
        config.max_frame.map_or(most, |own| own.min(most))
    };
    match &config.durable {
        None => {
            let link = CoreLink::new(parts, config, inbox).await?;
            Ok((Kind::Core(Box::new(link)), Opened { max_frame: limit(0), resumed: false }))
        }
        Some(settings) => {
            let opened = durable::open(parts, &opening, settings, &unique).await?;
            let known =
                Opened { max_frame: limit(durable::HEADROOM).min(opened.max_frame), resumed: opened.resumed };
            Ok((Kind::Durable(Box::new(opened.link)), known))
        }
    }
}
