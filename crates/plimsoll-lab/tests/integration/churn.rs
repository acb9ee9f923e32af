//! `churn` against the real kernel: a plain server, one that closes first, bad ones. Against the
//! embedded ones it is tested with the command, which they are.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use plimsoll_lab::experiments::churn::{self, Closes, Options, Pool};
use plimsoll_lab::{Lab, Quiet};

use crate::common::turn;

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
fn a_plain_echo_server_as_target() {
    let _turn = turn(module_path!());
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
        // Its pool, if it has one, says nothing.
        assert_eq!((variant.server_pool_hits, variant.server_pool_misses), (None, None));
        assert_eq!(variant.server_pools, None);
    }
    let pools: Vec<_> = result.variants.iter().map(|one| one.pool.as_str()).collect();
    assert_eq!(pools, ["off", "on", "off", "on"]);
    assert!(result.explanation.iter().any(|line| line.contains("the pool is the client's alone")));
}

#[test]
fn a_target_that_closes_first() {
    let _turn = turn(module_path!());
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
    let _turn = turn(module_path!());
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
