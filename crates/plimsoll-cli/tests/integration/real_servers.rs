//! Servers that others wrote: nginx and redis-server, each started here on a port of its own. Where
//! one is not installed, its tests say so and pass.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::common::{self, PATIENCE, Process, free_port, plimsoll, result, text, until};

const GET: &str = "GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n";
const NGINX: [&str; 6] = ["--send", GET, "--expect", "HTTP/1.1 200", "--reply-until", "</html>\\n"];
const REDIS: [&str; 4] = ["--send", "PING\\r\\n", "--expect", "+PONG\\r\\n"];

/// A server and its folder.
struct Server {
    process: Process,
    address: SocketAddr,
    folder: TempDir,
}

impl Server {
    /// Starts `program` with as many descriptors as it can have; its folder is `{}` in the
    /// arguments. `None`, with the reason printed, where it is not installed.
    fn start(
        program: &str,
        files: &[(&str, String)],
        port: u16,
        arguments: &[&str],
    ) -> Option<Self> {
        let Some(path) = installed(program) else {
            println!("skipped: {program} is not installed");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().to_str().unwrap();
        for (name, content) in files {
            fs::write(folder.path().join(name), content.replace("{}", there)).unwrap();
        }
        let child = Command::new("sh")
            .args(["-c", "ulimit -n $(ulimit -Hn); exec \"$0\" \"$@\""])
            .arg(path)
            .args(arguments.iter().map(|argument| argument.replace("{}", there)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("there is a shell");
        let mut process = Process(child);
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        until(&format!("{program} listens"), || {
            let ended = process.0.try_wait().expect("it is a child of ours");
            assert!(ended.is_none(), "{program} ended: {ended:?}");
            TcpStream::connect(address).is_ok()
        });
        Some(Self { process, address, folder })
    }

    fn nginx() -> Option<Self> {
        let port = free_port();
        let conf = format!(
            "daemon off; worker_processes 1; pid {{}}/pid; error_log {{}}/error.log;\n\
             {} events {{ worker_connections 20000; }}\n\
             http {{ access_log off; keepalive_requests 1000000000; keepalive_timeout 600s;\n\
             client_body_temp_path {{}}/body; proxy_temp_path {{}}/proxy;\n\
             fastcgi_temp_path {{}}/fastcgi; uwsgi_temp_path {{}}/uwsgi;\n\
             scgi_temp_path {{}}/scgi;\n\
             server {{ listen 127.0.0.1:{port} backlog=4096; root {{}}; }} }}\n",
            // The folder is root's, and closed to the user that nginx would change to.
            if is_root() { "user root;" } else { "" }
        );
        let page = "<!doctype html>\n<html><body><p>A small page.</p></body></html>\n".to_owned();
        let files = [("nginx.conf", conf), ("index.html", page)];
        Self::start(
            "nginx",
            &files,
            port,
            &["-p", "{}", "-c", "{}/nginx.conf", "-e", "{}/early.log"],
        )
    }

    fn redis() -> Option<Self> {
        let port = free_port();
        let number = port.to_string();
        let arguments = [
            "--port",
            &number,
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            "{}",
            "--daemonize",
            "no",
            "--logfile",
            "{}/log",
            "--protected-mode",
            "no",
        ];
        Self::start("redis-server", &[], port, &arguments)
    }

    fn target(&self) -> String {
        self.address.to_string()
    }

    fn pid(&self) -> String {
        self.process.pid().to_string()
    }

    /// Everything a result needs to be of use, in the folder that `--out` named.
    fn survey(&self, exchange: &[&str]) -> Value {
        let out = self.folder.path().join("report");
        let (target, pid) = (self.target(), self.pid());
        let out_text = out.to_str().unwrap();
        let run = ["survey", "--target", &target, "--server-pid", &pid, "--connections", "200"];
        let output = plimsoll(&[&run[..], &["--quiet", "--out", out_text], exchange].concat());
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let shown = text(&output.stdout);
        assert!(shown.contains(&format!("The load line of {target}")), "{shown}");
        let report = fs::read_to_string(out.join("report.html")).expect("the report is there");
        assert!(report.trim_end().ends_with("</html>"), "the report is whole");
        assert!(report.contains(&target) && report.contains("<svg"));
        let results = fs::read(out.join("results.json")).expect("the figures are there");
        let document = common::document(&results);
        assert_eq!((&document["command"], &document["partial"]), (&"survey".into(), &false.into()));
        document["result"].clone()
    }
}

/// The program's path: as the shell finds it, or where Debian keeps what is root's.
fn installed(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"))
}

#[track_caller]
fn holds_a_thousand(server: &Server, exchange: &[&str]) {
    let (target, pid) = (server.target(), server.pid());
    let run = ["capacity", "--target", &target, "--server-pid", &pid, "--connections", "1000"];
    let held = result(&[&run[..], &["--probe"], exchange].concat());
    assert_eq!((&held["established"], &held["alive"]), (&1000.into(), &1000.into()), "{held}");
    assert_eq!((&held["probed"], &held["stopped_by"]), (&true.into(), &"limit".into()), "{held}");
    assert_eq!(held["errors"], serde_json::json!({}));
    assert!(held["user_bytes_per_connection"].as_f64() > Some(100.0), "{held}");
}

#[track_caller]
fn carries_a_load(server: &Server, exchange: &[&str]) {
    let (target, pid) = (server.target(), server.pid());
    let run = ["load", "--target", &target, "--server-pid", &pid, "--connections", "20"];
    let load = result(&[&run[..], &["--duration", "1s"], exchange].concat());
    assert_eq!((&load["established"], &load["corrupt"]), (&20.into(), &0.into()), "{load}");
    assert_eq!(load["errors"], serde_json::json!({}), "{load}");
    assert!(load["messages"].as_u64() > Some(100), "{load}");
    assert!(load["server_cpu_us_per_message"].as_f64() > Some(0.0), "{load}");
}

#[track_caller]
fn is_surveyed(server: &Server, exchange: &[&str]) {
    let survey = server.survey(exchange);
    let line = &survey["load_line"];
    assert_eq!(line["connections"], 200, "{line}");
    assert!(line["messages_per_second"].as_f64() > Some(100.0), "{line}");
    assert_eq!(survey["load_curve"].as_array().map(Vec::len), Some(3), "1, 10, 100 connections");
    let skipped = survey["skipped"].as_object().expect("a table");
    let why = |name: &str| skipped.get(name).and_then(Value::as_str).unwrap_or_default();
    assert_eq!(skipped.len(), 2, "{skipped:?}");
    assert!(why("churn").contains("needs an echo server"), "{skipped:?}");
    assert!(why("plan").contains("200 connections"), "too few to tell their cost: {skipped:?}");
}

#[test]
fn nginx_holds_connections_and_carries_a_load() {
    let Some(nginx) = Server::nginx() else { return };
    holds_a_thousand(&nginx, &NGINX);
    carries_a_load(&nginx, &NGINX);
}

#[test]
fn nginx_is_surveyed() {
    let Some(nginx) = Server::nginx() else { return };
    is_surveyed(&nginx, &NGINX);
}

#[test]
fn redis_holds_connections_and_carries_a_load() {
    let Some(redis) = Server::redis() else { return };
    holds_a_thousand(&redis, &REDIS);
    carries_a_load(&redis, &REDIS);
}

#[test]
fn redis_is_surveyed() {
    let Some(redis) = Server::redis() else { return };
    is_surveyed(&redis, &REDIS);
}

#[test]
fn the_invoice_of_redis_counts_what_it_holds() {
    let Some(redis) = Server::redis() else { return };
    let held: Vec<TcpStream> = (0..100)
        .map(|_| {
            let mut stream = TcpStream::connect(redis.address).expect("it listens");
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(b"PING\r\n").unwrap();
            let mut reply = [0; 7];
            stream.read_exact(&mut reply).expect("it answers");
            assert_eq!(&reply, b"+PONG\r\n");
            stream
        })
        .collect();
    let invoice = result(&["explain", &redis.pid()]);
    let listeners = invoice["listeners"].as_array().expect("a list");
    let ours = listeners.iter().find(|one| one["address"] == redis.target().as_str());
    assert!(
        ours.is_some_and(|one| one["depth"] == 0 && one["limit"].as_u64() > Some(0)),
        "{invoice}"
    );
    assert_eq!(invoice["connections"]["established"].as_u64(), Some(100), "{invoice}");
    assert!(invoice["descriptors"].as_u64() > Some(100), "{invoice}");
    drop(held);
}

/// What speaks no echo is told from a server that breaks, before anything is measured.
#[test]
fn a_server_that_speaks_otherwise_is_refused_with_the_cure() {
    let Some(redis) = Server::redis() else { return };
    let out = redis.folder.path().join("never");
    let target = redis.target();
    let run = ["survey", "--quiet", "--timeout", "1s", "--out", out.to_str().unwrap()];
    common::refused(&[&run[..], &["--target", &target]].concat(), 4, &[&target, "--send", "cure"]);
}
