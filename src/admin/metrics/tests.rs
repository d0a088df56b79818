use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::*;
use crate::admin::testing::{CONFIG, app};
use crate::backend::health::Report;
use crate::config::{Login, PoolKey, PoolLimits};
use crate::frontend::attempts;

/// What a strict reader of the format makes of `text`: the value of each series.
fn parse(text: &str) -> HashMap<String, f64> {
    let mut series = HashMap::new();
    let mut families = HashSet::new();
    let (mut family, mut kind) = (String::new(), String::new());
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if line == "# EOF" {
            assert_eq!(lines.peek(), None);
            return series;
        }
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, words) = help.split_once(' ').unwrap();
            assert!(families.insert(name.to_owned()), "{name} twice");
            assert!(name.starts_with("pgtenant_") && !words.is_empty(), "{line}");
            name.clone_into(&mut family);
            let announced = lines.next().unwrap();
            let announced = announced.strip_prefix("# TYPE ").unwrap();
            kind = announced
                .strip_prefix(&format!("{name} "))
                .unwrap()
                .to_owned();
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap();
        let value: f64 = value.parse().unwrap();
        let (metric, labels) = match name.split_once('{') {
            Some((metric, labels)) => (metric, labels.strip_suffix('}').unwrap()),
            None => (name, ""),
        };
        let names = labels_of(labels);
        let suffix = metric.strip_prefix(&family).unwrap();
        let bucket = names.contains(&"le".to_owned());
        let fits = match kind.as_str() {
            "counter" => suffix == "_total",
            "gauge" => suffix.is_empty(),
            "info" => suffix == "_info",
            "histogram" => (suffix == "_bucket" && bucket) || ["_sum", "_count"].contains(&suffix),
            other => panic!("{other}"),
        };
        assert!(fits, "{kind} {line}");
        assert!(series.insert(name.to_owned(), value).is_none(), "{line}");
    }
    panic!("no end")
}

/// Names of the labels; the values must be quoted and escaped.
fn labels_of(mut labels: &str) -> Vec<String> {
    let mut names = Vec::new();
    while !labels.is_empty() {
        let (name, rest) = labels.split_once("=\"").unwrap();
        assert!(
            name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'),
            "{name}"
        );
        names.push(name.to_owned());
        let mut escaped = false;
        let end = rest.find(|c| {
            let ends = c == '"' && !escaped;
            assert!(!escaped || "\\\"n".contains(c), "{rest}");
            escaped = c == '\\' && !escaped;
            ends
        });
        let rest = &rest[end.unwrap() + 1..];
        labels = rest.strip_prefix(',').unwrap_or(rest);
        assert!(labels.is_empty() || labels.len() < rest.len(), "{rest}");
    }
    names
}

#[tokio::test]
async fn every_line_is_valid_and_every_number_where_it_belongs() {
    let app = app(CONFIG, None);
    let globex = app.config().tenants.get("globex").unwrap().clone();
    let seen = app.tenant(&globex.id);
    seen.metrics.logins.add(3);
    seen.metrics.received.add(100);
    for us in [50, 100, 2_000, 60_000_000] {
        seen.metrics.transactions.record(Duration::from_micros(us));
    }
    seen.metrics.statements.record(Duration::from_micros(700));
    seen.metrics.login_times.record(Duration::from_millis(20));
    seen.metrics.audited.add(2);
    app.metrics.accepted.add(4);
    attempts::note_cancel(&app, ([127, 0, 0, 1], 1).into());
    app.pool(&globex.route).unwrap();
    let instances = app.instances();
    let instance = instances.get("other").unwrap();
    // Two pools that differ in what is no label are one series; names may hold anything.
    for path in ["a", "b"] {
        let key = PoolKey {
            server: instance.server().name.clone(),
            database: "a\"b\\c\nd".to_owned(),
            login: Arc::new(Login {
                user: "ü, {x=\"1\"}".to_owned(),
                password: None,
            }),
            startup: vec![("search_path".to_owned(), path.to_owned())],
            has_own: false,
            application: None,
        };
        let limits = PoolLimits {
            min: 0,
            size: 8,
            reserve: 0,
        };
        instance.pool(&key, limits);
    }
    instance.health.set(Report {
        state: State::Down,
        ..Report::default()
    });

    let text = encode(app.clone()).unwrap();
    let series = parse(&text);
    let tenant = "tenant=\"globex\",placement=\"shared\"";
    for (name, value) in [
        (
            "pgtenant_connections_accepted_total".to_owned(),
            4.0,
        ),
        (format!("pgtenant_tenant_logins_total{{{tenant}}}"), 3.0),
        (
            format!("pgtenant_tenant_received_bytes_total{{{tenant}}}"),
            100.0,
        ),
        (format!("pgtenant_tenant_clients{{{tenant}}}"), 0.0),
        (
            format!("pgtenant_tenant_transaction_seconds_bucket{{le=\"0.0001\",{tenant}}}"),
            2.0,
        ),
        (
            format!("pgtenant_tenant_transaction_seconds_bucket{{le=\"30.0\",{tenant}}}"),
            3.0,
        ),
        (
            format!("pgtenant_tenant_transaction_seconds_bucket{{le=\"+Inf\",{tenant}}}"),
            4.0,
        ),
        (
            format!("pgtenant_tenant_transaction_seconds_count{{{tenant}}}"),
            4.0,
        ),
        (
            format!("pgtenant_tenant_statement_seconds_bucket{{le=\"0.001\",{tenant}}}"),
            1.0,
        ),
        (
            format!("pgtenant_tenant_statement_seconds_sum{{{tenant}}}"),
            0.0007,
        ),
        (
            format!("pgtenant_tenant_login_seconds_bucket{{le=\"0.01\",{tenant}}}"),
            0.0,
        ),
        (
            format!("pgtenant_tenant_login_seconds_count{{{tenant}}}"),
            1.0,
        ),
        (format!("pgtenant_tenant_wait_seconds_count{{{tenant}}}"), 0.0),
        (
            "pgtenant_server_max_connections{server=\"main\"}".to_owned(),
            5.0,
        ),
        ("pgtenant_server_up{server=\"other\"}".to_owned(), 0.0),
        (
            "pgtenant_pool_size{server=\"other\",database=\"a\\\"b\\\\c\\nd\",user=\"ü, {x=\\\"1\\\"}\"}"
                .to_owned(),
            16.0,
        ),
        ("pgtenant_draining".to_owned(), 0.0),
        ("pgtenant_worker_clients{worker=\"0\"}".to_owned(), 0.0),
        (
            "pgtenant_server_moves_total{server=\"main\"}".to_owned(),
            0.0,
        ),
        (
            "pgtenant_audit_events_total{kind=\"cancel_key\"}".to_owned(),
            1.0,
        ),
        (
            "pgtenant_audit_dropped_total{reason=\"rate\"}".to_owned(),
            0.0,
        ),
        ("pgtenant_audit_write_failures_total".to_owned(), 0.0),
        (
            format!("pgtenant_tenant_audit_events_total{{{tenant}}}"),
            2.0,
        ),
    ] {
        assert_eq!(series.get(&name), Some(&value), "{name}\n{text}");
    }
    assert!(
        !series.contains_key("pgtenant_server_up{server=\"main\"}"),
        "health that is not known is not shown"
    );
    assert!(!text.contains("acme"), "a tenant that was not seen");
}

#[tokio::test]
async fn only_so_many_tenants_have_series_of_their_own_and_the_others_are_summed_up() {
    let app = app(&format!("metrics: {{ tenants: 1 }}\n{CONFIG}"), None);
    let tenants = ["globex", "acme", "gone"].map(|name| {
        let tenant = app.tenant(&crate::id::TenantId::new(name).unwrap());
        tenant.metrics.logins.add(2);
        tenant.metrics.waits.record(Duration::from_millis(3));
        tenant
    });
    tenants[1].metrics.logins.add(5);
    (tenants[0].metrics.statements).record(Duration::from_secs(1));
    let text = encode(app.clone()).unwrap();
    let series = parse(&text);
    let value = |name: &str| series.get(name).copied();
    // The busiest has its name.
    let named = "tenant=\"globex\",placement=\"shared\"";
    let others = "tenant=\"\",placement=\"\"";
    let logins = |labels: &str| value(&format!("pgtenant_tenant_logins_total{{{labels}}}"));
    assert_eq!((logins(named), logins(others)), (Some(2.0), Some(9.0)));
    let waits = format!("pgtenant_tenant_wait_seconds_count{{{others}}}");
    assert_eq!(value(&waits), Some(2.0));
    assert!(!text.contains("acme") && !text.contains("gone"), "{text}");
}

/// What a scrape of a fleet is: less than ten thousand series, each valid.
#[tokio::test]
async fn a_hundred_thousand_tenants_and_a_thousand_pools_are_less_than_ten_thousand_series() {
    let app = app(CONFIG, None);
    for number in 0..100_000 {
        let id = crate::id::TenantId::new(&format!("t{number}")).unwrap();
        app.tenant(&id).metrics.logins.add(1);
    }
    let instances = app.instances();
    let instance = instances.get("other").unwrap();
    let limits = PoolLimits {
        min: 0,
        size: 2,
        reserve: 0,
    };
    for number in 0..1000 {
        let key = PoolKey {
            server: instance.server().name.clone(),
            database: format!("db{number}"),
            login: Arc::new(Login {
                user: "app".to_owned(),
                password: None,
            }),
            startup: Vec::new(),
            has_own: true,
            application: None,
        };
        instance.pool(&key, limits);
    }
    let series = parse(&encode(app.clone()).unwrap());
    assert!(series.len() < 10_000, "{}", series.len());
    let sum = |name: &str| -> f64 {
        let of = series.iter().filter(|(label, _)| label.starts_with(name));
        of.map(|(_, value)| value).sum()
    };
    assert!((sum("pgtenant_tenant_logins_total{") - 100_000.0).abs() < 0.5);
    assert!((sum("pgtenant_pool_size{") - 2000.0).abs() < 0.5);
}
