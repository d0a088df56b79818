//! Text with `{name}` placeholders: how one placement describes the places of many tenants.

use std::fmt;

/// A parsed template. `{name}` is a placeholder, `{{` and `}}` are braces.
#[derive(Clone, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Name(String),
}

/// Why a string is not a template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTemplate {
    #[error("has a '{{' without a '}}' (a brace itself is written '{{{{')")]
    Open,
    #[error("has a '}}' without a '{{' (a brace itself is written '}}}}')")]
    Close,
    #[error("has the placeholder '{{{0}}}': a name is letters, digits, '_' and '-'")]
    Name(String),
}

/// The placeholder for which there was no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no value for '{{{0}}}'")]
pub struct MissingName(pub String);

impl Template {
    /// # Errors
    /// A brace without its partner, or a placeholder whose name is none.
    pub fn parse(text: &str) -> Result<Self, InvalidTemplate> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, from) = rest.split_at(at);
            plain.push_str(before);
            if let Some(after) = from.strip_prefix("{{") {
                plain.push('{');
                rest = after;
            } else if let Some(after) = from.strip_prefix("}}") {
                plain.push('}');
                rest = after;
            } else if let Some(after) = from.strip_prefix('{') {
                let (name, after) = after.split_once('}').ok_or(InvalidTemplate::Open)?;
                if !is_name(name) {
                    return Err(InvalidTemplate::Name(name.to_owned()));
                }
                if !plain.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut plain)));
                }
                parts.push(Part::Name(name.to_owned()));
                rest = after;
            } else {
                return Err(InvalidTemplate::Close);
            }
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(Self(parts))
    }

    /// The text as SQL with a parameter, `$1` and so on, in place of each placeholder, and the
    /// names of the parameters in their order. A name that occurs again is the same parameter.
    pub fn with_parameters(&self) -> (String, Vec<String>) {
        let mut text = String::new();
        let mut names: Vec<String> = Vec::new();
        for part in &self.0 {
            match part {
                Part::Text(part) => text.push_str(part),
                Part::Name(name) => {
                    let known = names.iter().position(|known| known == name);
                    let number = known.unwrap_or_else(|| {
                        names.push(name.clone());
                        names.len() - 1
                    });
                    text.push('$');
                    text.push_str(&(number + 1).to_string());
                }
            }
        }
        (text, names)
    }

    /// The text with every placeholder replaced by `value(name)`. What a value holds is never
    /// looked at again: braces in it are text.
    ///
    /// # Errors
    /// The first placeholder for which `value` has none.
    pub fn fill<'v>(&self, value: impl Fn(&str) -> Option<&'v str>) -> Result<String, MissingName> {
        let mut text = String::new();
        for part in &self.0 {
            text.push_str(match part {
                Part::Text(text) => text,
                Part::Name(name) => value(name).ok_or_else(|| MissingName(name.clone()))?,
            });
        }
        Ok(text)
    }
}

/// Whether `name` may stand in braces, and so may be the name of an attribute.
pub fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}

/// `text` as a template that yields exactly `text`.
pub fn escape(text: &str) -> String {
    text.replace('{', "{{").replace('}', "}}")
}

/// The placeholders alone: the text around them may be a password.
impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Template(")?;
        for part in &self.0 {
            match part {
                Part::Text(_) => f.write_str("***")?,
                Part::Name(name) => write!(f, "{{{name}}}")?,
            }
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(text: &str) -> Result<String, String> {
        let template = Template::parse(text).map_err(|e| e.to_string())?;
        let value = |name: &str| match name {
            "tenant" => Some("globex"),
            "odd" => Some("{tenant}"),
            _ => None,
        };
        template.fill(value).map_err(|e| e.to_string())
    }

    #[test]
    fn placeholders_are_filled_and_doubled_braces_are_braces() {
        for (template, text) in [
            ("", ""),
            ("app", "app"),
            ("{tenant}", "globex"),
            ("t_{tenant}", "t_globex"),
            ("{tenant}-{tenant}x", "globex-globexx"),
            ("{{tenant}}", "{tenant}"),
            ("{{{tenant}}}", "{globex}"),
            ("{odd}", "{tenant}"),
            ("ä{tenant}ö", "äglobexö"),
        ] {
            assert_eq!(fill(template).as_deref(), Ok(text), "{template:?}");
        }
    }

    #[test]
    fn a_broken_template_says_what_is_wrong() {
        for (template, why) in [
            (
                "{tenant",
                "has a '{' without a '}' (a brace itself is written '{{')",
            ),
            (
                "tenant}",
                "has a '}' without a '{' (a brace itself is written '}}')",
            ),
            (
                "{}",
                "has the placeholder '{}': a name is letters, digits, '_' and '-'",
            ),
            (
                "{a b}",
                "has the placeholder '{a b}': a name is letters, digits, '_' and '-'",
            ),
            ("{region}", "no value for '{region}'"),
        ] {
            assert_eq!(fill(template), Err(why.to_owned()), "{template:?}");
        }
    }

    #[test]
    fn placeholders_become_parameters() {
        let template = Template::parse("f({tenant}, '{{}}', {a}, {tenant})").unwrap();
        let (text, names) = template.with_parameters();
        assert_eq!(text, "f($1, '{}', $2, $1)");
        assert_eq!(names, ["tenant", "a"]);
    }

    #[test]
    fn escaped_text_comes_back_unchanged() {
        for text in ["", "a{b}c", "{{", "}", "{tenant}"] {
            assert_eq!(fill(&escape(text)).as_deref(), Ok(text));
        }
    }

    #[test]
    fn a_debug_print_shows_no_text() {
        let template = Template::parse("hunter2-{tenant}").unwrap();
        assert_eq!(format!("{template:?}"), "Template(***{tenant})");
    }
}
