//! Which worker serves whom. All clients of an instance begin at its home; when a worker has too
//! much to do and another has much less, clients that are at work are asked to go there, whole
//! tenants where that fits; when there is little to do again, those that are at work come home: to
//! tell another thread costs more than the work it saves.
//!
//! ```text
//!             hot: HOT of a core, and GAP more than another, for two looks
//!   at home ──────────────────────────────────────────────────────────────► elsewhere
//!           ◄──────────────────────────────────────────────────────────────
//!             calm: less than CALM, there and at home together, for CALM_LOOKS
//! ```
//!
//! A worker is hot by the time it is on a core: one that waits for a core would gain nothing from a
//! second thread that waits, too; and for the same reason one that waits for a core has no less to
//! do.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::app::App;
use crate::client::ClientHandle;
use crate::id::TenantId;
use crate::server::threads::{Thread, Times};
use crate::timer;
use crate::workers::{HOT, WorkerId, Workers};

/// How often is looked.
const LOOK: Duration = Duration::from_millis(100);
/// In thousandths of a core, as [`HOT`]: how much less a worker must have to do to be given some of
/// another's.
const GAP: u32 = 300;
/// So little that one worker does it with ease.
const CALM: u32 = 400;
/// Looks for which it has to be calm: five seconds.
const CALM_LOOKS: u32 = 50;

/// Looks for as long as `app` lives. `workers`: as it knows them.
pub async fn watch(app: Weak<App>, workers: Vec<Thread>) {
    if workers.len() < 2 {
        return;
    }
    let mut balance = Balance::new(workers);
    loop {
        timer::sleep(LOOK).await;
        let Some(app) = app.upgrade() else { return };
        balance.look(&app);
    }
}

struct Balance {
    workers: Vec<Thread>,
    /// What each had done at the last look.
    times: Vec<Times>,
    looked: Instant,
    /// At the last look a worker was hot, and clients were counted.
    hot: bool,
    calm: u32,
}

impl Balance {
    fn new(workers: Vec<Thread>) -> Self {
        Self {
            times: workers.iter().map(Thread::times).collect(),
            workers,
            looked: Instant::now(),
            hot: false,
            calm: 0,
        }
    }

    fn look(&mut self, app: &App) {
        let loads = self.measure(app);
        share_accepting(app.workers(), &loads);
        let trips = trips(&loads);
        let was_hot = std::mem::replace(&mut self.hot, !trips.is_empty());
        if self.hot {
            self.calm = 0;
            let at_work = at_work(app);
            if was_hot {
                relieve(app, &trips, &at_work);
                // What they do there is counted anew.
                self.hot = false;
            }
            return;
        }
        self.calm += 1;
        if self.calm == CALM_LOOKS / 2 {
            at_work(app);
        }
        if self.calm == CALM_LOOKS {
            self.calm = 0;
            gather(app, &at_work(app));
        }
    }

    /// The load of each worker since the last look.
    fn measure(&mut self, app: &App) -> Vec<Load> {
        let now = Instant::now();
        let past = now.duration_since(self.looked).as_micros().max(1);
        self.looked = now;
        let of_past = |time: Duration| {
            let thousandths = time.as_micros() * 1000 / past;
            u32::try_from(thousandths).unwrap_or(u32::MAX)
        };
        let workers = self.workers.iter().zip(&mut self.times);
        let loads = workers.zip(app.workers().ids());
        loads
            .map(|((worker, times), id)| {
                let before = std::mem::replace(times, worker.times());
                let ran = of_past(times.ran.saturating_sub(before.ran));
                let waited = of_past(times.waited.saturating_sub(before.waited));
                app.workers().set_load(id, ran);
                Load {
                    id,
                    ran,
                    busy: ran.saturating_add(waited),
                }
            })
            .collect()
    }
}

/// All workers accept from when the first has too much to do until it has little.
fn share_accepting(workers: &Workers, loads: &[Load]) {
    let Some(first) = loads.first() else { return };
    let enough = match workers.all_accept() {
        true => CALM,
        false => HOT,
    };
    workers.set_all_accept(first.ran >= enough);
}

/// What a worker did since the last look, in thousandths of that time.
#[derive(Debug, Clone, Copy)]
struct Load {
    id: WorkerId,
    ran: u32,
    /// It ran, or waited for a core.
    busy: u32,
}

/// A client that was at work since the last count.
struct AtWork {
    client: Arc<ClientHandle>,
    uses: u64,
}

fn at_work(app: &App) -> Vec<AtWork> {
    app.clients()
        .into_iter()
        .map(|client| AtWork {
            uses: client.count_uses().into(),
            client,
        })
        .filter(|at_work| at_work.uses > 0)
        .collect()
}

/// From a worker that is hot to one that has much less to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Trip {
    from: WorkerId,
    to: WorkerId,
    /// How much of the work of `from`, in thousandths: then both have the same.
    share: u32,
}

/// From the hottest to the coolest, from the second to the second, and so on: no worker is in two.
fn trips(loads: &[Load]) -> Vec<Trip> {
    let mut loads = loads.to_vec();
    loads.sort_by_key(|load| (load.busy, load.id));
    let pairs = loads.iter().rev().zip(&loads).take(loads.len() / 2);
    pairs
        .filter(|(hot, cool)| hot.ran >= HOT && hot.ran >= cool.busy + GAP)
        .map(|(hot, cool)| Trip {
            from: hot.id,
            to: cool.id,
            share: (hot.ran - cool.busy) * 500 / hot.ran,
        })
        .collect()
}

/// Asks clients to take some of the work where there is less.
fn relieve(app: &App, trips: &[Trip], at_work: &[AtWork]) {
    for trip in trips {
        let here = at_work.iter().filter(|a| a.client.worker() == trip.from);
        let work: Vec<_> = here
            .map(|a| (&a.client.tenant, a.uses, &a.client))
            .collect();
        let (tenants, clients) = choose(work, trip.share);
        for tenant in &tenants {
            app.tenant(tenant).set_worker(trip.to);
        }
        if clients.is_empty() {
            continue;
        }
        tracing::debug!(
            from = trip.from.number(),
            to = trip.to.number(),
            clients = clients.len(),
            "clients go to another worker"
        );
        for client in clients {
            client.go_to(trip.to);
        }
    }
}

/// Who goes, to take about `share` thousandths of the work along, and not more: whole tenants; of
/// one tenant some only where those do not come to half of that. Also says which tenants go as a
/// whole.
fn choose<T>(mut work: Vec<(&TenantId, u64, T)>, share: u32) -> (Vec<TenantId>, Vec<T>) {
    let total: u64 = work.iter().map(|(_, uses, _)| uses).sum();
    let wanted = total * u64::from(share) / 1000;
    let mut of_tenants: HashMap<&TenantId, u64> = HashMap::new();
    for (tenant, uses, _) in &work {
        *of_tenants.entry(tenant).or_default() += uses;
    }
    let mut of_tenants: Vec<_> = of_tenants.into_iter().collect();
    of_tenants.sort_by(|(a, x), (b, y)| y.cmp(x).then(a.cmp(b)));
    let mut rest = wanted;
    let mut fits = |uses: u64| {
        let fits = uses <= rest;
        rest -= if fits { uses } else { 0 };
        fits
    };
    let (whole, split): (Vec<_>, Vec<_>) =
        of_tenants.into_iter().partition(|&(_, uses)| fits(uses));
    let whole: Vec<_> = whole
        .into_iter()
        .map(|(tenant, _)| tenant.clone())
        .collect();
    let split = split.first().filter(|_| rest > wanted / 2);
    let split = split.map(|&(tenant, _)| tenant.clone());
    work.sort_by_key(|(_, uses, _)| std::cmp::Reverse(*uses));
    let goes = work.into_iter().filter(|(tenant, uses, _)| {
        let is_split = split.as_ref() == Some(*tenant) && *uses <= rest;
        rest -= if is_split { *uses } else { 0 };
        is_split || whole.contains(tenant)
    });
    let goes = goes.map(|(_, _, client)| client).collect();
    (whole, goes)
}

/// Asks those at work elsewhere to come home, where there is little to do here and there.
fn gather(app: &App, at_work: &[AtWork]) {
    let (config, instances) = (app.config(), app.instances());
    for AtWork { client, .. } in at_work {
        let tenant = config.login(client.tenant.as_str());
        let home = tenant.and_then(|tenant| instances.get(&tenant.route.pool.server));
        let Some(home) = home.map(|instance| instance.home) else {
            continue;
        };
        let here = client.worker();
        if here != home && app.workers().load(here) + app.workers().load(home) < CALM {
            app.tenant(&client.tenant).set_worker(home);
            client.go_to(home);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From, to, and the share.
    type Trips<'a> = &'a [(u16, u16, u32)];
    /// Whose client it is, and its uses.
    type Work<'a> = &'a [(&'a str, u64)];

    /// `loads`: how long each ran, and waited.
    fn workers(loads: &[(u32, u32)]) -> Vec<Load> {
        let loads = (0..).map(WorkerId::from).zip(loads);
        let load = |(id, &(ran, waited))| Load {
            id,
            ran,
            busy: ran + waited,
        };
        loads.map(load).collect()
    }

    #[test]
    fn only_a_hot_worker_is_relieved_and_only_by_one_that_has_much_less_to_do() {
        const FULL: (u32, u32) = (1000, 0);
        let cases: [(&[(u32, u32)], Trips<'_>); 9] = [
            (&[(500, 0), (0, 0)], &[]),
            (&[(799, 0), (0, 0)], &[]),
            (&[FULL, (0, 0)], &[(0, 1, 500)]),
            (&[FULL, (500, 0)], &[(0, 1, 250)]),
            (&[FULL, (800, 0)], &[]),
            (
                &[(0, 0), (900, 0), (100, 0), FULL],
                &[(3, 0, 500), (1, 2, 444)],
            ),
            (&[FULL, FULL, (0, 0)], &[(1, 2, 500)]),
            // There is no core to be had.
            (&[(500, 500), (0, 0)], &[]),
            (&[FULL, (200, 600)], &[]),
        ];
        for (loads, expected) in cases {
            let made = trips(&workers(loads));
            let made: Vec<_> = made
                .iter()
                .map(|trip| (trip.from.number(), trip.to.number(), trip.share))
                .collect();
            let expected: Vec<_> = expected
                .iter()
                .map(|&(from, to, share)| (usize::from(from), usize::from(to), share))
                .collect();
            assert_eq!(made, expected, "{loads:?}");
        }
    }

    #[tokio::test]
    async fn all_workers_accept_from_when_the_first_is_hot_until_it_is_calm() {
        let shared = Workers::new(vec![tokio::runtime::Handle::current(); 2]);
        for (ran, all) in [
            (HOT - 1, false),
            (HOT, true),
            (CALM, true),
            (CALM - 1, false),
            (HOT - 1, false),
        ] {
            share_accepting(&shared, &workers(&[(ran, 0), (1000, 0)]));
            assert_eq!(shared.all_accept(), all, "{ran}");
        }
    }

    #[test]
    fn whole_tenants_go_where_they_fit_and_a_large_one_is_split() {
        let cases: [(Work<'_>, u32, &str, &str); 9] = [
            // Two tenants.
            (
                &[("a", 10), ("a", 10), ("b", 10), ("b", 10)],
                500,
                "a",
                "0 1",
            ),
            // One tenant.
            (
                &[("a", 10), ("a", 10), ("a", 10), ("a", 10)],
                500,
                "",
                "0 1",
            ),
            // One client cannot be in two places, and another place is no better for it.
            (&[("a", 10)], 500, "", ""),
            // The one that does nearly all of the work stays, the others make room.
            (&[("a", 1), ("b", 100), ("c", 1)], 500, "a c", "0 2"),
            (&[("a", 1), ("a", 100), ("a", 1)], 500, "", "0 2"),
            // A large tenant is split beside small ones only if these are not half of what should
            // go.
            (
                &[("a", 40), ("a", 40), ("b", 5), ("c", 15)],
                500,
                "c b",
                "3 2",
            ),
            (
                &[("a", 60), ("a", 20), ("b", 5), ("c", 15)],
                500,
                "c b",
                "1 3 2",
            ),
            (
                &[("a", 40), ("a", 20), ("b", 20), ("c", 20)],
                500,
                "b c",
                "2 3",
            ),
            (&[], 500, "", ""),
        ];
        for (work, share, tenants, clients) in cases {
            let ids: Vec<_> = work
                .iter()
                .map(|(t, _)| TenantId::new(t).unwrap())
                .collect();
            let list = work.iter().zip(&ids).enumerate();
            let list = list.map(|(number, ((_, uses), id))| (id, *uses, number.to_string()));
            let (whole, goes) = choose(list.collect(), share);
            let whole: Vec<_> = whole.iter().map(TenantId::as_str).collect();
            assert_eq!(
                (&*whole.join(" "), &*goes.join(" ")),
                (tenants, clients),
                "{work:?}"
            );
        }
    }
}
