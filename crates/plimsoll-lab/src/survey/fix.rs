//! The command or setting that raises the limit that stopped an experiment.

use crate::results::{Doctor, Side, StoppedBy, SurveyedServer};
use crate::units;

/// What raises it: for a limit of this machine the doctor's command, which knows the values here, or
/// else the usual one; for a limit of a target's own, what is known of the target. `None` where
/// nothing was met, or nothing is known.
pub(super) fn fix(
    stopped: StoppedBy,
    side: Option<Side>,
    target: Option<&SurveyedServer>,
    doctor: &Doctor,
) -> Option<String> {
    match stopped {
        StoppedBy::QueueFull => Some(queue(target, doctor)),
        StoppedBy::Descriptors => Some(descriptors(side, target, doctor)),
        StoppedBy::Ports if cfg!(windows) => Some(known(
            doctor,
            "dynamic port range",
            "netsh int ipv4 set dynamicport tcp start=1025 num=64511",
        )),
        StoppedBy::Ports => Some(known(
            doctor,
            "ip_local_port_range",
            "sysctl -w net.ipv4.ip_local_port_range='1024 65535'",
        )),
        StoppedBy::TcpMem => {
            Some(known(doctor, "tcp_mem", "sysctl -w net.ipv4.tcp_mem='… … …' (in pages)"))
        }
        StoppedBy::LockedPages => Some(known(doctor, "memlock", "ulimit -l unlimited")),
        StoppedBy::Conntrack => Some(known(
            doctor,
            "nf_conntrack_max",
            "sysctl -w net.netfilter.nf_conntrack_max=1048576",
        )),
        StoppedBy::Memory => Some("more memory, or less of it in other processes".to_owned()),
        StoppedBy::Cgroup => Some("a higher memory.max of the control group".to_owned()),
        StoppedBy::Pids => {
            Some("a higher pids.max of the control group, or `ulimit -u`".to_owned())
        }
        StoppedBy::ServerLimit | StoppedBy::Refused => {
            Some("a higher limit on connections in the server's own settings".to_owned())
        }
        StoppedBy::IdleTimeout => {
            Some("a longer time limit for idle connections in the server's own settings".to_owned())
        }
        StoppedBy::Cpu
        | StoppedBy::ServerEnded
        | StoppedBy::Timeout
        | StoppedBy::Limit
        | StoppedBy::Interrupted
        | StoppedBy::Unknown => None,
    }
}

/// The doctor's command for a check, where it has one, or else the usual command.
fn known(doctor: &Doctor, name: &str, usual: &str) -> String {
    let check = doctor.checks.iter().find(|check| check.name.contains(name));
    check.and_then(|check| check.fix.clone()).unwrap_or_else(|| usual.to_owned())
}

/// The accept queue: of a target it is bounded by what the server asked for, or by the machine's
/// maximum, whichever is smaller.
fn queue(target: Option<&SurveyedServer>, doctor: &Doctor) -> String {
    if cfg!(windows) {
        return "listen with a larger hint: SOMAXCONN_HINT(N), 200 to 65535".to_owned();
    }
    let most = known(doctor, "net.core.somaxconn", "sysctl -w net.core.somaxconn=65535");
    let Some(granted) = target.and_then(|server| server.granted) else { return most };
    let check = doctor.checks.iter().find(|check| check.name == "net.core.somaxconn");
    let somaxconn = check.and_then(|check| check.value.as_ref()?.parse::<u64>().ok());
    let own = format!(
        "a larger backlog in the server's own settings (its listen(2) argument; {} were granted)",
        units::count(granted)
    );
    match somaxconn {
        Some(somaxconn) if granted < somaxconn => own,
        _ => format!("{own}, and the machine's: {most}"),
    }
}

fn descriptors(side: Option<Side>, target: Option<&SurveyedServer>, doctor: &Doctor) -> String {
    match (side, target) {
        (Some(Side::Both), _) => known(doctor, "fs.file-max", "sysctl -w fs.file-max=4000000"),
        (Some(Side::Server), Some(server)) => {
            let now =
                server.descriptors_limit.map(|limit| format!(", {} now", units::count(limit)));
            format!(
                "a higher limit on the server's descriptors (LimitNOFILE of its service, or `ulimit -n` \
                 before it starts{}), and its own setting that follows from it",
                now.unwrap_or_default()
            )
        }
        _ => known(doctor, "nofile (hard)", "ulimit -n 1000000"),
    }
}

#[cfg(all(test, not(windows)))]
mod tests {
    use super::*;
    use crate::report::fixture;

    #[test]
    fn the_queue_of_a_target_is_raised_where_it_is_bounded() {
        let doctor = fixture::survey().result.doctor.expect("the sample has it");
        let at = |granted| {
            let server = SurveyedServer { granted: Some(granted), ..SurveyedServer::default() };
            fix(StoppedBy::QueueFull, Some(Side::Server), Some(&server), &doctor).expect("a cure")
        };
        let own = at(511);
        assert!(own.contains("listen(2) argument; 511") && !own.contains("somaxconn"), "{own}");
        assert!(at(4096).contains("sysctl -w net.core.somaxconn=65535"));
        let machine = fix(StoppedBy::QueueFull, Some(Side::Server), None, &doctor).expect("a cure");
        assert!(machine.starts_with("sysctl -w net.core.somaxconn"), "{machine}");
    }

    #[test]
    fn descriptors_are_raised_on_the_side_that_lacks_them() {
        let doctor = Doctor::default();
        let server = SurveyedServer { descriptors_limit: Some(1024), ..SurveyedServer::default() };
        let of = |side| fix(StoppedBy::Descriptors, Some(side), Some(&server), &doctor).unwrap();
        assert!(of(Side::Server).contains("1,024 now"));
        assert!(of(Side::Both).contains("file-max"));
        assert!(of(Side::Client).starts_with("ulimit -n"));
    }

    #[test]
    fn what_did_not_bind_has_no_cure() {
        for stopped in [StoppedBy::Limit, StoppedBy::Interrupted, StoppedBy::Unknown] {
            assert_eq!(fix(stopped, None, None, &Doctor::default()), None);
        }
    }
}
