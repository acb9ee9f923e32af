//! What a case is: data that says what is provoked, and what is right to say of it.

use std::time::Duration;

use crate::judge::Check;

/// One limit that is provoked on purpose.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    /// Its name, for `--only`; unique.
    pub(crate) name: &'static str,
    /// What it provokes, in a few words.
    pub(crate) provokes: &'static str,
    /// When it may run.
    pub(crate) kind: Kind,
    /// What surrounds server and client.
    pub(crate) places: &'static [Place],
    /// The flags of `faulty`; `None` where `plimsoll` uses its embedded server.
    pub(crate) server: Option<&'static [&'static str]>,
    /// The arguments of `plimsoll`; `--target` and `--json` are added.
    pub(crate) command: &'static [&'static str],
    /// What happens while `plimsoll` runs.
    pub(crate) event: Option<Event>,
    /// What is right: all checks of one of these lists.
    pub(crate) expected: &'static [&'static [Check]],
}

impl Case {
    /// A quick case with a server without faults, in no special place: what others are made of.
    pub(crate) const PLAIN: Self = Self {
        name: "",
        provokes: "",
        kind: Kind::Quick,
        places: &[],
        server: Some(&[]),
        command: &[],
        event: None,
        expected: &[],
    };

    /// What is right, as a verdict: `queue_full / server or cpu / server`.
    pub(crate) fn verdict(&self) -> String {
        let mut verdicts: Vec<String> = Vec::new();
        for checks in self.expected {
            let stops = checks.iter().find_map(|check| match check {
                Check::Stopped(stops) => {
                    Some(stops.iter().map(|(by, side)| named(by, *side)).collect())
                }
                _ => None,
            });
            let exit = checks.iter().find_map(|check| match check {
                Check::Exit(codes) => {
                    Some(codes.iter().map(|code| format!("exit {code}")).collect())
                }
                _ => None,
            });
            let quote = checks.iter().find_map(|check| match check {
                Check::Quotes(_) => Some(vec!["its words quoted".to_owned()]),
                _ => None,
            });
            for verdict in stops.or(exit).or(quote).unwrap_or_default() {
                if !verdicts.contains(&verdict) {
                    verdicts.push(verdict);
                }
            }
        }
        verdicts.join(" or ")
    }

    /// Whether a machine-wide limit is changed: such a case runs alone.
    pub(crate) fn is_machine_wide(&self) -> bool {
        self.kind == Kind::MachineWide
    }
}

/// A verdict in words; without a side where the side does not matter.
pub(crate) fn named(by: &str, side: Option<&str>) -> String {
    match side {
        Some(side) => format!("{by} / {side}"),
        None => by.to_owned(),
    }
}

/// When a case may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A few seconds, and nothing but its own processes is touched: part of `--quick`.
    Quick,
    /// Longer, or with files of the system that a test should leave alone.
    Long,
    /// Changes a limit of the whole machine, and restores it.
    MachineWide,
}

/// A condition that server or client run under.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    /// `plimsoll` is told the server's process.
    GivenPid,
    /// The server is not root's.
    UnprivilegedServer,
    /// Both are in a network namespace of their own.
    Namespace,
    /// A setting of that namespace: its path below `/proc/sys`, and the value.
    NamespaceSetting(&'static str, &'static str),
    /// Rules for nft(8) in that namespace; `{port}` is the server's.
    Firewall(&'static [&'static str]),
    /// `plimsoll` is in a namespace of processes that the server is not in.
    HiddenProcess,
    /// So it is, and the server is in another network namespace, behind a wire that takes
    /// 5 ms each way.
    HiddenServer,
    /// The server's control group may use so much memory, in bytes. At the limit the kernel
    /// kills, or (`false`) has the server wait.
    ServerMemory(u64, OnLimit),
    /// The server's control group may have so many tasks.
    ServerTasks(u64),
    /// `RLIMIT_NOFILE` of `plimsoll`, soft and hard.
    ClientDescriptors(u64),
    /// A setting of the machine: its path below `/proc/sys`, and the value.
    MachineSetting(&'static str, &'static str),
    /// `fs.file-max` is lowered to so many files more than are open once the server listens.
    FilesLeft(u64),
}

/// What the kernel does when a control group has no memory left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnLimit {
    /// It kills a process of the group.
    Kill,
    /// It has the process wait (`memory.oom_control`).
    Wait,
}

/// What happens meanwhile.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    /// The server is continued so long after it was seen to be stopped (state T).
    ContinueServer(Duration),
    /// `plimsoll` is interrupted (SIGINT) so long after its start.
    InterruptPlimsoll(Duration),
    /// The server is stopped (SIGSTOP) so long after it had so many descriptors open, and
    /// continued after a time; `None`: never.
    StopServer {
        /// Open descriptors to wait for.
        descriptors: usize,
        /// The time from then to the stop.
        delay: Duration,
        /// The time from the stop to the end of it.
        length: Option<Duration>,
    },
    /// The server is killed so long after it had so many descriptors open.
    KillServer {
        /// Open descriptors to wait for.
        descriptors: usize,
        /// The time after that.
        delay: Duration,
    },
}
