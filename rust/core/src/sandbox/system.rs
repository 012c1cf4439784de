//! What the supervisor asks of the operating system: processes, descriptors, waiting.

use std::io::{self, PipeReader, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::Lost;

const SPATE: usize = 64;

/// A process of a program.
pub struct Process {
    #[cfg(target_os = "linux")]
    pidfd: OwnedFd,
    #[cfg(target_os = "linux")]
    clock: Option<nix::time::ClockId>,
    #[cfg(target_os = "linux")]
    before: Duration,
    #[cfg(not(target_os = "linux"))]
    pid: rustix::process::Pid,
}

#[cfg(target_os = "linux")]
impl Process {
    /// One for each descriptor, with the CPU seconds it had used before.
    pub fn all(pidfds: Vec<OwnedFd>, _pids: &[i32], before: &[f64]) -> Vec<Self> {
        pidfds
            .into_iter()
            .zip(before)
            .map(|(pidfd, before)| Self {
                pidfd,
                clock: None,
                before: Duration::try_from_secs_f64(*before).unwrap_or_default(),
            })
            .collect()
    }

    /// Ends it.
    pub fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL);
    }

    /// What it used for this program; zero once it has ended: its worker then says.
    pub fn cpu(&mut self) -> Duration {
        if self.clock.is_none() {
            self.clock =
                pid_of(&self.pidfd).and_then(|pid| nix::time::clock_getcpuclockid(pid).ok());
        }
        self.clock
            .and_then(|clock| nix::time::clock_gettime(clock).ok())
            .map_or(Duration::ZERO, Duration::from)
            .saturating_sub(self.before)
    }
}

/// The number, in our namespace, of the process behind a pidfd from another.
#[cfg(target_os = "linux")]
fn pid_of(pidfd: &OwnedFd) -> Option<nix::unistd::Pid> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let text = std::fs::read_to_string(path).ok()?;
    let pid: i32 = text.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()?;
    (pid > 0).then(|| nix::unistd::Pid::from_raw(pid))
}

/// Where there are no pidfds, programs are not isolated either: they run only if the user insists.
#[cfg(not(target_os = "linux"))]
impl Process {
    /// One for each number.
    pub fn all(_pidfds: Vec<OwnedFd>, pids: &[i32], _before: &[f64]) -> Vec<Self> {
        pids.iter()
            .filter_map(|&pid| rustix::process::Pid::from_raw(pid))
            .map(|pid| Self { pid })
            .collect()
    }

    /// Ends it.
    pub fn kill(&self) {
        let _ = rustix::process::kill_process(self.pid, rustix::process::Signal::KILL);
    }

    pub fn cpu(&mut self) -> Duration {
        Duration::ZERO
    }
}

/// Polls, going on after a signal's interruption with what is left; the number that are ready.
pub fn wait_for(fds: &mut [PollFd<'_>], pause: Duration) -> io::Result<usize> {
    let end = Instant::now() + pause;
    loop {
        // One millisecond more, so that a deadline is over when it is looked at.
        let left = end.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        let left = Timespec::try_from(left).expect("waits are far below a century");
        match poll(fds, Some(&left)) {
            Err(rustix::io::Errno::INTR) => {}
            ready => return Ok(ready?),
        }
    }
}

/// Reads what is there into `kept`, up to `most` bytes; whether more may come.
///
/// A flood is read in spates, so that whoever waits for it to end gets a turn; and to its end, so
/// that nobody who may live on waits for room.
pub fn drain(pipe: &mut PipeReader, total: &mut usize, kept: &mut Vec<u8>, most: usize) -> bool {
    let mut buffer = [0; 16384];
    for _ in 0..SPATE {
        match pipe.read(&mut buffer) {
            Ok(0) => return false,
            Ok(got) => {
                *total += got; // of both pipes: neither may be flooded
                kept.extend_from_slice(&buffer[..got.min(most - kept.len())]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return true,
        }
    }
    true
}

/// A descriptor to read these bytes from, which have no name anywhere.
pub fn carrier(bytes: &[u8]) -> io::Result<OwnedFd> {
    #[cfg(target_os = "linux")]
    let mut file =
        std::fs::File::from(rustix::fs::memfd_create("program", rustix::fs::MemfdFlags::CLOEXEC)?);
    #[cfg(not(target_os = "linux"))]
    let mut file = {
        let path = std::env::temp_dir().join(format!(
            "hornbook-{}-{:?}-{:p}",
            std::process::id(),
            std::thread::current().id(),
            bytes
        ));
        let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path)?;
        std::fs::remove_file(&path)?;
        file
    };
    file.write_all(bytes)?;
    io::Seek::rewind(&mut file)?;
    Ok(file.into())
}

/// Up to 4 bytes of a frame's head, with the descriptors sent beside them.
pub fn receive_with_fds(
    socket: &UnixStream,
    head: &mut [u8; 4],
) -> Result<(usize, Vec<OwnedFd>), Lost> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    #[cfg(target_os = "linux")]
    let flags = RecvFlags::CMSG_CLOEXEC;
    #[cfg(not(target_os = "linux"))]
    let flags = RecvFlags::empty();
    let got = recvmsg(socket, &mut [io::IoSliceMut::new(head)], &mut beside, flags)
        .map_err(io::Error::from)?
        .bytes;
    if got == 0 {
        return Err(Lost::Died);
    }
    let mut fds = Vec::new();
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(found) = message {
            fds.extend(found);
        }
    }
    Ok((got, fds))
}
