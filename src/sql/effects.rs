//! What a text may leave behind in the session it runs in.
//!
//! It reads tokens, not grammar, and is meant to err on one side: what it names may not happen (the
//! statement failed, the table was dropped again), and what is true is then asked of the server.
//! What it does not see is what functions of the database do; those are named, so that it can be
//! looked up.

pub mod uses;

use std::cell::RefCell;

use bitflags::bitflags;
use thin_vec::ThinVec;

use self::uses::{Use, Using, Verb, Which};
use super::builtin::is_builtin;
use super::lexer::{Lexer, Sink, Token};
use super::naming::{Naming, Told};

bitflags! {
    /// Kinds of things a text may do to its session.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct What: u64 {
        /// It changes run-time parameters, so that what is sent behind it must wait until that is
        /// known.
        const CONTROL = 1;
        /// `RESET ALL`, `DISCARD ALL`: every parameter.
        const RESETS_ALL = 1 << 1;
        /// It sets a parameter whose name is not in the text.
        const SETS_UNKNOWN = 1 << 2;
        /// Temporary objects.
        const TEMPORARY = 1 << 3;
        /// Cursors `WITH HOLD`.
        const HOLD = 1 << 4;
        const LISTEN = 1 << 5;
        /// Session-level advisory locks.
        const ADVISORY = 1 << 6;
        /// `PREPARE` in SQL.
        const PREPARE = 1 << 7;
        /// State that nobody can look at or take back: `LOAD`, `setseed()`, a temporary replication
        /// slot.
        const STUCK = 1 << 8;
        /// It reads `lastval()` or `currval()`.
        const READS_SEQUENCE = 1 << 9;
        /// It may advance a sequence.
        const ADVANCES_SEQUENCE = 1 << 10;
        /// It drops something: temporary objects, perhaps.
        const DROPS = 1 << 11;
        /// CLOSE.
        const CLOSES = 1 << 12;
        const UNLISTENS = 1 << 13;
        const UNLOCKS = 1 << 14;
        const DEALLOCATES = 1 << 15;
        /// It runs code that is not in the text: anything may happen.
        const OPAQUE = 1 << 16;
        /// It writes to tables, which may have triggers.
        const WRITES = 1 << 17;
        /// It makes an object, which is a temporary one where `search_path` begins with `pg_temp`.
        const CREATES = 1 << 18;
        /// It defines code that runs later, or what sessions begin with.
        const DEFINES = 1 << 19;
        /// It runs SQL that it puts together as a string.
        const RUNS_STRINGS = 1 << 20;
        /// Parts of it cannot be read: Unicode escapes, or a string or comment without its end.
        const HIDDEN = 1 << 21;
        /// It sets a client_encoding in which bytes of characters look like SQL, or one that is not
        /// told.
        const ENCODING = 1 << 22;
        /// It sets a parameter whose name is not in the text, for its transaction only.
        const SETS_UNKNOWN_LOCALLY = 1 << 23;
        /// NOTIFY, or `pg_notify()`.
        const NOTIFIES = 1 << 24;
        /// Advisory locks of whatever level.
        const ANY_ADVISORY = 1 << 25;
        /// LOCK in a mode that keeps others from reading or writing.
        const LOCKS_TABLE = 1 << 26;
        /// Functions of large objects.
        const LARGE_OBJECT = 1 << 27;
        /// DROP OWNED or REASSIGN OWNED: what a role has, and was granted.
        const ROLE_WIDE = 1 << 28;
        /// PREPARE TRANSACTION, COMMIT PREPARED, ROLLBACK PREPARED.
        const TWO_PHASE = 1 << 29;
        /// Code in a language: DO, or CALL of what cannot be told.
        const CODE = 1 << 30;
        /// It leaves values or texts in catalogs that every role reads: ANALYZE, COMMENT, views,
        /// and the expressions of defaults, checks, indexes and partitions.
        const SHOWS = 1 << 31;
        /// CALL of procedures, which are among the functions it calls. For the session it is as
        /// [`OPAQUE`](Self::OPAQUE).
        const CALLS = 1 << 32;
        /// What only the guard asks for: it leaves nothing that is not told by others of these.
        const FOR_GUARD = Self::NOTIFIES.bits() | Self::ANY_ADVISORY.bits() | Self::LOCKS_TABLE.bits()
            | Self::LARGE_OBJECT.bits()
            | Self::ROLE_WIDE.bits()
            | Self::TWO_PHASE.bits()
            | Self::CODE.bits()
            | Self::SHOWS.bits()
            | Self::CALLS.bits();
    }
}

/// A run-time parameter that a text names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// In lower case.
    pub name: Box<str>,
    /// RESET or SET … TO DEFAULT, rather than SET.
    pub reset: bool,
}

/// What a text may do. Two of it are kept for each client, and mostly empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Effects {
    pub what: What,
    pub settings: ThinVec<Setting>,
    /// Parameters that it sets for its transaction only, in lower case.
    pub local: ThinVec<Box<str>>,
    /// Functions it calls that not every PostgreSQL has, in lower case, without their schemas.
    pub functions: ThinVec<Box<str>>,
    /// Whether it begins or ends a transaction or a savepoint.
    pub controls: bool,
    /// Savepoints that it makes.
    pub savepoints: u16,
    /// Objects that it makes, changes, drops or locks by name, each of which is locked until the
    /// transaction ends: a table, and what comes with its definition.
    pub objects: u16,
    /// Prepared statements that it names, in order.
    pub uses: ThinVec<Use>,
}

thread_local! {
    /// Its buffers are used again.
    static SCANNER: RefCell<Scanner> = RefCell::default();
}

/// Most functions of one text that are named; with more of them it is [`What::OPAQUE`].
const MAX_FUNCTIONS: usize = 16;
/// Most parameters of one text that are named; with more of them some are unknown.
const MAX_SETTINGS: usize = 64;
/// Most prepared statements of one text that are named; with more of them some are unread.
const MAX_USES: usize = 4096;
/// So many calls of `set_config` within each other are read; those within more set something
/// unknown.
const MAX_CALLS: usize = 32;
/// So many texts within texts are read: code in a string of code, and so on.
const MAX_DEPTH: u8 = 4;

impl Effects {
    /// The effects of a whole text. `backslashes`: `standard_conforming_strings` is off.
    pub fn of(text: &[u8], backslashes: bool) -> Self {
        let read = |scanner: &mut Scanner| {
            scanner.begin(backslashes);
            scanner.feed(text);
            scanner.finish()
        };
        SCANNER.with(|scanner| match scanner.try_borrow_mut() {
            Ok(mut scanner) => read(&mut scanner),
            // A text within a text.
            Err(_) => read(&mut Scanner::default()),
        })
    }

    /// The effects of the source of a function in an SQL or PL/pgSQL body.
    pub fn of_body(source: &[u8]) -> Self {
        Self::nested(source, 0, true)
    }

    /// The effects of a text within so many others, or of code.
    fn nested(text: &[u8], depth: u8, is_code: bool) -> Self {
        if depth > MAX_DEPTH {
            return Self {
                what: What::OPAQUE | What::SETS_UNKNOWN | What::RUNS_STRINGS | What::CONTROL,
                ..Self::default()
            };
        }
        let mut scanner = Scanner::default();
        scanner.begin(false);
        scanner.reader.depth = depth;
        scanner.reader.in_code = is_code;
        scanner.feed(text);
        scanner.finish()
    }

    pub fn is_empty(&self) -> bool {
        self.what.is_empty()
            && self.settings.is_empty()
            && self.local.is_empty()
            && self.functions.is_empty()
    }

    /// Adds what comes after.
    pub fn add(&mut self, other: &Self) {
        self.what |= other.what;
        self.controls |= other.controls;
        self.savepoints = self.savepoints.saturating_add(other.savepoints);
        self.objects = self.objects.saturating_add(other.objects);
        for setting in &other.settings {
            // What comes after may not come to pass: code has branches, and messages fail.
            let known = self.settings.iter();
            let was_reset = known
                .filter(|known| known.name == setting.name)
                .any(|known| known.reset);
            self.add_setting(&setting.name, setting.reset || was_reset);
        }
        for name in &other.local {
            self.add_local(name);
        }
        for function in &other.functions {
            self.add_function(function);
        }
        for used in &other.uses {
            self.add_use(used.clone());
        }
    }

    /// Names of the parameters that it sets, for the session or its transaction, in lower case.
    pub fn sets(&self) -> impl Iterator<Item = &str> {
        let settings = self.settings.iter().map(|setting| &*setting.name);
        settings.chain(self.local.iter().map(|name| &**name))
    }

    fn add_use(&mut self, used: Use) {
        match self.uses.len() {
            0..MAX_USES => self.uses.push(used),
            MAX_USES => self.uses.push(Use {
                verb: Verb::Execute,
                which: Which::Unread,
                in_code: true,
                effects: None,
            }),
            _ => {}
        }
    }

    fn add_local(&mut self, name: &str) {
        if self.local.iter().any(|known| &**known == name) {
            return;
        }
        match self.local.len() < MAX_SETTINGS {
            true => self.local.push(name.into()),
            false => self.what |= What::SETS_UNKNOWN,
        }
    }

    /// The parameters that it sets, or resets, have turned out to be these and no others.
    pub fn know_settings<'n>(&mut self, settings: impl Iterator<Item = (&'n str, bool)>) {
        self.what.remove(What::SETS_UNKNOWN);
        for (name, resets) in settings {
            self.add_setting(&name.to_ascii_lowercase(), resets);
        }
    }

    fn add_setting(&mut self, name: &str, reset: bool) {
        if let Some(known) = self.settings.iter_mut().find(|known| &*known.name == name) {
            known.reset = reset;
        } else if self.settings.len() >= MAX_SETTINGS {
            self.what |= What::SETS_UNKNOWN;
        } else {
            self.settings.push(Setting {
                name: name.into(),
                reset,
            });
        }
    }

    fn add_function(&mut self, name: &str) {
        if self.functions.iter().any(|known| &**known == name) {
            return;
        }
        match self.functions.len() < MAX_FUNCTIONS {
            true => self.functions.push(name.into()),
            false => self.what |= What::OPAQUE,
        }
    }
}

/// Reads a text in pieces as it passes.
#[derive(Debug)]
pub struct Scanner {
    lexer: Lexer,
    reader: Reader,
}

impl Default for Scanner {
    fn default() -> Self {
        Self {
            lexer: Lexer::new(false),
            reader: Reader::default(),
        }
    }
}

impl Scanner {
    pub fn begin(&mut self, backslashes: bool) {
        self.lexer.restart(backslashes);
        let mut name = std::mem::take(&mut self.reader.name);
        name.clear();
        self.reader = Reader {
            name,
            ..Reader::default()
        };
    }

    pub fn feed(&mut self, text: &[u8]) {
        self.lexer.feed(text, &mut self.reader);
    }

    pub fn finish(&mut self) -> Effects {
        if !self.lexer.finish(&mut self.reader) {
            self.reader.effects.what |= What::HIDDEN | What::OPAQUE;
        }
        // Mostly the text ends with the semicolon that has ended it.
        if self.reader.command != Command::None || self.reader.in_code {
            self.reader.end_statement();
        }
        std::mem::take(&mut self.reader.effects)
    }
}

/// The command a statement begins with, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Command {
    /// No word of it was read yet.
    #[default]
    None,
    Other,
    /// EXPLAIN, and its options: what is explained begins behind them.
    Explain,
    Vacuum,
    Set,
    Reset,
    Create,
    Alter,
    Declare,
    Do,
    /// CALL, up to the parenthesis behind the procedure's name.
    Call,
    Lock,
    Drop,
    Prepare,
    /// COMMIT, ROLLBACK.
    End,
    /// UNLISTEN, CLOSE and the like: known by their word alone.
    Told,
}

/// Whether commands that begin with this word begin or end a transaction or a savepoint.
fn controls_transactions(word: &[u8]) -> bool {
    matches!(
        word,
        b"begin"
            | b"start"
            | b"commit"
            | b"end"
            | b"rollback"
            | b"abort"
            | b"savepoint"
            | b"release"
            | b"prepare"
    )
}

/// What the last token was, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Last {
    /// A symbol, a keyword, or nothing: a function may be called behind it.
    #[default]
    Open,
    /// A name, or an expression's end.
    Closed,
    /// INTO, AS and the like: what follows is a relation, or an alias.
    Relation,
    /// A dot in a name.
    Dot,
    Create,
    With,
    Temporary,
}

/// A call of `set_config` that is being read.
#[derive(Debug, Default)]
struct SetConfig {
    /// Parentheses open inside of its own.
    depth: u32,
    argument: u32,
    /// Tokens in this argument.
    tokens: u32,
    name: Option<String>,
    is_local: bool,
}

#[derive(Debug, Default)]
struct Reader {
    effects: Effects,
    command: Command,
    last: Last,
    /// What was before the name that was read last.
    before_name: Last,
    /// The name, or keyword, that was read last.
    name: Vec<u8>,
    /// It is in a schema other than `pg_catalog`.
    is_qualified: bool,
    /// It has neither quotes nor a schema: it may be a keyword.
    is_plain: bool,
    /// The last token, if it was a word, and the word directly before that.
    last_word: Short,
    before_word: Short,
    naming: Naming,
    calls: Vec<SetConfig>,
    /// SET LOCAL.
    is_local: bool,
    /// In the body of DO or of a function.
    in_code: bool,
    /// How many texts this one is within.
    depth: u8,
    /// Parentheses that are open.
    parentheses: u32,
    /// A literal that comes here stays in a catalog.
    keeps_literals: bool,
    /// The same ends with a comma at so many parentheses: it is of a column, or of a constraint.
    /// None: it does not end.
    keeps_within: Option<u32>,
    /// The same up to WITH, behind which storage parameters stand: of an index, statistics or a
    /// partition.
    keeps_in_index: bool,
    /// It is CREATE VIEW.
    makes_view: bool,
    /// UPDATE was read in this statement.
    updates: bool,
    /// JOIN or MERGE was: ON may be followed by an expression.
    joins: bool,
    /// Bit n: an expression begins behind the parenthesis that was opened in n others, of
    /// DISTINCT ON (…), RETURNING WITH (…) and OPERATOR (…).
    leads: u64,
    mode: LockMode,
    using: Using,
    /// In PREPARE: what was read before it, and the name that it gives.
    before_prepare: Option<Box<Effects>>,
    prepares: Option<Which>,
}

/// The words that were read last in LOCK.
#[derive(Debug, Default)]
struct LockMode {
    last: [Short; 3],
    /// The mode that is named hinders nobody who reads or writes.
    is_weak: bool,
}

impl LockMode {
    fn word(&mut self, word: &[u8]) {
        let word = Short::of(word);
        if word == Short::of(b"mode") {
            let [a, b, c] = self.last;
            let is = |words: [&[u8]; 3]| words.map(Short::of) == [a, b, c];
            self.is_weak = is([b"in", b"access", b"share"])
                || is([b"in", b"row", b"share"])
                || is([b"in", b"row", b"exclusive"]);
        }
        self.last.rotate_left(1);
        self.last[2] = word;
    }

    /// What stands between words.
    fn other(&mut self) {
        self.last = <[Short; 3]>::default();
    }
}

impl Sink for Reader {
    fn token(&mut self, token: Token<'_>) {
        if !self.calls.is_empty() {
            self.argument(token);
        }
        if self.command == Command::Lock {
            match token {
                Token::Word(word) => self.mode.word(word),
                _ => self.mode.other(),
            }
        }
        if !matches!(self.using, Using::No) {
            let used = self.using.take(token);
            self.note_use(used);
        }
        if (self.keeps_literals || self.keeps_in_index) && is_literal(token) {
            self.effects.what |= What::SHOWS;
        }
        if self.naming != Naming::No && self.name_setting(token) {
            return;
        }
        match token {
            Token::Word(word) => return self.word(word),
            Token::Quoted(name) => {
                self.identifier(name);
                self.is_plain = false;
            }
            Token::Unicode(_) => {
                // It may spell any name.
                self.effects.what |= What::OPAQUE | What::HIDDEN;
                self.last = Last::Closed;
            }
            Token::Text(text) => self.string(text),
            Token::Number | Token::Parameter => self.last = Last::Closed,
            Token::Symbol(symbol) => self.symbol(symbol),
        }
        self.last_word = Short::default();
    }

    fn reads_code(&self) -> bool {
        self.in_code || self.command == Command::Do
    }
}

fn is_literal(token: Token<'_>) -> bool {
    matches!(token, Token::Text(_) | Token::Number | Token::Unicode(_))
}

impl Reader {
    fn symbol(&mut self, symbol: u8) {
        let mut leads = false;
        match symbol {
            b';' => return self.end_statement(),
            b'(' => {
                let is_procedure = self.command == Command::Call;
                if is_procedure {
                    self.call_procedure();
                }
                match self.last == Last::Closed && !self.name.is_empty() {
                    _ if is_procedure => {}
                    true => self.call(),
                    false => self.call_of_command(),
                }
                self.note_lead();
                self.parentheses += 1;
            }
            b',' if self
                .keeps_within
                .is_some_and(|depth| self.parentheses <= depth) =>
            {
                self.keeps_literals = false;
            }
            // An array has commas of its own.
            b'[' => self.keeps_within = None,
            b')' => {
                self.parentheses = self.parentheses.saturating_sub(1);
                if self.leads != 0 {
                    let bit = 1_u64.checked_shl(self.parentheses).unwrap_or(0);
                    leads = self.leads & bit != 0;
                    self.leads &= !bit;
                }
            }
            _ => {}
        }
        let was_name = !self.name.is_empty();
        let is_in_schema = symbol == b'.' && self.last_word != Short::NONE;
        if is_in_schema && !was_name {
            // A schema may have the name of a command.
            self.before_name = Last::Open;
        }
        self.last = match symbol {
            b'.' if was_name || is_in_schema => Last::Dot,
            b')' if leads => Last::Open,
            b')' | b']' => Last::Closed,
            _ => Last::Open,
        };
        if symbol != b'.' {
            self.name.clear();
        }
    }

    /// Takes note of a parenthesis behind which an expression begins: of DISTINCT ON, of RETURNING
    /// WITH, and of OPERATOR.
    fn note_lead(&mut self) {
        let leads = match self.last_word {
            Short::ON => self.before_word == Short::DISTINCT,
            Short::WITH => self.before_word == Short::RETURNING,
            Short::OPERATOR => true,
            _ => false,
        };
        if leads {
            self.leads |= 1_u64.checked_shl(self.parentheses).unwrap_or(0);
        }
    }

    fn word(&mut self, word: &[u8]) {
        let short = Short::of(word);
        self.before_word = std::mem::replace(&mut self.last_word, short);
        match self.command {
            Command::None => return self.begin_statement(word),
            Command::Explain if self.parentheses == 0 => {
                return match word {
                    b"analyze" | b"analyse" | b"verbose" => {}
                    _ => self.begin_statement(word),
                };
            }
            _ => {}
        }
        // Behind a dot every word is a name.
        if self.command == Command::Call || self.last == Last::Dot {
            self.last_word = Short::default();
            return self.identifier(word);
        }
        if self.last == Last::Open && self.name.is_empty() {
            self.second_word(word);
        }
        if self.in_code && matches!(word, b"begin" | b"then" | b"else" | b"loop") {
            self.end_statement();
            return;
        }
        match self.command {
            Command::Do if !self.in_code && self.name == b"language" => self.language(word),
            Command::Vacuum if matches!(word, b"analyze" | b"analyse") => {
                self.effects.what |= What::SHOWS;
            }
            Command::Create | Command::Alter => self.note_definition(word),
            _ => {}
        }
        match self.behind(short) {
            Some(last) => {
                self.name.clear();
                self.last = last;
            }
            None => {
                self.defines(word);
                self.identifier(word);
            }
        }
    }

    /// What a word that means the same wherever it stands has behind it. None: it is a name, or a
    /// keyword of another kind.
    #[inline]
    fn behind(&mut self, word: Short) -> Option<Last> {
        Some(match word {
            Short::TEMP | Short::TEMPORARY
                if matches!(self.last, Last::Create | Last::Relation) =>
            {
                self.effects.what |= What::TEMPORARY;
                Last::Temporary
            }
            Short::HOLD if self.last == Last::With && self.command == Command::Declare => {
                self.effects.what |= What::HOLD;
                Last::Open
            }
            Short::OR | Short::REPLACE | Short::LOCAL | Short::GLOBAL
                if self.last == Last::Create =>
            {
                Last::Create
            }
            Short::LOCAL | Short::GLOBAL if self.last == Last::Relation => Last::Relation,
            // A schema may be made with what is in it.
            Short::CREATE if self.command == Command::Create => {
                self.locks_object();
                Last::Create
            }
            Short::INTO => {
                // SELECT INTO makes a table. In code it stores into variables.
                if !matches!(self.before_word, Short::INSERT | Short::MERGE) && !self.in_code {
                    self.effects.what |= What::CREATES;
                    self.locks_object();
                }
                Last::Relation
            }
            Short::INSERT | Short::MERGE => {
                self.joins |= word == Short::MERGE;
                self.effects.what |= What::WRITES | What::ADVANCES_SEQUENCE;
                Last::Open
            }
            Short::UPDATE => {
                self.updates = true;
                self.effects.what |= What::WRITES;
                Last::Open
            }
            Short::DELETE => {
                self.effects.what |= What::WRITES;
                Last::Open
            }
            Short::WITH => Last::With,
            Short::EXECUTE if !self.in_code => {
                self.effects.what |= What::OPAQUE;
                self.using = Using::Begins(Verb::Execute);
                Last::Open
            }
            Short::AS | Short::TABLE | Short::REFERENCES => Last::Relation,
            _ => {
                self.joins |= word == Short::JOIN;
                return None;
            }
        })
    }

    /// A string, which may be code. None: it could not be kept.
    fn string(&mut self, text: Option<&[u8]>) {
        self.last = Last::Closed;
        let is_language = self.name == b"language";
        match (self.command, text) {
            // The language of DO, which may be in quotes as well.
            (Command::Do, Some(language)) if !self.in_code && is_language => {
                self.language(language);
            }
            (Command::Do, Some(code)) if !self.in_code => {
                let effects = Effects::nested(code, self.depth + 1, true);
                self.effects.add(&effects);
            }
            (Command::Do, None) if !self.in_code => {
                self.effects.what |= What::SETS_UNKNOWN | What::STUCK;
            }
            (_, Some(text)) if self.in_code => {
                let effects = Effects::nested(text, self.depth + 1, false);
                self.effects.add(&effects);
            }
            (_, None) if self.in_code => self.effects.what |= What::OPAQUE,
            _ => {}
        }
    }

    /// The language of DO. What code in others than PL/pgSQL keeps is seen by nobody, and stays.
    fn language(&mut self, language: &[u8]) {
        if language != b"plpgsql" {
            self.effects.what |= What::SETS_UNKNOWN | What::STUCK;
        }
    }

    /// Commands of two words. (It may be a later word that stands where a name can begin: then
    /// nothing of these does.)
    fn second_word(&mut self, word: &[u8]) {
        self.effects.what |= match (self.command, word) {
            (Command::Drop, b"owned") => What::ROLE_WIDE,
            (Command::Prepare, b"transaction") | (Command::End, b"prepared") => What::TWO_PHASE,
            _ => return,
        };
    }

    /// Takes note of whether literals behind `word` stay in a catalog. What a query fills a table
    /// with does not.
    fn note_definition(&mut self, word: &[u8]) {
        match word {
            b"unique" | b"primary" => self.locks_object(),
            // An identity, which has a sequence; and a constraint, which has an index.
            b"generated" | b"exclude" => {
                self.locks_object();
                self.keep_literals(word == b"generated");
            }
            b"default" | b"check" => self.keep_literals(true),
            b"view" | b"where" | b"expression" => self.keep_literals(false),
            b"index" | b"statistics"
                if self.parentheses == 0 && self.command == Command::Create =>
            {
                self.keeps_in_index = true;
            }
            b"partition" if self.parentheses == 0 => self.keeps_in_index = true,
            b"with" if self.parentheses == 0 => self.keeps_in_index = false,
            b"as" if self.parentheses == 0 && !self.makes_view => self.command = Command::Other,
            _ => {}
        }
        if word.ends_with(b"serial") || word.starts_with(b"serial") {
            self.locks_object();
        }
        self.makes_view |= word == b"view";
    }

    /// From here on literals stay in a catalog; `is_of_column`: up to the next column.
    fn keep_literals(&mut self, is_of_column: bool) {
        let goes_on = self.keeps_literals && self.keeps_within.is_none();
        self.keeps_within = (is_of_column && !goes_on).then_some(self.parentheses);
        self.keeps_literals = true;
    }

    fn locks_object(&mut self) {
        self.effects.objects = self.effects.objects.saturating_add(1);
    }

    /// Takes note of the kind of object behind CREATE or ALTER.
    fn defines(&mut self, word: &[u8]) {
        let kinds: &[&[u8]] = match self.command {
            Command::Create if self.last == Last::Create => &[
                b"function",
                b"procedure",
                b"aggregate",
                b"operator",
                b"cast",
                b"domain",
                b"language",
                b"rule",
                b"trigger",
                b"constraint",
                b"event",
                b"extension",
                b"transform",
                b"policy",
                b"role",
                b"user",
                b"group",
                b"trusted",
                b"procedural",
                b"conversion",
                // CREATE DEFAULT CONVERSION
                b"default",
                b"type",
            ],
            Command::Alter if self.last == Last::Open => &[
                b"role",
                b"user",
                b"group",
                b"database",
                b"system",
                b"function",
                b"procedure",
                b"routine",
                b"policy",
                b"domain",
                b"extension",
                b"default",
            ],
            _ => return,
        };
        if kinds.contains(&word) {
            self.effects.what |= What::DEFINES;
        }
    }

    /// A name that is not a keyword, or in quotes.
    fn identifier(&mut self, name: &[u8]) {
        if name.starts_with(b"pg_temp") && self.command != Command::Set {
            self.effects.what |= What::TEMPORARY;
        }
        // A rule makes set_config() of it, also through a view of one's own.
        if name == b"pg_settings" && (self.updates || self.command == Command::Create) {
            self.effects.what |= What::SETS_UNKNOWN | What::CONTROL;
        }
        self.is_plain = self.last != Last::Dot;
        self.is_qualified = !self.is_plain && self.name != b"pg_catalog";
        if self.last != Last::Dot {
            self.before_name = self.last;
        }
        self.name.clear();
        self.name.extend_from_slice(name);
        self.last = Last::Closed;
    }

    /// The name that was read last is called, unless it is a keyword. (Or it is an alias with a
    /// list of columns, which may be looked up in vain.)
    fn call(&mut self) {
        if self.is_plain {
            match keyword(&self.name) {
                // TREAT(x AS f) calls the function f of pg_catalog, whatever it does.
                Keyword::Always if self.name == b"treat" => {
                    self.effects.what |= What::HIDDEN | What::OPAQUE;
                    return;
                }
                Keyword::Always => return,
                Keyword::OrFunction if !self.expects_expression() => return,
                _ => {}
            }
        }
        let called = std::mem::take(&mut self.name);
        self.judge(&called);
        self.name = called;
    }

    /// A procedure may have the name of any function, and of most keywords. PostgreSQL calls no
    /// function here; what it is called may be one nevertheless, as far as this reader can tell.
    fn call_procedure(&mut self) {
        self.command = Command::Other;
        let called = std::mem::take(&mut self.name);
        match std::str::from_utf8(&called) {
            Ok(name) if !name.is_empty() => {
                self.effects.add_function(name);
                self.judge(&called);
            }
            _ => self.effects.what |= What::CODE,
        }
        self.name = called;
    }

    /// Whether an expression stands where the name that was read last does.
    fn expects_expression(&self) -> bool {
        match self.before_word {
            // Behind a symbol or a literal.
            Short::NONE => self.before_name == Last::Open,
            Short::ON if self.name == b"conflict" => self.joins,
            word => Short::BEFORE_EXPRESSIONS.contains(&word),
        }
    }

    /// A function may have the name of a command: `SELECT insert(1)`.
    fn call_of_command(&mut self) {
        if self.last_word == Short::NONE {
            return;
        }
        let name = match self.last_word {
            Short::INSERT => "insert",
            Short::UPDATE => "update",
            Short::DELETE => "delete",
            Short::MERGE => "merge",
            Short::EXECUTE => "execute",
            _ => return,
        };
        self.effects.add_function(name);
    }

    fn judge(&mut self, name: &[u8]) {
        let Ok(name) = std::str::from_utf8(name) else {
            self.effects.what |= What::OPAQUE;
            return;
        };
        if self.is_qualified && self.before_name != Last::Relation {
            // One of the application's own, whatever its name.
            self.effects.add_function(name);
        }
        let what = match name {
            "set_config" => {
                self.effects.what |= What::CONTROL;
                match self.calls.len() < MAX_CALLS {
                    true => self.calls.push(SetConfig::default()),
                    false => self.effects.what |= What::SETS_UNKNOWN,
                }
                return;
            }
            "pg_advisory_lock"
            | "pg_advisory_lock_shared"
            | "pg_try_advisory_lock"
            | "pg_try_advisory_lock_shared" => What::ADVISORY | What::ANY_ADVISORY,
            "pg_advisory_xact_lock"
            | "pg_advisory_xact_lock_shared"
            | "pg_try_advisory_xact_lock"
            | "pg_try_advisory_xact_lock_shared" => What::ANY_ADVISORY,
            "pg_notify" => What::NOTIFIES,
            "loread" | "lowrite" | "be_lo_unlink" => What::LARGE_OBJECT,
            name if name.starts_with("lo_") && is_builtin(name) => What::LARGE_OBJECT,
            "pg_advisory_unlock" | "pg_advisory_unlock_shared" | "pg_advisory_unlock_all" => {
                What::UNLOCKS
            }
            "currval" | "lastval" => What::READS_SEQUENCE,
            "nextval" | "setval" => What::ADVANCES_SEQUENCE,
            "setseed"
            | "pg_create_logical_replication_slot"
            | "pg_create_physical_replication_slot"
            | "pg_copy_logical_replication_slot"
            | "pg_copy_physical_replication_slot"
            | "pg_replication_origin_session_setup"
            | "pg_backup_start" => What::STUCK,
            "query_to_xml"
            | "query_to_xmlschema"
            | "query_to_xml_and_xmlschema"
            | "cursor_to_xml"
            | "ts_stat"
            | "ts_rewrite" => What::OPAQUE | What::RUNS_STRINGS,
            _ if is_builtin(name) => What::empty(),
            _ if is_known_to_run_strings(name) => {
                // It is looked up, too, since it may keep connections of its own.
                self.effects.add_function(name);
                What::OPAQUE | What::RUNS_STRINGS
            }
            _ if self.before_name == Last::Relation => What::empty(),
            _ => {
                self.effects.add_function(name);
                What::empty()
            }
        };
        if what.contains(What::ANY_ADVISORY) {
            self.locks_object();
        }
        self.effects.what |= what;
    }

    #[expect(clippy::too_many_lines, reason = "a list of words")]
    fn begin_statement(&mut self, word: &[u8]) {
        self.last = Last::Open;
        self.effects.controls |= !self.in_code && controls_transactions(word);
        self.begin_use(word);
        let (command, what) = match word {
            b"set" => {
                self.naming = Naming::set();
                (Command::Set, What::CONTROL)
            }
            b"reset" => {
                self.naming = Naming::reset();
                (Command::Reset, What::CONTROL)
            }
            b"create" => {
                self.last = Last::Create;
                (Command::Create, What::CREATES)
            }
            b"alter" => (Command::Alter, What::DROPS),
            b"drop" => (Command::Drop, What::DROPS),
            b"reassign" => (Command::Other, What::ROLE_WIDE),
            b"commit" | b"rollback" => (Command::End, What::empty()),
            b"declare" => (Command::Declare, What::empty()),
            b"close" => (Command::Told, What::CLOSES),
            b"listen" => (Command::Told, What::LISTEN),
            b"notify" => (Command::Told, What::NOTIFIES),
            b"lock" => {
                self.mode = LockMode::default();
                (Command::Lock, What::empty())
            }
            b"unlisten" => (Command::Told, What::UNLISTENS),
            b"prepare" => (Command::Prepare, What::PREPARE),
            b"deallocate" => (Command::Told, What::DEALLOCATES),
            // In code it runs a string, whose pieces are looked at like the rest.
            b"execute" if self.in_code => (Command::Other, What::RUNS_STRINGS),
            b"execute" => (Command::Told, What::OPAQUE),
            b"discard" => (Command::Told, What::CONTROL | What::DROPS),
            b"load" => (Command::Told, What::STUCK | What::DEFINES),
            b"do" => (Command::Do, What::OPAQUE | What::CODE),
            b"call" => (Command::Call, What::CALLS),
            b"analyze" | b"analyse" | b"comment" | b"security" => (Command::Told, What::SHOWS),
            b"vacuum" => (Command::Vacuum, What::empty()),
            b"explain" => (Command::Explain, What::empty()),
            b"insert" | b"merge" | b"copy" => {
                self.joins = word == b"merge";
                (Command::Other, What::WRITES | What::ADVANCES_SEQUENCE)
            }
            b"update" => {
                self.updates = true;
                (Command::Other, What::WRITES)
            }
            b"delete" | b"truncate" => (Command::Other, What::WRITES),
            // Labels and blocks of code.
            b"begin" | b"then" | b"else" | b"loop" if self.in_code => {
                (Command::None, What::empty())
            }
            b"savepoint" => {
                self.effects.savepoints = self.effects.savepoints.saturating_add(1);
                (Command::Told, What::empty())
            }
            _ => (Command::Other, What::empty()),
        };
        if matches!(
            command,
            Command::Create | Command::Alter | Command::Drop | Command::Lock
        ) {
            self.locks_object();
        }
        self.command = command;
        self.effects.what |= what;
        if command == Command::Other && word == b"with" {
            self.last = Last::With;
        }
        // Code goes on with an expression behind words that begin a statement elsewhere: THEN f(x).
        if self.in_code && command == Command::Other && keyword(word) == Keyword::Never {
            self.identifier(word);
        }
    }

    fn end_statement(&mut self) {
        if self.naming != Naming::No {
            let told = self.naming.finish();
            self.note_setting(told);
        }
        if !matches!(self.using, Using::No) {
            let used = self.using.finish();
            self.note_use(used);
        }
        if self.command == Command::Lock && !self.mode.is_weak {
            self.effects.what |= What::LOCKS_TABLE;
        }
        if self.command == Command::Call {
            self.effects.what |= What::CODE;
        }
        self.end_prepare();
        self.command = Command::None;
        self.last = Last::Open;
        self.is_local = false;
        self.updates = false;
        self.joins = false;
        self.leads = 0;
        self.name.clear();
        self.calls.clear();
        self.parentheses = 0;
        self.keeps_literals = false;
        self.keeps_within = None;
        self.keeps_in_index = false;
        self.last_word = Short::default();
        self.makes_view = false;
    }

    /// A statement that may name prepared statements begins.
    fn begin_use(&mut self, word: &[u8]) {
        self.using = match word {
            b"prepare" => {
                self.before_prepare = Some(Box::new(std::mem::take(&mut self.effects)));
                Using::Begins(Verb::Prepare)
            }
            b"execute" if !self.in_code => Using::Begins(Verb::Execute),
            b"deallocate" => Using::Begins(Verb::Deallocate),
            b"discard" => Using::Discards,
            _ => return,
        };
    }

    fn note_use(&mut self, used: Option<(Verb, Which)>) {
        match used {
            None => {}
            Some((Verb::Prepare, which)) => self.prepares = Some(which),
            Some((verb, which)) => self.effects.add_use(Use {
                verb,
                which,
                in_code: self.is_in_code(),
                effects: None,
            }),
        }
    }

    /// What was read since PREPARE is what the statement does that it prepares.
    fn end_prepare(&mut self) {
        let Some(before) = self.before_prepare.take() else {
            return;
        };
        let mut prepared = std::mem::replace(&mut self.effects, *before);
        if let Some(which) = self.prepares.take() {
            let mut effects = prepared.clone();
            effects.what.remove(What::PREPARE);
            prepared.uses.push(Use {
                verb: Verb::Prepare,
                which,
                in_code: self.is_in_code(),
                effects: Some(Box::new(effects)),
            });
        }
        self.effects.add(&prepared);
    }

    fn is_in_code(&self) -> bool {
        self.in_code || self.depth > 0
    }

    /// A token of SET or RESET. False: it is to be looked at like any other, too.
    fn name_setting(&mut self, token: Token<'_>) -> bool {
        if token == Token::Symbol(b';') {
            return false;
        }
        let in_value = matches!(self.naming, Naming::Value(_));
        let told = self.naming.take(token);
        self.note_setting(told);
        // Code may go on with an expression, and Unicode escapes are hidden wherever they are.
        let is_hidden = matches!(token, Token::Unicode(_));
        !in_value && !is_hidden && self.naming != Naming::No
    }

    fn note_setting(&mut self, told: Told) {
        let resets = self.command == Command::Reset;
        match told {
            Told::Nothing => {}
            Told::Local => self.is_local = true,
            Told::All => self.effects.what |= What::RESETS_ALL,
            Told::NoName => self.effects.what |= What::SETS_UNKNOWN,
            Told::Default(name) => self.set(&name, true),
            Told::Named(name) => self.set(&name, resets),
            Told::Characteristics => {
                for name in ["isolation", "read_only", "deferrable"] {
                    self.set(&format!("default_transaction_{name}"), false);
                }
            }
            Told::Authorization => self.set("session_authorization", resets),
            Told::Unread(name) => {
                if name == "client_encoding" {
                    self.effects.what |= What::ENCODING;
                }
                self.set(&name, false);
            }
            Told::Value(name, value) => {
                if name == "client_encoding" && !is_safe_encoding(&value) {
                    self.effects.what |= What::ENCODING;
                }
                self.set(&name, false);
            }
        }
    }

    fn set(&mut self, name: &str, reset: bool) {
        match name {
            "seed" => self.effects.what |= What::STUCK,
            // They end with the transaction, and cannot be set outside of one, or RESET.
            "transaction_isolation" | "transaction_read_only" | "transaction_deferrable" => {}
            // It takes the role away, too.
            "session_authorization" => {
                self.put("role", reset);
                self.put(name, reset);
            }
            name => self.put(name, reset),
        }
    }

    fn put(&mut self, name: &str, reset: bool) {
        match name {
            name if self.is_local => self.effects.add_local(name),
            name => self.effects.add_setting(name, reset),
        }
    }

    /// A token inside of a call of `set_config`.
    fn argument(&mut self, token: Token<'_>) {
        let Some(call) = self.calls.last_mut() else {
            return;
        };
        match token {
            Token::Symbol(b'(' | b'[') => call.depth += 1,
            Token::Symbol(b']') => call.depth = call.depth.saturating_sub(1),
            Token::Symbol(b')') if call.depth == 0 => {
                let call = self.calls.pop().unwrap_or_default();
                let is_local = call.is_local && call.argument == 2 && call.tokens == 1;
                match call.name {
                    Some(name) => {
                        if name == "client_encoding" {
                            self.effects.what |= What::ENCODING;
                        }
                        let before = std::mem::replace(&mut self.is_local, is_local);
                        self.set(&name, false);
                        self.is_local = before;
                    }
                    None if is_local => self.effects.what |= What::SETS_UNKNOWN_LOCALLY,
                    None => self.effects.what |= What::SETS_UNKNOWN,
                }
                // It may stand in an argument of another, which has counted its parenthesis.
                if let Some(outer) = self.calls.last_mut() {
                    outer.depth = outer.depth.saturating_sub(1);
                }
                return;
            }
            Token::Symbol(b')') => call.depth -= 1,
            Token::Symbol(b',') if call.depth == 0 => {
                call.argument += 1;
                call.tokens = 0;
                return;
            }
            // A cast does not change what a name is.
            Token::Text(Some(text)) if call.argument == 0 && call.tokens == 0 => {
                call.name = std::str::from_utf8(text).ok().map(str::to_lowercase);
            }
            Token::Word(b"text") | Token::Symbol(b':') if call.argument == 0 => return,
            _ if call.argument == 0 => call.name = None,
            Token::Word(b"true") if call.argument == 2 => call.is_local = true,
            Token::Text(Some(b"t" | b"true" | b"1" | b"on" | b"yes")) if call.argument == 2 => {
                call.is_local = true;
            }
            _ => {}
        }
        call.tokens += 1;
    }
}

/// The first eight bytes of a word as a number, and its length: comparing words one by one took
/// most of the time of reading a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Short(u64, usize);

impl Short {
    /// No word.
    const NONE: Self = Self::of(b"");
    const TEMP: Self = Self::of(b"temp");
    const TEMPORARY: Self = Self::of(b"temporary");
    const HOLD: Self = Self::of(b"hold");
    const OR: Self = Self::of(b"or");
    const REPLACE: Self = Self::of(b"replace");
    const LOCAL: Self = Self::of(b"local");
    const GLOBAL: Self = Self::of(b"global");
    const INSERT: Self = Self::of(b"insert");
    const MERGE: Self = Self::of(b"merge");
    const UPDATE: Self = Self::of(b"update");
    const DELETE: Self = Self::of(b"delete");
    const WITH: Self = Self::of(b"with");
    const INTO: Self = Self::of(b"into");
    const EXECUTE: Self = Self::of(b"execute");
    const AS: Self = Self::of(b"as");
    const TABLE: Self = Self::of(b"table");
    const REFERENCES: Self = Self::of(b"references");
    const CREATE: Self = Self::of(b"create");
    const ON: Self = Self::of(b"on");
    const JOIN: Self = Self::of(b"join");
    const DISTINCT: Self = Self::of(b"distinct");
    const OPERATOR: Self = Self::of(b"operator");
    const RETURNING: Self = Self::of(b"returning");
    /// Words behind which an expression may stand, and with it a call of a function whose name is
    /// a keyword.
    const BEFORE_EXPRESSIONS: [Self; 45] = [
        Self::of(b"select"),
        Self::of(b"where"),
        Self::of(b"and"),
        Self::of(b"or"),
        Self::of(b"not"),
        Self::of(b"in"),
        Self::of(b"on"),
        Self::of(b"using"),
        Self::of(b"from"),
        Self::of(b"by"),
        Self::of(b"having"),
        Self::of(b"when"),
        Self::of(b"then"),
        Self::of(b"else"),
        Self::of(b"case"),
        Self::of(b"returning"),
        Self::of(b"limit"),
        Self::of(b"offset"),
        Self::of(b"distinct"),
        Self::of(b"all"),
        Self::of(b"between"),
        Self::of(b"symmetric"),
        Self::of(b"asymmetric"),
        Self::of(b"like"),
        Self::of(b"ilike"),
        Self::of(b"to"),
        Self::of(b"zone"),
        Self::of(b"escape"),
        Self::of(b"variadic"),
        Self::of(b"lateral"),
        Self::of(b"join"),
        Self::of(b"for"),
        Self::of(b"similar"),
        Self::of(b"placing"),
        Self::of(b"passing"),
        Self::of(b"ref"),
        Self::of(b"default"),
        Self::of(b"document"),
        Self::of(b"content"),
        Self::of(b"both"),
        Self::of(b"leading"),
        Self::of(b"trailing"),
        Self::of(b"value"),
        Self::of(b"values"),
        Self::of(b"version"),
    ];

    const fn of(word: &[u8]) -> Self {
        let packed = match word {
            [] => 0,
            [a] => *a as u64,
            [a, b] => u16::from_be_bytes([*a, *b]) as u64,
            [a, b, c] => u32::from_be_bytes([0, *a, *b, *c]) as u64,
            [a, b, c, d] => u32::from_be_bytes([*a, *b, *c, *d]) as u64,
            [a, b, c, d, e] => u64::from_be_bytes([0, 0, 0, *a, *b, *c, *d, *e]),
            [a, b, c, d, e, f] => u64::from_be_bytes([0, 0, *a, *b, *c, *d, *e, *f]),
            [a, b, c, d, e, f, g] => u64::from_be_bytes([0, *a, *b, *c, *d, *e, *f, *g]),
            [a, b, c, d, e, f, g, h, ..] => u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]),
        };
        Self(packed, word.len())
    }
}

/// Whether a function runs SQL that it is given as a string: of extensions in wide use (tablefunc,
/// xml2, dblink, citus, pg_background, pgtap, pgrouting, pg_cron).
fn is_known_to_run_strings(name: &str) -> bool {
    matches!(name, "connectby" | "xpath_table")
        || [
            "dblink",
            "crosstab",
            "run_command_on_",
            "pg_background_",
            "pgr_",
            "throws_",
            "lives_ok",
            "results_",
            "schedule",
        ]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

/// Whether all bytes of a character that is not ASCII are beyond ASCII in this encoding, so that
/// none of them looks like SQL. Only names that encnames.c knows are understood; as in its
/// `clean_encoding_name`, case and punctuation do not count.
pub fn is_safe_encoding(name: &str) -> bool {
    let clean: String = name
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .map(|c| c.to_ascii_lowercase())
        .collect();
    if let Some(number) = clean.strip_prefix("latin") {
        return ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10"].contains(&number);
    }
    if let Some(number) = clean.strip_prefix("iso8859") {
        return [
            "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "13", "14", "15", "16",
        ]
        .contains(&number);
    }
    if let Some(number) = clean.strip_prefix("windows").or(clean.strip_prefix("win")) {
        return [
            "", "866", "874", "1250", "1251", "1252", "1253", "1254", "1255", "1256", "1257",
            "1258",
        ]
        .contains(&number);
    }
    matches!(
        &*clean,
        "utf8"
            | "unicode"
            | "sqlascii"
            | "abc"
            | "alt"
            | "tcvn"
            | "tcvn5712"
            | "vscii"
            | "koi8"
            | "koi8r"
            | "koi8u"
            | "euccn"
            | "eucjp"
            | "euckr"
            | "euctw"
            | "eucjis2004"
            | "muleinternal"
    )
}

/// What a word without quotes is before a parenthesis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keyword {
    /// A function's name.
    Never,
    /// A keyword, or a function's name where an expression stands.
    OrFunction,
    /// What no function can be called without quotes.
    Always,
}

/// The keywords that the grammar lets stand before a parenthesis (kwlist.h). Those that are
/// keywords in some versions only (`json_value`) are taken for functions, which are looked up in
/// vain.
fn keyword(word: &[u8]) -> Keyword {
    match word {
        // RESERVED_KEYWORD and COL_NAME_KEYWORD.
        b"select" | b"where" | b"and" | b"or" | b"not" | b"in" | b"any" | b"all" | b"some"
        | b"exists" | b"values" | b"from" | b"on" | b"using" | b"having" | b"when" | b"then"
        | b"else" | b"case" | b"group" | b"order" | b"returning" | b"limit" | b"offset"
        | b"array" | b"row" | b"default" | b"check" | b"unique" | b"between" | b"union"
        | b"intersect" | b"except" | b"distinct" | b"lateral" | b"cast" | b"extract"
        | b"coalesce" | b"nullif" | b"greatest" | b"least" | b"trim" | b"substring"
        | b"position" | b"overlay" | b"treat" | b"interval" | b"numeric" | b"decimal" | b"dec"
        | b"varchar" | b"char" | b"character" | b"bit" | b"float" | b"time" | b"timestamp"
        | b"nchar" | b"grouping" | b"analyze" | b"only" | b"do" | b"xmlelement" | b"xmlforest"
        | b"xmlattributes" | b"xmlparse" | b"xmlserialize" | b"xmlconcat" | b"xmlpi"
        | b"xmlroot" | b"xmlexists" | b"xmltable" | b"collate" | b"asc" | b"to" | b"normalize" => {
            Keyword::Always
        }
        // UNRESERVED_KEYWORD, TYPE_FUNC_NAME_KEYWORD, and what is a keyword by its place alone.
        b"by" | b"over" | b"filter" | b"within" | b"partition" | b"set" | b"key" | b"rows"
        | b"like" | b"ilike" | b"similar" | b"is" | b"varying" | b"sets" | b"rollup" | b"cube"
        | b"materialized" | b"conflict" | b"include" | b"exclude" | b"options" | b"hash"
        | b"storage" | b"explain" | b"vacuum" | b"perform" | b"return" | b"if" | b"while"
        | b"elsif" | b"operator" | b"escape" | b"ordinality" | b"recursive" | b"function"
        | b"procedure" | b"inherits" | b"generated" | b"identity" | b"copy" | b"format"
        | b"tablesample" | b"bernoulli" | b"system" | b"columns" | b"path" => Keyword::OrFunction,
        _ => Keyword::Never,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn effects(sql: &str) -> Effects {
        Effects::of(sql.as_bytes(), false)
    }

    fn settings(sql: &str) -> String {
        let names: Vec<_> = effects(sql)
            .settings
            .iter()
            .map(|setting| format!("{}{}", if setting.reset { "-" } else { "" }, setting.name))
            .collect();
        names.join(" ")
    }

    #[test]
    fn a_comma_in_brackets_ends_no_argument() {
        let local = effects("SELECT set_config('a.b', ARRAY['x', f(y)[1, 2]]::text, true)");
        assert!(
            local.settings.is_empty() && local.local.len() == 1,
            "{local:?}"
        );
        assert_eq!(
            settings("SELECT set_config('a.b', ARRAY['x', 'true']::text, false)"),
            "a.b"
        );
        let unknown = effects("SELECT set_config(ARRAY['x', 'y'], TRUE)").what;
        assert!(unknown.contains(What::SETS_UNKNOWN), "{unknown:?}");
    }

    #[test]
    fn what_leaves_nothing_behind_has_no_effects() {
        for sql in [
            "SELECT 1",
            "SELECT abalance FROM pgbench_accounts WHERE aid = 1",
            "SELECT 'set_config(''a'',''b'',false)', \"temp\" FROM listen",
            "SELECT temp, hold FROM t WHERE a IN (1, 2) AND lower(b) = 'LISTEN' -- SET x = 1",
            "SELECT count(*) FILTER (WHERE a) OVER (PARTITION BY b) FROM t AS x (a, b) JOIN y USING (c)",
            "SELECT x::numeric(10,2), CAST(y AS varchar(5)) FROM unnest(z) AS u(v)",
            "BEGIN",
            "BEGIN ISOLATION LEVEL SERIALIZABLE",
            "SET LOCAL app.x = '1'",
            "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            "SET CONSTRAINTS ALL DEFERRED",
            "SELECT set_config('app.x', $1, true)",
            "SELECT pg_catalog.set_config('app.x', $1::text, 't')",
            "SELECT pg_advisory_xact_lock(1), pg_try_advisory_xact_lock(2)",
            "DECLARE c CURSOR FOR SELECT 1",
            "WITH a AS (SELECT 1), b AS MATERIALIZED (SELECT 2) SELECT * FROM a, b",
        ] {
            let mut told = effects(sql);
            told.what.remove(What::CONTROL | What::FOR_GUARD);
            told.local.clear();
            told.objects = 0;
            told.controls = false;
            assert_eq!(told, Effects::default(), "{sql}");
        }
    }

    #[test]
    fn parameters_that_are_set_are_named() {
        for (sql, expected) in [
            ("SET statement_timeout = 5", "statement_timeout"),
            ("set session Work_Mem TO '4MB'; SELECT 1", "work_mem"),
            ("/* x */ SET app.user TO 'a'", "app.user"),
            ("SET \"App\".\"User\" = 'a'", "app.user"),
            ("SET a.b.c = 1", "a.b.c"),
            ("SET x = DEFAULT", "-x"),
            ("SET x TO DEFAULT; SET y = 1", "-x y"),
            ("RESET x", "-x"),
            ("RESET x.y", "-x.y"),
            ("SET TIME ZONE 'UTC'", "timezone"),
            ("SET TIME ZONE LOCAL", "-timezone"),
            ("SET synchronous_commit = local", "synchronous_commit"),
            ("SET NAMES 'UTF8'", "client_encoding"),
            ("SET SCHEMA 'a'", "search_path"),
            ("SET ROLE a", "role"),
            ("RESET ROLE", "-role"),
            ("SET SESSION AUTHORIZATION a", "role session_authorization"),
            (
                "SET session_authorization = a",
                "role session_authorization",
            ),
            (
                "RESET SESSION AUTHORIZATION",
                "-role -session_authorization",
            ),
            (
                "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
                "default_transaction_isolation default_transaction_read_only default_transaction_deferrable",
            ),
            ("SELECT set_config('App.X', 'a', false)", "app.x"),
            (
                "SELECT 1, set_config('a', lower(b(1, 2)), 'f'), set_config('c', 'd', true)",
                "a",
            ),
            ("SELECT set_config('a'::text, $1, $2)", "a"),
            (
                "SELECT set_config('a', set_config('b', 'c', false), false)",
                "b a",
            ),
            (
                "DO $$ BEGIN SET x = 1; PERFORM set_config('y', 'z', false); END $$",
                "x y",
            ),
            ("DO $$ BEGIN EXECUTE 'SET x.y = ' || z; END $$", "x.y"),
            ("SET transaction_isolation = 'serializable'", ""),
            ("UPDATE t SET a = 1", ""),
            ("ALTER ROLE r SET a = 1", ""),
        ] {
            assert_eq!(settings(sql), expected, "{sql}");
        }
    }

    #[test]
    fn parameters_of_a_transaction_are_told_apart() {
        for (sql, expected) in [
            ("SET LOCAL App.X = '1'", "app.x"),
            ("SET LOCAL ROLE a", "role"),
            (
                "SET LOCAL SESSION AUTHORIZATION a; SET y = 1",
                "role session_authorization",
            ),
            (
                "SELECT set_config('a.b', 'c', true), set_config('d', 'e', 'on')",
                "a.b d",
            ),
        ] {
            assert_eq!(effects(sql).local.join(" "), expected, "{sql}");
        }
    }

    #[test]
    fn state_that_may_be_left_is_told() {
        for (sql, expected) in [
            ("CREATE TEMP TABLE t (a int)", What::TEMPORARY),
            ("create local temporary view v as select 1", What::TEMPORARY),
            ("CREATE OR REPLACE TEMP VIEW v AS SELECT 1", What::TEMPORARY),
            ("SELECT 1 INTO TEMP t", What::TEMPORARY),
            (
                "EXPLAIN ANALYZE CREATE TABLE pg_temp.t AS SELECT 1",
                What::TEMPORARY,
            ),
            (
                "EXPLAIN ANALYZE CREATE TEMP TABLE t AS SELECT 1",
                What::TEMPORARY,
            ),
            ("SELECT 1 INTO LOCAL TEMP t", What::TEMPORARY),
            ("SELECT a INTO t FROM u", What::CREATES),
            (
                "CREATE FUNCTION \"pg_temp\".f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
                What::TEMPORARY,
            ),
            (
                "BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 1; COMMIT",
                What::HOLD,
            ),
            ("LISTEN a", What::LISTEN),
            ("UNLISTEN *", What::UNLISTENS),
            ("SELECT pg_advisory_lock(1)", What::ADVISORY),
            (
                "SELECT pg_catalog.\"pg_try_advisory_lock\" (1)",
                What::ADVISORY,
            ),
            ("SELECT pg_advisory_unlock_all()", What::UNLOCKS),
            ("PREPARE a AS SELECT 1", What::PREPARE),
            ("DEALLOCATE a", What::DEALLOCATES),
            ("LOAD 'x'", What::STUCK),
            ("SELECT setseed(0.5)", What::STUCK),
            ("SELECT lastval()", What::READS_SEQUENCE),
            ("SELECT currval('s')", What::READS_SEQUENCE),
            (
                "WITH a AS (INSERT INTO t VALUES (1) RETURNING b) SELECT * FROM a",
                What::ADVANCES_SEQUENCE,
            ),
            ("SELECT nextval('s')", What::ADVANCES_SEQUENCE),
            ("SELECT set_config($1, $2, false)", What::SETS_UNKNOWN),
            ("SELECT set_config(a, b, false) FROM t", What::SETS_UNKNOWN),
            (
                "UPDATE pg_settings SET setting = 'x' WHERE name = 'y'",
                What::SETS_UNKNOWN,
            ),
            (
                "DO $$ BEGIN EXECUTE format('SET %I = 1', x); END $$",
                What::SETS_UNKNOWN,
            ),
            (
                "DO $$ BEGIN EXECUTE 'CREATE TEMP TABLE ' || x; END $$",
                What::TEMPORARY,
            ),
            ("DO 'BEGIN LISTEN a; END'", What::LISTEN),
            (
                "CREATE TABLE s.as OF t (options DEFAULT 1_000)",
                What::SHOWS,
            ),
            ("DO LANGUAGE plperl $$ 1 $$", What::STUCK),
            ("DO $$ BEGIN NULL; END -- $$; LISTEN a; --\n", What::LISTEN),
            (
                "DO $$ BEGIN PERFORM CASE WHEN true THEN pg_notify('a', '') END; END $$",
                What::NOTIFIES,
            ),
            ("DO $$ BEGIN NULL; END $$", What::OPAQUE),
            ("EXECUTE a", What::OPAQUE),
            ("CALL p(1)", What::CALLS),
            ("EXPLAIN ANALYZE EXECUTE a", What::OPAQUE),
            ("CREATE TABLE t AS EXECUTE a", What::OPAQUE),
            (
                "SELECT U&\"set\\005fconfig\"('a', 'b', false)",
                What::HIDDEN,
            ),
            ("SELECT 'a", What::HIDDEN),
            (
                "SELECT DISTINCT ON (x) set_config($1, $2, false) FROM t",
                What::SETS_UNKNOWN,
            ),
            (
                "SELECT * FROM t JOIN set_config($1, $2, false) ON true",
                What::SETS_UNKNOWN,
            ),
            (
                "SELECT 1 OPERATOR(pg_catalog.||) set_config($1, $2, true)",
                What::SETS_UNKNOWN_LOCALLY,
            ),
            (
                "CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
                What::DEFINES,
            ),
            (
                "CREATE AGGREGATE a (text) (sfunc = set_config)",
                What::DEFINES,
            ),
            ("ALTER ROLE r SET x = 1", What::DEFINES),
            ("ALTER SYSTEM SET x = 1", What::DEFINES),
            ("SET client_encoding = 'SJIS'", What::ENCODING),
            ("SET client_encoding TO Shift_JIS_2004", What::ENCODING),
            ("SET NAMES 'big5'", What::ENCODING),
            ("DO $$ BEGIN EXECUTE 'SELECT 1'; END $$", What::RUNS_STRINGS),
            (
                "SELECT query_to_xml('SELECT 1', true, true, '')",
                What::OPAQUE,
            ),
            ("RESET ALL", What::RESETS_ALL),
            (
                "DO $$ BEGIN IF true THEN LISTEN a; END IF; END $$",
                What::LISTEN,
            ),
            ("SELECT 1; DISCARD ALL", What::CONTROL),
            ("DISCARD TEMP", What::DROPS),
        ] {
            assert!(
                effects(sql).what.contains(expected),
                "{sql}: {:?}",
                effects(sql)
            );
        }
    }

    #[test]
    fn functions_that_not_every_server_has_are_named() {
        for (sql, expected) in [
            (
                "SELECT my_function(1), lower('a'), s.\"Other\"(2)",
                "my_function Other",
            ),
            ("INSERT INTO t (a, b) VALUES (f(1), 2)", "f"),
            (
                "SELECT key(1), \"if\"(2) FROM hash(3) WHERE NOT sets(4)",
                "key if hash sets",
            ),
            (
                "SELECT insert(1), insert.f(2), insert.lower(3)",
                "insert f lower",
            ),
            ("SELECT DISTINCT ON (a) over(1), set(2) FROM t", "over set"),
            ("SELECT * FROM a JOIN b ON conflict(c)", "conflict"),
            (
                "SELECT sum(a) OVER (PARTITION BY b) FROM t GROUP BY (b) ORDER BY (c)",
                "",
            ),
            (
                "INSERT INTO t (a) VALUES (1) ON CONFLICT (a) DO UPDATE SET (b, c) = (1, 2)",
                "",
            ),
            ("INSERT INTO s.t (a) SELECT a FROM g(1) AS x (a)", "g"),
            ("SELECT * FROM g(1) AS b (a)", "g"),
            ("SELECT * FROM a CROSS JOIN f(1)", "f"),
            ("SELECT DISTINCT ON (a) f(b) FROM t", "f"),
            ("SELECT a AT TIME ZONE f(), b OPERATOR(x.+) g()", "f g"),
            (
                "SELECT a OPERATOR(+) by(), b OPERATOR (s.-) over(1)",
                "by over",
            ),
            (
                "SELECT s.create(), s.update(1), s.with(2)",
                "create update with",
            ),
            ("CREATE VIEW v AS SELECT s.create(1)", "create"),
            (
                "SELECT a BETWEEN SYMMETRIC f() AND g(VARIADIC h())",
                "f g h",
            ),
            (
                "SELECT my.lower(a), my.json(b), pg_catalog.lower(c)",
                "lower json",
            ),
        ] {
            let names: Vec<_> = effects(sql)
                .functions
                .iter()
                .map(ToString::to_string)
                .collect();
            assert_eq!(names.join(" "), expected, "{sql}");
        }
    }
}
