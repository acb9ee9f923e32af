//! A wire between two network namespaces that takes its time: a TUN interface at each end, and
//! threads that carry packets from one to the other.
//!
//! The kernel's own way (`netem`) is not part of every kernel.

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::check;

/// The largest packet of IP.
const PACKET_MAX: usize = 65_535;
/// How often a thread that waits for packets looks whether the wire has been cut.
const LOOK_EVERY_MS: i32 = 50;

/// A wire; cut when dropped. The interfaces go with it.
#[derive(Debug)]
pub struct Wire {
    is_cut: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Wire {
    /// Joins interface `name` of one namespace to that of another (descriptors of
    /// `/proc/…/ns/net`). Every packet arrives `delay` after it was sent, later when the
    /// threads do not get to run. The interfaces are without addresses, and down.
    ///
    /// # Errors
    /// `EPERM` without root, `ENOENT` without `/dev/net/tun`; what threads reported.
    pub fn join(
        near: &Arc<OwnedFd>,
        far: &Arc<OwnedFd>,
        name: &'static CStr,
        delay: Duration,
    ) -> io::Result<Self> {
        let near = interface(near.clone(), name)?;
        let far = interface(far.clone(), name)?;
        let is_cut = Arc::new(AtomicBool::new(false));
        let mut wire = Self { is_cut, threads: Vec::new() };
        for (from, to) in [(&near, &far), (&far, &near)] {
            let (from, to) = (from.try_clone()?, to.try_clone()?);
            let (sender, receiver) = channel();
            let is_cut = wire.is_cut.clone();
            wire.start(move || take(&from, delay, &sender, &is_cut))?;
            wire.start(move || bring(&to, &receiver))?;
        }
        Ok(wire)
    }

    fn start(&mut self, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(thread::Builder::new().name("wire".into()).spawn(work)?);
        Ok(())
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.is_cut.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // One that has panicked carries no packets either.
            let _ = thread.join();
        }
    }
}

/// Takes packets from one end, and says when each is due at the other.
fn take(
    mut from: &File,
    delay: Duration,
    sender: &Sender<(Instant, Vec<u8>)>,
    is_cut: &AtomicBool,
) {
    let mut packet = vec![0; PACKET_MAX];
    while !is_cut.load(Ordering::Relaxed) {
        match from.read(&mut packet) {
            Ok(length) => {
                let due = Instant::now() + delay;
                if sender.send((due, packet[..length].to_vec())).is_err() {
                    return;
                }
            }
            // Nothing there, or the interface is down: both may change.
            Err(_) => await_packet(from),
        }
    }
}

/// Brings packets to the other end when they are due, until no more are taken.
fn bring(mut to: &File, receiver: &Receiver<(Instant, Vec<u8>)>) {
    while let Ok((due, packet)) = receiver.recv() {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        // A packet that the other end does not take is lost, as on any wire.
        let _ = to.write(&packet);
    }
}

fn await_packet(file: &File) {
    let mut poll = libc::pollfd { fd: file.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: the kernel reads and writes one pollfd.
    let ready = unsafe { libc::poll(&raw mut poll, 1, LOOK_EVERY_MS) };
    if ready > 0 && poll.revents & libc::POLLIN == 0 {
        // An error that stays: poll returns at once.
        thread::sleep(Duration::from_millis(LOOK_EVERY_MS as u64));
    }
}

/// A TUN interface in a namespace.
fn interface(namespace: Arc<OwnedFd>, name: &'static CStr) -> io::Result<File> {
    // On a thread of its own, since a thread cannot always return to its namespace.
    let thread = thread::Builder::new().spawn(move || {
        // SAFETY: takes two integers; the descriptor is open while `namespace` lives.
        check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) })?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")?;
        // SAFETY: an all-zero ifreq is valid: an empty name and no flags.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let bytes = name.to_bytes();
        if bytes.len() >= request.ifr_name.len() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        for (place, byte) in request.ifr_name.iter_mut().zip(bytes) {
            *place = *byte as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes one ifreq; `file` is open.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
        Ok(file)
    })?;
    thread.join().expect("the thread does not panic")
}
