//! Tokens are renewed in time, on both connections of a link.

use std::time::Duration;

use backplane_core::{Error, ErrorKind, Result};
use fe2o3_amqp::session::SessionHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::publisher::End;
use super::token::{self, Signer};

/// See the module.
#[derive(Debug)]
pub(super) struct Renewal {
    signer: Signer,
    lifetime: Duration,
    /// A session of each connection, and what it needs tokens for.
    holders: Vec<(SessionHandle<()>, Vec<String>)>,
    puts: u64,
    /// When the tokens in use were signed.
    signed: Instant,
}

impl Renewal {
    /// Puts the first tokens.
    pub(super) async fn start(
        signer: &Signer,
        lifetime: Duration,
        holders: Vec<(SessionHandle<()>, Vec<String>)>,
    ) -> Result<Self> {
        let mut renewal = Self { signer: signer.clone(), lifetime, holders, puts: 0, signed: Instant::now() };
        renewal.put().await?;
        Ok(renewal)
    }

    async fn put(&mut self) -> Result<()> {
        self.puts += 1;
        let name = format!("cbs-{}", self.puts);
        let signed = Instant::now();
        let (signer, lifetime) = (&self.signer, self.lifetime);
        let puts = self
            .holders
            .iter_mut()
            .map(|(session, audiences)| token::put(session, signer, audiences, lifetime, &name));
        futures::future::try_join_all(puts).await?;
        self.signed = signed;
        Ok(())
    }

    /// Renews at three quarters of the tokens' life; a refusal ends the link. What fails otherwise is tried again while
    /// the tokens last.
    pub(super) async fn run(mut self) -> End {
        let pause = self.lifetime / 20;
        let mut next = self.signed + self.lifetime.mul_f64(0.75);
        loop {
            sleep_until(next).await;
            let end = self.signed + self.lifetime.mul_f64(0.95);
            let outcome = timeout(end.saturating_duration_since(Instant::now()), self.put()).await;
            let error = match outcome {
                Ok(Ok(())) => {
                    tracing::debug!("tokens renewed");
                    next = self.signed + self.lifetime.mul_f64(0.75);
                    continue;
                }
                Ok(Err(error)) if error.kind() == ErrorKind::Denied => return (error, false),
                Ok(Err(error)) => error,
                Err(_) => {
                    Error::new(ErrorKind::Timeout, "receive").with_context("the server took no token in time")
                }
            };
            next = Instant::now() + pause;
            if next >= end {
                return (error, false);
            }
            tracing::warn!(%error, "tokens not renewed; trying again");
        }
    }
}
