//! A bare `io_uring` echo server: multishot accept into direct descriptors,
//! multishot receive into provided buffers, sends on the ring out of the very
//! buffer that was received into, and batched waits.
//!
//! A turn is one `io_uring_enter(2)`: it carries out the sends of the turn
//! before (`MSG_DONTWAIT`: at once, never by a worker), then runs up to
//! `--min-complete` receives. Sends that succeed post no completion
//! (`IOSQE_CQE_SKIP_SUCCESS`): `MSG_WAITALL` makes a short one count as failed,
//! so its completion comes in any case. By the end of the next turn every send
//! has therefore either been reported or is done, and its buffer goes back.
//! At most one send of a connection is in flight; what arrives meanwhile is
//! copied and sent after it.

#![allow(unsafe_code, reason = "submissions point to memory that must outlive them")]

use std::io::{self, ErrorKind};
use std::mem;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, RawFd};

use clap::{Parser, ValueEnum};
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fd, Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode};
use plimsoll_peers::buffer_ring::{BufferRing, GROUP};
use plimsoll_peers::peer::{self, PeerArgs};
use plimsoll_peers::sys;

/// A connection that has more than this copied and unsent is not read any
/// further until all of it is gone, in bytes.
const UNSENT_HIGH: usize = 256 * 1024;

/// Submissions that fit before an extra enter; one turn makes about as many
/// as it has completions.
const SUBMISSIONS: u32 = 4096;

/// A multishot receive posts up to 33 completions in one go (kernel:
/// `MULTISHOT_MAX_RETRY` 32, and one), and an overflow would end it.
const COMPLETIONS_PER_RECEIVE: u32 = 33;

/// A bare `io_uring` echo server on one thread
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    peer: PeerArgs,

    /// Provided buffers: a power of two
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u16).range(2..=32768))]
    buffers: u16,

    /// Size of one provided buffer
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    buffer_bytes: u32,

    /// Bytes left free between two buffers, so that their beginnings do not
    /// all fall into the same few sets of the processor's caches
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=4096))]
    buffer_gap: u16,

    /// Completions that a wait asks for
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1024))]
    min_complete: u32,

    /// Microseconds after which one completion is enough to end the wait; 0: the
    /// first one ends it, and no timer is armed
    #[arg(long, default_value_t = 1)]
    min_wait: u32,

    /// Where accepted connections live
    #[arg(long, value_enum, default_value_t = Table::Direct)]
    descriptors: Table,

    /// How an echo is sent: `call` is send(2) and needs plain descriptors
    #[arg(long, value_enum, default_value_t = SendPath::Quiet)]
    send: SendPath,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Table {
    /// In the ring's own table
    Direct,
    /// As descriptors of the process
    Plain,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SendPath {
    /// On the ring, without a completion when all was taken
    Quiet,
    /// On the ring, with a completion each
    Reported,
    /// By send(2), as the receive is reaped
    Call,
}

fn main() -> std::process::ExitCode {
    let args = Args::parse();
    if args.send == SendPath::Call && args.descriptors == Table::Direct {
        eprintln!("--send call needs --descriptors plain: send(2) takes no direct descriptor");
        return std::process::ExitCode::from(2);
    }
    peer::exit(args.peer.start().and_then(|listener| Server::new(listener, &args)?.run()))
}

/// What a completion belongs to, as the top byte of its `user_data`; below it
/// the generation (8 bits), the buffer (16 bits) and the slot (32 bits).
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Accept = 1,
    Receive,
    /// A send out of a provided buffer.
    Echo,
    /// A send out of `Connection::sending`, carried out when the socket is writable.
    Backlog,
    /// Nobody waits for it: a close, a cancel.
    Other,
}

impl Kind {
    fn token(self, generation: u8, buffer: u16, slot: u32) -> u64 {
        (self as u64) << 56
            | u64::from(generation) << 48
            | u64::from(buffer) << 32
            | u64::from(slot)
    }
}

/// One connection; its slot is its direct index, or its descriptor.
#[derive(Default)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "independent facts, each set by another completion"
)]
struct Connection {
    /// Counts the lives of this slot, to tell a late receive from a new one's.
    generation: u8,
    /// The slot holds a connection that we have not closed.
    open: bool,
    /// A multishot receive is armed.
    receiving: bool,
    /// The peer has sent its last byte, or the connection has failed.
    ended: bool,
    /// Sends have failed: what is unsent is thrown away.
    broken: bool,
    /// A send out of a provided buffer is in flight, of this many bytes.
    echo: Option<u32>,
    /// The bytes of the backlog send in flight; not touched until it completes.
    sending: Vec<u8>,
    /// Bytes received while a send was in flight.
    unsent: Vec<u8>,
    echoed: u64,
}

struct Server {
    ring: IoUring,
    buffers: BufferRing,
    listener: TcpListener,
    accepting: bool,
    connections: Vec<Connection>,
    /// Sends out of provided buffers, of this turn: slot and buffer.
    batch: Vec<(u32, u16)>,
    /// Connections whose receive found no free buffer.
    starved: Vec<u32>,
    /// Something waits for the end of the batch: the next enter must not wait.
    urgent: bool,
    descriptors: Table,
    send: SendPath,
    min_complete: u32,
    min_wait: u32,
    close_after: u64,
}

impl Server {
    fn new(listener: TcpListener, args: &Args) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_cqsize((args.min_complete * COMPLETIONS_PER_RECEIVE).max(2 * SUBMISSIONS))
            .setup_clamp()
            .build(SUBMISSIONS)?;
        let slots = sys::descriptor_limit()?.min(16 * 1024) as u32;
        if args.descriptors == Table::Direct {
            ring.submitter().register_files_sparse(slots)?;
        }
        let stride = args.buffer_bytes as usize + usize::from(args.buffer_gap);
        let buffers = BufferRing::register(&ring, args.buffers, args.buffer_bytes, stride)?;
        Ok(Self {
            ring,
            buffers,
            listener,
            accepting: false,
            connections: Vec::new(),
            batch: Vec::new(),
            starved: Vec::new(),
            urgent: false,
            descriptors: args.descriptors,
            send: args.send,
            min_complete: args.min_complete,
            min_wait: args.min_wait,
            close_after: args.peer.close_after(),
        })
    }

    fn run(mut self) -> io::Result<()> {
        let mut completions: Vec<cqueue::Entry> = Vec::with_capacity(16 * 1024);
        let mut previous = Vec::new();
        self.arm_accept()?;
        loop {
            self.enter()?;
            mem::swap(&mut previous, &mut self.batch);
            completions.extend(self.ring.completion());
            for completion in completions.drain(..) {
                self.complete(&completion)?;
            }
            self.finish(&mut previous)?;
        }
    }

    /// Submits everything and waits, unless something is urgent.
    fn enter(&mut self) -> io::Result<()> {
        let outcome = if mem::take(&mut self.urgent) {
            self.ring.submit()
        } else if self.min_wait == 0 {
            self.ring.submit_and_wait(1)
        } else {
            // Without a long deadline as well, the kernel takes the short one
            // for the only one, and an idle server would wake every microsecond.
            let idle = Timespec::new().sec(3600);
            let args = SubmitArgs::new().min_wait_usec(self.min_wait).timespec(&idle);
            self.ring.submitter().submit_with_args(self.min_complete as usize, &args)
        };
        match outcome {
            Ok(_) => Ok(()),
            // The deadline; a signal; completions to be reaped first.
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR | libc::EBUSY) => Ok(()),
                _ => Err(error),
            },
        }
    }

    fn complete(&mut self, completion: &cqueue::Entry) -> io::Result<()> {
        let token = completion.user_data();
        let slot = token as u32;
        let more = cqueue::more(completion.flags());
        match (token >> 56) as u8 {
            kind if kind == Kind::Accept as u8 => self.accepted(completion.result(), more),
            kind if kind == Kind::Receive as u8 => {
                let buffer = cqueue::buffer_select(completion.flags());
                if self.connections[slot as usize].generation == (token >> 48) as u8 {
                    self.received(slot, completion.result(), buffer, more)
                } else {
                    // The connection was closed while this was under way.
                    if let Some(id) = buffer {
                        self.buffers.give(id);
                    }
                    Ok(())
                }
            }
            kind if kind == Kind::Echo as u8 => {
                self.echo_failed(slot, (token >> 32) as u16, completion.result());
                Ok(())
            }
            kind if kind == Kind::Backlog as u8 => self.backlog_sent(slot, completion.result()),
            _ => Ok(()),
        }
    }

    fn accepted(&mut self, result: i32, more: bool) -> io::Result<()> {
        self.accepting = more;
        if result >= 0 {
            let slot = result as u32;
            if self.connections.len() <= slot as usize {
                self.connections.resize_with(slot as usize + 1, Connection::default);
            }
            self.connections[slot as usize].open = true;
            self.arm_receive(slot)?;
        }
        match -result {
            // Out of slots or descriptors: the next close arms it again.
            libc::ENFILE | libc::EMFILE => Ok(()),
            _ if more => Ok(()),
            _ => self.arm_accept(),
        }
    }

    fn received(
        &mut self,
        slot: u32,
        result: i32,
        buffer: Option<u16>,
        more: bool,
    ) -> io::Result<()> {
        let connection = &mut self.connections[slot as usize];
        connection.receiving = more;
        match (result, buffer) {
            (1.., Some(id)) => self.echo(slot, id, result as u32)?,
            // No buffer was free; they come back when the batch is finished.
            (starved, _) if starved == -libc::ENOBUFS => {
                self.starved.push(slot);
                self.urgent = true;
                return Ok(());
            }
            // We cancelled it, because too much is unsent.
            (cancelled, _) if cancelled == -libc::ECANCELED => {}
            _ => connection.ended = true,
        }
        if more { Ok(()) } else { self.settle(slot) }
    }

    /// Sends what was received back, or keeps it when a send is in flight.
    fn echo(&mut self, slot: u32, buffer: u16, length: u32) -> io::Result<()> {
        let connection = &mut self.connections[slot as usize];
        let busy = connection.echo.is_some() || !connection.sending.is_empty();
        if !busy && connection.unsent.is_empty() && self.send != SendPath::Call {
            connection.echo = Some(length);
            // A send that succeeds wakes nobody, and after this one we must close.
            self.urgent |= connection.echoed + u64::from(length) >= self.close_after;
            self.batch.push((slot, buffer));
            return self.push_echo(slot, buffer, length);
        }
        let mut bytes = self.buffers.filled(buffer, length);
        if self.send == SendPath::Call && !busy && connection.unsent.is_empty() {
            match sys::send(slot as RawFd, bytes) {
                Ok(sent) => {
                    connection.echoed += sent as u64;
                    bytes = &bytes[sent..];
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => connection.broken = true,
            }
        }
        connection.unsent.extend_from_slice(bytes);
        let pause = connection.receiving && connection.unsent.len() > UNSENT_HIGH;
        let generation = connection.generation;
        self.buffers.give(buffer);
        if pause {
            self.cancel_receive(slot, generation)?;
        }
        // With a send of this batch in flight, `finish` comes back to it.
        if self.connections[slot as usize].echo.is_some() {
            self.urgent = true;
            return Ok(());
        }
        self.settle(slot)
    }

    /// A send out of a buffer did not take everything (or reports that it did).
    fn echo_failed(&mut self, slot: u32, buffer: u16, result: i32) {
        let connection = &mut self.connections[slot as usize];
        // Set when the send was submitted, cleared by `finish` only.
        let Some(length) = connection.echo else { return };
        let sent = match result {
            0.. => result as u32,
            _ if result == -libc::EAGAIN => 0,
            _ => {
                connection.broken = true;
                return;
            }
        };
        if sent < length {
            let rest = &self.buffers.filled(buffer, length)[sent as usize..];
            // In front of what may have been received meanwhile.
            connection.unsent.splice(0..0, rest.iter().copied());
        }
    }

    fn backlog_sent(&mut self, slot: u32, result: i32) -> io::Result<()> {
        let connection = &mut self.connections[slot as usize];
        let sent = mem::take(&mut connection.sending);
        if result < 0 {
            connection.broken = true;
        } else {
            connection.echoed += result as u64;
            connection.unsent.splice(0..0, sent[result as usize..].iter().copied());
        }
        self.settle(slot)
    }

    /// Ends the sends of the turn before: each has been carried out, and those
    /// that failed have been reported.
    fn finish(&mut self, previous: &mut Vec<(u32, u16)>) -> io::Result<()> {
        for (slot, buffer) in previous.drain(..) {
            self.buffers.give(buffer);
            let connection = &mut self.connections[slot as usize];
            connection.echoed += u64::from(connection.echo.take().unwrap_or(0));
            if connection.echoed >= self.close_after
                || connection.ended
                || connection.broken
                || !connection.unsent.is_empty()
                || !connection.receiving
            {
                self.settle(slot)?;
            }
        }
        self.buffers.publish();
        for slot in mem::take(&mut self.starved) {
            self.settle(slot)?;
        }
        Ok(())
    }

    /// Decides what a connection does next, when anything but its plain
    /// receive–echo cycle has happened.
    fn settle(&mut self, slot: u32) -> io::Result<()> {
        let connection = &mut self.connections[slot as usize];
        if connection.echo.is_some() {
            self.urgent = true;
            return Ok(());
        }
        if !connection.open || !connection.sending.is_empty() {
            return Ok(());
        }
        if connection.broken || connection.echoed >= self.close_after {
            return self.close(slot);
        }
        if !connection.unsent.is_empty() {
            mem::swap(&mut connection.sending, &mut connection.unsent);
            return self.push_backlog(slot);
        }
        match (connection.ended, connection.receiving) {
            (true, _) => self.close(slot),
            (false, false) => self.arm_receive(slot),
            (false, true) => Ok(()),
        }
    }

    fn close(&mut self, slot: u32) -> io::Result<()> {
        let generation = self.connections[slot as usize].generation;
        if self.connections[slot as usize].receiving {
            // A file that an armed request holds is not closed.
            self.cancel_receive(slot, generation)?;
        }
        self.connections[slot as usize] =
            Connection { generation: generation.wrapping_add(1), ..Connection::default() };
        let entry = match self.descriptors {
            Table::Direct => opcode::Close::new(Fixed(slot)).build(),
            Table::Plain => opcode::Close::new(Fd(slot as RawFd)).build(),
        };
        self.push(&entry.user_data(Kind::Other.token(0, 0, slot)).flags(Flags::SKIP_SUCCESS))?;
        if self.accepting { Ok(()) } else { self.arm_accept() }
    }

    fn cancel_receive(&mut self, slot: u32, generation: u8) -> io::Result<()> {
        let entry = opcode::AsyncCancel::new(Kind::Receive.token(generation, 0, slot)).build();
        self.push(&entry.user_data(Kind::Other.token(0, 0, slot)).flags(Flags::SKIP_SUCCESS))
    }

    fn arm_accept(&mut self) -> io::Result<()> {
        self.accepting = true;
        let entry = opcode::AcceptMulti::new(Fd(self.listener.as_raw_fd()))
            .allocate_file_index(self.descriptors == Table::Direct)
            .build();
        self.push(&entry.user_data(Kind::Accept.token(0, 0, 0)))
    }

    fn arm_receive(&mut self, slot: u32) -> io::Result<()> {
        let connection = &mut self.connections[slot as usize];
        connection.receiving = true;
        let token = Kind::Receive.token(connection.generation, 0, slot);
        let entry = match self.descriptors {
            Table::Direct => opcode::RecvMulti::new(Fixed(slot), GROUP).build(),
            Table::Plain => opcode::RecvMulti::new(Fd(slot as RawFd), GROUP).build(),
        };
        self.push(&entry.user_data(token))
    }

    fn push_echo(&mut self, slot: u32, buffer: u16, length: u32) -> io::Result<()> {
        let start = self.buffers.filled(buffer, length).as_ptr();
        let flags = libc::MSG_DONTWAIT | libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        let token = Kind::Echo.token(0, buffer, slot);
        let entry = self.send_entry(slot, start, length, flags).user_data(token);
        // The buffer stays ours until `finish`, after the enter that carries this out.
        let quiet = self.send == SendPath::Quiet;
        self.push(&if quiet { entry.flags(Flags::SKIP_SUCCESS) } else { entry })
    }

    fn push_backlog(&mut self, slot: u32) -> io::Result<()> {
        let connection = &self.connections[slot as usize];
        let (start, length) = (connection.sending.as_ptr(), connection.sending.len() as u32);
        let flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        let entry = self.send_entry(slot, start, length, flags);
        // `sending` is not touched until `backlog_sent`.
        self.push(&entry.user_data(Kind::Backlog.token(0, 0, slot)))
    }

    fn send_entry(&self, slot: u32, start: *const u8, length: u32, flags: i32) -> Entry {
        match self.descriptors {
            Table::Direct => opcode::Send::new(Fixed(slot), start, length).flags(flags).build(),
            Table::Plain => {
                opcode::Send::new(Fd(slot as RawFd), start, length).flags(flags).build()
            }
        }
    }

    /// Queues a submission; a full queue is submitted first.
    fn push(&mut self, entry: &Entry) -> io::Result<()> {
        loop {
            // SAFETY: what the entry points to lives until its completion: a
            // provided buffer until `finish`, `Connection::sending` until
            // `backlog_sent`; all other entries point to nothing.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(error),
            }
        }
    }
}
