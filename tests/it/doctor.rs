//! The doctor finds every mistake that is made for it, none where there is none, and its script
//! mends what it found.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use pgtenant::cli::doctor::{Args, Format, examine};
use pgtenant::cluster::{Cluster, Options, Shutdown};
use pgtenant::control::seal;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::harness::{LOCKS, Running, SECRET, Setup, cluster, connect, eventually, in_time, world};

// ---- asking ----

/// A config in a file, and what the doctor says of it.
struct Doctor {
    _dir: tempfile::TempDir,
    config: PathBuf,
}

struct Answer {
    code: u8,
    json: Value,
}

impl Doctor {
    fn new(yaml: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("pgtenant.yaml");
        std::fs::write(&config, yaml).unwrap();
        Self { _dir: dir, config }
    }

    fn args(&self) -> Args {
        Args {
            config: self.config.clone(),
            placement: None,
            format: Format::Json,
            fix: false,
            sample: 50,
        }
    }

    async fn run(&self, args: &Args) -> (u8, String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let examined = Box::pin(examine(args, &mut out, &mut err));
        let code = in_time("the doctor", examined).await.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (code, text(out), text(err))
    }

    async fn ask(&self) -> Answer {
        let (code, out, err) = self.run(&self.args()).await;
        assert_eq!(err, "");
        let json = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"));
        Answer { code, json }
    }

    async fn script(&self) -> String {
        let args = Args {
            fix: true,
            ..self.args()
        };
        self.run(&args).await.1
    }
}

impl Answer {
    /// Severity, check and object of every finding.
    fn findings(&self) -> BTreeSet<(String, String, String)> {
        let text = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
        let places = self.json["places"].as_array().unwrap();
        let findings = places
            .iter()
            .flat_map(|p| p["findings"].as_array().unwrap());
        findings
            .map(|f| (text(f, "severity"), text(f, "check"), text(f, "object")))
            .collect()
    }

    fn checks(&self) -> BTreeSet<String> {
        let findings = self.findings().into_iter();
        findings
            .map(|(severity, check, _)| format!("{severity} {check}"))
            .collect()
    }
}

/// Runs a script as a person would.
async fn psql(cluster: &Cluster, database: &str, script: &str) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("fix.sql");
    std::fs::write(&file, script).unwrap();
    let run = Command::new("psql")
        .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-f"])
        .arg(&file)
        .arg(cluster.superuser_dsn(database))
        .output();
    let out = in_time("psql", run).await.expect("psql is installed");
    let err = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{err}\nin:\n{script}");
}

fn server(cluster: &Cluster, admin: bool) -> String {
    let admin = match admin {
        true => format!(
            ", admin: {{ user: postgres, password: {} }}",
            cluster.superuser_password()
        ),
        false => String::new(),
    };
    format!(
        "servers: {{ main: {{ host: {}, port: {}, sslmode: disable, max_connections: 20{admin} }} }}\n",
        cluster.host(),
        cluster.port()
    )
}

fn pool_config(cluster: &Cluster, admin: bool) -> String {
    format!(
        "listen: [{{ address: \"127.0.0.1:0\" }}]\n{}placements: {{ free: {{ tier: pool, server: main, database: app, \
         login: {{ user: app, password: {SECRET} }}, posture: guarded, context: {{ app.tenant_id: \"{{tenant}}\" }} }} }}\n\
         tenants:\n  a: {{ placement: free, users: {{ app: {{ password: a-secret }} }} }}\n\
         \x20 b: {{ placement: free, users: {{ app: {{ password: b-secret }} }} }}\n",
        server(cluster, admin)
    )
}

// ---- a database that is right ----

const CREATE: &str = "
    CREATE ROLE app LOGIN PASSWORD 'secret';
    CREATE ROLE keeper;
    CREATE ROLE boss SUPERUSER;
    CREATE DATABASE app;
    REVOKE ALL ON DATABASE app FROM PUBLIC;
    GRANT CONNECT, TEMPORARY ON DATABASE app TO app";

/// Everything as at the start; what is of the whole database stays as it was hardened.
const RIGHT: &str = "
    ALTER ROLE app NOSUPERUSER NOBYPASSRLS NOCREATEROLE NOCREATEDB NOREPLICATION;
    REVOKE keeper, boss, pg_read_all_data, pg_monitor FROM app;
    ALTER ROLE app RESET ALL;
    ALTER DATABASE app RESET ALL;
    ALTER DATABASE app OWNER TO postgres;
    GRANT CONNECT ON DATABASE app TO app;
    UPDATE pg_language SET lanpltrusted = true WHERE lanname = 'plpgsql';
    SELECT lo_unlink(oid) FROM pg_largeobject_metadata;
    DROP FOREIGN DATA WRAPPER IF EXISTS elsewhere CASCADE;
    DROP SCHEMA public CASCADE;
    CREATE SCHEMA public;
    GRANT USAGE ON SCHEMA public TO PUBLIC;
    CREATE TABLE items (
        tenant text NOT NULL DEFAULT current_setting('app.tenant_id', true),
        id int NOT NULL CHECK (id > 0),
        body text,
        PRIMARY KEY (tenant, id)
    );
    ALTER TABLE items ENABLE ROW LEVEL SECURITY;
    ALTER TABLE items FORCE ROW LEVEL SECURITY;
    CREATE POLICY tenant ON items
        USING (tenant = (SELECT current_setting('app.tenant_id', true)))
        WITH CHECK (tenant = (SELECT current_setting('app.tenant_id', true)));
    GRANT SELECT, INSERT, UPDATE, DELETE ON items TO app;
    -- Right in other ways.
    CREATE TABLE projects (tenant_id uuid NOT NULL, id int NOT NULL, n int, PRIMARY KEY (tenant_id, id),
        UNIQUE (tenant_id, n));
    ALTER TABLE projects ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
    CREATE FUNCTION me() RETURNS uuid LANGUAGE sql STABLE
        AS $$ SELECT nullif(current_setting('app.tenant_id', true), '')::uuid $$;
    CREATE POLICY own ON projects FOR SELECT TO app USING (tenant_id = (SELECT me()));
    CREATE POLICY own_new ON projects FOR INSERT TO app WITH CHECK (tenant_id = (SELECT me()) AND n > 0);
    CREATE POLICY keepers ON projects TO keeper USING (true);
    GRANT SELECT, INSERT ON projects TO app;
    CREATE VIEW my_items WITH (security_invoker = on) AS SELECT * FROM items;
    CREATE VIEW kept AS SELECT * FROM items;
    ALTER VIEW kept OWNER TO keeper;
    GRANT SELECT ON items TO keeper;
    GRANT SELECT ON my_items, kept TO app;
    CREATE TABLE parts (tenant text NOT NULL, id int, PRIMARY KEY (tenant, id)) PARTITION BY LIST (tenant);
    CREATE TABLE parts_a PARTITION OF parts DEFAULT;
    ALTER TABLE parts ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
    CREATE POLICY tenant ON parts USING ((SELECT current_setting('app.tenant_id', true)) = tenant);
    GRANT SELECT ON parts TO app;
    CREATE TABLE tickets (tenant_id uuid NOT NULL, id bigint GENERATED ALWAYS AS IDENTITY, body text,
        PRIMARY KEY (tenant_id, id));
    ALTER TABLE tickets ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
    CREATE POLICY own ON tickets USING (tenant_id = (SELECT me()));
    GRANT SELECT, INSERT ON tickets TO app;
    CREATE TABLE private (secret text);
    CREATE SEQUENCE numbers; GRANT USAGE ON SEQUENCE numbers TO app;";

fn with_locks(name: &str) -> Options {
    Options {
        settings: vec![LOCKS.map(str::to_owned).into()],
        ..Options::named(name)
    }
}

async fn right(name: &str) -> Cluster {
    let cluster = cluster(with_locks(name)).await;
    for statement in CREATE.split(';') {
        cluster.run("postgres", statement).await.unwrap();
    }
    cluster.run("app", RIGHT).await.unwrap();
    cluster
}

// ---- and everything that can be wrong with it ----

struct Mistake {
    sql: &'static str,
    finding: &'static str,
    /// Whether the script mends it.
    mends: bool,
}

const fn mistake(finding: &'static str, sql: &'static str) -> Mistake {
    Mistake {
        sql,
        finding,
        mends: true,
    }
}

/// One that a person has to think about.
const fn to_decide(finding: &'static str, sql: &'static str) -> Mistake {
    Mistake {
        sql,
        finding,
        mends: false,
    }
}

const MISTAKES: &[Mistake] = &[
    mistake("critical role-superuser", "ALTER ROLE app SUPERUSER"),
    mistake("critical role-bypassrls", "ALTER ROLE app BYPASSRLS"),
    mistake("critical role-replication", "ALTER ROLE app REPLICATION"),
    mistake("notice role-createdb", "ALTER ROLE app CREATEDB"),
    mistake("critical role-member-privileged", "GRANT boss TO app"),
    mistake(
        "critical role-member-privileged",
        "GRANT boss TO keeper; GRANT keeper TO app",
    ),
    mistake(
        "critical role-member-predefined",
        "GRANT pg_read_all_data TO app",
    ),
    mistake("warning role-member-predefined", "GRANT pg_monitor TO app"),
    mistake("critical database-owner", "ALTER DATABASE app OWNER TO app"),
    mistake("critical table-owner", "ALTER TABLE items OWNER TO app"),
    mistake(
        "critical table-owner",
        "ALTER TABLE items OWNER TO keeper; GRANT keeper TO app",
    ),
    mistake(
        "critical rls-disabled",
        "ALTER TABLE items DISABLE ROW LEVEL SECURITY",
    ),
    mistake(
        "critical rls-disabled",
        "CREATE TABLE notes (tenant text, id int, PRIMARY KEY (tenant, id)); GRANT INSERT ON notes TO app",
    ),
    mistake(
        "critical rls-disabled",
        "CREATE TABLE notes (tenant_id bigint, id int, PRIMARY KEY (tenant_id, id)); GRANT SELECT (id) ON notes TO PUBLIC",
    ),
    mistake(
        "notice rls-disabled-unreached",
        "CREATE TABLE notes (tenant text)",
    ),
    mistake(
        "critical rls-disabled-on-child",
        "GRANT SELECT ON parts_a TO app",
    ),
    mistake(
        "warning rls-not-forced",
        "ALTER TABLE items NO FORCE ROW LEVEL SECURITY",
    ),
    mistake("critical table-truncate", "GRANT TRUNCATE ON items TO app"),
    mistake("warning table-trigger", "GRANT TRIGGER ON items TO PUBLIC"),
    to_decide(
        "warning shared-writable",
        "CREATE TABLE common (x int); GRANT INSERT ON common TO app",
    ),
    to_decide(
        "notice shared-readable",
        "CREATE TABLE common (x int); GRANT SELECT ON common TO app",
    ),
    to_decide("notice policy-missing", "DROP POLICY tenant ON items"),
    mistake(
        "critical policy-true",
        "CREATE POLICY beside ON items USING (true)",
    ),
    mistake(
        "critical policy-true",
        "ALTER POLICY tenant ON items WITH CHECK (true)",
    ),
    mistake(
        "critical policy-true",
        "CREATE POLICY beside ON items FOR INSERT TO app WITH CHECK (true)",
    ),
    mistake(
        "critical policy-true",
        "ALTER POLICY own ON projects USING (n > 0 OR true)",
    ),
    mistake(
        "critical policy-fail-open",
        "ALTER POLICY tenant ON items USING (tenant = coalesce(current_setting('app.tenant_id', true), tenant))",
    ),
    mistake(
        "critical policy-fail-open",
        "ALTER POLICY tenant ON items USING (current_setting('app.tenant_id', true) IS NULL \
            OR tenant = current_setting('app.tenant_id', true))",
    ),
    mistake(
        "critical policy-fail-open",
        "ALTER POLICY tenant ON items USING (current_setting('app.tenant_id', true) = '' \
            OR tenant = current_setting('app.tenant_id', true))",
    ),
    mistake(
        "critical policy-fail-open",
        "ALTER POLICY tenant ON items USING (coalesce(current_setting('app.tenant_id', true), '') IN ('') \
            OR tenant = (SELECT current_setting('app.tenant_id', true)))",
    ),
    mistake(
        "critical policy-fail-open",
        "ALTER POLICY tenant ON items USING (CASE WHEN current_setting('app.tenant_id', true) = '' THEN true \
            ELSE tenant = current_setting('app.tenant_id', true) END)",
    ),
    mistake(
        "critical policy-client-setting",
        "ALTER POLICY tenant ON items USING (tenant = current_setting('app.tenant_id', true) \
            OR current_setting('app.is_admin', true) = 'on')",
    ),
    mistake(
        "critical policy-without-tenant",
        "ALTER POLICY tenant ON items USING (id > 0)",
    ),
    mistake(
        "critical policy-without-tenant",
        "ALTER POLICY tenant ON items USING (tenant = current_user)",
    ),
    mistake(
        "critical policy-without-tenant",
        "ALTER POLICY tenant ON items USING (current_setting('app.tenant_id', true) <> '')",
    ),
    mistake(
        "warning policy-default-tenant",
        "ALTER POLICY tenant ON items USING (tenant = (SELECT coalesce(current_setting('app.tenant_id', true), 'demo')))",
    ),
    to_decide(
        "warning policy-shares",
        "ALTER POLICY tenant ON items USING (tenant IS NULL OR tenant = (SELECT current_setting('app.tenant_id', true)))",
    ),
    mistake(
        "notice policy-per-row",
        "ALTER POLICY tenant ON items USING (tenant = current_setting('app.tenant_id', true) AND id > 0)",
    ),
    to_decide(
        "notice policy-unclear",
        "ALTER POLICY tenant ON items USING (id IN (SELECT id FROM parts))",
    ),
    mistake(
        "critical policy-function-owned",
        "ALTER FUNCTION me() OWNER TO app",
    ),
    mistake(
        "critical view-with-owners-rights",
        "CREATE VIEW all_items AS SELECT * FROM items; CREATE VIEW outer_items AS SELECT * FROM all_items; \
            GRANT SELECT ON outer_items TO app",
    ),
    mistake("warning view-owner", "ALTER VIEW my_items OWNER TO app"),
    mistake(
        "critical materialized-view",
        "CREATE MATERIALIZED VIEW counts AS SELECT count(*) FROM items; GRANT SELECT ON counts TO app",
    ),
    mistake(
        "critical foreign-table",
        "CREATE FOREIGN DATA WRAPPER elsewhere; CREATE SERVER there FOREIGN DATA WRAPPER elsewhere; \
            CREATE FOREIGN TABLE far (tenant text) SERVER there; GRANT SELECT ON far TO app",
    ),
    mistake(
        "warning foreign-server",
        "CREATE FOREIGN DATA WRAPPER elsewhere; CREATE SERVER there FOREIGN DATA WRAPPER elsewhere; \
            GRANT USAGE ON FOREIGN SERVER there TO app; GRANT USAGE ON FOREIGN DATA WRAPPER elsewhere TO PUBLIC",
    ),
    mistake(
        "critical definer-search-path",
        "CREATE FUNCTION f() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS 'SELECT count(*) FROM items'",
    ),
    mistake(
        "warning definer-search-path",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog AS 'SELECT 1'; \
            ALTER FUNCTION f() OWNER TO keeper; REVOKE ALL ON FUNCTION f() FROM PUBLIC; GRANT EXECUTE ON FUNCTION f() TO app",
    ),
    mistake(
        "warning definer-function",
        "CREATE PROCEDURE f() LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS 'DELETE FROM public.items'",
    ),
    to_decide(
        "notice definer-function",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql SECURITY DEFINER SET search_path = '' AS 'SELECT 1'; \
            ALTER FUNCTION f() OWNER TO keeper",
    ),
    mistake(
        "warning leakproof",
        "CREATE FUNCTION f(text) RETURNS bool LANGUAGE sql LEAKPROOF AS 'SELECT true'; ALTER FUNCTION f(text) OWNER TO app",
    ),
    mistake("notice sequence", "GRANT SELECT ON SEQUENCE numbers TO app"),
    mistake(
        "warning sequence",
        "GRANT UPDATE ON SEQUENCE numbers TO PUBLIC",
    ),
    mistake(
        "notice tenant-index-missing",
        "ALTER TABLE items DROP CONSTRAINT items_pkey",
    ),
    to_decide(
        "warning key-from-shared-sequence",
        "DROP TABLE tickets; CREATE TABLE tickets (tenant_id uuid NOT NULL, id serial PRIMARY KEY, body text);
            ALTER TABLE tickets ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
            CREATE POLICY own ON tickets USING (tenant_id = (SELECT me()));
            GRANT SELECT, INSERT ON tickets TO app",
    ),
    to_decide(
        "warning key-from-shared-sequence",
        "ALTER TABLE tickets ADD UNIQUE (id)",
    ),
    to_decide(
        "warning key-from-shared-sequence",
        "ALTER TABLE projects ADD UNIQUE (id), ALTER id SET DEFAULT nextval('numbers'); GRANT UPDATE (id) ON projects TO app",
    ),
    to_decide(
        "notice unique-without-tenant",
        "ALTER TABLE tickets ADD UNIQUE (id); REVOKE INSERT ON tickets FROM app; GRANT INSERT (tenant_id, body) ON tickets TO app",
    ),
    to_decide(
        "warning library-keeps-state",
        "CREATE FUNCTION f() RETURNS language_handler LANGUAGE c AS '$libdir/plpgsql', 'plpgsql_call_handler';
            UPDATE pg_proc SET probin = '$libdir/mine' WHERE proname = 'f'",
    ),
    to_decide(
        "notice unique-without-tenant",
        "CREATE UNIQUE INDEX ON items (body)",
    ),
    to_decide(
        "notice foreign-key-without-tenant",
        "CREATE UNIQUE INDEX u ON items (id); ALTER TABLE projects ADD FOREIGN KEY (id) REFERENCES items (id)",
    ),
    mistake(
        "warning side-channel-activity",
        "GRANT EXECUTE ON FUNCTION pg_stat_get_activity(int) TO app",
    ),
    mistake(
        "warning side-channel-activity",
        "GRANT EXECUTE ON FUNCTION pg_stat_get_backend_activity(int) TO PUBLIC",
    ),
    mistake(
        "warning side-channel-signal",
        "GRANT EXECUTE ON FUNCTION pg_cancel_backend(int), pg_terminate_backend(int, bigint) TO app",
    ),
    mistake(
        "notice side-channel-notify",
        "GRANT EXECUTE ON FUNCTION pg_notify(text, text) TO app",
    ),
    mistake(
        "notice side-channel-large-objects",
        "GRANT EXECUTE ON FUNCTION lo_create(oid) TO app",
    ),
    mistake(
        "critical server-files",
        "GRANT EXECUTE ON FUNCTION pg_read_file(text) TO app",
    ),
    mistake(
        "critical server-files",
        "GRANT EXECUTE ON FUNCTION lo_import(text), lo_export(oid, text) TO PUBLIC",
    ),
    mistake(
        "critical dblink-unchecked",
        "SET allow_system_table_mods = on; \
            CREATE FUNCTION pg_catalog.dblink_connect_u(text) RETURNS text LANGUAGE sql AS 'SELECT $1'",
    ),
    mistake(
        "warning dblink",
        "SET allow_system_table_mods = on; \
            CREATE FUNCTION pg_catalog.dblink_connect(text) RETURNS text LANGUAGE sql AS 'SELECT $1'",
    ),
    mistake(
        "warning stat-statements",
        "SET allow_system_table_mods = on; \
            CREATE FUNCTION pg_catalog.pg_stat_statements(bool) RETURNS text LANGUAGE sql AS 'SELECT NULL::text'",
    ),
    mistake(
        "warning untrusted-language",
        "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 1; END'; \
            UPDATE pg_language SET lanpltrusted = false WHERE lanname = 'plpgsql'",
    ),
    mistake(
        "warning schema-create",
        "GRANT CREATE ON SCHEMA public TO PUBLIC",
    ),
    mistake(
        "warning database-create",
        "GRANT CREATE ON DATABASE app TO app",
    ),
    mistake(
        "warning database-temp",
        "GRANT TEMPORARY ON DATABASE app TO PUBLIC",
    ),
    mistake(
        "warning settings-update",
        "GRANT UPDATE ON pg_settings TO PUBLIC",
    ),
    mistake("warning setting", "ALTER ROLE app SET app.tenant_id = 'b'"),
    mistake(
        "warning setting",
        "ALTER DATABASE app SET row_security = off",
    ),
    mistake(
        "warning setting",
        "ALTER ROLE app IN DATABASE app SET session_replication_role = replica",
    ),
    mistake(
        "notice setting",
        "ALTER ROLE app SET search_path = elsewhere",
    ),
    mistake(
        "warning large-object-privileges",
        "ALTER DATABASE app SET lo_compat_privileges = on",
    ),
    to_decide(
        "warning large-objects",
        "SELECT lo_create(4711); ALTER LARGE OBJECT 4711 OWNER TO app",
    ),
    mistake(
        "warning set-config-executable",
        "REVOKE EXECUTE ON FUNCTION set_config(text, text, bool) FROM PUBLIC",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn each_mistake_is_found_and_mended_and_nothing_is_found_without_one() {
    let cluster = right("mistakes").await;
    let doctor = Doctor::new(&pool_config(&cluster, true));

    // What every new database has: neighbours can be seen and hindered.
    let fresh = doctor.ask().await;
    let expected = [
        "notice side-channel-large-objects",
        "notice side-channel-notify",
        "warning database-temp",
        "warning settings-update",
        "warning side-channel-activity",
        "warning side-channel-signal",
        "warning side-channel-statistics",
    ];
    assert_eq!(fresh.checks(), expected.map(str::to_owned).into());
    assert_eq!(fresh.code, 1);
    psql(&cluster, "app", &doctor.script().await).await;
    let hardened = doctor.ask().await;
    assert_eq!(hardened.checks(), BTreeSet::new());
    assert_eq!(
        (hardened.code, &*doctor.script().await),
        (0, "-- Nothing to mend.\n")
    );
    // The operator's own still see.
    let sees = "GRANT pg_monitor, pg_signal_backend TO keeper; SET ROLE keeper; \
        SELECT count(*) FROM pg_stat_activity; SELECT pg_cancel_backend(0)";
    cluster.run("app", sees).await.unwrap();
    cluster
        .run("app", "REVOKE pg_monitor, pg_signal_backend FROM keeper")
        .await
        .unwrap();

    let create_role = match hardened.json["places"][0]["server_version"]
        .as_str()
        .unwrap()
    {
        version if version.starts_with("15") => "critical role-createrole",
        _ => "warning role-createrole",
    };
    let create_role = mistake(create_role, "ALTER ROLE app CREATEROLE");
    for Mistake {
        sql,
        finding,
        mends,
    } in MISTAKES.iter().chain([&create_role])
    {
        cluster.run("app", sql).await.unwrap();
        let found = doctor.ask().await;
        assert!(
            found.checks().contains(*finding),
            "{sql}: {:?}",
            found.findings()
        );
        let bad = found
            .checks()
            .iter()
            .any(|check| !check.starts_with("notice"));
        assert_eq!(found.code, u8::from(bad), "{sql}");
        let script = doctor.script().await;
        psql(&cluster, "app", &script).await;
        let left = doctor.ask().await;
        if *mends {
            let gone = format!("{sql}: {:?}, after\n{script}", left.findings());
            // Those of a superuser hide others.
            assert!(
                left.checks()
                    .iter()
                    .all(|check| check.starts_with("notice")),
                "{gone}"
            );
            assert!(!left.checks().contains(*finding), "{gone}");
        } else {
            assert!(left.checks().contains(*finding), "{sql}: {script}");
        }
        cluster.run("app", RIGHT).await.unwrap();
        let script = doctor.script().await;
        assert_eq!(script, "-- Nothing to mend.\n", "after {sql}");
    }

    // As the application itself, it sees the same.
    let own = Doctor::new(&pool_config(&cluster, false));
    cluster
        .run("app", "CREATE POLICY beside ON items USING (true)")
        .await
        .unwrap();
    let seen = own.ask().await;
    assert_eq!(seen.json["places"][0]["inspected_as"], "app");
    assert_eq!(seen.findings(), doctor.ask().await.findings());
    cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_databases_of_the_other_tests_are_as_they_should_be() {
    let world = world().await;
    let answer = Doctor::new(&Setup::default().yaml(world)).ask().await;
    let loud: BTreeSet<_> = answer
        .findings()
        .into_iter()
        .filter(|(severity, ..)| severity != "notice")
        .map(|(severity, check, object)| match &*check {
            "shared-writable" => format!("{severity} {check} {object}"),
            _ => format!("{severity} {check}"),
        })
        .collect();
    let expected = [
        "warning posture-plain",
        // It is there because COPY refuses tables under row level security.
        "warning shared-writable table public.plain",
        "warning side-channel-activity",
        "warning side-channel-signal",
        "warning side-channel-statistics",
    ];
    assert_eq!(loud, expected.map(str::to_owned).into());
    let of_pools = |place: &Value| ["pool", "instance"].contains(&place["tier"].as_str().unwrap());
    let places = answer.json["places"].as_array().unwrap();
    for place in places.iter().filter(|place| !of_pools(place)) {
        assert_eq!(place["findings"], Value::Array(Vec::new()), "{place}");
    }
    let tenants: u64 = places
        .iter()
        .map(|place| place["tenants"].as_u64().unwrap())
        .sum();
    assert_eq!(tenants, crate::harness::all_tenants().len() as u64);

    // Few of many, and it says so.
    let doctor = Doctor::new(&Setup::default().yaml(world));
    let mut args = doctor.args();
    args.sample = 2;
    args.placement = Some("business".to_owned());
    let (code, out, _) = doctor.run(&args).await;
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, json["places"].as_array().unwrap().len()), (0, 2));
    assert!(
        json["notes"][0].as_str().unwrap().contains("2 of 6 places"),
        "{out}"
    );
    args.format = Format::Text;
    let (_, out, _) = doctor.run(&args).await;
    assert!(
        out.contains("nothing found") && out.contains("note: "),
        "{out}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_with_places_of_their_own_do_not_reach_each_other() {
    let cluster = cluster(with_locks("neighbours")).await;
    for statement in [
        "CREATE ROLE r_a LOGIN PASSWORD 'secret'",
        "CREATE ROLE r_b LOGIN PASSWORD 'secret'",
        "CREATE ROLE d_a LOGIN PASSWORD 'secret'",
        "CREATE ROLE d_b LOGIN PASSWORD 'secret'",
        "CREATE DATABASE bridge",
        "CREATE DATABASE d_a",
        "CREATE DATABASE d_b",
        "REVOKE ALL ON DATABASE d_a, d_b FROM PUBLIC",
        "GRANT CONNECT ON DATABASE d_a TO d_a",
        "GRANT CONNECT ON DATABASE d_b TO d_b",
        "CREATE DATABASE tenants",
        "REVOKE ALL ON DATABASE tenants FROM PUBLIC",
        "CREATE ROLE pgtenant_catalog_reader",
        "CREATE ROLE pgtenant_catalog_writer",
    ] {
        cluster.run("postgres", statement).await.unwrap();
    }
    let schemas = "CREATE SCHEMA t_sa; CREATE SCHEMA t_sb; GRANT USAGE ON SCHEMA t_sa TO r_a; \
        GRANT USAGE ON SCHEMA t_sb TO r_b; ALTER ROLE r_a SET search_path = t_sa";
    cluster.run("bridge", schemas).await.unwrap();
    let config = |login: &str| {
        format!(
            "catalog: {{ server: main, database: tenants, login: {{ user: looker }} }}\n{}placements:\n\
             \x20 pro: {{ tier: schema, server: main, database: bridge, schema: \"t_{{tenant}}\", \
             login: {{ user: \"{login}\", password: secret }} }}\n  business: {{ tier: database, server: main, \
             database: \"d_{{letter}}\", login: {{ user: \"d_{{letter}}\", password: secret }} }}\ntenants:\n{}",
            server(&cluster, true),
            [
                ("sa", "pro", "a"),
                ("sb", "pro", "b"),
                ("da", "business", "a"),
                ("db", "business", "b")
            ]
            .map(|(tenant, placement, letter)| format!(
                "  {tenant}: {{ placement: {placement}, attributes: {{ letter: {letter} }}, \
                     users: {{ app: {{ password: x }} }} }}\n"
            ))
            .concat()
        )
    };
    let doctor = Doctor::new(&config("r_{letter}"));
    let clean = doctor.ask().await;
    assert_eq!((clean.code, clean.findings()), (0, BTreeSet::new()));
    for (sql, finding) in [
        (
            "GRANT USAGE ON SCHEMA t_sb TO r_a",
            "critical schema-of-others",
        ),
        (
            "GRANT CREATE ON SCHEMA t_sb TO PUBLIC",
            "critical schema-of-others",
        ),
        ("GRANT r_b TO r_a", "critical role-member-tenant"),
        (
            "GRANT pg_read_all_data TO r_a",
            "critical role-member-predefined",
        ),
        ("ALTER ROLE d_a SUPERUSER", "critical role-superuser"),
        (
            "GRANT CREATE ON SCHEMA public TO PUBLIC",
            "warning schema-create",
        ),
        (
            "GRANT CONNECT ON DATABASE d_a TO PUBLIC",
            "warning database-connect",
        ),
        (
            "GRANT CONNECT ON DATABASE d_a TO d_b",
            "warning database-connect",
        ),
        (
            "GRANT CONNECT ON DATABASE tenants TO PUBLIC",
            "warning catalog-connect",
        ),
        (
            "GRANT CONNECT ON DATABASE tenants TO d_a",
            "warning catalog-connect",
        ),
        (
            "GRANT pgtenant_catalog_reader TO r_a",
            "critical catalog-role",
        ),
        (
            "GRANT pgtenant_catalog_writer TO d_b",
            "critical catalog-role",
        ),
    ] {
        cluster.run("bridge", sql).await.unwrap();
        let found = doctor.ask().await;
        assert!(
            found.checks().contains(finding),
            "{sql}: {:?}",
            found.findings()
        );
        let script = doctor.script().await;
        let (_, database) = script.split_once(", database ").unwrap();
        let (database, _) = database.split_once(' ').unwrap();
        psql(&cluster, database, &script).await;
        let left = doctor.ask().await;
        assert_eq!((left.code, left.findings()), (0, BTreeSet::new()), "{sql}");
    }
    cluster
        .run("bridge", "GRANT USAGE ON SCHEMA t_sa, t_sb TO r_a")
        .await
        .unwrap();
    let shared = Doctor::new(&config("r_a")).ask().await;
    assert!(
        shared.checks().contains("critical login-shared"),
        "{:?}",
        shared.findings()
    );
    cluster.stop().await.unwrap();
}

/// Drivers remember the ids of types that are not PostgreSQL's own.
#[tokio::test(flavor = "multi_thread")]
async fn types_with_other_ids_in_the_places_of_an_application_are_told() {
    let cluster = cluster(with_locks("types")).await;
    let run = async |database: &str, sql: &str| cluster.run(database, sql).await.unwrap();
    for name in ["d_a", "d_b", "d_c"] {
        let role = format!("CREATE ROLE {name} LOGIN PASSWORD 'secret'");
        run("postgres", &role).await;
        run("postgres", &format!("CREATE DATABASE {name}")).await;
        let closed = format!(
            "REVOKE ALL ON DATABASE {name} FROM PUBLIC; GRANT CONNECT ON DATABASE {name} TO {name}"
        );
        run("postgres", &closed).await;
    }
    run(
        "d_a",
        "CREATE TYPE mood AS ENUM ('ok'); CREATE DOMAIN zip AS text; CREATE TABLE t (a int)",
    )
    .await;
    run(
        "d_b",
        "CREATE DOMAIN zip AS text; CREATE TYPE mood AS ENUM ('ok')",
    )
    .await;
    run(
        "d_c",
        "CREATE TABLE mood (a int); CREATE TYPE other AS ENUM ('ok')",
    )
    .await;
    let config = |applications: &str| {
        format!(
            "{}placements:\n  business: {{ tier: database, server: main, \
             database: \"d_{{tenant}}\", login: {{ user: \"d_{{tenant}}\", password: secret }} }}\n{applications}tenants:\n{}",
            server(&cluster, true),
            ["a", "b", "c"]
                .map(|tenant| format!(
                    "  {tenant}: {{ placement: business, users: {{ app: {{ password: x }} }} }}\n"
                ))
                .concat()
        )
    };
    let without = Doctor::new(&config("")).ask().await;
    assert_eq!((without.code, without.findings()), (0, BTreeSet::new()));
    let web = "applications: { web: { users: { web: { password: x } }, tenants: all, \
        choose: { variables: [app.tenant_id] } } }\n";
    let found = Doctor::new(&config(web)).ask().await;
    let expected = (
        "notice".to_owned(),
        "type-ids".to_owned(),
        "types mood, zip".to_owned(),
    );
    let expected = (0, BTreeSet::from([expected]));
    assert_eq!((found.code, found.findings()), expected);
    cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_inspected_is_told_by_the_exit_code() {
    let cluster = right("exit_codes").await;
    let yaml = pool_config(&cluster, false);
    let doctor = Doctor::new(&yaml);
    let mut args = doctor.args();
    args.placement = Some("none".to_owned());
    let (code, _, err) = doctor.run(&args).await;
    assert_eq!(
        (code, &*err),
        (2, "pgtenant: there is no placement \"none\"\n")
    );
    let broken = Doctor::new("servers: 1\n");
    let (code, _, err) = broken.run(&broken.args()).await;
    assert!(code == 2 && err.contains("mistake"), "{code} {err}");
    let wrong = Doctor::new(&yaml.replace("password: secret", "password: wrong"));
    let answer = wrong.ask().await;
    let error = answer.json["places"][0]["error"].as_str().unwrap();
    assert!(answer.code == 2 && error.starts_with("28P01"), "{error}");
    cluster.shut_down(Shutdown::Fast).await.unwrap();
    let down = doctor.ask().await;
    assert_eq!(
        (down.code, &down.json["summary"]["failed"]),
        (2, &Value::from(1))
    );
    cluster.stop().await.unwrap();
}

// ---- in a running proxy ----

async fn log_in(proxy: &Running) -> Result<(), String> {
    let dsn = format!("postgresql://app.a:a-secret@{}/app", proxy.address);
    match connect(&dsn.parse().unwrap()).await {
        Ok(client) => {
            client
                .batch_execute("SELECT 1")
                .await
                .map_err(|e| e.to_string())?;
            Ok(())
        }
        Err(error) => Err(error
            .code()
            .map_or(error.to_string(), |code| code.code().to_owned())),
    }
}

async fn console(proxy: &Running) -> Vec<Vec<String>> {
    let dsn = format!("postgresql://admin:console@{}/pgtenant", proxy.address);
    let client = connect(&dsn.parse().unwrap()).await.unwrap();
    let rows = client.simple_query("SHOW DOCTOR").await.unwrap();
    rows.iter()
        .filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(
                (0..row.len())
                    .map(|i| row.get(i).unwrap_or_default().to_owned())
                    .collect(),
            ),
            _ => None,
        })
        .collect()
}

async fn metrics(proxy: &Running) -> String {
    let address = proxy.proxy.http_address().unwrap();
    let mut http = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nHost: pgtenant\r\nConnection: close\r\n\r\n";
    http.write_all(request).await.unwrap();
    let mut text = String::new();
    http.read_to_string(&mut text).await.unwrap();
    text
}

fn served(cluster: &Cluster, doctor: &str) -> String {
    format!(
        "http: {{ address: \"127.0.0.1:0\" }}\nadmin: {{ users: {{ admin: {{ password: console }} }} }}\ntimeouts: {{ connect: 1s }}\n{doctor}\n{}",
        pool_config(cluster, false)
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_refused_while_policies_leak_and_let_in_when_they_are_mended() {
    let cluster = right("refusal").await;
    cluster
        .run("app", "CREATE POLICY beside ON items USING (true)")
        .await
        .unwrap();
    let refusing = served(&cluster, "doctor: { interval: 1s, refuse: true }");
    let proxy = Running::start(&refusing);
    eventually("the leak is noticed", async || {
        log_in(&proxy).await == Err("57P03".to_owned())
    })
    .await;
    let rows = console(&proxy).await;
    let shown = rows
        .iter()
        .any(|row| row[5] == "critical" && row[6] == "policy-true");
    assert!(shown, "{rows:?}");
    let metrics = metrics(&proxy).await;
    let gauge = "pgtenant_doctor_findings{placement=\"free\",severity=\"critical\"} 1";
    assert!(metrics.contains(gauge), "{metrics}");

    // What the last look found stays so while the server is away: nobody is let in because it was
    // restarted.
    cluster.shut_down(Shutdown::Fast).await.unwrap();
    eventually("the server is missed", async || {
        console(&proxy).await.iter().any(|row| row[5] == "unknown")
    })
    .await;
    assert_eq!(log_in(&proxy).await, Err("57P03".to_owned()));
    cluster.start_again().await.unwrap();

    // Where it only looks, nobody is refused.
    proxy.reload(&served(&cluster, "doctor: { interval: 1s }"));
    eventually("others are served", async || log_in(&proxy).await.is_ok()).await;
    proxy.reload(&refusing);
    assert_eq!(log_in(&proxy).await, Err("57P03".to_owned()));

    cluster
        .run("app", "DROP POLICY beside ON items")
        .await
        .unwrap();
    eventually("it is mended", async || log_in(&proxy).await.is_ok()).await;
    let rows = console(&proxy).await;
    assert!(rows.iter().all(|row| row[5] != "critical"), "{rows:?}");
    drop(proxy);
    cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_down_delays_nobody() {
    let (cluster, gone) = tokio::join!(right("serving"), right("gone"));
    gone.shut_down(Shutdown::Fast).await.unwrap();
    let yaml = served(&cluster, "doctor: { interval: 1s, refuse: true }");
    let two =
        yaml.replace(
            "servers: { main:",
            &format!(
                "servers: {{ gone: {{ host: 127.0.0.1, port: {}, max_connections: 5 }}, main:",
                gone.port()
            ),
        )
        .replace(
            "placements: {",
            "placements: { lost: { tier: pool, server: gone, database: app, login: { user: app }, \
             posture: plain, context: { app.tenant_id: \"{tenant}\" } },",
        ) + "  c: { placement: lost, users: { app: { password: c-secret } } }\n";
    let proxy = Running::start(&two);
    assert_eq!(log_in(&proxy).await, Ok(()));
    eventually("the other is inspected", async || {
        console(&proxy)
            .await
            .iter()
            .any(|row| row[0] == "free" && row[5] == "warning")
    })
    .await;
    eventually("the lost one is told", async || {
        console(&proxy)
            .await
            .iter()
            .any(|row| row[0] == "lost" && row[5] == "unknown" && !row[1].is_empty())
    })
    .await;
    assert_eq!(log_in(&proxy).await, Ok(()));
    drop(proxy);
    cluster.stop().await.unwrap();
}

// ---- posture ----

/// [`pool_config`], in another posture.
fn in_posture(cluster: &Cluster, posture: &str) -> String {
    pool_config(cluster, true)
        .replace(
            "max_connections: 20",
            "max_connections: 20, seal: { key: 0123456789abcdef0123456789abcdef }",
        )
        .replace("posture: guarded", &format!("posture: {posture}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_depends_on_the_posture() {
    let cluster = right("postures").await;
    let doctor = |posture: &str| Doctor::new(&in_posture(&cluster, posture));
    let (plain, guarded, sealed) = (doctor("plain"), doctor("guarded"), doctor("sealed"));
    psql(&cluster, "app", &plain.script().await).await;
    assert_eq!(guarded.ask().await.checks(), BTreeSet::new());
    cluster
        .run("app", "GRANT TEMPORARY ON DATABASE app TO app")
        .await
        .unwrap();
    let of_plain = ["notice database-temp", "warning posture-plain"];
    for (doctor, expected) in [
        (&plain, &of_plain[..]),
        (&guarded, &["warning database-temp"]),
    ] {
        let expected = expected.iter().map(ToString::to_string).collect();
        assert_eq!(doctor.ask().await.checks(), expected);
    }

    // What one tenant may lock at once must leave room for others.
    cluster
        .run("app", "REVOKE TEMPORARY ON DATABASE app FROM app")
        .await
        .unwrap();
    for (limits, expected) in [
        ("objects: 1500, savepoints: 1000", &[][..]),
        ("objects: 2000, savepoints: 1000", &["notice lock-table"]),
        ("objects: 0", &["notice lock-table"]),
    ] {
        let config = in_posture(&cluster, &format!("guarded, limits: {{ {limits} }}"));
        let found = Doctor::new(&config).ask().await.checks();
        let expected = expected.iter().map(ToString::to_string).collect();
        assert_eq!(found, expected, "{limits}");
    }
    cluster
        .run("app", "GRANT TEMPORARY ON DATABASE app TO app")
        .await
        .unwrap();

    // A sealed placement of a database that is not.
    let before = sealed.ask().await;
    let expected = [
        "notice database-temp",
        "warning policy-unsealed",
        "warning seal-missing",
    ];
    assert_eq!(before.checks(), expected.map(str::to_owned).into());

    let dir = tempfile::tempdir().unwrap();
    let config =
        pgtenant::config::load_text(&in_posture(&cluster, "sealed"), dir.path(), &|_| None)
            .unwrap();
    let server = config.servers.values().next().unwrap();
    let target = &seal::targets(&config, &server.name)[0];
    seal::install(server, target, Duration::from_secs(60))
        .await
        .unwrap();
    let unsealed = sealed.ask().await;
    let tables = ["items", "parts", "projects", "projects", "tickets"];
    let policies = ["tenant", "tenant", "own", "own_new", "own"];
    let expected = policies.iter().zip(tables).map(|(policy, table)| {
        (
            "warning".to_owned(),
            "policy-unsealed".to_owned(),
            format!("policy {policy} on public.{table}"),
        )
    });
    let found: BTreeSet<_> = unsealed
        .findings()
        .into_iter()
        .filter(|(severity, ..)| severity != "notice")
        .collect();
    assert_eq!(found, expected.collect());

    // The script takes the tenant from the seal, in the column's own type.
    psql(&cluster, "app", &sealed.script().await).await;
    assert_eq!(sealed.ask().await.checks(), BTreeSet::new());
    let using = "SELECT string_agg(pg_get_expr(polqual, polrelid), '; ' ORDER BY polname) FROM pg_policy WHERE polname IN ('own', 'tenant')";
    let client = cluster.connect("app").await.unwrap();
    let using: String = client.query_one(using, &[]).await.unwrap().get(0);
    assert!(
        using.contains("pgtenant.tenant_id_uuid()") && using.contains("pgtenant.tenant_id()"),
        "{using}"
    );
    assert!(plain.ask().await.checks().contains("notice seal-unused"));

    for (sql, finding) in [
        (
            "GRANT UPDATE ON SEQUENCE pgtenant.bound_1 TO app",
            "critical seal-key-readable",
        ),
        (
            "COMMENT ON SCHEMA pgtenant IS 'pgtenant seal, version 0'",
            "warning seal-version",
        ),
    ] {
        cluster.run("app", sql).await.unwrap();
        let found = sealed.ask().await;
        assert!(
            found.checks().contains(finding),
            "{sql}: {:?}",
            found.findings()
        );
    }
    cluster.stop().await.unwrap();
}
