//! Installs the brokers that the tests need and that are not there.

use std::process::Command;

use backplane_conformance::broker;

use crate::command::{self, is_installed};

/// A server's program, and the Debian package that brings it.
const NEEDED: &[(&str, &str)] = &[("redis-server", "redis-server")];

/// Makes sure that every broker is there; says what it does. `false`: something is still missing.
pub(crate) fn brokers() -> bool {
    let missing = || NEEDED.iter().filter(|(program, _)| broker::find(program).is_err());
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
