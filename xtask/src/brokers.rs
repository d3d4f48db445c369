//! `cargo xtask brokers`: private brokers in the foreground, to try things with.

use std::process::ExitCode;

use backplane_conformance::broker::{Broker as _, Redis, RedisOptions};
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
    let redis = tokio::select! {
        redis = Redis::start(RedisOptions::default()) => redis?,
        () = &mut stopped => return Ok(()),
    };
    println!("{:>8}  {}", Redis::NAME, redis.url());
    println!("Ctrl-C stops them.");
    stopped.await;
    redis.stop().await;
    Ok(())
}
