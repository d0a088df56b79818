//! Cutting texts of SQL: as much as the programs of the simulation need.

/// The statements of a text, without the empty ones.
pub fn split(text: &str) -> Vec<&str> {
    top_level(text, ';')
        .map(str::trim)
        .filter(|statement| !statement.is_empty())
        .collect()
}

/// The parts between separators that are neither in quotes nor in brackets.
pub fn top_level(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut depth = 0_i32;
    let mut quoted = false;
    text.split(move |c: char| {
        match c {
            '\'' => quoted = !quoted,
            '(' | '[' if !quoted => depth += 1,
            ')' | ']' if !quoted => depth -= 1,
            _ => {}
        }
        c == separator && !quoted && depth == 0
    })
}

/// What follows `word`, in whatever case.
pub fn after<'t>(text: &'t str, word: &str) -> Option<&'t str> {
    let (head, rest) = text.split_at_checked(word.len())?;
    let ends = rest
        .chars()
        .next()
        .is_none_or(|c| !c.is_alphanumeric() && c != '_');
    (head.eq_ignore_ascii_case(word) && ends).then(|| rest.trim_start())
}

/// The same for one of several words, the first that fits.
pub fn after_any<'t>(text: &'t str, words: &[&str]) -> Option<&'t str> {
    words.iter().find_map(|word| after(text, word))
}

/// A name or a value without its quotes.
pub fn unquoted(text: &str) -> String {
    let text = text.trim();
    let inner = |quote: char| text.strip_prefix(quote)?.strip_suffix(quote);
    if let Some(inner) = inner('\'') {
        return inner.replace("''", "'");
    }
    let parts: Vec<_> = text.split('.').map(|part| part.trim_matches('"')).collect();
    parts.join(".")
}

/// A function's name and its arguments.
pub fn call(text: &str) -> Option<(String, Vec<&str>)> {
    let (name, rest) = text.trim().split_once('(')?;
    let inner = rest.trim_end().strip_suffix(')')?;
    let is_name = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
    if name.is_empty() || !name.chars().all(is_name) {
        return None;
    }
    let name = name.strip_prefix("pg_catalog.").unwrap_or(name);
    let arguments = match inner.trim().is_empty() {
        true => Vec::new(),
        false => top_level(inner, ',').map(str::trim).collect(),
    };
    Some((name.to_ascii_lowercase(), arguments))
}
