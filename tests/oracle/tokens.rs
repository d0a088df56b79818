//! The lexer beside PostgreSQL's scanner: the same words, names, strings and symbols in the same
//! order.

use pg_query::protobuf::{ScanToken, Token as Kind};
use pgtenant::sql::lexer::{Lexer, Sink, Token};

/// A token, of either side.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Word(Vec<u8>),
    Quoted(Vec<u8>),
    Unicode,
    /// None: what the string holds is not told.
    Text(Option<Vec<u8>>),
    /// One number or several without a space, with the dots beside them: how they are cut matters
    /// to nobody.
    Number,
    Parameter,
    Symbol(u8),
}

/// Longest name that is told, in bytes (`NAMEDATALEN` - 1).
const MAX_NAME: usize = 63;

#[derive(Default)]
struct Told(Vec<Piece>);

impl Sink for Told {
    fn token(&mut self, token: Token<'_>) {
        self.0.push(match token {
            Token::Word(word) => Piece::Word(word.to_vec()),
            Token::Quoted(name) => Piece::Quoted(name.to_vec()),
            Token::Unicode(_) => Piece::Unicode,
            Token::Text(text) => Piece::Text(text.map(<[u8]>::to_vec)),
            Token::Number => Piece::Number,
            Token::Parameter => Piece::Parameter,
            Token::Symbol(symbol) => Piece::Symbol(symbol),
        });
    }

    fn reads_code(&self) -> bool {
        false
    }
}

/// What the lexer says, which reads `piece` bytes at a time. None: the text ends in the middle of
/// something.
fn told(sql: &str, piece: usize) -> Option<Vec<Piece>> {
    let mut told = Told::default();
    let mut lexer = Lexer::new(false);
    for piece in sql.as_bytes().chunks(piece) {
        lexer.feed(piece, &mut told);
    }
    lexer.finish(&mut told).then_some(told.0)
}

/// What the lexer should say, given PostgreSQL's tokens.
fn expected(sql: &str, tokens: &[ScanToken]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut end_of_bits = None;
    for (index, token) in tokens.iter().enumerate() {
        let raw = &sql.as_bytes()[token.start as usize..token.end as usize];
        let next = tokens.get(index + 1);
        let is_before_string = next.is_some_and(|next| {
            next.token == Kind::Sconst as i32 && next.start == token.end && token.end > token.start
        });
        match Kind::try_from(token.token).unwrap_or(Kind::Nul) {
            Kind::SqlComment | Kind::CComment => {}
            // N'…' is two tokens there.
            Kind::Nchar if is_before_string => {}
            Kind::Uident | Kind::Usconst => pieces.push(Piece::Unicode),
            Kind::Sconst if end_of_bits == Some(token.start) && raw[0] == b'\'' => {
                // B'1''0' is two strings there, and wrong.
                if let Some(Piece::Text(text)) = pieces.last_mut() {
                    *text = None;
                }
            }
            Kind::Sconst => pieces.push(Piece::Text(value(raw))),
            Kind::Bconst | Kind::Xconst => {
                end_of_bits = Some(token.end);
                pieces.push(Piece::Text(None));
            }
            Kind::Param => pieces.push(Piece::Parameter),
            Kind::Iconst | Kind::Fconst => split_number(raw, &mut pieces),
            _ if raw[0] == b'"' => {
                let name = String::from_utf8_lossy(&raw[1..raw.len() - 1]).replace("\"\"", "\"");
                pieces.push(Piece::Quoted(cut(name.as_bytes())));
            }
            _ if raw[0].is_ascii_alphabetic() || raw[0] == b'_' || !raw[0].is_ascii() => {
                pieces.push(Piece::Word(cut(&raw.to_ascii_lowercase())));
            }
            _ => pieces.extend(raw.iter().map(|&symbol| Piece::Symbol(symbol))),
        }
    }
    pieces
}

fn cut(name: &[u8]) -> Vec<u8> {
    name[..name.len().min(MAX_NAME)].to_vec()
}

/// The kinds of numbers are not told: the letters in one are a word.
fn split_number(raw: &[u8], pieces: &mut Vec<Piece>) {
    let mut at = 0;
    while at < raw.len() {
        let run = |of: fn(&u8) -> bool| raw[at..].iter().take_while(|byte| of(byte)).count();
        at += match raw[at] {
            b'0'..=b'9' => {
                pieces.push(Piece::Number);
                run(|byte| byte.is_ascii_digit() || *byte == b'.')
            }
            b'a'..=b'z' | b'A'..=b'Z' | b'_' => {
                let length = run(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
                let word = cut(&raw[at..at + length].to_ascii_lowercase());
                pieces.push(Piece::Word(word));
                length
            }
            symbol => {
                pieces.push(Piece::Symbol(symbol));
                1
            }
        };
    }
}

/// What a string holds. None: it has escapes.
fn value(raw: &[u8]) -> Option<Vec<u8>> {
    if raw[0] == b'$' {
        let tag = 2 + raw[1..].iter().position(|byte| *byte == b'$').unwrap();
        return Some(raw[tag..raw.len() - tag].to_vec());
    }
    if raw[0].eq_ignore_ascii_case(&b'e') && raw.contains(&b'\\') {
        return None;
    }
    let mut value = Vec::new();
    let mut rest = raw;
    // Each part of it, as it goes on behind a newline.
    while let Some(open) = opening(rest) {
        rest = &rest[open + 1..];
        loop {
            let quote = rest.iter().position(|byte| *byte == b'\'').unwrap();
            value.extend_from_slice(&rest[..quote]);
            rest = &rest[quote + 1..];
            if rest.first() != Some(&b'\'') {
                break;
            }
            value.push(b'\'');
            rest = &rest[1..];
        }
    }
    Some(value)
}

/// Where the next quote is that is not in a comment.
fn opening(rest: &[u8]) -> Option<usize> {
    let mut in_comment = false;
    rest.iter().enumerate().position(|(at, byte)| {
        in_comment |= rest[at..].starts_with(b"--");
        in_comment &= !matches!(byte, b'\n' | b'\r');
        !in_comment && *byte == b'\''
    })
}

/// Numbers with the dots beside them become one.
fn merged(pieces: Vec<Piece>) -> Vec<Piece> {
    let mut merged: Vec<Piece> = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let after_number = merged.last() == Some(&Piece::Number);
        match piece {
            Piece::Symbol(b'.') | Piece::Number if after_number => {}
            Piece::Number => {
                while merged.last() == Some(&Piece::Symbol(b'.')) {
                    merged.pop();
                }
                if merged.last() != Some(&Piece::Number) {
                    merged.push(Piece::Number);
                }
            }
            piece => merged.push(piece),
        }
    }
    merged
}

fn agree(told: &Piece, expected: &Piece) -> bool {
    match (told, expected) {
        (Piece::Text(None), Piece::Text(Some(value))) => value.len() > 128,
        (Piece::Text(_), Piece::Text(None)) => true,
        _ => told == expected,
    }
}

/// How the lexer reads a text differently from PostgreSQL, which has cut it into `tokens`.
pub fn difference(sql: &str, tokens: &[ScanToken]) -> Option<String> {
    let expected = merged(expected(sql, tokens));
    for piece in [sql.len().max(1), 1 + sql.len() % 7] {
        let Some(told) = told(sql, piece).map(merged) else {
            return Some("the lexer finds no end".to_owned());
        };
        let same = told.iter().zip(&expected);
        let same = same.take_while(|(told, expected)| agree(told, expected));
        let same = same.count();
        if same < told.len().max(expected.len()) {
            return Some(format!(
                "a token is {:?}, not {:?}",
                told.get(same),
                expected.get(same)
            ));
        }
    }
    None
}
