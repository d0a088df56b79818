//! Resident memory of a process: its own pages and those of files that are mapped. What the kernel
//! keeps for its sockets is not in it.

use std::fs;

/// In bytes, now. None: the process is gone.
pub fn resident(pid: i32) -> Option<f64> {
    field(pid, "VmRSS:")
}

/// The most since [`forget_peak`], in bytes.
pub fn peak(pid: i32) -> Option<f64> {
    field(pid, "VmHWM:")
}

/// Lets [`peak`] begin anew. Where the kernel does not allow that, it stays the peak of the
/// process's life.
pub fn forget_peak(pid: i32) {
    let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
}

/// `name:  1234 kB`
fn field(pid: i32, name: &str) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kilobytes: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024.0)
}
