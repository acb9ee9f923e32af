//! Windows' part: `WSAPoll`, a thread's CPU time, children that end with their stdin.

#![allow(unsafe_code, reason = "WSAPoll and GetThreadTimes have no safe wrappers")]

use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::windows::io::AsRawSocket as _;
use std::os::windows::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use socket2::Socket;
use windows_sys::Win32::Foundation::FILETIME;
use windows_sys::Win32::Networking::WinSock::{
    POLLRDNORM, POLLWRNORM, SOCKET, SOCKET_ERROR, WSAPOLLFD, WSAPoll,
};
use windows_sys::Win32::System::Threading::{
    CREATE_NEW_PROCESS_GROUP, GetCurrentThread, GetThreadTimes,
};

use super::{Fate, Interrupt, Wanted};

/// Sockets that one worker holds. A process may have 16 million handles; several processes share the
/// work of a processor each.
const ROOM: u64 = 1 << 16;

/// A child has a pipe as its stdin, and ends when that ends: with the parent, or when
/// [asked to](ask_to_end). A process group of its own does not see the console's Ctrl-C.
pub(crate) fn tie_to_parent(command: &mut Command, interrupt: Interrupt) {
    // Of a worker's two habits the system has one: who ignores Ctrl-C does not hear of it.
    command.creation_flags(CREATE_NEW_PROCESS_GROUP).stdin(Stdio::piped());
    if interrupt == Interrupt::OwnGroup {
        command.arg("--until-eof");
    }
}

/// Handles have no limit that could be raised.
pub fn raise_descriptor_limit() {}

/// Asks a child to end in order: its stdin ends.
pub(crate) fn ask_to_end(child: &mut Child) {
    drop(child.stdin.take());
}

/// How many sockets this process may hold.
pub(crate) fn room() -> u64 {
    ROOM
}

/// How many sockets a worker process may hold.
pub(crate) fn room_of_worker() -> u64 {
    ROOM
}

/// Bytes per page of memory.
pub(crate) fn page_bytes() -> u64 {
    plimsoll_kernel::limits::Limits::read().page_size.unwrap_or(4096)
}

/// CPU time of the calling thread, in steps of the system's tick (15.6 ms, often less).
pub(crate) fn thread_cpu() -> Duration {
    let zero = FILETIME { dwLowDateTime: 0, dwHighDateTime: 0 };
    let (mut created, mut ended, mut kernel, mut user) = (zero, zero, zero, zero);
    // SAFETY: the handle is the constant that stands for the calling thread; the four pointers are
    // to live locals, which the call writes before it returns.
    let told = unsafe {
        GetThreadTimes(
            GetCurrentThread(),
            &raw mut created,
            &raw mut ended,
            &raw mut kernel,
            &raw mut user,
        )
    };
    let hundreds =
        |time: FILETIME| (u64::from(time.dwHighDateTime) << 32) | u64::from(time.dwLowDateTime);
    match told {
        0 => Duration::ZERO,
        _ => Duration::from_nanos((hundreds(kernel) + hundreds(user)).saturating_mul(100)),
    }
}

/// The next connection of a listener that does not block; its socket does not block either.
pub(crate) fn accept(listener: &TcpListener) -> io::Result<Socket> {
    listener.accept().map(|(stream, _)| stream.into())
}

/// A connection's socket cannot be used for another by `connect`: that takes `DisconnectEx` and
/// `ConnectEx`.
pub(crate) fn connect_again(_socket: &Socket) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Binds to an address; the system gives a port at once, which no other socket of that address has.
pub(crate) fn bind_source(socket: &Socket, source: IpAddr) -> io::Result<()> {
    socket.bind(&SocketAddr::new(source, 0).into())
}

/// The range of ports is the system's alone.
pub(crate) fn spread_ports(_socket: &Socket, _first: u16, _last: u16) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Nothing: a queue's exact end is not to be seen here.
pub(crate) struct OneCpu;

impl OneCpu {
    pub(crate) fn enter() -> Self {
        Self
    }
}

/// Sockets that are waited for together.
pub(crate) struct Poll<'a> {
    fds: Vec<WSAPOLLFD>,
    /// The sockets are borrowed, so that none of them is closed meanwhile.
    sockets: PhantomData<&'a Socket>,
}

impl<'a> Poll<'a> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { fds: Vec::with_capacity(capacity), sockets: PhantomData }
    }

    /// One more, behind those before.
    pub(crate) fn watch(&mut self, socket: &'a Socket, wanted: Wanted) {
        let events = match wanted {
            Wanted::Read => POLLRDNORM,
            Wanted::Write => POLLWRNORM,
            Wanted::Both => POLLRDNORM | POLLWRNORM,
        };
        self.fds.push(WSAPOLLFD { fd: socket.as_raw_socket() as SOCKET, events, revents: 0 });
    }

    /// Waits until something is there on one of them, or for so long.
    ///
    /// Before Windows 10 version 2004 a connect that fails is not told of: it is given up at its
    /// time limit then.
    pub(crate) fn wait(&mut self, patience: Duration) -> io::Result<()> {
        if self.fds.is_empty() {
            std::thread::sleep(patience);
            return Ok(());
        }
        // Less than a millisecond is one: a wait of none would spin.
        let millis = patience.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32;
        // SAFETY: pointer and count describe the vector, which lives and is not touched until the
        // call has returned; each socket in it is open as long as `'a`.
        let found = unsafe { WSAPoll(self.fds.as_mut_ptr(), self.fds.len() as u32, millis) };
        if found == SOCKET_ERROR { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Whether there was something on each of them, errors included, in the order of
    /// [`watch`](Self::watch).
    pub(crate) fn ready(&self) -> impl Iterator<Item = bool> {
        self.fds.iter().map(|fd| fd.revents != 0)
    }

    /// What has become of connections, by a look at their next byte: bytes that wait to be read
    /// hide a FIN behind them.
    pub(crate) fn fates(sockets: &[Socket], mut each: impl FnMut(Fate)) -> io::Result<()> {
        for socket in sockets {
            let mut byte = [MaybeUninit::uninit()];
            each(match socket.peek(&mut byte) {
                Ok(0) => Fate::Closed,
                Ok(_) => Fate::Alive,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Fate::Alive,
                Err(_) => Fate::Reset,
            });
        }
        Ok(())
    }
}
