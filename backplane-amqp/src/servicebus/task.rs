//! The one task of a link: it owns the connections, and ends with the link.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use backplane_core::{Error, ErrorKind, Outgoing, Result};
use fe2o3_amqp::{Receiver, Sender};
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::connection::Connection;
use super::filters::{Change, Interest, Rules};
use super::inbox::Inbox;
use super::namespace::{Lease, Namespace};
use super::publisher::{self, End, Packing};
use super::receiver::{self, Credit};
use super::renewal::Renewal;
use super::shared::{Leave, Shared};
use super::throttle::Throttle;

/// How long a question waits for something that the server says anyway, before it is asked.
const NATURAL: Duration = Duration::from_millis(10);

/// Most questions that wait at once.
pub(super) const MAX_QUESTIONS: usize = 16_384;

/// See the module.
#[derive(Debug)]
pub(super) struct LinkTask {
    pub(super) shared: Arc<Shared>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) interest: Arc<Interest>,
    pub(super) throttle: Arc<Throttle>,
    pub(super) namespace: Arc<Namespace>,
    pub(super) publishing: Connection,
    pub(super) receiving: Connection,
    pub(super) sender: Sender,
    pub(super) receiver: Receiver,
    pub(super) credit: Credit,
    pub(super) packing: Packing,
    /// Who wants to know that the receiving connection lives.
    pub(super) questions: mpsc::Receiver<Question>,
    /// A message to ourselves: makes the server say something on both connections.
    pub(super) probe: Outgoing,
    pub(super) rules: Option<(Rules, mpsc::Receiver<Change>)>,
    pub(super) renewal: Option<Renewal>,
    pub(super) lease: Option<Lease>,
    pub(super) heartbeat: Duration,
}

/// Answered when the server has said something on the receiving connection since it was asked.
pub(super) type Question = oneshot::Sender<Result<()>>;

impl LinkTask {
    /// Serves the link until it ends. Whoever waits is answered also when the future is dropped, even unpolled, as by a
    /// runtime that ends.
    pub(super) fn run(self) -> impl Future<Output = ()> + Send {
        let unfinished = Unfinished { shared: self.shared.clone(), inbox: self.inbox.clone() };
        async move {
            self.serve().await;
            drop(unfinished);
        }
    }

    async fn serve(self) {
        let Self { shared, inbox, interest, throttle, namespace, lease, heartbeat, .. } = self;
        let (mut publishing, mut receiving) = (self.publishing, self.receiving);
        let ended = {
            let probe = || shared.post(self.probe.clone());
            let (_nobody, none) = mpsc::channel(1);
            let renew = async {
                match self.renewal {
                    Some(renewal) => renewal.run().await,
                    None => pending().await,
                }
            };
            let rule = async {
                if let Some((mut rules, changes)) = self.rules {
                    rules.run(changes, &interest).await;
                }
                // Without senders nobody wants a change any more.
                pending().await
            };
            let sweep = async {
                namespace.sweep().await;
                pending().await
            };
            let publish = publisher::publish(self.sender, shared.clone(), throttle.clone(), self.packing);
            let receive = receiver::receive(self.receiver, self.credit, inbox.clone(), interest.clone());
            // Each is polled only when it was woken itself: the first two at every frame, the others hardly ever.
            let mut all: FuturesUnordered<BoxFuture<'_, std::result::Result<Leave, End>>> =
                FuturesUnordered::new();
            all.push(publish.map(Err).boxed());
            all.push(receive.map(Err).boxed());
            all.push(watch(&mut publishing, heartbeat, &throttle, none, probe).map(Err).boxed());
            all.push(watch(&mut receiving, heartbeat, &throttle, self.questions, probe).map(Err).boxed());
            all.push(shared.leave().map(Ok).boxed());
            all.push(renew.map(Err).boxed());
            all.push(rule.boxed());
            all.push(sweep.boxed());
            let first = all.next().await;
            let ended = first.unwrap_or(Ok(Leave::Abandoned));
            // Before what waits is dropped with the other futures: whoever waited is told why. What the first one held is
            // dropped already; who was told of that before this knows only that the link ended.
            shared.stop(ended.as_ref().err().map(|(error, _)| error));
            ended
        };
        match &ended {
            Ok(Leave::Closed) => {}
            Ok(Leave::Abandoned) => inbox.end(Ok(())),
            Err((error, gone)) => {
                if *gone {
                    namespace.is_gone();
                }
                if error.kind() == ErrorKind::Overloaded {
                    throttle.busy(error);
                }
                inbox.end(Err(error.clone()));
            }
        }
        let release = async {
            if let Some(lease) = lease {
                lease.release().await;
            }
        };
        tokio::join!(publishing.close(), receiving.close());
        // A subscription that still has a receiver is not missed by it: first the connections, then that.
        release.await;
        inbox.end(Ok(()));
    }
}

/// Answers whoever still waits when the task ends, also when its runtime ends or it panicked: only the first end of an inbox
/// counts.
struct Unfinished {
    shared: Arc<Shared>,
    inbox: Arc<Inbox>,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let stopped =
            Error::new(ErrorKind::Unavailable, "receive").with_context("the task of the link was stopped");
        self.shared.stop_unless_stopped(&stopped);
        self.inbox.end(Err(stopped));
        self.shared.finish();
    }
}

/// Returns when a connection is dead: it ended, or was silent for too long, though it was asked.
///
/// Servers say something now and then when they are asked to (the idle time-out of AMQP), though Service Bus not more
/// often than each minute, and the beats of a node go through both connections. Only where all that is missing we probe.
///
/// While a busy server is left alone we cannot probe: silence counts from the end of that pause on.
async fn watch(
    connection: &mut Connection,
    heartbeat: Duration,
    throttle: &Throttle,
    mut questions: mpsc::Receiver<Question>,
    probe: impl Fn(),
) -> End {
    // Beats come after 0.3 of the bound. Whoever is asked has half of it to answer.
    let (ask, dead, last_look) = (heartbeat.mul_f64(0.4), heartbeat.mul_f64(0.9), heartbeat.mul_f64(0.05));
    let line = connection.line();
    let mut asked: Vec<Question> = Vec::new();
    let mut probed = false;
    let mut open = true;
    loop {
        let heard = line.heard();
        let calm = throttle.calm_for();
        let silence = line.silence().min(calm);
        probed &= !calm.is_zero();
        if silence >= dead {
            // Perhaps it was us who did not look: what came meanwhile is read within a moment.
            if timeout(last_look, line.heard_after(heard)).await.is_ok() {
                continue;
            }
            let error = Error::new(ErrorKind::Unavailable, "receive")
                .with_context(format!("nothing was heard from the server for {silence:?}"));
            return (error, false);
        }
        if silence >= ask && !probed {
            probe();
            probed = true;
        }
        let wait = match (probed, asked.is_empty()) {
            (true, _) => dead - silence,
            (false, true) => ask - silence,
            (false, false) if calm.is_zero() => ask,
            (false, false) => NATURAL.min(ask - silence),
        };
        tokio::select! {
            error = connection.ended() => return (error, false),
            () = line.heard_after(heard), if probed || !asked.is_empty() => {
                probed = false;
                for question in asked.drain(..) {
                    // Whoever no longer waits needs no answer.
                    let _ = question.send(Ok(()));
                }
            }
            count = questions.recv_many(&mut asked, MAX_QUESTIONS), if open && asked.is_empty() => {
                open = count > 0;
            }
            () = sleep(wait) => {
                if !asked.is_empty() && !probed {
                    probe();
                    probed = true;
                }
            }
        }
    }
}
