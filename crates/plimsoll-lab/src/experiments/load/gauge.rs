//! How fast the machine itself is at this moment.
//!
//! A machine has slow and fast phases, of seconds to minutes, in which everything takes up to some
//! 40 % longer: a virtual machine's neighbours, a processor's clock. Two runs that met different
//! phases differ, and their own figures cannot tell why. So before each slice the time of something
//! is taken that depends on no server: a message through a loopback connection that one thread both
//! sends and receives.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::statistics::median;

/// Messages are timed in batches, of which the median counts: one that was interrupted does not.
const BATCHES: usize = 20;
const BATCH: u32 = 100;
/// Nothing takes as long unless the connection is broken.
const PATIENCE: Duration = Duration::from_secs(1);

/// A loopback connection within this thread.
#[derive(Debug)]
pub(super) struct Gauge {
    near: TcpStream,
    far: TcpStream,
}

impl Gauge {
    /// `None` where no such connection can be made: then the machine's speed is not known.
    pub(super) fn open() -> Option<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).ok()?;
        let near = TcpStream::connect(listener.local_addr().ok()?).ok()?;
        let (far, peer) = listener.accept().ok()?;
        near.set_nodelay(true).ok()?;
        far.set_read_timeout(Some(PATIENCE)).ok()?;
        // Anybody on this machine could have connected first.
        (peer == near.local_addr().ok()?).then_some(Self { near, far })
    }

    /// The time of one message of 64 bytes, in µs. Takes 4 to 10 ms.
    pub(super) fn read_us(&mut self) -> Option<f64> {
        let mut message = [0; 64];
        let mut times = Vec::with_capacity(BATCHES);
        for _ in 0..BATCHES {
            let start = Instant::now();
            for _ in 0..BATCH {
                self.near.write_all(&message).ok()?;
                self.far.read_exact(&mut message).ok()?;
            }
            times.push(start.elapsed().as_secs_f64() * 1e6 / f64::from(BATCH));
        }
        median(&times)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_takes_some_time() {
        let mut gauge = Gauge::open().expect("loopback is there");
        for _ in 0..3 {
            let micros = gauge.read_us().expect("it is read");
            assert!(micros > 0.05 && micros < 1e6, "{micros}");
        }
    }
}
