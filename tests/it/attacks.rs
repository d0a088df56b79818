//! The attack list, as far as it is SQL and messages (`src/attacks`), in every tier and posture.
//! Each attack is first seen to succeed where nothing is done against it; what holds it where is
//! the table of docs/isolation.md.

mod weak;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use pgtenant::attacks::made::Made;
use pgtenant::attacks::play::{self, Verdict};
use pgtenant::attacks::session::Way;
use pgtenant::attacks::stage::{Cast, Stage};
use pgtenant::attacks::{ATTACKS, Attack, Category, Step, Variant};
use pgtenant::cluster::{Cluster, Options};
use pgtenant::config::guests::{Guests, USER, load_with_guests};
use pgtenant::config::{Config, Route, Secret};
use pgtenant::control::{harden, seal};
use pgtenant::id::TenantId;
use tempfile::TempDir;

use self::weak::{Weak, weak};
use crate::harness::{Running, SECRET, cluster};
use crate::wire::Wire;

/// The columns of the table, by placement.
const COLUMNS: [&str; 7] = [
    "plain", "guarded", "sealed", "schema", "fenced", "database", "silo",
];
const DOCS: &str = include_str!("../../docs/isolation.md");

/// Servers, roles and databases of all placements; the tenants' places are made by the stage.
pub struct World {
    pub cluster: Cluster,
    dir: TempDir,
}

impl World {
    pub async fn new(name: &str) -> Self {
        let cluster = cluster(Options {
            max_connections: 60,
            settings: vec![("shared_buffers".into(), "16MB".into())],
            ..Options::named(name)
        })
        .await;
        let world = Self {
            cluster,
            dir: TempDir::new().expect("a directory"),
        };
        std::fs::write(world.path(), world.yaml()).expect("a file");
        world
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("pgtenant.yaml")
    }

    pub fn yaml(&self) -> String {
        let pool = |tier: &str, name: &str, more: &str| {
            format!(
                "  {name}: {{ tier: {tier}, server: s, database: {name}, login: {{ user: {name}, password: {SECRET} }}, \
                 context: {{ app.tenant_id: \"{{tenant}}\" }}, {more} }}\n"
            )
        };
        let own = |name: &str, tier: &str| {
            format!(
                "  {name}: {{ tier: {tier}, server: s, login: {{ user: \"{name}_{{tenant}}\", password: {SECRET} }} }}\n"
            )
        };
        [
            format!(
                "servers: {{ s: {{ host: 127.0.0.1, port: {}, sslmode: disable, max_connections: 20, \
                 admin: {{ user: postgres, password: {} }}, seal: {{ key: \"a key of at least thirty-two letters\" }} }} }}\nplacements:\n",
                self.cluster.port(),
                self.cluster.superuser_password()
            ),
            pool("pool", "plain", "posture: plain"),
            pool("pool", "guarded", "posture: guarded"),
            pool("pool", "sealed", "posture: sealed"),
            pool("pool", "unguarded", "posture: sealed, guard: false"),
            pool("pool", "trusting", "posture: sealed, guard: false"),
            pool("instance", "silo", "posture: sealed"),
            pool("pool", "reused", "posture: plain, pooling: session, pool: { reuse: true }"),
            pool("pool", "unlimited", "posture: plain, pool: { reserve: 0 }"),
            own("schema", "schema, database: schema, schema: \"t_{tenant}\""),
            own("fenced", "schema, database: fenced, schema: \"t_{tenant}\", posture: guarded"),
            own("database", "database, database: \"db_{tenant}\""),
            "tenants: {}\n".to_owned(),
        ]
        .concat()
    }

    /// The database and the role of a placement, as an operator makes them.
    pub async fn prepare(&self, placement: &str) {
        let sql = format!("CREATE ROLE {placement} LOGIN PASSWORD '{SECRET}'");
        self.run("postgres", &sql).await;
        let sql = format!("CREATE DATABASE {placement}");
        self.run("postgres", &sql).await;
        let (config, _) = self.config(placement, 1);
        if placement == "unguarded" || self.is_hardened(placement) {
            let (name, server) = config.servers.first().expect("a server");
            for target in seal::targets(&config, name) {
                let done = seal::install(server, &target, Duration::from_secs(3600)).await;
                done.expect("it is sealed");
            }
        }
        if self.is_hardened(placement) {
            let sql = harden::harden(&config, placement, None, &[harden::Group::All]);
            self.run(placement, &sql.expect("SQL")).await;
        }
    }

    fn is_hardened(&self, placement: &str) -> bool {
        ["sealed", "silo"].contains(&placement)
    }

    pub async fn run(&self, database: &str, sql: &str) {
        let done = self.cluster.run(database, sql).await;
        done.unwrap_or_else(|error| panic!("{error}\n{sql}"));
    }

    fn config(&self, placement: &str, pool_size: usize) -> (Config, [String; 2]) {
        let guests = Guests {
            placement: placement.to_owned(),
            server: None,
            pool_size,
            marks: ["a", "b"].map(str::to_owned),
            passwords: ["of a", "of b"].map(|secret| Secret::new(secret.to_owned())),
        };
        load_with_guests(&self.path(), &guests).expect("a valid config")
    }

    fn routes(config: &Config, names: &[String; 2]) -> [Route; 2] {
        names.clone().map(|name| {
            let id = TenantId::new(&name).expect("a name");
            (*config.tenants[id.as_str()].route).clone()
        })
    }

    async fn stage(
        &self,
        made: &mut Made,
        placement: &str,
        routes: &[Route; 2],
        ways: [Way; 2],
    ) -> Stage {
        let [a, b] = routes;
        let cast = Cast {
            routes: [a, b],
            ways,
            mark: placement.to_owned(),
            setter: true,
        };
        Stage::make(made, cast)
            .await
            .unwrap_or_else(|why| panic!("{placement}: {why}"))
    }
}

/// A placement with its two tenants, and a proxy before it for either number of connections.
struct Played {
    placement: String,
    one: Running,
    several: Running,
    ways: [[Way; 2]; 2],
    stage: Stage,
    made: Made,
}

impl Played {
    async fn start(world: &World, placement: &str) -> Self {
        world.prepare(placement).await;
        let mut proxies = Vec::new();
        let mut ways = Vec::new();
        for size in [1, 4] {
            let (config, names) = world.config(placement, size);
            let routes = World::routes(&config, &names);
            let proxy = Running::with(config, None);
            ways.push([0, 1].map(|who| {
                let password = Secret::new(["of a", "of b"][who].to_owned());
                let user = format!("{USER}.{}", names[who]);
                Way::through(
                    proxy.address,
                    user,
                    password,
                    routes[who].pool.database.clone(),
                )
            }));
            proxies.push(proxy);
        }
        let (config, names) = world.config(placement, 1);
        let routes = World::routes(&config, &names);
        let mut made = Made::on(config.servers[0].clone());
        let mut stage = world
            .stage(&mut made, placement, &routes, ways[0].clone())
            .await;
        stage.let_act(&config, &names);
        let several = proxies.pop().expect("two");
        let one = proxies.pop().expect("two");
        Self {
            placement: placement.to_owned(),
            one,
            several,
            ways: ways.try_into().expect("two"),
            stage,
            made,
        }
    }

    async fn play(&mut self, attack: &Attack) -> Verdict {
        self.stage.ways = self.ways[attack.connections as usize].clone();
        let verdict = play::play(attack, &self.stage).await;
        if let Verdict::Trouble(why) = &verdict {
            panic!(
                "{}: {} could not be played: {why}",
                self.placement, attack.name
            );
        }
        verdict
    }

    async fn assert_honest(&mut self) {
        for ways in &self.ways {
            self.stage.ways = ways.clone();
            let works = play::honest_work(&self.stage).await;
            assert_eq!(works, Ok(()), "{}", self.placement);
        }
    }

    /// The application of the attacks does its work for A.
    async fn assert_application_works(&self) {
        let fill = |text: &str| {
            let filled = self.stage.words.fill(text).expect("words");
            String::from_utf8(filled).expect("text")
        };
        let mut wire = Wire::tcp(self.one.address).await;
        let pairs = [
            ("user", &*fill("{acting}")),
            ("database", &*fill("{application}")),
        ];
        let logged_in = wire.log_in(&pairs, "of a").await;
        logged_in.unwrap_or_else(|error| panic!("{}: {error}", self.placement));
        wire.query(&fill("SET {choice} = '{a_id}'")).await;
        let seen = wire.column(&fill("SELECT secret FROM {table}")).await;
        let planted = |row: &String| row.starts_with(&self.stage.planted);
        let is_own = !seen.is_empty() && seen.iter().all(planted);
        assert!(is_own, "{}: {seen:?}", self.placement);
    }

    /// Nothing of it is left.
    async fn end(mut self, world: &World) {
        drop((self.stage, self.one, self.several));
        assert_eq!(self.made.unmake().await, Ok(()), "{}", self.placement);
        let client = world.cluster.connect(if self.placement == "database" {
            "postgres"
        } else {
            &self.placement
        });
        let client = client.await.expect("a superuser");
        let left = client.query_one(
            "SELECT (SELECT count(*) FROM pg_namespace WHERE nspname LIKE '%selftest%') \
                + (SELECT count(*) FROM pg_roles WHERE rolname LIKE '%selftest%') \
                + (SELECT count(*) FROM pg_database WHERE datname LIKE '%selftest%')",
            &[],
        );
        assert_eq!(
            left.await.expect("a number").get::<_, i64>(0),
            0,
            "{}",
            self.placement
        );
    }
}

/// Plays one variant of an attack where nothing is done against it.
async fn succeeds(world: &World, attack: &Attack, variant: &Variant, weak: Weak) -> Verdict {
    if weak == Weak::NoLimits {
        let mut played = Played::start(world, "unlimited").await;
        return played.play(attack).await;
    }
    let mut made = None;
    let stage = weak.stage(world, &mut made).await;
    let verdict = play::play_variant(variant, &stage).await;
    drop(stage);
    world.run(weak.placement(), weak.undone()).await;
    let left = made.expect("made").unmake().await;
    assert_eq!(left, Ok(()));
    verdict
}

#[tokio::test(flavor = "multi_thread")]
async fn each_attack_succeeds_where_nothing_is_done_against_it() {
    let world = World::new("weak").await;
    for placement in ["plain", "trusting", "schema", "database"] {
        world.prepare(placement).await;
    }
    let mut failed = Vec::new();
    for attack in ATTACKS {
        for variant in attack.variants {
            let mut came = Vec::new();
            for weak in weak(attack) {
                let verdict = succeeds(&world, attack, variant, *weak).await;
                let done = verdict.has(attack.sign);
                came.push(format!("{weak:?}: {verdict:?}"));
                if done {
                    came.clear();
                    break;
                }
            }
            if !came.is_empty() {
                failed.push(format!(
                    "{}, {variant:?}:\n    {}",
                    attack.name,
                    came.join("\n    ")
                ));
            }
        }
    }
    assert!(
        failed.is_empty(),
        "these prove nothing:\n{}",
        failed.join("\n")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_tier_and_posture_holds_what_the_documentation_says() {
    let world = World::new("columns").await;
    let mut verdicts: Vec<Vec<Verdict>> = ATTACKS.iter().map(|_| Vec::new()).collect();
    for placement in COLUMNS {
        let mut played = Played::start(&world, placement).await;
        played.assert_honest().await;
        played.assert_application_works().await;
        for (attack, row) in ATTACKS.iter().zip(&mut verdicts) {
            row.push(played.play(attack).await);
        }
        played.assert_honest().await;
        played.end(&world).await;
    }
    let sealed = COLUMNS.iter().position(|name| *name == "sealed").unwrap();
    for (attack, row) in ATTACKS.iter().zip(&verdicts) {
        let escapes = matches!(row[sealed], Verdict::Escaped(_));
        assert!(!escapes, "{} in sealed: {:?}", attack.name, row[sealed]);
    }
    let table = table(&verdicts);
    let documented: Vec<_> = DOCS.lines().filter(|line| line.starts_with("| ")).collect();
    let documented = documented.join("\n");
    assert!(
        documented.contains(table.trim()),
        "docs/isolation.md should say:\n{table}\nbecause of\n{}",
        escapes(&verdicts)
    );
    for (attack, row) in ATTACKS.iter().zip(&verdicts) {
        let is_possible = row
            .iter()
            .any(|verdict| matches!(verdict, Verdict::Escaped(_)));
        let told = DOCS.contains(&format!("**{}**", attack.name));
        assert!(
            !is_possible || told,
            "docs/isolation.md should say why {} is possible",
            attack.name
        );
    }
}

/// The seal alone keeps rows apart: without the guard, on a database that is not hardened.
#[tokio::test(flavor = "multi_thread")]
async fn rows_are_kept_apart_by_the_seal_alone() {
    let world = World::new("unguarded").await;
    let mut played = Played::start(&world, "unguarded").await;
    played.assert_honest().await;
    for attack in ATTACKS {
        let verdict = played.play(attack).await;
        let is_of_rows = attack.category <= Category::Residue && attack.name != "spoil the role";
        assert!(
            !is_of_rows || !matches!(verdict, Verdict::Escaped(_)),
            "{}: {verdict:?}",
            attack.name
        );
    }
    played.assert_honest().await;
    played.end(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_where_session_pooling_hands_connections_on() {
    let world = World::new("reused").await;
    let played = Played::start(&world, "reused").await;
    let mut scenes = 0;
    for attack in ATTACKS {
        for variant in attack.variants {
            let Variant::Scene(steps) = variant else {
                continue;
            };
            let changes_hands = steps.iter().any(|step| matches!(step, Step::Leave(_)));
            if attack.category == Category::Residue && changes_hands {
                let verdict = play::play_variant(variant, &played.stage).await;
                assert!(
                    matches!(verdict, Verdict::Held(_)),
                    "{variant:?}: {verdict:?}"
                );
                scenes += 1;
            }
        }
    }
    assert!(scenes > 10, "{scenes}");
    played.end(&world).await;
}

fn table(verdicts: &[Vec<Verdict>]) -> String {
    let mut table = String::new();
    for (attack, row) in ATTACKS.iter().zip(verdicts) {
        let cells: Vec<_> = row
            .iter()
            .map(|verdict| match verdict {
                Verdict::Held(_) => "held",
                Verdict::Escaped(_) => "**possible**",
                Verdict::NotHere | Verdict::Trouble(_) => "–",
            })
            .collect();
        let _ = writeln!(
            table,
            "| {} | {} | {} | {} |",
            attack.category,
            attack.name,
            attack.gives,
            cells.join(" | ")
        );
    }
    table
}

fn escapes(verdicts: &[Vec<Verdict>]) -> String {
    let mut text = String::new();
    for (attack, row) in ATTACKS.iter().zip(verdicts) {
        for (column, verdict) in COLUMNS.iter().zip(row) {
            if let Verdict::Escaped(signs) = verdict {
                let _ = writeln!(text, "{} in {column}: {:?}", attack.name, signs.first());
            }
        }
    }
    text
}
