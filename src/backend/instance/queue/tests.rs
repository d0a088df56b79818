use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::net::UnixStream;
use tokio::runtime::Handle;

use super::*;
use crate::backend::binding::{Binding, Context};
use crate::backend::dns::Resolver;
use crate::backend::instance::Instance;
use crate::config::{self, Config};
use crate::net::stream::Stream;
use crate::workers::Workers;

/// Of which tenant, and where.
type Idle<'a> = &'a [(Option<usize>, u16)];

const SIZE: usize = 4;
const TENANTS: usize = 40;

/// The queue of an instance, with a pool of four connections, and its tenants.
struct World {
    config: Config,
    pool: Arc<Pool>,
    queue: Queue,
    tenants: Vec<Arc<TenantState>>,
}

fn worker(number: u16) -> WorkerId {
    WorkerId::from(number)
}

impl World {
    fn new(budget: usize) -> Self {
        let tenants: String = (0..TENANTS)
            .map(|number| {
                format!("  t{number}: {{ placement: p, users: {{ app: {{ password: x }} }} }}\n")
            })
            .collect();
        let yaml = format!(
            "listen: [{{ address: \"127.0.0.1:0\" }}]\nservers:\n  s: {{ host: /tmp, sslmode: disable, max_connections: {budget} }}\n\
             placements:\n  p: {{ tier: pool, server: s, database: d, login: {{ user: u, password: x }}, \
             context: {{ app.tenant_id: \"{{tenant}}\" }}, pool: {{ size: {SIZE} }} }}\ntenants:\n{tenants}"
        );
        let config = config::load_text(&yaml, Path::new("."), &|_| None)
            .unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
        let server = config.servers.values().next().unwrap().clone();
        let workers = Workers::new(vec![Handle::current(); 2]);
        let instance = Instance::new(
            server,
            config.timeouts.clone(),
            workers,
            WorkerId::default(),
            Resolver::default(),
        );
        let route = &config.tenants["t0"].route;
        let pool = instance.pool(&route.pool, route.placement.pool);
        let mut queue = Queue::new(budget);
        queue.add_pool(pool.clone());
        let tenants = (0..TENANTS)
            .map(|number| {
                let id = TenantId::new(&format!("t{number}")).unwrap();
                Arc::new(TenantState::new(id))
            })
            .collect();
        Self {
            config,
            pool,
            queue,
            tenants,
        }
    }

    /// A connection that is registered with a worker and carries a tenant's context, or none.
    fn connection(&self, tenant: Option<usize>, at: u16) -> Box<ServerConnection> {
        let (stream, _) = UnixStream::pair().unwrap();
        let server = self.config.servers.values().next().unwrap().clone();
        let mut connection = ServerConnection::new(Stream::Plain(stream.into()), server, None);
        connection.worker = worker(at);
        self.bind(&mut connection, tenant);
        Box::new(connection)
    }

    fn bind(&self, connection: &mut ServerConnection, tenant: Option<usize>) {
        connection.context = match tenant {
            None => Context::Clean,
            Some(number) => {
                let id = &self.tenants[number].id;
                Context::Bound(Binding {
                    tenant: id.clone(),
                    route: self.config.tenants[id.as_str()].route.clone(),
                    settings: Arc::default(),
                    stale: false,
                })
            }
        };
    }

    fn state(&mut self) -> &mut PoolState {
        self.queue.pools.get_mut(&self.pool.id).unwrap()
    }

    /// Idle connections, the first used longest ago.
    fn fill(&mut self, idle: Idle<'_>) {
        for &(tenant, at) in idle {
            let connection = self.connection(tenant, at);
            self.state().idle.push_back(connection);
            self.state().total += 1;
            self.queue.total += 1;
        }
    }

    /// From now on the pool has one connection at most.
    fn shrink_to_one(&self) {
        let limits = PoolLimits {
            min: 0,
            size: 1,
            reserve: 0,
        };
        self.pool.instance.pool(&self.pool.key, limits);
    }

    fn take(&mut self, tenant: usize, at: u16) -> Option<Granted> {
        let tenant = self.tenants[tenant].clone();
        self.queue.try_take(self.pool.id, &tenant, worker(at))
    }

    fn wait(&mut self, tenant: usize, at: u16) -> oneshot::Receiver<Granted> {
        let tenant = self.tenants[tenant].clone();
        self.queue.wait(self.pool.id, &tenant, worker(at))
    }

    fn put_back(&mut self, tenant: usize, connection: Box<ServerConnection>) {
        let tenant = self.tenants[tenant].clone();
        let now = Instant::now();
        let surplus = self.queue.put_back(self.pool.id, &tenant, connection, now);
        assert!(surplus.is_none());
    }
}

fn connection(granted: Option<Granted>) -> Box<ServerConnection> {
    match granted {
        Some(Granted::Ready(connection)) => connection,
        Some(Granted::Slot) => panic!("room for a new one"),
        Some(Granted::Evict { .. }) => panic!("another's slot"),
        None => panic!("nothing"),
    }
}

/// What a client of tenant 0 on worker 0 is given.
#[tokio::test]
async fn a_checkout_takes_what_costs_least() {
    const OWN: Option<usize> = Some(0);
    const OTHER: Option<usize> = Some(1);
    const CLEAN: Option<usize> = None;
    let cases: [(Idle<'_>, usize); 9] = [
        // Its own, here, the last used; or from elsewhere, where it is missed least.
        (&[(OWN, 0), (OWN, 0), (OWN, 1), (CLEAN, 0)], 1),
        (&[(OWN, 1), (OWN, 1), (CLEAN, 0), (OTHER, 0)], 0),
        (&[(OTHER, 0), (CLEAN, 1), (CLEAN, 0), (CLEAN, 1)], 2),
        (&[(OTHER, 0), (CLEAN, 1), (CLEAN, 1), (OTHER, 1)], 1),
        // Another's: what was used longest ago, here if that is not among the last used.
        (&[(OTHER, 0), (OTHER, 0), (OTHER, 1), (OTHER, 1)], 0),
        (&[(OTHER, 1), (OTHER, 0), (OTHER, 0), (OTHER, 1)], 1),
        (&[(OTHER, 1), (OTHER, 1), (OTHER, 0), (OTHER, 0)], 0),
        (&[(OTHER, 1), (OTHER, 1), (OTHER, 1), (OTHER, 1)], 0),
        (&[(OTHER, 1), (OWN, 1), (OTHER, 0), (OTHER, 0)], 1),
    ];
    for (idle, expected) in cases {
        let mut world = World::new(10);
        world.fill(idle);
        let fences: Vec<_> = world
            .state()
            .idle
            .iter()
            .map(|c| c.fence().clone())
            .collect();
        let taken = connection(world.take(0, 0));
        let at = fences
            .iter()
            .position(|fence| Arc::ptr_eq(fence, taken.fence()));
        assert_eq!(at, Some(expected), "{idle:?}");
        assert_eq!((world.state().total, world.queue.total()), (SIZE, SIZE));
    }
}

#[tokio::test]
async fn what_comes_back_goes_to_a_client_of_its_worker() {
    let mut world = World::new(10);
    world.fill(&[(Some(0), 1); SIZE]);
    let mut held: Vec<_> = (0..SIZE).map(|_| connection(world.take(0, 1))).collect();
    let mut far = world.wait(0, 0);
    let mut near = world.wait(0, 1);
    world.put_back(0, held.pop().unwrap());
    assert!(far.try_recv().is_err());
    assert_eq!(connection(near.try_recv().ok()).worker, worker(1));
    // Nobody else is near.
    world.put_back(0, held.pop().unwrap());
    assert_eq!(connection(far.try_recv().ok()).worker, worker(1));
    // Of several tenants, too; the first is of another worker.
    let (mut far, mut near) = (world.wait(1, 0), world.wait(2, 1));
    let mut back = held.pop().unwrap();
    // Its tenant's turn is over.
    back.turn = TURN;
    world.put_back(0, back);
    assert!(far.try_recv().is_err());
    assert!(near.try_recv().is_ok());
}

#[tokio::test]
async fn no_client_is_overtaken_for_long_by_those_of_another_worker() {
    let mut world = World::new(10);
    world.fill(&[(Some(0), 1)]);
    world.shrink_to_one();
    let mut held = connection(world.take(0, 1));
    let mut far = world.wait(0, 0);
    let mut overtaken = 0;
    let mut near = world.wait(0, 1);
    loop {
        world.put_back(0, held);
        if let Ok(granted) = far.try_recv() {
            assert_eq!(connection(Some(granted)).worker, worker(1));
            break;
        }
        overtaken += 1;
        held = connection(near.try_recv().ok());
        // It comes back at once, as its neighbours do.
        near = world.wait(0, 1);
    }
    assert_eq!(overtaken, NEAR);
}

#[tokio::test]
async fn no_tenant_is_overtaken_for_long_by_those_of_another_worker() {
    let mut world = World::new(10);
    world.fill(&[(Some(1), 1)]);
    world.shrink_to_one();
    let mut held = connection(world.take(1, 1));
    let mut holder = 1;
    let mut far = world.wait(0, 0);
    let mut overtaken = 0;
    for next in 2.. {
        let mut near = world.wait(next, 1);
        world.bind(&mut held, Some(holder));
        world.put_back(holder, held);
        if let Ok(granted) = far.try_recv() {
            assert_eq!(connection(Some(granted)).worker, worker(1));
            break;
        }
        overtaken += 1;
        held = connection(near.try_recv().ok());
        holder = next;
    }
    assert_eq!(overtaken, NEAR);
}

#[tokio::test]
async fn one_that_left_the_line_is_passed_over_wherever_it_stood() {
    let mut world = World::new(10);
    world.fill(&[(Some(0), 1); SIZE]);
    let held: Vec<_> = (0..SIZE).map(|_| connection(world.take(0, 1))).collect();
    let gone = [world.wait(0, 0), world.wait(0, 1)];
    let mut stays = world.wait(0, 1);
    drop(gone);
    let mut gone_alone = world.wait(3, 1);
    gone_alone.close();
    for connection in held {
        world.put_back(0, connection);
    }
    assert!(stays.try_recv().is_ok());
    // One that comes back has one turn still.
    let again = world.wait(3, 0);
    assert_eq!(world.queue.ring.len(), 1);
    drop(again);
    world.queue.dispatch_all();
    assert!(world.queue.ring.is_empty());
    assert!(world.state().waiting.is_empty());
    assert_eq!(world.state().idle.len(), SIZE - 1);
}

#[tokio::test]
async fn server_time_is_shared_out_by_weight_and_who_was_away_saves_nothing_up() {
    let mut world = World::new(10);
    world.fill(&[(Some(0), 0)]);
    world.shrink_to_one();
    // One of weight 1, one of weight 3, and from the middle on another of weight 1.
    world.tenants[1].set_limits(crate::config::TenantLimits {
        weight: 3,
        ..Default::default()
    });
    let mut held = connection(world.take(0, 0));
    let mut holder = 0;
    let mut had = [Duration::ZERO; 3];
    let mut lines: Vec<_> = (0..2).map(|tenant| world.wait(tenant, 0)).collect();
    let mut halfway = [Duration::ZERO; 3];
    for round in 0..4000_u64 {
        if round == 2000 {
            halfway = had;
            lines.push(world.wait(2, 0));
        }
        let took = Duration::from_micros(100 + round * 37 % 900);
        had[holder] += took;
        world.tenants[holder].metrics.transactions.record(took);
        world.bind(&mut held, Some(holder));
        // Its tenant's turn is over.
        held.turn = TURN;
        world.put_back(holder, held);
        let served = lines.iter_mut().position(|line| {
            line.try_recv().is_ok_and(|granted| {
                drop(granted);
                true
            })
        });
        holder = served.expect("one is served");
        lines[holder] = world.wait(holder, 0);
        held = world.connection(Some(holder), 0);
    }
    let ratio = |a: Duration, b: Duration| a.as_secs_f64() / b.as_secs_f64();
    let first = ratio(halfway[1], halfway[0]);
    assert!((2.7..3.3).contains(&first), "{halfway:?}");
    let later: Vec<_> = (0..3).map(|at| had[at] - halfway[at]).collect();
    let (second, newcomer) = (ratio(later[1], later[0]), ratio(later[2], later[0]));
    assert!((2.7..3.3).contains(&second), "{later:?}");
    assert!((0.9..1.1).contains(&newcomer), "{later:?}");
}

/// A tenant goes on with its turn though others have had less: that is not taken for what all have
/// had.
#[tokio::test]
async fn turns_do_not_make_weights_alike() {
    for weight in [1, 3, 10] {
        let mut world = World::new(10);
        world.fill(&[(Some(0), 0)]);
        world.shrink_to_one();
        world.tenants[1].set_limits(crate::config::TenantLimits {
            weight,
            ..Default::default()
        });
        let mut held = connection(world.take(0, 0));
        let mut lines: Vec<_> = (0..2).map(|tenant| world.wait(tenant, 0)).collect();
        let (mut holder, mut had, mut in_turn) = (0, [0_u32; 2], 0);
        for _ in 0..20_000 {
            let took = Duration::from_micros(500);
            had[holder] += 1;
            world.tenants[holder].metrics.transactions.record(took);
            world.bind(&mut held, Some(holder));
            world.put_back(holder, held);
            let mut granted = lines.iter_mut().map(|line| line.try_recv().ok());
            let served = granted.position(|granted| granted.is_some());
            drop(granted);
            let next = served.expect("one is served");
            let turn = if next == holder { in_turn + 1 } else { 0 };
            (holder, in_turn) = (next, turn);
            lines[holder] = world.wait(holder, 0);
            held = world.connection(Some(holder), 0);
            held.turn = turn;
            held.turn_began = Instant::now();
        }
        let ratio = f64::from(had[1]) / f64::from(had[0]) / f64::from(weight);
        assert!((0.9..1.1).contains(&ratio), "{weight}: {had:?}");
    }
}

#[tokio::test]
async fn who_had_all_while_nobody_waited_is_not_made_to_wait_for_it() {
    let mut world = World::new(10);
    world.fill(&[(Some(0), 0)]);
    world.shrink_to_one();
    let hour = Duration::from_secs(3600);
    world.tenants[0].metrics.transactions.record(hour);
    let mut held = connection(world.take(1, 0));
    let mut lines: Vec<_> = (0..2).map(|tenant| world.wait(tenant, 0)).collect();
    let took = Duration::from_millis(10);
    for round in 0.. {
        world.tenants[1].metrics.transactions.record(took);
        held.turn = TURN;
        world.put_back(1, held);
        if lines[0].try_recv().is_ok() {
            break;
        }
        // The other has a second of server time first, and not an hour.
        assert!(round < 110, "it still waits");
        assert!(lines[1].try_recv().is_ok());
        lines[1] = world.wait(1, 0);
        held = world.connection(Some(1), 0);
    }
}

/// A client: of which tenant, on which worker, and what it has.
struct Client {
    tenant: usize,
    at: u16,
    has: Has,
}

enum Has {
    Nothing,
    Line(oneshot::Receiver<Granted>),
    Connection(Box<ServerConnection>),
}

impl Client {
    /// What it does next, as chance will have it. `comes`: it asks for a connection if it has
    /// none; `leaves`: it goes away from the line once in so many times. True: it was served, and
    /// has given its connection back.
    fn goes_on(
        &mut self,
        world: &mut World,
        rng: &mut StdRng,
        comes: bool,
        leaves: Option<u32>,
    ) -> bool {
        let Self { tenant, at, has } = self;
        let (tenant, at) = (*tenant, *at);
        *has = match std::mem::replace(has, Has::Nothing) {
            Has::Nothing if !comes => Has::Nothing,
            Has::Nothing => match world.take(tenant, at) {
                Some(granted) => got(world, granted, tenant, at),
                None => Has::Line(world.wait(tenant, at)),
            },
            Has::Line(mut line) => match line.try_recv() {
                Ok(granted) => got(world, granted, tenant, at),
                Err(_) if leaves.is_some_and(|often| rng.random_range(0..often) == 0) => {
                    Has::Nothing
                }
                Err(_) => Has::Line(line),
            },
            Has::Connection(connection) if rng.random_range(0..10) == 0 => {
                drop(connection);
                let tenant = world.tenants[tenant].clone();
                world.queue.deactivate(&tenant);
                world.queue.release(world.pool.id);
                Has::Nothing
            }
            Has::Connection(connection) => {
                world.put_back(tenant, connection);
                return true;
            }
        };
        false
    }
}

/// Clients of some tenants on several workers, as chance will have it.
#[tokio::test]
async fn numbers_stay_exact_whoever_comes_and_goes_and_everybody_is_served() {
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(seed);
        // A budget below the pool's size or above.
        let budget = [SIZE - 1, SIZE, 10][rng.random_range(0..3)];
        let most = budget.min(SIZE);
        let mut world = World::new(budget);
        let tenants = rng.random_range(1..8);
        world.tenants[0].set_limits(crate::config::TenantLimits {
            clients: None,
            active: Some(2),
            ..Default::default()
        });
        let mut clients: Vec<_> = (0..24)
            .map(|_| Client {
                tenant: rng.random_range(0..tenants),
                at: rng.random_range(0..3),
                has: Has::Nothing,
            })
            .collect();
        let mut served = vec![0; clients.len()];
        let steps = 4000;
        for step in 0..steps {
            let number = rng.random_range(0..clients.len());
            // At the end nobody comes any more.
            let comes = step <= steps - 1000;
            let is_served = clients[number].goes_on(&mut world, &mut rng, comes, Some(20));
            served[number] += usize::from(is_served);
            // What was kept for a tenant that did not come.
            if rng.random_range(0..4) == 0 {
                let later = Instant::now() + 2 * LINGER;
                world.queue.end_lingering(world.pool.id, later);
            }
            let total = world.queue.total();
            assert!(total <= most, "{total} of {most}");
            assert_eq!(world.state().total, total);
            let active: usize = world.tenants.iter().map(|tenant| tenant.active()).sum();
            assert_eq!(world.queue.active, active);
            assert!(active <= total);
            assert!(world.tenants[0].active() <= 2);
        }
        for Client { tenant, at, has } in clients {
            let has = match has {
                Has::Line(mut line) => match line.try_recv() {
                    Ok(granted) => got(&mut world, granted, tenant, at),
                    Err(_) => Has::Nothing,
                },
                has => has,
            };
            if let Has::Connection(connection) = has {
                world.put_back(tenant, connection);
            }
        }
        assert!(served.iter().all(|&served| served > 0), "{served:?}");
    }
}

/// Clients of two servers, with a level of some of their tenants and one of all, as chance will
/// have it.
#[tokio::test]
async fn levels_are_never_over_their_limits_and_nobody_is_forgotten() {
    for seed in 0..25 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut worlds = [0, 1].map(|_| World::new([3, 5, 12][rng.random_range(0..3)]));
        let limits = [rng.random_range(1..3), rng.random_range(2..6)];
        let levels = limits.map(|limit| {
            let level = Arc::<Level>::default();
            level.set_limit(Some(limit));
            level
        });
        for tenant in worlds.iter().flat_map(|world| &world.tenants[..8]) {
            let number: usize = tenant.id.as_str()[1..].parse().unwrap();
            // The tenants 0 to 3 are of both, 4 and 5 of the second, 6 and 7 of none.
            let of = [&levels[..], &levels[1..], &[]][[0, 0, 0, 0, 1, 1, 2, 2][number]];
            tenant.set_levels(of.to_vec());
        }
        let mut clients: Vec<_> = (0..30)
            .map(|_| {
                let client = Client {
                    tenant: rng.random_range(0..8),
                    at: rng.random_range(0..3),
                    has: Has::Nothing,
                };
                (rng.random_range(0..2), client)
            })
            .collect();
        let mut served = std::collections::HashMap::new();
        let steps = 4000;
        // Whoever comes again near the end is served soon after it.
        for step in 0..2 * steps {
            let is_over = |(world, client): &(usize, Client)| {
                let is_served = served.contains_key(&(*world, client.tenant));
                is_served && matches!(client.has, Has::Nothing)
            };
            if step >= steps && clients.iter().all(is_over) {
                break;
            }
            let number = rng.random_range(0..clients.len());
            let (at_world, client) = &mut clients[number];
            let whose = (*at_world, client.tenant);
            let ends = step > steps - 1500;
            // Who left before it was served, or lost its connection, comes again until it is.
            let comes = !ends || !served.contains_key(&whose);
            let leaves = (!ends).then_some(400);
            if client.goes_on(&mut worlds[*at_world], &mut rng, comes, leaves) {
                *served.entry(whose).or_insert(0) += 1;
            }
            for world in &mut worlds {
                if rng.random_range(0..4) == 0 {
                    let later = Instant::now() + 2 * LINGER;
                    world.queue.end_lingering(world.pool.id, later);
                }
                if ends || rng.random_range(0..4) == 0 {
                    let turns = world.queue.turns().take();
                    world.queue.take_turns(turns);
                }
            }
            let active = |numbers: &[usize]| -> usize {
                let tenants = worlds.iter().flat_map(|world| &world.tenants);
                tenants
                    .filter(|t| numbers.iter().any(|n| t.id.as_str() == format!("t{n}")))
                    .map(|tenant| tenant.active())
                    .sum()
            };
            let counts = [active(&[0, 1, 2, 3]), active(&[0, 1, 2, 3, 4, 5])];
            for at in 0..2 {
                assert_eq!(levels[at].active(), counts[at], "{seed} {step}");
                assert!(counts[at] <= limits[at], "{seed} {step}");
            }
        }
        let forgotten = clients
            .iter()
            .filter(|(_, client)| !matches!(client.has, Has::Nothing));
        assert_eq!(forgotten.count(), 0, "{seed}");
        for (world, Client { tenant, .. }) in &clients {
            assert!(served.contains_key(&(*world, *tenant)), "{seed} {served:?}");
        }
    }
}

/// What a client makes of a grant.
fn got(world: &mut World, granted: Granted, tenant: usize, at: u16) -> Has {
    let mut connection = match granted {
        Granted::Ready(connection) => connection,
        Granted::Slot => world.connection(None, at),
        Granted::Evict { .. } => panic!("there is one pool"),
    };
    world.bind(&mut connection, Some(tenant));
    connection.worker = worker(at);
    Has::Connection(connection)
}
