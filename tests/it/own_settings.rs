//! `tenants.*.settings`: each tenant has its own, whoever else uses the pool, and `EXPLAIN CONFIG`
//! says where each value comes from.

use std::collections::BTreeMap;
use std::path::Path;

use pgtenant::config::load_text;

use crate::harness::{Running, Setup, tenant, world};
use crate::wire::{Wire, column, errors};

/// `t00` and `t02` have the same, `t03` has others, `t01` none, and `t04` what the server refuses.
fn about(name: &str) -> &'static str {
    match name {
        "t00" | "t02" => "settings: { work_mem: 9MB, jit: \"off\" }",
        "t03" => {
            "settings: { work_mem: 17MB }, limits: { clients: 5 }, timeouts: { checkout: 7s }, weight: 3"
        }
        "t04" => "settings: { work_mem: much }",
        _ => "",
    }
}

async fn start(pooling: &'static str) -> Running {
    let setup = Setup {
        pooling,
        sections: "admin: { users: { root: { password: root } } }\ntimeouts: { statement: 30s, checkout: 3s }".into(),
        about,
        ..Setup::default()
    };
    setup.start().await
}

async fn shown(wire: &mut Wire) -> String {
    column(&wire.query("SHOW work_mem").await).concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_tenant_has_its_own_settings_and_reset_returns_to_them() {
    for pooling in ["transaction", "session"] {
        let proxy = start(pooling).await;
        let names = ["t00", "t01", "t02", "t03"];
        let expected = ["9MB", "4MB", "9MB", "17MB"];
        let mut wires = Vec::new();
        for name in names {
            wires.push(proxy.raw(&tenant(name)).await);
        }
        for round in 0..3 {
            for (at, wire) in wires.iter_mut().enumerate() {
                let case = format!("{pooling} {} in round {round}", names[at]);
                assert_eq!(shown(wire).await, expected[at], "{case}");
                assert_eq!(
                    column(&wire.query("SELECT current_setting('app.tenant_id')").await),
                    [names[at]],
                    "{case}"
                );
                wire.query("SET work_mem = '1MB'").await;
                assert_eq!(shown(wire).await, "1MB", "{case}");
                let reset = ["RESET work_mem", "DISCARD ALL", "RESET ALL"][round];
                assert_eq!(errors(&wire.query(reset).await), [""; 0], "{case}");
                assert_eq!(shown(wire).await, expected[at], "{case} after {reset}");
            }
        }
        let instances = proxy.proxy.app().instances();
        let pools = instances["shared"].pools();
        let of_app = pools.iter().filter(|(pool, _)| pool.key.database == "app");
        if pooling == "transaction" {
            assert_eq!(of_app.count(), 3, "equal settings are one pool");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_the_server_refuses_harm_nobody_else() {
    let proxy = start("transaction").await;
    let mut wire = Wire::tcp(proxy.address).await;
    let t04 = tenant("t04");
    let user = t04.user();
    let pairs = [("user", &*user), ("database", &*t04.database)];
    let is_in = wire.log_in(&pairs, &t04.password()).await.is_ok();
    let refused = !is_in || !errors(&wire.query("SELECT 1").await).is_empty();
    assert!(refused, "a value that is none");
    for name in ["t00", "t01", "t03"] {
        let mut wire = proxy.raw(&tenant(name)).await;
        assert_eq!(errors(&wire.query("SELECT 1").await), [""; 0], "{name}");
    }
}

/// Two tenants whose context is the same see the same rows: that they have other settings, and so
/// other connections, does not hide it.
#[tokio::test(flavor = "multi_thread")]
async fn other_settings_do_not_hide_that_two_tenants_have_the_same_context() {
    let yaml = Setup {
        about,
        ..Setup::default()
    }
    .yaml(world().await);
    let wrong = yaml.replace("app.tenant_id: \"{tenant}\"", "app.tenant_id: all");
    assert_ne!(yaml, wrong);
    let mistakes = load_text(&wrong, Path::new("."), &|_| None).expect_err("is a mistake");
    // The first of them is the one that the others are told to be like.
    for name in ["t01", "t02", "t03"] {
        let path = format!("tenants.{name}");
        let is_told = mistakes
            .iter()
            .any(|mistake| mistake.path == path && mistake.message.contains("same context"));
        assert!(is_told, "{name}: {mistakes:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_value_is_told_with_the_level_that_it_is_from() {
    let proxy = start("transaction").await;
    let mut wire = Wire::tcp(proxy.address).await;
    let pairs = [("user", "root"), ("database", "pgtenant")];
    wire.log_in(&pairs, "root").await.expect("logs in");
    for (name, rows) in [
        (
            "t03",
            &[
                ("placement", "free", "tenant"),
                ("tier", "pool", "placement"),
                ("server", "shared", "placement"),
                ("context.app.tenant_id", "t03", "placement"),
                ("pooling", "transaction", "default"),
                ("posture", "plain", "placement"),
                ("pool.size", "8", "placement"),
                ("weight", "3", "tenant"),
                ("limits.clients", "5", "tenant"),
                ("limits.active", "", "default"),
                ("timeouts.statement", "30s", "file"),
                ("timeouts.checkout", "7s", "tenant"),
                ("timeouts.connect", "5s", "default"),
                ("timeouts.idle_in_transaction", "10m", "default"),
                ("log.slow", "0", "default"),
                ("settings.work_mem", "17MB", "tenant"),
            ][..],
        ),
        (
            "t01",
            &[
                ("weight", "1", "default"),
                ("limits.clients", "7500", "default"),
                ("timeouts.checkout", "3s", "file"),
            ],
        ),
    ] {
        let frames = wire.query(&format!("EXPLAIN CONFIG FOR {name}")).await;
        let table = frames.iter().filter(|frame| frame.tag == b'D');
        let table: BTreeMap<_, _> = table
            .map(|row| {
                let cells = row.values();
                let cell = |at: usize| cells[at].clone().unwrap_or_default();
                (cell(0), (cell(1), cell(2)))
            })
            .collect();
        for (setting, value, from) in rows {
            let expected = ((*value).to_owned(), (*from).to_owned());
            assert_eq!(table[*setting], expected, "{name} {setting}");
        }
    }
    for wrong in [
        "EXPLAIN CONFIG FOR nobody",
        "EXPLAIN CONFIG",
        "EXPLAIN CONFIG t01",
    ] {
        assert!(!errors(&wire.query(wrong).await).is_empty(), "{wrong}");
    }
}
