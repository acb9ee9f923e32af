//! One `io_uring`: its two queues, and the system call between them.

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::thread::ThreadId;

use io_uring::squeue::Entry;
use io_uring::{IoUring, cqueue};

use super::ops::Bare;
use crate::driver::Nanos;

/// Pieces of deferred work that one enter is asked for, and so about how many completions a turn
/// has: as many as the kernel runs unasked (`IO_LOCAL_TW_DEFAULT_MAX`, `io_uring/io_uring.c`).
///
/// A turn receives from all its sessions, and then sends to all of them. With more of them than
/// fit in the second-level cache (a socket is some 5 KB) each is fetched twice: 64 B echoes on
/// 1,000 connections cost 1.03 of epoll's processor time with 16 in a batch, 1.05 with 32, 1.07
/// with 64 and 1.10 with 256, in the same sweeps; an enter for each 20 is 1 to 2 % of that time.
pub(super) const BATCH: u32 = 20;

/// A multishot receive posts up to 32 completions and one more for one piece of work
/// (`MULTISHOT_MAX_RETRY`, `io_uring/net.c`), and a queue that overflows ends it.
const COMPLETIONS_PER_WORK: u32 = 33;

// From `include/uapi/linux/io_uring.h`; the crate keeps its own copies private.
const IORING_ENTER_GETEVENTS: u32 = 1 << 0;
const IORING_ENTER_EXT_ARG: u32 = 1 << 3;
const IORING_ENTER_REGISTERED_RING: u32 = 1 << 4;
const IORING_ENTER_ABS_TIMER: u32 = 1 << 5;
const IORING_ENTER_NO_IOWAIT: u32 = 1 << 7;
const IORING_REGISTER_RING_FDS: u32 = 20;
const IORING_UNREGISTER_RING_FDS: u32 = 21;

/// `struct io_uring_getevents_arg`.
#[repr(C)]
struct WaitArgument {
    sigmask: u64,
    sigmask_bytes: u32,
    min_wait_usec: u32,
    timespec: u64,
}

/// `struct __kernel_timespec`.
#[repr(C)]
struct KernelTimespec {
    seconds: i64,
    nanoseconds: i64,
}

/// `struct io_uring_rsrc_update`.
#[repr(C)]
struct ResourceUpdate {
    offset: u32,
    reserved: u32,
    data: u64,
}

/// A ring, disabled until the first enter: `SINGLE_ISSUER` binds it to the thread that enables it.
pub(super) struct Ring {
    uring: IoUring,
    /// Who enabled it; only this thread may enter.
    owner: Option<ThreadId>,
    /// The ring's number among the registered ring descriptors of its owner.
    registered: Option<u32>,
    /// Submissions that the kernel would not take yet, oldest first.
    refused: VecDeque<Entry>,
    /// Queued operations that post a completion while they are submitted, whatever comes.
    certain: u32,
    /// Whether the end of a wait can be a moment, and not a time from now (Linux 6.12).
    absolute: bool,
    /// Flags of an enter that sleeps.
    sleep_flags: u32,
}

impl Ring {
    /// A ring for `slots` slots, with room for streams or not. Allocates everything.
    ///
    /// # Errors
    ///
    /// What `io_uring_setup(2)` or `mmap(2)` said.
    pub(super) fn new(slots: u32, streams: bool) -> io::Result<Self> {
        // A turn queues one or two submissions for each completion; more than fit cost an
        // enter more, nothing else. Both queues are used round and round: small ones stay in the
        // cache.
        let submissions = slots.saturating_mul(2).next_power_of_two().clamp(64, 256);
        let completions = if streams { COMPLETIONS_PER_WORK * BATCH } else { BATCH + submissions };
        let mut builder = IoUring::builder();
        builder
            .setup_r_disabled()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(completions)
            .setup_clamp();
        // NO_SQARRAY came with Linux 6.6; before that an unknown flag is EINVAL.
        let uring = match builder.clone().setup_no_sqarray().build(submissions) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                builder.build(submissions)?
            }
            other => other?,
        };
        // Came with the same version as the least duration of a wait, which has a feature flag.
        let absolute = uring.params().is_feature_min_timeout();
        let mut sleep_flags = IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG;
        if absolute {
            sleep_flags |= IORING_ENTER_ABS_TIMER;
        }
        if uring.params().is_feature_no_iowait() {
            // A server that waits for clients is idle, not waiting for a disk.
            sleep_flags |= IORING_ENTER_NO_IOWAIT;
        }
        Ok(Self {
            uring,
            owner: None,
            registered: None,
            // What all slots could have queued between two waits; address space, not memory,
            // until the kernel refuses submissions.
            refused: VecDeque::with_capacity(slots as usize * 12 + 1024),
            certain: 0,
            absolute,
            sleep_flags,
        })
    }

    /// The crate's handle, to register things with.
    pub(super) fn submitter(&self) -> io_uring::Submitter<'_> {
        self.uring.submitter()
    }

    /// Enables the ring, and makes the calling thread its owner. Once; later calls do nothing.
    pub(super) fn enable(&mut self) -> io::Result<()> {
        if self.owner.is_some() {
            return Ok(());
        }
        self.uring.submitter().register_enable_rings()?;
        self.owner = Some(std::thread::current().id());
        let mut update = ResourceUpdate { offset: u32::MAX, reserved: 0, data: self.fd() as u64 };
        // SAFETY: the kernel reads and writes one `io_uring_rsrc_update`, which `update` is.
        let registered = unsafe {
            libc::syscall(
                libc::SYS_io_uring_register,
                self.fd(),
                IORING_REGISTER_RING_FDS,
                &raw mut update,
                1u32,
            )
        };
        // A thread has room for 16 rings; without a place there the descriptor does as well.
        self.registered = (registered == 1).then_some(update.offset);
        Ok(())
    }

    /// Whether the calling thread may enter.
    pub(super) fn is_owner(&self) -> bool {
        self.owner == Some(std::thread::current().id())
    }

    /// Whether it was ever enabled: before, the kernel has seen no submission.
    pub(super) fn is_enabled(&self) -> bool {
        self.owner.is_some()
    }

    fn fd(&self) -> RawFd {
        self.uring.as_raw_fd()
    }

    /// Queues an operation that refers to no memory.
    #[inline]
    pub(super) fn push(&mut self, operation: Bare) {
        // SAFETY: a `Bare` refers to no memory.
        unsafe { self.push_entry(operation.into_entry()) }
    }

    /// Queues an operation that is sure to complete as it is submitted, and refers to no memory.
    #[inline]
    pub(super) fn push_certain(&mut self, operation: Bare) {
        self.certain += 1;
        self.push(operation);
    }

    /// Counts an operation, queued by [`Ring::push_entry`], that is sure to complete as it is
    /// submitted.
    #[inline]
    pub(super) fn count_certain(&mut self) {
        self.certain += 1;
    }

    /// Queues an operation. A full queue is submitted first; what the kernel does not take then
    /// is kept, in order.
    ///
    /// # Safety
    ///
    /// What the entry points to must stay valid until the operation has completed, or, where the
    /// kernel copies it (`IORING_FEAT_SUBMIT_STABLE`: addresses, message headers, vectors), until
    /// [`Ring::all_submitted`].
    #[inline]
    pub(super) unsafe fn push_entry(&mut self, entry: Entry) {
        if self.refused.is_empty() {
            // SAFETY: the caller's promise.
            if unsafe { self.uring.submission().push(&entry) }.is_ok() {
                return;
            }
            self.submit();
            // SAFETY: the caller's promise.
            if unsafe { self.uring.submission().push(&entry) }.is_ok() {
                return;
            }
        }
        self.refused.push_back(entry);
    }

    /// Submits what is queued, without running completions' work or waiting.
    ///
    /// Errors come again, and are handled, at the next wait.
    pub(super) fn submit(&mut self) {
        if self.enable().is_ok() {
            let _ = self.enter(0, 0, None);
            // What was sure to complete has: it is counted among those that wait.
            self.certain = 0;
            self.requeue();
        }
    }

    /// Whether the kernel has taken every submission.
    pub(super) fn all_submitted(&mut self) -> bool {
        self.refused.is_empty() && self.uring.submission().is_empty()
    }

    /// Moves what was refused back into the queue, as far as there is room.
    fn requeue(&mut self) {
        while let Some(entry) = self.refused.front() {
            // SAFETY: promised by who called `push_entry`: not submitted yet, so still valid.
            if unsafe { self.uring.submission().push(entry) }.is_err() {
                break;
            }
            self.refused.pop_front();
        }
    }

    /// Completions that are there to be reaped.
    pub(super) fn waiting(&mut self) -> usize {
        self.uring.completion().len()
    }

    /// Whether submitting what is queued brings completions for sure.
    pub(super) fn is_certain(&self) -> bool {
        self.certain > 0
    }

    /// Whether the kernel has work to run that will bring completions, or completions that did not
    /// fit: an enter would not be for nothing. Costs a load.
    pub(super) fn has_work(&mut self) -> bool {
        let submission = self.uring.submission();
        submission.taskrun() || submission.cq_overflow()
    }

    /// Whether there are completions that did not fit the queue. Costs a load.
    pub(super) fn has_overflowed(&mut self) -> bool {
        self.uring.submission().cq_overflow()
    }

    /// Whether an enter would do anything.
    pub(super) fn is_idle(&mut self) -> bool {
        self.all_submitted() && !self.has_work()
    }

    /// Takes up to `chunk.len()` completions out of the queue.
    #[inline]
    pub(super) fn reap<'a>(
        &mut self,
        chunk: &'a mut [MaybeUninit<cqueue::Entry>],
    ) -> &'a mut [cqueue::Entry] {
        self.uring.completion().fill(chunk)
    }

    /// Submits, runs work that waits (20 pieces at least; as many as there are sure completions,
    /// if that is more), and does not sleep.
    pub(super) fn turn(&mut self) -> io::Result<()> {
        self.enable()?;
        self.requeue();
        // A count that is there after submission for sure: the kernel runs as many pieces of work
        // as it is told to wait for, then finds that it need not wait. With refused submissions
        // it might have to, so not then.
        let there = self.waiting() as u32 + std::mem::take(&mut self.certain);
        let wanted = if self.refused.is_empty() { there.min(BATCH) } else { 0 };
        let outcome = self.enter(wanted, IORING_ENTER_GETEVENTS, None);
        self.settle(outcome)
    }

    /// Submits, and sleeps until something has completed, or until `until`.
    ///
    /// One completion ends the sleep, and what else there is to run is run by the turns that follow. A
    /// batch with a least duration (`min_wait_usec`) gathers no more: its timer interrupts the sleep
    /// as soon as the processor is idle, and a message of a server that mostly sleeps cost twice as
    /// much.
    pub(super) fn sleep(&mut self, now: Nanos, until: Option<Nanos>) -> io::Result<()> {
        self.enable()?;
        self.requeue();
        if !self.refused.is_empty() {
            // The kernel has no memory for a request: let it be for a moment.
            std::thread::sleep(std::time::Duration::from_millis(1));
            return self.turn();
        }
        let end =
            until.map(|until| if self.absolute { until.0 } else { until.0.saturating_sub(now.0) });
        let timespec = end.map(|end| KernelTimespec {
            seconds: (end / 1_000_000_000) as i64,
            nanoseconds: (end % 1_000_000_000) as i64,
        });
        let argument = WaitArgument {
            sigmask: 0,
            sigmask_bytes: 0,
            min_wait_usec: 0,
            timespec: timespec.as_ref().map_or(0, |timespec| std::ptr::from_ref(timespec) as u64),
        };
        let outcome = self.enter(1, self.sleep_flags, Some(&argument));
        self.settle(outcome)
    }

    /// Sorts what an enter said into what happens and what must not.
    fn settle(&mut self, outcome: Result<(), i32>) -> io::Result<()> {
        self.certain = 0;
        match outcome {
            Ok(())
            // The end of the wait has come.
            | Err(libc::ETIME
            // A signal: the caller looks around and comes again.
            | libc::EINTR
            // No memory for a request: submissions stay queued, and go with the next enter.
            | libc::EAGAIN
            | libc::ENOMEM
            // The completion queue is full; completions wait in the kernel until it is reaped.
            | libc::EBUSY) => Ok(()),
            // EEXIST, or whatever the registered descriptor means to this thread.
            Err(code) if !self.is_owner() => Err(io::Error::other(format!(
                "an io_uring is used by the thread that used it first, and by no other: {}",
                io::Error::from_raw_os_error(code)
            ))),
            // EBADR: completions were lost for want of memory, so sessions would hang for ever.
            // EBADFD: not enabled. Anything else: unexpected.
            Err(code) => Err(io::Error::from_raw_os_error(code)),
        }
    }

    /// `io_uring_enter(2)`.
    fn enter(&mut self, wanted: u32, flags: u32, wait: Option<&WaitArgument>) -> Result<(), i32> {
        let queued = self.uring.submission().len() as u32;
        let (fd, flags) = match self.registered {
            Some(index) => (index as RawFd, flags | IORING_ENTER_REGISTERED_RING),
            None => (self.fd(), flags),
        };
        let (argument, bytes) = match wait {
            Some(argument) => (std::ptr::from_ref(argument), size_of::<WaitArgument>()),
            None => (std::ptr::null(), 0),
        };
        // SAFETY: the descriptor is this ring's; the argument, and the time that it points to,
        // live in our caller until the call returns. What the queued submissions point to was
        // promised to `push_entry`.
        let taken = unsafe {
            libc::syscall(libc::SYS_io_uring_enter, fd, queued, wanted, flags, argument, bytes)
        };
        if taken >= 0 {
            return Ok(());
        }
        Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let (Some(offset), true) = (self.registered, self.is_owner()) else { return };
        // The registered descriptor keeps the ring alive as the other one does.
        let mut update = ResourceUpdate { offset, reserved: 0, data: 0 };
        // SAFETY: the kernel reads one `io_uring_rsrc_update`, which `update` is.
        unsafe {
            libc::syscall(
                libc::SYS_io_uring_register,
                self.fd(),
                IORING_UNREGISTER_RING_FDS,
                &raw mut update,
                1u32,
            );
        }
    }
}
