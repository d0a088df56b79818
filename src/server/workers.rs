//! Threads, each a runtime of its own: a client, its server connection and their pool share one
//! reactor, without locks between cores and without handing tasks from one to another. One more thread, `control`,
//! does what is not on the way of a query.

use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

pub struct Workers {
    handles: Vec<Handle>,
    control: Handle,
    threads: Vec<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Workers {
    /// Starts `count` workers and the control thread.
    ///
    /// # Errors
    /// A thread or a reactor that the operating system refuses.
    pub fn start(count: usize) -> std::io::Result<Self> {
        let mut threads = Vec::new();
        let mut handles = Vec::new();
        for number in 0..count {
            handles.push(start(format!("worker-{number}"), &mut threads)?);
        }
        let control = start("control".to_owned(), &mut threads)?;
        Ok(Self {
            handles,
            control,
            threads,
        })
    }

    pub fn handles(&self) -> &[Handle] {
        &self.handles
    }

    pub fn control(&mut self) -> Handle {
        self.control.clone()
    }

    /// Ends every task and thread.
    pub fn stop(self) {
        for (stop, thread) in self.threads {
            drop(stop);
            if thread.join().is_err() {
                tracing::error!("a worker thread panicked");
            }
        }
    }
}

fn start(
    name: String,
    threads: &mut Vec<(oneshot::Sender<()>, JoinHandle<()>)>,
) -> std::io::Result<Handle> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let (stop, stopped) = oneshot::channel::<()>();
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        // Ends when the sender is dropped; tasks that are left are dropped with the runtime.
        let _ = runtime.block_on(stopped);
        runtime.shutdown_background();
    })?;
    threads.push((stop, thread));
    Ok(handle)
}
