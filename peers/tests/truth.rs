//! The quick cases of `truth`, against the command of this build; and that nothing is left of a
//! case when it is interrupted.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use plimsoll_peers::sys;

/// How long anything may take that ought to take a moment.
const PATIENCE: Duration = Duration::from_secs(60);

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

/// Waits until something is so.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Name and id of each process that this one has started, and that runs.
fn children(of: &Child) -> Vec<(String, u32)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc is mounted").flatten() {
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((before, fields)) = stat.rsplit_once(") ") else { continue };
        let Some((pid, name)) = before.split_once(" (") else { continue };
        let mut fields = fields.split(' ');
        let (state, parent) = (fields.next(), fields.next());
        if state != Some("Z") && parent == Some(&of.id().to_string()) {
            found.push((name.to_owned(), pid.parse().expect("an id")));
        }
    }
    found
}

/// The control groups that a process of `truth` has made, found by their name.
fn groups(of: &Child, below: &Path) -> Vec<PathBuf> {
    let prefix = format!("plimsoll-truth-{}-", of.id());
    let mut found = Vec::new();
    for entry in fs::read_dir(below).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            found.push(entry.path());
        }
        found.extend(groups(of, &entry.path()));
    }
    found
}

#[test]
fn nothing_is_left_of_a_case_that_is_interrupted() {
    let folder = std::env::temp_dir().join(format!("truth-test-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a temporary folder");
    // In place of the command: a program that does not end by itself.
    let endless = folder.join("endless");
    fs::write(&endless, "#!/bin/sh\nexec sleep 600\n").expect("it is written");
    fs::set_permissions(&endless, fs::Permissions::from_mode(0o755)).expect("it is ours");
    let is_grouped = fs::create_dir("/sys/fs/cgroup/memory/plimsoll-truth-test")
        .and_then(|()| fs::remove_dir("/sys/fs/cgroup/memory/plimsoll-truth-test"))
        .is_ok();
    if !is_grouped {
        println!("control groups are not looked at: none can be made here");
    }
    let case = if is_grouped { "cgroup-memory" } else { "server-limit-close-probed" };
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let mut truth = Command::new(env!("CARGO_BIN_EXE_truth"))
            .args(["--only", case, "--plimsoll", endless.to_str().expect("text")])
            .stdout(Stdio::null())
            .spawn()
            .expect("the program was built with this test");
        let mut started = Vec::new();
        until("server and command run", || {
            started = children(&truth);
            let runs = |name: &str| started.iter().any(|(one, _)| one == name);
            runs("faulty") && runs("sleep")
        });
        assert_eq!(groups(&truth, Path::new("/sys/fs/cgroup")).len(), usize::from(is_grouped));
        sys::signal(&truth, signal).expect("it runs");
        assert_eq!(truth.wait().expect("it is a child of ours").code(), Some(130));
        for (name, pid) in started {
            assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{name} is left");
        }
        assert_eq!(groups(&truth, Path::new("/sys/fs/cgroup")), Vec::<PathBuf>::new());
    }
    fs::remove_dir_all(&folder).expect("it is ours");
}
