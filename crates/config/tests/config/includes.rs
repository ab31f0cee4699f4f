//! Several files.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use wsgate_config::{Errors, Sources, load};

use super::SMALL;

/// A directory with these files, old enough to be trusted at once.
fn directory(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        write(&dir.path().join(name), text);
    }
    dir
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    let file = fs::File::options().append(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(60))
        .unwrap();
}

fn main_of(dir: &TempDir) -> PathBuf {
    dir.path().join("wsgate.toml")
}

fn refused(dir: &TempDir) -> Errors {
    load(&main_of(dir)).map(|loaded| loaded.config).unwrap_err()
}

const MAIN: &str = "include = ['conf.d/*.toml']\n[[listener]]\naddress = '0.0.0.0:8080'\n";
const ROUTE: &str = "[[route]]\npath = '/b'\nupstream = 'b'\n";
const UPSTREAM: &str = "[upstream.b]\nservers = ['b:1']\n";

#[test]
fn included_files_are_read_in_order_and_refer_to_each_other() {
    let dir = directory(&[
        ("wsgate.toml", MAIN),
        ("conf.d/b.toml", UPSTREAM),
        ("conf.d/a.toml", ROUTE),
        ("conf.d/.#a.toml", "not = read"),
        ("conf.d/a.toml.bak", "not = read"),
        ("conf.d/sub/c.toml", "not = read"),
    ]);
    let loaded = load(&main_of(&dir)).unwrap();
    let names = loaded.sources.files.iter().map(|file| &file.path);
    let names: Vec<_> = names
        .map(|path| path.strip_prefix(dir.path()).unwrap())
        .collect();
    assert_eq!(
        names,
        ["wsgate.toml", "conf.d/a.toml", "conf.d/b.toml"].map(Path::new)
    );
    assert_eq!(loaded.sources.include_dirs, [dir.path().join("conf.d")]);
    assert_eq!(loaded.config.routes[0].upstream, "b");
}

#[test]
fn a_pattern_may_find_nothing_but_a_name_must_be_there() {
    let dir = directory(&[(
        "wsgate.toml",
        &format!("include = ['conf.d/*.toml']\n{SMALL}"),
    )]);
    let loaded = load(&main_of(&dir)).unwrap();
    assert_eq!(loaded.sources.include_dirs, [dir.path().join("conf.d")]);

    let text = format!("include = ['more.toml']\nworkers = 0\n{SMALL}")
        .replace("= \"chat\"", "= \"more\"");
    let dir = directory(&[("wsgate.toml", &text)]);
    let errors = refused(&dir);
    // That `more` does not exist cannot be known.
    assert_eq!(errors.len(), 2, "{errors}");
    let error = errors.iter().next().unwrap();
    let missing = dir.path().join("more.toml");
    let message = format!(
        "cannot read the included `{}`: there is no such file",
        missing.display()
    );
    assert_eq!(error.message, message);
    let help = error.help.as_deref().unwrap();
    assert!(help.contains("correct the name"), "{help}");
    assert_eq!((error.line(), error.column()), (Some(1), Some(12)));
}

#[test]
fn the_main_file_does_not_include_itself() {
    let text = format!("include = ['*.toml']\n{SMALL}");
    let dir = directory(&[("wsgate.toml", &text)]);
    assert_eq!(load(&main_of(&dir)).unwrap().sources.files.len(), 1);
}

#[test]
fn a_directory_whose_name_looks_like_a_pattern_is_none() {
    let dir = directory(&[
        ("[x]/wsgate.toml", MAIN),
        ("[x]/conf.d/a.toml", &format!("{ROUTE}{UPSTREAM}")),
    ]);
    let loaded = load(&dir.path().join("[x]/wsgate.toml")).unwrap();
    assert_eq!(loaded.sources.files.len(), 2);
}

#[test]
fn mistakes_of_all_files_come_together_in_order() {
    let dir = directory(&[
        ("wsgate.toml", &format!("{MAIN}[drain]\ngrace = 5\n")),
        ("conf.d/a.toml", &format!("{ROUTE}idle_timeout = 7\n")),
        ("conf.d/b.toml", &format!("{UPSTREAM}retires = 1\n")),
    ]);
    let errors = refused(&dir);
    let places: Vec<_> = errors
        .iter()
        .map(|error| {
            (
                error.path.file_name().unwrap().to_str().unwrap(),
                error.line(),
            )
        })
        .collect();
    assert_eq!(
        places,
        [
            ("wsgate.toml", Some(5)),
            ("a.toml", Some(4)),
            ("b.toml", Some(3))
        ]
    );
}

#[test]
fn an_included_file_holds_listeners_routes_and_upstreams_only() {
    let extra = "include = ['x.toml']\nuser = 'x'\nzebra = 1\n[drain]\ngrace = '1m'\n";
    let dir = directory(&[
        ("wsgate.toml", MAIN),
        ("conf.d/a.toml", &format!("{extra}{ROUTE}{UPSTREAM}")),
    ]);
    let errors = refused(&dir);
    let messages: Vec<_> = errors.iter().map(|error| error.message.as_str()).collect();
    assert_eq!(
        messages,
        [
            "an included file may not include others",
            "`user` does not belong into an included file",
            "unknown key `zebra`",
            "`drain` does not belong into an included file",
        ]
    );
    let help = errors.iter().last().unwrap().help.clone().unwrap();
    assert!(help.contains(main_of(&dir).to_str().unwrap()), "{help}");
}

#[test]
fn an_upstream_of_two_files_is_refused_with_both_places() {
    let dir = directory(&[
        ("wsgate.toml", MAIN),
        ("conf.d/a.toml", &format!("{ROUTE}{UPSTREAM}")),
        ("conf.d/b.toml", UPSTREAM),
    ]);
    let errors = refused(&dir);
    assert_eq!(errors.len(), 1, "{errors}");
    let shown = errors.to_string();
    assert!(
        shown.contains("a.toml:4:11") && shown.contains("b.toml:1:11"),
        "{shown}"
    );
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let dir = directory(&[]);
    let errors = refused(&dir);
    let shown = errors.to_string();
    assert!(
        shown.contains("wsgate.toml`: there is no such file"),
        "{shown}"
    );
    let help = "= help: put the file there, or start wsgate with another --config";
    assert!(shown.contains(help), "{shown}");

    fs::create_dir(main_of(&dir)).unwrap();
    let shown = refused(&dir).to_string();
    assert!(shown.contains("not a regular file"), "{shown}");
    assert!(shown.contains(help), "{shown}");

    let dir = directory(&[("wsgate.toml", &"#".repeat((1 << 20) + 1))]);
    let shown = refused(&dir).to_string();
    assert!(shown.contains("larger than 1 MiB"), "{shown}");
    assert!(shown.contains("move parts of it to files"), "{shown}");
}

#[test]
fn an_included_file_that_cannot_be_read_is_shown_where_it_is_included() {
    let main = format!("workers = 1\ninclude = ['sub', 'conf.d/*.toml']\n{SMALL}");
    let dir = directory(&[
        ("wsgate.toml", &main),
        ("sub/x.toml", ""),
        ("conf.d/a.toml/x", ""),
        ("conf.d/b.toml", &"#".repeat((1 << 20) + 1)),
        ("conf.d/d.toml", "zebra = 1\n"),
    ]);
    std::os::unix::fs::symlink("nothing", dir.path().join("conf.d/c.toml")).unwrap();
    let errors = refused(&dir);
    let said: Vec<_> = errors
        .iter()
        .map(|error| {
            let message = error.message.replace(dir.path().to_str().unwrap(), "");
            let place = error.line().zip(error.column()).unwrap();
            (place, message, error.help.clone().unwrap())
        })
        .collect();
    let line = "2 | include = ['sub', 'conf.d/*.toml']";
    let expected = [
        (
            (2, 12),
            "`/sub`: not a regular file",
            "write \"sub/*.toml\"",
        ),
        (
            (2, 19),
            "`/conf.d/a.toml`: not a regular file",
            "change `include`",
        ),
        (
            (2, 19),
            "`/conf.d/b.toml`: larger than 1 MiB",
            "divide it into several files",
        ),
        (
            (2, 19),
            "`/conf.d/c.toml`: there is no such file",
            "a link to nothing",
        ),
    ];
    assert_eq!(said.len(), expected.len() + 1, "{errors}");
    for (error, (said, (place, message, help))) in errors.iter().zip(said.iter().zip(expected)) {
        assert_eq!(error.path, main_of(&dir));
        assert_eq!(said.0, place, "{error}");
        assert_eq!(said.1, format!("cannot read the included {message}"));
        assert!(said.2.contains(help), "{error}");
        assert!(error.render().contains(line), "{error}");
    }
    // What could be read is checked all the same.
    assert_eq!(said[4].1, "unknown key `zebra`");
}

#[test]
fn a_file_that_two_entries_find_is_read_once() {
    let main = format!("include = ['conf.d/a.toml', 'conf.d/*.toml']\n{SMALL}");
    let dir = directory(&[("wsgate.toml", &main), ("conf.d/a.toml", "")]);
    assert_eq!(load(&main_of(&dir)).unwrap().sources.files.len(), 2);
    let dir = directory(&[("wsgate.toml", &main), ("conf.d/a.toml/x", "")]);
    let errors = refused(&dir);
    assert_eq!(errors.len(), 1, "{errors}");
    assert_eq!(errors.iter().next().unwrap().column(), Some(12));
}

#[test]
fn a_file_that_is_not_utf_8_is_refused_with_the_place() {
    let dir = directory(&[]);
    fs::write(main_of(&dir), b"workers = 1\nuser = \"M\xfcller\"\n").unwrap();
    let errors = refused(&dir);
    let error = errors.iter().next().unwrap();
    assert_eq!(
        (error.line(), error.column()),
        (Some(2), Some(10)),
        "{error}"
    );
}

#[test]
fn a_pattern_that_is_none_is_refused() {
    let dir = directory(&[(
        "wsgate.toml",
        &format!("include = ['conf.d/[.toml']\n{SMALL}"),
    )]);
    let shown = refused(&dir).to_string();
    assert!(shown.contains("is not a pattern"), "{shown}");
}

#[test]
fn a_change_in_an_included_file_is_a_change_of_content() {
    let dir = directory(&[("wsgate.toml", MAIN), ("conf.d/a.toml", ROUTE)]);
    let before = Sources::read(&main_of(&dir)).unwrap();
    assert!(before.same_content(&Sources::read(&main_of(&dir)).unwrap()));
    write(&dir.path().join("conf.d/a.toml"), UPSTREAM);
    assert!(!before.same_content(&Sources::read(&main_of(&dir)).unwrap()));
    write(&dir.path().join("conf.d/a.toml"), ROUTE);
    assert!(before.same_content(&Sources::read(&main_of(&dir)).unwrap()));
    write(&dir.path().join("conf.d/b.toml"), "");
    assert!(!before.same_content(&Sources::read(&main_of(&dir)).unwrap()));
}

#[test]
fn a_file_that_was_just_written_is_read_too() {
    let dir = directory(&[]);
    fs::write(main_of(&dir), SMALL).unwrap();
    assert_eq!(Sources::read(&main_of(&dir)).unwrap().files[0].text, SMALL);
}
