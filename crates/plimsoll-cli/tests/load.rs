//! `load` against servers that do what real ones do under load: they stall, close connections, turn
//! clients away in words, crash. Most are a few lines of std's sockets in a thread of the test.

#![cfg(target_os = "linux")]

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{Process, Serve, command, free_port, plimsoll, refused, result, text, until};
use serde_json::{Value, json};

/// A server of one thread for each connection, as long as the test runs.
fn server(serve: impl Fn(TcpStream, u64) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().flatten().enumerate() {
            let serve = serve.clone();
            stream.set_nodelay(true).unwrap();
            std::thread::spawn(move || serve(stream, number as u64));
        }
    });
    address.to_string()
}

/// Echoes until the client ends. `before` is called before each reply is sent, with the bytes, which
/// it may change; `false` closes the connection instead.
fn echo(mut stream: TcpStream, mut before: impl FnMut(&mut Vec<u8>) -> bool) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        let mut bytes = buffer[..count].to_vec();
        if !before(&mut bytes) || stream.write_all(&bytes).is_err() {
            return;
        }
    }
}

/// Answers each HTTP request with what `reply` makes of its number on this connection; `None` closes.
fn http(stream: &TcpStream, reply: impl Fn(u64) -> Option<String>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    for number in 0.. {
        let mut line = String::new();
        loop {
            line.clear();
            if !matches!(reader.read_line(&mut line), Ok(1..)) {
                return;
            }
            if line == "\r\n" {
                break;
            }
            let first = line.starts_with("GET /page HTTP/1.1");
            assert!(first || line.contains(": "), "a field or the request: {line}");
        }
        let Some(reply) = reply(number) else { return };
        if { stream }.write_all(reply.as_bytes()).is_err() {
            return;
        }
    }
}

/// Runs `load` with `--json`; it must end with this code. Returns the result, whose account must be
/// right.
#[track_caller]
fn load(target: &str, arguments: &[&str], code: i32) -> Value {
    let run = [&["load", "--target", target, "--json", "--quiet"], arguments].concat();
    accounted(&plimsoll(&run), code)
}

#[track_caller]
fn accounted(output: &std::process::Output, code: i32) -> Value {
    let message = text(&output.stderr);
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(code), "{message}{shown}");
    let mut document: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let load = document["result"].take();
    let count = |name: &str| load[name].as_u64().unwrap_or_else(|| panic!("no {name}: {load}"));
    assert_eq!(count("due"), count("answered") + count("late") + count("lost"), "{load}");
    assert_eq!(count("messages"), count("answered"), "{load}");
    assert!(!load["evidence"].as_str().expect("there is evidence").is_empty(), "{load}");
    load
}

fn number(load: &Value, name: &str) -> f64 {
    load.pointer(name).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {name}: {load}"))
}

/// How many messages a `plimsoll serve` has received, from its metrics.
fn received(metrics: SocketAddr) -> u64 {
    let Ok(mut stream) = TcpStream::connect(metrics) else { return 0 };
    let mut page = String::new();
    let asked = stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n");
    if asked.and_then(|()| stream.read_to_string(&mut page)).is_err() {
        return 0;
    }
    let value = |line: &str| line.strip_prefix("plimsoll_received_messages_total ")?.parse().ok();
    page.lines().find_map(value).unwrap_or(0)
}

/// A `plimsoll serve`, and a load of it that has begun.
fn loaded(arguments: &[&str]) -> (Serve, Process) {
    let metrics = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let server = Serve::start(&["--metrics", &metrics.to_string()]);
    let target = server.address.to_string();
    let mut load = command(&["load", "--target", &target, "--json", "--quiet"]);
    load.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    let load = Process(load.spawn().expect("the command starts"));
    until("messages are echoed", || received(metrics) > 20);
    (server, load)
}

/// Waits for the end of a load.
#[track_caller]
fn ended(mut load: Process, code: i32) -> Value {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    load.0.stdout.take().expect("a pipe").read_to_end(&mut stdout).unwrap();
    load.0.stderr.take().expect("a pipe").read_to_end(&mut stderr).unwrap();
    let status = load.ended();
    accounted(&std::process::Output { status, stdout, stderr }, code)
}

#[test]
fn an_open_loop_counts_from_the_moment_at_which_a_message_was_due() {
    let server = Serve::start(&[]);
    let run = ["--rate", "20", "--duration", "2s"];
    let load = load(&server.address.to_string(), &run, 0);
    assert_eq!((&load["due"], &load["stopped_by"]), (&json!(40), &json!("limit")), "{load}");
    // Message n is intended at n/rate. One interval is 50 ms: half of it is far more than an echo.
    assert!(number(&load, "/latency_us/p50") < 25_000.0, "{load}");
    assert!(number(&load, "/client_cpu_us_per_message") > 0.0, "{load}");
    assert_eq!(load["complete"], true);
}

#[test]
fn several_threads_share_one_schedule() {
    let server = Serve::start(&[]);
    let run = ["--rate", "1000", "--duration", "1s", "--connections", "7", "--threads", "3"];
    let load = load(&server.address.to_string(), &run, 0);
    assert_eq!(
        (&load["due"], &load["lost"], &load["threads"]),
        (&json!(1000), &json!(0), &json!(3))
    );
    assert_eq!((&load["established"], &load["errors"]), (&json!(7), &json!({})), "{load}");
    refused(&["load", "--threads", "3", "--connections", "2"], 2, &["3 threads for 2 connections"]);
}

#[test]
fn a_message_that_is_due_just_before_the_end_is_sent() {
    let server = Serve::start(&[]);
    // Message 10 is intended 10 µs before the end.
    let run = ["--rate", "10.0001", "--duration", "1s", "--connections", "2"];
    let load = load(&server.address.to_string(), &run, 0);
    assert_eq!((&load["due"], &load["lost"]), (&json!(11), &json!(0)), "{load}");
}

#[test]
fn a_server_that_is_stopped_to_the_end_is_charged_for_every_message() {
    let (server, running) =
        loaded(&["--rate", "500", "--duration", "3s", "--timeout", "500ms", "--connections", "5"]);
    server.process.signal("STOP");
    let load = ended(running, 5);
    server.process.signal("CONT");
    assert_eq!(load["due"], 1500, "{load}");
    assert!(load["lost"].as_u64() > Some(0), "{load}");
    assert_eq!((&load["stopped_by"], &load["stopped_side"]), (&json!("timeout"), &json!("server")));
    assert!(load["evidence"].as_str().is_some_and(|text| text.contains("state T")), "{load}");
    // The oldest that is missing was waited for until the end and the time limit.
    assert!(number(&load, "/latency_us/max") > 500_000.0, "{load}");
}

#[test]
fn messages_that_could_not_even_be_sent_are_due_all_the_same() {
    // It answers a hundred messages, and then reads no more.
    let target = server(|mut stream, _| {
        let mut message = [0; 64];
        for _ in 0..100 {
            stream.read_exact(&mut message).unwrap();
            stream.write_all(&message).unwrap();
        }
        std::thread::sleep(common::PATIENCE);
    });
    let run = ["--rate", "20000", "--duration", "1s", "--timeout", "200ms", "--connections", "2"];
    let load = load(&target, &run, 5);
    assert_eq!((&load["due"], &load["answered"]), (&json!(20_000), &json!(200)), "{load}");
    assert_eq!(load["lost"], 19_800, "{load}");
    assert_eq!(load["errors"], json!({"overrun": 11_608, "reply_timeout": 8_192}), "{load}");
    assert!(number(&load, "/latency_us/p50") > 600_000.0, "{load}");
}

#[test]
fn a_server_that_is_killed_leaves_a_result_and_code_5() {
    let (mut server, running) = loaded(&["--duration", "60s", "--connections", "5"]);
    server.process.signal("KILL");
    server.process.ended();
    let load = ended(running, 5);
    assert_eq!(
        (&load["stopped_by"], &load["stopped_side"]),
        (&json!("server_ended"), &json!("server")),
        "{load}"
    );
    assert!(load["answered"].as_u64() > Some(0), "{load}");
    assert!(number(&load, "/duration") < 60.0 && load["duration_asked"] == 60.0, "{load}");
    assert_eq!(load["complete"], false);
}

#[test]
fn a_target_that_refuses_for_longer_than_the_time_limit_has_gone() {
    // The process stays: its listener and its connections do not.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let (mut first, _) = listener.accept().unwrap();
        let (mut second, _) = listener.accept().unwrap();
        let mut message = [0; 64];
        for _ in 0..100 {
            for stream in [&mut first, &mut second] {
                stream.read_exact(&mut message).unwrap();
                stream.write_all(&message).unwrap();
            }
        }
    });
    let run = ["--connections", "2", "--duration", "60s", "--timeout", "300ms"];
    let load = load(&address, &run, 5);
    assert_eq!(load["stopped_by"], "server_ended", "{load}");
    assert_eq!((&load["answered"], &load["lost"]), (&json!(200), &json!(2)), "{load}");
    assert!(load["evidence"].as_str().is_some_and(|text| text.contains("refused")), "{load}");
    // Where nothing was measured, the target is to blame.
    let again = [&["load", "--target", &address, "--quiet"], &run[..]].concat();
    refused(&again, 4, &["ECONNREFUSED"]);
}

#[test]
fn an_interrupted_load_writes_what_it_has() {
    let (server, running) = loaded(&["--rate", "1000", "--duration", "60s"]);
    running.signal("INT");
    let load = ended(running, 130);
    assert_eq!((&load["stopped_by"], &load["complete"]), (&json!("interrupted"), &json!(false)));
    assert!(load["answered"].as_u64() > Some(0) && number(&load, "/duration") < 60.0, "{load}");
    drop(server);
}

#[test]
fn a_server_that_is_too_slow_for_the_rate_is_late_and_loses_messages() {
    // 1,500 replies a second over all connections: one each time its moment has come.
    let (start, replies) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let target = server(move |mut stream, _| {
        let mut message = [0; 64];
        while stream.read_exact(&mut message).is_ok() {
            let now = start.elapsed().as_micros() as u64 * 1500 / 1_000_000;
            let turn = replies.fetch_max(now, Ordering::Relaxed).max(now);
            let turn = turn.max(replies.fetch_add(1, Ordering::Relaxed));
            let moment = Duration::from_micros(turn * 1_000_000 / 1500);
            std::thread::sleep(moment.saturating_sub(start.elapsed()));
            if stream.write_all(&message).is_err() {
                return;
            }
        }
    });
    let run = ["--rate", "3000", "--duration", "2s", "--timeout", "500ms", "--connections", "10"];
    let load = load(&target, &run, 5);
    assert_eq!(load["due"], 6000, "{load}");
    let (answered, lost) = (number(&load, "/answered"), number(&load, "/lost"));
    assert!((500.0..=3300.0).contains(&answered) && lost >= 1500.0, "{load}");
    assert!(load["late"].as_u64() > Some(0), "{load}");
    assert!(number(&load, "/latency_us/p50") > 300_000.0, "{load}");
    assert_ne!(load["stopped_by"], "limit", "{load}");
}

#[test]
fn connections_that_end_after_whole_replies_are_made_anew() {
    let target = server(|stream, _| {
        let mut left = 50;
        echo(stream, |_| {
            left -= 1;
            left >= 0
        });
    });
    for pace in [["--depth", "4"], ["--rate", "2000"]] {
        let run = [&["--connections", "4", "--duration", "1s"][..], &pace].concat();
        let load = load(&target, &run, 0);
        assert!(load["reconnects"].as_u64() > Some(4), "{load}");
        let counts = (&load["lost"], &load["corrupt"], &load["errors"]);
        assert_eq!(counts, (&json!(0), &json!(0), &json!({})), "{load}");
        assert!(number(&load, "/duration") >= 0.999, "{load}");
    }
}

#[test]
fn a_server_that_turns_clients_away_in_words_is_quoted() {
    let target = server(|mut stream, number| {
        if number < 3 {
            return echo(stream, |_| true);
        }
        let _ = stream.write_all(b"-ERR max number of clients reached\r\n");
    });
    let load = load(&target, &["--connections", "5", "--duration", "500ms"], 0);
    assert_eq!((&load["asked"], &load["established"]), (&json!(5), &json!(3)), "{load}");
    let said = json!([{"text": "-ERR max number of clients reached\\r\\n", "count": 2}]);
    assert_eq!(load["unexpected_replies"], said, "{load}");
    assert_eq!(load["errors"], json!({"unexpected_reply": 2}), "{load}");
    assert_eq!(
        (&load["corrupt"], &load["stopped_by"]),
        (&json!(0), &json!("server_limit")),
        "{load}"
    );
}

#[test]
fn bytes_that_differ_are_corrupt_and_end_with_code_1() {
    let target = server(|stream, _| {
        let mut replies = 0;
        echo(stream, |bytes| {
            replies += 1;
            bytes[0] ^= u8::from(replies == 20);
            true
        });
    });
    let load = load(&target, &["--connections", "1", "--duration", "500ms"], 1);
    assert!(load["corrupt"].as_u64() >= Some(1), "{load}");
    assert!(load["errors"]["corrupt"].as_u64() >= Some(1), "{load}");
    assert_eq!(load["unexpected_replies"], json!([]), "{load}");
}

#[test]
fn http_replies_end_by_length_by_chunks_and_with_their_connection() {
    let target = server(|stream, _| {
        http(&stream, |number| {
            let reply = match number {
                0 => "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
                1 => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
                2 => "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
                _ => return None,
            };
            Some(reply.into())
        });
    });
    let run = ["--http", "/page", "--connections", "3", "--duration", "500ms"];
    let kept = load(&target, &run, 0);
    assert_eq!((&kept["errors"], &kept["lost"]), (&json!({}), &json!(0)), "{kept}");
    assert_eq!(kept["verified"], "status", "{kept}");
    assert!(kept["reconnects"].as_u64() > Some(1) && kept["answered"].as_u64() > Some(6), "{kept}");
    let sent =
        (number(&kept, "/bytes_sent_per_second"), number(&kept, "/bytes_received_per_second"));
    assert!(sent.0 > sent.1 && sent.1 > 0.0, "{kept}");

    // One reply on each connection, which ends with it.
    let closing = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = closing.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in closing.incoming().flatten() {
            let mut head = [0; 4096];
            if matches!(stream.read(&mut head), Ok(1..)) {
                let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nuntil the end");
            }
        }
    });
    let run = ["--http", "/page", "--connections", "2", "--duration", "500ms"];
    let closed = load(&address.to_string(), &run, 0);
    assert_eq!((&closed["errors"], &closed["lost"]), (&json!({}), &json!(0)), "{closed}");
    let (reconnects, answered) = (closed["reconnects"].as_u64(), closed["answered"].as_u64());
    assert!(reconnects >= answered.map(|count| count - 2) && answered > Some(2), "{closed}");
}

#[test]
fn an_http_status_other_than_success_is_quoted() {
    let busy = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy";
    let target = server(move |stream, _| http(&stream, |_| Some(busy.into())));
    let run = ["load", "--target", &target, "--http", "/page", "--duration", "300ms", "--quiet"];
    refused(&run, 4, &["HTTP/1.1 503 Service Unavailable", "instead of the expected reply"]);
    let target = server(move |stream, _| {
        http(&stream, |number| {
            let fine = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
            Some(if number == 10 { busy } else { fine }.into())
        });
    });
    let run = ["--http", "/page", "--connections", "2", "--duration", "500ms", "--timeout", "1s"];
    let load = load(&target, &run, 5);
    let said = json!([{"text": "HTTP/1.1 503 Service Unavailable", "count": 2}]);
    assert_eq!(load["unexpected_replies"], said, "{load}");
    assert_eq!((&load["stopped_by"], &load["lost"]), (&json!("server_limit"), &json!(2)), "{load}");
}

#[test]
fn the_client_s_own_limits_are_found_before_the_run() {
    let target = server(|stream, _| echo(stream, |_| true));
    for limit in ["64", "20"] {
        let line = format!("ulimit -n {limit}; exec \"$0\" \"$@\"");
        let program = command(&[]).get_program().to_owned();
        let output = Command::new("sh")
            .args(["-c", &line])
            .arg(program)
            .args(["load", "--target", &target, "--connections", "100", "--quiet"])
            .output()
            .expect("there is a shell");
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{message}");
        for word in ["the client", "RLIMIT_NOFILE", limit, "cure"] {
            assert!(message.contains(word), "no `{word}` in: {message}");
        }
    }
}

#[test]
fn a_hundred_connections_carry_messages_of_a_mebibyte() {
    let run = ["load", "--size", "1MiB", "--connections", "100", "--duration", "1s"];
    let load = result(&run);
    assert_eq!((&load["established"], &load["errors"]), (&json!(100), &json!({})), "{load}");
    let counts = (&load["corrupt"], &load["lost"]);
    assert_eq!(counts, (&json!(0), &json!(0)), "{load}");
}

#[test]
fn the_text_says_what_was_verified_and_held_it_back() {
    let target = server(|mut stream, _| {
        let mut request = [0; 6];
        while stream.read_exact(&mut request).is_ok() {
            if stream.write_all(b"+PONG and more\r\n").is_err() {
                return;
            }
        }
    });
    let ping = ["--send", "PING\\r\\n", "--expect", "+PONG", "--reply-until", "\\r\\n"];
    let run = ["load", "--target", &target, "--duration", "300ms", "--quiet"];
    let shown = text(&plimsoll(&[&run[..], &ping].concat()).stdout);
    for word in
        ["the beginning of each reply verified", " sent, ", "received", "lost", "held back by"]
    {
        assert!(shown.contains(word), "no `{word}` in: {shown}");
    }
    assert!(!shown.contains("every byte") && !shown.contains("each way"), "{shown}");
}

/// Starts a server that others wrote, on a free port, with `{port}` and `{folder}` filled in; `None`,
/// with the reason printed, where it is not installed.
fn installed(
    program: &str,
    file: &str,
    arguments: &[&str],
) -> Option<(Process, String, tempfile::TempDir)> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let Some(path) = std::env::split_paths(&paths)
        .chain(["/usr/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
    else {
        println!("skipped: {program} is not installed");
        return None;
    };
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let filled = |text: &str| {
        text.replace("{port}", &port.to_string())
            .replace("{folder}", folder.path().to_str().unwrap())
    };
    std::fs::write(folder.path().join("conf"), filled(file)).unwrap();
    std::fs::write(folder.path().join("page"), "A small page.\n").unwrap();
    let child = Command::new(path)
        .args(arguments.iter().map(|argument| filled(argument)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let mut process = Process(child);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    until(&format!("{program} listens"), || {
        let ended = process.0.try_wait().expect("it is a child of ours");
        assert!(ended.is_none(), "{program} ended: {ended:?}");
        TcpStream::connect(address).is_ok()
    });
    Some((process, address.to_string(), folder))
}

/// As Debian's, but for where its files are: `keepalive_requests` has its default of 1,000.
const NGINX: &str =
    "daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
    events { worker_connections 1000; }
    http { access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server { listen 127.0.0.1:{port}; location / { return 200 'A small page.'; } } }";

#[test]
fn nginx_that_closes_each_connection_after_its_thousand_requests_runs_to_the_end() {
    let arguments = ["-p", "{folder}", "-c", "{folder}/conf", "-e", "{folder}/early.log"];
    let Some((process, target, _folder)) = installed("nginx", NGINX, &arguments) else { return };
    let run = ["--http", "/", "--connections", "2", "--duration", "2s"];
    let load = load(&target, &run, 0);
    assert_eq!((&load["errors"], &load["lost"]), (&json!({}), &json!(0)), "{load}");
    assert!(number(&load, "/duration") >= 1.999, "{load}");
    let most = load["answered"].as_u64().unwrap() / 1000;
    assert!(load["reconnects"].as_u64() <= Some(most + 2), "{load}");
    assert!(most < 3 || load["reconnects"].as_u64() > Some(0), "{load}");
    drop(process);
}

#[test]
fn redis_at_its_limit_of_clients_is_quoted() {
    let arguments = [
        "--port",
        "{port}",
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--dir",
        "{folder}",
        "--maxclients",
        "10",
    ];
    let Some((process, target, _folder)) = installed("redis-server", "", &arguments) else {
        return;
    };
    let ping = ["--send", "PING\\r\\n", "--expect", "+PONG\\r\\n"];
    let run = [&["--connections", "20", "--duration", "500ms"][..], &ping].concat();
    let load = load(&target, &run, 0);
    assert_eq!((&load["established"], &load["stopped_by"]), (&json!(10), &json!("server_limit")));
    let said = &load["unexpected_replies"][0];
    assert_eq!(said["text"], "-ERR max number of clients reached\\r\\n", "{load}");
    assert_eq!((&said["count"], &load["verified"]), (&json!(10), &json!("every_byte")), "{load}");
    drop(process);
}

const HAPROXY: &str = "defaults
    mode http
    timeout client 10s
    timeout server 10s
    timeout connect 10s
frontend here
    bind 127.0.0.1:{port}
    http-request return status 200 content-type text/plain string \"A small page.\"
";

#[test]
fn haproxy_answers_http() {
    let arguments = ["-db", "-f", "{folder}/conf"];
    let Some((process, target, _folder)) = installed("haproxy", HAPROXY, &arguments) else {
        return;
    };
    let load = load(&target, &["--http", "/", "--rate", "500", "--duration", "1s"], 0);
    assert_eq!((&load["errors"], &load["due"]), (&json!({}), &json!(500)), "{load}");
    drop(process);
}
