//! What `wsgate check` and the start of `wsgate run` say about a configuration.

use std::fs;
use std::path::Path;
use std::process::Output;

use crate::configs;
use crate::support::gateway::{stderr, stdout, wsgate};

async fn with_file(command: &str, text: &str) -> (Output, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("wsgate.toml");
    fs::write(&file, text).unwrap();
    let output = wsgate(&[command, "--config", file.to_str().unwrap()]).await;
    (output, dir)
}

#[tokio::test]
async fn a_sound_file_is_0() {
    let (output, _dir) = with_file("check", &configs::simple(&["127.0.0.1:9001"])).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("wsgate.toml"));
}

#[tokio::test]
async fn every_mistake_is_told_with_its_place_its_line_and_a_way_out() {
    let text = "workers = 1\n[[listener]]\naddres = \"127.0.0.1:0\"\n\n\
        [[route]]\nupstream = \"chta\"\nidle_timeout = \"soon\"\n[upstream.chat]\nservers = []\n";
    let (output, _dir) = with_file("check", text).await;
    assert_eq!(output.status.code(), Some(2));
    let said = stderr(&output);
    for (place, line) in [
        ("wsgate.toml:3:1", "addres = \"127.0.0.1:0\""),
        ("wsgate.toml:6:12", "upstream = \"chta\""),
        ("wsgate.toml:7:16", "idle_timeout = \"soon\""),
        ("wsgate.toml:9:11", "servers = []"),
    ] {
        assert!(said.contains(place), "{place} in:\n{said}");
        assert!(said.contains(line), "{line} in:\n{said}");
    }
    for meant in ["`address`", "\"chat\""] {
        assert!(said.contains(meant), "{meant} in:\n{said}");
    }
}

#[tokio::test]
async fn errors_of_syntax_are_told_all_at_once() {
    let text = "workers = \n[[listener]]\naddress = \"127.0.0.1:0\n[[route]\nupstream = \"chat\"\n\
        [upstream.chat]\nservers = [\"127.0.0.1:1\",, ]\n";
    let (output, _dir) = with_file("check", text).await;
    assert_eq!(output.status.code(), Some(2));
    let said = stderr(&output);
    for place in [
        "wsgate.toml:1:11",
        "wsgate.toml:3:23",
        "wsgate.toml:4:9",
        "wsgate.toml:7:26",
    ] {
        assert!(said.contains(place), "{place} in:\n{said}");
    }
}

#[tokio::test]
async fn what_is_not_built_yet_is_refused_by_name() {
    let text = format!(
        "user = \"nobody\"\n{}",
        configs::simple(&["127.0.0.1:9001"])
    );
    let (output, _dir) = with_file("check", &text).await;
    assert_eq!(output.status.code(), Some(2));
    let said = stderr(&output);
    assert!(
        said.contains("not supported yet") && said.contains("user"),
        "{said}"
    );
}

#[tokio::test]
async fn a_file_that_is_not_there_is_2() {
    let output = wsgate(&["check", "--config", "/no/such/wsgate.toml"]).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("/no/such/wsgate.toml"));
}

#[tokio::test]
async fn a_gateway_does_not_start_with_mistakes() {
    let (output, dir) = with_file("run", &configs::simple(&["nonsense"])).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("wsgate.toml:9:"),
        "{}",
        stderr(&output)
    );
    assert!(!Path::new(&dir.path().join("admin.sock")).exists());
}

#[tokio::test]
async fn the_example_configurations_are_sound() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/etc/wsgate.toml");
    let output = wsgate(&["check", "--config", example]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}
