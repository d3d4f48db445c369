//! `cargo xtask brokers`: private brokers in the foreground, to try things with.

use std::process::ExitCode;

use backplane_conformance::broker::{Broker, MariaDb, Nats, Postgres, RabbitMq, Redis};
use tokio::signal::unix::{SignalKind, signal};

use crate::install;

pub(crate) fn run() -> ExitCode {
    if !install::brokers() {
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(until_stopped()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn until_stopped() -> Result<(), Box<dyn std::error::Error>> {
    // Listening begins before the first broker starts: none is left behind, however early the signal comes.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stopped = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    tokio::pin!(stopped);
    let started = async {
        tokio::try_join!(
            start::<Redis>(),
            start::<Postgres>(),
            start::<MariaDb>(),
            start::<RabbitMq>(),
            start::<Nats>()
        )
    };
    let (redis, postgres, mariadb, rabbitmq, nats) = tokio::select! {
        started = started => started?,
        () = &mut stopped => return Ok(()),
    };
    println!("Ctrl-C stops them.");
    stopped.await;
    tokio::join!(redis.stop(), postgres.stop(), mariadb.stop(), rabbitmq.stop(), nats.stop());
    Ok(())
}

async fn start<B: Broker>() -> Result<B, Box<dyn std::error::Error>> {
    let broker = B::start(B::Options::default()).await?;
    println!("{:>8}  {}", B::NAME, broker.url());
    Ok(broker)
}
