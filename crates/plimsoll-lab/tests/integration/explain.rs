//! `explain` on this process, on redis-server, and on nobody.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use plimsoll_lab::advice::explain;

use crate::common::turn;

/// Ends the server with the test, also when it fails.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The tests run side by side: each looks among ports of its own.
fn free_port(from: u16) -> u16 {
    // Below the clients' ports, so that none of them holds it meanwhile.
    (from..from + 1000).find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

#[test]
fn redis_with_a_hundred_connections() {
    let _turn = turn(module_path!());
    let port = free_port(20_000);
    let command = Command::new("redis-server")
        .args([
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--daemonize",
            "no",
        ])
        .stdout(Stdio::null())
        .spawn();
    let Ok(child) = command else {
        println!("skipped: redis-server is not installed");
        return;
    };
    let server = Server(child);
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut clients = Vec::new();
    while clients.len() < 100 {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(mut client) => {
                // Answered: so accepted, and not in the queue.
                client.write_all(b"PING\r\n").unwrap();
                client.read_exact(&mut [0; 7]).unwrap();
                clients.push(client);
            }
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            Err(error) => panic!("redis-server does not answer: {error}"),
        }
    }
    let result = explain::run(server.0.id()).unwrap();
    let text = explain::render_text(&result);
    println!("{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    assert_eq!(result.name, "redis-server");
    assert_eq!(result.listeners.len(), 1);
    assert_eq!(result.listeners[0].address, format!("127.0.0.1:{port}"));
    assert_eq!((result.listeners[0].depth, result.listeners[0].rotten), (0, Some(0)));
    assert!(result.listeners[0].limit > 0);
    assert_eq!(result.connections.get("established"), Some(&100));
    assert!(result.rss_bytes.unwrap() > 1 << 20);
    assert!(result.descriptors.unwrap() > 100);
    assert!(!result.headroom.is_empty() && result.first_limit.is_some());
    if std::fs::read("/proc/slabinfo").is_ok() {
        let of = |name: &str| result.objects.iter().find(|one| one.name == name);
        assert_eq!(of("TCP").unwrap().objects, 100);
        assert!(of("eventpoll_epi").is_none_or(|one| one.objects >= 100));
        let each = result.kernel_bytes.unwrap() / 100;
        assert!((2000..20_000).contains(&each), "{each}");
    } else {
        println!("kernel bytes not checked: /proc/slabinfo is root's");
    }
}

#[test]
fn this_process_and_its_queue() {
    let _turn = turn(module_path!());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let waiting: Vec<_> = (0..5).map(|_| TcpStream::connect(address).unwrap()).collect();
    let gone = TcpStream::connect(address).unwrap();
    drop(gone);
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let result = explain::run(std::process::id()).unwrap();
        let found = result.listeners.iter().find(|one| one.address == address.to_string()).unwrap();
        assert_eq!(found.depth, 6);
        if found.rotten == Some(1) {
            assert!(result.connections["established"] >= 5);
            // Its own clients' sockets are connections it has made.
            assert!(result.connections["outgoing_established"] >= 5);
            break;
        }
        assert!(Instant::now() < deadline, "{result:?}");
    }
    drop(waiting);
}

#[test]
fn nginx_by_its_master() {
    let _turn = turn(module_path!());
    let folder = tempfile::tempdir().unwrap();
    let port = free_port(22_000);
    let path = folder.path().display();
    let config = folder.path().join("nginx.conf");
    let text = format!(
        "daemon off; worker_processes 2; pid {path}/pid; error_log {path}/log;\n\
         events {{ worker_connections 1000; }}\n\
         http {{ access_log off; client_body_temp_path {path}/b; proxy_temp_path {path}/p;\n\
         fastcgi_temp_path {path}/f; uwsgi_temp_path {path}/u; scgi_temp_path {path}/s;\n\
         server {{ listen 127.0.0.1:{port}; return 200 'x'; }} }}\n"
    );
    std::fs::write(&config, text).unwrap();
    let command = Command::new("nginx")
        .args(["-p", &path.to_string(), "-c", &config.display().to_string()])
        .stderr(Stdio::null())
        .spawn();
    let Ok(child) = command else {
        println!("skipped: nginx is not installed");
        return;
    };
    let mut server = Server(child);
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut clients = Vec::new();
    while clients.len() < 20 {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(mut client) => {
                client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
                assert!(client.read(&mut [0; 4096]).unwrap() > 0);
                clients.push(client);
            }
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            Err(error) => panic!("nginx does not answer: {error}"),
        }
    }
    let pid = server.0.id();
    let result = explain::run(pid).unwrap();
    println!("{}", explain::render_text(&result));
    assert_eq!(result.listeners.len(), 1);
    assert_eq!(result.connections.get("established"), Some(&20));
    // The two workers' limits together; the master serves nobody.
    let own = plimsoll_kernel::limits::Limits::of(pid).unwrap().nofile.unwrap().soft;
    assert_eq!(result.descriptors_limit, Some(own.saturating_mul(2)));
    // The master ends its workers when it is asked to, not when it is killed.
    let terminated = rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid as i32).unwrap(),
        rustix::process::Signal::TERM,
    );
    terminated.unwrap();
    server.0.wait().unwrap();
}

#[test]
fn nobody_is_a_clear_error() {
    let _turn = turn(module_path!());
    for pid in [u32::MAX, 4_194_304 + 1] {
        let error = explain::run(pid).unwrap_err();
        assert_eq!(error.exit_code(), 4, "{error}");
        assert!(error.to_string().contains("no process"), "{error}");
    }
}
