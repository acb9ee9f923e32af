//! What surrounds server and client in a case: made before, removed after.

mod cgroup;
mod network;
mod setting;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use plimsoll_peers::sys::child;
use plimsoll_peers::sys::tun::Wire;

use crate::case::{Case, OnLimit, Place};
use crate::{Halt, Result};
use cgroup::Cgroup;
use network::Network;
use setting::Setting;

/// The user and group `nobody`, of all systems that name them.
const NOBODY: u32 = 65534;
/// The ends of the wire to a hidden server.
const NEAR: &str = "10.83.0.1";
const FAR: Ipv4Addr = Ipv4Addr::new(10, 83, 0, 2);
/// How long a packet takes on it.
const DELAY: Duration = Duration::from_millis(5);

/// The conditions of a case, in force until this is dropped.
pub(crate) struct Surroundings {
    places: &'static [Place],
    /// Restored first.
    settings: Vec<Setting>,
    server_network: Option<Network>,
    /// Where it is another one than the server's.
    client_network: Option<Network>,
    groups: Vec<Cgroup>,
    /// Between the two.
    wire: Option<Wire>,
}

impl Surroundings {
    /// Makes what must be there before the server starts.
    pub(crate) fn prepare(case: &Case) -> Result<Self> {
        let mut made = Self {
            places: case.places,
            settings: Vec::new(),
            server_network: None,
            client_network: None,
            groups: Vec::new(),
            wire: None,
        };
        for place in case.places {
            match place {
                Place::Namespace => made.server_network = Some(Network::new()?),
                Place::NamespaceSetting(path, value) => made.network()?.set(path, value)?,
                Place::HiddenServer => made.hide_server()?,
                Place::ServerMemory(bytes, on_limit) => made.limit_memory(*bytes, *on_limit)?,
                Place::ServerTasks(tasks) => {
                    let group = Cgroup::new("pids")?;
                    group.set("pids.max", &tasks.to_string())?;
                    made.groups.push(group);
                }
                Place::GivenPid
                | Place::UnprivilegedServer
                | Place::HiddenProcess
                | Place::Firewall(_)
                | Place::ClientDescriptors(_)
                | Place::MachineSetting(..)
                | Place::FilesLeft(_) => {}
            }
        }
        Ok(made)
    }

    fn network(&self) -> Result<&Network> {
        self.server_network.as_ref().ok_or_else(|| Halt::skip("the case has no namespace"))
    }

    fn hide_server(&mut self) -> Result<()> {
        let (server, client) = (Network::new()?, Network::new()?);
        self.wire = Some(client.join(NEAR, &server, &FAR.to_string(), DELAY)?);
        self.server_network = Some(server);
        self.client_network = Some(client);
        Ok(())
    }

    fn limit_memory(&mut self, bytes: u64, on_limit: OnLimit) -> Result<()> {
        let group = Cgroup::new("memory")?;
        group.set("memory.limit_in_bytes", &bytes.to_string())?;
        if on_limit == OnLimit::Wait {
            group.set("memory.oom_control", "1")?;
        }
        self.groups.push(group);
        Ok(())
    }

    /// Where the server is to listen.
    pub(crate) fn listen(&self) -> SocketAddr {
        let hidden = self.client_network.is_some();
        let address = if hidden { FAR } else { Ipv4Addr::LOCALHOST };
        (address, 0).into()
    }

    /// Arranges for the server to start under these conditions.
    pub(crate) fn prepare_server(&self, command: &mut Command) -> Result<()> {
        if let Some(network) = &self.server_network {
            network.enter(command);
        }
        for group in &self.groups {
            group.enter(command)?;
        }
        if self.has(|place| matches!(place, Place::UnprivilegedServer)) {
            command.uid(NOBODY).gid(NOBODY);
        }
        Ok(())
    }

    /// Does what can only be done once the server listens.
    pub(crate) fn once_it_listens(&mut self, server: SocketAddr) -> Result<()> {
        for place in self.places {
            match place {
                Place::Firewall(rules) => {
                    for rule in *rules {
                        let rule = rule.replace("{port}", &server.port().to_string());
                        self.network()?.run("nft", &[&rule])?;
                    }
                }
                Place::MachineSetting(path, value) => {
                    self.settings.push(Setting::change(path, value)?);
                }
                Place::FilesLeft(left) => {
                    let most = (open_files()? + left).to_string();
                    self.settings.push(Setting::change("fs/file-max", &most)?);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The command that runs `plimsoll` under these conditions, without arguments.
    pub(crate) fn client(&self, plimsoll: &Path) -> Command {
        let mut command = if self
            .has(|place| matches!(place, Place::HiddenServer | Place::HiddenProcess))
        {
            // Ids of its own, and a /proc that shows only those.
            let mut command = Command::new("unshare");
            command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "--"]).arg(plimsoll);
            command
        } else {
            Command::new(plimsoll)
        };
        if let Some(network) = self.client_network.as_ref().or(self.server_network.as_ref()) {
            network.enter(&mut command);
        }
        for place in self.places {
            if let Place::ClientDescriptors(limit) = place {
                child::limit_descriptors(&mut command, *limit);
            }
        }
        command
    }

    /// Whether `plimsoll` is told the server's process.
    pub(crate) fn gives_pid(&self) -> bool {
        self.has(|place| matches!(place, Place::GivenPid))
    }

    fn has(&self, is_it: impl Fn(&Place) -> bool) -> bool {
        self.places.iter().any(is_it)
    }

    /// What the kernel says of these conditions now, to stand beside a wrong verdict.
    pub(crate) fn seen(&self) -> Vec<String> {
        let mut seen = Vec::new();
        for group in &self.groups {
            for file in ["memory.failcnt", "memory.oom_control", "pids.current", "pids.events"] {
                let words = group.words(file);
                if !words.is_empty() {
                    seen.push(format!("{file}: {words}"));
                }
            }
        }
        seen
    }
}

/// Files that are open on the whole machine.
fn open_files() -> Result<u64> {
    let text = fs::read_to_string("/proc/sys/fs/file-nr").unwrap_or_default();
    let first = text.split_whitespace().next().and_then(|number| number.parse().ok());
    first.ok_or_else(|| Halt::skip("/proc/sys/fs/file-nr cannot be read"))
}
