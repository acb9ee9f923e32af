//! What Windows alone has: pools of the kernel, and what its registry and `netsh` say of TCP.
//!
//! On other systems everything here is [`Error::Unknown`]. There is no figure for the room that is
//! left in the non-paged pool, nor for the depth of an accept queue: Windows tells neither.

use crate::{Error, Result};

/// Memory and counts of the machine, at one moment (`GetPerformanceInfo`). Sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Performance {
    /// The non-paged pool: sockets, their buffers' headers, operations in flight, drivers. `None`
    /// where the system gives 0, which no running kernel has (Wine).
    pub nonpaged_pool: Option<u64>,
    /// The paged pool.
    pub paged_pool: Option<u64>,
    /// Memory promised to everybody.
    pub commit: u64,
    /// The most that can be promised: memory and page files.
    pub commit_limit: u64,
    /// Handles of all processes.
    pub handles: u64,
    /// Processes.
    pub processes: u64,
    /// Threads.
    pub threads: u64,
}

impl Performance {
    /// Reads it: one call, some 10 µs.
    ///
    /// # Errors
    /// [`Error::Unknown`] on other systems, and where the call fails.
    #[cfg(windows)]
    pub fn read() -> Result<Self> {
        let info = crate::system::windows::performance()
            .ok_or_else(|| Error::Unknown { what: "GetPerformanceInfo".to_owned() })?;
        let page = info.PageSize as u64;
        let known = |pages: usize| Some(pages as u64 * page).filter(|bytes| *bytes > 0);
        Ok(Self {
            nonpaged_pool: known(info.KernelNonpaged),
            paged_pool: known(info.KernelPaged),
            commit: info.CommitTotal as u64 * page,
            commit_limit: info.CommitLimit as u64 * page,
            handles: info.HandleCount.into(),
            processes: info.ProcessCount.into(),
            threads: info.ThreadCount.into(),
        })
    }

    /// Reads it: Windows has it.
    ///
    /// # Errors
    /// [`Error::Unknown`], always.
    #[cfg(not(windows))]
    pub fn read() -> Result<Self> {
        Err(Error::Unknown { what: "the kernel's pools".to_owned() })
    }
}

/// Settings of TCP. What is not set, or not to be read, is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TcpSettings {
    /// First and last port given to clients, as `netsh int ipv4 show dynamicport tcp` says:
    /// 49152 to 65535 as Windows is delivered since Vista.
    pub dynamic_ports: Option<(u16, u16)>,
    /// `MaxUserPort` of the registry: the last such port of Windows 2000 and 2003, 5,000 where it was
    /// not set. Later versions have the range above.
    pub max_user_port: Option<u32>,
    /// `TcpTimedWaitDelay` of the registry: how long a socket stays in `TIME_WAIT`, in seconds;
    /// 30 to 300, and where it is not set 120 (240 in Windows 2000).
    pub timed_wait_delay: Option<u32>,
}

impl TcpSettings {
    /// Reads them. `netsh` is run the first time, which takes some 100 ms; its answer is kept for
    /// the life of the process.
    ///
    /// # Errors
    /// [`Error::Unknown`] on other systems.
    #[cfg(windows)]
    pub fn read() -> Result<Self> {
        const KEY: &str = r"SYSTEM\CurrentControlSet\Services\Tcpip\Parameters";
        let number = |name: &str| crate::system::windows::registry_number(KEY, name);
        Ok(Self {
            dynamic_ports: dynamic_ports(),
            max_user_port: number("MaxUserPort"),
            timed_wait_delay: number("TcpTimedWaitDelay"),
        })
    }

    /// Reads them: Windows has them.
    ///
    /// # Errors
    /// [`Error::Unknown`], always.
    #[cfg(not(windows))]
    pub fn read() -> Result<Self> {
        Err(Error::Unknown { what: "the registry's settings of TCP".to_owned() })
    }
}

/// What `netsh` says, asked once. There is no call that says it.
#[cfg(windows)]
pub(crate) fn dynamic_ports() -> Option<(u16, u16)> {
    use std::os::windows::process::CommandExt as _;
    use std::process::{Command, Stdio};
    use std::sync::OnceLock;

    /// `CREATE_NO_WINDOW`: a program with no console of its own opens none for it.
    const NO_WINDOW: u32 = 0x0800_0000;
    static SAID: OnceLock<Option<(u16, u16)>> = OnceLock::new();
    *SAID.get_or_init(|| {
        // By its full path: no other program of that name is run.
        let root = std::env::var_os("SystemRoot")?;
        let netsh = std::path::Path::new(&root).join("System32").join("netsh.exe");
        let output = Command::new(netsh)
            .args(["int", "ipv4", "show", "dynamicport", "tcp"])
            .stdin(Stdio::null())
            .creation_flags(NO_WINDOW)
            .output()
            .ok()?;
        parse_dynamic_ports(&String::from_utf8_lossy(&output.stdout))
    })
}

/// The two numbers behind colons, whatever language the words before them are in: the first port,
/// and how many there are.
#[cfg_attr(not(windows), allow(dead_code, reason = "tested everywhere"))]
fn parse_dynamic_ports(text: &str) -> Option<(u16, u16)> {
    let mut numbers =
        text.lines().filter_map(|line| line.rsplit_once(':')?.1.trim().parse::<u32>().ok());
    let (first, count) = (numbers.next()?, numbers.next()?);
    let last = first.checked_add(count.checked_sub(1)?)?;
    match numbers.next() {
        None => Some((first.try_into().ok()?, last.try_into().ok()?)),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_is_read_in_any_language() {
        let english = "\r\nProtocol tcp Dynamic Port Range\r\n---------------------------------\r\n\
                       Start Port      : 49152\r\nNumber of Ports : 16384\r\n\r\n";
        assert_eq!(parse_dynamic_ports(english), Some((49_152, 65_535)));
        let german = "Dynamischer Portbereich für Protokoll tcp\n---\nStartport   : 1025\n\
                      Anzahl von Ports : 64510\n";
        assert_eq!(parse_dynamic_ports(german), Some((1025, 65_534)));
        for wrong in
            ["", "Start : 1\n", "a : 60000\nb : 10000\n", "a : 1\nb : 0\n", "1:1\n2:2\n3:3\n"]
        {
            assert_eq!(parse_dynamic_ports(wrong), None, "{wrong}");
        }
    }

    #[cfg(windows)]
    #[test]
    fn this_machine_says_something() {
        let performance = Performance::read().unwrap();
        assert!(performance.commit_limit > 0 && performance.processes > 0);
        TcpSettings::read().unwrap();
    }
}
