//! Memory that the kernel writes to: one extended `OVERLAPPED` for each operation there can be.
//!
//! All are allocated when the driver is made, at addresses that never change, and are freed after the
//! last completion has come ([`super::leave`]). Which operation a completion is of is told by the
//! *address* of its `OVERLAPPED` and by the token beside it, never by the completion key: a socket
//! that is used again delivers under the key of its first association.
//!
//! # The rule that soundness rests on
//!
//! From the call that posts an operation until its completion is dequeued the `OVERLAPPED` is the
//! kernel's: it is not written, not armed again, not freed, and no reference to it is made. It is
//! reached through raw pointers only.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use windows_sys::Win32::System::IO::OVERLAPPED;

use crate::driver::{Kind, Token};

/// Zero-filled cells at fixed addresses. They are freed when this is dropped: not before the kernel is
/// done with them.
pub(super) struct Pinned<T> {
    start: NonNull<T>,
    len: usize,
}

impl<T: Zeroed> Pinned<T> {
    /// So many cells, zero-filled.
    pub(super) fn new(len: usize) -> Self {
        let len = len.max(1);
        let layout = Self::layout(len);
        // SAFETY: the layout is of at least one cell, which is not empty.
        let memory = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(memory.cast()) else { handle_alloc_error(layout) };
        Self { start, len }
    }

    fn layout(len: usize) -> Layout {
        Layout::array::<T>(len).expect("tables are far below the size of the address space")
    }

    /// The address of a cell. Panics where there is no such cell.
    #[inline]
    pub(super) fn at(&self, index: usize) -> *mut T {
        assert!(index < self.len, "cell {index} of {}", self.len);
        // SAFETY: inside the allocation, checked above.
        unsafe { self.start.add(index).as_ptr() }
    }

    /// Which cell begins at this address; `None` where none does.
    #[inline]
    pub(super) fn index_of<U>(&self, address: *const U) -> Option<usize> {
        let offset = address.addr().checked_sub(self.start.addr().get())?;
        let index = offset / size_of::<T>();
        (offset % size_of::<T>() == 0 && index < self.len).then_some(index)
    }
}

impl<T> Drop for Pinned<T> {
    fn drop(&mut self) {
        let layout = Layout::array::<T>(self.len).expect("it was allocated");
        // SAFETY: allocated by `new` with this layout; the kernel is done with it, says whoever
        // drops it.
        unsafe { dealloc(self.start.as_ptr().cast(), layout) };
    }
}

/// A type of which zeroes are a value, and that needs no drop.
///
/// # Safety
///
/// All bits zero are a valid value, the type is not empty, and has no `Drop`.
pub(super) unsafe trait Zeroed {}

/// An extended `OVERLAPPED`.
#[repr(C)]
pub(super) struct Operation {
    /// First, so that its address is the operation's.
    overlapped: OVERLAPPED,
    /// The token it was posted with.
    token: u64,
    /// What `WSARecv` reads flags from, and may write them to until it completes.
    flags: u32,
    /// What `AcceptEx` may write a count to until it completes; nobody reads it.
    count: u32,
}

// SAFETY: numbers, null pointers.
unsafe impl Zeroed for Operation {}

/// Room for the addresses of an accepted connection: each is that of a `SOCKADDR_IN6` and 16 bytes
/// more, as `AcceptEx` demands.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Addresses([u8; 2 * Self::EACH]);

impl Addresses {
    /// Bytes for each of the two.
    pub(super) const EACH: usize = 28 + 16;
}

// SAFETY: bytes.
unsafe impl Zeroed for Addresses {}

/// Which operation an `OVERLAPPED` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Of this kind, of this slot.
    Slot(u32, Kind),
    /// The accept of this number.
    Accept(u32),
    /// The disconnect of this number.
    Limbo(u32),
}

/// The kinds that have an `OVERLAPPED` in each slot.
const KINDS: [Kind; 4] = [Kind::Connect, Kind::Park, Kind::Receive, Kind::Send];

/// All operations of a driver.
pub(super) struct Operations {
    cells: Pinned<Operation>,
    slots: usize,
    accepts: usize,
}

impl Operations {
    pub(super) fn new(slots: usize, accepts: usize, limbo: usize) -> Self {
        Self { cells: Pinned::new(slots * KINDS.len() + accepts + limbo), slots, accepts }
    }

    fn index(&self, place: Place) -> usize {
        match place {
            Place::Slot(slot, kind) => {
                let at = match kind {
                    Kind::Connect => 0,
                    Kind::Park => 1,
                    Kind::Receive => 2,
                    Kind::Send => 3,
                    Kind::Accept | Kind::HandOver | Kind::HalfClose | Kind::Close => {
                        unreachable!("{kind:?} is not overlapped")
                    }
                };
                slot as usize * KINDS.len() + at
            }
            Place::Accept(number) => self.slots * KINDS.len() + number as usize,
            Place::Limbo(number) => self.slots * KINDS.len() + self.accepts + number as usize,
        }
    }

    /// Which operation an `OVERLAPPED` is, by its address, and the token it was armed with. `None`
    /// where it is none of ours.
    #[inline]
    pub(super) fn find(&self, overlapped: *const OVERLAPPED) -> Option<(Place, u64)> {
        let index = self.cells.index_of(overlapped)?;
        let of_slots = self.slots * KINDS.len();
        let place = if index < of_slots {
            Place::Slot((index / KINDS.len()) as u32, KINDS[index % KINDS.len()])
        } else if index < of_slots + self.accepts {
            Place::Accept((index - of_slots) as u32)
        } else {
            Place::Limbo((index - of_slots - self.accepts) as u32)
        };
        // SAFETY: inside the table. The token is written by `arm` only, on this thread.
        Some((place, unsafe { (*self.cells.at(index)).token }))
    }

    /// Makes an operation ready to be posted, which must not be in flight.
    #[inline]
    pub(super) fn arm(&self, place: Place, token: Option<Token>) -> Armed {
        let operation = self.cells.at(self.index(place));
        let token = token.map_or(0, Token::bits);
        let fresh = Operation { overlapped: OVERLAPPED::default(), token, flags: 0, count: 0 };
        // SAFETY: inside the table; it is not the kernel's, for it is not in flight: at most one
        // operation of a kind and slot is, whose bit in `Slot::kernel` the caller has looked at
        // (of an accept or a disconnect: its number was free).
        unsafe { operation.write(fresh) };
        Armed(operation)
    }

    /// The address of an operation in flight, to cancel it by.
    pub(super) fn overlapped(&self, place: Place) -> *const OVERLAPPED {
        self.cells.at(self.index(place)).cast()
    }
}

/// An operation that is about to be posted.
#[derive(Clone, Copy)]
pub(super) struct Armed(*mut Operation);

impl Armed {
    /// The address that the completion will have.
    pub(super) fn overlapped(self) -> *mut OVERLAPPED {
        // The first member's address is the whole's (`repr(C)`), and keeps its provenance.
        self.0.cast()
    }

    /// Where flags are, as long as the operation is in flight.
    pub(super) fn flags(self) -> *mut u32 {
        // SAFETY: a member of a cell of the table, which is alive.
        unsafe { &raw mut (*self.0).flags }
    }

    /// Where a count may be put, as long as the operation is in flight.
    pub(super) fn count(self) -> *mut u32 {
        // SAFETY: as above.
        unsafe { &raw mut (*self.0).count }
    }

    /// The bytes that an operation has moved that has completed at once, and of which no
    /// completion will be told.
    pub(super) fn moved(self) -> u32 {
        // SAFETY: the kernel is done with it, as the caller was told by the call that posted it.
        unsafe { (*self.overlapped()).InternalHigh as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_found_by_its_address_alone() {
        let operations = Operations::new(3, 2, 2);
        let places = [
            Place::Slot(0, Kind::Connect),
            Place::Slot(2, Kind::Send),
            Place::Slot(1, Kind::Receive),
            Place::Accept(0),
            Place::Accept(1),
            Place::Limbo(1),
        ];
        for (number, place) in (1..).zip(places) {
            let token = Token::new(Kind::Park, number, 7);
            let armed = operations.arm(place, Some(token));
            assert_eq!(operations.find(armed.overlapped()), Some((place, token.bits())));
            let inside = armed.overlapped().cast::<u8>().wrapping_add(8);
            assert_eq!(operations.find(inside.cast()), None);
        }
        assert_eq!(operations.find(std::ptr::null()), None);
        let beyond =
            operations.overlapped(Place::Limbo(1)).wrapping_byte_add(size_of::<Operation>());
        assert_eq!(operations.find(beyond), None);
        assert_eq!(size_of::<Operation>(), 48);
    }
}
