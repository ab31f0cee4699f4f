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
