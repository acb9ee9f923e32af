//! A survey as a machine with two processors gives it, for tests.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::results::*;

/// A result from its JSON, as a file written by an earlier version is read: fields that were added
/// since have their defaults.
fn read<T: DeserializeOwned>(json: Value) -> T {
    serde_json::from_value(json).expect("the fixture is of this type")
}

fn map<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The whole document.
pub(crate) fn survey() -> Document<Survey> {
    Document {
        schema: SCHEMA.to_owned(),
        command: "survey".to_owned(),
        arguments: vec!["survey".to_owned()],
        target: None,
        version: "0.1.0".to_owned(),
        started: "2026-01-02T03:04:05Z".to_owned(),
        seconds: 81.4,
        machine: Machine {
            os: "linux".to_owned(),
            kernel: "6.18.0".to_owned(),
            architecture: "x86_64".to_owned(),
            cpu: Some("Example CPU @ 2.60GHz".to_owned()),
            cpus: 2,
            memory_bytes: Some(24 << 30),
            page_bytes: 4096,
            virtualised: Some(true),
            limits: map([
                ("nofile", "20000"),
                ("net.core.somaxconn", "4096"),
                ("net.ipv4.ip_local_port_range", "32768 60999"),
                ("net.ipv4.tcp_mem", "284205 378941 568410"),
            ]),
        },
        partial: false,
        result: Survey {
            target: "embedded".to_owned(),
            headline:
                "The accept queue gives way first, at 4,097 connections that wait unaccepted on \
                       one listener; what raises it: sysctl -w net.core.somaxconn=65535."
                    .to_owned(),
            server: None,
            compared: Some(Compared::EveryByte),
            interrupted: None,
            load_line: LoadLine {
                connections: Some(15_000),
                messages_per_second: Some(271_300.0),
                accepts_per_second: Some(604_000.0),
                queued: Some(4097),
                user_bytes_per_connection: Some(212.0),
                kernel_bytes_per_connection: Some(3896.0),
            },
            summary: vec![
                "15,000 connections were held at once, all alive; the survey asked for no more."
                    .to_owned(),
                "The accept queue is full at 4,097: net.core.somaxconn caps every listener."
                    .to_owned(),
                "One acceptor takes 604,000 connections/s from a full queue.".to_owned(),
            ],
            breaks_first: findings(),
            doctor: Some(doctor()),
            backlog: Some(backlog()),
            accept: None,
            capacity: Some(capacity()),
            load: Some(load(100, 271_300.0, 330.0)),
            load_curve: vec![
                load(1, 24_900.0, 36.0),
                load(10, 118_000.0, 78.0),
                load(100, 271_300.0, 330.0),
                load(1000, 248_700.0, 3800.0),
                load(10_000, 170_200.0, 55_000.0),
            ],
            churn: Some(churn()),
            plan: Some(plan()),
            skipped: map([("explain", "it needs the process of a running server (--server-pid)")]),
        },
    }
}

/// A target's: what cannot be measured on it is not there.
pub(crate) fn target() -> Document<Survey> {
    let mut document = survey();
    document.arguments = ["survey", "--target", "127.0.0.1:6379", "--send", "PING\\r\\n"]
        .into_iter()
        .map(str::to_owned)
        .collect();
    document.target = Some(TargetServer {
        address: "127.0.0.1:6379".to_owned(),
        pid: Some(4711),
        name: Some("redis-server".to_owned()),
    });
    let survey = &mut document.result;
    survey.target = "127.0.0.1:6379".to_owned();
    survey.compared = Some(Compared::Beginning);
    survey.server = Some(SurveyedServer {
        address: survey.target.clone(),
        pid: Some(4711),
        process: Some("redis-server".to_owned()),
        processes: Some(1),
        listeners: Some(1),
        granted: Some(511),
        depth: Some(0),
        descriptors: Some(9),
        descriptors_limit: Some(10_032),
        memory_bytes: Some(9_000_000),
        shares_processors: Some(true),
        ..SurveyedServer::default()
    });
    survey.headline =
        "Nothing gave way: 15,000 connections were held at once, as many as were asked for."
            .to_owned();
    survey.load_line.accepts_per_second = None;
    survey.load_line.queued = None;
    (survey.doctor, survey.backlog, survey.churn, survey.plan) = (None, None, None, None);
    survey.breaks_first.retain(|finding| finding.experiment == "capacity");
    survey.summary.truncate(1);
    document
}

fn findings() -> Vec<Finding> {
    let finding = |experiment: &str, stopped_by, evidence: &str, fix: Option<&str>| Finding {
        experiment: experiment.to_owned(),
        stopped_by,
        evidence: evidence.to_owned(),
        fix: fix.map(str::to_owned),
    };
    vec![
        finding(
            "backlog",
            Some(StoppedBy::QueueFull),
            "The queue stood at 4,097 of 4,096 while ListenOverflows rose by 12: the kernel dropped \
             the SYNs of every further client.",
            Some("sysctl -w net.core.somaxconn=65535"),
        ),
        finding(
            "capacity",
            Some(StoppedBy::Limit),
            "15,000 of 15,000 connections were established and answered at the end.",
            None,
        ),
        finding(
            "load",
            Some(StoppedBy::Cpu),
            "Both processors were busy for 99 % of the time; the server took 3.6 µs a message.",
            None,
        ),
        finding(
            "plan",
            Some(StoppedBy::Descriptors),
            "150,000 connections need 150,064 descriptors; RLIMIT_NOFILE allows 20,000.",
            Some("ulimit -n 150064    # and in the service: LimitNOFILE=150064"),
        ),
    ]
}

fn doctor() -> Doctor {
    let check = |name: &str, value: &str, allows: &str, ok, fix: Option<&str>| Check {
        name: name.to_owned(),
        value: Some(value.to_owned()),
        allows: allows.to_owned(),
        ok,
        fix: fix.map(str::to_owned),
    };
    Doctor {
        connections: None,
        pinned: Vec::new(),
        pinned_reason: Some("nobody tried".into()),
        checks: vec![
            check("RLIMIT_NOFILE", "20000", "20,000 plain descriptors a process", true, None),
            check(
                "net.core.somaxconn",
                "4096",
                "4,097 connections queued on one listener",
                false,
                Some("sysctl -w net.core.somaxconn=65535"),
            ),
            check(
                "net.ipv4.ip_local_port_range",
                "32768 60999",
                "28,232 connections from one source address to one destination",
                true,
                Some("sysctl -w net.ipv4.ip_local_port_range='1024 65535'"),
            ),
            check(
                "fs.file-max",
                "2466177",
                "1,233,088 connections with both ends here",
                true,
                None,
            ),
        ],
    }
}

fn backlog() -> Backlog {
    let run = |requested: Option<i64>, granted: u64| -> BacklogRun {
        read(json!({
            "requested": requested,
            "granted": granted,
            "queued": granted + 1,
            "connects_ok": granted + 1,
            "stopped_by": "queue_full",
            "stopped_side": "server",
            "evidence": format!("the queue stood at {} of {granted}", granted + 1),
            "overflows": 12,
            "drops": 12,
            "rotten": 0,
            "connects_per_second": 48_000.0,
            "kernel_bytes_per_queued": (granted > 1000).then_some(2862.0),
            "source_addresses": 1,
            "errors": {},
            "kernel_objects": [],
            "samples": [],
        }))
    };
    Backlog {
        queued_max: 4097,
        runs: vec![
            run(None, 128),
            run(Some(16), 16),
            run(Some(128), 128),
            run(Some(1024), 1024),
            run(Some(4096), 4096),
            run(Some(65_535), 4096),
            run(Some(-1), 4096),
        ],
    }
}

fn capacity() -> Capacity {
    let object = |name: &str, object_bytes, per_connection: f64| KernelObject {
        name: name.to_owned(),
        objects: (30_000.0 * per_connection) as i64,
        object_bytes,
        per_connection,
    };
    let objects = vec![
        object("TCP", 2368, 1.0),
        object("sock_inode_cache", 832, 1.0),
        object("filp", 192, 1.0),
        object("dentry", 192, 1.0),
        object("kmalloc-256", 256, 0.5),
        object("lsm_inode_cache", 56, 1.0),
        object("eventpoll_epi", 128, 0.4),
    ];
    let sample = |step: u64| CapacitySample {
        seconds: step as f64 * 0.12,
        connections: step * 500,
        server_rss_bytes: Some(6_000_000 + step * 500 * 212),
        available_bytes: Some((20 << 30) - step * 500 * 8192),
        kernel_bytes: objects
            .iter()
            .map(|object| {
                let count = step as f64 * 1000.0 * object.per_connection;
                (object.name.clone(), (count * object.object_bytes as f64) as i64)
            })
            .collect(),
        queued: Some(0),
    };
    read(json!({
        "asked": 15_000,
        "attempted": 15_000,
        "established": 15_000,
        "alive": 15_000,
        "probed": true,
        "stopped_by": "limit",
        "stopped_side": "both",
        "evidence": "15,000 of 15,000 connections were established",
        "counter_proof": null,
        "user_bytes_per_connection": 212.0,
        "kernel_bytes_per_connection": 3896.0,
        "samples": (0..=30).map(sample).collect::<Vec<_>>(),
        "kernel_objects": objects,
        "connects_per_second": 41_000.0,
        "errors": {},
        "workers": 1,
        "source_addresses": 1,
    }))
}

fn load(connections: u64, rate: f64, p50: f64) -> Load {
    // A body close to the median, and a tail that grows with each nine.
    let distribution: Vec<(f64, f64)> = (0..60)
        .map(|step| {
            let nines = f64::from(step) * 0.085;
            (p50 * (0.7 + 0.28 * nines + 0.11 * nines.powi(3)), 1.0 - 10_f64.powf(-nines))
        })
        .collect();
    read(json!({
        "asked": connections,
        "established": connections,
        "messages": (rate * 2.0) as u64,
        "messages_per_second": rate,
        "bytes_per_second": rate * 64.0,
        "bytes": (rate * 128.0) as u64,
        "corrupt": 0,
        "errors": {},
        "latency_us": {
            "p50": p50, "p90": p50 * 1.4, "p99": p50 * 2.6, "p999": p50 * 4.9, "max": p50 * 14.0,
        },
        "server_cpu_us_per_message": 3.6,
        "loop_kind": "closed",
        "rate": null,
        "size": [64, 64],
        "depth": 1,
        "duration": 2.0,
        "distribution": distribution,
        "timeline": [],
    }))
}

fn churn() -> Churn {
    let variant = |pool: &str, closes: &str, rate: f64, server: u64, client: u64| -> ChurnVariant {
        let cycles = (rate * 3.0) as u64;
        let samples = (0..=30_u64).map(|step| {
            let share = step.min(20) as f64 / 20.0;
            (step as f64 * 0.1, (server as f64 * share) as u64, (client as f64 * share) as u64)
        });
        read(json!({
            "pool": pool,
            "closes": closes,
            "cycles_per_second": rate,
            "turns": [rate * 0.97, rate, rate * 1.02],
            "server_cpu_us_per_cycle": 10.5,
            "client_cpu_us_per_cycle": 14.0,
            "cycles": cycles,
            "errors": {},
            "time_wait_server": server,
            "time_wait_client": client,
            "pool_hits": if pool == "on" { cycles - 64 } else { 0 },
            "pool_misses": if pool == "on" { 64 } else { cycles },
            "parts_us": {},
            "time_wait_samples": samples.collect::<Vec<_>>(),
        }))
    };
    Churn {
        variants: vec![
            variant("on", "client", 88_000.0, 0, 0),
            variant("off", "client", 17_000.0, 0, 26_400),
            variant("on", "server", 21_500.0, 27_900, 0),
            variant("off", "server", 20_900.0, 28_200, 0),
        ],
        explanation: vec![
            "Reuse pays where the client closes first: connect(AF_UNSPEC) leaves no TIME_WAIT and \
             saves making a socket."
                .to_owned(),
        ],
    }
}

fn plan() -> Plan {
    let limit = |name: &str, unit: &str, needed, available, fix: Option<&str>| PlanLimit {
        name: name.to_owned(),
        unit: unit.to_owned(),
        side: Some(Side::Server),
        needed,
        available: Some(available),
        ok: needed <= available,
        fix: fix.map(str::to_owned),
        note: None,
    };
    Plan {
        connections: 150_000,
        arrivals: None,
        burst: None,
        kernel_bytes: 150_000 * 3896,
        user_bytes: 150_000 * 212,
        descriptors: 150_064,
        source_addresses: 6,
        backlog: None,
        fits: false,
        limits: vec![
            limit("RLIMIT_NOFILE", "descriptors", 150_064, 20_000, Some("ulimit -n 150064")),
            limit("memory", "bytes", 616_200_000, 21_474_836_480, None),
            limit("fs.file-max", "files", 300_000, 2_466_177, None),
        ],
        costs_from: "measured now".to_owned(),
    }
}
