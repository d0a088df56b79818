//! Which parameter a SET or RESET is about, as PostgreSQL's grammar reads it (gram.y:
//! VariableSetStmt, VariableResetStmt).
//!
//! Most words that have a meaning of their own behind SET are allowed as names, too: `SET time.x =
//! 1` sets the parameter `time.x`, and `SET TIME ZONE 'UTC'` sets `timezone`. What stands behind
//! such a word decides, so it is kept until that is known. A name in quotes is never a keyword.

use super::lexer::Token;

/// What a token of a SET or RESET has told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// Nothing that is certain yet.
    Nothing,
    /// SET LOCAL.
    Local,
    /// The parameter goes back to what the session began with: SET … TO DEFAULT, and the like.
    Default(String),
    /// The parameter is set or reset, and to what does not matter or is not told (`FROM CURRENT`,
    /// RESET).
    Named(String),
    /// All parameters of `SET SESSION CHARACTERISTICS`.
    Characteristics,
    /// RESET ALL.
    All,
    /// SET or RESET of `SESSION AUTHORIZATION`, which takes the role away, too.
    Authorization,
    /// The value is no single word or string that could be read.
    Unread(String),
    /// A value, in lower case.
    Value(String, String),
    /// No name stands where one should.
    NoName,
}

/// Where in a SET or RESET the reader is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Naming {
    /// In none, or behind all that matters.
    #[default]
    No,
    /// Behind the command's word, or behind LOCAL or SESSION as `modified` says.
    Begins { resets: bool, modified: bool },
    /// Behind a word that is a keyword or a name, as what follows decides.
    Word {
        word: String,
        resets: bool,
        modified: bool,
    },
    /// Behind a name of one or more parts.
    Name(String),
    /// Behind a dot in a name.
    Dot(String),
    /// Behind `=` or TO, or behind what stands for a name and them.
    Value(String),
}

fn text(bytes: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(bytes).into_owned();
    text.make_ascii_lowercase();
    text
}

impl Naming {
    pub fn set() -> Self {
        Self::Begins {
            resets: false,
            modified: false,
        }
    }

    pub fn reset() -> Self {
        Self::Begins {
            resets: true,
            modified: false,
        }
    }

    /// Takes the next token of the statement, which is not the `;` that ends it.
    pub fn take(&mut self, token: Token<'_>) -> Told {
        match std::mem::take(self) {
            Self::No => Told::Nothing,
            Self::Begins { resets, modified } => self.begin(token, resets, modified),
            Self::Word {
                word,
                resets,
                modified,
            } => match token {
                Token::Symbol(b'.' | b'=') | Token::Word(b"to" | b"from") => {
                    *self = Self::Name(word);
                    self.take(token)
                }
                _ => self.keyword(&word, token, resets, modified),
            },
            Self::Name(name) => match token {
                Token::Symbol(b'.') => {
                    *self = Self::Dot(name);
                    Told::Nothing
                }
                Token::Symbol(b'=') | Token::Word(b"to") => {
                    *self = Self::Value(name);
                    Told::Nothing
                }
                Token::Word(b"from") => Told::Named(name),
                // PostgreSQL's grammar has nothing here either: the statement fails.
                _ => {
                    *self = Self::Name(name);
                    Told::Nothing
                }
            },
            Self::Dot(name) => match token {
                Token::Word(part) | Token::Quoted(part) => {
                    *self = Self::Name(format!("{name}.{}", text(part)));
                    Told::Nothing
                }
                _ => Told::NoName,
            },
            Self::Value(name) => match token {
                Token::Word(b"default") => Told::Default(name),
                Token::Word(b"local") if name == "timezone" => Told::Default(name),
                Token::Word(value) | Token::Quoted(value) | Token::Text(Some(value)) => {
                    *self = Self::Value(name.clone());
                    Told::Value(name, text(value))
                }
                _ => {
                    *self = Self::Value(name.clone());
                    Told::Unread(name)
                }
            },
        }
    }

    /// The statement is at its end. What it is about, if that was not told before.
    pub fn finish(&mut self) -> Told {
        match std::mem::take(self) {
            Self::Name(name) | Self::Value(name) => Told::Named(name),
            Self::Word { word, resets, .. } => match (&*word, resets) {
                ("all", true) => Told::All,
                // Without a value it is the default.
                ("names", false) => Told::Default("client_encoding".to_owned()),
                _ => Told::Named(word),
            },
            Self::Begins { .. } | Self::Dot(_) => Told::NoName,
            Self::No => Told::Nothing,
        }
    }

    fn begin(&mut self, token: Token<'_>, resets: bool, modified: bool) -> Told {
        match token {
            Token::Word(word) => {
                let word = text(word);
                *self = match &*word {
                    // It is a keyword only behind SESSION.
                    "characteristics" if !modified => Self::Name(word),
                    "local" | "characteristics" | "session" | "time" | "schema" | "catalog"
                    | "names" | "role" | "xml" | "transaction" | "constraints" | "all" => {
                        Self::Word {
                            word,
                            resets,
                            modified,
                        }
                    }
                    _ => Self::Name(word),
                };
                Told::Nothing
            }
            Token::Quoted(name) => {
                *self = Self::Name(text(name));
                Told::Nothing
            }
            _ => Told::NoName,
        }
    }

    /// `word` is a keyword, and `next` stands behind it.
    fn keyword(&mut self, word: &str, next: Token<'_>, resets: bool, modified: bool) -> Told {
        let value = |naming: &mut Self, name: &str| {
            *naming = Self::Value(name.to_owned());
            naming.take(next)
        };
        match (word, next) {
            ("session", Token::Word(b"authorization")) => {
                *self = Self::Value("session_authorization".to_owned());
                Told::Authorization
            }
            ("characteristics", _) => Told::Characteristics,
            ("local" | "session", _) if !modified && !resets => {
                let told = match word {
                    "local" => Told::Local,
                    _ => Told::Nothing,
                };
                // What follows begins a name, and nothing is told of that before its end.
                match self.begin(next, resets, true) {
                    Told::Nothing => told,
                    other => other,
                }
            }
            ("time", Token::Word(b"zone")) => {
                *self = Self::Value("timezone".to_owned());
                match resets {
                    true => Told::Default("timezone".to_owned()),
                    false => Told::Nothing,
                }
            }
            ("schema", _) => value(self, "search_path"),
            ("names", _) => value(self, "client_encoding"),
            ("role", _) => value(self, "role"),
            ("xml", _) => value(self, "xmloption"),
            // They end with the transaction.
            ("transaction" | "constraints", _) => Told::Nothing,
            // Nothing else stands here.
            _ => Told::NoName,
        }
    }
}
