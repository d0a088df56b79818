//! Where the statements of a text end, as PostgreSQL's grammar has it: at semicolons, but for those
//! in parentheses (the commands of a rule) and in the body of a function in standard SQL (BEGIN
//! ATOMIC … END).

use super::tokens::Token;

#[derive(Default)]
pub struct Cutter {
    head: Head,
    /// Parentheses that are open.
    depth: usize,
    /// BEGIN ATOMIC and CASE that are open.
    blocks: usize,
    previous: Previous,
}

/// How a statement begins.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Head {
    #[default]
    Nothing,
    /// CREATE, or CREATE OR, or CREATE OR REPLACE.
    Create,
    /// … FUNCTION or PROCEDURE.
    Routine,
    Other,
}

/// The token before, as far as it matters.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Previous {
    #[default]
    Other,
    Begin,
    /// AS or a dot: a label comes next, whatever the word.
    Label,
}

impl Cutter {
    /// Takes the next token. True: it is the semicolon that ends a statement.
    pub fn ends(&mut self, token: &Token) -> bool {
        let previous = std::mem::take(&mut self.previous);
        match token {
            Token::Symbol(';') if self.depth == 0 && self.blocks == 0 => {
                *self = Self::default();
                return true;
            }
            Token::Symbol('(') => self.depth += 1,
            Token::Symbol(')') => self.depth = self.depth.saturating_sub(1),
            Token::Symbol('.') => self.previous = Previous::Label,
            Token::Word(word) => self.take_word(word, previous),
            _ => {}
        }
        if self.head == Head::Nothing {
            self.head = Head::Other;
        }
        false
    }

    fn take_word(&mut self, word: &str, previous: Previous) {
        self.head = match (self.head, word) {
            (Head::Nothing, "create") | (Head::Create, "or" | "replace") => Head::Create,
            (Head::Create, "function" | "procedure") => Head::Routine,
            (Head::Routine, _) => Head::Routine,
            _ => Head::Other,
        };
        match word {
            _ if self.head != Head::Routine || previous == Previous::Label => {}
            "as" => self.previous = Previous::Label,
            "begin" if self.blocks == 0 && self.depth == 0 => self.previous = Previous::Begin,
            "atomic" if previous == Previous::Begin => self.blocks = 1,
            "case" if self.blocks > 0 => self.blocks += 1,
            "end" => self.blocks = self.blocks.saturating_sub(1),
            _ => {}
        }
    }
}

/// The statements of a text; empty ones are left out. `token`: what of an item is its token.
pub fn statements<T>(items: &[T], token: impl Fn(&T) -> &Token) -> impl Iterator<Item = &[T]> {
    let mut cutter = Cutter::default();
    let statements = items.split(move |item| cutter.ends(token(item)));
    statements.filter(|statement| !statement.is_empty())
}

#[cfg(test)]
mod tests {
    use super::super::tokens::tokens;
    use super::*;

    #[test]
    fn a_text_is_cut_where_postgresql_cuts_it() {
        for (text, expected) in [
            ("SELECT 1; SELECT 2;;", 2),
            (
                "CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2); SELECT 3",
                2,
            ),
            (
                "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END; SELECT 3",
                2,
            ),
            (
                "create or replace procedure f(a int, b text) LANGUAGE sql begin ATOMIC \
                 SELECT CASE WHEN a > 1 THEN CASE b WHEN 'x' THEN 1 END ELSE 2 END; \
                 SELECT 1 AS end, t.end, \"end\" FROM t; END; COMMIT",
                2,
            ),
            ("CREATE FUNCTION f() RETURNS int RETURN 1; END", 2),
            (
                "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'BEGIN ATOMIC'; END",
                2,
            ),
            ("CREATE VIEW v AS SELECT begin atomic FROM t; END", 2),
            ("BEGIN; SELECT 1; END", 3),
            ("SELECT begin atomic FROM t; END", 2),
        ] {
            let tokens = tokens(text, false).expect("can be cut");
            let found = statements(&tokens, |token| token).count();
            assert_eq!(found, expected, "{text}");
        }
    }
}
