//! Environment variables in values.

use std::borrow::Cow;

use crate::config::outline::At;
use crate::config::template;

/// Looks up an environment variable.
pub type Environment<'e> = &'e dyn Fn(&str) -> Option<String>;

/// Whether a value is read as a template, in which a variable's braces must stay braces.
pub fn is_template(at: &At<'_>) -> bool {
    matches!(
        *at.segments(),
        [
            "placements",
            _,
            "database" | "schema" | "login" | "context" | "seal_tenant",
            ..
        ] | ["placements", _, "provision", "after" | "delete", ..]
    )
}

/// Replaces `${NAME}` and `${NAME:-text}`, as a shell does it: the default also stands in for an
/// empty variable.
///
/// # Errors
/// All of them, each the end of a sentence that begins with the setting.
pub fn expanded(
    text: &str,
    template: bool,
    environment: Environment<'_>,
) -> Result<String, Vec<String>> {
    let mut whole = String::with_capacity(text.len());
    let mut errors = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, from) = rest.split_at(at);
        let inside = from.strip_prefix("${").unwrap_or_default();
        if let Some(before) = before.strip_suffix('$') {
            whole.push_str(before);
            whole.push_str("${");
            rest = inside;
            continue;
        }
        whole.push_str(before);
        let Some((variable, after)) = inside.split_once('}') else {
            errors
                .push("has a '${' without a '}' ('$${' stands for the characters '${')".to_owned());
            rest = "";
            break;
        };
        let (name, default) = match variable.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (variable, None),
        };
        let name_is_valid = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if name_is_valid {
            let value = environment(name).map(Cow::<str>::Owned);
            let value = match default {
                Some(default) => value
                    .filter(|v| !v.is_empty())
                    .or(Some(Cow::Borrowed(default))),
                None => value,
            };
            match value {
                Some(value) if template => whole.push_str(&template::escape(&value)),
                Some(value) => whole.push_str(&value),
                None => errors.push(format!("the environment variable {name} is not set")),
            }
        } else {
            errors.push(format!(
                "'${{{name}}}' is not the name of an environment variable"
            ));
        }
        rest = after;
    }
    whole.push_str(rest);
    if errors.is_empty() {
        Ok(whole)
    } else {
        Err(errors)
    }
}
