//! Installs what the tests need and what is not there: brokers, and the programs that official clients run in.

use std::path::Path;
use std::process::Command;

use backplane_conformance::broker;

use crate::command::{self, is_installed};

/// A program, and the Debian package that brings it.
type Needed = (&'static str, &'static str);

const BROKERS: &[Needed] = &[
    ("redis-server", "redis-server"),
    ("postgres", "postgresql"),
    ("pgbouncer", "pgbouncer"),
    ("mariadbd", "mariadb-server"),
    ("rabbitmq-server", "rabbitmq-server"),
    ("nats-server", "nats-server"),
];

/// Node and Chromium run official clients, nginx stands between them and our servers.
const CLIENTS: &[Needed] =
    &[("node", "nodejs"), ("npm", "npm"), ("chromium", "chromium"), ("nginx", "nginx")];

/// Makes sure that every broker is there; says what it does. `false`: something is still missing.
pub(crate) fn brokers() -> bool {
    programs(BROKERS)
}

/// Makes sure that everything is there that the tests need; says what it does. `false`: something is still missing.
pub(crate) fn everything() -> bool {
    programs(&[BROKERS, CLIENTS].concat()) && npm_packages()
}

fn programs(needed: &[Needed]) -> bool {
    let missing = || needed.iter().filter(|(program, _)| broker::find(program).is_err());
    let packages: Vec<&str> = missing().map(|(_, package)| *package).collect();
    if packages.is_empty() {
        return true;
    }
    println!("not installed: {}", packages.join(", "));
    if !is_installed(&mut Command::new("apt-get")) {
        println!("there is no apt-get here: install them by hand, in PATH");
        return false;
    }
    // The package lists of a fresh machine are empty: try, then fetch them and try again.
    if !apt_get(&[&["install", "-y", "--no-install-recommends"], packages.as_slice()].concat()) {
        let _ = apt_get(&["update"]);
        let _ = apt_get(&[&["install", "-y", "--no-install-recommends"], packages.as_slice()].concat());
    }
    let still: Vec<&str> = missing().map(|(program, _)| *program).collect();
    if !still.is_empty() {
        println!("still missing: {}", still.join(", "));
    }
    still.is_empty()
}

/// Installs the official clients as their lock file says, when they are not there or the file has changed since.
fn npm_packages() -> bool {
    let folder = command::root().join("tests/clients");
    let changed = |file: &str| Path::metadata(&folder.join(file)).and_then(|file| file.modified());
    // npm writes the second one when it has installed everything.
    let (wanted, there) = (changed("package-lock.json"), changed("node_modules/.package-lock.json"));
    if let (Ok(wanted), Ok(there)) = (&wanted, &there)
        && there >= wanted
    {
        return true;
    }
    let Ok(npm) = broker::find("npm") else { return false };
    let mut install = Command::new(npm);
    // Its own word for "exactly what the lock file says"; what is installed runs nothing for it.
    install.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(&folder);
    command::run(install).success
}

fn apt_get(arguments: &[&str]) -> bool {
    // Without root, sudo: it asks nothing here, since nobody may be there to answer.
    let mut command = if is_root() {
        Command::new("apt-get")
    } else {
        let mut sudo = Command::new("sudo");
        sudo.args(["-n", "--preserve-env=DEBIAN_FRONTEND,RUNLEVEL", "apt-get"]);
        sudo
    };
    // The packages' own services are not wanted: the tests start private ones.
    command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1");
    command::run(command).success
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout.trim_ascii() == b"0")
}
