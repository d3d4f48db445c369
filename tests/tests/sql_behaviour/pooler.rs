//! Behind PgBouncer in transaction mode, which lends sessions: nothing rings there, the log is polled, and a node says so
//! once. Named directly for listening, the server rings.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backplane_conformance::bound;
use backplane_conformance::broker::{Broker as _, PgBouncer, PgBouncerOptions};
use backplane_core::RouterConfig;
use backplane_tests::sql::{Database, bus_at};
use parking_lot::Mutex;
use tracing_subscriber::fmt::MakeWriter;

use crate::member::{Member, all_hear_each_other};

async fn pooled() -> Option<(Database, PgBouncer)> {
    let database = Database::postgres().await?;
    let server = database.address().expect("it is a server");
    let bouncer = PgBouncer::require(PgBouncerOptions { server, ..PgBouncerOptions::default() }).await?;
    Some((database, bouncer))
}

/// What is logged.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    /// Those that hold `words`.
    fn with(&self, words: &str) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.0.lock()).into_owned();
        text.lines().filter(|line| line.contains(words)).map(str::to_owned).collect()
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

// On one thread: what is logged there is heard there.
#[tokio::test]
async fn behind_a_pooler_the_log_is_polled_and_that_is_said_once() {
    let Some((_database, bouncer)) = pooled().await else { return };
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_ansi(false)
        .with_writer(lines.clone())
        .finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    for parameters in ["prepared=false&table=plain", "table=found_out"] {
        let bus = bus_at(&format!("{}?{parameters}", bouncer.url()));
        let mut one = Member::open(bus.clone()).await;
        let mut other = Member::open(bus).await;
        for round in 0..20 {
            all_hear_each_other(&mut [&mut one, &mut other], &format!("round {round}")).await;
        }
        // Another link of the same nodes says nothing more.
        bouncer.kill();
        for member in [&mut one, &mut other] {
            member.loses_its_link().await;
        }
        bouncer.restart().await.expect("it starts again");
        for member in [&mut one, &mut other] {
            assert!(member.link().await, "the next link continues");
        }
        all_hear_each_other(&mut [&mut one, &mut other], "after").await;
        let table = parameters.split_once("table=").map_or("", |(_, table)| table);
        let said: Vec<String> =
            lines.with("polled").into_iter().filter(|line| line.contains(table)).collect();
        assert_eq!(said.len(), 1, "it is said once: {said:#?}");
        assert!(said[0].contains("WARN") && said[0].contains("listen_url"), "{said:?}");
        for member in [&mut one, &mut other] {
            assert_eq!(member.further_gaps(), []);
        }
    }
    assert_eq!(lines.with("doorbell").len(), 0, "nothing else is complained about");
}

#[tokio::test]
async fn with_listen_url_the_server_rings_past_the_pooler() {
    let Some((database, bouncer)) = pooled().await else { return };
    let direct = database.url("").replace(':', "%3A").replace('/', "%2F").replace('@', "%40");
    let url = format!("{}?prepared=false&poll_max=10s&retention=2m&listen_url={direct}", bouncer.url());
    // Without a ring nobody would look for ten seconds, nor beat in that time.
    let config = RouterConfig { heartbeat: Duration::from_secs(60), ..RouterConfig::default() };
    let mut one = Member::open_with(bus_at(&url), config.clone()).await;
    let mut other = Member::open_with(bus_at(&url), config).await;
    let listening = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN %'";
    assert_eq!(database.number(listening).await, 2);
    let start = Instant::now();
    for round in 0..20 {
        all_hear_each_other(&mut [&mut one, &mut other], &format!("round {round}")).await;
    }
    let took = start.elapsed();
    println!("40 messages, one after the other, past a pooler with a doorbell: {took:.2?}");
    assert!(took < bound(Duration::from_secs(5)), "nobody rang: {took:?}");
}
