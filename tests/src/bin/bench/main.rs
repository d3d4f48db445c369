//! The benchmarks: `bench [NAME] [--rounds N] [--seconds N]`, best started by `cargo xtask bench`.
//!
//! Absolute figures of a shared machine say little, so each benchmark sets ours beside a bare loop in the same run,
//! in alternating rounds, and judges the ratio of the medians. Publisher and subscriber are processes of their own
//! (this program again, see [`part`]), each with a current-thread runtime, over a private Redis.
#![allow(clippy::print_stdout, reason = "a command-line program talks to its terminal")]

mod bare;
mod buses;
mod fanout;
mod flow;
mod idle;
mod joins;
mod latency;
mod loops;
mod machine;
mod memory_bus;
mod node;
mod options;
mod part;
mod payload;
mod reconnect;
mod sql;
mod table;
mod through;
mod throughput;

use std::process::ExitCode;

use backplane_conformance::broker::{Broker as _, Redis, RedisOptions};

use crate::options::{Benchmark, Options};
use crate::table::Verdict;

/// Everything that can go wrong here ends the run and is one line for its reader.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const USAGE: &str = "\
bench [NAME] [--rounds N] [--seconds N]
  NAME       throughput, latency, joins, reconnect, memory-bus, fan-out, fan-out-latency, idle, sql or buses; all of
             them without one
  --rounds   rounds of each benchmark; by default 3 for joins, reconnect, memory-bus and idle, 5 for the others
  --seconds  length of a round's measurement where it has one; by default 5 for fan-out and fan-out-latency, 3 for
             the others";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ran = match runtime {
        Err(error) => Err(error.into()),
        Ok(runtime) => match arguments.as_slice() {
            [flag, name, task] if flag == part::FLAG => {
                // As a task: the future that the runtime itself blocks on has its turn but once in 61.
                let playing = runtime.spawn(play(name.clone(), task.clone()));
                runtime.block_on(playing).map_err(Into::into).flatten().map(|()| ExitCode::SUCCESS)
            }
            words => match Options::parse(words) {
                Ok(options) => runtime.block_on(run(&options)),
                Err(wrong) => {
                    eprintln!("{wrong}\n{USAGE}");
                    return ExitCode::from(2);
                }
            },
        },
    };
    ran.unwrap_or_else(|error| {
        eprintln!("bench: {error}");
        ExitCode::from(2)
    })
}

/// Runs the benchmarks that were asked for. Fails when a figure is far from its bound.
async fn run(options: &Options) -> Result<ExitCode> {
    // A subscriber that falls behind at full speed shall be slow, not cut: both sides are measured to the last message.
    let unlimited = "client-output-buffer-limit pubsub 0 0 0".to_owned();
    let redis = Redis::start(RedisOptions { config: vec![unlimited], ..RedisOptions::default() }).await?;
    println!("{}\n", machine::description(&redis).await?);
    let mut verdicts = Vec::new();
    for benchmark in &options.benchmarks {
        verdicts.extend(match benchmark {
            Benchmark::Throughput => throughput::run(&redis, options).await?,
            Benchmark::Latency => latency::run(&redis, options).await?,
            Benchmark::Joins => joins::run(&redis, options).await?,
            Benchmark::Reconnect => reconnect::run(&redis, options).await?,
            Benchmark::MemoryBus => memory_bus::run(options).await?,
            Benchmark::FanOut => fanout::flat_out(&redis, options).await?,
            Benchmark::FanOutLatency => fanout::paced(&redis, options).await?,
            Benchmark::Idle => idle::run(options).await?,
            Benchmark::Sql => sql::run(options).await?,
            Benchmark::Buses => buses::run(options).await?,
        });
        println!();
    }
    println!("summary");
    for verdict in &verdicts {
        println!("  {verdict}");
    }
    let failed = verdicts.iter().any(Verdict::is_failure);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The side of a spawned process: plays one part and prints its outcome.
async fn play(name: String, task: String) -> Result<()> {
    let task = task.as_str();
    match name.as_str() {
        flow::PUBLISHER => part::play(task, flow::publish).await,
        flow::SUBSCRIBER => part::play(task, flow::subscribe).await,
        joins::RATE => part::play(task, joins::rate).await,
        joins::TIME => part::play(task, joins::time).await,
        reconnect::NODE => part::play(task, reconnect::node).await,
        memory_bus::BOTH => part::play(task, memory_bus::both).await,
        fanout::PUBLISHER => part::play(task, fanout::publisher::publish).await,
        fanout::CLIENTS => part::play(task, fanout::clients::receive).await,
        fanout::BARE_SERVER => part::play(task, fanout::bare::serve).await,
        fanout::OUR_SERVER => part::play(task, fanout::hub::serve).await,
        idle::SERVER => part::play(task, idle::serve).await,
        idle::CLIENTS => part::play(task, idle::connect).await,
        through::PUBLISHER => part::play(task, through::publish).await,
        through::SUBSCRIBER => part::play(task, through::subscribe).await,
        sql::idle::NODES => part::play(task, sql::idle::stay).await,
        unknown => Err(format!("there is no part {unknown}").into()),
    }
}
