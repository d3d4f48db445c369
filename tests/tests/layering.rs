//! The walls between the crates: who may depend on whom, and what every member has in common.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde_json::Value;

/// A member of the workspace, as far as the walls are concerned.
struct Member {
    folder: PathBuf,
    license: String,
    description: String,
    /// Everything it needs to be built, by name.
    dependencies: BTreeSet<String>,
    /// What only its tests need.
    dev_dependencies: BTreeSet<String>,
}

fn members() -> BTreeMap<String, Member> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = std::process::Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let packages = metadata["packages"].as_array().expect("metadata lists packages");
    let members: BTreeMap<_, _> =
        packages.iter().map(|package| (text(&package["name"]), Member::read(package))).collect();
    // Every check below quantifies over this: it must not be empty.
    for name in ["backplane", "backplane-core", "backplane-conformance", "backplane-redis", "backplane-tests"]
    {
        assert!(members.contains_key(name), "{name} is not a member");
    }
    members
}

impl Member {
    fn read(package: &Value) -> Self {
        let dependencies = |dev: bool| {
            let all = package["dependencies"].as_array().expect("a package lists its dependencies").iter();
            all.filter(|dependency| (dependency["kind"] == "dev") == dev)
                .map(|dependency| text(&dependency["name"]))
                .collect()
        };
        let manifest = PathBuf::from(text(&package["manifest_path"]));
        Self {
            folder: manifest.parent().expect("a manifest lies in a folder").to_owned(),
            license: text(&package["license"]),
            description: text(&package["description"]),
            dependencies: dependencies(false),
            dev_dependencies: dependencies(true),
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// A crate that implements the seam over one kind of broker.
fn is_bus(name: &str) -> bool {
    name.starts_with("backplane-")
        && !["core", "tls", "conformance", "signalr", "tests", "bench"]
            .iter()
            .any(|other| name.ends_with(other))
}

/// Crates that are built for this repository alone.
fn is_internal(name: &str) -> bool {
    ["xtask", "backplane-tests", "backplane-bench"].contains(&name)
}

#[test]
fn dependencies_point_only_towards_the_core() {
    let members = members();
    let ours = |dependencies: &BTreeSet<String>| -> Vec<String> {
        dependencies.iter().filter(|name| members.contains_key(*name)).cloned().collect()
    };
    for (name, member) in &members {
        let (built, tested) = (ours(&member.dependencies), ours(&member.dev_dependencies));
        match name.as_str() {
            "backplane-core" => {
                assert!(built.is_empty() && tested.is_empty(), "{name} needs {built:?} {tested:?}");
            }
            "backplane-conformance" | "backplane-signalr" | "backplane-tls" => {
                assert_eq!(built, ["backplane-core"], "{name}");
                assert!(tested.is_empty(), "{name} is tested with {tested:?}");
            }
            bus if is_bus(bus) => {
                assert!(built.iter().any(|dependency| dependency == "backplane-core"), "{name}");
                let may = ["backplane-core", "backplane-tls"];
                assert!(
                    built.iter().all(|dependency| may.contains(&dependency.as_str())),
                    "{name} needs {built:?}"
                );
                assert!(
                    tested.iter().all(|dependency| dependency == "backplane-conformance"),
                    "{name} is tested with {tested:?}"
                );
            }
            _ => {}
        }
    }
}

#[test]
fn the_facade_knows_every_bus_and_nothing_of_tests() {
    let members = members();
    let facade = &members["backplane"].dependencies;
    assert!(facade.contains("backplane-core"));
    for bus in members.keys().filter(|name| is_bus(name)) {
        assert!(facade.contains(bus), "the facade cannot open {bus}");
    }
    assert!(!facade.contains("backplane-conformance"));
}

#[test]
fn nothing_depends_on_examples_or_on_internal_crates() {
    let members = members();
    let example = |name: &String| {
        members
            .get(name)
            .is_some_and(|member| member.folder.components().any(|part| part.as_os_str() == "examples"))
    };
    assert!(members.keys().any(example), "the examples are members");
    for (name, member) in &members {
        for dependency in member.dependencies.union(&member.dev_dependencies) {
            assert!(!example(dependency) && !is_internal(dependency), "{name} depends on {dependency}");
        }
    }
}

/// The core knows no broker and no JSON library of its own beyond the envelope of `wire/aspnetcore`: whatever is added
/// here is argued for in the commit that adds it.
#[test]
fn the_core_needs_only_crates_that_were_argued_for() {
    let argued_for = [
        "async-trait",
        "base64",
        "bytes",
        "foldhash",
        "futures",
        "getrandom",
        "indexmap",
        "parking_lot",
        "rmp",
        "serde",
        "serde_json",
        "sha2",
        "smallvec",
        "thiserror",
        "tokio",
        "tracing",
    ];
    let members = members();
    for needed in &members["backplane-core"].dependencies {
        assert!(argued_for.contains(&needed.as_str()), "the core needs {needed}: argue for it here");
    }
}

#[test]
fn every_member_shares_lints_licence_and_has_a_description() {
    for (name, member) in members() {
        assert_eq!(member.license, "MIT OR Apache-2.0", "{name}");
        assert!(!member.description.is_empty(), "{name} has no description");
        let manifest = std::fs::read_to_string(member.folder.join("Cargo.toml")).unwrap();
        let lints = manifest.split("[lints]").nth(1).unwrap_or_else(|| panic!("{name} has no [lints]"));
        assert_eq!(lints.lines().nth(1), Some("workspace = true"), "{name} has lints of its own");
    }
}

#[test]
fn every_member_says_what_it_is() {
    for (name, member) in members() {
        let sources = member.folder.join("src");
        let root = ["lib.rs", "main.rs"].iter().map(|root| sources.join(root)).find(|root| root.is_file());
        let root = root.unwrap_or_else(|| panic!("{name} has neither lib.rs nor main.rs"));
        let first = std::fs::read_to_string(&root).unwrap();
        let sentence = first.lines().next().and_then(|line| line.strip_prefix("//! ")).unwrap_or_default();
        assert!(sentence.len() > 20, "{} does not begin with a sentence about the crate", root.display());
    }
}

/// Words that say nothing, and therefore attract everything.
#[test]
fn no_module_has_a_name_that_says_nothing() {
    const EMPTY_WORDS: &[&str] = &[
        "manager", "managers", "helper", "helpers", "util", "utils", "data", "info", "common", "misc",
        "prelude",
    ];
    let mut seen = 0;
    for member in members().values() {
        let mut folders = vec![member.folder.join("src"), member.folder.join("tests")];
        while let Some(folder) = folders.pop() {
            let Ok(entries) = std::fs::read_dir(&folder) else { continue };
            for path in entries.map(|entry| entry.unwrap().path()) {
                let word = path.file_stem().unwrap().to_string_lossy().into_owned();
                assert!(!EMPTY_WORDS.contains(&word.as_str()), "{}", path.display());
                seen += 1;
                if path.is_dir() {
                    folders.push(path);
                }
            }
        }
    }
    assert!(seen > 20, "only {seen} modules were looked at");
}
