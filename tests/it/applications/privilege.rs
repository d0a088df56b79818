//! An application that acts for all tenants at once, and who acted for whom.

use pgtenant::audit::Kind;

use super::{BODIES, extended, log_in, setup};
use crate::audit::AuditFile;
use crate::harness::{Running, tenant};
use crate::wire::{Wire, errors, rows, sync};

const SECTIONS: &str = "applications:
  web:
    users: { web: { password: web-secret } }
    tenants: all
    home: free
    choose: { variables: [app.tenant_id] }
    all_tenants: { app.bypass_rls: ['on', all] }
  other:
    users: { other: { password: other-secret } }
    tenants: all
    home: free
    choose: { variables: [app.tenant_id] }";

const SHOWN: &str = "SELECT coalesce(current_setting('app.bypass_rls', true), '')";

async fn state(wire: &mut Wire, sql: &str) -> String {
    errors(&wire.query(sql).await).concat()
}

async fn others(proxy: &Running) -> [Wire; 2] {
    let mut other = Wire::tcp(proxy.address).await;
    let logged_in = other.log_in(&[("user", "other")], "other-secret").await;
    logged_in.expect("logs in");
    [other, proxy.raw(&tenant("t08")).await]
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_the_privilege_acts_for_all_tenants_at_home_and_nobody_else_does() {
    let proxy = setup(SECTIONS).start().await;
    let mut web = log_in(&proxy, None).await;
    let mut seen = 0;
    for (before, after) in [
        ("SET app.bypass_rls = 'on'", "RESET app.bypass_rls"),
        (
            "SELECT set_config('app.bypass_rls', 'all', false)",
            "SET app.bypass_rls TO off",
        ),
        ("BEGIN|SET LOCAL \"app\".Bypass_RLS TO on", "COMMIT"),
        (
            "BEGIN|SELECT set_config('app.bypass_rls', 'on', true)",
            "ROLLBACK",
        ),
        (
            "BEGIN|SET LOCAL app.tenant_id = 't08'|SET LOCAL app.bypass_rls = 'on'",
            "COMMIT",
        ),
    ] {
        for sql in before.split('|') {
            assert_eq!(state(&mut web, sql).await, "", "{sql}");
        }
        let shown = web.column(SHOWN).await;
        assert!(["on", "all"].contains(&&*shown[0]), "{before}: {shown:?}");
        seen += 1;
        let audited = proxy.proxy.app().audit.metrics().events(Kind::AllTenants);
        assert_eq!(audited, seen, "{before}");
        assert_eq!(state(&mut web, after).await, "", "{after}");
        let shown = web.column(SHOWN).await;
        assert!(["", "off"].contains(&&*shown[0]), "{after}: {shown:?}");
    }
    let by_parameter = "SELECT set_config('app.bypass_rls', $1, false)";
    for value in ["on", "off"] {
        web.send(&[extended(by_parameter, &[Some(value)]), sync()].concat())
            .await;
        assert_eq!(errors(&web.until_ready().await), [""; 0], "{value}");
        assert_eq!(web.column(SHOWN).await, [value]);
    }

    // Another value is nobody's, and these are nobody else's.
    assert_eq!(state(&mut web, "SET app.bypass_rls = 'yes'").await, "42501");
    for mut wire in others(&proxy).await {
        for (sql, expected) in [
            ("SET app.bypass_rls = 'on'", "42501"),
            ("SELECT set_config('app.bypass_rls', 'on', true)", "42501"),
            (
                "BEGIN; SET LOCAL app.bypass_rls TO all; SELECT 1; COMMIT",
                "42501",
            ),
            (
                "SELECT 1 FROM (SELECT set_config('app.bypass_rls', 'on', false)) x",
                "42501",
            ),
            ("SET app.bypass_rls = 'off'", ""),
            ("SET app.bypass_rls TO false", ""),
            ("SET app.bypass_rls TO DEFAULT", ""),
            ("RESET app.bypass_rls", ""),
        ] {
            let found = state(&mut wire, sql).await;
            assert!(
                found == expected || (expected == "42501" && found == "0A000"),
                "{sql}: {found}"
            );
            assert_eq!(state(&mut wire, "ROLLBACK").await, "", "{sql}");
            let shown = wire.column(SHOWN).await;
            assert!(
                ["", "off", "false"].contains(&&*shown[0]),
                "{sql}: {shown:?}"
            );
        }
        wire.send(&[extended(by_parameter, &[Some("on")]), sync()].concat())
            .await;
        assert_eq!(errors(&wire.until_ready().await), ["42501"]);
        wire.send(&[extended(by_parameter, &[Some("off")]), sync()].concat())
            .await;
        assert_eq!(errors(&wire.until_ready().await), [""; 0]);
        assert_eq!(wire.column(SHOWN).await, ["off"]);
    }
    for user in [&["app.t08", "t08-secret"][..], &["other", "other-secret"]] {
        let mut wire = Wire::tcp(proxy.address).await;
        let pairs = [("user", user[0]), ("options", "-c app.bypass_rls=on")];
        let error = wire.log_in(&pairs, user[1]).await.expect_err("refused");
        assert_eq!(error.sqlstate(), "42501");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn away_from_home_it_acts_for_one_tenant() {
    let proxy = setup(SECTIONS).start().await;
    let mut web = log_in(&proxy, None).await;
    for (name, expected) in [
        ("d0", "0A000"),
        ("acme", "0A000"),
        ("s1", "0A000"),
        ("t08", ""),
    ] {
        let choose = format!("SET app.tenant_id = '{name}'");
        for statements in [
            &[choose.as_str(), "SET app.bypass_rls = 'on'"][..],
            &["SET app.bypass_rls = 'on'", &choose, BODIES],
            &["BEGIN", "SET LOCAL app.bypass_rls = 'on'", &choose, BODIES],
            &[
                "BEGIN",
                &choose,
                "SELECT set_config('app.bypass_rls', 'on', true)",
            ],
        ] {
            let (last, before) = statements.split_last().expect("statements");
            for sql in before {
                assert_eq!(state(&mut web, sql).await, "", "{name}: {sql}");
            }
            assert_eq!(state(&mut web, last).await, expected, "{statements:?}");
            web.query("ROLLBACK").await;
            web.query("RESET app.tenant_id").await;
            assert_eq!(state(&mut web, "RESET app.bypass_rls").await, "");
            // Nothing is left of it.
            assert_eq!(state(&mut web, &choose).await, "");
            let frames = web.query(BODIES).await;
            assert_eq!(
                rows(&frames),
                proxy.home(&tenant(name)).bodies(),
                "{statements:?}"
            );
            web.query("RESET app.tenant_id").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_of_the_audit_says_who_acted_for_whom() {
    for (access, transactions) in [("logins", false), ("transactions", true)] {
        let file = AuditFile::new();
        let audit = file.section(&format!(", access: {access}"));
        let proxy = setup(&format!("{audit}{SECTIONS}")).start().await;
        let mut web = log_in(&proxy, None).await;
        let mut seen = 0;
        let login = file.next(&mut seen).await;
        assert_eq!(
            (&login["kind"], &login["detail"]),
            (&"access".into(), &"login".into())
        );
        assert_eq!(
            (&login["tenant"], &login["user"]),
            (&"web".into(), &"web".into())
        );
        for name in ["t08", "d0"] {
            web.query("BEGIN").await;
            web.query(&format!("SET LOCAL app.tenant_id = '{name}'"))
                .await;
            for _ in 0..2 {
                web.query(BODIES).await;
            }
            web.query("COMMIT").await;
            if !transactions {
                continue;
            }
            let event = file.next(&mut seen).await;
            assert_eq!(
                (&event["kind"], &event["detail"]),
                (&"access".into(), &"transaction".into())
            );
            assert_eq!(
                (&event["tenant"], &event["application"]),
                (&name.into(), &"web".into())
            );
            assert_eq!(
                (&event["user"], event["client"].is_u64()),
                (&"web".into(), true)
            );
            assert!(
                event["peer"]
                    .as_str()
                    .is_some_and(|peer| peer.starts_with("127.0.0.1:"))
            );
        }
        let _own = proxy.raw(&tenant("t08")).await;
        let login = file.next(&mut seen).await;
        assert_eq!(
            (&login["tenant"], &login["detail"]),
            (&"t08".into(), &"login".into())
        );
        assert!(login["application"].is_null());
    }
}
