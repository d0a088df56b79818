//! `pgtenant tenant …`: tenants made from nothing, changed and taken away, by the program itself
//! against a real server and a real catalog.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use pgtenant::cluster::{Cluster, Options};
use pgtenant::control::catalog;
use serde_json::Value;
use tokio::process::Command;
use tokio_postgres::Client;

use crate::harness::{LOCKS, Process, SECRET, cluster, connect, eventually};

/// What tier pool has: rows of all tenants in the same tables.
const SHARED: &str = "
    CREATE TABLE public.tenants (id text PRIMARY KEY, region text);
    CREATE TABLE public.items (tenant text NOT NULL, body text);
    ALTER TABLE public.items ENABLE ROW LEVEL SECURITY;
    ALTER TABLE public.tenants ENABLE ROW LEVEL SECURITY;
    CREATE POLICY tenant ON public.items USING (tenant = (SELECT current_setting('app.tenant_id', true)));
    CREATE POLICY tenant ON public.tenants USING (id = (SELECT current_setting('app.tenant_id', true)));
    CREATE ROLE app LOGIN PASSWORD 'secret';
    GRANT SELECT, INSERT, UPDATE, DELETE ON public.items, public.tenants TO app;
    REVOKE ALL ON DATABASE shop FROM PUBLIC; GRANT CONNECT ON DATABASE shop TO app";

const FILE: &str = "CREATE TABLE notes (body text); INSERT INTO notes VALUES ('one');";

/// A server with a catalog, the databases of the tiers, and a config.
struct Site {
    cluster: Cluster,
    dir: tempfile::TempDir,
}

struct Answer {
    code: i32,
    out: String,
    err: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out)
            .unwrap_or_else(|error| panic!("{error}: {}{}", self.out, self.err))
    }

    fn succeeded(self) -> Self {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        self
    }

    fn fails(self, with: &str) -> Self {
        assert_eq!(self.code, 1, "{}{}", self.out, self.err);
        assert!(self.err.contains(with), "{with:?} is not in {}", self.err);
        self
    }
}

impl Site {
    async fn new(name: &str) -> Self {
        let cluster = cluster(Options {
            max_connections: 150,
            settings: vec![LOCKS.map(str::to_owned).into()],
            ..Options::named(name)
        })
        .await;
        let admin = cluster.connect("postgres").await.unwrap();
        for sql in [
            "CREATE DATABASE catalog".to_owned(),
            "CREATE DATABASE shop".to_owned(),
            "CREATE DATABASE pro".to_owned(),
            "CREATE DATABASE template_app".to_owned(),
            "REVOKE ALL ON DATABASE catalog, pro, template_app, postgres FROM PUBLIC".to_owned(),
            format!("CREATE ROLE reader LOGIN PASSWORD '{SECRET}'"),
            format!("CREATE ROLE writer LOGIN PASSWORD '{SECRET}'"),
            "GRANT CONNECT ON DATABASE catalog TO reader, writer".to_owned(),
        ] {
            admin.batch_execute(&sql).await.unwrap();
        }
        cluster.run("catalog", catalog::SQL).await.unwrap();
        let grants =
            "GRANT pgtenant_catalog_reader TO reader; GRANT pgtenant_catalog_writer TO writer";
        cluster.run("catalog", grants).await.unwrap();
        let shared = SHARED.replace("secret", SECRET);
        cluster.run("shop", &shared).await.unwrap();
        cluster
            .run("pro", "REVOKE ALL ON SCHEMA public FROM PUBLIC")
            .await
            .unwrap();
        let template = "CREATE TABLE orders (id bigserial PRIMARY KEY, body text); \
                        CREATE FUNCTION total() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM public.orders'; \
                        INSERT INTO orders (body) VALUES ('seed')";
        cluster.run("template_app", template).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("notes.sql"), FILE).unwrap();
        let site = Self { cluster, dir };
        std::fs::write(site.config(), site.yaml()).unwrap();
        site
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("pgtenant.yaml")
    }

    fn yaml(&self) -> String {
        let server = format!(
            "host: 127.0.0.1, port: {}, sslmode: disable, max_connections: 60, admin: {{ user: postgres, password: {} }}",
            self.cluster.port(),
            self.cluster.superuser_password()
        );
        format!(
            "listen: [{{ address: \"127.0.0.1:0\" }}]
workers: 1
doctor: {{ enabled: false }}
catalog: {{ server: main, database: catalog, poll: 500ms, login: {{ user: reader, password: {SECRET} }},
  writer: {{ user: writer, password: {SECRET} }} }}
servers:
  main: {{ {server} }}
  other: {{ {server} }}
placements:
  free:
    {{ tier: pool, server: main, database: shop, login: {{ user: app, password: {SECRET} }},
      context: {{ app.tenant_id: \"{{tenant}}\" }},
      provision: {{ when: {{ plan: free }},
        after: \"INSERT INTO public.tenants VALUES ({{tenant}}, {{region}}) ON CONFLICT DO NOTHING\",
        delete: [\"DELETE FROM public.items WHERE tenant = {{tenant}}\", \"DELETE FROM public.tenants WHERE id = {{tenant}}\"] }} }}
  spread:
    {{ tier: pool, servers: [main, other], database: shop, login: {{ user: app, password: {SECRET} }},
      context: {{ app.tenant_id: \"{{tenant}}\" }} }}
  pro:
    {{ tier: schema, server: main, database: pro, schema: \"t_{{tenant}}\",
      login: {{ user: \"t_{{tenant}}\", password: \"{SECRET}-{{tenant}}\" }},
      provision: {{ when: {{ plan: pro }}, sql: [notes.sql] }} }}
  own:
    {{ tier: database, server: main, database: \"db_{{tenant}}\",
      login: {{ user: \"db_{{tenant}}\", password: \"{SECRET}-{{tenant}}\" }},
      provision: {{ template_database: template_app, sql: [notes.sql] }} }}
tenants:
  written: {{ placement: free, users: {{ app: {{ password: x }} }} }}
"
        )
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgtenant"));
        let config = self.config();
        command
            .arg("tenant")
            .args(arguments)
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    async fn tenant(&self, arguments: &[&str]) -> Answer {
        let output = self.command(arguments).output().await.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Answer {
            code: output.status.code().unwrap(),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }

    async fn ask(&self, database: &str, sql: &str) -> Vec<String> {
        let client = self.cluster.connect(database).await.unwrap();
        let rows = client.query(sql, &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// All that a place may consist of, on the server.
    async fn made(&self) -> Vec<String> {
        let roles = "SELECT 'role ' || rolname || ' ' || rolcanlogin FROM pg_roles WHERE rolname ~ '^(t|db)_' \
            UNION ALL SELECT 'database ' || datname || ' ' || pg_get_userbyid(datdba) FROM pg_database \
            WHERE datname ~ '^(db|pgtenant)_' ORDER BY 1";
        let mut made = self.ask("postgres", roles).await;
        let schemas = "SELECT 'schema ' || nspname || ' ' || pg_get_userbyid(nspowner) || ' ' ||
            (SELECT string_agg(relname || ' ' || pg_get_userbyid(relowner), ', ' ORDER BY relname) FROM pg_class
             WHERE relnamespace = n.oid AND relkind = 'r') FROM pg_namespace n WHERE nspname ~ '^t_' ORDER BY 1";
        made.extend(self.ask("pro", schemas).await);
        made.extend(
            self.ask(
                "shop",
                "SELECT 'row ' || id || ' ' || region FROM tenants ORDER BY 1",
            )
            .await,
        );
        made
    }

    async fn states(&self) -> Vec<String> {
        let sql = "SELECT tenant || ' ' || state FROM pgtenant_catalog.tenants ORDER BY 1";
        self.ask("catalog", sql).await
    }
}

async fn client(
    proxy: &Process,
    tenant: &str,
    password: &str,
) -> Result<Client, tokio_postgres::Error> {
    let mut config = tokio_postgres::Config::new();
    config
        .host("127.0.0.1")
        .port(proxy.address.port())
        .user("app")
        .dbname(tenant)
        .password(password);
    connect(&config).await
}

const CREATE_ACME: [&str; 7] = [
    "create",
    "acme",
    "--placement",
    "pro",
    "--user",
    "app",
    "--json",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_of_each_tier_is_made_from_nothing_and_answers_through_the_proxy() {
    let site = Site::new("verbs-tiers").await;
    let proxy = Process::serve(&site.yaml(), Stdio::null()).await;
    for (name, arguments, question, answer, limit) in [
        (
            "globex",
            &["--attribute", "plan=free", "--attribute", "region=eu"][..],
            "SELECT id || region FROM tenants",
            "globexeu",
            1,
        ),
        (
            "acme",
            &["--attribute", "plan=pro"],
            "SELECT body FROM notes",
            "one",
            5,
        ),
        (
            "umbrella",
            &["--placement", "own"],
            "SELECT body || public.total() FROM public.orders",
            "seed1",
            5,
        ),
    ] {
        let begun = Instant::now();
        let arguments = [&["create", name, "--json"], arguments].concat();
        let created = site.tenant(&arguments).await.succeeded().json();
        assert_eq!(created["state"], "active");
        let password = created["passwords"]["app"].as_str().unwrap().to_owned();
        let mut answered = Vec::new();
        eventually("the tenant answers", async || {
            let Ok(client) = client(&proxy, name, &password).await else {
                return false;
            };
            let rows = client.query(question, &[]).await.unwrap();
            answered = rows.iter().map(|row| row.get::<_, String>(0)).collect();
            true
        })
        .await;
        assert_eq!(answered, [answer], "{name}");
        let took = begun.elapsed();
        println!("{name}: {took:?} from create to the first answer");
        // Beside other tests, on a build without optimization.
        assert!(took < Duration::from_secs(limit * 4), "{name}: {took:?}");
        assert!(client(&proxy, name, "wrong").await.is_err());
        // What is told once is written down nowhere.
        let everything =
            "SELECT coalesce(string_agg(t::text, ' '), '') FROM pgtenant_catalog.tenants t";
        assert!(!site.ask("catalog", everything).await[0].contains(&password));
    }
    let made = site.made().await;
    assert_eq!(
        made,
        [
            "database db_umbrella postgres",
            "role db_umbrella true",
            "role t_acme true",
            "schema t_acme t_acme notes t_acme",
            "row globex eu",
        ]
    );
    site.tenant(&["suspend", "globex", "--reason", "unpaid"])
        .await
        .succeeded();
    let row = site
        .tenant(&["show", "globex", "--json"])
        .await
        .succeeded()
        .json();
    assert_eq!(
        (&row["state"], &row["catalog"]["reason"]),
        (&"suspended".into(), &"unpaid".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_that_is_killed_at_any_moment_comes_to_the_same_end_when_it_is_given_again() {
    let site = Site::new("verbs-killed").await;
    let tiers = [
        ("acme", "pro", ""),
        ("umbrella", "own", ""),
        ("globex", "free", "region=eu"),
    ];
    let mut interrupted = BTreeSet::new();
    for (tenant, placement, attribute) in tiers {
        let mut arguments = vec!["create", tenant, "--placement", placement, "--json"];
        if !attribute.is_empty() {
            arguments.extend(["--attribute", attribute]);
        }
        // Each round gets a little further than the one before, however fast the machine is.
        let mut patience = Duration::from_millis(5);
        let mut created = None;
        while created.is_none() {
            let mut child = site
                .command(&arguments)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            match tokio::time::timeout(patience, child.wait()).await {
                Ok(status) if status.as_ref().unwrap().success() => {
                    let output = child.wait_with_output().await.unwrap();
                    created = Some(serde_json::from_slice::<Value>(&output.stdout).unwrap());
                }
                Ok(status) => panic!("{tenant}: {status:?}"),
                Err(_) => {
                    // SIGKILL.
                    child.kill().await.unwrap();
                    let sql = "SELECT step || ' ' || (s.done_at IS NULL) FROM pgtenant_catalog.steps s \
                               ORDER BY operation DESC, number DESC LIMIT 1";
                    interrupted.extend(site.ask("catalog", sql).await);
                    if site.states().await.contains(&format!("{tenant} active")) {
                        break;
                    }
                }
            }
            patience += Duration::from_millis(4);
        }
        assert!(site.states().await.contains(&format!("{tenant} active")));
    }
    // It was killed in the middle of steps, not between them alone.
    println!("{interrupted:?}");
    let in_the_middle = interrupted.iter().any(|step| step.ends_with("true"));
    assert!(in_the_middle && interrupted.len() > 2, "{interrupted:?}");
    assert_eq!(
        site.made().await,
        [
            "database db_umbrella postgres",
            "role db_umbrella true",
            "role t_acme true",
            "schema t_acme t_acme notes t_acme",
            "row globex eu",
        ]
    );
    let open = "SELECT count(*)::text FROM pgtenant_catalog.operations WHERE finished_at IS NULL";
    assert_eq!(site.ask("catalog", open).await, ["0"]);
    let count = "SELECT count(*)::text FROM public.orders";
    assert_eq!(site.ask("db_umbrella", count).await, ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_whose_connections_are_ended_stays_provisioning_and_goes_on() {
    let site = Site::new("verbs-ended").await;
    let admin = site.cluster.connect("postgres").await.unwrap();
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let killer = tokio::spawn(async move {
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgtenant tenant'";
        while !*stopped.borrow_and_update() {
            let pause: u64 = rand::random_range(5..60);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            admin.query(sql, &[]).await.unwrap();
        }
    });
    for _ in 0..15 {
        site.tenant(&CREATE_ACME).await;
        assert!(site.states().await.len() <= 1);
    }
    stop.send(true).unwrap();
    killer.await.unwrap();
    if site.states().await != ["acme active"] {
        site.tenant(&CREATE_ACME).await.succeeded();
    }
    assert_eq!(
        site.made().await,
        ["role t_acme true", "schema t_acme t_acme notes t_acme"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_creations_of_one_name_at_once_make_one_tenant() {
    let site = Site::new("verbs-twice").await;
    for (n, placement) in ["pro", "own"].into_iter().enumerate() {
        let name = format!("t{n}");
        let arguments = ["create", &name, "--placement", placement, "--json"];
        let all = futures_util::future::join_all((0..4).map(|_| site.tenant(&arguments))).await;
        let done: Vec<_> = all.iter().filter(|answer| answer.code == 0).collect();
        assert_eq!(done.len(), 1, "{placement}");
        for answer in all.iter().filter(|answer| answer.code != 0) {
            let why = "is there already: it is active";
            assert!(answer.err.contains(why), "{}", answer.err);
        }
    }
    assert_eq!(site.states().await, ["t0 active", "t1 active"]);
    let created = "SELECT count(*)::text FROM pgtenant_catalog.changes WHERE what = 'created'";
    assert_eq!(site.ask("catalog", created).await, ["2"]);
}

/// Each has what one version of the template has, and the catalog says which.
#[tokio::test(flavor = "multi_thread")]
async fn tenants_that_are_made_while_the_template_changes_are_wholly_of_one_version() {
    const TENANTS: usize = 24;
    let site = Site::new("verbs-template").await;
    let path = site.dir.path().join("notes.sql");
    let file = |version: usize| format!("CREATE TABLE a{version} (); CREATE TABLE b{version} ();");
    std::fs::write(&path, file(1)).unwrap();
    let change = async {
        for version in 2..8 {
            tokio::time::sleep(Duration::from_millis(400)).await;
            // In two steps, as an editor may do it.
            let text = file(version);
            std::fs::write(&path, &text[..text.len() / 2 + 1]).unwrap();
            std::fs::write(&path, &text).unwrap();
            let sql = format!(
                "CREATE TABLE IF NOT EXISTS c{version} (); CREATE TABLE IF NOT EXISTS d{version} ()"
            );
            // Nobody may be connected to a template that is being copied.
            while site.cluster.run("template_app", &sql).await.is_err() {}
        }
    };
    let create = async {
        for chunk in (0..TENANTS).collect::<Vec<_>>().chunks(3) {
            let all = chunk.iter().map(async |n| {
                let name = format!("t{n}");
                let placement = if n % 2 == 0 { "pro" } else { "own" };
                site.tenant(&["create", &name, "--placement", placement])
                    .await
                    .succeeded();
            });
            futures_util::future::join_all(all).await;
        }
    };
    tokio::join!(change, create);
    let mut versions: std::collections::BTreeMap<String, BTreeSet<String>> = Default::default();
    for n in 0..TENANTS {
        let (database, schema) = match n % 2 {
            0 => ("pro".to_owned(), format!("t_t{n}")),
            _ => (format!("db_t{n}"), "public".to_owned()),
        };
        let sql = format!(
            "SELECT coalesce(string_agg(relname, ' ' ORDER BY relname), '') FROM pg_class \
             WHERE relkind = 'r' AND relnamespace = '{schema}'::regnamespace"
        );
        let tables = site.ask(&database, &sql).await.remove(0);
        let numbers = |letter: char| -> BTreeSet<String> {
            let words = tables.split(' ');
            words
                .filter_map(|word| word.strip_prefix(letter))
                .filter(|rest| rest.parse::<u8>().is_ok())
                .map(str::to_owned)
                .collect()
        };
        assert_eq!(numbers('a'), numbers('b'), "{tables}");
        assert_eq!(numbers('a').len(), 1, "{tables}");
        assert_eq!(numbers('c'), numbers('d'), "{tables}");
        let sql = format!("SELECT version FROM pgtenant_catalog.tenants WHERE tenant = 't{n}'");
        let version = site.ask("catalog", &sql).await.remove(0);
        versions.entry(version).or_default().insert(tables);
    }
    // A version is one content, and one content has one version.
    assert!(versions.len() > 2, "{versions:?}");
    let contents: BTreeSet<_> = versions.values().flatten().collect();
    assert!(
        versions.values().all(|contents| contents.len() == 1),
        "{versions:?}"
    );
    assert_eq!(contents.len(), versions.len(), "{versions:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_does_not_keep_a_tenant_apart_lets_nobody_in() {
    let site = Site::new("verbs-unsafe").await;
    let open = "ALTER TABLE public.items DISABLE ROW LEVEL SECURITY";
    site.cluster.run("shop", open).await.unwrap();
    let arguments = [
        "create",
        "globex",
        "--placement",
        "free",
        "--attribute",
        "region=eu",
    ];
    let answer = site.tenant(&arguments).await.fails("check: ");
    assert!(answer.err.contains("public.items"), "{}", answer.err);
    assert!(
        answer.out.contains("globex: provisioning"),
        "{}",
        answer.out
    );
    assert_eq!(site.states().await, ["globex provisioning"]);
    site.tenant(&["activate", "globex"])
        .await
        .fails("is not ready");
    let steps = site.tenant(&["show", "globex"]).await.succeeded().out;
    assert!(steps.contains("create, check: failed: "), "{steps}");
    site.tenant(&["create", "globex", "--placement", "pro"])
        .await
        .fails("another placement");
    let close = "ALTER TABLE public.items ENABLE ROW LEVEL SECURITY";
    site.cluster.run("shop", close).await.unwrap();
    site.tenant(&["create", "globex"]).await.succeeded();
    assert_eq!(site.states().await, ["globex active"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_somebody_elses_is_neither_taken_over_nor_dropped() {
    let site = Site::new("verbs-foreign").await;
    let foreign = format!(
        "CREATE ROLE t_acme LOGIN PASSWORD '{SECRET}'; CREATE ROLE db_umbrella LOGIN PASSWORD '{SECRET}'"
    );
    site.cluster.run("postgres", &foreign).await.unwrap();
    site.cluster
        .run("postgres", "CREATE DATABASE db_umbrella")
        .await
        .unwrap();
    site.cluster
        .run("postgres", "REVOKE ALL ON DATABASE db_umbrella FROM PUBLIC")
        .await
        .unwrap();
    site.cluster
        .run(
            "postgres",
            "GRANT CONNECT ON DATABASE db_umbrella TO db_umbrella",
        )
        .await
        .unwrap();
    site.tenant(&CREATE_ACME)
        .await
        .fails("role \"t_acme\" is there already");
    assert_eq!(site.states().await, ["acme provisioning"]);
    // It may be made the tenant's as it is; then it is not dropped with the tenant either.
    site.tenant(&["adopt", "globex", "--placement", "own"])
        .await
        .fails("is not there");
    site.tenant(&["adopt", "umbrella", "--placement", "own"])
        .await
        .succeeded();
    site.tenant(&["delete", "umbrella"]).await.succeeded();
    let purge = ["purge", "umbrella", "--data", "--now"];
    site.tenant(&purge).await.fails("was not made by pgtenant");
    site.tenant(&["purge", "umbrella", "--keep-data", "--now"])
        .await
        .succeeded();
    let left = "SELECT datname::text FROM pg_database WHERE datname = 'db_umbrella'";
    assert_eq!(site.ask("postgres", left).await, ["db_umbrella"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_is_deleted_first_and_its_data_is_dropped_by_a_second_step() {
    let site = Site::new("verbs-purge").await;
    for (name, placement, attribute) in [
        ("globex", "free", "region=eu"),
        ("initech", "free", "region=us"),
        ("acme", "pro", "a=b"),
        ("umbrella", "own", "a=b"),
    ] {
        let arguments = [
            "create",
            name,
            "--placement",
            placement,
            "--attribute",
            attribute,
        ];
        site.tenant(&arguments).await.succeeded();
    }
    let rows = "INSERT INTO items VALUES ('globex', 'a'), ('initech', 'b')";
    site.cluster.run("shop", rows).await.unwrap();
    for name in ["globex", "acme", "umbrella"] {
        site.tenant(&["purge", name, "--data", "--now"])
            .await
            .fails("only one that is deleted");
        site.tenant(&["delete", name, "--reason", "left"])
            .await
            .succeeded();
        site.tenant(&["purge", name, "--data"])
            .await
            .fails("stays until");
        let before = site.made().await;
        assert!(before.iter().any(|line| line.contains(name)), "{before:?}");
        site.tenant(&["purge", name, "--data", "--now"])
            .await
            .succeeded();
        site.tenant(&["show", name])
            .await
            .fails("there is no tenant");
        // The name is free.
    }
    assert_eq!(site.made().await, ["row initech us"]);
    let left = site.ask("shop", "SELECT tenant FROM items").await;
    assert_eq!(left, ["initech"]);
    site.tenant(&["create", "acme", "--placement", "pro"])
        .await
        .succeeded();
    // What is deleted may come back until its purge has begun.
    site.tenant(&["delete", "acme"]).await.succeeded();
    site.tenant(&["suspend", "acme"]).await.succeeded();
    site.tenant(&["activate", "acme"]).await.succeeded();
    let spread = ["create", "wide", "--placement", "spread"];
    site.tenant(&spread).await.succeeded();
    site.tenant(&["delete", "wide"]).await.succeeded();
    site.tenant(&["purge", "wide", "--data", "--now"])
        .await
        .fails("provision.delete is not set");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_states_and_lists_are_what_the_verbs_say() {
    let site = Site::new("verbs-settings").await;
    let password = site.dir.path().join("password");
    std::fs::write(&password, "a password\n").unwrap();
    let file = password.to_str().unwrap();
    let create = [
        "create",
        "globex",
        "--placement",
        "free",
        "--attribute",
        "region=eu",
        "--user",
        "web",
        "--password-file",
        file,
    ];
    let created = site.tenant(&create).await.succeeded();
    assert!(!created.out.contains("password"), "{}", created.out);
    for n in 0..4 {
        let name = format!("w{n}");
        site.tenant(&["create", &name, "--placement", "spread"])
            .await
            .succeeded();
    }
    // The least used server each time.
    let servers = "SELECT spec->>'server' || count(*) FROM pgtenant_catalog.tenants \
                   WHERE spec ? 'server' GROUP BY spec->>'server' ORDER BY 1";
    assert_eq!(site.ask("catalog", servers).await, ["main2", "other2"]);
    for (arguments, why) in [
        (
            &["create", "written", "--placement", "free"][..],
            "stands in the config file",
        ),
        (
            &["create", "globex", "--placement", "free"],
            "is there already",
        ),
        (
            &["create", "new", "--placement", "none"],
            "there is no placement",
        ),
        (&["create", "new"], "no placement is named"),
        (
            &["create", "new", "--placement", "free"],
            "no attribute \"region\"",
        ),
        (&["create", "a b", "--placement", "pro"], "name of a tenant"),
        (
            &["create", "new", "--placement", "pro", "--server", "other"],
            "server",
        ),
        (
            &["create", "new", "--placement", "pro", "--expires", "soon"],
            "soon",
        ),
        (&["set", "globex", "weight=5000"], "weight"),
        (&["set", "globex", "limmits.clients=5"], "limmits"),
        (&["set", "globex", "placement=pro"], "elsewhere"),
        (&["set", "w0", "server=other"], "elsewhere"),
        (&["set", "globex", "users.web.scram=x"], "--user"),
        (
            &["set", "globex", "--remove-user", "web"],
            "at least one user",
        ),
        (&["set", "nobody", "weight=5"], "there is no tenant"),
        (&["set", "written", "weight=5"], "stands in the config file"),
        (&["resume", "globex"], "not paused"),
        (&["show", "nobody"], "there is no tenant"),
        (&["pause", "globex", "--until", "soon"], "soon"),
    ] {
        let before = site
            .ask(
                "catalog",
                "SELECT revision::text FROM pgtenant_catalog.about",
            )
            .await;
        site.tenant(arguments).await.fails(why);
        let after = site
            .ask(
                "catalog",
                "SELECT revision::text FROM pgtenant_catalog.about",
            )
            .await;
        assert_eq!(before, after, "{arguments:?}");
    }
    site.tenant(&[
        "set",
        "globex",
        "weight=5",
        "limits.clients=7",
        "--user",
        "more",
        "--actor",
        "ada",
    ])
    .await
    .succeeded();
    site.tenant(&[
        "set",
        "globex",
        "--unset",
        "weight",
        "--expires",
        "2100-01-01",
        "--retention",
        "30 days",
    ])
    .await
    .succeeded();
    let spec = "SELECT (spec - 'users' || jsonb_build_object('users', (SELECT jsonb_agg(k) FROM jsonb_object_keys(spec->'users') k)))::text
        FROM pgtenant_catalog.tenants WHERE tenant = 'globex'";
    let spec: Value = serde_json::from_str(&site.ask("catalog", spec).await[0]).unwrap();
    let expected = serde_json::json!({ "placement": "free", "attributes": { "region": "eu" }, "limits": { "clients": 7 }, "users": ["web", "more"] });
    assert_eq!(spec["limits"], expected["limits"]);
    assert_eq!(spec["users"].as_array().unwrap().len(), 2);
    assert!(spec.get("weight").is_none());
    let by =
        "SELECT by FROM pgtenant_catalog.changes WHERE what = 'spec' ORDER BY revision LIMIT 1";
    assert_eq!(site.ask("catalog", by).await, ["writer/ada"]);
    for (verb, state) in [
        ("pause", "paused"),
        ("resume", "active"),
        ("suspend", "suspended"),
        ("read-only", "read_only"),
        ("drain", "draining"),
        ("activate", "active"),
    ] {
        site.tenant(&[verb, "globex"]).await.succeeded();
        let shown = site
            .tenant(&["show", "globex", "--json"])
            .await
            .succeeded()
            .json();
        assert_eq!(shown["state"], state, "{verb}");
    }
    site.tenant(&["pause", "globex", "--until", "2000-01-01T00:00:00Z"])
        .await
        .succeeded();
    let shown = site
        .tenant(&["show", "globex", "--json"])
        .await
        .succeeded()
        .json();
    assert_eq!(
        (&shown["state"], &shown["catalog"]["state"]),
        (&"active".into(), &"paused".into())
    );
    let list = site.tenant(&["list", "--json"]).await.succeeded().out;
    let names: Vec<String> = list
        .lines()
        .map(|line| {
            let listing: Value = serde_json::from_str(line).unwrap();
            listing["tenant"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(names, ["written", "globex", "w0", "w1", "w2", "w3"]);
    let spread = site
        .tenant(&["list", "--placement", "spread", "--limit", "2"])
        .await
        .succeeded()
        .out;
    assert_eq!(spread.lines().count(), 2, "{spread}");
    assert!(spread.starts_with("w0\tactive\tspread\t"), "{spread}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_catalog_or_a_writer_tenants_are_listed_and_not_changed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pgtenant.yaml");
    let run = async |yaml: &str, arguments: &[&str]| {
        std::fs::write(&path, yaml).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_pgtenant"))
            .arg("tenant")
            .args(arguments)
            .arg("--config")
            .arg(&path)
            .output()
            .await
            .unwrap();
        Answer {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    };
    let yaml = "servers: { s: { host: 127.0.0.1, port: 1, max_connections: 9 } }
placements: { p: { tier: database, server: s, database: 'd_{tenant}', login: { user: u } } }
tenants: { a: { placement: p, users: { app: { password: x } } } }\n";
    let listed = run(yaml, &["list"]).await.succeeded().out;
    assert_eq!(listed, "a\tactive\tp\ts\tfile\t-\n");
    let shown = run(yaml, &["show", "a"]).await.succeeded().out;
    assert!(shown.contains("database d_a, login u"), "{shown}");
    run(yaml, &["show", "b"])
        .await
        .fails("there is no tenant \"b\"");
    let with_reader =
        format!("catalog: {{ server: s, database: c, login: {{ user: r }} }}\n{yaml}");
    for verb in [
        &["create", "b", "--placement", "p"][..],
        &["adopt", "b", "--placement", "p"],
        &["set", "a", "weight=1"],
        &["pause", "a"],
        &["resume", "a"],
        &["suspend", "a"],
        &["read-only", "a"],
        &["drain", "a"],
        &["activate", "a"],
        &["delete", "a"],
        &["purge", "a", "--data"],
    ] {
        run(yaml, verb).await.fails("the config has no catalog");
        run(&with_reader, verb)
            .await
            .fails("the config has no catalog.writer");
    }
    run(&with_reader, &["list"])
        .await
        .fails("the catalog (s/c)");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_place_with_a_role_for_each_tenant_is_sealed_by_the_first_and_serves_all() {
    let site = Site::new("verbs-sealed").await;
    let admin = site.cluster.connect("postgres").await.unwrap();
    for sql in [
        "CREATE DATABASE vault",
        "REVOKE ALL ON DATABASE vault FROM PUBLIC",
        "CREATE ROLE vault_app NOLOGIN",
    ] {
        admin.batch_execute(sql).await.unwrap();
    }
    let yaml = site.yaml().replacen(
        "  other: { ",
        "  vault: { seal: { key: \"a key of more than thirty-two characters\" }, ",
        1,
    );
    let yaml = yaml.replace("servers: [main, other]", "servers: [main, vault]").replace(
        "placements:\n",
        &format!(
            "placements:
  silo:
    {{ tier: pool, server: vault, database: vault, posture: sealed, context: {{ app.tenant_id: \"{{tenant}}\" }},
      login: {{ user: \"h_{{tenant}}\", password: \"{SECRET}-{{tenant}}\" }},
      provision: {{ member_of: [vault_app] }} }}\n"
        ),
    );
    // The placement that is spread over both servers is not of this test.
    let yaml = yaml.replace("servers: [main, vault]", "server: main");
    std::fs::write(site.config(), &yaml).unwrap();
    let first = site
        .tenant(&["create", "mercy", "--placement", "silo", "--json"])
        .await
        .succeeded()
        .json();
    let rows = "CREATE TABLE items (tenant text NOT NULL, body text);
        ALTER TABLE items ENABLE ROW LEVEL SECURITY;
        CREATE POLICY tenant ON items USING (tenant = (SELECT pgtenant.tenant_id()));
        INSERT INTO items VALUES ('mercy', 'of mercy'), ('grace', 'of grace');
        GRANT SELECT ON items TO vault_app";
    site.cluster.run("vault", rows).await.unwrap();
    let sealed = "SELECT xmin::text FROM pg_proc WHERE pronamespace = 'pgtenant'::regnamespace ORDER BY 1 DESC LIMIT 1";
    let before = site.ask("vault", sealed).await;
    let second = site
        .tenant(&["create", "grace", "--placement", "silo", "--json"])
        .await
        .succeeded()
        .json();
    assert_eq!(
        site.ask("vault", sealed).await,
        before,
        "what is there is not made again"
    );
    let proxy = Process::serve(&yaml, Stdio::null()).await;
    for (name, created) in [("mercy", first), ("grace", second)] {
        let password = created["passwords"]["app"].as_str().unwrap();
        let mut bodies = Vec::new();
        eventually("the tenant answers", async || {
            let Ok(client) = client(&proxy, name, password).await else {
                return false;
            };
            let rows = client.query("SELECT body FROM items", &[]).await.unwrap();
            bodies = rows.iter().map(|row| row.get::<_, String>(0)).collect();
            true
        })
        .await;
        assert_eq!(bodies, [format!("of {name}")]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_with_several_services_has_a_place_for_each() {
    let site = Site::new("verbs-services").await;
    let create = [
        "create",
        "acme",
        "--service",
        "core=free",
        "--service",
        "records=pro",
        "--attribute",
        "region=eu",
    ];
    site.tenant(&create).await.succeeded();
    assert_eq!(
        site.made().await,
        [
            "role t_acme true",
            "schema t_acme t_acme notes t_acme",
            "row acme eu"
        ]
    );
    let shown = site
        .tenant(&["show", "acme", "--json"])
        .await
        .succeeded()
        .json();
    let places: Vec<_> = shown["places"]
        .as_array()
        .unwrap()
        .iter()
        .map(|place| place["service"].as_str().unwrap())
        .collect();
    assert_eq!(places, ["core", "records"]);
    site.tenant(&["delete", "acme"]).await.succeeded();
    site.tenant(&["purge", "acme", "--data", "--now"])
        .await
        .succeeded();
    assert!(site.made().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_who_is_no_superuser_makes_and_drops_places_of_each_tier() {
    let site = Site::new("verbs-maker").await;
    for (database, sql) in [
        ("postgres", format!("CREATE ROLE maker LOGIN CREATEROLE CREATEDB PASSWORD '{SECRET}'; GRANT CONNECT ON DATABASE postgres TO maker")),
        ("postgres", "ALTER DATABASE pro OWNER TO maker; ALTER DATABASE template_app OWNER TO maker; ALTER DATABASE shop OWNER TO maker".to_owned()),
        ("template_app", "ALTER TABLE orders OWNER TO maker; ALTER FUNCTION total OWNER TO maker".to_owned()),
        ("shop", "ALTER TABLE items OWNER TO maker; ALTER TABLE tenants OWNER TO maker".to_owned()),
    ] {
        site.cluster.run(database, &sql).await.unwrap();
    }
    let superuser = format!(
        "admin: {{ user: postgres, password: {} }}",
        site.cluster.superuser_password()
    );
    let maker = format!("admin: {{ user: maker, password: {SECRET} }}");
    let yaml = site.yaml().replace(&superuser, &maker);
    std::fs::write(site.config(), yaml).unwrap();
    for (name, placement) in [("acme", "pro"), ("umbrella", "own"), ("globex", "free")] {
        let create = [
            "create",
            name,
            "--placement",
            placement,
            "--attribute",
            "region=eu",
        ];
        site.tenant(&create).await.succeeded();
    }
    assert_eq!(
        site.made().await,
        [
            "database db_umbrella maker",
            "role db_umbrella true",
            "role t_acme true",
            "schema t_acme t_acme notes t_acme",
            "row globex eu",
        ]
    );
    for name in ["acme", "umbrella", "globex"] {
        site.tenant(&["delete", name]).await.succeeded();
        site.tenant(&["purge", name, "--data", "--now"])
            .await
            .succeeded();
    }
    assert!(site.made().await.is_empty());
}

/// A schema with all that is copied.
const RICH: &str = "
    CREATE SCHEMA template;
    CREATE SCHEMA IF NOT EXISTS my_template; GRANT USAGE ON SCHEMA my_template TO PUBLIC;
    CREATE TABLE IF NOT EXISTS my_template.other (); GRANT SELECT ON my_template.other TO PUBLIC;
    CREATE TYPE template.mood AS ENUM ('good', 'not so good');
    CREATE SEQUENCE template.numbers INCREMENT 5 START 100 CYCLE MAXVALUE 1000;
    CREATE FUNCTION template.twice(n int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT n * 2';
    CREATE TABLE template.people (id bigserial PRIMARY KEY, number int DEFAULT nextval('template.numbers'), name text COLLATE \"C\" NOT NULL,
        mood template.mood DEFAULT 'good', twice int GENERATED ALWAYS AS (template.twice(3)) STORED, CHECK (length(name) > 0));
    CREATE TABLE template.\"Odd Orders\" (id int GENERATED BY DEFAULT AS IDENTITY, person bigint REFERENCES template.people ON DELETE CASCADE, UNIQUE (id));
    CREATE INDEX by_name ON template.people (lower(name)) WHERE number > 5;
    CREATE VIEW template.happy WITH (security_invoker = true) AS SELECT p.name FROM template.people p WHERE p.mood = 'good' AND NOT EXISTS (SELECT FROM my_template.other);
    CREATE FUNCTION template.noted() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.name := upper(NEW.name); RETURN NEW; END';
    CREATE TRIGGER noted BEFORE INSERT ON template.people FOR EACH ROW EXECUTE FUNCTION template.noted();
    INSERT INTO template.people (name) VALUES ('of the template')";

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_is_copied_from_a_template_whole_or_not_at_all() {
    let site = Site::new("verbs-copied").await;
    site.cluster.run("pro", RICH).await.unwrap();
    let yaml = site.yaml().replace(
        "sql: [notes.sql] }} }",
        "sql: [notes.sql], template_schema: template } }",
    );
    let yaml = yaml.replacen(
        "provision: { when: { plan: pro }, sql",
        "provision: { when: { plan: pro }, template_schema: template, sql",
        1,
    );
    assert!(yaml.contains("template_schema: template"));
    std::fs::write(site.config(), yaml).unwrap();
    for name in ["acme", "Odd-one"] {
        site.tenant(&["create", name, "--placement", "pro"])
            .await
            .succeeded();
        let client = site.cluster.connect("pro").await.unwrap();
        let sql = format!(
            "SET ROLE \"t_{name}\"; SET search_path = \"t_{name}\"; INSERT INTO people (name) VALUES ('x'); INSERT INTO \"Odd Orders\" (person) VALUES (1)"
        );
        client.batch_execute(&sql).await.unwrap();
        let sql = "SELECT concat_ws(' ', id, number, name, mood, twice, (SELECT count(*) FROM happy), (SELECT count(*) FROM notes)) FROM people";
        let rows = client.query(sql, &[]).await.unwrap();
        let rows: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        // Its own sequences, and no rows of the template's.
        assert_eq!(rows, ["1 100 X good 6 1 1"]);
        // Nothing in it depends on the template, or is reached only through it.
        let sql = format!(
            "SELECT count(*)::text FROM pg_depend d JOIN pg_class c ON c.oid = d.objid AND d.classid = 'pg_class'::regclass
                JOIN pg_class r ON r.oid = d.refobjid AND d.refclassid = 'pg_class'::regclass
             WHERE c.relnamespace = '\"t_{name}\"'::regnamespace AND r.relnamespace = 'template'::regnamespace"
        );
        assert_eq!(site.ask("pro", &sql).await, ["0"]);
    }
    let versions = "SELECT count(DISTINCT version)::text FROM pgtenant_catalog.tenants";
    assert_eq!(site.ask("catalog", versions).await, ["1"]);
    for (n, more) in [
        "ALTER TABLE template.people ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY p ON template.people USING (true)",
        "CREATE TABLE template.parts (a int) PARTITION BY LIST (a)",
        "CREATE DOMAIN template.positive AS int CHECK (VALUE > 0)",
        "CREATE MATERIALIZED VIEW template.m AS SELECT 1 AS a",
        "CREATE TABLE template.child () INHERITS (template.people)",
        "CREATE TYPE template.pair AS (a int, b int)",
    ]
    .into_iter()
    .enumerate()
    {
        site.cluster
            .run("pro", "DROP SCHEMA template CASCADE")
            .await
            .unwrap();
        site.cluster.run("pro", RICH).await.unwrap();
        site.cluster.run("pro", more).await.unwrap();
        let name = format!("t{n}");
        site.tenant(&["create", &name, "--placement", "pro"])
            .await
            .fails("schema: ");
        let left = format!("SELECT nspname::text FROM pg_namespace WHERE nspname = 't_{name}'");
        assert!(site.ask("pro", &left).await.is_empty(), "{more}");
    }
}
