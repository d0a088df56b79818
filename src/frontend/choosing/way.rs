//! What the value of a parameter says of the tenant.

use super::{Value, unclear};
use crate::config::{Affixes, Way};
use crate::error::{Error, Kind, Result};

impl Way {
    /// Whether the parameter is the proxy's to answer: what it is at the place says all that there
    /// is to it. Others are set there, too.
    pub(super) fn is_local(&self) -> bool {
        matches!(self, Self::Value | Self::Role(_))
    }

    /// For whom a value of SET is; None is nobody.
    ///
    /// # Errors
    /// 42501 for a role that is no tenant's, 0A000 for a document that does not name one.
    pub(super) fn chosen(&self, value: Option<&str>) -> Result<Option<Value>> {
        let value = value.filter(|value| !value.is_empty());
        let Some(value) = value else { return Ok(None) };
        match self {
            Self::Value => Ok(Some(value.into())),
            Self::Role(_) if value.eq_ignore_ascii_case("none") => Ok(None),
            Self::Role(affixes) => affixes.between(value).map(Some).ok_or_else(|| {
                let message = format!("permission denied to set role \"{value}\"");
                Error::new(Kind::InsufficientPrivilege, message)
                    .with_hint("It is no tenant's, as the application's `choose.role` has it.")
            }),
            Self::SearchPath(affixes) => Ok(affixes.between(value)),
            Self::Json(pointer) => {
                let document: Option<serde_json::Value> = serde_json::from_str(value).ok();
                let found = document.as_ref().and_then(|all| all.pointer(pointer));
                match found {
                    Some(serde_json::Value::String(text)) if !text.is_empty() => {
                        Ok(Some(text.as_str().into()))
                    }
                    Some(serde_json::Value::Number(number)) => Ok(Some(number.to_string().into())),
                    _ => Err(unclear()),
                }
            }
        }
    }

    /// As [`chosen`](Self::chosen) of a value of `set_config`, in which a list is one text.
    ///
    /// # Errors
    /// The same.
    pub(super) fn chosen_by_text(&self, value: Option<&str>) -> Result<Option<Value>> {
        match (self, value) {
            (Self::SearchPath(_), Some(list)) => self.chosen(Some(&first_name(list))),
            _ => self.chosen(value),
        }
    }
}

impl Affixes {
    /// What stands between them in a name.
    fn between(&self, name: &str) -> Option<Value> {
        let rest = name.strip_prefix(&*self.prefix)?;
        let between = rest.strip_suffix(&*self.suffix)?;
        (!between.is_empty()).then(|| between.into())
    }

    pub(super) fn around(&self, value: &str) -> String {
        format!("{}{value}{}", self.prefix, self.suffix)
    }
}

/// The first name of a list as PostgreSQL cuts it (varlena.c: SplitIdentifierString).
fn first_name(list: &str) -> String {
    let list = list.trim_start();
    let Some(quoted) = list.strip_prefix('"') else {
        let end = list.find(|c: char| c == ',' || c.is_ascii_whitespace());
        return list[..end.unwrap_or(list.len())].to_ascii_lowercase();
    };
    let mut name = String::new();
    let mut parts = quoted.split('"').peekable();
    while let Some(part) = parts.next() {
        name.push_str(part);
        // A quote that is doubled is one of the name.
        match parts.peek() {
            Some(&"") => {
                parts.next();
                if parts.peek().is_none() {
                    break;
                }
                name.push('"');
            }
            _ => break,
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_say_for_whom_they_are() {
        let affixes = || Affixes {
            prefix: "t_".into(),
            suffix: "_x".into(),
        };
        let path = Way::SearchPath(affixes());
        for (list, expected) in [
            ("t_acme_x, public", Some("acme")),
            (" \"t_ACME_x\" , public", Some("ACME")),
            ("T_Acme_X", Some("acme")),
            ("\"t_a\"\"b_x\"", Some("a\"b")),
            ("public, t_acme_x", None),
            ("t__x", None),
            ("", None),
        ] {
            let chosen = path.chosen_by_text(Some(list)).unwrap();
            assert_eq!(chosen.as_deref(), expected, "{list}");
        }
        let role = Way::Role(affixes());
        assert_eq!(role.chosen(Some("t_a_x")).unwrap().as_deref(), Some("a"));
        assert_eq!(role.chosen(Some("NONE")).unwrap(), None);
        assert!(role.chosen(Some("postgres")).is_err());
        let json = Way::Json("/app/org".into());
        for (document, expected) in [
            (r#"{"app":{"org":"acme"}}"#, Some("acme")),
            (r#"{"app":{"org":7}}"#, Some("7")),
            (r#"{"app":{"org":["acme"]}}"#, None),
            (r#"{"app":{"org":""}}"#, None),
            (r#"{"org":"acme"}"#, None),
            ("acme", None),
        ] {
            let chosen = json.chosen(Some(document)).ok().flatten();
            assert_eq!(chosen.as_deref(), expected, "{document}");
        }
        assert_eq!(json.chosen(Some("")).unwrap(), None, "nobody's");
        assert_eq!(json.chosen(None).unwrap(), None, "nobody's");
    }
}
