//! What else than a variable may choose: roles, search_path, documents, functions.

use super::{BODIES, extended, log_in, of_each_tier, setup};
use crate::harness::{tenant, world};
use crate::wire::{Wire, bind, describe, errors, execute, parse, rows, sync};

const SECTIONS: &str = "applications:
  web:
    users: { web: { password: web-secret } }
    tenants: all
    home: free
    choose:
      variables: [app.tenant_id]
      role: \"tenant_{tenant}\"
      search_path: \"t_{tenant}\"
      json: { request.jwt.claims: /app/org }
      functions: { ways_local: 1, public.ways_session: { argument: 2, scope: session } }";

const OWN: &str = "SELECT coalesce(current_setting('app.tenant_id', true), '')";

async fn functions() {
    let sql = "CREATE OR REPLACE FUNCTION ways_local(text) RETURNS text LANGUAGE sql AS \
        $$ SELECT set_config('app.tenant_id', $1, true) $$;
        CREATE OR REPLACE FUNCTION ways_session(int, text) RETURNS text LANGUAGE sql AS \
        $$ SELECT set_config('app.tenant_id', $2, false) $$";
    for database in ["app", "db_d0"] {
        let made = world().await.shared.run(database, sql).await;
        made.expect("functions");
    }
}

async fn fails(wire: &mut Wire, sql: &str) -> String {
    errors(&wire.query(sql).await).concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_way_chooses_in_each_tier() {
    let proxy = setup(SECTIONS).start().await;
    let mut wire = log_in(&proxy, None).await;
    for tenant in of_each_tier(&proxy) {
        let name = &tenant.name;
        let document = format!("{{\"app\": {{\"org\": \"{name}\"}}}}");
        for (before, after) in [
            (format!("SET ROLE tenant_{name}"), "RESET ROLE"),
            (format!("SET SESSION ROLE 'tenant_{name}'"), "SET ROLE NONE"),
            (format!("BEGIN|SET LOCAL ROLE \"tenant_{name}\""), "COMMIT"),
            (
                format!("SELECT set_config('role', 'tenant_{name}', false)"),
                "SET ROLE TO DEFAULT",
            ),
            (
                format!("SET search_path TO t_{name}, public"),
                "RESET search_path",
            ),
            (
                format!("BEGIN|SET LOCAL search_path = 't_{name}', \"public\""),
                "ROLLBACK",
            ),
            (
                format!("BEGIN|SELECT set_config('search_path', '\"t_{name}\", public', true)"),
                "COMMIT",
            ),
            (
                format!("BEGIN|SET LOCAL request.jwt.claims = '{document}'"),
                "COMMIT",
            ),
            (
                format!(
                    "BEGIN|SELECT set_config('request.jwt.claims', '{document}', true), set_config('work_mem', '5MB', true)"
                ),
                "COMMIT",
            ),
            (
                format!("SET request.jwt.claims TO '{document}'"),
                "RESET request.jwt.claims",
            ),
        ] {
            for sql in before.split('|') {
                assert_eq!(fails(&mut wire, sql).await, "", "{sql}");
            }
            let frames = wire.query(BODIES).await;
            assert_eq!(
                rows(&frames),
                tenant.bodies(),
                "{before}: {:?}",
                errors(&frames)
            );
            assert_eq!(wire.column(OWN).await, [name.as_str()], "{before}");
            if before.contains("jwt") {
                let told = wire.column("SHOW request.jwt.claims").await;
                assert_eq!(told, [document.as_str()], "the document is there, too");
            }
            if before.contains("role") || before.contains("ROLE") {
                assert_eq!(wire.column("SHOW role").await, [format!("tenant_{name}")]);
            }
            assert_eq!(fails(&mut wire, after).await, "", "{after}");
            assert_eq!(wire.column(OWN).await, [""], "{before}; {after}");
            assert_eq!(
                rows(&wire.query(BODIES).await),
                [""; 0],
                "{before}; {after}"
            );
        }
        // By parameters, in a pipeline with what it is for.
        let path = format!("t_{name}, public");
        for (sql, value) in [
            ("SELECT set_config('search_path', $1, true)", &path),
            (
                "SELECT set_config('request.jwt.claims', $1, true)",
                &document,
            ),
        ] {
            wire.query("BEGIN").await;
            let batch = [extended(sql, &[Some(value)]), extended(BODIES, &[]), sync()];
            wire.send(&batch.concat()).await;
            let frames = wire.until_ready().await;
            assert_eq!(errors(&frames), [""; 0], "{name}: {sql}");
            assert_eq!(rows(&frames)[1..], tenant.bodies(), "{name}: {sql}");
            wire.query("COMMIT").await;
            assert_eq!(wire.column(OWN).await, [""], "{name}: {sql}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_choose_for_as_long_as_the_config_says() {
    functions().await;
    let proxy = setup(SECTIONS).start().await;
    let mut wire = log_in(&proxy, None).await;
    for name in ["t05", "d0"] {
        let tenant = proxy.home(&tenant(name));
        for call in [
            format!("SELECT ways_local('{name}')"),
            format!("SELECT public.ways_local('{name}'::text) AS x"),
        ] {
            wire.query("BEGIN").await;
            assert_eq!(fails(&mut wire, &call).await, "", "{call}");
            assert_eq!(rows(&wire.query(BODIES).await), tenant.bodies(), "{call}");
            wire.query("COMMIT").await;
            assert_eq!(wire.column(OWN).await, [""], "{call}");
        }
        let session = format!("SELECT ways_session(7, '{name}')");
        assert_eq!(fails(&mut wire, &session).await, "");
        for _ in 0..2 {
            assert_eq!(rows(&wire.query(BODIES).await), tenant.bodies());
        }
        wire.query("RESET app.tenant_id").await;
        // As drivers do: the types are asked for first.
        let sql = "SELECT ways_session($1, $2)";
        wire.send(&[parse("s", sql), describe(b'S', "s"), sync()].concat())
            .await;
        let frames = wire.until_ready().await;
        assert_eq!(errors(&frames), [""; 0]);
        assert!(
            frames.iter().any(|frame| frame.tag == b'T'),
            "it has a column"
        );
        wire.send(
            &[
                bind("", "s", &[Some("1"), Some(name)]),
                execute("", 0),
                sync(),
            ]
            .concat(),
        )
        .await;
        assert_eq!(errors(&wire.until_ready().await), [""; 0]);
        assert_eq!(rows(&wire.query(BODIES).await), tenant.bodies());
        wire.query("RESET app.tenant_id").await;
        wire.send(&[parse("s", ""), sync()].concat()).await;
        wire.until_ready().await;
        wire.query("DEALLOCATE s").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_say_for_whom_is_refused() {
    functions().await;
    let proxy = setup(SECTIONS).start().await;
    let mut wire = log_in(&proxy, None).await;
    for (sql, expected) in [
        ("SET ROLE postgres", "42501"),
        ("SET ROLE tenant_nobody", "42501"),
        ("SET search_path = t_nobody", "42501"),
        ("SET request.jwt.claims = '{}'", "0A000"),
        (
            "SET request.jwt.claims = '{\"app\": {\"org\": [\"t05\"]}}'",
            "0A000",
        ),
        ("SET request.jwt.claims = 't05'", "0A000"),
        ("SELECT ways_local('nobody')", "42501"),
        ("SELECT * FROM ways_local('t05')", "0A000"),
        ("SELECT ways_local(lower('T05'))", "0A000"),
        ("SELECT 1, ways_local('t05')", "0A000"),
        ("DO $$ BEGIN PERFORM ways_local('t05'); END $$", "0A000"),
        (
            "BEGIN; SET LOCAL app.tenant_id = 't05'; SELECT ways_local('t06'); COMMIT",
            "25001",
        ),
        (
            "BEGIN; SET LOCAL search_path = t_t05; SELECT 1; SELECT ways_local('t06'); COMMIT",
            "25001",
        ),
    ] {
        let found = fails(&mut wire, sql).await;
        assert_eq!(found, expected, "{sql}");
        wire.query("ROLLBACK").await;
        wire.query("RESET app.tenant_id").await;
        wire.query("RESET ROLE").await;
        assert_eq!(rows(&wire.query(BODIES).await), [""; 0], "{sql}");
    }
    wire.query("BEGIN").await;
    wire.query("SET LOCAL search_path = t_t05, public").await;
    assert_eq!(rows(&wire.query(BODIES).await), tenant("t05").bodies());
    assert_eq!(
        fails(&mut wire, "SET LOCAL search_path = t_t06, public").await,
        "25001"
    );
    wire.query("ROLLBACK").await;
}
