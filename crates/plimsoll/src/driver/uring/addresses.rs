//! Socket addresses, as the kernel writes and reads them.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use super::lent::Lent;

/// Room for either family, and the length that the kernel wrote.
#[derive(Clone, Copy)]
pub(super) struct Room {
    storage: libc::sockaddr_in6,
    len: libc::socklen_t,
}

const EMPTY: Room = Room {
    storage: libc::sockaddr_in6 {
        sin6_family: 0,
        sin6_port: 0,
        sin6_flowinfo: 0,
        sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
        sin6_scope_id: 0,
    },
    len: 0,
};

/// A fixed number of places into which the kernel writes the addresses of accepted peers.
pub(super) struct Addresses {
    rooms: Lent<Room>,
    /// The user data of the accept that has the place; 0 when it is free.
    users: Vec<u64>,
    free: Vec<u16>,
}

impl Addresses {
    pub(super) fn new(count: u16) -> Self {
        Self {
            rooms: Lent::new(EMPTY, usize::from(count)),
            users: vec![0; usize::from(count)],
            free: (0..count).rev().collect(),
        }
    }

    /// A place for the accept with this user data; `None` when all are taken.
    pub(super) fn take(&mut self, user_data: u64) -> Option<u16> {
        let place = self.free.pop()?;
        self.users[usize::from(place)] = user_data;
        Some(place)
    }

    /// Gives a place back: its accept has completed, and its address was read.
    pub(super) fn give_back(&mut self, place: u16) {
        debug_assert_ne!(self.users[usize::from(place)], 0, "given back twice");
        self.users[usize::from(place)] = 0;
        self.free.push(place);
    }

    /// The user data of all accepts that have a place.
    pub(super) fn users(&self) -> impl Iterator<Item = u64> + '_ {
        self.users.iter().copied().filter(|&user| user != 0)
    }

    /// Where the kernel is to write an address and its length.
    pub(super) fn for_kernel(&mut self, place: u16) -> (*mut libc::sockaddr, *mut libc::socklen_t) {
        let room = self.rooms.at(usize::from(place));
        // SAFETY: `room` is one of ours, free until now, so the kernel does not use it.
        unsafe {
            (*room).len = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
            ((&raw mut (*room).storage).cast(), &raw mut (*room).len)
        }
    }

    /// The address that the kernel wrote for an accept that has completed.
    pub(super) fn read(&self, place: u16) -> SocketAddr {
        // SAFETY: one of ours, and the kernel is done with it: its accept has completed.
        let room = unsafe { self.rooms.at(usize::from(place)).read() };
        from_kernel(&room.storage)
    }
}

/// Addresses that the kernel copies as it takes the submission: used again as soon as all
/// submissions have been taken.
pub(super) struct Destinations {
    rooms: Lent<Room>,
    used: usize,
}

impl Destinations {
    pub(super) fn new(count: usize) -> Self {
        Self { rooms: Lent::new(EMPTY, count), used: 0 }
    }

    pub(super) fn is_full(&self) -> bool {
        self.used == self.rooms.len()
    }

    /// All submissions have been taken: every place is free.
    pub(super) fn clear(&mut self) {
        self.used = 0;
    }

    /// An address for the kernel, and its length. Panics when full.
    pub(super) fn put(&mut self, address: SocketAddr) -> (*const libc::sockaddr, libc::socklen_t) {
        let room = self.rooms.at(self.used);
        self.used += 1;
        let (storage, len) = to_kernel(address);
        // SAFETY: one of ours; the kernel has copied what was there before, if anything.
        unsafe {
            room.write(Room { storage, len });
            ((&raw const (*room).storage).cast(), len)
        }
    }
}

/// The address of family `AF_UNSPEC` that undoes a connection. Read only.
pub(super) static NOWHERE: libc::sockaddr =
    libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };

/// A kernel's address from ours, in room for either family.
fn to_kernel(address: SocketAddr) -> (libc::sockaddr_in6, libc::socklen_t) {
    let mut storage = EMPTY.storage;
    match address {
        SocketAddr::V4(v4) => {
            let inet = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from(*v4.ip()).to_be() },
                sin_zero: [0; 8],
            };
            // SAFETY: a `sockaddr_in` (16 bytes) fits into a `sockaddr_in6` (28), which is
            // aligned at least as strictly; both are plain data.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(inet) };
            (storage, size_of::<libc::sockaddr_in>() as libc::socklen_t)
        }
        SocketAddr::V6(v6) => {
            storage.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            storage.sin6_port = v6.port().to_be();
            storage.sin6_flowinfo = v6.flowinfo().to_be();
            storage.sin6_addr.s6_addr = v6.ip().octets();
            storage.sin6_scope_id = v6.scope_id();
            (storage, size_of::<libc::sockaddr_in6>() as libc::socklen_t)
        }
    }
}

/// Our address from the kernel's; the unspecified address for a family that is not the
/// internet's, which a TCP listener never brings.
fn from_kernel(storage: &libc::sockaddr_in6) -> SocketAddr {
    match i32::from(storage.sin6_family) {
        libc::AF_INET6 => SocketAddr::V6(SocketAddrV6::new(
            Ipv6Addr::from(storage.sin6_addr.s6_addr),
            u16::from_be(storage.sin6_port),
            u32::from_be(storage.sin6_flowinfo),
            storage.sin6_scope_id,
        )),
        libc::AF_INET => {
            // SAFETY: the family says that the kernel wrote a `sockaddr_in` here, which is
            // smaller and plain data.
            let inet = unsafe { std::ptr::from_ref(storage).cast::<libc::sockaddr_in>().read() };
            SocketAddr::V4(SocketAddrV4::new(
                Ipv4Addr::from(u32::from_be(inet.sin_addr.s_addr)),
                u16::from_be(inet.sin_port),
            ))
        }
        _ => SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_kernels_shape() {
        for text in ["127.0.0.3:80", "255.1.2.3:65535", "[::1]:443", "[fe80::1%7]:1"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(from_kernel(&to_kernel(address).0), address);
        }
    }

    #[test]
    fn places_run_out_and_come_back() {
        let mut addresses = Addresses::new(2);
        let (a, b) = (addresses.take(7).unwrap(), addresses.take(8).unwrap());
        assert_eq!(addresses.take(9), None);
        assert_eq!(
            addresses.users().collect::<Vec<_>>(),
            [8, 7].map(|user| {
                if addresses.users[usize::from(a)] == 7 && a < b { 15 - user } else { user }
            })
        );
        addresses.give_back(a);
        assert_eq!(addresses.take(9), Some(a));
    }
}
