//! What a tenant's own client is to its variables: their defaults are what they are.

use super::cut::statements;
use super::tokens::placed_tokens;
use super::{Scope, SetConfig, Statement, Step, Term, readable};
use crate::sql::{literal, quoted};

/// A parameter that nobody has: its RESET does nothing, and is answered as any other.
const NOBODYS: &str = "pgtenant.nothing";

/// A text in which each statement that returns one of `variables` to its default, or sets it to an
/// empty value, sets it to its value in `own` instead. None: it has no such statement, or is not
/// cut with certainty. `variables` are in lower case; `resets_to_own`: the server's default is that
/// value, so that RESET and DEFAULT may stay; `backslashes`: `standard_conforming_strings` is off.
pub fn returned(
    text: &[u8],
    variables: &[Box<str>],
    own: &[Box<str>],
    resets_to_own: bool,
    backslashes: bool,
) -> Option<String> {
    let text = readable(text)?;
    let placed = placed_tokens(text, backslashes)?;
    let returns = Returns {
        variables,
        own,
        resets_to_own,
        backslashes,
    };
    let mut changed = String::new();
    let mut copied = 0;
    for statement in statements(&placed, |(token, _)| token) {
        let (Some((_, first)), Some((_, last))) = (statement.first(), statement.last()) else {
            continue;
        };
        let tokens: Vec<_> = statement.iter().map(|(token, _)| token.clone()).collect();
        let step = Statement(&tokens, variables, &[]).step();
        if let Some(spelled) = returns.spelled(&step) {
            changed.push_str(&text[copied..first.start]);
            changed.push_str(&spelled);
            copied = last.end;
        }
    }
    (copied > 0).then(|| changed + &text[copied..])
}

struct Returns<'r> {
    variables: &'r [Box<str>],
    own: &'r [Box<str>],
    resets_to_own: bool,
    backslashes: bool,
}

impl Returns<'_> {
    /// The statement that stands for one that returns a variable. None: it returns none.
    fn spelled(&self, step: &Step) -> Option<String> {
        match step {
            Step::Reset(_) if self.resets_to_own => None,
            Step::Set(chosen) if self.resets_to_own && chosen.value.is_none() => None,
            Step::Reset(_) => Some(format!("RESET {NOBODYS}")),
            Step::Set(chosen) if chosen.value.as_deref().unwrap_or_default().is_empty() => {
                let scope = match chosen.scope {
                    Scope::Local => "LOCAL ",
                    Scope::Session => "",
                };
                let parts: Vec<_> = self.variables[chosen.variable]
                    .split('.')
                    .map(quoted)
                    .collect();
                let value = self.literal(&self.own[chosen.variable]);
                Some(format!("SET {scope}{} TO {value}", parts.join(".")))
            }
            Step::SetConfig(call, column) => self.calls([(call, &**column)]),
            Step::SetConfigs(calls) => {
                self.calls(calls.iter().map(|(call, column)| (call, &**column)))
            }
            _ => None,
        }
    }

    fn calls<'c>(
        &self,
        calls: impl IntoIterator<Item = (&'c SetConfig, &'c str)>,
    ) -> Option<String> {
        let mut returns = false;
        let mut spelled = Vec::new();
        for (call, column) in calls {
            let own = self.own_of(&call.name);
            let is_empty = match &call.value {
                Term::Null => true,
                Term::Literal(value) => value.is_empty(),
                Term::Parameter(_) => false,
            };
            let value = match own.filter(|_| is_empty) {
                Some(own) => {
                    returns = true;
                    self.literal(own)
                }
                None => self.term(&call.value),
            };
            spelled.push(format!(
                "pg_catalog.set_config({}, {value}, {}) AS {}",
                self.term(&call.name),
                self.term(&call.is_local),
                quoted(column)
            ));
        }
        returns.then(|| format!("SELECT {}", spelled.join(", ")))
    }

    fn own_of(&self, name: &Term) -> Option<&str> {
        let Term::Literal(name) = name else {
            return None;
        };
        let mut variables = self.variables.iter();
        let at = variables.position(|variable| variable.eq_ignore_ascii_case(name));
        at.map(|at| &*self.own[at])
    }

    fn term(&self, term: &Term) -> String {
        match term {
            Term::Literal(text) => self.literal(text),
            Term::Parameter(number) => format!("${number}"),
            Term::Null => "NULL".to_owned(),
        }
    }

    fn literal(&self, text: &str) -> String {
        match self.backslashes {
            true => literal(&text.replace('\\', "\\\\")),
            false => literal(text),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_returns_to_the_default_sets_what_is_own() {
        let returned = |sql: &str| {
            let variables = ["app.tenant_id".into(), "app.role".into()];
            let own = ["o'x".into(), "r".into()];
            super::returned(sql.as_bytes(), &variables, &own, false, false)
        };
        for (sql, expected) in [
            ("RESET app.tenant_id", "RESET pgtenant.nothing"),
            (
                "BEGIN; /* x */ reset \"App\".Tenant_ID ; SELECT ';'",
                "BEGIN; /* x */ RESET pgtenant.nothing ; SELECT ';'",
            ),
            (
                "SET LOCAL app.tenant_id TO DEFAULT;",
                "SET LOCAL \"app\".\"tenant_id\" TO 'o''x';",
            ),
            ("SET SESSION app.role = ''", "SET \"app\".\"role\" TO 'r'"),
            (
                "SELECT set_config('app.tenant_id', '', true) AS a, set_config('x.y', $1, $2)",
                "SELECT pg_catalog.set_config('app.tenant_id', 'o''x', 'true') AS \"a\", \
                 pg_catalog.set_config('x.y', $1, $2) AS \"set_config\"",
            ),
            (
                "SELECT set_config('app.role', NULL, false)",
                "SELECT pg_catalog.set_config('app.role', 'r', 'false') AS \"set_config\"",
            ),
        ] {
            assert_eq!(returned(sql).as_deref(), Some(expected), "{sql}");
        }
        for sql in [
            "SELECT 1",
            "SET app.tenant_id = 'x'",
            "SELECT set_config('app.tenant_id', $1, true)",
            "RESET x.y",
            "SELECT set_config('app.tenant_id', '', true) FROM t",
            "RESET app.tenant_id; '",
        ] {
            assert_eq!(returned(sql), None, "{sql}");
        }
    }
}
