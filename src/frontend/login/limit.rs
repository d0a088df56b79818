//! How long a login may take: as the proxy says until it is known whose it is, and then as its
//! tenant does.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::Poll;
use std::time::{Duration, Instant};

use crate::timer;

pub struct Limit {
    began: Instant,
    /// In milliseconds.
    most: AtomicU64,
}

impl Limit {
    /// From now on.
    pub fn new(most: Duration) -> Self {
        let limit = Self {
            began: Instant::now(),
            most: AtomicU64::new(0),
        };
        limit.set(Some(most));
        limit
    }

    /// None: it stays as it is.
    pub fn set(&self, most: Option<Duration>) {
        if let Some(most) = most {
            let most = u64::try_from(most.as_millis()).unwrap_or(u64::MAX);
            self.most.store(most, Relaxed);
        }
    }

    /// What `login` comes to, if it does so within the limit, which it may set meanwhile.
    ///
    /// Cancel safe if `login` is.
    pub async fn keep<T>(&self, login: impl Future<Output = T>) -> Option<T> {
        let mut login = pin!(login);
        let mut most = self.most.load(Relaxed);
        let mut sleep = pin!(timer::sleep(Duration::from_millis(most)));
        poll_fn(|cx| {
            if let Poll::Ready(done) = login.as_mut().poll(cx) {
                return Poll::Ready(Some(done));
            }
            let now = self.most.load(Relaxed);
            if now != most {
                most = now;
                let end = self.began + Duration::from_millis(most);
                sleep.as_mut().reset(end.into());
            }
            sleep.as_mut().poll(cx).map(|()| None)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_login_may_take_as_long_as_was_said_last() {
        const SHORT: Duration = Duration::from_millis(60);
        const LONG: Duration = Duration::from_secs(60);
        for (first, then, takes, is_in_time) in [
            (SHORT, None, LONG, false),
            (LONG, None, SHORT, true),
            (LONG, Some(SHORT), LONG, false),
            (SHORT, Some(LONG), 2 * SHORT, true),
        ] {
            let limit = Limit::new(first);
            let login = async {
                timer::sleep(SHORT / 10).await;
                limit.set(then);
                timer::sleep(takes).await;
            };
            let kept = limit.keep(login).await;
            assert_eq!(kept.is_some(), is_in_time, "{first:?} {then:?} {takes:?}");
        }
    }
}
