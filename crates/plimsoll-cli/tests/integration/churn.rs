//! `churn` against the embedded servers, with and without their pools, and `serve --close-after`.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use serde_json::Value;

use crate::common::{Serve, plimsoll, result, text};

fn whole(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("a whole number: {value}"))
}

#[test]
fn every_variant_runs_against_a_server_of_its_kind() {
    let result = result(&["churn", "--duration", "1200ms"]);
    let variants = result["variants"].as_array().expect("a list");
    assert_eq!(variants.len(), 9);
    for variant in variants {
        let cycles = whole(&variant["cycles"]);
        assert!(cycles > 50, "{variant}");
        assert_eq!(variant["errors"], serde_json::json!({}), "{variant}");
        assert_eq!(variant["server"], "embedded");
        assert!(variant["turns"].as_array().is_some_and(|turns| turns.len() >= 4));
        assert!(variant["server_cpu_us_per_cycle"].as_f64().is_some_and(|cpu| cpu > 0.0));
        assert_eq!(variant["parts_us"].as_object().map(serde_json::Map::len), Some(4));
        time_waits(variant, cycles);
        pools(variant, cycles);
    }
    let explained = result["explanation"].to_string();
    for part in [
        "Pool (client closes)",
        "The server's pool alone (server closes)",
        "within a sweep",
        "What the server took was there before (client-reset closes): pool on,",
    ] {
        assert!(explained.contains(part), "{part}: {explained}");
    }
}

/// Who closes first by FIN holds the `TIME_WAIT`; a reset leaves none.
fn time_waits(variant: &Value, cycles: u64) {
    let (server, client) =
        (whole(&variant["time_wait_server"]), whole(&variant["time_wait_client"]));
    let most = cycles * 9 / 10;
    match (variant["closes"].as_str().unwrap(), variant["pool"].as_str().unwrap()) {
        ("client", _) => assert!(client > most && server == 0, "{variant}"),
        ("server", "off" | "server") => assert!(server > most && client == 0, "{variant}"),
        _ => assert_eq!((server, client), (0, 0), "{variant}"),
    }
}

/// The client's pool is used in `on` alone, the server's in `on` and `server`.
fn pools(variant: &Value, cycles: u64) {
    let client = (whole(&variant["pool_hits"]), whole(&variant["pool_misses"]));
    match variant["pool"].as_str() {
        Some("on") => assert!(client.0 > client.1 && client.1 > 0, "{variant}"),
        _ => assert_eq!(client, (0, 0), "{variant}"),
    }
    let server = (whole(&variant["server_pool_hits"]), whole(&variant["server_pool_misses"]));
    // A buffer for each message, at least.
    assert!(server.0 + server.1 >= cycles, "{variant}");
    match variant["pool"].as_str() {
        Some("off") => assert_eq!(server.0, 0, "{variant}"),
        _ => assert!(server.0 > 10 * server.1, "{variant}"),
    }
    let figures = &variant["server_pools"];
    assert_eq!(whole(&figures["block_hits"]), server.0);
    // Some slots were taken ahead, before the turn, for connections to be accepted into.
    let slots = whole(&figures["slot_hits"]) + whole(&figures["slot_misses"]);
    assert!(slots + 1000 >= cycles, "{variant}");
}

#[test]
fn the_text_fits_and_names_the_servers_share() {
    let output = plimsoll(&["churn", "--duration", "400ms", "--closes", "server", "--quiet"]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.lines().all(|line| line.chars().count() <= 100), "{said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("server ")).count(), 1, "{said}");
}

#[test]
fn a_server_closes_after_the_bytes_it_was_told() {
    let server = Serve::start(&["--close-after", "10"]);
    for parts in [&["0123456789"][..], &["0123", "456789"], &["0123", "456789more"]] {
        let mut stream = TcpStream::connect(server.address).unwrap();
        for part in parts {
            stream.write_all(part.as_bytes()).unwrap();
        }
        let mut echoed = String::new();
        stream.read_to_string(&mut echoed).unwrap();
        assert_eq!(echoed, "0123456789");
    }
}
