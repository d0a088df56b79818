use std::collections::HashMap;

use super::ConfigFile;
use super::environment::expanded;

fn environment(name: &str) -> Option<String> {
    let variables = HashMap::from([
        ("APP", "s3cret"),
        ("EMPTY", ""),
        ("BRACES", "a{b}"),
        ("DOLLAR", "${APP}"),
        ("SIZE", "7"),
    ]);
    variables.get(name).map(|value| (*value).to_owned())
}

/// What reading alone complains about.
fn mistakes(text: &str) -> Vec<String> {
    let (_, mistakes) = ConfigFile::read(text, &environment);
    mistakes
        .into_sorted()
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn variables_are_replaced_as_in_a_shell() {
    for (text, value) in [
        ("${APP}", "s3cret"),
        ("a-${APP}-b${APP}", "a-s3cret-bs3cret"),
        ("${EMPTY}", ""),
        ("${EMPTY:-x}", "x"),
        ("${UNSET:-x}", "x"),
        ("${UNSET:-}", ""),
        ("${UNSET:-a:-b}", "a:-b"),
        ("${APP:-x}", "s3cret"),
        ("$${APP}", "${APP}"),
        ("$APP $ $$", "$APP $ $$"),
        ("${DOLLAR}", "${APP}"),
        ("SCRAM-SHA-256$4096:a$b:c", "SCRAM-SHA-256$4096:a$b:c"),
    ] {
        assert_eq!(
            expanded(text, false, &environment),
            Ok(value.to_owned()),
            "{text}"
        );
    }
    assert_eq!(
        expanded("{x}${BRACES}", true, &environment),
        Ok("{x}a{{b}}".to_owned())
    );
}

#[test]
fn every_broken_variable_of_a_value_is_reported() {
    for (text, errors) in [
        (
            "${UNSET}",
            &["the environment variable UNSET is not set"][..],
        ),
        (
            "${UNSET}${ODD NAME}${",
            &[
                "the environment variable UNSET is not set",
                "'${ODD NAME}' is not the name of an environment variable",
                "has a '${' without a '}' ('$${' stands for the characters '${')",
            ],
        ),
        ("${}", &["'${}' is not the name of an environment variable"]),
        (
            "${1A:-x}",
            &["'${1A}' is not the name of an environment variable"],
        ),
    ] {
        let errors = errors.iter().map(|error| (*error).to_owned()).collect();
        assert_eq!(expanded(text, false, &environment), Err(errors), "{text}");
    }
}

#[test]
fn all_mistakes_of_form_are_found_at_once_with_their_lines() {
    let text = "\
timeouts:
  login: 15
  chekout: 10s
  connect: soon
limits: { clients: many }
listen:
  - 127.0.0.1:6432
  - { address: 127.0.0.1:1, tls: { certificate: a, required: yes please } }
servers:
  a: { host: 1, port: -1, max_connections: 2.5, sslmode: prefered }
  b: { host: \"${UNSET}\", max_connections: \"${SIZE}\", root_cert: }
  7: { host: x }
placements:
  p:
    tier: pol
    pool: { sise: 1 }
    login: app
    servers: [a, [b]]
tenants:
  t:
    users: { app: hunter2, b: { password: 12345, pasword: x } }
    attributes: { region: 5 }
    limits: []
tenats: {}
";
    assert_eq!(
        mistakes(text),
        [
            "line 2: timeouts.login: needs a unit: 15ms, 15s, 15m, 15h or 15d",
            "line 3: timeouts.chekout: unknown setting, did you mean `checkout`?",
            "line 4: timeouts.connect: must be a duration such as 15s",
            "line 5: limits.clients: must be a whole number",
            "line 7: listen[0]: must be a mapping, not text",
            "line 8: listen[1].tls.required: must be a boolean, not text",
            "line 8: listen[1].tls.certificate: unknown setting; there are cert, key, required",
            "line 9: servers: has the name 7, which YAML does not take for text: put it in quotes",
            "line 10: servers.a.host: must be a string, not a number: put it in quotes",
            "line 10: servers.a.port: must not be negative",
            "line 10: servers.a.max_connections: must be a whole number, not a number",
            "line 10: servers.a.sslmode: must be one of `disable`, `prefer`, `require`, \
             `verify-ca`, `verify-full`, not `prefered`",
            "line 11: servers.b.host: the environment variable UNSET is not set",
            "line 15: placements.p.tier: must be one of `pool`, `schema`, `database`, `instance`, \
             not `pol`",
            "line 16: placements.p.pool.sise: unknown setting, did you mean `size`?",
            "line 17: placements.p.login: must be a mapping, not text",
            "line 18: placements.p.servers[1]: must be a string, not a list",
            "line 21: tenants.t.users.app: must be a mapping with `scram` or `password`, not text",
            "line 21: tenants.t.users.b.password: must be a string, not a number: put it in quotes",
            "line 21: tenants.t.users.b.pasword: unknown setting, did you mean `password`?",
            "line 22: tenants.t.attributes.region: must be a string, not a number: put it in \
             quotes",
            "line 23: tenants.t.limits: must be a mapping, not a list",
            "line 24: tenats: unknown setting, did you mean `tenants`?",
        ]
    );
}

#[test]
fn duplicates_do_not_hide_other_mistakes() {
    assert_eq!(
        mistakes("workers: 1\nworkers: x\nlog: { format: xml }\n"),
        [
            "line 2: workers: is given twice, first in line 1",
            "line 3: log.format: must be `text` or `json`, not `xml`",
        ]
    );
}

#[test]
fn no_text_makes_the_reader_panic() {
    let mut texts: Vec<String> = [
        "",
        "~",
        "---",
        "\u{feff}",
        "- a\n- b\n",
        "7",
        "text",
        "{",
        "}",
        "\0",
        "a: \0",
        "servers: [",
        "? ",
        "? a",
        "? {a: b}\n: c",
        ": x",
        "!!binary x",
        "%YAML 9.9\n---\na: 1",
        "a: &a [*a]",
        "<<: {workers: 1}",
        "servers: {? [x] : y}",
        "tenants: 3\nservers: x\nplacements: []\nlisten: {}",
        "'': ''",
    ]
    .map(str::to_owned)
    .to_vec();
    texts.push("[".repeat(10_000));
    texts.push("{a: ".repeat(10_000));
    texts.push("- ".repeat(10_000));
    texts.push(format!("a: {}", "[".repeat(31) + &"]".repeat(31)));
    texts.push("x".repeat(1_000_000));
    texts.push("a: 1\n".repeat(100_000));
    for text in &texts {
        let found = mistakes(text);
        assert!(!found.is_empty(), "{:?}", &text[..text.len().min(40)]);
    }
}

#[test]
fn garbage_and_broken_configs_give_mistakes_and_no_panic() {
    use rand::{Rng, SeedableRng};
    let mut random = rand::rngs::StdRng::seed_from_u64(7);
    let garbage: String = (0..1_000_000)
        .map(|_| random.random_range(' '..'\u{300}'))
        .collect();
    assert!(!mistakes(&garbage).is_empty());

    let whole = include_str!("../../../config/pgtenant.yaml");
    let characters: Vec<char> = whole.chars().collect();
    let odd: Vec<char> = "{}[]:,-?&*!|>'\"%@`#\n \t\r0a$~\u{85}\u{2028}\u{feff}ä"
        .chars()
        .collect();
    for _ in 0..300 {
        let mut broken = characters.clone();
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..broken.len());
            let odd = odd[random.random_range(0..odd.len())];
            if random.random() {
                broken[at] = odd;
            } else {
                broken.insert(at, odd);
            }
        }
        let broken: String = broken.into_iter().collect();
        let _ = crate::config::load_text(&broken, std::path::Path::new(""), &environment);
    }
}

#[test]
fn a_billion_laughs_are_refused() {
    let text = "\
a: &a [x, x, x, x, x, x, x, x, x]
b: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]
c: [*b, *b, *b, *b, *b, *b, *b, *b, *b]
";
    let found = mistakes(text);
    assert_eq!(found.len(), 18, "{found:#?}");
    assert_eq!(
        found[0],
        "line 2: a YAML alias (*…) is not accepted: write the value out"
    );
}
