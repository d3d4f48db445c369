//! The steps of a test run, in order: what each one runs, and how it can be run alone.

use std::process::Command;
use std::time::Duration;

use backplane_conformance::broker::{Broker, Folder, Nats, RabbitMq, RabbitMqOptions, Redis};

use crate::command::{self, Ran, cargo};
use crate::tally::Tally;

/// One step.
#[derive(Clone, Copy)]
pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) run: fn() -> Ran,
}

/// All steps: the cheap ones first, so that a slip is told soon.
pub(crate) const STEPS: &[Step] = &[
    Step { name: "fmt", run: fmt },
    Step { name: "clippy", run: clippy },
    Step { name: "features", run: features },
    Step { name: "docs", run: docs },
    Step { name: "test", run: || test(None) },
    Step { name: "examples", run: examples },
    Step { name: "deny", run: deny },
];

/// Runs commands until one fails.
fn all(commands: impl IntoIterator<Item = Command>) -> Ran {
    let mut sum = Ran { success: true, tally: Tally::default() };
    for command in commands {
        let ran = command::run(command);
        sum.tally.add(ran.tally);
        if !ran.success {
            return Ran { success: false, ..sum };
        }
    }
    sum
}

fn fmt() -> Ran {
    all([cargo(&["fmt", "--all", "--check"])])
}

fn clippy() -> Ran {
    all([cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])])
}

/// The facade with no feature and with each alone; its tests where nothing is compiled in.
fn features() -> Ran {
    let Some(features) = facade_features() else {
        eprintln!("the features of the facade cannot be read from cargo metadata");
        return Ran::default();
    };
    let without = ["-p", "backplane", "--no-default-features"];
    let mut commands = vec![
        cargo(&[&["clippy"], &without[..], &["--", "-D", "warnings"]].concat()),
        cargo(&[&["test"], &without[..], &["--lib", "--tests"]].concat()),
    ];
    commands.extend(features.iter().map(|feature| {
        cargo(&[&["clippy"], &without[..], &["--features", feature, "--", "-D", "warnings"]].concat())
    }));
    all(commands)
}

fn facade_features() -> Option<Vec<String>> {
    let output = cargo(&["metadata", "--no-deps", "--format-version", "1"]).output().ok()?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let packages = metadata["packages"].as_array()?;
    let facade = packages.iter().find(|package| package["name"] == "backplane")?;
    let features = facade["features"].as_object()?;
    Some(features.keys().filter(|name| *name != "default").cloned().collect())
}

fn docs() -> Ran {
    let mut doc = cargo(&["doc", "--workspace", "--no-deps"]);
    doc.env("RUSTDOCFLAGS", "-D warnings");
    all([doc])
}

/// Unit tests, integration tests and the examples in the docs. All of them run, also after one failed.
pub(crate) fn test(filter: Option<&str>) -> Ran {
    let arguments = ["test", "--workspace", "--no-fail-fast"];
    all([cargo(&[&arguments[..], filter.as_slice()].concat())])
}

/// The programs that a stranger runs first, as the README writes them. Each run counts as a test.
fn examples() -> Ran {
    let script = ["run", "-p", "two-servers", "--", "--script"];
    let mut sum = counted(cargo(&script));
    let over = |url: &str| counted(cargo(&[&script[..], &["--url", url]].concat()));
    for with in [with::<Redis>, with::<RabbitMq>, with::<Nats>, with_amqp_1_0] {
        if sum.success {
            sum = sum.and(with(&over));
        }
    }
    if sum.success {
        sum = sum.and(with_a_file(over));
    }
    if sum.success {
        sum = sum.and(counted(cargo(&["run", "-p", "custom-bus"])));
    }
    sum
}

impl Ran {
    fn and(mut self, next: Self) -> Self {
        self.success &= next.success;
        self.tally.add(next.tally);
        self
    }
}

fn counted(command: Command) -> Ran {
    let success = command::run(command).success;
    Ran { success, tally: Tally { passed: success.into(), failed: (!success).into(), ..Tally::default() } }
}

/// Runs `act` beside a private broker.
fn with<B: Broker>(act: &dyn Fn(&str) -> Ran) -> Ran {
    with_private::<B>(B::Options::default(), async |broker: &B| Ok(broker.url()), act)
}

/// The same over AMQP 1.0, which RabbitMQ speaks too: `servicebus://`.
fn with_amqp_1_0(act: &dyn Fn(&str) -> Ran) -> Ran {
    let url = async |broker: &RabbitMq| Ok(broker.url_of_amqp_1_0("script").await?);
    with_private::<RabbitMq>(RabbitMqOptions::amqp_1_0(), url, act)
}

fn with_private<B: Broker>(
    options: B::Options,
    url: impl AsyncFnOnce(&B) -> Result<String, Box<dyn std::error::Error>>,
    act: &dyn Fn(&str) -> Ran,
) -> Ran {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("no runtime: {error}");
            return Ran::default();
        }
    };
    let started = runtime.block_on(async {
        let broker = B::start(options).await?;
        let url = url(&broker).await?;
        Ok::<_, Box<dyn std::error::Error>>((broker, url))
    });
    let ran = match started {
        Ok((broker, url)) => {
            let ran = act(&url);
            runtime.block_on(broker.stop());
            ran
        }
        Err(error) => {
            eprintln!("no private {}: {error}", B::NAME);
            Ran::default()
        }
    };
    runtime.shutdown_timeout(Duration::from_secs(1));
    ran
}

/// Runs `act` with a database of SQLite in a folder of its own.
fn with_a_file(act: impl FnOnce(&str) -> Ran) -> Ran {
    match Folder::new("script") {
        Ok(folder) => act(&format!("sqlite:{}", folder.path().join("log.db").display())),
        Err(error) => {
            eprintln!("no folder for a file of SQLite: {error}");
            Ran::default()
        }
    }
}

/// Licences, advisories and sources, by `deny.toml`. Needs a program that not everybody has, so its absence is said and
/// not counted.
fn deny() -> Ran {
    if command::is_installed(&mut cargo(&["deny"])) {
        all([cargo(&["deny", "check"])])
    } else {
        println!("NOT RUN: cargo-deny is not installed (cargo install cargo-deny)");
        Ran { success: true, tally: Tally::default() }
    }
}
