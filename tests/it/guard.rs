//! Posture `guarded`: what could change the tenant is refused, wherever it stands, and the client
//! goes on.

use crate::harness::{POOLINGS, Running, SECRET, Setup};
use crate::wire::{
    Frame, Wire, bind, column, errors, execute, function_call, parse, query, rows, sync,
};

const OWN: &str = "SELECT current_setting('app.tenant_id')";
const DENIED: &str = "42501";

pub const GUARDED: &str = "posture: guarded";

/// `posture`: settings of the placement.
pub async fn proxy(pooling: &'static str, posture: &str) -> Running {
    Setup {
        pooling,
        placements: format!(
            "watched: {{ tier: pool, server: shared, database: app, login: {{ user: app, password: {SECRET} }}, \
             pooling: {pooling}, context: {{ app.tenant_id: \"{{tenant}}\" }}, {posture}, pool: {{ size: 8 }} }}"
        ),
        tenants: "g0: { placement: watched, users: { app: { password: g0 } } }".into(),
        ..Setup::default()
    }
    .start()
    .await
}

async fn client(proxy: &Running) -> Wire {
    let mut wire = Wire::tcp(proxy.address).await;
    wire.log_in(&[("user", "app.g0"), ("database", "app")], "g0")
        .await
        .expect("logs in");
    wire
}

fn hint(frames: &[Frame]) -> String {
    let error = frames.iter().find(|frame| frame.tag == b'E');
    error
        .and_then(|error| error.field(b'H'))
        .unwrap_or_default()
}

/// Each shows that it takes effect in posture plain, or could.
const ATTACKS: [&str; 17] = [
    "SET app.tenant_id = 'other'",
    "SELECT 1; SET LOCAL \"app\".tenant_id TO 'other'",
    "SELECT set_config('app.tenant_id', 'other', false)",
    "SELECT pg_catalog.\"set_config\"('app.' || 'tenant_id', 'other', false)",
    "SELECT U&\"set\\005fconfig\"('app.tenant_id', 'other', false)",
    "COPY (SELECT set_config('app.tenant_id', 'other', false)) TO STDOUT",
    "PREPARE x AS SELECT set_config('app.tenant_id', 'other', false)",
    "DO $$ BEGIN NULL; END -- $$; SELECT set_config('app.tenant_id', 'other', false) --\n",
    "SET NAMES $$SJIS$$",
    "DO $$ BEGIN EXECUTE 'SET app.tenant' || '_id = ''other'''; END $$",
    "SELECT query_to_xml('SELECT set_config(''app.tenant_id'', ''other'', false)', true, true, '')",
    "CREATE FUNCTION pg_temp.f() RETURNS text LANGUAGE sql AS $$ SELECT set_config('app.tenant_id', 'other', false) $$",
    "UPDATE pg_settings SET setting = 'other' WHERE name = 'app.tenant_id'",
    "WITH x AS (SELECT 1) UPDATE \"pg_settings\" SET setting = 'other' WHERE name = 'app.tenant_id'",
    "ALTER ROLE CURRENT_USER SET app.tenant_id = 'other'",
    "DROP OWNED BY CURRENT_USER",
    "SET ROLE app",
];

#[tokio::test(flavor = "multi_thread")]
async fn what_could_change_the_tenant_is_refused_and_the_client_goes_on() {
    for pooling in POOLINGS {
        let proxy = proxy(pooling, GUARDED).await;
        let mut wire = client(&proxy).await;
        for sql in ATTACKS {
            let frames = wire.query(sql).await;
            assert_eq!(errors(&frames), [DENIED], "{pooling}: {sql}");
            assert!(hint(&frames).ends_with('.'), "{frames:?}");
            let batch = [parse("", sql), bind("", "", &[]), execute("", 0), sync()].concat();
            wire.send(&batch).await;
            assert_eq!(
                errors(&wire.until_ready().await),
                [DENIED],
                "{pooling}, extended: {sql}"
            );
            wire.send(&[parse("s", sql), sync()].concat()).await;
            assert_eq!(
                errors(&wire.until_ready().await),
                [DENIED],
                "{pooling}, named: {sql}"
            );
            wire.send(&[bind("", "s", &[]), sync()].concat()).await;
            assert_eq!(
                errors(&wire.until_ready().await),
                ["26000"],
                "{pooling}: {sql}"
            );
            assert_eq!(wire.column(OWN).await, ["g0"], "{pooling}: {sql}");
        }
        wire.send(&function_call(
            2078,
            &[Some("app.tenant_id"), Some("other"), Some("f")],
        ))
        .await;
        assert_eq!(errors(&wire.until_ready().await), [DENIED]);
        assert_eq!(wire.column(OWN).await, ["g0"]);
    }
}

/// What pg_dump and drivers say at their beginning changes nothing, or nothing that matters.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_so_already_may_be_said_again() {
    let dumps = "SELECT set_config(name, 'view, foreign-table', false) FROM pg_settings \
        WHERE name = 'restrict_nonsystem_relation_kind'";
    let of = |name: &str| dumps.replace("restrict_nonsystem_relation_kind", name);
    for pooling in POOLINGS {
        let proxy = proxy(pooling, GUARDED).await;
        let mut wire = client(&proxy).await;
        for (sql, expected) in [
            ("SET standard_conforming_strings = on", &[][..]),
            ("set local Standard_Conforming_Strings to 'on'", &[]),
            (
                "SELECT set_config('standard_conforming_strings', 'true', false)",
                &[],
            ),
            (
                "SET statement_timeout = 0; SET standard_conforming_strings = on",
                &[],
            ),
            ("SET standard_conforming_strings = off", &[DENIED]),
            ("SET standard_conforming_strings TO DEFAULT", &[DENIED]),
            ("RESET standard_conforming_strings", &[DENIED]),
            (
                "SET standard_conforming_strings = on; SET standard_conforming_strings = off",
                &[DENIED],
            ),
            (
                "SELECT set_config('standard_conforming_strings', NULL, false)",
                &[DENIED],
            ),
            (dumps, &[]),
            (&of("work_mem").replace("view, foreign-table", "5MB"), &[]),
            (&of("role"), &[DENIED]),
            (&of("app.tenant_id"), &[DENIED]),
            (
                &of("client_encoding").replace("view, foreign-table", "SJIS"),
                &[DENIED],
            ),
            (&format!("{dumps}; SELECT 1"), &[DENIED]),
            (&dumps.replace("WHERE name =", "WHERE name >"), &[DENIED]),
        ] {
            assert_eq!(errors(&wire.query(sql).await), expected, "{pooling}: {sql}");
            let batch = [parse("", sql), bind("", "", &[]), execute("", 0), sync()].concat();
            if !sql.contains(';') {
                wire.send(&batch).await;
                assert_eq!(
                    errors(&wire.until_ready().await),
                    expected,
                    "{pooling}: {sql}"
                );
            }
        }
        let bound = "SELECT set_config('standard_conforming_strings', $1, false)";
        let batch = [
            parse("", bound),
            bind("", "", &[Some("off")]),
            execute("", 0),
            sync(),
        ];
        wire.send(&batch.concat()).await;
        assert_eq!(errors(&wire.until_ready().await), [DENIED], "{pooling}");
    }
}

/// A length of a type is no value that a catalog keeps.
#[tokio::test(flavor = "multi_thread")]
async fn only_literals_of_a_definition_are_values() {
    let proxy = proxy("session", GUARDED).await;
    let mut wire = client(&proxy).await;
    for (columns, expected) in [
        (
            "id int generated by default as identity, a varchar(10)",
            &[][..],
        ),
        ("a timestamptz default now(), b numeric(10,2)", &[]),
        ("id int, check (id > id), b varchar(10)", &[]),
        ("a int default coalesce(1, 2), b text", &[DENIED]),
        ("a int[] default array[lower_of(), 3], b text", &[DENIED]),
        (
            "a text[] default ARRAY[current_user, 'secret'], b text",
            &[DENIED],
        ),
        (
            "a int default (now() is null)::int, b text default 'secret'",
            &[DENIED],
        ),
        ("a int, check (a in (length(current_user), 5))", &[DENIED]),
    ] {
        let sql = format!("CREATE TEMP TABLE t ({columns})");
        assert_eq!(errors(&wire.query(&sql).await), expected, "{sql}");
        wire.query("DROP TABLE IF EXISTS t").await;
    }
    let view = "CREATE TEMP VIEW v AS SELECT current_user, 'secret'";
    assert_eq!(errors(&wire.query(view).await), [DENIED]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_fails_its_transaction_and_comes_in_its_turn() {
    for pooling in POOLINGS {
        let proxy = proxy(pooling, GUARDED).await;
        let mut wire = client(&proxy).await;
        let attack = ATTACKS[2];
        wire.query("BEGIN").await;
        assert_eq!(errors(&wire.query(attack).await), [DENIED]);
        assert_eq!(
            errors(&wire.query("SELECT 1").await),
            ["25P02"],
            "{pooling}"
        );
        wire.query("ROLLBACK").await;
        // In a pipeline each answer stands where it belongs.
        let select = |n| {
            [
                parse("", &format!("SELECT '{n}'")),
                bind("", "", &[]),
                execute("", 0),
            ]
            .concat()
        };
        let pipeline = [
            select(1),
            sync(),
            query(attack),
            select(2),
            parse("", attack),
            select(3),
            sync(),
            query("SELECT '4'"),
        ]
        .concat();
        wire.send(&pipeline).await;
        let mut seen = Vec::new();
        for _ in 0..4 {
            let frames = wire.until_ready().await;
            seen.push((rows(&frames), errors(&frames)));
        }
        let row = |n: &str| vec![n.to_owned()];
        let denied = vec![DENIED.to_owned()];
        assert_eq!(
            seen,
            [
                (row("1"), vec![]),
                (vec![], denied.clone()),
                (row("2"), denied),
                (row("4"), vec![])
            ],
            "{pooling}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_text_that_is_refused_ends_its_client_before_it_runs() {
    for pooling in POOLINGS {
        let proxy = proxy(pooling, GUARDED).await;
        let mut wire = client(&proxy).await;
        let long = "x".repeat(100_000);
        wire.send(&query(&format!("SELECT '{long}'; {}", ATTACKS[0])))
            .await;
        assert_eq!(errors(&wire.rest().await), [DENIED], "{pooling}");
        let mut wire = client(&proxy).await;
        let call = function_call(2078, &[Some("app.tenant_id"), Some(&long), Some("f")]);
        wire.send(&call).await;
        assert_eq!(errors(&wire.rest().await), [DENIED], "{pooling}");
        assert_eq!(client(&proxy).await.column(OWN).await, ["g0"]);
    }
}

/// What tenants have in common, beside tables with policies.
const SHARED: [(&str, &str); 10] = [
    ("channels", "LISTEN orders"),
    ("channels", "NOTIFY orders, 'x'"),
    ("channels", "SELECT pg_notify('orders', 'x')"),
    ("table-locks", "BEGIN; LOCK TABLE items; COMMIT"),
    (
        "table-locks",
        "BEGIN; LOCK TABLE items IN SHARE MODE; COMMIT",
    ),
    ("advisory-locks", "SELECT pg_try_advisory_xact_lock(1)"),
    ("advisory-locks", "SELECT pg_try_advisory_lock(1)"),
    // Outside of a transaction the answer is a warning.
    ("prepared-transactions", "PREPARE TRANSACTION 'x'"),
    ("large-objects", "SELECT lo_create(0)"),
    ("large-objects", "SELECT count(lo_get(1)) WHERE false"),
];
const ALL_SHARED: &str = "posture: guarded, allow: [advisory-locks, channels, large-objects, prepared-transactions, table-locks]";
const LO_CREATE: u32 = 715;

#[tokio::test(flavor = "multi_thread")]
async fn what_tenants_have_in_common_is_refused_unless_allowed() {
    for pooling in POOLINGS {
        let (refusing, allowing) = (
            proxy(pooling, GUARDED).await,
            proxy(pooling, ALL_SHARED).await,
        );
        let create = function_call(LO_CREATE, &[Some("\0\0\0\0")]);
        for (what, sql) in SHARED {
            let mut wire = client(&refusing).await;
            assert_eq!(errors(&wire.query(sql).await), [DENIED], "{pooling}: {sql}");
            wire.send(&create).await;
            assert_eq!(errors(&wire.until_ready().await), [DENIED], "{pooling}");
            let mut wire = client(&allowing).await;
            assert!(
                errors(&wire.query(sql).await).is_empty(),
                "{pooling}: {sql}"
            );
            let one = proxy(pooling, &format!("{GUARDED}, allow: [{what}]")).await;
            let mut wire = client(&one).await;
            for (other, sql) in SHARED {
                let refused = errors(&wire.query(sql).await);
                assert_eq!(
                    refused.is_empty(),
                    other == what,
                    "{pooling}, {what}: {sql}"
                );
            }
        }
    }
}

/// The schemas of a database have its channels and locks in common.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_with_a_schema_of_its_own_can_be_guarded_too() {
    let proxy = Setup {
        placements: format!(
            "watched: {{ tier: schema, server: shared, database: bridge, schema: \"t_{{tenant}}\", \
             login: {{ user: \"r_{{place}}\", password: {SECRET} }}, posture: guarded }}"
        ),
        tenants: "g1: { placement: watched, attributes: { place: b5 }, users: { app: { password: g1 } } }".into(),
        ..Setup::default()
    }
    .start()
    .await;
    let mut wire = Wire::tcp(proxy.address).await;
    let login = [("user", "app.g1"), ("database", "bridge")];
    wire.log_in(&login, "g1").await.expect("logs in");
    for (_, sql) in SHARED {
        assert_eq!(errors(&wire.query(sql).await), [DENIED], "{sql}");
    }
    assert_eq!(wire.column("SELECT 'served'").await, ["served"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_cannot_log_in_with_what_it_may_not_set() {
    let proxy = proxy("transaction", GUARDED).await;
    for (name, value, may) in [
        ("client_encoding", "SJIS", false),
        ("client_encoding", "LATIN1", true),
        ("role", "app", false),
        ("options", "-c standard_conforming_strings=off", false),
        ("options", "-c Session_Authorization=app", false),
        ("search_path", "public", true),
    ] {
        let mut wire = Wire::tcp(proxy.address).await;
        let login = [("user", "app.g0"), ("database", "app"), (name, value)];
        let refused = wire.log_in(&login, "g0").await.err();
        let refused = refused.map(|error| error.sqlstate());
        let expected = (!may).then(|| DENIED.to_owned());
        assert_eq!(refused, expected, "{name}={value}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn drivers_resets_and_settings_of_their_own_go_through() {
    for pooling in POOLINGS {
        let proxy = proxy(pooling, GUARDED).await;
        let mut wire = client(&proxy).await;
        for sql in [
            "DISCARD ALL",
            "RESET ALL",
            "SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL",
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED",
            "SET application_name = 'x'; SET TIME ZONE 'UTC'; SET client_encoding TO 'UTF8'",
            "SELECT set_config('my_app.user', 'me', false)",
            "SELECT 'SET app.tenant_id = 1'",
            "SET client_encoding = $$UTF8$$; SET NAMES 'LATIN1'; RESET client_encoding",
        ] {
            column(&wire.query(sql).await);
            assert_eq!(wire.column(OWN).await, ["g0"], "{pooling}: {sql}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn code_is_refused_unless_the_operator_allows_it() {
    let code = [
        "DO $$ BEGIN PERFORM 1; END $$",
        "DO LANGUAGE 'plpgsql' 'BEGIN EXECUTE ''SELECT 1''; END'",
        "SELECT query_to_xml('SELECT 1', true, true, '')",
    ];
    for (yaml, may) in [(GUARDED, false), ("posture: guarded, allow: [code]", true)] {
        let proxy = proxy("transaction", yaml).await;
        let mut wire = client(&proxy).await;
        for sql in code {
            let refused =
                wire.query(sql).await.iter().any(|frame| {
                    frame.tag == b'E' && frame.field(b'C').as_deref() == Some("42501")
                });
            assert_eq!(refused, !may, "{sql}");
        }
        assert_eq!(wire.column(OWN).await, ["g0"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stays_in_catalogs_is_refused_where_tenants_are_one_role() {
    for (yaml, may) in [
        (GUARDED, false),
        ("posture: guarded, allow: [catalogs]", true),
    ] {
        let proxy = proxy("session", yaml).await;
        let mut wire = client(&proxy).await;
        column(
            &wire
                .query("CREATE TEMP TABLE report AS SELECT 'secret' AS a")
                .await,
        );
        for sql in [
            "ANALYZE report",
            "VACUUM (ANALYZE) report",
            "COMMENT ON TABLE report IS 'secret'",
            "CREATE TEMP VIEW v AS SELECT 'secret' AS a",
            "CREATE TEMP TABLE t (a text DEFAULT 'secret')",
            "CREATE INDEX ON report (a) WHERE a = 'secret'",
            "ALTER TABLE report ADD CHECK (a = 'secret')",
        ] {
            let refused =
                wire.query(sql).await.iter().any(|frame| {
                    frame.tag == b'E' && frame.field(b'C').as_deref() == Some("42501")
                });
            assert_eq!(refused, !may, "{sql}");
        }
    }
}

/// What it shows of another value is refused, as in every posture; what code does is not read.
#[tokio::test(flavor = "multi_thread")]
async fn in_posture_plain_code_is_trusted() {
    let proxy = proxy("transaction", "posture: plain").await;
    let mut wire = client(&proxy).await;
    let set = "BEGIN; SET LOCAL app.tenant_id = 'other'; SELECT current_setting('app.tenant_id')";
    assert_eq!(errors(&wire.query(set).await), [DENIED]);
    assert_eq!(wire.column(OWN).await, ["g0"]);
    let code = "DO $$ BEGIN EXECUTE 'SET LOCAL app.tenant' || '_id = ''other'''; END $$";
    wire.query("BEGIN").await;
    wire.query(code).await;
    assert_eq!(wire.column(OWN).await, ["other"]);
    wire.query("COMMIT").await;
    assert_eq!(wire.column(OWN).await, ["g0"]);
    // By the protocol, too: other variables are the client's own.
    for (name, value, expected) in [
        ("app.tenant_id", "other", &[DENIED][..]),
        ("App.Tenant_Id", "g0", &[]),
        ("app.other", "other", &[]),
    ] {
        let call = function_call(2078, &[Some(name), Some(value), Some("f")]);
        wire.send(&call).await;
        assert_eq!(errors(&wire.until_ready().await), expected, "{name}");
        assert_eq!(wire.column(OWN).await, ["g0"]);
    }
}
