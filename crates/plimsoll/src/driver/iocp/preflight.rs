//! What works here, found out by trying it on loopback, once in a process: some milliseconds.

use std::io::{Read, Write};
use std::mem::ManuallyDrop;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::windows::io::{AsRawSocket, OwnedSocket};
use std::sync::OnceLock;
use std::time::Duration;

use windows_sys::Win32::Networking::WinSock as ws;
use windows_sys::Win32::System::IO::OVERLAPPED_ENTRY;

use super::Recycle;
use super::extensions::Extensions;
use super::operations::{Addresses, Operations, Pinned, Place};
use super::port::Port;
use super::system::{self, Posted};
use super::unavailable::Unavailable;
use crate::driver::Kind;

/// What was found. What does not work is told with the reason.
pub(super) struct Found {
    pub(super) extensions: Extensions,
    /// Whether successes at once can go without a completion.
    pub(super) skips: Result<(), String>,
    /// Whether a socket that was disconnected can be accepted into again.
    pub(super) reuses: Result<(), String>,
}

/// What works here.
pub(super) fn found() -> Result<&'static Found, Unavailable> {
    static FOUND: OnceLock<Result<Found, Unavailable>> = OnceLock::new();
    FOUND.get_or_init(look).as_ref().map_err(Clone::clone)
}

/// How long an operation on loopback may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long is waited for a completion that should not come.
const DOUBT: u32 = 10;

fn look() -> Result<Found, Unavailable> {
    system::begin();
    let setup = |doing| move |code| Unavailable::Setup { doing, code };
    let socket = system::socket(false).map_err(setup("making a socket"))?;
    let extensions = Extensions::load(&socket)?;
    let skips = if system::is_plain(&socket) {
        Bench::new().and_then(|bench| bench.skips())
    } else {
        Err("the provider's sockets are no handles of the kernel's".into())
    };
    let reuses = Bench::new().and_then(|bench| bench.reuses(&extensions));
    Ok(Found { extensions, skips, reuses })
}

/// A port, and the few operations that are tried at it. What the kernel may write to is never freed:
/// no path here has to wait for what may not come.
struct Bench {
    port: Port,
    operations: ManuallyDrop<Operations>,
    addresses: ManuallyDrop<Pinned<Addresses>>,
}

/// Turns any error into a reason.
fn because<E: std::fmt::Display>(doing: &'static str) -> impl Fn(E) -> String {
    move |error| format!("{doing}: {error}")
}

fn because_code(doing: &'static str) -> impl Fn(i32) -> String {
    move |code| format!("{doing}: {}", std::io::Error::from_raw_os_error(code))
}

impl Bench {
    fn new() -> Result<Self, String> {
        Ok(Self {
            port: Port::new().map_err(because("no port"))?,
            operations: ManuallyDrop::new(Operations::new(1, 1, 1)),
            addresses: ManuallyDrop::new(Pinned::new(1)),
        })
    }

    /// The next completion: which operation's, and whether it succeeded. `None` after the time.
    fn next(&self, milliseconds: u32) -> Result<Option<(Place, bool)>, String> {
        let mut entries = [OVERLAPPED_ENTRY::default()];
        let taken = self.port.take(&mut entries, milliseconds).map_err(because("the port"))?;
        if taken == 0 {
            return Ok(None);
        }
        let overlapped = entries[0].lpOverlapped;
        let (place, _) = self.operations.find(overlapped).ok_or("a completion of nothing")?;
        // SAFETY: it is of the table, and its completion has been taken: the kernel is done with it.
        let status = unsafe { (*overlapped).Internal } as i32;
        Ok(Some((place, status >= 0)))
    }

    /// Waits for an operation that was posted.
    fn finish(&self, posted: Posted, place: Place, what: &'static str) -> Result<(), String> {
        match posted {
            Posted::Failed(code) => Err(because_code(what)(code)),
            Posted::Done(_) => Ok(()),
            Posted::Pending => match self.next(PATIENCE.as_millis() as u32)? {
                Some((found, true)) if found == place => Ok(()),
                Some((found, _)) if found == place => Err(format!("{what}: it failed")),
                Some(_) => Err(format!("{what}: another operation completed")),
                None => Err(format!("{what}: it has not completed within {PATIENCE:?}")),
            },
        }
    }

    /// Whether an operation that succeeds at once is told of by the call alone, and one that does not
    /// at the port, once.
    fn skips(&self) -> Result<(), String> {
        let (listener, mut client) = pair()?;
        let (server, _) = listener.accept().map_err(because("accept"))?;
        self.port.associate(&server).map_err(because_code("association"))?;
        system::skip_completions(&server).map_err(because_code("the mode is refused"))?;
        let place = Place::Slot(0, Kind::Receive);
        // Leaked, all sixteen bytes of it, as the operations are.
        let room = Box::into_raw(Box::new([0_u8; 16]));
        let receive = || {
            let armed = self.operations.arm(place, None);
            // SAFETY: the operation and the room are never freed.
            unsafe { system::post_receive(&server, (room.cast(), 16), armed, true) }
        };
        client.write_all(b"x").map_err(because("a write"))?;
        let mut byte = [0];
        server.peek(&mut byte).map_err(because("a peek"))?;
        if receive() != Posted::Done(1) {
            return Err("a receive of a byte that was there did not end at once".into());
        }
        if self.next(DOUBT)?.is_some() {
            return Err("a success at once was told of at the port as well".into());
        }
        let posted = receive();
        if posted != Posted::Pending {
            return Err("a receive of nothing did not wait".into());
        }
        client.write_all(b"y").map_err(because("a write"))?;
        self.finish(posted, place, "a receive")?;
        match self.next(DOUBT)? {
            None => Ok(()),
            Some(_) => Err("a receive completed twice".into()),
        }
    }

    /// Whether a socket can be accepted into, disconnected, and accepted into again.
    fn reuses(&self, extensions: &Extensions) -> Result<(), String> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(because("bind"))?;
        self.port.associate(&listener).map_err(because_code("association"))?;
        let socket = system::socket(false).map_err(because_code("no socket"))?;
        drop(self.use_once(extensions, &listener, &socket, "AcceptEx")?);
        self.port.associate(&socket).map_err(because_code("association"))?;
        let armed = self.operations.arm(Place::Limbo(0), None);
        // SAFETY: the operation is never freed.
        let posted =
            unsafe { extensions.post_disconnect(&socket, Recycle::DisconnectEx, armed, false) };
        self.finish(posted, Place::Limbo(0), "DisconnectEx")?;
        self.use_once(extensions, &listener, &socket, "AcceptEx into a disconnected socket")?;
        Ok(())
    }

    /// Accepts a client into a socket, and sends it a byte.
    fn use_once(
        &self,
        extensions: &Extensions,
        listener: &TcpListener,
        socket: &OwnedSocket,
        what: &'static str,
    ) -> Result<TcpStream, String> {
        let armed = self.operations.arm(Place::Accept(0), None);
        let into = self.addresses.at(0);
        // SAFETY: the operation and the addresses are never freed.
        let posted = unsafe { extensions.post_accept(listener, socket, into, armed, false) };
        if let Posted::Failed(code) = posted {
            return Err(because_code(what)(code));
        }
        let mut client = connect(listener)?;
        self.finish(posted, Place::Accept(0), what)?;
        let context = listener.as_raw_socket();
        system::set(socket, ws::SOL_SOCKET, ws::SO_UPDATE_ACCEPT_CONTEXT, context)
            .map_err(because_code("SO_UPDATE_ACCEPT_CONTEXT"))?;
        let works = system::send_bytes(socket, b"x").map_err(because_code("a send"));
        let mut byte = [0];
        let heard = |_| client.read_exact(&mut byte).map_err(because("what was sent"));
        works.and_then(heard).map_err(|why| format!("{what} completes, and then fails {why}"))?;
        Ok(client)
    }
}

fn pair() -> Result<(TcpListener, TcpStream), String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(because("bind"))?;
    let client = connect(&listener)?;
    Ok((listener, client))
}

fn connect(listener: &TcpListener) -> Result<TcpStream, String> {
    let address = listener.local_addr().map_err(because("a listener's address"))?;
    let client = TcpStream::connect_timeout(&address, PATIENCE).map_err(because("connect"))?;
    client.set_read_timeout(Some(PATIENCE)).map_err(because("a time-out"))?;
    Ok(client)
}
