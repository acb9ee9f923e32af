//! Message headers for sends of several spans.

use super::lent::Lent;
use crate::buffer::{Memory, Span};
use crate::driver::MAX_SPANS;

/// A header and the vector it points to.
#[derive(Clone, Copy)]
struct Message {
    header: libc::msghdr,
    parts: [libc::iovec; MAX_SPANS],
}

// SAFETY: the pointers inside are written for the kernel and never followed by us.
unsafe impl Send for Message {}

const NO_PART: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

/// A fixed number of headers. The kernel copies a header and its vector as it takes the submission
/// (`IORING_FEAT_SUBMIT_STABLE`), so they are used again as soon as all have been taken: a
/// few, and always the same.
pub(super) struct Gather {
    messages: Lent<Message>,
    used: usize,
}

impl Gather {
    pub(super) fn new(count: usize) -> Self {
        // SAFETY: a `msghdr` of zeros is a valid one: null pointers, zero lengths.
        let header: libc::msghdr = unsafe { std::mem::zeroed() };
        let empty = Message { header, parts: [NO_PART; MAX_SPANS] };
        Self { messages: Lent::new(empty, count), used: 0 }
    }

    pub(super) fn is_full(&self) -> bool {
        self.used == self.messages.len()
    }

    /// All submissions have been taken: every header is free.
    pub(super) fn clear(&mut self) {
        self.used = 0;
    }

    /// A header for these spans, at most [`MAX_SPANS`]. Panics when full.
    pub(super) fn put(&mut self, spans: &[Span], memory: &Memory) -> *const libc::msghdr {
        assert!(spans.len() <= MAX_SPANS, "{} spans", spans.len());
        let message = self.messages.at(self.used);
        self.used += 1;
        // SAFETY: one of ours; the kernel has copied what was there before, if anything.
        unsafe {
            for (index, span) in spans.iter().enumerate() {
                (*message).parts[index] = libc::iovec {
                    iov_base: memory.start_of_span(*span).as_ptr().cast(),
                    iov_len: span.len as usize,
                };
            }
            (*message).header.msg_iov = (&raw mut (*message).parts).cast();
            (*message).header.msg_iovlen = spans.len() as _;
            &raw const (*message).header
        }
    }
}
