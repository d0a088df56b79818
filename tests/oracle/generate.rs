//! SQL by chance: from a grammar, from texts in this repository, and from pieces that lexers trip
//! over.

use std::collections::HashMap;
use std::path::Path;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

const GRAMMAR: &str = include_str!("grammar.txt");
/// Derivations that are deeper take the shortest way out.
const MAX_DEPTH: u32 = 9;

/// A rule's alternatives, each of them its tokens.
type Rule = Vec<Vec<&'static str>>;

pub struct Generator {
    rules: HashMap<&'static str, Rule>,
    /// Statements that others have written, as tokens.
    pub seeds: Vec<Vec<String>>,
}

impl Generator {
    pub fn new() -> Self {
        let mut rules: HashMap<_, Rule> = HashMap::new();
        let mut name = "";
        for line in GRAMMAR.lines().filter(|line| !line.starts_with('#')) {
            match line.strip_prefix("  ") {
                Some(alternative) => {
                    let tokens = split_alternative(alternative);
                    rules.entry(name).or_default().push(tokens);
                }
                None => name = line,
            }
        }
        for token in rules.values().flatten().flatten() {
            if let Some((rule, _)) = reference(token) {
                assert!(rules.contains_key(rule), "there is no rule {rule}");
            }
        }
        let mut seeds = Vec::new();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        for dir in ["tests", "src/sql", "src/frontend", "src/attacks"] {
            collect_literals(&root.join(dir), &mut seeds);
        }
        if let Some(dir) = std::env::var_os("PGTENANT_ORACLE_SQL") {
            collect_sql(Path::new(&dir), &mut seeds);
        }
        Self { rules, seeds }
    }

    /// A text of one or a few statements.
    pub fn text(&self, rng: &mut StdRng) -> String {
        let mut tokens = Vec::new();
        for number in 0..*[1, 1, 2, 2, 3].choose(rng).unwrap() {
            if number > 0 {
                tokens.push(";".to_owned());
            }
            let mut statement = match rng.random_range(0..4) {
                0 if !self.seeds.is_empty() => self.seeds.choose(rng).unwrap().clone(),
                _ => {
                    let mut statement = Vec::new();
                    self.derive("stmt", 0, rng, &mut statement);
                    statement
                }
            };
            if rng.random_ratio(1, 4) {
                self.mutate(&mut statement, rng);
            }
            tokens.extend(statement);
        }
        spell(&tokens, rng)
    }

    fn derive(&self, rule: &str, depth: u32, rng: &mut StdRng, tokens: &mut Vec<String>) {
        let alternatives = &self.rules[rule];
        let is_deep = depth > MAX_DEPTH;
        let is_leaf = |alternative: &&Vec<&'static str>| {
            let mut references = alternative.iter().filter_map(|token| reference(token));
            !references.any(|(_, how)| how != "?")
        };
        let leaf = alternatives.iter().find(is_leaf);
        let chosen = match (is_deep, leaf) {
            (true, Some(leaf)) => leaf,
            (true, None) => &alternatives[0],
            _ => alternatives.choose(rng).unwrap(),
        };
        for token in chosen {
            let Some((inner, how)) = reference(token) else {
                tokens.push((*token).to_owned());
                continue;
            };
            let times = match how {
                "?" => u32::from(!is_deep && rng.random()),
                "," if !is_deep => *[1, 1, 1, 2, 3].choose(rng).unwrap(),
                _ => 1,
            };
            for number in 0..times {
                if number > 0 {
                    tokens.push(",".to_owned());
                }
                self.derive(inner, depth + 1, rng, tokens);
            }
        }
    }

    /// Tokens dropped, doubled, exchanged, or taken from elsewhere.
    fn mutate(&self, tokens: &mut Vec<String>, rng: &mut StdRng) {
        for _ in 0..rng.random_range(1..4) {
            if tokens.is_empty() {
                return;
            }
            let at = rng.random_range(0..tokens.len());
            match rng.random_range(0..6) {
                0 => drop(tokens.remove(at)),
                1 => tokens.insert(at, tokens[at].clone()),
                2 => {
                    let other = rng.random_range(0..tokens.len());
                    tokens.swap(at, other);
                }
                3 => {
                    if let Some(seed) = self.seeds.choose(rng).and_then(|seed| seed.choose(rng)) {
                        tokens[at] = seed.clone();
                    }
                }
                4 => {
                    let mut piece = Vec::new();
                    self.derive("fname_word", 0, rng, &mut piece);
                    tokens.splice(at..=at, piece);
                }
                _ => {
                    let rule = *["expr", "call", "word", "select"].choose(rng).unwrap();
                    let mut piece = Vec::new();
                    self.derive(rule, MAX_DEPTH - 3, rng, &mut piece);
                    tokens.splice(at..=at, piece);
                }
            }
        }
    }
}

/// The tokens of an alternative. A string may have spaces in it.
fn split_alternative(mut rest: &'static str) -> Vec<&'static str> {
    let mut tokens = Vec::new();
    while let Some(first) = rest.as_bytes().first() {
        let end = match first {
            b'\'' => 2 + rest[1..].find('\'').unwrap(),
            _ => rest.find(' ').unwrap_or(rest.len()),
        };
        tokens.push(&rest[..end]);
        rest = rest[end..].trim_start();
    }
    tokens
}

/// The rule that a token stands for, and what is written behind it.
fn reference(token: &'static str) -> Option<(&'static str, &'static str)> {
    let (rule, how) = token.strip_prefix('<')?.split_once('>')?;
    (!rule.is_empty()).then_some((rule, how))
}

/// Strings in the source that are SQL.
fn collect_literals(dir: &Path, seeds: &mut Vec<Vec<String>>) {
    for entry in std::fs::read_dir(dir).expect("a directory of this repository") {
        let path = entry.expect("an entry").path();
        let extension = path.extension().and_then(|name| name.to_str());
        match extension {
            _ if path.is_dir() => collect_literals(&path, seeds),
            Some("rs") if !path.ends_with("generate.rs") => {
                let source = std::fs::read_to_string(&path).expect("a source");
                for literal in source.split('"').filter(|literal| literal.len() < 500) {
                    keep_statements(&literal.replace("\\'", "'"), seeds);
                }
            }
            _ => {}
        }
    }
}

/// Statements of files of SQL, such as PostgreSQL's regression tests.
fn collect_sql(dir: &Path, seeds: &mut Vec<Vec<String>>) {
    for entry in std::fs::read_dir(dir).expect("the directory of PGTENANT_ORACLE_SQL") {
        let path = entry.expect("an entry").path();
        if let Ok(text) = std::fs::read_to_string(&path) {
            for statement in text.split(";\n").filter(|statement| statement.len() < 2000) {
                keep_statements(statement, seeds);
            }
        }
    }
}

fn keep_statements(text: &str, seeds: &mut Vec<Vec<String>>) {
    if text.contains('\0') || pg_query::parse(text, 0).is_err() {
        return;
    }
    let tokens = super::scanned(text).unwrap_or_default();
    let raw = tokens
        .iter()
        .map(|token| text[token.start as usize..token.end as usize].to_owned())
        // Comments are made anew.
        .filter(|token| !token.starts_with("--") && !token.starts_with("/*"));
    let raw: Vec<_> = raw.collect();
    if !raw.is_empty() {
        seeds.push(raw);
    }
}

/// Writes tokens down, each in one of the ways there are, with something or nothing between.
fn spell(tokens: &[String], rng: &mut StdRng) -> String {
    let mut text = String::new();
    let plain = rng.random_ratio(1, 3);
    for token in tokens {
        let before = text.chars().last();
        let touches = |c: char| c.is_alphanumeric() || "_$'\"".contains(c);
        let must = before.is_some_and(touches) && token.starts_with(touches);
        text.push_str(&gap(must, plain, rng));
        match plain {
            true => text.push_str(token),
            false => spell_token(token, rng, &mut text),
        }
    }
    text
}

fn gap(must: bool, plain: bool, rng: &mut StdRng) -> String {
    let often = match plain {
        true => 0,
        false => rng.random_range(0..40),
    };
    let gap = match often {
        0..24 => " ",
        24..28 if must => "\n",
        24..28 => "",
        28 => "/* c */",
        29 => "/* ' /* \" */ $$ */",
        30 => "-- it's\n",
        31 => "\n-- $a$ \" /*\r",
        32 => "\t \r\n",
        33 => "\x0b\x0c",
        34 => " /**/ ",
        35 => "/*/**/*/",
        _ => " ",
    };
    gap.to_owned()
}

fn spell_token(token: &str, rng: &mut StdRng, text: &mut String) {
    match token.as_bytes() {
        [b'\'', .., b'\''] if !token[1..token.len() - 1].contains('\'') => {
            spell_string(&token[1..token.len() - 1], rng, text);
        }
        [b'a'..=b'z' | b'_', ..] => match rng.random_range(0..24) {
            0 => text.push_str(&token.to_uppercase()),
            1 => text.push_str(&format!("\"{token}\"")),
            2 if rng.random_ratio(1, 8) => text.push_str(&format!("U&\"{token}\"")),
            _ => text.push_str(token),
        },
        [b'A'..=b'Z', ..] => match rng.random_range(0..3) {
            0 => text.push_str(&token.to_lowercase()),
            1 => {
                for (at, c) in token.chars().enumerate() {
                    match at % 2 {
                        0 => text.push(c.to_ascii_lowercase()),
                        _ => text.push(c),
                    }
                }
            }
            _ => text.push_str(token),
        },
        _ => text.push_str(token),
    }
}

fn spell_string(value: &str, rng: &mut StdRng, text: &mut String) {
    let half = value.len() / 2;
    // Code is mostly written between dollars.
    let is_code = value.starts_with("BEGIN") && rng.random();
    let way = match is_code {
        true => rng.random_range(2..5),
        false => rng.random_range(0..28),
    };
    let written = match way {
        0 => format!("E'{value}'"),
        1 => format!("e'{value}\\x41'"),
        2 => format!("$${value}$$"),
        3 => format!("$a${value}$a$"),
        4 => format!("$é_1${value}$é_1$"),
        5 if value.is_char_boundary(half) => {
            format!("'{}'\n '{}'", &value[..half], &value[half..])
        }
        6 if value.is_char_boundary(half) => {
            format!(
                "'{}' -- it's\n-- so\n\t'{}'",
                &value[..half],
                &value[half..]
            )
        }
        7 => format!("'{value}''; SET role = b --'"),
        8 => format!("E'{value}\\'; SELECT 1 --'"),
        9 => format!("N'{value}'"),
        10 if rng.random_ratio(1, 8) => format!("U&'{value}' UESCAPE '!'"),
        11 => format!("'{value}é'"),
        12 => "B'01'".to_owned(),
        13 => format!("$_${value} $$ $a$ ' $_$"),
        14 => format!("'{value}\\'"),
        _ => format!("'{value}'"),
    };
    text.push_str(&written);
}

/// Pieces that mean something else in a string, a comment or behind each other.
const PIECES: &[&str] = &[
    "'",
    "'",
    "''",
    "\"",
    "\"\"",
    "$$",
    "$a$",
    "$ab$",
    "$a",
    "$1",
    "$12x",
    "$é$",
    "$_1$",
    "$A$",
    "$",
    "--",
    "--\n",
    "\n",
    "\r",
    "\r\n",
    "/*",
    "*/",
    "/*",
    "*/",
    "/",
    "*",
    "-",
    "+",
    "|",
    "\\",
    "\\'",
    "\\\\",
    "E'",
    "e'",
    "B'",
    "x'",
    "N'",
    "n'",
    "U&'",
    "u&\"",
    "U&",
    "u",
    "UESCAPE '!'",
    "e",
    "n",
    "b",
    "x",
    " ",
    " ",
    "\t",
    "\x0b",
    "\x0c",
    ";",
    ";",
    "a",
    "é",
    "日本",
    "\u{a0}",
    "Ａ",
    "_",
    "0",
    "1",
    "1.",
    ".5",
    "1e5",
    "1e",
    "1e-",
    "0x",
    "0x1F",
    "1_000",
    "1__0",
    "1a",
    "..",
    ".",
    ",",
    "(",
    ")",
    "[",
    "]",
    ":",
    "::",
    ":=",
    "=>",
    "<=",
    "<>",
    "!=",
    "@-",
    "+-",
    "*-",
    "-/",
    "@/*",
    "?--",
    "<--",
    "!",
    "~",
    "`",
    "&",
    "#",
    "%",
    "^",
    "{",
    "}",
    "\x01",
    "\x7f",
    "SELECT",
    "set",
    "DO",
    "\\d",
    "\\.",
    ":var",
    "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijklmnopq",
];

/// A text of pieces, most of which is no SQL.
pub fn pieces(rng: &mut StdRng) -> String {
    let count = rng.random_range(1..14);
    (0..count).map(|_| *PIECES.choose(rng).unwrap()).collect()
}
