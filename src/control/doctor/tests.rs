//! What needs no server: the plan, and the shape of the script.

use std::path::Path;

use super::*;
use crate::findings::{Fix, Place, Severity, Step};

fn config(tenants: usize) -> crate::config::Config {
    let mut text = "servers: { s: { host: s, max_connections: 9 } }\n\
        placements:\n  free: { tier: pool, server: s, database: app, login: { user: app }, \
        context: { app.region: eu, app.tenant_id: '{tenant}' } }\n  \
        own: { tier: schema, server: s, database: app, schema: 't_{tenant}', login: { user: 'r_{tenant}' } }\n  \
        empty: { tier: database, server: s, database: d, login: { user: d } }\ntenants:\n"
        .to_owned();
    for n in 0..tenants {
        for (kind, placement) in [("f", "free"), ("o", "own")] {
            text += &format!(
                "  {kind}{n}: {{ placement: {placement}, users: {{ u: {{ password: x }} }} }}\n"
            );
        }
    }
    crate::config::load_text(&text, Path::new(""), &|_| None).unwrap()
}

#[test]
fn a_place_is_inspected_once_and_of_many_only_some() {
    let plan = Plan::of(&config(1000), None, 10);
    assert_eq!(plan.targets.len(), 11);
    let pool = &plan.targets[0];
    assert_eq!((pool.tenants, &*pool.place.login), (1000, "app"));
    assert_eq!(pool.tenant_variables, ["app.tenant_id"]);
    assert_eq!(pool.other_variables, ["app.region"]);
    assert_eq!(pool.other_schemas().len(), 1000);
    let own = &plan.targets[1];
    assert_eq!(own.other_schemas().len(), 999);
    assert!(!own.by_policies() && own.login_places == 1);
    assert_eq!(plan.notes.len(), 2, "{:?}", plan.notes);
    let only = Plan::of(&config(3), Some("own"), 10);
    assert_eq!((only.targets.len(), only.notes.len()), (3, 0));
}

#[test]
fn the_script_is_in_order_and_names_cannot_break_out_of_it() {
    let fixing = |step, sql: &str, object: &str| Finding {
        severity: Severity::Critical,
        check: "x",
        object: object.to_owned(),
        problem: "p".to_owned(),
        why: "w",
        fix: Some(Fix {
            step,
            sql: vec![sql.to_owned()],
        }),
        advice: None,
    };
    let report = Report {
        place: Place {
            server: "s".to_owned(),
            database: "a'b".to_owned(),
            login: "l".to_owned(),
            schema: None,
        },
        placements: vec!["p".to_owned()],
        tier: crate::config::Tier::Pool,
        by_policies: true,
        tenants: 1,
        inspected_as: None,
        server_version: None,
        findings: vec![
            fixing(Step::Indexes, "INDEX", "t"),
            fixing(Step::Grants, "GRANT", "x\nDROP DATABASE y; --"),
            fixing(Step::Roles, "ROLE", "r"),
            fixing(Step::Roles, "ROLE", "r"),
        ],
        problem: None,
    };
    let script = script::of(&[report]);
    let lines: Vec<_> = script
        .lines()
        .filter(|l| !l.starts_with("--") && !l.starts_with("DO "))
        // The rest of a DO over several lines.
        .filter(|l| !l.starts_with(' ') && *l != "END $pgtenant$;")
        .collect();
    let path = "SET search_path = pg_catalog, pg_temp;";
    assert_eq!(
        lines,
        ["", path, "BEGIN;", "ROLE;", "GRANT;", "COMMIT;", "INDEX;"],
        "{script}"
    );
    assert!(script.contains("<> 'a''b' THEN"), "{script}");
}
