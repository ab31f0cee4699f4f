//! Worker processes: started by spawn and exec of the running image, watched by pidfd.
//!
//! A process is never forked and kept: std uses posix_spawn(3), which shares the
//! parent's memory until the exec, as long as neither `pre_exec`, `uid`, `gid`,
//! `groups` nor a changed PATH with a bare program name is asked for (std, `sys/process/unix`);
//! arg0, arguments, stdin and the environment are free. A fork would copy the
//! page tables of a large parent: 22 ms instead of 0.7 ms.

mod usage;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use nix::errno::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::{context, signals};

pub use nix::sys::signal::Signal;
pub use usage::{CpuTime, Usage, cpu_time, usage};

/// The running image, even when the file that it was started from has been replaced.
const SELF: &str = "/proc/self/exe";

/// What belongs to the process that systemd started, and to no other:
/// a worker that answered the watchdog or announced readiness would be believed.
fn is_systemds(name: &str) -> bool {
    name == "NOTIFY_SOCKET" || name.starts_with("LISTEN_") || name.starts_with("WATCHDOG_")
}

/// How a process is started. stdout and stderr are inherited, and the
/// environment but for what systemd put there.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// What `ps` shows in place of the program.
    pub arg0: &'a str,
    /// The arguments after it.
    pub args: &'a [&'a str],
    /// The child's descriptor 0: the control channel.
    pub stdin: OwnedFd,
}

/// Starts the running image again.
///
/// # Errors
/// Those of posix_spawn(3) and pidfd_open(2). After an error no process is left.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn spawn_self(spawn: Spawn<'_>) -> io::Result<Process> {
    spawn_program(Path::new(SELF), spawn)
}

fn spawn_program(program: &Path, spawn: Spawn<'_>) -> io::Result<Process> {
    use std::os::unix::process::CommandExt;

    let mut command = Command::new(program);
    command
        .arg0(spawn.arg0)
        .args(spawn.args)
        .stdin(Stdio::from(spawn.stdin));
    for (name, _) in std::env::vars_os() {
        if is_systemds(&name.to_string_lossy()) {
            command.env_remove(name);
        }
    }
    let mut child = command
        .spawn()
        .map_err(|error| context(error, format_args!("starting {}", program.display())))?;
    // Not yet waited for, so its pid is still its own even if it has ended.
    Process::open(child.id()).inspect_err(|_| {
        // Out of descriptors: nobody could watch it. Both calls act on our own child.
        let _ = child.kill();
        let _ = child.wait();
    })
}

/// A process and the descriptor that stands for it: unlike a pid, it never
/// comes to mean another process.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    pidfd: AsyncFd<OwnedFd>,
    exit: OnceLock<Exit>,
}

impl Process {
    /// Watches a process that need not be a child. The caller knows that the pid
    /// is still that of the process it means.
    ///
    /// # Errors
    /// `NotFound` if there is none (ESRCH); else those of pidfd_open(2).
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn open(pid: u32) -> io::Result<Self> {
        // SAFETY: the call takes two integers and returns a descriptor (close-on-exec) or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(pid), 0) };
        let fd = Errno::result(fd).map_err(|errno| {
            let error = match errno {
                // Which has no kind of its own, and must not be taken for another shortage.
                Errno::ESRCH => io::Error::new(io::ErrorKind::NotFound, errno),
                errno => errno.into(),
            };
            context(error, format_args!("watching process {pid}"))
        })?;
        // SAFETY: the kernel has just opened it for us, and nobody else has it.
        let pidfd = unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) };
        // SAFETY: an OwnedFd is open, and the same descriptor, for as long as it lives.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }
            .map_err(|error| error.into_parts().1)?;
        Ok(Self {
            pid,
            pidfd,
            exit: OnceLock::new(),
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until all threads of the process have ended. Cancel-safe, and may be
    /// called again: the answer is the same.
    ///
    /// # Errors
    /// Those of waitid(2), but for ECHILD: [`Exit::Unknown`].
    pub async fn wait(&self) -> io::Result<Exit> {
        loop {
            if let Some(exit) = self.exit.get() {
                return Ok(*exit);
            }
            let mut ended = self.pidfd.readable().await?;
            match reap(&self.pidfd)? {
                Some(exit) => return Ok(*self.exit.get_or_init(|| exit)),
                None => ended.clear_ready(),
            }
        }
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// Those of pidfd_send_signal(2): ESRCH if it has ended and was waited for, EPERM.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let no_info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: the descriptor is open, and a null siginfo asks for that of kill(2).
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                signal as libc::c_int,
                no_info,
                0,
            )
        };
        Errno::result(sent).map(drop).map_err(|errno| {
            context(
                errno.into(),
                format_args!("sending {signal} to process {}", self.pid),
            )
        })
    }
}

/// How a process ended, if it has.
///
/// By libc: nix fails on a status that is a real-time signal, after the kernel has forgotten it.
fn reap(pidfd: &impl AsFd) -> io::Result<Option<Exit>> {
    // SAFETY: an all-zero siginfo_t is a valid one.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let id = pidfd.as_fd().as_raw_fd() as libc::id_t;
    let flags = libc::WEXITED | libc::WNOHANG;
    // SAFETY: the descriptor is open, and the kernel writes to `info`, which outlives the call.
    let result = unsafe { libc::waitid(libc::P_PIDFD, id, &raw mut info, flags) };
    match Errno::result(result) {
        Err(Errno::ECHILD) => return Ok(Some(Exit::Unknown)),
        Err(Errno::EINTR) => return Ok(None),
        Err(errno) => return Err(errno.into()),
        Ok(_) => {}
    }
    // SAFETY: waitid succeeded, so these fields are those of SIGCHLD, or zero if nothing has ended.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    Ok(match info.si_code {
        _ if pid == 0 => None,
        libc::CLD_EXITED => Some(Exit::Code(status)),
        _ => Some(Exit::Signal(status)),
    })
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By exit(3).
    Code(i32),
    /// By a signal.
    Signal(i32),
    /// It has ended, but it was no child of ours: only its parent is told how.
    Unknown,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal} ({})", signals::name(*signal)),
            Self::Unknown => f.write_str("unknown exit status"),
        }
    }
}

/// The processes whose first argument begins so, as far as /proc shows them.
pub fn named(begin: &str) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_named = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline"));
        line.is_ok_and(|line| line.starts_with(begin.as_bytes()))
    };
    pids.filter(is_named).collect()
}

/// Takes the control channel from descriptor 0, as a close-on-exec descriptor,
/// and leaves `/dev/null` there. To be called once, early.
///
/// # Errors
/// Those of fcntl(2), open(2) and dup2(2).
pub fn take_stdin() -> io::Result<OwnedFd> {
    let taken = io::stdin().as_fd().try_clone_to_owned()?;
    let null = std::fs::File::open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    Ok(taken)
}

/// Names the calling thread, and, if it is the main one, the process in `top`
/// and `ps -C`. A name has at most 15 bytes; the rest is cut off.
///
/// # Errors
/// Those of prctl(2) with PR_SET_NAME.
pub fn set_name(name: &str) -> io::Result<()> {
    let name = name.split('\0').next().unwrap_or_default();
    let fits = |end: &usize| name.is_char_boundary(*end);
    let end = (0..=name.len().min(15)).rfind(fits).unwrap_or(0);
    let name = &name[..end];
    let name = std::ffi::CString::new(name).map_err(io::Error::other)?;
    nix::sys::prctl::set_name(&name)?;
    Ok(())
}

#[cfg(test)]
mod tests;
