//! Windows' calls: memory, pools, processes, the registry, the table of TCP sockets.

#![allow(unsafe_code, reason = "system calls that fill structures; none has a safe wrapper")]

use std::ptr::null_mut;
use std::time::Duration;

use windows_sys::Win32::Foundation::{
    CloseHandle, ERROR_INSUFFICIENT_BUFFER, ERROR_SUCCESS, FILETIME, HANDLE, INVALID_HANDLE_VALUE,
};
use windows_sys::Win32::NetworkManagement::IpHelper::{
    GetExtendedTcpTable, TCP_TABLE_BASIC_ALL, TCP_TABLE_OWNER_PID_ALL,
};
use windows_sys::Win32::System::Diagnostics::ToolHelp::{
    CreateToolhelp32Snapshot, PROCESSENTRY32W, Process32FirstW, Process32NextW, TH32CS_SNAPPROCESS,
};
use windows_sys::Win32::System::LibraryLoader::{GetModuleHandleA, GetProcAddress};
use windows_sys::Win32::System::ProcessStatus::{
    K32GetPerformanceInfo, K32GetProcessMemoryInfo, PERFORMANCE_INFORMATION,
    PROCESS_MEMORY_COUNTERS,
};
use windows_sys::Win32::System::Registry::{
    HKEY_LOCAL_MACHINE, REG_ROUTINE_FLAGS, RRF_RT_REG_DWORD, RRF_RT_REG_SZ, RegGetValueW,
};
use windows_sys::Win32::System::SystemInformation::{
    GetSystemInfo, GlobalMemoryStatusEx, MEMORYSTATUSEX, SYSTEM_INFO,
};
use windows_sys::Win32::System::Threading::{
    GetProcessHandleCount, GetProcessTimes, OpenProcess, PROCESS_QUERY_LIMITED_INFORMATION,
};

/// The address families, as `GetExtendedTcpTable` wants them (`ws2def.h`).
pub(crate) const AF_INET: u32 = 2;
pub(crate) const AF_INET6: u32 = 23;

/// Bytes per page of memory.
pub(crate) fn page_size() -> u64 {
    let mut info = SYSTEM_INFO::default();
    // SAFETY: the call writes one structure through the pointer, which is to a live local, and
    // cannot fail.
    unsafe { GetSystemInfo(&raw mut info) };
    info.dwPageSize.into()
}

/// The machine's physical memory: bytes to be had, and bytes in all (`ullAvailPhys`,
/// `ullTotalPhys`). Some microseconds, no allocation.
pub(crate) fn physical_memory() -> Option<(u64, u64)> {
    let mut status =
        MEMORYSTATUSEX { dwLength: size_of::<MEMORYSTATUSEX>() as u32, ..Default::default() };
    // SAFETY: the call writes one structure, of the length that it says, through the pointer, which
    // is to a live local; it keeps nothing.
    let told = unsafe { GlobalMemoryStatusEx(&raw mut status) } != 0;
    // Wine fills a copy that a second thread may be given before it is full: all zeroes.
    let told = told && status.ullTotalPhys > 0;
    told.then_some((status.ullAvailPhys, status.ullTotalPhys))
}

/// The pools of the kernel, the commit charge, and counts of the machine.
pub(crate) fn performance() -> Option<PERFORMANCE_INFORMATION> {
    let length = size_of::<PERFORMANCE_INFORMATION>() as u32;
    let mut info = PERFORMANCE_INFORMATION { cb: length, ..Default::default() };
    // SAFETY: the call writes one structure of the given length through the pointer, which is to a
    // live local; it keeps nothing.
    let told = unsafe { K32GetPerformanceInfo(&raw mut info, length) } != 0;
    told.then_some(info)
}

/// A process that may be asked about itself; closed when dropped.
struct Process(HANDLE);

impl Process {
    fn open(pid: u32) -> Option<Self> {
        // SAFETY: any number may be asked for; the answer is null or a handle of ours.
        let handle = unsafe { OpenProcess(PROCESS_QUERY_LIMITED_INFORMATION, 0, pid) };
        (!handle.is_null()).then_some(Self(handle))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SAFETY: the handle is ours alone, open since `open`, and not used again.
        unsafe { CloseHandle(self.0) };
    }
}

/// CPU time of a process, of threads that have ended too: in the kernel and in user space together.
pub(crate) fn cpu_time(pid: u32) -> Option<Duration> {
    let process = Process::open(pid)?;
    let zero = FILETIME { dwLowDateTime: 0, dwHighDateTime: 0 };
    let (mut created, mut ended, mut kernel, mut user) = (zero, zero, zero, zero);
    // SAFETY: the handle is open; the four pointers are to live locals that the call writes.
    let told = unsafe {
        GetProcessTimes(process.0, &raw mut created, &raw mut ended, &raw mut kernel, &raw mut user)
    };
    let hundreds =
        |time: FILETIME| (u64::from(time.dwHighDateTime) << 32) | u64::from(time.dwLowDateTime);
    (told != 0).then(|| Duration::from_nanos((hundreds(kernel) + hundreds(user)) * 100))
}

/// Bytes of a process that are in memory: its working set.
pub(crate) fn working_set(pid: u32) -> Option<u64> {
    let process = Process::open(pid)?;
    let length = size_of::<PROCESS_MEMORY_COUNTERS>() as u32;
    let mut counters = PROCESS_MEMORY_COUNTERS { cb: length, ..Default::default() };
    // SAFETY: the handle is open; the call writes one structure of the given length through the
    // pointer, which is to a live local.
    let told = unsafe { K32GetProcessMemoryInfo(process.0, &raw mut counters, length) } != 0;
    told.then_some(counters.WorkingSetSize as u64)
}

/// Handles that a process has open: sockets, files, threads, events.
pub(crate) fn handles(pid: u32) -> Option<u64> {
    let process = Process::open(pid)?;
    let mut count = 0;
    // SAFETY: the handle is open; the pointer is to a live local that the call writes.
    let told = unsafe { GetProcessHandleCount(process.0, &raw mut count) } != 0;
    told.then_some(count.into())
}

/// Each process with the number of the one that started it.
pub(crate) fn parents() -> Option<Vec<(u32, u32)>> {
    // SAFETY: the call takes no pointer; the answer is INVALID_HANDLE_VALUE or a handle of ours.
    let snapshot = unsafe { CreateToolhelp32Snapshot(TH32CS_SNAPPROCESS, 0) };
    if snapshot == INVALID_HANDLE_VALUE {
        return None;
    }
    let snapshot = Process(snapshot);
    let mut entry =
        PROCESSENTRY32W { dwSize: size_of::<PROCESSENTRY32W>() as u32, ..Default::default() };
    let mut all = Vec::new();
    // SAFETY: the handle is open; the call writes one structure, whose size stands in it, through
    // the pointer to a live local.
    let mut more = unsafe { Process32FirstW(snapshot.0, &raw mut entry) } != 0;
    while more {
        all.push((entry.th32ProcessID, entry.th32ParentProcessID));
        // SAFETY: as above.
        more = unsafe { Process32NextW(snapshot.0, &raw mut entry) } != 0;
    }
    Some(all)
}

/// A number of the registry, below `HKEY_LOCAL_MACHINE`; `None` where it is not set.
pub(crate) fn registry_number(key: &str, value: &str) -> Option<u32> {
    let mut number = [0_u8; 4];
    (registry(key, value, RRF_RT_REG_DWORD, &mut number)? == 4).then(|| u32::from_ne_bytes(number))
}

/// A text of the registry, below `HKEY_LOCAL_MACHINE`, up to 255 characters.
pub(crate) fn registry_text(key: &str, value: &str) -> Option<String> {
    let mut bytes = [0_u8; 512];
    let length = registry(key, value, RRF_RT_REG_SZ, &mut bytes)?;
    let units: Vec<u16> = bytes[..length]
        .chunks_exact(2)
        .map(|pair| u16::from_ne_bytes([pair[0], pair[1]]))
        .take_while(|unit| *unit != 0)
        .collect();
    Some(String::from_utf16_lossy(&units))
}

fn registry(key: &str, value: &str, kind: REG_ROUTINE_FLAGS, data: &mut [u8]) -> Option<usize> {
    let wide = |text: &str| text.encode_utf16().chain([0]).collect::<Vec<u16>>();
    let (key, value) = (wide(key), wide(value));
    let mut length = data.len() as u32;
    // SAFETY: both names end in 0 and outlive the call; `length` says how much may be written at
    // `data`, which is borrowed for writing; the type is not asked for, so its pointer is null.
    let answer = unsafe {
        RegGetValueW(
            HKEY_LOCAL_MACHINE,
            key.as_ptr(),
            value.as_ptr(),
            kind,
            null_mut(),
            data.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    (answer == ERROR_SUCCESS).then_some(length as usize)
}

/// The version of Wine, where this is no Windows: its `ntdll` exports a function that says it.
pub(crate) fn wine_version() -> Option<String> {
    // SAFETY: both names are C strings that outlive the calls; `ntdll` is in every process and is
    // never unloaded.
    let found = unsafe {
        let ntdll = GetModuleHandleA(c"ntdll.dll".as_ptr().cast());
        (!ntdll.is_null()).then(|| GetProcAddress(ntdll, c"wine_get_version".as_ptr().cast()))
    };
    let function = found??;
    // SAFETY: Wine's `wine_get_version` takes nothing and returns a C string that lives for ever
    // (`dlls/ntdll/unix/loader.c`, and its documentation for applications).
    let text = unsafe {
        let version: unsafe extern "C" fn() -> *const std::ffi::c_char =
            std::mem::transmute(function);
        std::ffi::CStr::from_ptr(version())
    };
    Some(text.to_string_lossy().into_owned())
}

/// The table of TCP sockets of one family, as it comes: a count, and so many rows
/// (`MIB_TCPTABLE`, `MIB_TCP6TABLE_OWNER_PID`). Of IPv6 there is only the table with processes; of
/// IPv4 that one would cost a search for each socket's process under Wine.
///
/// # Errors
/// The system's code.
pub(crate) fn tcp_table(family: u32) -> Result<Vec<u8>, u32> {
    let class = if family == AF_INET { TCP_TABLE_BASIC_ALL } else { TCP_TABLE_OWNER_PID_ALL };
    let mut bytes = vec![0_u8; 64 << 10];
    // The table may grow between two calls.
    for _ in 0..16 {
        let mut length = bytes.len() as u32;
        // SAFETY: `length` says how much may be written at the pointer, which is to a live buffer
        // of that length; the call keeps nothing. Rows are read from it as bytes.
        let code = unsafe {
            GetExtendedTcpTable(bytes.as_mut_ptr().cast(), &raw mut length, 0, family, class, 0)
        };
        match code {
            ERROR_SUCCESS => return Ok(bytes),
            ERROR_INSUFFICIENT_BUFFER => bytes.resize(length as usize + (16 << 10), 0),
            other => return Err(other),
        }
    }
    Err(ERROR_INSUFFICIENT_BUFFER)
}
