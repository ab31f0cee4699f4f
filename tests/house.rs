//! The crates of the house and the doors between them, as docs/architecture.md has them.

#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, MetadataCommand, Package};

/// Every edge that may exist. Only what is here may be depended on; and what is here
/// must not be more than there is.
const EDGES: [(&str, &[&str]); 11] = [
    ("wsgate", &["config", "ctl", "demo", "supervisor", "worker"]),
    ("supervisor", &["config", "lifecycle", "os", "protocol"]),
    ("worker", &["config", "os", "protocol", "proxy"]),
    ("proxy", &["config"]),
    ("ctl", &["protocol"]),
    ("config", &[]),
    ("demo", &[]),
    ("lifecycle", &[]),
    ("load", &[]),
    ("os", &[]),
    ("protocol", &[]),
];

/// The workspace's packages by their short names.
fn packages() -> BTreeMap<String, Package> {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let metadata = MetadataCommand::new()
        .manifest_path(manifest)
        .no_deps()
        .other_options(vec!["--offline".to_owned()])
        .exec()
        .unwrap();
    let packages = metadata.packages.into_iter();
    packages
        .map(|package| (short(&package.name).to_owned(), package))
        .collect()
}

fn short(name: &str) -> &str {
    name.strip_prefix("wsgate-").unwrap_or(name)
}

/// What a package's programs and libraries are built from; tests may use what they like.
fn dependencies(package: &Package) -> impl Iterator<Item = &str> {
    package
        .dependencies
        .iter()
        .filter(|dependency| dependency.kind != DependencyKind::Development)
        .map(|dependency| dependency.name.as_str())
}

#[test]
fn crates_depend_on_each_other_only_as_the_architecture_says() {
    let allowed: BTreeMap<&str, BTreeSet<&str>> = EDGES
        .iter()
        .map(|(name, to)| (*name, to.iter().copied().collect()))
        .collect();
    let packages = packages();
    let names: BTreeSet<&str> = packages.keys().map(String::as_str).collect();
    assert_eq!(names, allowed.keys().copied().collect(), "crates");
    for (name, package) in &packages {
        let inside = dependencies(package)
            .filter(|dependency| dependency.starts_with("wsgate-"))
            .map(short)
            .collect::<BTreeSet<_>>();
        assert_eq!(inside, allowed[name.as_str()], "edges of {name}");
    }
}

#[test]
fn the_supervisor_links_no_tls_and_no_http_client() {
    let supervisor = &packages()["supervisor"];
    for dependency in dependencies(supervisor) {
        assert!(
            !dependency.contains("rustls") && !dependency.contains("reqwest"),
            "{dependency}"
        );
    }
    let hyper = supervisor
        .dependencies
        .iter()
        .find(|dependency| dependency.name == "hyper");
    assert!(hyper.is_none_or(|hyper| !hyper.features.iter().any(|feature| feature == "client")));
}

#[test]
fn lifecycle_depends_on_nothing_at_all() {
    assert_eq!(dependencies(&packages()["lifecycle"]).count(), 0);
}

#[test]
fn every_crate_is_a_default_member_under_the_same_lints() {
    let manifest = |path: &str| std::fs::read_to_string(path).unwrap();
    let root = manifest(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
    for (name, package) in packages() {
        let text = manifest(package.manifest_path.as_str());
        assert!(text.contains("[lints]\nworkspace = true"), "{name}");
        let path = format!("\"crates/{name}\",");
        assert!(
            name == "wsgate" || root.matches(&path).count() == 2,
            "{name}"
        );
    }
}
