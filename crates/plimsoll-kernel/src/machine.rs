//! The machine a figure was measured on.

use std::num::NonZero;

use crate::meminfo::Meminfo;
use crate::source;
use crate::{Error, Result};

/// What a report says about its machine. `None`: not to be found here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The operating system: `Linux`.
    pub system: String,
    /// Its release, as `uname -r` prints it; of Windows version and build, with Wine's where it is
    /// no Windows.
    pub kernel: String,
    /// The architecture this program was built for: `x86_64`, `aarch64`.
    pub architecture: String,
    /// The processor's name.
    pub cpu: Option<String>,
    /// Processors that are running.
    pub cpus: u64,
    /// Processors that this process may use: affinity and quota allowing.
    pub cpus_usable: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// Whether this is a virtual machine, where the processor says so (x86).
    pub virtualised: Option<bool>,
    /// Maker and model, as the firmware names them: of a virtual machine, its
    /// hypervisor.
    pub model: Option<String>,
    /// The clock source: anything but `tsc`, or `arch_sys_counter`, makes each
    /// reading of the clock a system call.
    pub clock_source: Option<String>,
    /// The scaling governor of the first processor.
    pub governor: Option<String>,
}

impl Machine {
    /// Reads it; some 300 µs.
    pub fn read() -> Result<Self> {
        #[cfg(windows)]
        if cfg!(windows) {
            return of_registry();
        }
        let kernel = source::read("/proc/sys/kernel/osrelease")?.trim().to_owned();
        let cpuinfo = source::read("/proc/cpuinfo")?;
        let cpus = count_cpus(&cpuinfo)
            .ok_or_else(|| Error::malformed("/proc/cpuinfo", "it lists no processor"))?;
        let usable = std::thread::available_parallelism().map_or(cpus, |n| NonZero::get(n) as u64);
        Ok(Self {
            system: source::read("/proc/sys/kernel/ostype")?.trim().to_owned(),
            kernel,
            architecture: std::env::consts::ARCH.to_owned(),
            cpu: cpu_name(&cpuinfo),
            cpus,
            cpus_usable: usable,
            memory: Meminfo::read()?.total,
            virtualised: virtualised(&cpuinfo),
            model: model(),
            clock_source: word("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
            governor: word("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        })
    }
}

/// Windows keeps all of it in its registry.
#[cfg(windows)]
fn of_registry() -> Result<Machine> {
    use crate::system::windows::{registry_number, registry_text, wine_version};
    const VERSION: &str = r"SOFTWARE\Microsoft\Windows NT\CurrentVersion";
    const PROCESSOR: &str = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0";
    const BIOS: &str = r"HARDWARE\DESCRIPTION\System\BIOS";
    let part = |name| registry_number(VERSION, name).map(|number| number.to_string());
    // The two numbers are there since Windows 10; before it was one text, such as `6.1`.
    let old = || registry_text(VERSION, "CurrentVersion");
    let version = [
        part("CurrentMajorVersionNumber").or_else(old),
        part("CurrentMinorVersionNumber"),
        registry_text(VERSION, "CurrentBuildNumber"),
        part("UBR"),
    ];
    let version: Vec<String> = version.into_iter().flatten().collect();
    let mut kernel = version.join(".");
    if let Some(wine) = wine_version() {
        // Not Windows' kernel: whoever reads a result must see that.
        kernel = format!("Wine {wine}, as {kernel}");
    }
    let named: Vec<String> = ["SystemManufacturer", "SystemProductName"]
        .iter()
        .filter_map(|name| registry_text(BIOS, name))
        .filter(|name| !name.is_empty())
        .collect();
    let cpus = std::thread::available_parallelism().map_or(1, |n| NonZero::get(n) as u64);
    Ok(Machine {
        system: registry_text(VERSION, "ProductName").unwrap_or_else(|| "Windows".to_owned()),
        kernel,
        architecture: std::env::consts::ARCH.to_owned(),
        cpu: registry_text(PROCESSOR, "ProcessorNameString").map(|name| name.trim().to_owned()),
        cpus,
        cpus_usable: cpus,
        memory: Meminfo::read()?.total,
        virtualised: None,
        model: (!named.is_empty()).then(|| named.join(" ")),
        clock_source: None,
        governor: None,
    })
}

/// The value of the first line `key : value`.
fn field<'a>(cpuinfo: &'a str, key: &str) -> Option<&'a str> {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.trim() == key)
        .map(|(_, value)| value.trim())
}

fn count_cpus(cpuinfo: &str) -> Option<u64> {
    let lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    let count = lines.filter(|(name, _)| name.trim() == "processor").count() as u64;
    (count > 0).then_some(count)
}

/// x86 and others say `model name`; some ARM boards `Hardware` or `Model`.
fn cpu_name(cpuinfo: &str) -> Option<String> {
    let name =
        ["model name", "Hardware", "Model", "cpu"].iter().find_map(|key| field(cpuinfo, key));
    name.map(str::to_owned)
}

/// On x86 a hypervisor sets a flag of its own; elsewhere nothing says "no".
fn virtualised(cpuinfo: &str) -> Option<bool> {
    let flags = field(cpuinfo, "flags")?;
    Some(flags.split_ascii_whitespace().any(|flag| flag == "hypervisor"))
}

fn model() -> Option<String> {
    let parts =
        ["sys_vendor", "product_name"].map(|file| word(&format!("/sys/class/dmi/id/{file}")));
    let named: Vec<String> = parts.into_iter().flatten().collect();
    let tree = || word("/proc/device-tree/model");
    if named.is_empty() { tree() } else { Some(named.join(" ")) }
}

/// A file of one line; `None` if absent or empty.
fn word(path: &str) -> Option<String> {
    let text = source::read_optional(path)?;
    let text = text.trim_matches(|letter: char| letter.is_whitespace() || letter == '\0');
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_counted_and_named() {
        let text = "processor : 0\nmodel name\t: Some CPU @ 2.5GHz\nflags : fpu hypervisor\n\n\
                    processor : 1\nmodel name : Some CPU\n";
        assert_eq!(count_cpus(text), Some(2));
        assert_eq!(cpu_name(text).as_deref(), Some("Some CPU @ 2.5GHz"));
        assert_eq!(virtualised(text), Some(true));
        assert_eq!(virtualised("flags : fpu\n"), Some(false));
        assert_eq!(virtualised("processor : 0\n"), None);
        assert_eq!(count_cpus("nothing"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_is_described() {
        let machine = Machine::read().unwrap();
        assert_eq!(machine.system, "Linux");
        assert!(machine.memory > 0 && machine.cpus >= 1 && machine.cpus_usable >= 1);
    }
}
