//! A child process that does not outlive its owner: ended step by step when dropped, and by the
//! kernel when we are killed ourselves.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

use super::{Error, Result};
use crate::timer;

const POLL: Duration = Duration::from_millis(5);

/// SIGINT, SIGTERM or the end of the terminal. Without the handlers, never. What was started is
/// then ended in order by its owner.
///
/// Cancel safe.
pub async fn interrupted() {
    let kinds = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ];
    let [Ok(mut int), Ok(mut term), Ok(mut hup)] = kinds.map(signal) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = int.recv() => {}
        _ = term.recv() => {}
        _ = hup.recv() => {}
    }
}

/// Signals in the order they are tried, each with the time to wait for the end. SIGKILL follows.
pub type Ending = &'static [(Signal, Duration)];

/// A running (or ended) child process.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: Pid,
    ending: Ending,
    /// How it ended. The keeper reaps the child while it holds this lock, so that while the lock is
    /// held and the status is absent, the pid is still this child's and no other process's.
    status: Arc<Mutex<Option<ExitStatus>>>,
}

impl Process {
    /// Starts `command` in a process group of its own: Ctrl-C goes to the whole foreground group,
    /// and children are to be ended by their owner, in order.
    ///
    /// A thread that lives as long as the child starts it and waits for it. The kernel sends the
    /// parent death signal of [`dying_with_us`] when the *thread* that started the child ends,
    /// which would otherwise be the end of, say, one test.
    pub fn start(name: &str, mut command: Command, ending: Ending) -> Result<Self> {
        command.stdin(Stdio::null()).process_group(0);
        let failed = |why: String| Error::new(format!("cannot start {name}: {why}"));
        let status = Arc::new(Mutex::new(None));
        let (started, start) = mpsc::channel();
        let keeper_status = Arc::clone(&status);
        thread::Builder::new()
            .name(format!("keep {name}"))
            .spawn(move || keep(command, &started, &keeper_status))
            .map_err(|error| failed(error.to_string()))?;
        let pid = match start.recv() {
            Ok(Ok(pid)) => pid,
            Ok(Err(why)) => return Err(failed(why)),
            Err(_) => return Err(failed("its thread ended".to_owned())),
        };
        Ok(Self {
            name: name.to_owned(),
            pid,
            ending,
            status,
        })
    }

    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// How it ended; absent while it runs.
    pub fn status(&self) -> Option<ExitStatus> {
        *lock(&self.status)
    }

    /// Does nothing once the process has ended.
    pub fn signal(&self, signal: Signal) {
        let status = lock(&self.status);
        if status.is_none() {
            // It may be a zombie already, or gone in between: nothing left to end.
            let _ = kill(self.pid, signal);
        }
    }

    /// Waits for the end, for at most `patience`. Cancel safe.
    pub async fn ended(&self, patience: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            let status = self.status();
            if status.is_some() || Instant::now() >= deadline {
                return status;
            }
            timer::sleep(POLL).await;
        }
    }

    /// Ends it and waits for that. Cancelled, the rest is done by `drop`.
    pub async fn end(&self) -> Result<()> {
        for &(signal, patience) in self.ending.iter().chain(&LAST) {
            self.signal(signal);
            if self.ended(patience).await.is_some() {
                return Ok(());
            }
        }
        Err(Error::new(format!(
            "{} (process {}) does not end",
            self.name, self.pid
        )))
    }
}

const LAST: [(Signal, Duration); 1] = [(Signal::SIGKILL, Duration::from_secs(5))];

/// Blocks until the process has ended: what is dropped next (its directory) must not be in use.
impl Drop for Process {
    fn drop(&mut self) {
        for &(signal, patience) in self.ending.iter().chain(&LAST) {
            let deadline = Instant::now() + patience;
            self.signal(signal);
            while Instant::now() < deadline {
                if self.status().is_some() {
                    return;
                }
                thread::sleep(POLL);
            }
        }
    }
}

fn lock(status: &Mutex<Option<ExitStatus>>) -> MutexGuard<'_, Option<ExitStatus>> {
    status.lock().unwrap_or_else(PoisonError::into_inner)
}

fn keep(
    mut command: Command,
    started: &mpsc::Sender<std::result::Result<Pid, String>>,
    status: &Mutex<Option<ExitStatus>>,
) {
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let program = command.get_program().display().to_string();
            // The receiver waits for exactly this message.
            let _ = started.send(Err(format!("{program}: {error}")));
            return;
        }
    };
    let pid = Pid::from_raw(child.id().cast_signed());
    let _ = started.send(Ok(pid));
    while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR) {}
    let mut status = lock(status);
    *status = Some(child.wait().unwrap_or_default());
}

/// A command that runs `program` and gets `signal` from the kernel when we die without ending it,
/// as with SIGKILL. By `setpriv` of util-linux, which is part of every Debian; without it such a
/// death leaves the child behind. By `env` too: what a shell starts in the background ignores
/// SIGINT and SIGQUIT, and a child that inherited that could miss them before it sets its own
/// handlers.
pub fn dying_with_us(program: &std::path::Path, signal: Signal) -> Command {
    let name = signal.as_str().trim_start_matches("SIG");
    let wrapped = |program: &std::path::Path| {
        let mut command = Command::new("setpriv");
        command
            .args([
                "--pdeathsig",
                name,
                "--",
                "env",
                "--default-signal=INT,QUIT",
            ])
            .arg(program);
        command
    };
    let works = wrapped("true".as_ref())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if works {
        wrapped(program)
    } else {
        Command::new(program)
    }
}
