//! The reference has what the code has: settings, metrics, tables and commands of the console,
//! SQLSTATEs, messages. The code is asked where it can be, and else read.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;

use pgtenant::cluster::free_port;
use pgtenant::config;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::markdown::{code, first_cells, sections};
use super::{files_below, read};
use crate::harness::{Process, Setup, connect, tenant, world};

/// No setting has this name.
const NO_SETTING: &str = "zzzzzzzzzzzzzzzz";
/// What the loader says behind the names that a section has.
const THERE_ARE: &str = "unknown setting; there are ";

type Names = BTreeSet<String>;
/// Settings by their section, as `servers.*` or `listen[]`; "" is the top.
type Settings = BTreeMap<String, Names>;

fn all_of(settings: &Settings) -> Names {
    let of = |(section, names): (&String, &Names)| -> Vec<String> {
        let path = |name: &String| format!("{section}.{name}");
        names.iter().map(path).collect()
    };
    settings.iter().flat_map(of).collect()
}

// ---- settings ----

/// The settings of the section that `yaml` has `NO_SETTING` in, if it is one.
fn settings_of(yaml: &str) -> Option<Names> {
    let Err(mistakes) = config::load_text(yaml, Path::new("."), &|_| None) else {
        return None;
    };
    let mut mistakes = mistakes
        .iter()
        .filter(|mistake| mistake.path.ends_with(NO_SETTING));
    let names = mistakes.find_map(|mistake| mistake.message.strip_prefix(THERE_ARE))?;
    Some(names.split(", ").map(str::to_owned).collect())
}

/// Asks the loader for the settings of a section and of all sections below it. `around`: YAML with
/// `{}` where the section is.
fn ask(section: &str, around: &str, found: &mut Settings) {
    let inside = |text: &str| around.replacen("{}", text, 1);
    let Some(names) = settings_of(&inside(&format!("{{ {NO_SETTING}: 1 }}"))) else {
        return;
    };
    for name in &names {
        let path = if section.is_empty() {
            name.clone()
        } else {
            format!("{section}.{name}")
        };
        // A section, one of entries by name, or a list of them.
        for (path, value) in [
            (path.clone(), "{}"),
            (format!("{path}.*"), "{ x: {} }"),
            (format!("{path}[]"), "[{}]"),
        ] {
            ask(&path, &inside(&format!("{{ {name}: {value} }}")), found);
        }
    }
    found.insert(section.to_owned(), names);
}

/// What docs/settings.md has. Two sections under one heading have the same settings.
fn documented_settings(page: &str) -> Settings {
    let mut settings = Settings::new();
    for (heading, below) in sections(page) {
        let cells = first_cells(&below).into_iter().flat_map(code);
        let names: Names = cells.map(str::to_owned).collect();
        let paths = match heading.contains('`') {
            true => code(&heading),
            false => vec![""],
        };
        for path in paths {
            settings
                .entry(path.to_owned())
                .or_default()
                .extend(names.clone());
        }
    }
    // Those of rates are the same wherever there are rates.
    for kind in ["statements_per_second", "bytes_per_second"] {
        let names = settings
            .get(&format!("limits.{kind}"))
            .cloned()
            .unwrap_or_default();
        for level in ["servers", "placements", "tenants"] {
            settings.insert(format!("{level}.*.limits.{kind}"), names.clone());
        }
    }
    settings
}

#[test]
fn every_setting_is_in_the_reference_and_in_the_example() {
    let mut found = Settings::new();
    ask("", "{}", &mut found);
    assert!(all_of(&found).len() > 150, "{found:?}");
    let page = documented_settings(&read("docs/settings.md"));
    let (code, page) = (all_of(&found), all_of(&page));
    let difference: Vec<_> = code.symmetric_difference(&page).collect();
    assert_eq!(difference, [""; 0], "in the code or on the page alone");
    let example = read("config/pgtenant.yaml");
    let names: Names = found.into_values().flatten().collect();
    let missing = names
        .iter()
        .filter(|name| !example.contains(&format!("{name}:")));
    assert_eq!(missing.collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn a_setting_that_only_one_of_them_has_is_found() {
    let mut found = Settings::new();
    ask("listen[]", "{ listen: [{}] }", &mut found);
    let page = "## `listen[]`\n\n| setting | value |\n|---|---|\n| `address` | text |\n| `socket` | text |\n\n\
        ## `listen[].tls`\n\n| `cert` | a |\n| `key` | b |\n| `required` | c |\n";
    let page = documented_settings(page);
    assert_eq!(
        found["listen[]"],
        ["address", "tls"].map(str::to_owned).into()
    );
    assert_eq!(
        page["listen[]"],
        ["address", "socket"].map(str::to_owned).into()
    );
    assert_eq!(found["listen[].tls"], page["listen[].tls"]);
}

// ---- a proxy that runs ----

/// The families of metrics, with their types.
fn families(metrics: &str) -> BTreeMap<&str, &str> {
    let lines = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "));
    lines.filter_map(|line| line.split_once(' ')).collect()
}

/// Rows of the reference: the name and the type.
fn documented_families(page: &str) -> BTreeMap<&str, &str> {
    let rows = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `pgtenant_"));
    let rows = rows.filter_map(|row| {
        let mut cells = row.split(" | ");
        Some((cells.next()?.strip_suffix('`')?, cells.next()?))
    });
    rows.filter(|(name, _)| name.chars().all(|c| c.is_alphanumeric() || c == '_'))
        .collect()
}

/// Tables of the console: the columns by `SHOW` and its name.
fn documented_columns(page: &str) -> BTreeMap<String, Vec<String>> {
    let sections = sections(page).into_iter();
    let columns = |below: &str| {
        let cells = first_cells(below).into_iter().flat_map(code);
        cells.map(str::to_owned).collect()
    };
    sections
        .map(|(heading, below)| (heading, columns(&below)))
        .collect()
}

async fn scrape(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port))
        .await
        .expect("the port of http");
    let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.expect("it is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("metrics");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_table_and_command_is_in_the_reference() {
    let http = free_port().expect("a port");
    let sections = format!(
        "http: {{ address: \"127.0.0.1:{http}\" }}\nadmin: {{ users: {{ admin: {{ password: secret }} }} }}"
    );
    let setup = Setup {
        sections,
        ..Setup::default()
    };
    let proxy = Process::serve(&setup.yaml(world().await), Stdio::null()).await;
    let mut tenants = proxy.client("t00").await;
    let rows = tenants.query("SELECT 1").await;
    assert!(!rows.is_empty());
    let metrics = scrape(http).await;
    let page = read("docs/metrics.md");
    let prefixed = documented_families(&page).into_iter();
    let documented: BTreeMap<_, _> = prefixed
        .map(|(name, kind)| (format!("pgtenant_{name}"), kind))
        .collect();
    let documented: BTreeMap<&str, &str> = documented
        .iter()
        .map(|(name, kind)| (&**name, *kind))
        .collect();
    assert_eq!(families(&metrics), documented);
    let labels = metrics
        .split(['{', ','])
        .filter_map(|part| part.split_once("=\""));
    for label in labels
        .map(|(label, _)| label)
        .filter(|label| *label != "le")
    {
        assert!(page.contains(&format!("`{label}`")), "the label {label}");
    }

    let dsn = format!("postgresql://admin:secret@{}/pgtenant", proxy.address);
    let console = connect(&dsn.parse().expect("a DSN"))
        .await
        .expect("the console");
    let help = console.query("SHOW HELP", &[]).await.expect("SHOW HELP");
    let commands: Vec<String> = help.iter().map(|row| row.get(0)).collect();
    let mut tables = BTreeMap::new();
    let shows = commands
        .iter()
        .filter(|command| command.starts_with("SHOW "));
    let others = [
        (
            "EXPLAIN ROUTE",
            format!("EXPLAIN ROUTE {}", tenant("t00").user()),
        ),
        (
            "EXPLAIN CONFIG FOR name",
            "EXPLAIN CONFIG FOR t00".to_owned(),
        ),
        ("RELOAD", "RELOAD".to_owned()),
    ];
    let shows = shows.map(|show| (&**show, show.clone()));
    for (name, command) in shows.chain(others) {
        let described = console.prepare(&command).await.expect("a table");
        let columns = described
            .columns()
            .iter()
            .map(|column| column.name().to_owned());
        tables.insert(name.to_owned(), columns.collect::<Vec<_>>());
    }
    assert!(tables.len() > 25);
    assert_eq!(tables, documented_columns(&read("docs/columns.md")));
    let page = read("docs/console.md");
    for words in commands.iter().flat_map(|command| words(command)) {
        let is_there = words.starts_with("SHOW ") || page.contains(&format!("`{words}"));
        assert!(is_there, "{words} is not on the page of the console");
    }
}

/// The words of a command that are to be written as they are: `SHUTDOWN A | B` is `SHUTDOWN A` and
/// `SHUTDOWN B`.
fn words(command: &str) -> Vec<String> {
    let is_word = |word: &&str| word.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    let kept = |part: &str| {
        part.split(' ')
            .take_while(is_word)
            .collect::<Vec<_>>()
            .join(" ")
    };
    match command.split_once(" | ") {
        None => vec![kept(command)],
        Some((first, second)) => {
            let verb = first.split(' ').next().unwrap_or_default();
            vec![kept(first), format!("{verb} {}", kept(second))]
        }
    }
}

#[test]
fn what_the_reference_of_a_running_proxy_lacks_is_found() {
    let metrics = "# HELP pgtenant_a A.\n# TYPE pgtenant_a counter\npgtenant_a_total 1\n";
    assert_eq!(families(metrics), [("pgtenant_a", "counter")].into());
    let page = "| metric | type |\n|---|---|\n| `pgtenant_a` | gauge | | B. |\n| `pgtenant_b == 0` | why |\n";
    assert_eq!(documented_families(page), [("a", "gauge")].into());
    let page = "## SHOW X\n\n| column | meaning |\n|---|---|\n| `a` | It is `b`. |\n| `c` | D. |\n";
    let columns = documented_columns(page);
    assert_eq!(columns["SHOW X"], ["a", "c"]);
    assert_eq!(words("PAUSE [name]"), ["PAUSE"]);
    assert_eq!(words("KILL CLIENT id generation"), ["KILL CLIENT"]);
    assert_eq!(words("SHUTDOWN A | B"), ["SHUTDOWN A", "SHUTDOWN B"]);
}

// ---- SQLSTATEs and messages ----

/// The arguments of the call that opens just before `text`.
fn arguments(text: &str) -> &str {
    let mut depth = 1;
    let mut is_text = false;
    let mut is_escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' if is_text => is_escaped = true,
            '"' => is_text = !is_text,
            '(' if !is_text => depth += 1,
            ')' if !is_text => depth -= 1,
            _ => (),
        }
        if depth == 0 {
            return &text[..at];
        }
    }
    text
}

/// The string literals of a piece of code, as they are read.
fn literals(code: &str) -> Vec<String> {
    let mut literals = Vec::new();
    let mut literal: Option<String> = None;
    let mut characters = code.chars().peekable();
    while let Some(c) = characters.next() {
        match (c, &mut literal) {
            ('"', None) => literal = Some(String::new()),
            ('"', Some(_)) => literals.extend(literal.take()),
            ('\\', Some(text)) => match characters.next() {
                Some('\n') => while characters.next_if(|c| c.is_whitespace()).is_some() {},
                Some(escaped) => text.push(escaped),
                None => (),
            },
            (c, Some(text)) => text.push(c),
            (_, None) => (),
        }
    }
    literals
}

/// Names, numbers and what stands for them are one sign.
fn with_gaps(message: &str) -> String {
    let mut text = String::new();
    let mut rest = message;
    while let Some((before, after)) = rest.split_once('{') {
        text += before;
        text.push('…');
        rest = after.split_once('}').map_or("", |(_, rest)| rest);
    }
    text + rest
}

/// What errors of the proxy say, by its code: the messages of `Error::new(Kind::…`, of `offence(…`
/// of the guard, of `violation(…`, and those that a `let message` holds.
fn messages(code: &str) -> Vec<String> {
    let mut messages = Vec::new();
    let calls = [
        ("Error::new(", "Kind::"),
        ("offence(", "\""),
        ("violation(", "\""),
    ];
    for (call, has) in calls {
        for (at, _) in code.match_indices(call) {
            let arguments = arguments(&code[at + call.len()..]);
            if arguments.contains(has) {
                messages.extend(
                    literals(arguments)
                        .into_iter()
                        .find(|text| text.contains(' ')),
                );
            }
        }
    }
    for held in ["let message =", "let (message, hint) ="] {
        for (at, _) in code.match_indices(held) {
            let statement = code[at..].split(";\n").next().unwrap_or_default();
            messages.extend(
                literals(statement)
                    .into_iter()
                    .find(|text| text.contains(' ')),
            );
        }
    }
    messages.iter().map(|message| with_gaps(message)).collect()
}

/// The SQLSTATEs that a file gives errors: in the table of `Kind`, and in the place of a kind's
/// own.
fn sqlstates(code: &str) -> Names {
    let is_one = |text: &&str| {
        let is_of = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit();
        text.len() == 5 && text.chars().all(is_of) && text.chars().any(|c| c.is_ascii_digit())
    };
    let of_kinds = code.split("fn sqlstate(").nth(1);
    let of_kinds = of_kinds.and_then(|rest| rest.split("\n    }\n").next());
    let mut found = literals(of_kinds.unwrap_or_default());
    for (at, call) in code.match_indices("with_sqlstate(") {
        let argument = arguments(&code[at + call.len()..]);
        found.extend(literals(argument));
        let constant = format!("const {argument}: &str = \"");
        let value = code
            .split(&constant)
            .nth(1)
            .and_then(|rest| rest.split('"').next());
        found.extend(value.map(str::to_owned));
    }
    found
        .into_iter()
        .filter(|text| is_one(&text.as_str()))
        .collect()
}

/// The code that clients of the proxy meet, without its tests.
fn code_of_the_proxy() -> Vec<String> {
    let mut files = Vec::new();
    for dir in [
        "admin", "app", "auth", "backend", "frontend", "protocol", "sql", "tenant",
    ] {
        files.extend(files_below(&format!("src/{dir}"), &["rs"]));
    }
    for file in ["src/app.rs", "src/error.rs", "src/client.rs", "src/tls.rs"] {
        files.push((file.into(), read(file)));
    }
    files.retain(|(path, _)| !path.ends_with("tests.rs") && !path.ends_with("testing.rs"));
    let without_tests = |text: String| {
        let code = text.split("#[cfg(test)]\nmod tests").next();
        code.unwrap_or_default().to_owned()
    };
    files
        .into_iter()
        .map(|(_, text)| without_tests(text))
        .collect()
}

/// What of the code docs/troubleshooting.md lacks.
fn missing_errors(code: &[String], page: &str) -> Vec<String> {
    let sections: Names = sections(page)
        .into_iter()
        .map(|(heading, _)| heading)
        .collect();
    let states: Names = code.iter().flat_map(|code| sqlstates(code)).collect();
    let missing_states = states.into_iter().filter(|state| {
        let has_row = page.contains(&format!("| [{state}]("));
        !has_row || !sections.contains(state)
    });
    let messages: Names = code.iter().flat_map(|code| messages(code)).collect();
    let told: BTreeSet<&str> = page
        .lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .collect();
    let missing_messages = messages
        .iter()
        .filter(|message| !told.contains(&***message));
    missing_states.chain(missing_messages.cloned()).collect()
}

#[test]
fn every_sqlstate_and_message_of_the_proxy_has_its_cause_and_remedy() {
    let code = code_of_the_proxy();
    let found: Vec<_> = code.iter().flat_map(|code| messages(code)).collect();
    assert!(found.len() > 90, "{} messages", found.len());
    let states: Names = code.iter().flat_map(|code| sqlstates(code)).collect();
    assert!(states.len() > 29, "{states:?}");
    assert_eq!(
        missing_errors(&code, &read("docs/troubleshooting.md")),
        [""; 0]
    );
}

#[test]
fn an_error_that_the_reference_lacks_is_found() {
    let code = r#"
        Err(Error::new(Kind::Internal, format!("a {thing} of \"{}\" \
            broke", name)).with_sqlstate("57P01"))
        let message = "what is (held)";
        Error::new(Kind::Internal, message).with_sqlstate(NOT_SO)
        const NOT_SO: &str = "55000";
        offence("kind", "denied to you", HINT);
    "#;
    let page = "| [57P01](#57p01) | x |\n\n## 57P01\n\n| `a … of \"…\" broke` | b |\n";
    let missing = missing_errors(&[code.to_owned()], page);
    assert_eq!(missing, ["55000", "denied to you", "what is (held)"]);
}

// ---- tuning constants ----

/// What is wrong with the rows of ARCHITECTURE.md's table: a constant that its file has not, or
/// with another number.
fn wrong_constants(page: &str, file: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    let path = |row: &'_ str| Some(row.split_once("](src/")?.1.split_once(')')?.0.to_owned());
    let rows = rows.filter_map(|row| Some((row.split_once('`')?, path(row)?)));
    let number = |text: &str| -> String {
        let digits = text
            .chars()
            .filter(|c| *c != '_')
            .skip_while(|c| !c.is_ascii_digit());
        digits.take_while(char::is_ascii_digit).collect()
    };
    let is_wrong = |((name, row), path): &((&str, &str), String)| {
        let code = file(&format!("src/{path}")).unwrap_or_default();
        let definition = code.split(&format!("const {name}: ")).nth(1);
        let value = definition
            .and_then(|rest| rest.split_once('='))
            .map(|(_, value)| value);
        let value = value.and_then(|value| value.split(';').next());
        // MiB and KiB are written as shifts and products; a duration's unit stands in its
        // constructor.
        value.map(number) != Some(number(row))
    };
    rows.filter(is_wrong)
        .map(|((name, _), path)| format!("{name} of {path}"))
        .collect()
}

#[test]
fn the_tuning_constants_are_as_the_architecture_says() {
    let page = read("ARCHITECTURE.md");
    let section = sections(&page)
        .into_iter()
        .find(|(heading, _)| heading == "Tuning constants");
    let (_, table) = section.expect("the section");
    assert!(table.lines().count() > 30);
    assert_eq!(wrong_constants(&table, |path| Some(read(path))), [""; 0]);
}

#[test]
fn a_constant_with_another_number_is_found() {
    let row = |name: &str, value: &str| format!("| `{name}` | {value} | x | [`a`](src/a.rs) |\n");
    let code = "const A: usize = 16 * 1024;\nconst B: Duration = Duration::from_millis(1_200);\n";
    let page = row("A", "16 kB") + &row("B", "1200 ms") + &row("A", "17 kB") + &row("C", "1");
    let wrong = wrong_constants(&page, |_| Some(code.to_owned()));
    assert_eq!(wrong, ["A of a.rs", "C of a.rs"]);
}
