//! Server connections pass from tenant to tenant, whatever the one before left behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::harness::{
    POOL_TENANTS, Running, Setup, Tenant, assert_no_panics, backends, tenant, world,
};
use crate::wire::{Frame, Wire, bind, column, describe, errors, execute, parse, query, rows, sync};

const CLIENTS: usize = 200;
const TRANSACTIONS: usize = 10_000;
const POOL: usize = 4;
const SEED: u64 = 0x7465_6e61_6e74;

const ALL: &str = "SELECT body FROM items WHERE id < 900 ORDER BY id";
const WHO: &str = "SELECT current_setting('app.tenant_id')";

/// What one transaction is like.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Simple,
    Extended,
    Prepared,
    Block,
    Error,
    ErrorInPipeline,
    RolledBack,
    /// The client changes the variable that keeps it apart, for the next who gets the connection.
    SetsTheVariable,
    /// The client is dropped in the middle of a transaction,
    DroppedInTransaction,
    /// of a query,
    DroppedInQuery,
    /// of an extended batch without Sync,
    DroppedInBatch,
    /// of a message.
    DroppedInMessage,
}

impl Kind {
    fn pick(rng: &mut StdRng) -> Self {
        match rng.random_range(0..100) {
            0..25 => Self::Simple,
            25..45 => Self::Extended,
            45..65 => Self::Prepared,
            65..74 => Self::Block,
            74..80 => Self::Error,
            80..86 => Self::ErrorInPipeline,
            86..92 => Self::RolledBack,
            92..96 => Self::SetsTheVariable,
            96 => Self::DroppedInTransaction,
            97 => Self::DroppedInQuery,
            98 => Self::DroppedInBatch,
            _ => Self::DroppedInMessage,
        }
    }
}

struct Actor {
    proxy: Arc<Running>,
    tenant: Tenant,
    wire: Wire,
    prepared: bool,
}

impl Actor {
    async fn new(proxy: Arc<Running>, number: usize) -> Self {
        let tenant = tenant(&format!("t{:02}", number % POOL_TENANTS));
        let wire = proxy.raw(&tenant).await;
        Self {
            proxy,
            tenant,
            wire,
            prepared: false,
        }
    }

    async fn again(&mut self) {
        self.wire = self.proxy.raw(&self.tenant).await;
        self.prepared = false;
    }

    fn check(&self, kind: Kind, seen: &[String]) {
        assert_eq!(seen, self.tenant.bodies(), "{} {kind:?}", self.tenant.name);
    }

    fn check_name(&self, kind: Kind, frames: &[Frame]) {
        assert_eq!(
            column(frames),
            [&*self.tenant.name],
            "{} {kind:?}",
            self.tenant.name
        );
    }

    async fn send_and_read(&mut self, parts: &[Vec<u8>]) -> Vec<Frame> {
        self.wire.send(&parts.concat()).await;
        self.wire.until_ready().await
    }

    async fn transaction(&mut self, kind: Kind) {
        match kind {
            Kind::Simple => {
                let frames = self.wire.query(ALL).await;
                self.check(kind, &column(&frames));
            }
            Kind::Extended => {
                let parts = [
                    parse("", "SELECT body FROM items WHERE id < $1::int ORDER BY id"),
                    bind("", "", &[Some("900")]),
                    describe(b'P', ""),
                    execute("", 0),
                    sync(),
                ];
                let frames = self.send_and_read(&parts).await;
                self.check(kind, &column(&frames));
            }
            Kind::Prepared => {
                let mut parts = vec![bind("", "mine", &[Some("900")]), execute("", 0), sync()];
                if !self.prepared {
                    let sql = "SELECT body FROM items WHERE id < $1 ORDER BY id";
                    parts.insert(0, parse("mine", sql));
                    self.prepared = true;
                }
                let frames = self.send_and_read(&parts).await;
                self.check(kind, &column(&frames));
            }
            Kind::Block => {
                let frames = self.wire.query("BEGIN").await;
                assert_eq!(frames.last().map(|f| &*f.body), Some(&b"T"[..]));
                for _ in 0..2 {
                    let frames = self.wire.query(ALL).await;
                    self.check(kind, &column(&frames));
                }
                column(&self.wire.query("COMMIT").await);
            }
            Kind::Error => {
                let frames = self.wire.query(&format!("{ALL}; SELECT 1/0; {ALL}")).await;
                assert_eq!(errors(&frames), ["22012"]);
                self.check(kind, &rows(&frames));
            }
            Kind::ErrorInPipeline => {
                let parts = [
                    parse("", ALL),
                    bind("", "", &[]),
                    execute("", 0),
                    parse("", "SELECT 1/0"),
                    bind("", "", &[]),
                    execute("", 0),
                    sync(),
                    query(WHO),
                ];
                let frames = self.send_and_read(&parts).await;
                assert_eq!(errors(&frames), ["22012"]);
                self.check(kind, &rows(&frames));
                let frames = self.wire.until_ready().await;
                self.check_name(kind, &frames);
            }
            Kind::RolledBack => {
                column(&self.wire.query("BEGIN").await);
                column(&self.wire.query("DELETE FROM items").await);
                assert!(column(&self.wire.query(ALL).await).is_empty());
                column(&self.wire.query("ROLLBACK").await);
                let frames = self.wire.query(ALL).await;
                self.check(kind, &column(&frames));
            }
            Kind::SetsTheVariable => {
                // Posture "plain": within its transaction a client can do that, and only there.
                self.wire.query("SET app.tenant_id = 't00'").await;
                let frames = self.wire.query(ALL).await;
                self.check(kind, &column(&frames));
                self.wire.query("DISCARD ALL").await;
                self.prepared = false;
                let frames = self.wire.query(WHO).await;
                self.check_name(kind, &frames);
            }
            Kind::DroppedInTransaction => {
                column(&self.wire.query("BEGIN; DELETE FROM items").await);
                self.again().await;
            }
            Kind::DroppedInQuery => {
                self.wire
                    .send(&query("SELECT pg_sleep(0.005), body FROM items"))
                    .await;
                self.again().await;
            }
            Kind::DroppedInBatch => {
                let parts = [parse("", ALL), bind("", "", &[]), execute("", 0)];
                self.wire.send(&parts.concat()).await;
                self.again().await;
            }
            Kind::DroppedInMessage => {
                let frame = query(ALL);
                self.wire.send(&frame[..frame.len() / 2]).await;
                self.again().await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_tenants_share_four_connections_and_nobody_sees_a_row_of_another() {
    let world = world().await;
    // Another role than the other tests have: its connections are counted.
    world
        .shared
        .run(
            "app",
            "CREATE ROLE app_handover LOGIN PASSWORD 'secret'; \
             GRANT CONNECT ON DATABASE app TO app_handover; \
             GRANT SELECT, INSERT, UPDATE, DELETE ON items TO app_handover",
        )
        .await
        .expect("a role");
    let setup = Setup {
        pool_size: POOL,
        sections: "timeouts: { checkout: 60s, login: 60s }".into(),
        ..Setup::default()
    };
    let yaml = setup.yaml(world).replace(
        "server: shared, database: app, login: { user: \"app\"",
        "server: shared, database: app, login: { user: \"app_handover\"",
    );
    let proxy = Arc::new(Running::start(&yaml));
    let left = Arc::new(AtomicUsize::new(TRANSACTIONS));

    let mut actors = tokio::task::JoinSet::new();
    for number in 0..CLIENTS {
        let (proxy, left) = (proxy.clone(), left.clone());
        actors.spawn(async move {
            let mut rng = StdRng::seed_from_u64(SEED + number as u64);
            let mut actor = Actor::new(proxy, number).await;
            while left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                .is_ok()
            {
                let kind = Kind::pick(&mut rng);
                actor.transaction(kind).await;
            }
        });
    }

    let watching = world.shared.connect("postgres").await.expect("connects");
    let mut most = 0;
    while !actors.is_empty() {
        while let Some(ended) = actors.try_join_next() {
            if let Err(error) = ended {
                std::panic::resume_unwind(error.into_panic());
            }
        }
        most = most.max(backends(&watching, "app_handover").await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(most, i64::try_from(POOL).expect("small"));
    assert_no_panics();
}
