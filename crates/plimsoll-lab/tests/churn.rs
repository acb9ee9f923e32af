//! `churn` against the real kernel: the lab's own server, a plain one, and none.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use plimsoll_lab::churn::{self, Closes, Options, Pool};
use plimsoll_lab::{Lab, Quiet};

fn lab() -> Lab {
    Lab {
        progress: Arc::new(Quiet),
        interrupted: Arc::new(AtomicBool::new(false)),
        executable: PathBuf::new(),
    }
}

/// A server that treats each connection, one thread for each, as told. It ends with the test.
fn serve(each: fn(std::net::TcpStream)) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || each(stream));
        }
    });
    address
}

fn echo(mut stream: std::net::TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

#[test]
fn every_variant_against_the_labs_own_server() {
    let options = Options { duration: Duration::from_millis(1200), ..Options::default() };
    let (result, partial) = churn::run(&lab(), &options).unwrap();
    assert!(!partial);
    let text = churn::render_text(&result);
    println!("{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    assert_eq!(result.variants.len(), 6);
    for variant in &result.variants {
        assert!(variant.cycles > 50, "{variant:?}");
        assert!(variant.errors.is_empty(), "{variant:?}");
        assert_eq!(variant.server, "lab");
        assert!(variant.turns.len() >= 4);
        assert!(variant.server_cpu_us_per_cycle.unwrap() > 0.0);
        assert!(!variant.time_wait_samples.is_empty());
        let (server, client) =
            (variant.time_wait_server.unwrap(), variant.time_wait_client.unwrap());
        let most = variant.cycles * 9 / 10;
        match (variant.closes.as_str(), variant.pool.as_str()) {
            // Who closes first by FIN holds the TIME_WAIT; a reset leaves none.
            ("client", _) => assert!(client > most && server == 0, "{variant:?}"),
            ("server", "off") => assert!(server > most && client == 0, "{variant:?}"),
            _ => assert_eq!((server, client), (0, 0), "{variant:?}"),
        }
        if variant.pool == "on" {
            assert!(variant.pool_hits > variant.pool_misses && variant.pool_misses > 0);
        } else {
            assert_eq!((variant.pool_hits, variant.pool_misses), (0, 0));
        }
        assert_eq!(variant.parts_us.len(), 4);
        assert!(variant.parts_mean_us.values().sum::<f64>() > 0.0);
    }
    assert!(result.explanation.iter().any(|line| line.contains("within a sweep")));
}

#[test]
fn a_plain_echo_server_as_target() {
    let target = serve(echo);
    let options = Options {
        target: Some(target),
        server_pid: Some(std::process::id()),
        pool: Pool::Both,
        closes: Closes::Client,
        duration: Duration::from_millis(400),
        concurrency: 4,
        size: 5000,
        ..Options::default()
    };
    let (result, _) = churn::run(&lab(), &options).unwrap();
    assert_eq!(result.variants.len(), 4);
    for variant in &result.variants {
        assert!(variant.cycles > 10 && !variant.errors.contains_key("corrupt"), "{variant:?}");
        assert_eq!(variant.server, target.to_string());
        assert!(variant.server_cpu_us_per_cycle.unwrap() > 0.0);
    }
}

#[test]
fn a_target_that_closes_first() {
    let target = serve(|mut stream| {
        let mut buffer = [0; 64];
        if stream.read_exact(&mut buffer).is_ok() {
            let _ = stream.write_all(&buffer);
        }
    });
    let options = Options {
        target: Some(target),
        target_closes_first: true,
        duration: Duration::from_millis(300),
        concurrency: 4,
        ..Options::default()
    };
    let (result, _) = churn::run(&lab(), &options).unwrap();
    assert_eq!(result.variants.len(), 2);
    assert!(result.variants.iter().all(|one| one.closes == "server" && one.cycles > 10));
    assert!(result.variants.iter().all(|one| one.server_cpu_us_per_cycle.is_none()));
}

#[test]
fn bad_targets_are_told_apart() {
    let nobody = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let closer = serve(drop);
    let mute = serve(|stream| {
        thread::sleep(Duration::from_secs(10));
        drop(stream);
    });
    let liar = serve(|mut stream| {
        let _ = stream.write_all(&[0x55; 64]);
        let _ = stream.read(&mut [0; 64]);
        thread::sleep(Duration::from_secs(1));
    });
    for (target, part) in [
        (nobody, "nothing listens"),
        (closer, "close"),
        (mute, "did not answer"),
        (liar, "something other"),
    ] {
        let options = Options {
            target: Some(target),
            closes: Closes::Client,
            timeout: Duration::from_millis(200),
            ..Options::default()
        };
        let error = churn::run(&lab(), &options).unwrap_err();
        assert_eq!(error.exit_code(), 4, "{error}");
        let text = error.to_string();
        assert!(text.contains(part) || (part == "close" && text.contains("resets")), "{text}");
    }
}
