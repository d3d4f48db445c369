//! `buses`: the buses over message brokers, each beside a bare loop on the same crate.

pub(crate) mod amqp_1_0;
pub(crate) mod jetstream;
pub(crate) mod nats;
pub(crate) mod rabbitmq;

use std::time::Duration;

use backplane_conformance::broker::{Broker as _, Nats, NatsOptions, RabbitMq, RabbitMqOptions};

use crate::flow::Round;
use crate::options::Options;
use crate::part::Side;
use crate::table::{Bound, Table, Verdict};
use crate::{Result, machine, through};

/// Messages per second of the paced flows.
const PACE: u32 = 1_000;
/// Ours against the bare loop.
const LATENCY: Bound = Bound::RatioAtMost(2.0);

/// What the URL of a bus over JetStream ends with, and that of the bare loop over it.
pub(crate) const DURABLE: &str = "?durable=true";

/// A broker that is measured.
struct Measured {
    name: &'static str,
    /// What the bare loop is told; ours is told the same with `parameters`.
    url: String,
    parameters: &'static str,
    process: u32,
    /// Of rate and p99, ours against the bare loop; without, they are printed.
    bounds: Option<(Bound, Bound)>,
}

pub(crate) async fn run(options: &Options) -> Result<Vec<Verdict>> {
    println!("buses: publisher > broker > subscriber, two processes of one thread each, 128 bytes");
    println!(
        "  bare RabbitMQ: `lapin`, 512 confirms outstanding, prefetch 1,000, acknowledged in runs of 250"
    );
    println!("  bare AMQP 1.0: `fe2o3-amqp`, 512 outcomes outstanding, credit for 1,000");
    println!("  bare NATS: `async-nats`, 512 messages and one probe, awaited");
    println!(
        "  bare JetStream: `async-nats`, 512 acknowledgements outstanding, ordered consumer, no identities"
    );
    println!(
        "  ours: 64 tasks post to a group, 512 acceptances outstanding in all; router, outbound queue, joined"
    );
    let mut verdicts = Vec::new();
    if let Some(broker) = RabbitMq::require(RabbitMqOptions::default()).await {
        let measured = Measured {
            name: "RabbitMQ",
            url: broker.url(),
            // What the consumer is behind with flat out shall wait, not be lost.
            parameters: "?max_queue_bytes=4000000000",
            process: broker.process().id().ok_or("the broker does not run")?,
            bounds: Some((Bound::RatioAtLeast(0.7), LATENCY)),
        };
        verdicts.extend(measured.run(options).await?);
        broker.stop().await;
    }
    if let Some(broker) = RabbitMq::require(RabbitMqOptions::amqp_1_0()).await {
        let measured = Measured {
            name: "AMQP 1.0 on RabbitMQ",
            url: broker.url_of_amqp_1_0("bench").await?,
            parameters: "",
            process: broker.process().id().ok_or("the broker does not run")?,
            bounds: None,
        };
        verdicts.extend(measured.run(options).await?);
        broker.stop().await;
    }
    let jetstream = NatsOptions { jetstream: true, ..NatsOptions::default() };
    if let Some(broker) = Nats::require(jetstream).await {
        let process = broker.process().id().ok_or("the broker does not run")?;
        let core = Measured {
            name: "NATS",
            url: broker.url(),
            // What the subscriber is behind with flat out shall wait, not be lost.
            parameters: "?max_undelivered=1000000000",
            process,
            bounds: Some((Bound::RatioAtLeast(0.5), LATENCY)),
        };
        verdicts.extend(core.run(options).await?);
        let url = format!("{}{DURABLE}", broker.url());
        let durable = Measured { name: "JetStream", url, parameters: "", process, bounds: None };
        verdicts.extend(durable.run(options).await?);
        broker.stop().await;
    }
    Ok(verdicts)
}

impl Measured {
    async fn round(&self, side: Side, measured: Duration, pace: Option<u32>) -> Result<Round> {
        let url = match side {
            Side::Bare => self.url.clone(),
            Side::Ours => format!("{}{}", self.url, self.parameters),
        };
        let server_time = async || machine::processor_time_of_family(self.process);
        let round = through::round(url, side, measured, pace, server_time).await;
        round.map_err(|error| format!("{}, {error}", self.name).into())
    }

    async fn run(&self, options: &Options) -> Result<Vec<Verdict>> {
        let (rate, p99) = (self.throughput(options).await?, self.latency(options).await?);
        let (rate_bound, p99_bound) = self.bounds.unzip();
        let held = [
            ("deliveries/s, ratio of medians", rate, rate_bound),
            ("ratio of the medians of p99", p99, p99_bound),
        ];
        let mut verdicts = Vec::new();
        for (what, figure, bound) in held {
            let what = format!("{}, {what}", self.name);
            match bound {
                Some(bound) => verdicts.push(Verdict::new(what, figure, bound)),
                None => println!("  {what}: {figure:.2}, without a bound"),
            }
        }
        for verdict in &verdicts {
            println!("  {verdict}");
        }
        Ok(verdicts)
    }

    /// Ours against the bare loop.
    async fn throughput(&self, options: &Options) -> Result<f64> {
        let measured = options.measured(3.0);
        let mut rates = Table::new(&[
            ("bare /s", 0),
            ("ours /s", 0),
            ("ratio", 3),
            ("bare: cores busy elsewhere", 2),
            ("ours: cores busy elsewhere", 2),
        ]);
        let mut costs = Table::new(&[
            ("bare publisher", 2),
            ("ours publisher", 2),
            ("bare subscriber", 2),
            ("ours subscriber", 2),
            ("bare server", 2),
            ("ours server", 2),
        ]);
        for _ in 0..options.rounds(5) {
            let bare = self.round(Side::Bare, measured, None).await?;
            let ours = self.round(Side::Ours, measured, None).await?;
            rates.round([bare.rate, ours.rate, ours.rate / bare.rate, bare.elsewhere, ours.elsewhere]);
            costs.round([
                bare.publisher,
                ours.publisher,
                bare.subscriber,
                ours.subscriber,
                bare.broker,
                ours.broker,
            ]);
        }
        println!("\n {}, deliveries/s flat out\n{rates}", self.name);
        println!("  processor time per message in us; nothing was lost, repeated or out of order\n{costs}");
        Ok(rates.median(1) / rates.median(0))
    }

    /// The p99 of ours against that of the bare loop.
    async fn latency(&self, options: &Options) -> Result<f64> {
        let measured = options.measured(3.0);
        let mut table = Table::new(&[
            ("bare p50", 0),
            ("ours p50", 0),
            ("bare p99", 0),
            ("ours p99", 0),
            ("ratio of p99", 2),
            ("bare: cores busy elsewhere", 2),
            ("ours: cores busy elsewhere", 2),
        ]);
        for _ in 0..options.rounds(5) {
            let bare = self.round(Side::Bare, measured, Some(PACE)).await?;
            let ours = self.round(Side::Ours, measured, Some(PACE)).await?;
            let (Some((bare_p50, bare_p99)), Some((ours_p50, ours_p99))) = (bare.latencies, ours.latencies)
            else {
                return Err("a paced flow has latencies".into());
            };
            let ratio = ours_p99 / bare_p99;
            table.round([bare_p50, ours_p50, bare_p99, ours_p99, ratio, bare.elsewhere, ours.elsewhere]);
        }
        println!("  {}, us from sending to receipt at {PACE} messages/s\n{table}", self.name);
        Ok(table.median(3) / table.median(2))
    }
}
