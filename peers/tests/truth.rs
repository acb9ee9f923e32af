//! The quick cases of `truth`, against the command of this build; and that nothing is left.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The command, if this build has made it (`cargo test -p plimsoll-peers` alone does not).
fn plimsoll() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_BIN_EXE_truth")).with_file_name("plimsoll");
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {} is not built; `cargo test --workspace` builds it", path.display());
    None
}

fn truth(arguments: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_truth"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("the program was built with this test")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn each_quick_verdict_is_right() {
    if plimsoll().is_none() {
        return;
    }
    let output = truth(&["--quick"]);
    let table = text(&output.stdout);
    assert!(output.status.success(), "{table}{}", text(&output.stderr));
    print!("{table}");
}

/// `false` ends with 1 and says nothing: each verdict of it is wrong.
#[test]
fn a_command_that_says_nothing_is_wrong_in_each_case() {
    let output = truth(&["--plimsoll", "/bin/false", "--only", "server-limit", "--json"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let cases = found["cases"].as_array().expect("a list");
    assert!(cases.len() >= 5, "{found}");
    for case in cases {
        assert_eq!((&case["right"], &case["runs"]), (&0.into(), &1.into()), "{case}");
        let wrong = &case["wrong"][0];
        assert!(wrong["complaints"].as_array().is_some_and(|all| !all.is_empty()), "{case}");
        let server = wrong["server"].as_str().expect("a command line");
        assert!(server.contains("faulty --listen 127.0.0.1:0 --max-connections 500"), "{server}");
        let command = wrong["command"].as_str().expect("a command line");
        assert!(command.starts_with("/bin/false capacity --connections 1000"), "{command}");
    }
}

#[test]
fn cases_are_listed_and_unknown_ones_refused() {
    let list = truth(&["--list"]);
    assert!(list.status.success());
    let list = text(&list.stdout);
    for name in ["descriptors-found-pid", "oom-kill", "conntrack", "tcp-mem-load", "control-none"] {
        assert!(list.contains(name), "{list}");
    }
    let quick = text(&truth(&["--list", "--quick"]).stdout);
    for name in ["conntrack", "tcp-mem-load", "file-max"] {
        assert!(!quick.contains(name), "{quick}");
    }
    assert_eq!(truth(&["--only", "no-such-case"]).status.code(), Some(2));
    assert_eq!(truth(&["--plimsoll", "/no/such/program"]).status.code(), Some(3));
}
