//! Opening the listener.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use super::Error;
use crate::budget::Limits;

/// Opens the one listener. What connections inherit from it is set here, once: Linux copies
/// `TCP_NODELAY` and the buffer sizes to what it accepts.
pub(super) fn open(address: &str, limits: &Limits) -> Result<TcpListener, Error> {
    let resolved = resolve(address)?;
    let opened = bind(resolved, limits);
    opened.map_err(|source| match source.kind() {
        #[cfg(windows)]
        io::ErrorKind::PermissionDenied => {
            Error::Listen { address: address.into(), source: not_given(&source) }
        }
        io::ErrorKind::AddrInUse => Error::InUse { address: address.into() },
        io::ErrorKind::AddrNotAvailable => Error::Address {
            address: address.into(),
            cause: "no interface of this machine has it".into(),
        },
        _ => Error::Listen { address: address.into(), source },
    })
}

fn resolve(address: &str) -> Result<SocketAddr, Error> {
    let wrong = |cause: String| Error::Address { address: address.into(), cause };
    let mut found = address.to_socket_addrs().map_err(|error| wrong(error.to_string()))?;
    found.next().ok_or_else(|| wrong("the name has no address".into()))
}

fn bind(address: SocketAddr, limits: &Limits) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Restarting must not wait for the TIME_WAITs of the last run.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    // The option of that name means on Windows that another program may take the port over.
    #[cfg(windows)]
    crate::driver::iocp::reserve_address(&socket)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_tcp_nodelay(true)?;
    if let Some(bytes) = limits.kernel_send {
        socket.set_send_buffer_size(bytes)?;
    }
    if let Some(bytes) = limits.kernel_receive {
        socket.set_recv_buffer_size(bytes)?;
    }
    if let Some(time) = limits.keep_alive {
        keep_alive(&socket, time)?;
    }
    #[cfg(target_os = "linux")]
    if let Some(time) = limits.user_timeout {
        socket.set_tcp_user_timeout(Some(time))?;
    }
    socket.bind(&address.into())?;
    socket.listen(backlog(limits.backlog))?;
    Ok(socket.into())
}

/// `WSAEACCES` of a bind, with its two causes: an address of this port that belongs to another program
/// exclusively, or to one of another user; and a range of ports that Windows keeps, as Hyper-V has it
/// do ("Using SO_REUSEADDR and SO_EXCLUSIVEADDRUSE", Microsoft Learn, for the first).
#[cfg(windows)]
fn not_given(source: &io::Error) -> io::Error {
    let text = format!(
        "{source}; choose another port: another program has this one (netstat -ano shows it), or Windows \
         keeps it (netsh interface ipv4 show excludedportrange tcp)"
    );
    io::Error::new(source.kind(), text)
}

/// The backlog as `listen` takes it.
#[cfg(not(windows))]
fn backlog(asked: u32) -> i32 {
    i32::try_from(asked).unwrap_or(i32::MAX)
}

/// The same on Windows, which gives 200 at most, unless it is asked by `SOMAXCONN_HINT`: the negated
/// number, of 200 to 65,535 (`listen`, Microsoft Learn).
#[cfg(windows)]
fn backlog(asked: u32) -> i32 {
    match asked {
        0..=200 => asked as i32,
        more => -(more.min(65_535) as i32),
    }
}

/// The probes of keep-alive: the first after `time` of silence, then three, a third of it apart.
fn keep_alive(socket: &Socket, time: Duration) -> io::Result<()> {
    let probes = TcpKeepalive::new().with_time(time);
    #[cfg(any(target_os = "linux", target_vendor = "apple", target_os = "freebsd"))]
    let probes = probes.with_interval((time / 3).max(Duration::from_secs(1))).with_retries(3);
    socket.set_tcp_keepalive(&probes)
}

/// Its name is how the gate finds the tests of Windows.
#[cfg(all(test, windows))]
mod windows {
    use super::*;

    #[test]
    fn a_backlog_beyond_200_is_a_hint() {
        let asked = [1, 200, 201, 4096, 65_535, 1 << 20];
        assert_eq!(asked.map(backlog), [1, 200, -201, -4096, -65_535, -65_535]);
    }

    /// Another program cannot bind the port, not even at a specific address below the wildcard, as
    /// one of the same user otherwise can.
    #[test]
    fn the_port_is_taken_exclusively() {
        for address in ["0.0.0.0:0", "127.0.0.1:0"] {
            let listener = open(address, &Limits::default()).unwrap();
            assert!(crate::driver::iocp::is_exclusive(&listener), "{address}");
            let port = listener.local_addr().unwrap().port();
            let thief = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
            thief.set_reuse_address(true).unwrap();
            let stolen = SocketAddr::from(([127, 0, 0, 1], port));
            thief.bind(&stolen.into()).expect_err("the port has one owner");
        }
    }

    /// A server is restarted while a client of its last run is still connected.
    #[test]
    fn a_port_in_use_is_an_error_with_a_cure() {
        let first = open("127.0.0.1:0", &Limits::default()).unwrap();
        let address = first.local_addr().unwrap().to_string();
        let error = open(&address, &Limits::default()).expect_err("the port has one owner");
        assert!(error.to_string().contains("netstat -ano"), "{error}");
    }

    #[test]
    fn a_port_that_is_not_given_is_an_error_with_a_cure() {
        const WSAEACCES: i32 = 10_013;
        let error = not_given(&io::Error::from_raw_os_error(WSAEACCES));
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        let text = error.to_string();
        assert!(text.contains("10013") && text.contains("; choose another port"), "{text}");
    }
}
