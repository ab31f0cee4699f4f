//! What a process takes of the machine, as proc(5) tells.

use std::fs;
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};

/// Memory and processor time of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Resident memory in bytes, shared pages included (`/proc/PID/statm`).
    pub memory_bytes: u64,
    /// Processor time of all its threads so far, in user and kernel mode
    /// (`/proc/PID/stat`); it counts in steps of 10 ms.
    pub cpu: Duration,
}

/// What a process takes; `None` if it is gone.
pub fn usage(pid: u32) -> Option<Usage> {
    // The name of a process need not be UTF-8.
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    Some(Usage {
        memory_bytes: resident_pages(&statm)?.checked_mul(system(SysconfVar::PAGE_SIZE)?)?,
        cpu: cpu(
            &String::from_utf8_lossy(&stat),
            system(SysconfVar::CLK_TCK)?,
        )?,
    })
}

/// What a process got of a CPU, and what it wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTime {
    /// For how long its main thread has run (`/proc/PID/schedstat`).
    pub ran: Duration,
    /// For how long its main thread has waited for a CPU, without a wait that has not ended yet (same file).
    pub waited: Duration,
    /// Whether its main thread runs, or waits for a CPU (`/proc/PID/stat`).
    pub wanted: bool,
}

/// What a process got of a CPU; `None` if it is gone, or the kernel does not say
/// (it was built without CONFIG_SCHED_INFO).
pub fn cpu_time(pid: u32) -> Option<CpuTime> {
    let times = fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?;
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let (ran, waited) = ran_and_waited(&times)?;
    Some(CpuTime {
        ran,
        waited,
        wanted: is_runnable(&String::from_utf8_lossy(&stat)),
    })
}

/// The first two fields, in nanoseconds.
fn ran_and_waited(schedstat: &str) -> Option<(Duration, Duration)> {
    let mut fields = schedstat.split_whitespace().map(str::parse);
    let mut next = || fields.next()?.ok().map(Duration::from_nanos);
    Some((next()?, next()?))
}

/// Field 3, behind the name.
fn is_runnable(stat: &str) -> bool {
    stat.rsplit_once(") ")
        .is_some_and(|(_, behind_name)| behind_name.starts_with('R'))
}

fn resident_pages(statm: &str) -> Option<u64> {
    statm.split(' ').nth(1)?.parse().ok()
}

/// Fields 14 and 15. The name, field 2, may hold blanks and parentheses: count from behind it.
fn cpu(stat: &str, ticks_per_second: u64) -> Option<Duration> {
    let (_, behind_name) = stat.rsplit_once(") ")?;
    let mut fields = behind_name.split(' ').skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let kernel: u64 = fields.next()?.parse().ok()?;
    let milliseconds = (user + kernel).checked_mul(1000)? / ticks_per_second;
    Some(Duration::from_millis(milliseconds))
}

fn system(variable: SysconfVar) -> Option<u64> {
    let value = sysconf(variable).ok()??;
    u64::try_from(value).ok().filter(|value| *value > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_blanks_and_parentheses_does_not_shift_the_fields() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 0 1 2 3 4 150 50 0 0 20 0 1 0 9 9 9";
        assert_eq!(cpu(stat, 100), Some(Duration::from_secs(2)));
    }

    #[test]
    fn the_time_of_a_thread_is_read_with_its_waits() {
        let read = ran_and_waited("1500000000 250000000 17\n");
        let (ran, waited) = (Duration::from_millis(1500), Duration::from_millis(250));
        assert_eq!(read, Some((ran, waited)));
        assert_eq!(ran_and_waited(""), None);
        assert!(is_runnable("7 (a) b) R 1 7") && !is_runnable("7 (R) T 1 7"));
    }

    #[test]
    fn a_process_that_runs_gets_and_wants_a_cpu() {
        let Some(before) = cpu_time(std::process::id()) else {
            return;
        };
        crate::testing::until(|| {
            std::hint::black_box((0..1_000_000).sum::<u64>());
            let now = cpu_time(std::process::id()).unwrap();
            now.ran >= before.ran && now.waited >= before.waited
        });
        assert_eq!(cpu_time(1 << 23), None);
    }

    #[test]
    fn this_process_takes_memory_and_time() {
        let memory = vec![1_u8; 16 << 20];
        crate::testing::until(|| {
            std::hint::black_box(memory.iter().map(|b| u64::from(*b)).sum::<u64>());
            usage(std::process::id()).unwrap().cpu > Duration::ZERO
        });
        assert!(usage(std::process::id()).unwrap().memory_bytes > 16 << 20);
    }

    #[test]
    fn a_process_that_is_gone_takes_nothing() {
        // Above the kernel's highest pid.
        assert_eq!(usage(1 << 23), None);
    }
}
