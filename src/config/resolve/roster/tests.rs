//! Random changes of a catalog beside the same tenants in a file: what a file of them would have
//! mistakes in is refused, and what is accepted is as the file would have it.

use std::collections::BTreeMap;
use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::*;
use crate::config::resolve::{load_text, load_text_with_roster};

const BASE: &str = r#"
servers:
  a: { host: 10.0.0.1, max_connections: 100, seal: { key: "0123456789abcdef0123456789abcdef" } }
  b: { host: 10.0.0.2, max_connections: 100 }
placements:
  free: { tier: pool, server: a, database: app, login: { user: app }, posture: guarded,
          pool: { reserve: 2 }, context: { app.tenant_id: "{key}" }, read_only_login: { user: reader } }
  safe: { tier: pool, server: a, database: app2, login: { user: app }, posture: sealed,
          pool: { reserve: 2 },
          context: { app.tenant_id: "{key}" }, seal_tenant: "{key}" }
  schema: { tier: schema, server: b, database: app, schema: "s_{key}", login: { user: app },
            pool: { reserve: 2 } }
  own: { tier: database, servers: [a, b], database: "d_{key}", login: { user: "{key}" },
         pool: { reserve: 2 } }
applications:
  web: { users: { web: { password: x } }, tenants: { attributes: { region: eu } }, home: free,
         choose: { variables: [app.org], key: attributes.key } }
  all: { users: { all: { password: x } }, tenants: all, home: free, service: records,
         choose: { variables: [app.org] } }
tenants:
  fixed: { placement: free, attributes: { key: fixed }, users: { app: { password: x } } }
  parts: { placements: { core: free, records: own }, attributes: { key: parts },
           users: { app: { password: x } } }
"#;

/// A verifier of some password.
const SCRAM: &str = "SCRAM-SHA-256$4096:c2FsdHNhbHRzYWx0c2FsdA==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// A spec that is often right, and often in somebody's way.
fn spec(rng: &mut StdRng, names: u32) -> String {
    let placement = ["free", "safe", "schema", "own", "nowhere"];
    let placement = |rng: &mut StdRng| {
        let some = rng.random_range(0..9_usize) % placement.len();
        placement[some]
    };
    let place = match rng.random_range(0..5) {
        0 => format!(
            r#""placements": {{ "core": "{}", "records": "{}" }}"#,
            placement(rng),
            placement(rng)
        ),
        _ => format!(r#""placement": "{}""#, placement(rng)),
    };
    let key = match rng.random_range(0..30) {
        0 => "fixed".to_owned(),
        1 => "ä".to_owned(),
        _ => format!("k{}", rng.random_range(0..names)),
    };
    let region = ["eu", "us"][rng.random_range(0..2_usize)];
    let user = ["app", "web"][usize::from(rng.random_range(0..8) == 0)];
    let more = match rng.random_range(0..8) {
        0 => r#", "limits": { "active": 3 }"#,
        1 => r#", "pool": { "min": 1 }"#,
        2 => r#", "limit": {}"#,
        _ => "",
    };
    format!(
        r#"{{ {place}, "attributes": {{ "key": "{key}", "region": "{region}" }}, "users": {{ "{user}": {{ "scram": "{SCRAM}" }} }}{more} }}"#
    )
}

fn name(number: u32) -> String {
    match number {
        // The name of an application, and of one of its users.
        0 => "web".to_owned(),
        1 => "fixed".to_owned(),
        number => format!("t{number}"),
    }
}

/// The same tenants in a file.
fn file(entries: &BTreeMap<String, Entry>) -> Result<Config, Vec<Mistake>> {
    let mut text = BASE.to_owned();
    for (name, entry) in entries {
        let (spec, state) = (&entry.spec, entry.lifecycle.state);
        let spec = spec.trim_end().trim_end_matches('}');
        text += &format!("  {name}: {spec}, \"state\": {state} }}\n");
    }
    load_text(&text, Path::new(""), &|_| None)
}

/// What of a configuration tenants are of, without where they stand.
fn seen(config: &Config) -> (BTreeMap<String, Tenant>, String) {
    let tenants = config.tenants.values().map(|tenant| {
        let mut tenant = Tenant::clone(tenant);
        tenant.listed = None;
        // How many tenants a placement has is counted in the file alone.
        let mut route = crate::config::Route::clone(&tenant.route);
        Arc::make_mut(&mut route.placement).tenants = 0;
        tenant.route = Arc::new(route);
        (tenant.id.as_str().to_owned(), tenant)
    });
    let tenants = tenants.collect();
    let mut others = Vec::new();
    for (id, application) in &config.applications {
        for called in application.tenants.iter().flat_map(Sharded::values) {
            others.push(format!("{id} {} {}", called.value, called.id));
        }
    }
    for services in config.services.values() {
        others.push(format!("{services:?}"));
    }
    others.sort();
    (tenants, others.join("\n"))
}

#[test]
fn a_catalog_is_a_file_that_changes() {
    let (mut refused, mut accepted) = (0, 0);
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut config, mut roster) =
            load_text_with_roster(BASE, Path::new(""), &|_| None).unwrap();
        let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
        for step in 0..60 {
            let name = name(rng.random_range(0..10));
            let states = [
                State::Active,
                State::Active,
                State::Paused,
                State::ReadOnly,
                State::Deleted,
            ];
            let state = states[rng.random_range(0..states.len())];
            let entry = Entry {
                name: name.clone(),
                spec: spec(&mut rng, 12),
                lifecycle: Lifecycle {
                    state,
                    ..Lifecycle::default()
                },
                generation: 1,
                revision: step,
                version: None,
            };
            let mut wanted = entries.clone();
            match state {
                State::Deleted => _ = wanted.remove(&name),
                _ => _ = wanted.insert(name.clone(), entry.clone()),
            }
            let by_file = match &*name {
                // A file cannot have the name twice.
                "fixed" => Err(Vec::new()),
                _ => file(&wanted),
            };
            let put = roster.put(&mut config, &entry);
            let mistakes = (put.as_ref().err(), by_file.as_ref().err());
            let context = format!("seed {seed} step {step}: {entry:?}\n{mistakes:?}");
            assert_eq!(put.is_ok(), by_file.is_ok(), "{context}");
            if put.is_ok() {
                entries = wanted;
                accepted += 1;
            } else {
                refused += 1;
            }
            assert_eq!(seen(&config), seen(&file(&entries).unwrap()), "{context}");
        }
        // The same tenants under a new file.
        let (mut again, mut roster) =
            load_text_with_roster(BASE, Path::new(""), &|_| None).unwrap();
        for tenant in config.tenants.values() {
            roster.put_again(&mut again, tenant).unwrap();
        }
        assert_eq!(seen(&again), seen(&config), "seed {seed}");
    }
    assert!(refused > 200 && accepted > 200, "{refused} {accepted}");
}

#[test]
fn what_does_not_fit_is_told_by_its_setting() {
    let (mut config, mut roster) = load_text_with_roster(BASE, Path::new(""), &|_| None).unwrap();
    for (spec, expected) in [
        ("{", "tenants.t: is not JSON: EOF while parsing"),
        ("[]", "tenants.t: must be a mapping, not a list"),
        (
            r#"{"placement": "free", "users": {"a": {"password": "x"}}, "attributes": {"key": "x"}}"#,
            "tenants.t.users.a: must be a verifier (`scram`): passwords do not stand in a catalog",
        ),
        (
            r#"{"placment": "free"}"#,
            "tenants.t.placment: unknown setting, did you mean `placement`?",
        ),
        (
            r#"{"placement": "free", "weight": "${HOME}"}"#,
            "tenants.t.weight: must be a whole number",
        ),
    ] {
        let entry = Entry {
            name: "t".to_owned(),
            spec: spec.to_owned(),
            lifecycle: Lifecycle::default(),
            generation: 1,
            revision: 1,
            version: None,
        };
        let mistakes = roster.put(&mut config, &entry).unwrap_err();
        let told: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        assert!(
            told.iter().any(|mistake| mistake.starts_with(expected)),
            "{spec}: {told:?}"
        );
    }
}
