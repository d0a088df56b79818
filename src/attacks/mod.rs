//! What a tenant tries to reach another one: the attacks that are made of SQL and messages alone,
//! as data, and how they are played.
//!
//! Two made-up tenants live beside each other in a place ([`stage`]) with rows of their own that
//! hold *canaries*: texts and a number that stand nowhere else. A tries, B does its work; an attack
//! has succeeded if A hears one of B's canaries, B hears one of A's, B's rows are others than
//! before, or B cannot do its work any more. What PostgreSQL or the proxy says to it does not
//! matter for that.
//!
//! Nothing here starts servers or proxies: where the tenants come in is a [`session::Way`], through
//! a proxy or direct. What takes dying servers, cut connections or cancels at the right moment is
//! not here but in `tests/it`.

mod list;
pub mod made;
pub mod play;
pub mod session;
pub mod stage;

use std::collections::HashMap;
use std::fmt;

pub use list::ATTACKS;

/// One way, or several that are much the same, to reach another tenant.
#[derive(Debug, Clone, Copy)]
pub struct Attack {
    pub name: &'static str,
    pub category: Category,
    /// What it is good for where it works.
    pub gives: &'static str,
    /// All are played.
    pub variants: &'static [Variant],
    pub sign: Sign,
    pub connections: Connections,
    /// It changes nothing but what was made for it, and hinders nobody but B.
    pub is_harmless: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Category {
    /// Statements that say what they do.
    Direct,
    /// The same, so that who reads the statement does not see it.
    Hidden,
    /// Logins.
    Door,
    /// What is left on a server connection that others get next.
    Residue,
    /// Those who are there at the same time.
    Neighbours,
}

impl fmt::Display for Category {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Hidden => "hidden",
            Self::Door => "at the door",
            Self::Residue => "residue",
            Self::Neighbours => "neighbours",
        })
    }
}

/// How an attack is seen to have succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// A heard a canary of B's.
    Read,
    /// B's rows are others.
    Changed,
    /// B heard a canary of A's.
    Planted,
    /// B could not do its work.
    Hindered,
}

impl fmt::Display for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "A read what is B's",
            Self::Changed => "A changed what is B's",
            Self::Planted => "A's doing was seen by B",
            Self::Hindered => "B could not do its work",
        })
    }
}

/// What an attack needs of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connections {
    /// One server connection, so that B and A get the same.
    One,
    /// Several, so that B and A are there at once.
    Several,
}

#[derive(Debug)]
pub enum Variant {
    /// Statements after which A may be able to see what is B's: tried in every form that messages
    /// can give them, with a look at the rows behind them.
    Trick(&'static [&'static str]),
    Scene(&'static [Step]),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    A,
    B,
}

/// SQL in it may hold words of the stage, in braces. Where the stage has no such word, the variant
/// does not apply.
#[derive(Debug)]
pub enum Step {
    Query(Who, &'static str),
    /// Parse, Bind and Execute of each, of the unnamed statement; one Sync at the end.
    Batch(Who, &'static [&'static str]),
    /// With a parameter of text each.
    Bound(Who, &'static str, &'static [&'static str]),
    /// Parse and Bind with these parameters; it is not executed.
    BindOnly(Who, &'static str, &'static [&'static str]),
    /// A named statement; the name, the text.
    Prepare(Who, &'static str, &'static str),
    Run(Who, &'static str),
    /// A FunctionCall with arguments of text.
    Call(Who, u32, &'static [&'static str]),
    /// COPY FROM STDIN, and the data at once.
    CopyIn(Who, &'static str, &'static str),
    /// The query is sent, its answer read at [`Step::Await`].
    Begin(Who, &'static str),
    Await(Who),
    /// The word `b_pid` is the process that serves B now.
    Pid,
    /// The session ends; the next step of the same makes another.
    Leave(Who),
    /// A comes with these startup parameters in addition, or instead of `user` and `database`.
    LogIn(&'static [(&'static str, &'static str)]),
    /// A has this many sessions more, each in a transaction.
    Crowd(usize),
    /// B does its work: it reads its rows and changes one. It does so at the end of every scene,
    /// too.
    Work,
}

impl Step {
    /// All texts in it that may hold words.
    fn texts(&self) -> Vec<&'static str> {
        match self {
            Self::Query(_, sql) | Self::Prepare(_, _, sql) | Self::Begin(_, sql) => vec![sql],
            Self::Batch(_, texts) | Self::Call(_, _, texts) => texts.to_vec(),
            Self::Bound(_, sql, values) | Self::BindOnly(_, sql, values) => {
                [&[*sql], *values].concat()
            }
            Self::CopyIn(_, sql, data) => vec![sql, data],
            Self::LogIn(parameters) => parameters
                .iter()
                .flat_map(|(name, value)| [*name, *value])
                .collect(),
            Self::Run(..)
            | Self::Await(_)
            | Self::Pid
            | Self::Leave(_)
            | Self::Crowd(_)
            | Self::Work => Vec::new(),
        }
    }
}

/// What stands for the words in braces.
#[derive(Debug, Clone, Default)]
pub struct Words(HashMap<&'static str, Vec<u8>>);

impl Words {
    pub fn set(&mut self, word: &'static str, value: impl Into<Vec<u8>>) {
        self.0.insert(word, value.into());
    }

    /// Whether all words of the steps are known, or will be.
    fn fit(&self, steps: &[Step]) -> bool {
        let mut words = self.clone();
        words.set("b_pid", "0");
        let mut texts = steps.iter().flat_map(Step::texts);
        texts.all(|text| words.fill(text).is_some())
    }

    /// The text with its words replaced; none if one is not known here.
    pub fn fill(&self, text: &str) -> Option<Vec<u8>> {
        let mut filled = Vec::with_capacity(text.len());
        let mut pieces = text.split('{');
        filled.extend_from_slice(pieces.next().unwrap_or_default().as_bytes());
        for piece in pieces {
            let (word, rest) = piece.split_once('}')?;
            filled.extend_from_slice(self.0.get(word)?);
            filled.extend_from_slice(rest.as_bytes());
        }
        Some(filled)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_word_that_is_not_known_makes_no_text() {
        let mut words = Words::default();
        words.set("b", "x");
        assert_eq!(words.fill("a {b}{b} c").as_deref(), Some(&b"a xx c"[..]));
        assert_eq!(words.fill("{b} {c}"), None);
    }

    #[test]
    fn names_of_attacks_are_their_own_and_all_have_variants() {
        let names: HashSet<_> = ATTACKS.iter().map(|attack| attack.name).collect();
        assert_eq!(names.len(), ATTACKS.len());
        assert!(ATTACKS.iter().all(|attack| !attack.variants.is_empty()));
    }
}
