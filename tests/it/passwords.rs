//! Passwords of every kind that PostgreSQL takes: pgtenant hashes them as PostgreSQL does, lets in
//! whom libpq gives them, and logs in with them itself.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use pgtenant::cli::hash_password::verifier;
use pgtenant::cluster::Cluster;
use pgtenant::config::ScramVerifier;
use tokio_postgres::{Client, NoTls};

use crate::harness::{Running, parse_in, world};

/// Characters that SASLprep, or a text of YAML or SQL, treats in a way of their own.
const CHARACTERS: &[char] = &[
    'a',
    'Z',
    '0',
    ' ',
    '%',
    '\'',
    '"',
    '\\',
    '$',
    '{',
    '}',
    '#',
    ':',
    '\u{1}',
    '\t',
    '\n',
    '\r',
    '\u{7f}',
    '\u{85}',
    '\u{a0}',
    '\u{ad}',
    '\u{e9}',
    '\u{301}',
    '\u{340}',
    '\u{341}',
    '\u{34f}',
    '\u{378}',
    '\u{5d0}',
    '\u{5b0}',
    '\u{627}',
    '\u{6dd}',
    '\u{661}',
    '\u{1100}',
    '\u{1161}',
    '\u{11a8}',
    '\u{1680}',
    '\u{180b}',
    '\u{180e}',
    '\u{1e9b}',
    '\u{2000}',
    '\u{200b}',
    '\u{200d}',
    '\u{200e}',
    '\u{2028}',
    '\u{202e}',
    '\u{2060}',
    '\u{2135}',
    '\u{2168}',
    '\u{2260}',
    '\u{2ff0}',
    '\u{3000}',
    '\u{304b}',
    '\u{3099}',
    '\u{a7f2}',
    '\u{ac00}',
    '\u{e000}',
    '\u{f900}',
    '\u{fb01}',
    '\u{fb1d}',
    '\u{fdd0}',
    '\u{fdfa}',
    '\u{fe0f}',
    '\u{feff}',
    '\u{ff21}',
    '\u{ff76}',
    '\u{fffd}',
    '\u{1d15e}',
    '\u{1d173}',
    '\u{1d400}',
    '\u{1f100}',
    '\u{1f600}',
    '\u{2f868}',
    '\u{e0001}',
    '\u{10fffd}',
];

/// Passwords that are logged in with, too.
fn table() -> Vec<String> {
    let given = [
        "pencil",
        "100% o'clock \"x\" \\ `y` $HOME ${HOME} $${x} {tenant} {{x}} #! : - & * @",
        " begins and ends with spaces ",
        "two\nlines\tand a \r \u{7} bell",
        "p\u{e4}ssw\u{f6}rd",
        "pa\u{301}sswo\u{308}rd",
        "soft\u{ad}hyphen",
        "\u{ad}",
        "no\u{a0}break\u{2003}em\u{3000}ideographic\u{200b}zero",
        "\u{2168}\u{fb01}\u{ff21}",
        "prohibited \u{e000}\u{fb01}",
        "\u{e9} and a bell \u{7}",
        "emoji \u{1f600}\u{fb01}",
        "deprecated \u{340}\u{e9}",
        "unassigned \u{1f100}",
        "\u{627}1\u{628}",
        "\u{627}1\u{fb01}",
        "\u{2135}\u{fb01}",
        "byte order \u{feff} mark, next \u{85} line, line \u{2028} separator",
        "SCRAM-SHA-256 is no verifier",
    ];
    let long = ["x", "\u{e9}\u{ad}"].map(|part| part.repeat(15_000));
    // Around a block of SHA-256.
    let blocks = [63, 64, 65].map(|length| "b".repeat(length));
    let given = given.map(str::to_owned).into_iter();
    given.chain(long).chain(blocks).collect()
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

async fn superuser(cluster: &Cluster) -> Client {
    let (client, connection) = cluster.config("postgres").connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// What PostgreSQL keeps of a password.
async fn kept(client: &Client, role: &str, password: &str) -> ScramVerifier {
    let sql = format!("ALTER ROLE {role} PASSWORD {}", quoted(password));
    client.batch_execute(&sql).await.unwrap();
    let asked = "SELECT rolpassword FROM pg_authid WHERE rolname = $1";
    let row = client.query_one(asked, &[&role]).await.unwrap();
    ScramVerifier::parse(row.get(0)).unwrap()
}

/// Passwords of up to six characters, of which half are of the list, the same in each run
/// (xorshift64).
fn made(count: usize) -> Vec<String> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |limit: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % limit).expect("small")
    };
    let mut password = || {
        let length = 1 + below(6);
        let mut character = || match below(2) {
            0 => CHARACTERS[below(CHARACTERS.len() as u64)],
            _ => u32::try_from(1 + below(0x10ffff))
                .ok()
                .and_then(char::from_u32)
                .unwrap_or('\u{fb01}'),
        };
        (0..length).map(|_| character()).collect()
    };
    (0..count).map(|_| password()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_hashed_as_postgresql_hashes_it() {
    let client = superuser(&world().await.shared).await;
    client.batch_execute("CREATE ROLE hashed").await.unwrap();
    // Since PostgreSQL 16 the rounds can be few, and the passwords many.
    let few = client
        .batch_execute("SET scram_iterations = 1")
        .await
        .is_ok();
    let mut passwords = table();
    passwords.extend(CHARACTERS.iter().map(|&c| format!("\u{fb01}{c}")));
    passwords.extend(made(if few { 4000 } else { 100 }));
    let mut others = Vec::new();
    for password in passwords {
        let kept = kept(&client, "hashed", &password).await;
        let salt = kept.salt.clone().to_vec().try_into().unwrap();
        let made = verifier(&password, salt, kept.iterations);
        if made.to_text().to_string() != kept.to_text().to_string() {
            others.push(password.escape_unicode().to_string());
        }
    }
    client.batch_execute("DROP ROLE hashed").await.unwrap();
    assert!(others.is_empty(), "{} differ: {others:?}", others.len());
}

/// As a double-quoted text of YAML, with every character that is none of ASCII's printable ones
/// escaped.
fn yaml_text(text: &str) -> String {
    let mut yaml = "\"".to_owned();
    for c in text.chars() {
        match c {
            '"' | '\\' => yaml.extend(['\\', c]),
            ' '..='~' => yaml.push(c),
            c => write!(yaml, "\\U{:08x}", u32::from(c)).unwrap(),
        }
    }
    yaml + "\""
}

/// libpq logs in to each of a list of ports, users and passwords, which are JSON on standard input.
const LOGS_IN: &str = "
import json, psycopg, sys
for port, user, password in json.load(sys.stdin):
    try:
        with psycopg.connect(host='127.0.0.1', port=port, user=user, password=password, dbname='postgres', sslmode='disable') as c:
            print('in' if c.execute('select 1').fetchone() == (1,) else 'odd')
    except psycopg.OperationalError as error:
        print('out', 'password' if 'password authentication failed' in str(error) else error)
";

/// What libpq is told, one line for each.
fn log_in(logins: &[(u16, String, String)]) -> Vec<String> {
    let python = std::env::var("PGTENANT_TEST_PYTHON")
        .expect("PGTENANT_TEST_PYTHON is not set: run `make test`");
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("logins");
    std::fs::write(&input, serde_json::to_vec(logins).unwrap()).unwrap();
    let said = Command::new(python)
        .args(["-c", LOGS_IN])
        .stdin(std::fs::File::open(&input).unwrap())
        .output()
        .unwrap();
    assert!(
        said.status.success(),
        "{}",
        String::from_utf8_lossy(&said.stderr)
    );
    let text = String::from_utf8(said.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// A placement for each password, as the login of which and as whose client's password it is in the
/// config: as it is, as its verifier or in a file.
fn config(cluster: &Cluster, passwords: &[String], dir: &Path) -> String {
    let mut yaml = format!(
        "listen: [{{ address: \"127.0.0.1:0\" }}]\nservers: {{ s: {{ host: 127.0.0.1, port: {}, sslmode: disable, max_connections: 90 }} }}\nplacements:\n",
        cluster.port()
    );
    for (n, password) in passwords.iter().enumerate() {
        let escaped = password
            .replace("${", "$${")
            .replace('{', "{{")
            .replace('}', "}}");
        // The one that `$${` stands for is no brace of a template.
        let escaped = escaped.replace("$${{", "$${");
        std::fs::write(dir.join(n.to_string()), format!("{password}\n")).unwrap();
        let login = match n % 2 {
            0 => format!("password: {}", yaml_text(&escaped)),
            _ => format!("password_file: \"{n}\""),
        };
        writeln!(
            yaml,
            "  p{n}: {{ tier: pool, server: s, database: postgres, posture: plain, context: {{ app.tenant: \"{{tenant}}\" }}, login: {{ user: pw_{n}, {login} }} }}"
        )
        .unwrap();
    }
    yaml += "tenants:\n";
    for (n, password) in passwords.iter().enumerate() {
        let verifier = verifier(password, [n as u8; 16], 4096).to_text();
        let plain = yaml_text(&password.replace("${", "$${"));
        writeln!(
            yaml,
            "  t{n}: {{ placement: p{n}, users: {{ plain: {{ password: {plain} }}, hashed: {{ scram: \"{verifier}\" }} }} }}"
        )
        .unwrap();
    }
    yaml
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_password_libpq_logs_in_as_direct_and_pgtenant_too() {
    let cluster = &world().await.silo;
    let client = superuser(cluster).await;
    let passwords = table();
    for (n, password) in passwords.iter().enumerate() {
        let sql = format!("CREATE ROLE pw_{n} LOGIN PASSWORD {}", quoted(password));
        client.batch_execute(&sql).await.unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let yaml = config(cluster, &passwords, dir.path());
    let proxy = Running::with(parse_in(&yaml, dir.path()), None);
    let port = proxy.address.port();
    let mut logins = Vec::new();
    for (n, password) in passwords.iter().enumerate() {
        let wrong = format!("{password}x");
        for (port, user) in [
            (cluster.port(), format!("pw_{n}")),
            (port, format!("plain.t{n}")),
            (port, format!("hashed.t{n}")),
        ] {
            logins.push((port, user.clone(), password.clone()));
            logins.push((port, user, wrong.clone()));
        }
    }
    let told = tokio::task::block_in_place(|| log_in(&logins));
    drop(proxy);
    for n in 0..passwords.len() {
        client
            .batch_execute(&format!("DROP ROLE pw_{n}"))
            .await
            .unwrap();
    }
    let mut others = Vec::new();
    for (n, (login, told)) in logins.iter().zip(&told).enumerate() {
        let expected = ["in", "out password"][n % 2];
        if told != expected {
            let shown: String = login.2.chars().take(40).collect();
            others.push(format!("{} {:?}: {told}", login.1, shown));
        }
    }
    assert_eq!(told.len(), logins.len());
    assert!(others.is_empty(), "{others:#?}");
}
