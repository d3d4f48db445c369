//! What the server refused, and what that means for the work that a probe settles.

use std::collections::HashMap;

use backplane_core::{Error, ErrorKind, Reach, Result, Topic};
use foldhash::fast::RandomState;

use super::subscriptions::Claim;
use crate::ears::{Heard, Right};
use crate::errors::denied;
use crate::shared::Outcomes;
use crate::subject;

/// Everything is kept until the last probe that may cover its cause has come back.
#[derive(Debug)]
pub(super) struct Verdicts {
    prefix: String,
    probe: String,
    publishes: Refusals,
    subscriptions: Refusals,
    /// The server's words about our probes: nothing can be confirmed.
    probe_refused: Option<String>,
    /// Up to that probe refusals may have gone unheard.
    unheard: u64,
    /// What the server said beside refusals, and the number of the last probe that may cover its cause.
    complaint: Option<(String, u64)>,
}

/// By topic: the server's words, and the number of the last probe that may cover what was refused.
type Refusals = HashMap<Topic, (String, u64), RandomState>;

impl Verdicts {
    pub(super) fn new(prefix: &str, probe: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
            probe: probe.to_owned(),
            publishes: Refusals::default(),
            subscriptions: Refusals::default(),
            probe_refused: None,
            unheard: 0,
            complaint: None,
        }
    }

    /// What was heard when `sent` was the last probe.
    pub(super) fn hear(&mut self, heard: Heard, sent: u64) {
        for refused in heard.refusals {
            if refused.subject == self.probe {
                self.probe_refused = Some(refused.text);
            } else if let Some(topic) = subject::topic(&self.prefix, &refused.subject) {
                let refusals = match refused.right {
                    Right::Publish => &mut self.publishes,
                    Right::Subscribe => &mut self.subscriptions,
                };
                refusals.insert(Topic::new(topic), (refused.text, sent));
            }
        }
        if heard.incomplete {
            self.unheard = sent;
        }
        if let Some(complaint) = heard.complaint {
            tracing::warn!(complaint, "the NATS server complains");
            self.complaint = Some((complaint, sent));
        }
    }

    /// That probe has come back, and what it covers is judged.
    pub(super) fn settled(&mut self, probe: u64) {
        self.publishes.retain(|_, (_, last)| *last > probe);
        self.subscriptions.retain(|_, (_, last)| *last > probe);
    }

    /// Of frames that `probe` covers.
    pub(super) fn of_publishes(&self, topics: &[Topic], probe: u64) -> Outcomes {
        if self.publishes.is_empty() && probe > self.unheard {
            return vec![Ok(Reach::Unknown); topics.len()];
        }
        let of_one =
            |topic| self.of(&self.publishes, "publish", topic, probe).map_or(Ok(Reach::Unknown), Err);
        topics.iter().map(of_one).collect()
    }

    /// Of a call of subscribe that `probe` covers.
    pub(super) fn of_subscribe(&self, claims: &[Claim], probe: u64) -> Result<()> {
        if !self.subscriptions.is_empty() || probe <= self.unheard {
            let refused = |claim: &Claim| self.of(&self.subscriptions, "subscribe", &claim.topic, probe);
            if let Some(error) = claims.iter().find_map(refused) {
                return Err(error);
            }
        }
        match &self.complaint {
            // Such as `maximum subscriptions exceeded`, which names none.
            Some((complaint, last)) if probe <= *last && claims.iter().any(|claim| claim.new) => {
                let error = Error::new(ErrorKind::Unavailable, "subscribe");
                Err(error.with_context(format!("the server says: {complaint}")))
            }
            _ => Ok(()),
        }
    }

    fn of(&self, refusals: &Refusals, operation: &'static str, topic: &Topic, probe: u64) -> Option<Error> {
        if let Some((text, _)) = refusals.get(topic) {
            return Some(denied(operation, text));
        }
        (probe <= self.unheard).then(|| {
            Error::new(ErrorKind::Unavailable, operation)
                .with_outcome_unknown()
                .with_context("the server refused so much at once that it is not known what")
        })
    }

    /// Without probes nothing can be confirmed.
    pub(super) fn refused_probe(&self) -> Option<Error> {
        self.probe_refused.as_ref().map(|said| {
            Error::new(ErrorKind::Denied, "connect")
                .with_context(format!("the server says: {said}; see `inbox`"))
        })
    }

    /// The last thing that the server complained of.
    pub(super) fn complaint(&self) -> Option<&str> {
        self.complaint.as_ref().map(|(complaint, _)| complaint.as_str())
    }
}
