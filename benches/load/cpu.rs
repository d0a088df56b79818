//! CPU time of a process.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

/// Clock ticks a second in /proc/PID/stat: USER_HZ, which is 100 on every Linux that Rust and
/// PostgreSQL both run on.
const TICKS: u64 = 100;

/// User and system time that the process has used so far, over all its threads that still run.
///
/// From /proc/PID/task/TID/schedstat, in nanoseconds; where the kernel has none, from
/// /proc/PID/stat, in ticks of 10 ms. None: the process is gone.
pub fn used(pid: i32) -> Option<Duration> {
    by_schedstat(pid).or_else(|| by_ticks(pid))
}

fn by_schedstat(pid: i32) -> Option<Duration> {
    let mut sum = None;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        // A thread may end while we look.
        let Ok(text) = fs::read_to_string(thread.path().join("schedstat")) else {
            continue;
        };
        let time: u64 = text.split(' ').next()?.parse().ok()?;
        sum = Some(sum.unwrap_or(0) + time);
    }
    sum.map(Duration::from_nanos)
}

fn by_ticks(pid: i32) -> Option<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; after it, utime and stime are fields 12 and 13.
    let mut fields = text.rsplit_once(") ")?.1.split(' ').skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(Duration::from_millis((next()? + next()?) * 1000 / TICKS))
}

/// CPU time of some processes, each by its pid.
#[derive(Debug, Default)]
pub struct Usage(HashMap<i32, Duration>);

impl Usage {
    pub fn of(pid: i32) -> Self {
        Self(used(pid).map(|time| (pid, time)).into_iter().collect())
    }

    /// Of a process and its children.
    pub fn of_family(parent: i32) -> Self {
        let children = fs::read_dir("/proc").into_iter().flatten().flatten();
        let children = children
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|&pid| self::parent(pid) == Some(parent));
        let times = children
            .chain([parent])
            .filter_map(|pid| Some((pid, used(pid)?)));
        Self(times.collect())
    }

    /// What was used since `before`, by those that are still there.
    pub fn since(&self, before: &Self) -> Duration {
        let used = self.0.iter().map(|(pid, &now)| {
            let then = before.0.get(pid).copied().unwrap_or_default();
            now.saturating_sub(then)
        });
        used.sum()
    }
}

fn parent(pid: i32) -> Option<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; behind it the state, then the parent.
    text.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}
