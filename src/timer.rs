//! Waiting for a time, from whatever thread.
//!
//! Workers have no timers of their own: a runtime that has any tells the kernel, each time it waits
//! for something to do, when to end that wait, which at one client is a measurable part of a
//! transaction (`benches/README.md`). Theirs are kept by the runtime of another thread, which wakes
//! the worker when it is time.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::time::{Sleep, Timeout};

thread_local! {
    static KEEPER: RefCell<Option<Handle>> = const { RefCell::new(None) };
}

/// From now on `keeper` keeps the timers of what runs on the calling thread, and not on other
/// threads of its runtime (those that block). It has to run for as long as they are used.
pub fn kept_by(keeper: Handle) {
    KEEPER.set(Some(keeper));
}

/// Runs `task` where its timers are: for one that does hardly anything but wait for a time, so that
/// no worker is woken for it.
pub fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    with_keeper(|| drop(tokio::spawn(task)));
}

/// Ready after `period`.
///
/// Cancel safe.
pub fn sleep(period: Duration) -> Sleep {
    #[expect(clippy::disallowed_methods, reason = "with its keeper")]
    with_keeper(|| tokio::time::sleep(period))
}

/// What `future` comes to, if it does so within `period`.
pub fn timeout<F: Future>(period: Duration, future: F) -> Timeout<F> {
    #[expect(clippy::disallowed_methods, reason = "with its keeper")]
    with_keeper(|| tokio::time::timeout(period, future))
}

/// The same, until `deadline`.
pub fn timeout_at<F: Future>(deadline: Instant, future: F) -> Timeout<F> {
    #[expect(clippy::disallowed_methods, reason = "with its keeper")]
    with_keeper(|| tokio::time::timeout_at(deadline.into(), future))
}

/// A timer belongs to the runtime in which it is made.
fn with_keeper<T>(makes: impl FnOnce() -> T) -> T {
    KEEPER.with_borrow(|keeper| {
        let _entered = keeper.as_ref().map(Handle::enter);
        makes()
    })
}

#[cfg(test)]
mod tests {
    use tokio::runtime::Builder;

    use super::*;

    #[test]
    fn a_runtime_without_timers_is_woken_by_its_keeper() {
        let keeper = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_time()
            .build()
            .unwrap();
        let period = Duration::from_millis(30);
        let handle = keeper.handle().clone();
        let thread = std::thread::spawn(move || {
            kept_by(handle);
            let runtime = Builder::new_current_thread().enable_io().build().unwrap();
            runtime.block_on(async {
                let since = Instant::now();
                sleep(period).await;
                assert!(since.elapsed() >= period);
                assert_eq!(timeout(period, async { 1 }).await, Ok(1));
                assert!(timeout(period, std::future::pending::<()>()).await.is_err());
            });
        });
        thread.join().unwrap();
    }
}
