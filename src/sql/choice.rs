//! Texts by which an application says for which tenant it works, and what they say: a variable that
//! is set, `set_config`, RESET and SHOW of it, and the commands that begin and end the transactions
//! and savepoints such a choice lives in.
//!
//! It reads the forms that it knows, and of a text that names a variable in any other way it says
//! [`Step::Unclear`]: nothing is guessed.

mod cut;
mod returned;
mod tokens;

pub use self::returned::returned;
use super::effects::{Effects, What};
use super::{literal, quoted};
use cut::statements;
use tokens::{Token, tokens};

/// Longest text that is read, in bytes.
pub const MAX_TEXT: usize = 64 * 1024;

/// How long a choice is to last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Session,
    /// Up to the end of the transaction.
    Local,
}

/// Something that is written in the statement, or comes as a parameter of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Term {
    Literal(String),
    /// `$n`.
    Parameter(u16),
    Null,
}

/// `set_config(name, value, is_local)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetConfig {
    pub name: Term,
    pub value: Term,
    pub is_local: Term,
}

/// A parameter that is set, or returns to its default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// Position in the list of variables.
    pub variable: usize,
    pub scope: Scope,
    /// None: the default.
    pub value: Option<String>,
}

/// One statement of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// BEGIN or START TRANSACTION, whole. `starts`: it is the latter.
    Begin {
        starts: bool,
        text: String,
    },
    Commit {
        chain: bool,
    },
    Rollback {
        chain: bool,
    },
    /// PREPARE TRANSACTION.
    Prepare,
    Savepoint(String),
    Release(String),
    RollbackTo(String),
    /// SET TRANSACTION, whole.
    Characteristics(String),
    /// SET LOCAL of another parameter, named in lower case, and the whole of it.
    SetsLocally(String, String),
    /// SET of a variable.
    Set(Chosen),
    /// RESET of the variable at this position.
    Reset(usize),
    /// A SELECT of nothing but one `set_config`; and what the column is called.
    SetConfig(SetConfig, String),
    /// A SELECT of nothing but several of them, and what their columns are called.
    SetConfigs(Vec<(SetConfig, String)>),
    /// `SELECT set_config(el->>0, el->>1, true) FROM json_array_elements($1::json) el`.
    FromJson(Term),
    /// A SELECT of nothing but a call of the function at this position, what names the tenant in
    /// it, and how many parameters it has.
    Call(usize, Term, usize),
    /// SHOW of the variable at this position.
    Show(usize),
    /// DISCARD ALL or RESET ALL.
    ResetAll,
    /// DEALLOCATE or DISCARD ALL: names of prepared statements go. None: all of them.
    Deallocate(Option<String>),
    /// It names a variable in another way, or may.
    Unclear,
    /// No statement at all.
    Empty,
    /// Anything else.
    Other,
}

impl Step {
    /// Whether it chooses, or may.
    pub fn may_choose(&self) -> bool {
        matches!(
            self,
            Self::Set(_)
                | Self::Reset(_)
                | Self::SetConfig(..)
                | Self::SetConfigs(_)
                | Self::FromJson(_)
                | Self::Call(..)
                | Self::ResetAll
                | Self::Unclear
        )
    }
}

/// A function of the application's that chooses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChoosingFunction {
    /// In lower case; without a schema it is called with or without one.
    pub schema: Option<Box<str>>,
    pub name: Box<str>,
    /// Which of its arguments is the tenant, from 1.
    pub argument: usize,
    /// Up to the end of the transaction only.
    pub is_local: bool,
}

/// The statements of a text, in order; empty ones are none. `variables` are in lower case,
/// `backslashes`: `standard_conforming_strings` is off.
pub fn read(text: &[u8], variables: &[Box<str>], backslashes: bool) -> Vec<Step> {
    read_all(text, variables, &[], backslashes)
}

/// What pg_dump sets if the server has it, and to what:
/// `SELECT set_config(name, 'value', false) FROM pg_settings WHERE name = 'name'`.
pub fn set_as_pg_dump(text: &[u8], backslashes: bool) -> Option<(String, String)> {
    let tokens = tokens(readable(text)?, backslashes)?;
    let mut statements = statements(&tokens, |token| token);
    let (statement, None) = (statements.next()?, statements.next()) else {
        return None;
    };
    let [
        select,
        call,
        open,
        argument,
        comma,
        Token::Text(value),
        rest @ ..,
    ] = statement
    else {
        return None;
    };
    let [
        second,
        is_local,
        close,
        from,
        settings,
        clause,
        column,
        equals,
        Token::Text(name),
    ] = rest
    else {
        return None;
    };
    let words = [
        (select, "select"),
        (call, "set_config"),
        (argument, "name"),
        (is_local, "false"),
        (from, "from"),
        (settings, "pg_settings"),
        (clause, "where"),
        (column, "name"),
    ];
    let symbols = [
        (open, '('),
        (comma, ','),
        (second, ','),
        (close, ')'),
        (equals, '='),
    ];
    let is_it = words.iter().all(|(token, word)| token.is_word(word))
        && symbols
            .iter()
            .all(|(token, symbol)| token.is_symbol(*symbol));
    is_it.then(|| (name.clone(), value.clone()))
}

/// As [`read`], and calls of `functions`.
pub fn read_all(
    text: &[u8],
    variables: &[Box<str>],
    functions: &[ChoosingFunction],
    backslashes: bool,
) -> Vec<Step> {
    let may_set = |effects: &Effects| {
        let mut names = effects.sets();
        let unknown = What::SETS_UNKNOWN | What::SETS_UNKNOWN_LOCALLY | What::HIDDEN;
        effects.what.intersects(unknown | What::RESETS_ALL)
            || names.any(|name| variables.iter().any(|variable| **variable == *name))
    };
    let effects = || Effects::of(text, backslashes);
    let Some(tokens) = readable(text).and_then(|text| tokens(text, backslashes)) else {
        // How many statements it has is not known: none of them may end a transaction.
        let effects = effects();
        let calls = |function: &ChoosingFunction| super::finds(text, function.name.as_bytes());
        let may_choose = may_set(&effects) || functions.iter().any(calls);
        return vec![match may_choose || effects.controls {
            true => Step::Unclear,
            false => Step::Other,
        }];
    };
    let mut steps: Vec<_> = statements(&tokens, |token| token)
        .map(|statement| Statement(statement, variables, functions).step())
        .collect();
    mark_calls(&mut steps, &tokens, functions);
    // What was not understood may set something nevertheless.
    let is_read = |step: &Step| step.may_choose() && *step != Step::Unclear;
    let others = steps.iter().any(|step| matches!(step, Step::Other));
    if others && !steps.iter().any(is_read) && may_set(&effects()) {
        for step in steps.iter_mut().filter(|step| **step == Step::Other) {
            *step = Step::Unclear;
        }
    } else if others && steps.iter().any(is_read) {
        let is_hidden = effects().what.contains(What::HIDDEN);
        mark_unclear(&mut steps, &tokens, variables, is_hidden);
    }
    steps
}

/// A text that can be cut into tokens. None: it is too long, or no UTF-8.
fn readable(text: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(text).ok();
    text.filter(|text| text.len() <= MAX_TEXT)
}

/// What calls one of the functions in a way that is not read is unclear.
fn mark_calls(steps: &mut [Step], tokens: &[Token], functions: &[ChoosingFunction]) {
    if functions.is_empty() {
        return;
    }
    for (step, statement) in steps.iter_mut().zip(statements(tokens, |token| token)) {
        let names = |token: &Token| match token {
            Token::Word(word) | Token::Quoted(word) => {
                functions.iter().any(|function| *function.name == **word)
            }
            // The code of DO; other strings are data.
            Token::Text(text) if statement[0].is_word("do") => {
                let text = text.as_bytes();
                functions
                    .iter()
                    .any(|function| super::finds(text, function.name.as_bytes()))
            }
            _ => false,
        };
        if *step == Step::Other && statement.iter().any(names) {
            *step = Step::Unclear;
        }
    }
}

/// Of a text that chooses, other statements that could do so as well are unclear. `is_hidden`: any
/// could.
fn mark_unclear(steps: &mut [Step], tokens: &[Token], variables: &[Box<str>], is_hidden: bool) {
    for (step, statement) in steps.iter_mut().zip(statements(tokens, |token| token)) {
        // A name may be written with spaces and quotes between its parts.
        let spells = |word: &str| {
            let mut names = variables.iter();
            names.any(|name| name.contains('.') && name.split('.').all(|part| word.contains(part)))
        };
        // PostgreSQL's own parameters are set by SET, which is read, or by set_config.
        let names = |word: &str| {
            let mut names = variables.iter();
            names.any(|name| name.contains('.') && word.contains(&**name))
        };
        let may_set = |token: &Token| match token {
            Token::Word(word) | Token::Quoted(word) | Token::Text(word) => {
                let word = word.to_ascii_lowercase();
                word.contains("set_config")
                    || word.contains("pg_settings")
                    || word == "do"
                    || word == "execute"
                    || names(&word)
                    || (matches!(token, Token::Text(_)) && spells(&word))
            }
            _ => false,
        };
        // What asks for the value by its name sets nothing.
        let asks = |at: usize| match statement.get(at.wrapping_sub(2)..=at) {
            Some([function, open, Token::Text(name)]) => {
                function.is_word("current_setting")
                    && open.is_symbol('(')
                    && variables.iter().any(|own| own.eq_ignore_ascii_case(name))
            }
            _ => false,
        };
        let mut tokens = statement.iter().enumerate();
        if *step == Step::Other
            && (is_hidden || tokens.any(|(at, token)| may_set(token) && !asks(at)))
        {
            *step = Step::Unclear;
        }
    }
}

/// Tokens of one statement, the variables, and functions that choose.
#[derive(Clone, Copy)]
struct Statement<'t>(&'t [Token], &'t [Box<str>], &'t [ChoosingFunction]);

/// What is left of a statement that is read from left to right.
struct Rest<'t>(&'t [Token]);

impl<'t> Rest<'t> {
    fn next(&mut self) -> Option<&'t Token> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn word(&mut self, word: &str) -> bool {
        let is_there = self.0.first().is_some_and(|token| token.is_word(word));
        if is_there {
            self.next();
        }
        is_there
    }

    fn any_word(&mut self, words: &[&str]) -> bool {
        words.iter().any(|word| self.word(word))
    }

    fn symbol(&mut self, symbol: char) -> bool {
        let is_there = self.0.first().is_some_and(|token| token.is_symbol(symbol));
        if is_there {
            self.next();
        }
        is_there
    }

    fn token(&mut self, token: &Token) -> bool {
        let is_there = self.0.first() == Some(token);
        if is_there {
            self.next();
        }
        is_there
    }

    fn name(&mut self) -> Option<&'t str> {
        self.next()?.name()
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The name of a parameter, in lower case: `a`, `a.b`, `a.b.c`.
    fn parameter(&mut self) -> Option<String> {
        let mut name = self.name()?.to_owned();
        while self.symbol('.') {
            name.push('.');
            name.push_str(self.name()?);
        }
        Some(name.to_ascii_lowercase())
    }

    /// A string, a number or a word, as SET takes it for a value (gram.y: var_value).
    fn value(&mut self) -> Option<String> {
        let sign = match (self.symbol('-'), self.symbol('+')) {
            (true, false) => "-",
            (false, _) => "",
            (true, true) => return None,
        };
        match self.next()? {
            Token::Number(number) => plain_number(number).map(|number| format!("{sign}{number}")),
            Token::Text(text) if sign.is_empty() => Some(text.clone()),
            Token::Word(word) | Token::Quoted(word) if sign.is_empty() => Some(word.clone()),
            _ => None,
        }
    }

    /// A string, a parameter, true, false or NULL, before its casts.
    fn constant(&mut self) -> Option<Term> {
        Some(match self.next()? {
            Token::Text(text) => Term::Literal(text.clone()),
            Token::Parameter(number) => Term::Parameter(*number),
            Token::Word(word) if matches!(&**word, "true" | "false") => Term::Literal(word.clone()),
            Token::Word(word) if word == "null" => Term::Null,
            _ => return None,
        })
    }

    /// An argument of `set_config`.
    fn term(&mut self) -> Option<Term> {
        let term = self.constant()?;
        while self.token(&Token::Cast) {
            let is_kept = match self.next()? {
                Token::Word(word) => match &term {
                    Term::Literal(text) if matches!(&**text, "true" | "false") => {
                        matches!(&**word, "bool" | "boolean" | "text")
                    }
                    _ => matches!(&**word, "text" | "bool" | "boolean"),
                },
                _ => false,
            };
            if !is_kept {
                return None;
            }
        }
        Some(term)
    }

    /// An argument of a function: a constant or a parameter, with a cast to any type that has a
    /// name of one word.
    fn argument(&mut self) -> Option<Term> {
        let term = match self.0.first()? {
            Token::Number(text) => {
                self.next();
                Term::Literal(text.clone())
            }
            _ => self.constant()?,
        };
        while self.token(&Token::Cast) {
            self.name()?;
        }
        Some(term)
    }

    /// A call of `set_config`, and what its column is called.
    fn set_config(&mut self) -> Option<(SetConfig, String)> {
        if self.word("pg_catalog") && !self.symbol('.') {
            return None;
        }
        if !self.word("set_config") && !self.token(&Token::Quoted("set_config".to_owned())) {
            return None;
        }
        if !self.symbol('(') {
            return None;
        }
        let name = self.term()?;
        let value = self.symbol(',').then(|| self.term())??;
        let is_local = self.symbol(',').then(|| self.term())??;
        if !self.symbol(')') {
            return None;
        }
        let column = match self.word("as") {
            true => self.name()?.to_owned(),
            false => match self.0.first() {
                None | Some(Token::Symbol(',')) => "set_config".to_owned(),
                Some(Token::Quoted(name)) => {
                    self.next();
                    name.clone()
                }
                _ => return None,
            },
        };
        let call = SetConfig {
            name,
            value,
            is_local,
        };
        Some((call, column))
    }
}

/// A number as PostgreSQL writes it into a parameter: an integer by its value, anything else as it
/// was written (guc.c: flatten_set_variable_args). None: servers differ.
fn plain_number(number: &str) -> Option<String> {
    if number.bytes().all(|byte| byte.is_ascii_digit()) {
        let value: u64 = number.parse().ok()?;
        return match i32::try_from(value) {
            Ok(value) => Some(value.to_string()),
            Err(_) => Some(number.to_owned()),
        };
    }
    Some(number.to_owned())
}

impl Statement<'_> {
    fn variable(&self, name: &str) -> Option<usize> {
        let mut variables = self.1.iter();
        variables.position(|variable| **variable == *name)
    }

    fn step(self) -> Step {
        let mut rest = Rest(self.0);
        let Some(Token::Word(first)) = rest.next() else {
            return Step::Other;
        };
        let step = match &**first {
            "begin" => {
                rest.any_word(&["work", "transaction"]);
                modes(&rest).then(|| self.begin(false))
            }
            "start" => (rest.word("transaction") && modes(&rest)).then(|| self.begin(true)),
            "commit" | "end" => end(&mut rest).map(|chain| Step::Commit { chain }),
            "rollback" | "abort" => self.rollback(&mut rest),
            "prepare" => rest.word("transaction").then_some(Step::Prepare),
            "savepoint" => self.last_name(&mut rest).map(Step::Savepoint),
            "release" => self.savepoint(&mut rest).map(Step::Release),
            "set" => self.set(&mut rest),
            "reset" => self.reset(&mut rest),
            "discard" => rest.word("all").then_some(Step::ResetAll),
            "deallocate" => deallocate(&mut rest),
            "show" => self.show(&mut rest),
            "select" => self.select(&mut rest),
            _ => None,
        };
        step.unwrap_or(Step::Other)
    }

    fn begin(&self, starts: bool) -> Step {
        let text = spelled(self.0).unwrap_or_default();
        Step::Begin { starts, text }
    }

    fn last_name(&self, rest: &mut Rest<'_>) -> Option<String> {
        let name = rest.name()?.to_owned();
        rest.is_empty().then_some(name)
    }

    /// `[SAVEPOINT] name`: it may be called `savepoint`.
    fn savepoint(&self, rest: &mut Rest<'_>) -> Option<String> {
        if rest.0.len() > 1 {
            rest.word("savepoint");
        }
        self.last_name(rest)
    }

    fn rollback(&self, rest: &mut Rest<'_>) -> Option<Step> {
        let before = Rest(rest.0);
        rest.any_word(&["work", "transaction"]);
        if rest.word("to") {
            return self.savepoint(rest).map(Step::RollbackTo);
        }
        *rest = before;
        end(rest).map(|chain| Step::Rollback { chain })
    }

    fn set(&self, rest: &mut Rest<'_>) -> Option<Step> {
        let scope = match () {
            () if rest.word("local") => Scope::Local,
            () => {
                // SET session.x is a parameter of that name.
                let is_scope = rest.0.get(1).is_some_and(|next| !next.is_symbol('.'));
                if is_scope {
                    rest.word("session");
                }
                Scope::Session
            }
        };
        if rest.word("transaction") && modes(rest) {
            let text = spelled(self.0).filter(|_| scope == Scope::Session);
            return text.map(Step::Characteristics);
        }
        let name = rest.parameter()?;
        let is_assigned = rest.word("to") || rest.symbol('=');
        let variable = self.variable(&name);
        // SET ROLE has no sign of equality.
        if !is_assigned && (name != "role" || variable.is_none()) {
            return None;
        }
        let value = match is_assigned && rest.word("default") {
            true => None,
            false => Some(rest.value()?),
        };
        if variable.is_some() && name == "search_path" {
            while rest.symbol(',') {
                rest.value()?;
            }
        }
        if !rest.is_empty() {
            return None;
        }
        match (variable, scope) {
            (Some(variable), _) => Some(Step::Set(Chosen {
                variable,
                scope,
                value,
            })),
            (None, Scope::Local) => Some(Step::SetsLocally(name, spelled(self.0)?)),
            (None, Scope::Session) => None,
        }
    }

    fn reset(&self, rest: &mut Rest<'_>) -> Option<Step> {
        if rest.word("all") {
            return rest.is_empty().then_some(Step::ResetAll);
        }
        let variable = self.variable(&rest.parameter()?)?;
        rest.is_empty().then_some(Step::Reset(variable))
    }

    fn show(&self, rest: &mut Rest<'_>) -> Option<Step> {
        let variable = self.variable(&rest.parameter()?)?;
        rest.is_empty().then_some(Step::Show(variable))
    }

    fn select(&self, rest: &mut Rest<'_>) -> Option<Step> {
        if let Some(term) = from_json(rest.0) {
            return Some(Step::FromJson(term));
        }
        if let Some(call) = self.call(rest.0) {
            return Some(call);
        }
        let mut calls = Vec::new();
        loop {
            calls.push(rest.set_config()?);
            if rest.is_empty() {
                break;
            }
            if !rest.symbol(',') {
                return None;
            }
        }
        Some(match calls.pop() {
            Some((call, column)) if calls.is_empty() => Step::SetConfig(call, column),
            last => Step::SetConfigs(calls.into_iter().chain(last).collect()),
        })
    }
}

impl Statement<'_> {
    /// A call of one of the functions, behind SELECT.
    fn call(&self, tokens: &[Token]) -> Option<Step> {
        let mut rest = Rest(tokens);
        let first = rest.name()?;
        let (schema, name) = match rest.symbol('.') {
            true => (Some(first), rest.name()?),
            false => (None, first),
        };
        let mut functions = self.2.iter();
        let at = functions.position(|function| {
            let is_there = function
                .schema
                .as_deref()
                .is_none_or(|own| schema.is_none_or(|schema| own == schema));
            *function.name == *name && is_there
        })?;
        if !rest.symbol('(') {
            return None;
        }
        let mut arguments = Vec::new();
        loop {
            arguments.push(rest.argument()?);
            if rest.symbol(')') {
                break;
            }
            if !rest.symbol(',') {
                return None;
            }
        }
        if rest.word("as") {
            rest.name()?;
        }
        if !rest.is_empty() {
            return None;
        }
        let parameters = arguments.iter().map(|term| match term {
            Term::Parameter(number) => usize::from(*number),
            _ => 0,
        });
        let parameters = parameters.max().unwrap_or_default();
        let term = arguments.into_iter().nth(self.2[at].argument - 1)?;
        Some(Step::Call(at, term, parameters))
    }
}

/// A statement spelled anew. None: with a string that would have to be escaped.
fn spelled(tokens: &[Token]) -> Option<String> {
    let mut text = String::new();
    for token in tokens {
        let follows = !text.is_empty() && !text.ends_with('.') && !token.is_symbol('.');
        if follows {
            text.push(' ');
        }
        match token {
            Token::Word(word) | Token::Number(word) => text.push_str(word),
            Token::Quoted(name) => text.push_str(&quoted(name)),
            Token::Text(value) if value.contains('\\') => return None,
            Token::Text(value) => {
                text.push_str(&literal(value));
            }
            Token::Symbol(symbol) => text.push(*symbol),
            Token::Bits | Token::Parameter(_) | Token::Cast | Token::AsText => return None,
        }
    }
    Some(text)
}

/// Whether only the modes of a transaction are left: their words, and commas.
fn modes(rest: &Rest<'_>) -> bool {
    const MODES: [&str; 12] = [
        "isolation",
        "level",
        "read",
        "only",
        "write",
        "serializable",
        "repeatable",
        "committed",
        "uncommitted",
        "not",
        "deferrable",
        ",",
    ];
    rest.0.iter().all(|token| match token {
        Token::Word(word) => MODES.contains(&&**word),
        token => token.is_symbol(','),
    })
}

/// The rest of COMMIT and ROLLBACK: whether another transaction follows at once.
fn end(rest: &mut Rest<'_>) -> Option<bool> {
    rest.any_word(&["work", "transaction"]);
    let chain = match rest.word("and") {
        true => {
            let no = rest.word("no");
            if !rest.word("chain") {
                return None;
            }
            !no
        }
        false => false,
    };
    rest.is_empty().then_some(chain)
}

fn deallocate(rest: &mut Rest<'_>) -> Option<Step> {
    rest.word("prepare");
    let name = match rest.next()? {
        Token::Word(word) if word == "all" => None,
        token => Some(token.name()?.to_owned()),
    };
    rest.is_empty().then_some(Step::Deallocate(name))
}

/// The text by which PostGraphile sets its variables, behind SELECT.
fn from_json(tokens: &[Token]) -> Option<Term> {
    let mut rest = Rest(tokens);
    let number = |n: &str| Token::Number(n.to_owned());
    let matches = rest.word("set_config") && rest.symbol('(');
    let element = matches.then(|| rest.name())??;
    let matches = rest.token(&Token::AsText)
        && rest.token(&number("0"))
        && rest.symbol(',')
        && rest.word(element)
        && rest.token(&Token::AsText)
        && rest.token(&number("1"))
        && rest.symbol(',')
        && rest.word("true")
        && rest.symbol(')')
        && rest.word("from")
        && rest.word("json_array_elements")
        && rest.symbol('(');
    let term = match matches.then(|| rest.next())?? {
        Token::Parameter(number) => Term::Parameter(*number),
        Token::Text(text) => Term::Literal(text.clone()),
        _ => return None,
    };
    let matches = rest.token(&Token::Cast) && rest.word("json") && rest.symbol(')');
    rest.word("as");
    (matches && rest.word(element) && rest.is_empty()).then_some(term)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(sql: &str) -> Vec<Step> {
        let variables = ["app.tenant_id".into(), "my.app.org".into()];
        read(sql.as_bytes(), &variables, false)
    }

    fn begin(starts: bool, text: &str) -> Step {
        Step::Begin {
            starts,
            text: text.to_owned(),
        }
    }

    fn set(variable: usize, scope: Scope, value: Option<&str>) -> Step {
        Step::Set(Chosen {
            variable,
            scope,
            value: value.map(str::to_owned),
        })
    }

    #[test]
    fn a_variable_that_is_set_is_read_in_every_form() {
        let session = |value| set(0, Scope::Session, value);
        let local = |value| set(0, Scope::Local, value);
        for (sql, expected) in [
            ("SET app.tenant_id = 'a'", session(Some("a"))),
            ("set session App.Tenant_ID to 'a''b'", session(Some("a'b"))),
            ("SET \"app\".\"tenant_id\" TO $$x$$;", session(Some("x"))),
            ("SET app.tenant_id = E'\\x61'", session(Some("a"))),
            ("SET app.tenant_id TO 1", session(Some("1"))),
            ("SET app.tenant_id TO 0012", session(Some("12"))),
            ("SET app.tenant_id TO -1", session(Some("-1"))),
            ("SET app.tenant_id TO 1.50", session(Some("1.50"))),
            ("SET app.tenant_id TO Acme", session(Some("acme"))),
            ("SET app.tenant_id TO \"Acme\"", session(Some("Acme"))),
            ("SET app.tenant_id TO true", session(Some("true"))),
            (
                "/* x */ SET LOCAL app . tenant_id = 'a' -- y",
                local(Some("a")),
            ),
            (
                "SET LOCAL my.app.org = 12",
                set(1, Scope::Local, Some("12")),
            ),
            ("SET LOCAL app.tenant_id TO DEFAULT", local(None)),
            ("RESET app.tenant_id", Step::Reset(0)),
            ("SHOW app.tenant_id", Step::Show(0)),
            (
                "SET LOCAL A.\"b\" = 'it''s'",
                Step::SetsLocally("a.b".to_owned(), "set local a.\"b\" = 'it''s'".to_owned()),
            ),
            (
                "SET TRANSACTION READ ONLY",
                Step::Characteristics("set transaction read only".to_owned()),
            ),
            ("SET statement_timeout = 5", Step::Other),
            ("SET app.tenant_id = 'a', 'b'", Step::Unclear),
            ("SET app.tenant_id FROM CURRENT", Step::Unclear),
            ("SET app.tenant_id = $1", Step::Unclear),
            ("SELECT 1", Step::Other),
            (
                "START TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY",
                begin(
                    true,
                    "start transaction isolation level serializable , read only",
                ),
            ),
            ("begin work", begin(false, "begin work")),
            ("END AND CHAIN", Step::Commit { chain: true }),
            ("COMMIT WORK AND NO CHAIN", Step::Commit { chain: false }),
            (
                "ROLLBACK TRANSACTION TO SAVEPOINT a",
                Step::RollbackTo("a".to_owned()),
            ),
            ("RELEASE \"A\"", Step::Release("A".to_owned())),
            ("COMMIT PREPARED 'a'", Step::Other),
            ("DISCARD ALL", Step::ResetAll),
            (
                "DEALLOCATE PREPARE x",
                Step::Deallocate(Some("x".to_owned())),
            ),
        ] {
            assert_eq!(steps(sql), [expected], "{sql}");
        }
    }

    fn call(name: Term, value: Term, is_local: Term) -> SetConfig {
        SetConfig {
            name,
            value,
            is_local,
        }
    }

    #[test]
    fn calls_of_set_config_are_read() {
        let literal = |text: &str| Term::Literal(text.to_owned());
        let name = || literal("app.tenant_id");
        let one = |call, column: &str| Step::SetConfig(call, column.to_owned());
        for (sql, expected) in [
            (
                "SELECT set_config('app.tenant_id', 'a', true)",
                one(call(name(), literal("a"), literal("true")), "set_config"),
            ),
            (
                "SELECT pg_catalog.set_config('app.tenant_id', $1::text, FALSE) AS x;",
                one(call(name(), Term::Parameter(1), literal("false")), "x"),
            ),
            (
                "select set_config($1, $2, $3)",
                one(
                    call(Term::Parameter(1), Term::Parameter(2), Term::Parameter(3)),
                    "set_config",
                ),
            ),
            (
                "SELECT set_config('app.tenant_id', NULL, 'on')",
                one(call(name(), Term::Null, literal("on")), "set_config"),
            ),
            (
                "SELECT set_config('a.b', '1', true), set_config('app.tenant_id', $1, true)",
                Step::SetConfigs(vec![
                    (
                        call(literal("a.b"), literal("1"), literal("true")),
                        "set_config".to_owned(),
                    ),
                    (
                        call(name(), Term::Parameter(1), literal("true")),
                        "set_config".to_owned(),
                    ),
                ]),
            ),
            (
                "select set_config(el->>0, el->>1, true) from json_array_elements($1::json) el",
                Step::FromJson(Term::Parameter(1)),
            ),
            (
                "SELECT set_config('app.tenant_id', 'a', true) FROM t",
                Step::Unclear,
            ),
            (
                "SELECT set_config('app.tenant_id', f('a'), true)",
                Step::Unclear,
            ),
            (
                "SELECT set_config('app.' || 'tenant_id', 'a', true)",
                Step::Unclear,
            ),
            (
                "WITH _ AS (SELECT set_config('app.tenant_id', 'x', true)) SELECT 1",
                Step::Unclear,
            ),
            (
                "SELECT 1, set_config('app.tenant_id', 'a', true)",
                Step::Unclear,
            ),
            (
                "PREPARE x AS SELECT set_config('app.tenant_id', 'a', true)",
                Step::Unclear,
            ),
            ("SELECT set_config('x.y', f(), true)", Step::Other),
        ] {
            assert_eq!(steps(sql), [expected], "{sql}");
        }
    }

    #[test]
    fn roles_paths_and_functions_are_read() {
        let variables = ["role".into(), "search_path".into()];
        let functions = [ChoosingFunction {
            schema: None,
            name: "pick".into(),
            argument: 2,
            is_local: true,
        }];
        let steps = |sql: &str| read_all(sql.as_bytes(), &variables, &functions, false);
        for (sql, expected) in [
            ("SET ROLE t_a", set(0, Scope::Session, Some("t_a"))),
            ("set local role 'T_a'", set(0, Scope::Local, Some("T_a"))),
            (
                "SET SESSION ROLE NONE",
                set(0, Scope::Session, Some("none")),
            ),
            ("SET role TO DEFAULT", set(0, Scope::Session, None)),
            ("RESET ROLE", Step::Reset(0)),
            (
                "SET LOCAL search_path = t_a, public, '$user'",
                set(1, Scope::Local, Some("t_a")),
            ),
            (
                "SET search_path TO 't_a, public'",
                set(1, Scope::Session, Some("t_a, public")),
            ),
            (
                "SELECT public.pick($2, 'a'::uuid, 7) AS x",
                Step::Call(0, Term::Literal("a".to_owned()), 2),
            ),
            ("SELECT pick(1, $1)", Step::Call(0, Term::Parameter(1), 1)),
            ("SELECT pick(1)", Step::Unclear),
            ("SELECT pick(1, f())", Step::Unclear),
            ("SELECT * FROM pick(1, 'a')", Step::Unclear),
            ("DO 'SELECT pick(1, 2)'", Step::Unclear),
            ("SELECT role FROM picks", Step::Other),
            ("INSERT INTO notes VALUES ('pick(1, 2)')", Step::Other),
        ] {
            assert_eq!(steps(sql), [expected], "{sql}");
        }
        let beside = "BEGIN; SET LOCAL ROLE t_a; SELECT role FROM users; COMMIT";
        assert_eq!(steps(beside)[2], Step::Other);
    }

    #[test]
    fn what_else_of_a_text_could_choose_is_unclear() {
        let several = "BEGIN; SET LOCAL app.tenant_id = 'a'; SELECT ';' FROM t; COMMIT";
        let expected = [
            begin(false, "begin"),
            set(0, Scope::Local, Some("a")),
            Step::Other,
            Step::Commit { chain: false },
        ];
        assert_eq!(steps(several), expected);
        // What asks for the value only is not unclear.
        for (asks, expected) in [
            ("current_setting('app.tenant_id')", Step::Other),
            (
                "x, pg_catalog.current_setting('App.Tenant_ID', true)",
                Step::Other,
            ),
            (
                "current_setting('app.tenant_id'), f('app.tenant_id')",
                Step::Unclear,
            ),
            ("f('app.tenant_id')", Step::Unclear),
            ("current_setting(f('app.tenant_id'))", Step::Unclear),
            (
                "set_config(current_setting('app.tenant_id'), 'b', true)",
                Step::Unclear,
            ),
        ] {
            let text = format!("SET app.tenant_id = 'a'; SELECT {asks}");
            assert_eq!(steps(&text)[1], expected, "{asks}");
        }
        let smuggled = "SET app.tenant_id = 'a'; SELECT f(set_config('app.tenant_id', 'b', true))";
        assert_eq!(steps(smuggled)[1], Step::Unclear);
        let smuggled = "SET app.tenant_id = 'a'; DO $$ BEGIN PERFORM 1; END $$";
        assert_eq!(steps(smuggled)[1], Step::Unclear);
    }
}
