//! Network namespaces of our own. They are held by a descriptor alone, so that the kernel
//! removes them however this program ends.

use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use plimsoll_peers::sys::child;
use plimsoll_peers::sys::tun::Wire;

use crate::{Halt, Result};

/// A network namespace.
#[derive(Debug)]
pub(crate) struct Network(Arc<OwnedFd>);

impl Network {
    /// A new one, its loopback up.
    pub(crate) fn new() -> Result<Self> {
        let namespace = child::new_network()
            .map_err(|error| Halt::skip(format!("no network namespace of our own: {error}")))?;
        let network = Self(Arc::new(namespace));
        network.run("ip", &["link", "set", "lo", "up"])?;
        Ok(network)
    }

    /// Makes a child run in it.
    pub(crate) fn enter(&self, command: &mut Command) {
        child::enter_network(command, self.0.clone());
    }

    /// Runs a program in it to its end, which must be a good one.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        self.enter(&mut command);
        child::die_with_parent(&mut command);
        let output = command
            .output()
            .map_err(|error| Halt::skip(format!("{program} cannot be run: {error}")))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(Halt::skip(format!("{program} {}: {}", arguments.join(" "), said.trim())))
    }

    /// Changes a setting of this namespace: a path below `/proc/sys`.
    pub(crate) fn set(&self, path: &str, value: &str) -> Result<()> {
        let file = format!("/proc/sys/{path}");
        self.run("sh", &["-c", "printf %s \"$1\" >\"$2\"", "sh", value, &file])
    }

    /// Joins the two by a wire on which every packet takes `delay`, and gives each end an address.
    pub(crate) fn join(
        &self,
        here: &str,
        other: &Self,
        there: &str,
        delay: Duration,
    ) -> Result<Wire> {
        let wire = Wire::join(&self.0, &other.0, c"wire", delay)
            .map_err(|error| Halt::skip(format!("no TUN interfaces of our own: {error}")))?;
        for (network, address) in [(self, here), (other, there)] {
            network.run("ip", &["address", "add", &format!("{address}/24"), "dev", "wire"])?;
            network.run("ip", &["link", "set", "wire", "up"])?;
        }
        Ok(wire)
    }
}
