//! Threads, each a runtime of its own: a client and the server connection it holds share one
//! reactor, and tasks are not handed from one to another. One more thread, `control`, does what is
//! not on the way of a query, and one keeps the [timers](crate::timer) of the workers: it does
//! nothing that takes long.

use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::net::socket::batch;
use crate::timer;

/// Dropped, they end, with every task of theirs.
pub struct Threads {
    workers: Vec<Thread>,
    control: Handle,
    _running: Running,
}

/// In the order in which they were started.
#[derive(Default)]
struct Running(Vec<(oneshot::Sender<()>, JoinHandle<()>)>);

impl Drop for Running {
    fn drop(&mut self) {
        // The one whose timers others use is last.
        while let Some((stop, thread)) = self.0.pop() {
            drop(stop);
            if thread.join().is_err() {
                tracing::error!("a thread panicked");
            }
        }
    }
}

/// One that runs.
#[derive(Clone)]
pub struct Thread {
    pub handle: Handle,
    /// Where the operating system says how long it ran.
    clock: Option<PathBuf>,
}

impl Threads {
    /// Starts `count` workers and the control thread. `batches`: what a worker has to send in one
    /// turn may leave in one system call.
    ///
    /// # Errors
    /// A thread or a reactor that the operating system refuses.
    pub fn start(count: usize, batches: bool) -> std::io::Result<Self> {
        let mut running = Running::default();
        let (timers, _) = start("timers".to_owned(), None, false, &mut running)?;
        let (control, _) = start("control".to_owned(), None, false, &mut running)?;
        let mut workers = Vec::new();
        let mut said = false;
        for number in 0..count {
            let (name, timers) = (format!("worker-{number}"), Some(timers.handle.clone()));
            let (worker, batched) = start(name, timers, batches, &mut running)?;
            if let Err(error) = batched
                && !std::mem::replace(&mut said, true)
            {
                tracing::info!(%error, "io_uring cannot be used: each message is sent by a system call of its own");
            }
            workers.push(worker);
        }
        Ok(Self {
            workers,
            control: control.handle,
            _running: running,
        })
    }

    pub fn workers(&self) -> &[Thread] {
        &self.workers
    }

    pub fn control(&self) -> Handle {
        self.control.clone()
    }
}

/// What a thread has done with its time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Times {
    /// On a core.
    pub ran: Duration,
    /// For a core.
    pub waited: Duration,
}

impl Thread {
    /// What Linux tells (`/proc/…/schedstat`, in nanoseconds). Elsewhere the time that it was not
    /// idle counts as on a core.
    pub fn times(&self) -> Times {
        let told = self.clock.as_ref().and_then(|clock| {
            let text = std::fs::read_to_string(clock).ok()?;
            let numbers = text.split_ascii_whitespace();
            let mut times = numbers.map(|ns| ns.parse().map(Duration::from_nanos));
            let (ran, waited) = (times.next()?.ok()?, times.next()?.ok()?);
            Some(Times { ran, waited })
        });
        told.unwrap_or_else(|| Times {
            ran: self.handle.metrics().worker_total_busy_duration(0),
            waited: Duration::ZERO,
        })
    }
}

/// `timers`: who keeps them; None: it keeps its own. Also returns whether it sends in batches as it
/// is told to.
fn start(
    name: String,
    timers: Option<Handle>,
    batches: bool,
    running: &mut Running,
) -> std::io::Result<(Thread, std::io::Result<()>)> {
    let mut builder = Builder::new_current_thread();
    if timers.is_none() {
        builder.enable_time();
    }
    if batches {
        builder.on_thread_park(batch::turn);
    }
    let runtime = builder.enable_io().build()?;
    let handle = runtime.handle().clone();
    let (stop, stopped) = oneshot::channel::<()>();
    let (tell, told) = mpsc::channel();
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        // "<process>/task/<thread>"
        let own = std::fs::read_link("/proc/thread-self");
        let clock = own.map(|own| PathBuf::from("/proc").join(own).join("schedstat"));
        if let Some(keeper) = timers {
            timer::kept_by(keeper);
        }
        let batched = match batches {
            true => batch::install().map(|flusher| drop(runtime.spawn(flusher))),
            false => Ok(()),
        };
        let _ = tell.send((clock.ok(), batched));
        // Ends when the sender is dropped; tasks that are left are dropped with the runtime.
        runtime.block_on(async {
            let _ = stopped.await;
            batch::flush();
        });
        runtime.shutdown_background();
    })?;
    running.0.push((stop, thread));
    let (clock, batched) = told.recv().map_err(std::io::Error::other)?;
    let clock = clock.filter(|clock| clock.exists());
    Ok((Thread { handle, clock }, batched))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_that_a_thread_used_grows_as_it_works() {
        let threads = Threads::start(1, false).unwrap();
        let worker = threads.workers()[0].clone();
        let before = worker.times().ran;
        let (done, is_done) = mpsc::channel();
        worker.handle.spawn(async move {
            let mut sum = 0_u64;
            for number in 0..20_000_000_u64 {
                sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(number));
            }
            // Idle again, it has told the operating system.
            timer::sleep(Duration::from_millis(1)).await;
            let _ = done.send(sum);
        });
        is_done.recv().unwrap();
        assert!(worker.times().ran > before);
    }
}
