//! Applications: one login, and the tenant that it chooses by SQL is the route.

mod attacks;
mod crowd;
mod drivers;
mod places;
mod privilege;
mod programs;
mod tiers;
mod ways;

use crate::harness::{Running, Setup, Tenant, tenant};
use crate::wire::{Wire, bind, column, describe, errors, execute, parse, rows, sync};

const BODIES: &str = "SELECT body FROM items WHERE id < 900 ORDER BY id";

/// An application that may act for all tenants, and whose home is the pool.
pub const WEB: &str = "applications:
  web:
    users: { web: { password: web-secret } }
    tenants: all
    home: free
    choose: { variables: [app.tenant_id] }";

pub fn setup(sections: &str) -> Setup {
    Setup {
        sections: sections.to_owned(),
        ..Setup::default()
    }
}

pub async fn log_in(proxy: &Running, database: Option<&str>) -> Wire {
    let mut wire = Wire::tcp(proxy.address).await;
    let mut pairs = vec![("user", "web")];
    pairs.extend(database.map(|database| ("database", database)));
    let logged_in = wire.log_in(&pairs, "web-secret").await;
    logged_in.unwrap_or_else(|error| panic!("web: {error}"));
    wire
}

/// A tenant of each tier.
fn of_each_tier(proxy: &Running) -> Vec<Tenant> {
    ["t03", "b0", "v1", "d0", "acme", "c1", "s1", "t04"]
        .map(|name| proxy.home(&tenant(name)))
        .to_vec()
}

fn extended(sql: &str, values: &[Option<&str>]) -> Vec<u8> {
    [
        parse("", sql),
        bind("", "", values),
        describe(b'P', ""),
        execute("", 0),
    ]
    .concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tenant_that_is_set_is_the_route() {
    let proxy = setup(WEB).start().await;
    for database in [Some("web"), Some("app"), None] {
        let mut wire = log_in(&proxy, database).await;
        for tenant in of_each_tier(&proxy) {
            let name = &tenant.name;
            for (before, after) in [
                (
                    format!("SET app.tenant_id = '{name}'"),
                    "RESET app.tenant_id",
                ),
                (
                    format!("BEGIN|SET LOCAL app.tenant_id TO '{name}'"),
                    "COMMIT",
                ),
                (
                    format!("BEGIN READ ONLY|SELECT set_config('app.tenant_id', '{name}', true)"),
                    "ROLLBACK",
                ),
                (
                    format!("SELECT set_config('app.tenant_id', '{name}', false)"),
                    "SET app.tenant_id TO ''",
                ),
            ] {
                for statement in before.split('|') {
                    let frames = wire.query(statement).await;
                    assert_eq!(errors(&frames), [""; 0], "{name}: {statement}");
                }
                let frames = wire.query(BODIES).await;
                assert_eq!(errors(&frames), [""; 0], "{name}: {before}");
                assert_eq!(rows(&frames), tenant.bodies(), "{name}: {before}");
                assert_eq!(wire.column("SHOW app.tenant_id").await, [name.as_str()]);
                let frames = wire.query("SELECT current_setting('app.tenant_id')").await;
                assert_eq!(column(&frames), [name.as_str()], "{name}: {before}");
                assert_eq!(
                    errors(&wire.query(after).await),
                    [""; 0],
                    "{name}: {before}"
                );
                let frames = wire.query(BODIES).await;
                assert_eq!(
                    (rows(&frames).len(), errors(&frames).len()),
                    (0, 0),
                    "{name}: {before}"
                );
            }
            // By a parameter, in one pipeline with what it is for.
            let batch = [
                extended(
                    "SELECT set_config('app.tenant_id', $1, true)",
                    &[Some(name)],
                ),
                extended(BODIES, &[]),
                sync(),
            ];
            wire.send(&batch.concat()).await;
            let frames = wire.until_ready().await;
            assert_eq!(errors(&frames), [""; 0], "{name}");
            let mut expected = vec![name.clone()];
            expected.extend(tenant.bodies());
            assert_eq!(rows(&frames), expected);
            // In a text of several statements.
            let text = format!("BEGIN; SET LOCAL app.tenant_id = '{name}'; {BODIES}; COMMIT");
            let frames = wire.query(&text).await;
            assert_eq!(errors(&frames), [""; 0], "{name}: {text}");
            assert_eq!(rows(&frames), tenant.bodies(), "{name}: {text}");
            // With other settings beside it.
            let text = format!(
                "SELECT set_config('statement_timeout', '10s', false), set_config('app.tenant_id', '{name}', false)"
            );
            let frames = wire.query(&text).await;
            assert_eq!(errors(&frames), [""; 0], "{name}: {text}");
            assert_eq!(wire.column(BODIES).await, tenant.bodies(), "{name}: {text}");
            assert_eq!(
                wire.column("SHOW statement_timeout").await,
                ["10s"],
                "{name}"
            );
            wire.query("RESET app.tenant_id").await;
            wire.query("RESET statement_timeout").await;
        }
    }
}

/// The SQLSTATE of the first error, or nothing.
async fn state(wire: &mut Wire, sql: &str) -> String {
    let frames = wire.query(sql).await;
    let error = frames.iter().find(|frame| frame.tag == b'E');
    error.map(crate::wire::Frame::sqlstate).unwrap_or_default()
}

/// What ReadyForQuery says.
async fn status(wire: &mut Wire, sql: &str) -> char {
    let frames = wire.query(sql).await;
    char::from(frames.last().expect("a reply").body[0])
}

const PARTLY: &str = "applications:
  web:
    users: { web: { password: web-secret } }
    tenants: [t00, b0]
    choose: { variables: [app.tenant_id] }
  every:
    users: { every: { password: x } }
    tenants: { placements: [pro, free] }
    home: free
    choose: { variables: [my.tenant, app.tenant_id] }";

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_is_refused_and_nothing_is_half_done() {
    let proxy = setup(PARTLY).start().await;
    let mut wire = log_in(&proxy, None).await;
    // Without a home, nothing is served until somebody is chosen.
    assert_eq!(state(&mut wire, BODIES).await, "42501");
    assert_eq!(status(&mut wire, "BEGIN").await, 'T');
    assert_eq!(state(&mut wire, BODIES).await, "42501");
    assert_eq!(state(&mut wire, "SET app.tenant_id = 't00'").await, "25P02");
    assert_eq!(status(&mut wire, "COMMIT").await, 'I');
    // The same words for a tenant that there is not and for one of others.
    let mut said = Vec::new();
    for name in ["t01", "nobody", "T00", "t00 ", "t00\u{e9}", "t00';--"] {
        let sql = format!("SET app.tenant_id = '{}'", name.replace('\'', "''"));
        let frames = wire.query(&sql).await;
        let error = frames.iter().find(|frame| frame.tag == b'E').expect(name);
        assert_eq!(error.sqlstate(), "42501", "{name}");
        let message = error.field(b'M').unwrap_or_default().replace(name, "…");
        said.push((message, error.field(b'H')));
        assert_eq!(state(&mut wire, BODIES).await, "42501", "{name}");
    }
    said.dedup();
    assert_eq!(said.len(), 1, "{said:?}");
    // After a choice that failed, nothing of the one before.
    assert_eq!(state(&mut wire, "SET app.tenant_id = 't00'").await, "");
    assert_eq!(wire.column(BODIES).await, tenant("t00").bodies());
    assert_eq!(state(&mut wire, "SET app.tenant_id = 't01'").await, "42501");
    assert_eq!(state(&mut wire, BODIES).await, "42501");
    assert_eq!(state(&mut wire, "SET app.tenant_id = 'b0'").await, "");
    assert_eq!(wire.column(BODIES).await, tenant("b0").bodies());
    // A second tenant in a transaction that is served.
    for second in [
        "SET app.tenant_id = 't00'",
        "SET LOCAL app.tenant_id = 't00'",
        "SELECT set_config('app.tenant_id', 't00', true)",
        "SELECT set_config('a.b', '', true), set_config('app.tenant_id', 't00', true)",
        "SELECT 1; SET app.tenant_id = 't00'; SELECT 2",
    ] {
        assert_eq!(status(&mut wire, "BEGIN").await, 'T');
        assert_eq!(wire.column(BODIES).await, tenant("b0").bodies());
        assert_eq!(state(&mut wire, second).await, "25001", "{second}");
        assert_eq!(state(&mut wire, BODIES).await, "25P02", "{second}");
        assert_eq!(status(&mut wire, "ROLLBACK").await, 'I');
        assert_eq!(state(&mut wire, "SET app.tenant_id = 'b0'").await, "");
    }
    // What is reset in it is nobody's, and not served.
    wire.query("BEGIN").await;
    wire.query(BODIES).await;
    assert_eq!(state(&mut wire, "RESET app.tenant_id").await, "");
    assert_eq!(state(&mut wire, BODIES).await, "25001");
    wire.query("ROLLBACK").await;
    // What cannot be understood.
    for unclear in [
        "SELECT set_config('app.tenant_id', lower('T00'), true)",
        "SELECT set_config('app.' || 'tenant_id', 't00', true)",
        "SELECT set_config('app.tenant_id', body, true) FROM items",
        "WITH x AS (SELECT set_config('app.tenant_id', 't00', true)) SELECT * FROM x",
        "DO $$ BEGIN PERFORM set_config('app.tenant_id', 't00', false); END $$",
        "SET app.tenant_id FROM CURRENT",
        "PREPARE x AS SELECT set_config('app.tenant_id', 't00', true)",
        "SELECT 1; SELECT set_config(/* app.tenant_id */ U&'app!002etenant_id' UESCAPE '!', 't00', true)",
    ] {
        let state = state(&mut wire, unclear).await;
        assert_eq!(state, "0A000", "{unclear}");
        assert_eq!(
            wire.column(BODIES).await,
            tenant("b0").bodies(),
            "{unclear}"
        );
    }
    // By extended messages, up to the Sync.
    let batch = [
        extended(
            "SELECT set_config('app.tenant_id', $1, true)",
            &[Some("t01")],
        ),
        extended(BODIES, &[]),
        sync(),
    ];
    wire.send(&batch.concat()).await;
    let frames = wire.until_ready().await;
    assert_eq!((errors(&frames).len(), rows(&frames).len()), (1, 0));
    assert_eq!(state(&mut wire, BODIES).await, "42501");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_of_an_application_is_no_tenants() {
    let proxy = setup(PARTLY).start().await;
    for (user, password, database, expected) in [
        ("web", "web-secret", Some("web"), ""),
        ("web", "web-secret", None, ""),
        ("every", "x", Some("app"), ""),
        ("every", "x", Some("every"), ""),
        ("every", "web-secret", Some("every"), "28P01"),
        ("web", "web-secret", Some("every"), "28P01"),
        // It is home to nobody, so its name means nothing.
        ("web", "web-secret", Some("app"), "28P01"),
        ("web", "web-secret", Some("t00"), "28P01"),
        ("web.t00", "web-secret", Some("web"), "28P01"),
        ("app", "t00-secret", Some("web"), "28P01"),
    ] {
        let mut wire = Wire::tcp(proxy.address).await;
        let mut pairs = vec![("user", user)];
        pairs.extend(database.map(|database| ("database", database)));
        let answer = wire.log_in(&pairs, password).await;
        let state = answer.err().map(|error| error.sqlstate());
        assert_eq!(state.unwrap_or_default(), expected, "{user} {database:?}");
    }
}

/// What an application has by several variables, and where the placement has none.
#[tokio::test(flavor = "multi_thread")]
async fn the_variables_of_an_application_are_there_in_every_tier() {
    let proxy = setup(PARTLY).start().await;
    let mut wire = Wire::tcp(proxy.address).await;
    wire.log_in(&[("user", "every")], "x").await.unwrap();
    let both = "SELECT current_setting('my.tenant', true) || ' ' || current_setting('app.tenant_id', true)";
    for name in ["b1", "t05", "b0", "t05"] {
        wire.query(&format!("SET my.tenant = '{name}'")).await;
        assert_eq!(wire.column(both).await, [format!("{name} {name}")]);
        assert_eq!(wire.column(BODIES).await, tenant(name).bodies());
    }
    // The tenants of other placements are not its own.
    assert_eq!(state(&mut wire, "SET my.tenant = 'd0'").await, "42501");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ties_a_session_to_a_tenant_is_told() {
    let proxy = setup(WEB).start().await;
    let mut wire = log_in(&proxy, None).await;
    wire.query("SET app.tenant_id = 'd0'").await;
    assert_eq!(state(&mut wire, "CREATE TEMP TABLE mine (a int)").await, "");
    assert_eq!(state(&mut wire, "INSERT INTO mine VALUES (1)").await, "");
    assert_eq!(state(&mut wire, "SET app.tenant_id = 'd1'").await, "25001");
    assert_eq!(state(&mut wire, "SET app.tenant_id = 'd0'").await, "");
    assert_eq!(wire.column("SELECT a FROM mine").await, ["1"]);
    assert_eq!(state(&mut wire, "DROP TABLE mine").await, "");
    assert_eq!(state(&mut wire, "SET app.tenant_id = 'd1'").await, "");
    assert_eq!(wire.column(BODIES).await, tenant("d1").bodies());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_between_two_transactions_is_not_noticed() {
    let world = crate::harness::world().await;
    let moved = "m0: { placement: free, users: { app: { password: x } } }";
    let at = |placement: &str| {
        Setup {
        sections: WEB.to_owned(),
        tenants: moved.replace("free", placement),
        placements: "later: { tier: database, server: shared, database: \"db_d5\", login: { user: db_d5, password: secret } }".to_owned(),
        ..Setup::default()
    }
    };
    let without_d5 = || {
        let mut tenants = crate::harness::all_tenants();
        tenants.retain(|tenant| tenant.name != "d5");
        tenants
    };
    let proxy = Running::start(&at("free").yaml_for(world, &without_d5()));
    let mut wire = log_in(&proxy, None).await;
    wire.query("SET app.tenant_id = 'm0'").await;
    wire.send(&[parse("q", "SELECT current_database()"), sync()].concat())
        .await;
    wire.until_ready().await;
    let named = [bind("", "q", &[]), execute("", 0), sync()].concat();
    for (placement, database) in [("free", "app"), ("later", "db_d5"), ("free", "app")] {
        proxy.reload(&at(placement).yaml_for(world, &without_d5()));
        assert_eq!(wire.column("SELECT current_database()").await, [database]);
        assert_eq!(
            wire.column("SELECT current_setting('app.tenant_id')").await,
            ["m0"]
        );
        wire.send(&named).await;
        let frames = wire.until_ready().await;
        assert_eq!(column(&frames), [database], "{placement}");
    }
    // A tenant that is gone is refused, and the others are served.
    proxy.reload(&setup(WEB).yaml_for(world, &without_d5()));
    assert_eq!(state(&mut wire, "SELECT 1").await, "42501");
    assert_eq!(state(&mut wire, "SET app.tenant_id = 't00'").await, "");
    assert_eq!(wire.column(BODIES).await, tenant("t00").bodies());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_begins_the_transaction_as_it_was_said() {
    let proxy = setup(WEB).start().await;
    let mut wire = log_in(&proxy, None).await;
    for (begin, name, expected) in [
        (
            "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY",
            "transaction_isolation",
            "serializable",
        ),
        (
            "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY",
            "transaction_read_only",
            "on",
        ),
        (
            "START TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ WRITE",
            "transaction_isolation",
            "repeatable read",
        ),
        (
            "BEGIN|SET TRANSACTION READ ONLY",
            "transaction_read_only",
            "on",
        ),
        ("BEGIN|SET LOCAL work_mem = '7MB'", "work_mem", "7MB"),
        (
            "BEGIN|SAVEPOINT \"A\"|SET LOCAL work_mem = '7MB'|ROLLBACK TO \"A\"|RELEASE \"A\"",
            "work_mem",
            "4MB",
        ),
        ("BEGIN", "transaction_isolation", "read committed"),
    ] {
        for said in begin.split('|') {
            assert_eq!(status(&mut wire, said).await, 'T', "{begin}");
        }
        assert_eq!(state(&mut wire, "SET LOCAL app.tenant_id = 'b0'").await, "");
        assert_eq!(
            wire.column(&format!("SHOW {name}")).await,
            [expected],
            "{begin}"
        );
        assert_eq!(wire.column(BODIES).await, tenant("b0").bodies());
        assert_eq!(status(&mut wire, "COMMIT").await, 'I');
    }
    // What does not begin as it was said is told with the first statement, and nothing of it is
    // run.
    for said in [
        "BEGIN",
        "SET LOCAL work_mem = 'much'",
        "SET LOCAL app.tenant_id = 't00'",
    ] {
        assert_eq!(state(&mut wire, said).await, "");
    }
    let frames = wire.query("INSERT INTO plain VALUES (1)").await;
    assert_eq!(errors(&frames).len(), 1);
    assert_eq!(frames.last().expect("ready").body, b"E");
    assert_eq!(state(&mut wire, "SELECT 1").await, "25P02");
    assert_eq!(status(&mut wire, "ROLLBACK").await, 'I');
    assert_eq!(wire.column("SELECT 1").await, ["1"]);
}

/// A login of a tenant's own may say whose it is, and nothing else; the default of its variable is
/// what it is. The END of a function in standard SQL ends no transaction.
#[tokio::test(flavor = "multi_thread")]
async fn a_function_in_standard_sql_is_one_statement() {
    let proxy = setup(WEB).start().await;
    let mut wire = log_in(&proxy, None).await;
    let create = "CREATE FUNCTION pg_temp.two() RETURNS int LANGUAGE sql \
        BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END AS end; SELECT 2; END";
    for text in [
        format!("BEGIN; SET LOCAL app.tenant_id = 't00'; {create}; SELECT pg_temp.two(); ROLLBACK"),
        format!("BEGIN; {create}; SELECT pg_temp.two(); ROLLBACK"),
    ] {
        assert_eq!(column(&wire.query(&text).await), ["2"], "{text}");
        let frames = wire.query("SHOW transaction_isolation").await;
        assert_eq!(frames.last().expect("ready").body, b"I", "{text}");
    }
    for text in ["BEGIN", "SET LOCAL app.tenant_id = 't00'", create] {
        assert_eq!(state(&mut wire, text).await, "", "{text}");
    }
    assert_eq!(wire.column("SELECT pg_temp.two()").await, ["2"]);
    assert_eq!(wire.column("SHOW app.tenant_id").await, ["t00"]);
    assert_eq!(status(&mut wire, "SELECT 1").await, 'T');
    assert_eq!(status(&mut wire, "ROLLBACK").await, 'I');
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_own_user_sets_its_own_value_and_no_other() {
    let all = ["transaction", "session"]
        .map(|pooling| ["plain", "guarded"].map(|posture| (pooling, posture)));
    for (pooling, posture) in all.into_iter().flatten() {
        let setup = Setup {
            pooling,
            ..Setup::default()
        };
        let world = crate::harness::world().await;
        let yaml = setup.yaml(world);
        let proxy = Running::start(&yaml.replace(
            "posture: plain, context: { app.tenant_id",
            &format!("posture: {posture}, context: {{ app.tenant_id"),
        ));
        let a = tenant("t06");
        let mut wire = proxy.raw(&a).await;
        for (sql, expected) in [
            ("SET app.tenant_id = 't06'", ""),
            ("BEGIN; SET LOCAL app.tenant_id TO $$t06$$; COMMIT", ""),
            ("SELECT set_config('app.tenant_id', 't06', true)", ""),
            (
                "SELECT set_config('work_mem', '5MB', true), set_config('App.Tenant_id', 't06', false)",
                "",
            ),
            ("SET app.tenant_id = 't07'", "42501"),
            ("SELECT set_config('app.tenant_id', 't07', true)", "42501"),
            (
                "SELECT set_config('app.tenant_id', 't06', true), set_config('app.tenant_id', 't07', true)",
                "42501",
            ),
            (
                "SET app.tenant_id = 't06'; SET app.tenant_id = 't07'",
                "42501",
            ),
            (
                "SET app.tenant_id = 't06'; SELECT set_config('app.tenant_id', lower('T07'), true)",
                "42501",
            ),
            ("SET app.tenant_id = 't06'; SET ROLE postgres", "42501"),
            ("RESET app.tenant_id", ""),
            ("BEGIN; SET LOCAL \"app\".tenant_id TO DEFAULT; COMMIT", ""),
            ("SET app.tenant_id TO ''; SELECT 1", ""),
            ("RESET app.tenant_id; SET app.tenant_id = 't07'", "42501"),
            (
                "SELECT set_config('app.tenant_id', '', false), set_config('a.b', '', true)",
                "",
            ),
            ("SELECT set_config('app.tenant_id', NULL, false) AS x", ""),
            ("RESET ALL", ""),
        ] {
            assert_eq!(
                state(&mut wire, sql).await,
                expected,
                "{pooling} {posture}: {sql}"
            );
            assert_eq!(
                wire.column(BODIES).await,
                a.bodies(),
                "{pooling} {posture}: {sql}"
            );
            let shown = wire.column("SHOW app.tenant_id").await;
            assert_eq!(shown, ["t06"], "{pooling} {posture}: {sql}");
        }
        // What is answered is what PostgreSQL answers.
        for (sql, tag) in [
            ("RESET app.tenant_id", "RESET"),
            ("SET app.tenant_id TO DEFAULT", "SET"),
        ] {
            let frames = wire.query(sql).await;
            let told = [tag.as_bytes(), b"\0"].concat();
            assert_eq!((frames[0].tag, &frames[0].body), (b'C', &told), "{sql}");
            assert_eq!(frames.len(), 2, "{sql}");
            wire.send(&[extended(sql, &[]), sync()].concat()).await;
            let frames = wire.until_ready().await;
            let complete = frames.iter().find(|frame| frame.tag == b'C');
            assert_eq!(complete.map(|frame| &frame.body), Some(&told), "{sql}");
        }
        let by_parameter = "SELECT set_config('app.tenant_id', $1, true)";
        let reuse = [
            parse("own", by_parameter),
            bind("", "own", &[Some("t06")]),
            execute("", 0),
            sync(),
            bind("", "own", &[Some("t07")]),
            execute("", 0),
            sync(),
        ];
        for (sent, expected) in [
            (
                [extended(by_parameter, &[Some("t06")]), sync()].concat(),
                &[""; 1][..],
            ),
            (
                [extended(by_parameter, &[Some("t07")]), sync()].concat(),
                &["42501"],
            ),
            ([extended(by_parameter, &[None]), sync()].concat(), &[""]),
            (
                [extended(by_parameter, &[Some("")]), sync()].concat(),
                &[""],
            ),
            (
                [
                    extended(
                        "SELECT set_config($1, $2, $3)",
                        &[Some("app.tenant_id"), Some("t07"), Some("t")],
                    ),
                    sync(),
                ]
                .concat(),
                &["42501"],
            ),
            (reuse.concat(), &["", "42501"]),
        ] {
            wire.send(&sent).await;
            for expected in expected {
                let frames = wire.until_ready().await;
                let error = frames.iter().find(|frame| frame.tag == b'E');
                let state = error.map(crate::wire::Frame::sqlstate).unwrap_or_default();
                assert_eq!(state, *expected, "{pooling} {posture}");
            }
            assert_eq!(wire.column(BODIES).await, a.bodies());
            assert_eq!(wire.column("SHOW app.tenant_id").await, ["t06"]);
        }
        // SQL has other parameters for it, which nobody looks at.
        let refused = state(&mut wire, "EXECUTE own('t07')").await;
        assert!(
            ["42501", "26000"].contains(&&*refused),
            "{pooling} {posture}: {refused}"
        );
        assert_eq!(wire.column(BODIES).await, a.bodies());
        // A statement of the same name that sets nothing may have any parameters.
        let other = [
            parse("", by_parameter),
            sync(),
            parse("", "SELECT $1::text"),
            bind("", "", &[Some("t07")]),
            execute("", 0),
            sync(),
        ]
        .concat();
        for sent in [
            other.clone(),
            [
                parse("", "SELECT $1::text"),
                bind("", "", &[Some("t07")]),
                execute("", 0),
                sync(),
            ]
            .concat(),
        ] {
            wire.send(&sent).await;
            let mut answers = wire.until_ready().await;
            if sent == other {
                answers = wire.until_ready().await;
            }
            // In a pipeline it is not known in time which of the two there is.
            let is_certain = pooling == "transaction" || sent != other;
            if is_certain {
                assert_eq!(rows(&answers), ["t07"], "{pooling} {posture}");
            }
        }
    }
}
