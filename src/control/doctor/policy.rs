//! What an expression of a policy lets through, told from the text that `pg_get_expr` makes of it:
//! fully in parentheses, keywords in capitals, names outside of `pg_catalog` with their schema.
//!
//! It knows the shapes that people write, and says so when it does not know one. It proves nothing:
//! a function that a policy calls, or a sub-select over another table, is taken at its word.

use std::ops::Range;

/// Deeper than any expression that was written by hand. Whoever owns a table can write others.
const MAX_DEPTH: usize = 100;

/// What names the tenant in an expression.
#[derive(Debug, Clone, Default)]
pub struct Vocabulary {
    /// Variables whose value is the tenant.
    pub tenant_variables: Vec<String>,
    /// Others that the proxy sets, and clients cannot choose.
    pub other_variables: Vec<String>,
    /// Functions that give the tenant.
    pub functions: Vec<TenantFunction>,
}

/// A function that gives the tenant.
#[derive(Debug, Clone)]
pub struct TenantFunction {
    /// As `schema.name`.
    pub name: String,
    /// What it gives is proven, and no variable's word.
    pub sealed: bool,
}

/// What an expression lets through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The rows of the tenant.
    Tenant,
    Nothing,
    Everything,
    /// Everything while the connection carries no tenant.
    EverythingWithoutTenant,
    /// It looks at the tenant and not at the row.
    NotTheRow,
    /// What this variable says, which a client may set.
    ClientSetting(String),
    /// Nothing in it is about the tenant.
    NotTheTenant,
    Unknown(&'static str),
}

/// An expression, judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    pub verdict: Verdict,
    /// Columns that are compared with the tenant.
    pub columns: Vec<String>,
    /// Whose rows are shown when there is no tenant.
    pub default_tenant: Option<String>,
    /// It shows some rows to every tenant, beside their own.
    pub shares: bool,
    /// Calls that are made for each row: where they are in the text.
    pub per_row: Vec<Range<usize>>,
    /// It takes the tenant from a variable that is not sealed.
    pub by_variable: bool,
}

/// Judges an expression.
pub fn judge(text: &str, vocabulary: &Vocabulary) -> Judgement {
    let mut judge = Judge {
        vocabulary,
        columns: Vec::new(),
        default_tenant: None,
        shares: false,
        per_row: Vec::new(),
        by_variable: false,
    };
    let verdict = match read(text) {
        Some(nodes) => {
            judge.find_per_row(&nodes, false);
            judge.expression(&nodes)
        }
        None => Verdict::Unknown("it could not be read"),
    };
    judge.columns.sort();
    judge.columns.dedup();
    Judgement {
        verdict,
        columns: judge.columns,
        default_tenant: judge.default_tenant,
        shares: judge.shares,
        per_row: judge.per_row,
        by_variable: judge.by_variable,
    }
}

/// The text with its calls in sub-selects, which are evaluated once a statement.
pub fn wrapped(text: &str, calls: &[Range<usize>]) -> String {
    let mut out = String::with_capacity(text.len() + 16 * calls.len());
    let mut done = 0;
    for call in calls {
        let (before, inside) = (text.get(done..call.start), text.get(call.clone()));
        out += before.unwrap_or_default();
        out += &format!("(SELECT {})", inside.unwrap_or_default());
        done = call.end;
    }
    out + text.get(done..).unwrap_or_default()
}

// ---- reading ----

#[derive(Debug, Clone, PartialEq)]
enum Node {
    /// A keyword, in capitals, or a name.
    Word(String, Range<usize>),
    Quoted(String, Range<usize>),
    Text(String),
    Number,
    Symbol(String),
    /// What is between parentheses or brackets.
    Group(Vec<Node>, Range<usize>),
}

impl Node {
    fn is_word(&self, word: &str) -> bool {
        matches!(self, Self::Word(found, _) if found == word)
    }

    fn is_symbol(&self, symbol: &str) -> bool {
        matches!(self, Self::Symbol(found) if found == symbol)
    }

    fn is_keyword(&self) -> bool {
        matches!(self, Self::Word(word, _) if word.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
    }

    /// A name, if it is one.
    fn name(&self) -> Option<&str> {
        match self {
            Self::Quoted(name, _) => Some(name),
            Self::Word(name, _) if !self.is_keyword() && name != "true" && name != "false" => {
                Some(name)
            }
            _ => None,
        }
    }

    fn start(&self) -> usize {
        match self {
            Self::Word(_, range) | Self::Quoted(_, range) | Self::Group(_, range) => range.start,
            _ => 0,
        }
    }
}

fn read(text: &str) -> Option<Vec<Node>> {
    let mut reader = Reader { text, at: 0 };
    let nodes = reader.nodes(None, 0)?;
    (reader.at == text.len()).then_some(nodes)
}

struct Reader<'t> {
    text: &'t str,
    at: usize,
}

impl Reader<'_> {
    fn rest(&self) -> &str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn take(&mut self, fits: impl Fn(char) -> bool) -> (String, Range<usize>) {
        let taken: String = self.rest().chars().take_while(|c| fits(*c)).collect();
        let start = self.at;
        self.at += taken.len();
        (taken, start..self.at)
    }

    /// A text or name between `quote`s, doubled inside.
    fn quoted(&mut self, quote: char, escapes: bool) -> Option<String> {
        let mut inside = String::new();
        let mut characters = self.rest().char_indices().skip(1).peekable();
        while let Some((i, c)) = characters.next() {
            let next = characters.peek().map(|(_, next)| *next);
            match c {
                '\\' if escapes => {
                    inside.extend(next);
                    characters.next();
                }
                c if c == quote && next == Some(quote) => {
                    inside.push(quote);
                    characters.next();
                }
                c if c == quote => {
                    self.at += i + 1;
                    return Some(inside);
                }
                c => inside.push(c),
            }
        }
        None
    }

    /// Up to `end`, or the end of the text.
    fn nodes(&mut self, end: Option<char>, depth: usize) -> Option<Vec<Node>> {
        if depth > MAX_DEPTH {
            return None;
        }
        let mut nodes = Vec::new();
        loop {
            self.take(char::is_whitespace);
            let start = self.at;
            let Some(c) = self.rest().chars().next() else {
                return end.is_none().then_some(nodes);
            };
            let node = match c {
                ')' | ']' => {
                    self.at += 1;
                    return (end == Some(c)).then_some(nodes);
                }
                '(' | '[' => {
                    self.at += 1;
                    let inside = self.nodes(Some(if c == '(' { ')' } else { ']' }), depth + 1)?;
                    Node::Group(inside, start..self.at)
                }
                '\'' => Node::Text(self.quoted('\'', false)?),
                'E' | 'B' | 'X' if self.rest().get(1..2) == Some("'") => {
                    self.at += 1;
                    Node::Text(self.quoted('\'', c == 'E')?)
                }
                '"' => {
                    let name = self.quoted('"', false)?;
                    Node::Quoted(name, start..self.at)
                }
                c if c.is_ascii_digit() => {
                    self.take(|c| c.is_ascii_alphanumeric() || c == '.');
                    Node::Number
                }
                c if c.is_alphabetic() || c == '_' => {
                    let (word, range) = self.take(|c| c.is_alphanumeric() || c == '_' || c == '$');
                    Node::Word(word, range)
                }
                ',' | '.' | ';' => {
                    self.at += 1;
                    Node::Symbol(c.to_string())
                }
                ':' => Node::Symbol(self.take(|c| c == ':').0),
                c => {
                    let (symbol, _) = self.take(|c| "+-*/<>=~!@#%^&|`?$".contains(c));
                    if symbol.is_empty() {
                        self.at += c.len_utf8();
                    }
                    Node::Symbol(symbol)
                }
            };
            nodes.push(node);
        }
    }
}

// ---- judging ----

/// What occurs in a part of an expression.
#[derive(Debug, Default)]
struct Mentions {
    tenant: bool,
    /// A variable that a client may set.
    setting: Option<String>,
    /// A column of the row.
    column: bool,
    /// A sub-select from a table.
    table: bool,
    /// A text other than `''`.
    text: Option<String>,
    number: bool,
}

/// A call: its name, its arguments, and how many nodes it is.
fn call(nodes: &[Node]) -> Option<(String, &[Node], usize)> {
    let mut name = nodes.first()?.name()?.to_owned();
    let mut at = 1;
    while nodes.get(at).is_some_and(|node| node.is_symbol(".")) {
        name = format!("{name}.{}", nodes.get(at + 1)?.name()?);
        at += 2;
    }
    match nodes.get(at)? {
        Node::Group(arguments, _) => Some((name, arguments, at + 1)),
        _ => None,
    }
}

/// How many nodes a cast (`::type`) here is.
fn cast(nodes: &[Node]) -> usize {
    if !nodes.first().is_some_and(|node| node.is_symbol("::")) {
        return 0;
    }
    let mut at = 2;
    loop {
        match nodes.get(at) {
            Some(node) if node.is_symbol(".") => at += 2,
            Some(Node::Group(..)) => at += 1,
            Some(Node::Word(word, _))
                if ["varying", "precision", "with", "without", "time", "zone"]
                    .contains(&&**word) =>
            {
                at += 1;
            }
            _ => return at,
        }
    }
}

/// Without parentheses around all of it, and casts behind them.
fn bare(mut nodes: &[Node]) -> &[Node] {
    while let Some((Node::Group(inside, _), casts)) = nodes.split_first() {
        if !casts.is_empty() && cast(casts) != casts.len() {
            break;
        }
        nodes = inside;
    }
    nodes
}

fn split(nodes: &[Node], separator: impl Fn(&Node) -> bool) -> Vec<&[Node]> {
    nodes.split(separator).collect()
}

struct Judge<'v> {
    vocabulary: &'v Vocabulary,
    columns: Vec<String>,
    default_tenant: Option<String>,
    shares: bool,
    per_row: Vec<Range<usize>>,
    by_variable: bool,
}

impl Judge<'_> {
    /// Whether a call gives the tenant, or which variable it reads.
    fn context(&self, name: &str, arguments: &[Node]) -> Option<Result<(), Option<String>>> {
        if name == "current_setting" {
            let Some(Node::Text(variable)) = arguments.first() else {
                return Some(Err(Some("chosen by an expression".to_owned())));
            };
            let is = |known: &String| known.eq_ignore_ascii_case(variable);
            return Some(if self.vocabulary.tenant_variables.iter().any(is) {
                Ok(())
            } else if self.vocabulary.other_variables.iter().any(is) {
                Err(None)
            } else {
                Err(Some(variable.clone()))
            });
        }
        let functions = &self.vocabulary.functions;
        functions
            .iter()
            .any(|known| known.name == name)
            .then_some(Ok(()))
    }

    fn find_per_row(&mut self, nodes: &[Node], once: bool) {
        let once = once || nodes.first().is_some_and(|node| node.is_word("SELECT"));
        let mut at = 0;
        while let Some(node) = nodes.get(at) {
            let rest = nodes.get(at..).unwrap_or_default();
            if let Some((name, arguments, length)) = call(rest)
                && self.context(&name, arguments) == Some(Ok(()))
            {
                if let (false, Some(Node::Group(_, end))) = (once, rest.get(length - 1)) {
                    self.per_row.push(node.start()..end.end);
                }
                let mut functions = self.vocabulary.functions.iter();
                self.by_variable |= !functions.any(|known| known.name == name && known.sealed);
                at += length;
                continue;
            }
            if let Node::Group(inside, _) = node {
                self.find_per_row(inside, once);
            }
            at += 1;
        }
    }

    fn mentions(&self, nodes: &[Node], found: &mut Mentions) {
        let in_select = nodes.first().is_some_and(|node| node.is_word("SELECT"))
            && nodes.iter().any(|node| node.is_word("FROM"));
        found.table |= in_select;
        let columns_before = found.column;
        let mut at = 0;
        while let Some(node) = nodes.get(at) {
            let rest = nodes.get(at..).unwrap_or_default();
            let casts = cast(rest);
            if casts > 0 {
                at += casts;
                continue;
            }
            if node.is_word("AS") {
                at += 2;
                continue;
            }
            if let Some((name, arguments, length)) = call(rest) {
                match self.context(&name, arguments) {
                    Some(Ok(())) => found.tenant = true,
                    Some(Err(Some(variable))) => found.setting = Some(variable),
                    Some(Err(None)) => {}
                    None => self.mentions(arguments, found),
                }
                at += length;
                continue;
            }
            match node {
                Node::Group(inside, _) => self.mentions(inside, found),
                Node::Text(text) if !text.is_empty() => found.text = Some(text.clone()),
                Node::Number => found.number = true,
                node if node.name().is_some() => found.column = true,
                _ => {}
            }
            at += 1;
        }
        if in_select {
            // They are of the table in the sub-select.
            found.column = columns_before;
        }
    }

    fn look(&self, nodes: &[Node]) -> Mentions {
        let mut found = Mentions::default();
        self.mentions(nodes, &mut found);
        found
    }

    fn expression(&mut self, nodes: &[Node]) -> Verdict {
        let nodes = bare(nodes);
        let any = split(nodes, |node| node.is_word("OR"));
        if any.len() > 1 {
            return self.any_of(&any);
        }
        let all = split(nodes, |node| node.is_word("AND"));
        if all.len() > 1 {
            return self.all_of(&all);
        }
        match nodes.first() {
            Some(first) if first.is_word("NOT") => self.negated(nodes.get(1..).unwrap_or_default()),
            Some(first) if first.is_word("CASE") => self.case(nodes),
            Some(first) if first.is_word("EXISTS") => self.exists(nodes),
            Some(first) if first.is_word("COALESCE") && nodes.len() == 2 => {
                let arguments = match nodes.get(1) {
                    Some(Node::Group(arguments, _)) => arguments.as_slice(),
                    _ => &[],
                };
                let parts = split(arguments, |node| node.is_symbol(","));
                // The later ones count when the first is NULL: without a tenant.
                match self.any_of(&parts) {
                    Verdict::Everything => Verdict::EverythingWithoutTenant,
                    verdict => verdict,
                }
            }
            Some(first) if first.is_word("true") && nodes.len() == 1 => Verdict::Everything,
            Some(first) if first.is_word("false") && nodes.len() == 1 => Verdict::Nothing,
            _ => self.comparison(nodes),
        }
    }

    fn any_of(&mut self, parts: &[&[Node]]) -> Verdict {
        let verdicts: Vec<_> = parts.iter().map(|part| self.expression(part)).collect();
        let of = |wanted: &Verdict| verdicts.contains(wanted);
        if of(&Verdict::Everything) {
            return Verdict::Everything;
        }
        if of(&Verdict::EverythingWithoutTenant) {
            return Verdict::EverythingWithoutTenant;
        }
        let setting = |verdict: &&Verdict| matches!(verdict, Verdict::ClientSetting(_));
        if let Some(setting) = verdicts.iter().find(setting) {
            return setting.clone();
        }
        let unknown = |verdict: &&Verdict| matches!(verdict, Verdict::Unknown(_));
        let unknown = verdicts.iter().find(unknown);
        if of(&Verdict::Tenant) || unknown.is_some() {
            self.shares |= of(&Verdict::NotTheTenant) || of(&Verdict::NotTheRow);
            return unknown.cloned().unwrap_or(Verdict::Tenant);
        }
        let first = verdicts.into_iter().find(|v| *v != Verdict::Nothing);
        first.unwrap_or(Verdict::Nothing)
    }

    fn all_of(&mut self, parts: &[&[Node]]) -> Verdict {
        let shared = self.shares;
        let mut verdicts = Vec::new();
        for part in parts {
            self.shares = false;
            let verdict = self.expression(part);
            verdicts.push((verdict, self.shares));
        }
        self.shares = shared;
        let tight = |(verdict, shares): &&(Verdict, bool)| {
            matches!(verdict, Verdict::Tenant | Verdict::Nothing) && !shares
        };
        if let Some((verdict, _)) = verdicts.iter().find(tight) {
            return verdict.clone();
        }
        let best = |(verdict, _): &&(Verdict, bool)| {
            matches!(verdict, Verdict::Tenant | Verdict::Unknown(_))
        };
        if let Some((verdict, shares)) = verdicts.iter().find(best) {
            self.shares |= shares;
            return verdict.clone();
        }
        let restricting = verdicts.iter().find(|(v, _)| *v != Verdict::Everything);
        restricting.map_or(Verdict::Everything, |(verdict, _)| verdict.clone())
    }

    /// `NOT (a IS DISTINCT FROM b)` is `IS NOT DISTINCT FROM`.
    fn negated(&mut self, nodes: &[Node]) -> Verdict {
        let inside = bare(nodes);
        let distinct = inside.iter().position(|node| node.is_word("DISTINCT"));
        if let Some(at) = distinct
            && at > 0
        {
            let left = inside.get(..at - 1).unwrap_or_default();
            let right = inside.get(at + 2..).unwrap_or_default();
            return self.equal(left, right);
        }
        match self.expression(nodes) {
            Verdict::Everything => Verdict::Nothing,
            Verdict::Nothing => Verdict::Everything,
            Verdict::EverythingWithoutTenant => Verdict::NotTheRow,
            Verdict::Tenant => Verdict::NotTheTenant,
            verdict => verdict,
        }
    }

    fn case(&self, nodes: &[Node]) -> Verdict {
        let found = self.look(nodes);
        if let Some(setting) = found.setting {
            return Verdict::ClientSetting(setting);
        }
        if !found.tenant {
            return Verdict::NotTheTenant;
        }
        let results = nodes.windows(2).filter_map(|pair| match pair {
            [before, after] if before.is_word("THEN") || before.is_word("ELSE") => Some(after),
            _ => None,
        });
        let mut results = results.map(|node| bare(std::slice::from_ref(node)));
        if results.any(|result| matches!(result, [node] if node.is_word("true"))) {
            return Verdict::EverythingWithoutTenant;
        }
        Verdict::Unknown("a CASE decides")
    }

    fn exists(&self, nodes: &[Node]) -> Verdict {
        let found = self.look(nodes);
        match found {
            Mentions {
                setting: Some(setting),
                ..
            } => Verdict::ClientSetting(setting),
            Mentions { tenant: true, .. } => Verdict::Tenant,
            _ => Verdict::Unknown("a sub-select decides, and is as tight as what it reads"),
        }
    }

    fn comparison(&mut self, nodes: &[Node]) -> Verdict {
        if let Some(at) = nodes.iter().position(|node| node.is_symbol("=")) {
            let left = nodes.get(..at).unwrap_or_default();
            return self.equal(left, nodes.get(at + 1..).unwrap_or_default());
        }
        if let Some(at) = nodes.iter().position(|node| node.is_word("OPERATOR")) {
            let equals = match nodes.get(at + 1) {
                Some(Node::Group(name, _)) => name.last().is_some_and(|n| n.is_symbol("=")),
                _ => false,
            };
            if equals {
                let left = nodes.get(..at).unwrap_or_default();
                return self.equal(left, nodes.get(at + 2..).unwrap_or_default());
            }
        }
        if let Some(at) = nodes.iter().position(|node| node.is_word("IN")) {
            let left = nodes.get(..at).unwrap_or_default();
            return self.equal(left, nodes.get(at + 1..).unwrap_or_default());
        }
        let found = self.look(nodes);
        if let Some(setting) = found.setting {
            return Verdict::ClientSetting(setting);
        }
        if !found.tenant {
            return match found.table {
                true => Verdict::Unknown("a sub-select decides, and is as tight as what it reads"),
                false => Verdict::NotTheTenant,
            };
        }
        let ends_with = |words: &[&str]| {
            nodes.len() > words.len()
                && nodes
                    .iter()
                    .rev()
                    .zip(words.iter().rev())
                    .all(|(n, w)| n.is_word(w))
        };
        if ends_with(&["IS", "NULL"]) && !found.column {
            return Verdict::EverythingWithoutTenant;
        }
        if ends_with(&["IS", "NOT", "NULL"]) && !found.column {
            return Verdict::NotTheRow;
        }
        if nodes.iter().any(|n| n.is_symbol("<>")) || ends_with(&["NULL"]) {
            return Verdict::NotTheTenant;
        }
        Verdict::Unknown("the tenant is not compared by =")
    }

    fn equal(&mut self, left: &[Node], right: &[Node]) -> Verdict {
        let (a, b) = (self.look(left), self.look(right));
        if let Some(setting) = a.setting.clone().or_else(|| b.setting.clone()) {
            return Verdict::ClientSetting(setting);
        }
        let (context, row, row_nodes, other) = match (a.tenant, b.tenant) {
            (true, false) => (left, right, right, b),
            (false, true) => (right, left, left, a),
            (true, true) => return Verdict::NotTheTenant,
            (false, false) if a.table || b.table => {
                return Verdict::Unknown("a sub-select decides, and is as tight as what it reads");
            }
            (false, false) => return Verdict::NotTheTenant,
        };
        if let Some(verdict) = self.fallback(context) {
            return verdict;
        }
        if self.look(context).column {
            return Verdict::Unknown("the tenant is mixed with columns of the row");
        }
        if !other.column {
            // The tenant against something fixed.
            return match other.text {
                Some(_) => Verdict::NotTheRow,
                None => match row.is_empty() || other.table {
                    true => Verdict::Unknown("the tenant is compared with a sub-select"),
                    false => Verdict::EverythingWithoutTenant,
                },
            };
        }
        self.columns.extend(column(row_nodes));
        Verdict::Tenant
    }

    /// What `coalesce` gives when there is no tenant, where that is not nothing.
    fn fallback(&mut self, nodes: &[Node]) -> Option<Verdict> {
        for (at, node) in nodes.iter().enumerate() {
            let Node::Group(inside, _) = node else {
                continue;
            };
            let before = at.checked_sub(1).and_then(|before| nodes.get(before));
            if before.is_some_and(|word| word.is_word("COALESCE")) {
                let parts = split(inside, |node| node.is_symbol(","));
                for part in parts.iter().skip(1) {
                    let found = self.look(part);
                    if found.tenant {
                        continue;
                    }
                    if found.column {
                        return Some(Verdict::EverythingWithoutTenant);
                    }
                    if found.table {
                        return Some(Verdict::Unknown("a sub-select stands in for the tenant"));
                    }
                    if found.number {
                        self.default_tenant = Some("a number".to_owned());
                    }
                    if let Some(text) = found.text {
                        self.default_tenant = Some(format!("\"{text}\""));
                    }
                }
            }
            if let Some(verdict) = self.fallback(inside) {
                return Some(verdict);
            }
        }
        None
    }
}

/// The column that is one side of a comparison.
fn column(nodes: &[Node]) -> Option<String> {
    let nodes = bare(nodes);
    let mut name = nodes.first()?.name()?;
    let mut at = 1;
    while nodes.get(at).is_some_and(|node| node.is_symbol(".")) {
        name = nodes.get(at + 1)?.name()?;
        at += 2;
    }
    let rest = nodes.get(at..).unwrap_or_default();
    (cast(rest) == rest.len()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocabulary() -> Vocabulary {
        Vocabulary {
            tenant_variables: vec!["app.tenant_id".to_owned()],
            other_variables: vec!["app.region".to_owned()],
            functions: [("pgtenant.tenant_id", true), ("app.me", false)]
                .map(|(name, sealed)| TenantFunction {
                    name: name.to_owned(),
                    sealed,
                })
                .into(),
        }
    }

    const SET: &str = "current_setting('app.tenant_id'::text, true)";

    fn verdict(text: &str) -> Verdict {
        judge(&text.replace("SET", SET), &vocabulary()).verdict
    }

    #[test]
    fn shapes_that_hold_are_known() {
        for text in [
            "(tenant_id = ( SELECT SET AS current_setting))",
            "(tenant_id = SET)",
            "(SET = tenant_id)",
            "((tenant_id)::text = ( SELECT SET AS current_setting))",
            "(tenant_id = (NULLIF(SET, ''::text))::uuid)",
            "(tenant_id = ( SELECT (NULLIF(SET, ''::text))::uuid AS \"nullif\"))",
            "(tenant_id = ( SELECT pgtenant.tenant_id() AS tenant_id))",
            "(tenant_id = app.me())",
            "(tenant_id = COALESCE(SET, ''::text))",
            "((tenant_id = SET) AND (NOT deleted))",
            "((deleted = false) AND (tenant_id = SET))",
            "(NOT (tenant_id IS DISTINCT FROM SET))",
            "(tenant_id = ANY (string_to_array(SET, ','::text)))",
            "((tenant_id = SET) OR ((owner = SET) AND shared))",
            "(project_id IN ( SELECT p.id FROM public.projects p WHERE (p.tenant_id = SET)))",
            "(EXISTS ( SELECT 1 FROM public.projects p WHERE ((p.id = t.project_id) AND (p.tenant_id = SET))))",
            "(tenant_id OPERATOR(public.=) (SET)::public.citext)",
            "(tenant_id = current_setting('APP.Tenant_Id'::text))",
        ] {
            assert_eq!(verdict(text), Verdict::Tenant, "{text}");
        }
        assert_eq!(verdict("false"), Verdict::Nothing);
    }

    #[test]
    fn shapes_that_are_open_are_known() {
        use Verdict::{Everything, EverythingWithoutTenant, NotTheRow, NotTheTenant};
        for (text, expected) in [
            ("true", Everything),
            ("(true)", Everything),
            ("((tenant_id = SET) OR true)", Everything),
            (
                "((SET IS NULL) OR (tenant_id = SET))",
                EverythingWithoutTenant,
            ),
            (
                "((SET = ''::text) OR (tenant_id = SET))",
                EverythingWithoutTenant,
            ),
            (
                "((( SELECT SET AS x) = ''::text) OR (tenant_id = SET))",
                EverythingWithoutTenant,
            ),
            (
                "((length(SET) = 0) OR (tenant_id = SET))",
                EverythingWithoutTenant,
            ),
            (
                "(tenant_id = COALESCE(SET, tenant_id))",
                EverythingWithoutTenant,
            ),
            (
                "(tenant_id = COALESCE(NULLIF(SET, ''::text), tenant_id))",
                EverythingWithoutTenant,
            ),
            ("COALESCE((tenant_id = SET), true)", EverythingWithoutTenant),
            (
                "CASE WHEN (SET IS NULL) THEN true ELSE (tenant_id = SET) END",
                EverythingWithoutTenant,
            ),
            ("(SET = 'a'::text)", NotTheRow),
            ("(SET IS NOT NULL)", NotTheRow),
            ("(SET = SET)", NotTheTenant),
            ("(id > 0)", NotTheTenant),
            ("(tenant_id = 'a'::text)", NotTheTenant),
            ("(tenant_id <> SET)", NotTheTenant),
            (
                "(region = current_setting('app.region'::text))",
                NotTheTenant,
            ),
            ("(owner = CURRENT_USER)", NotTheTenant),
        ] {
            assert_eq!(verdict(text), expected, "{text}");
        }
        for text in [
            "(tenant_id = current_setting('app.other'::text, true))",
            "((tenant_id = SET) OR (current_setting('app.admin'::text, true) = 'on'::text))",
        ] {
            assert!(matches!(verdict(text), Verdict::ClientSetting(_)), "{text}");
        }
        for text in [
            "(order_id IN ( SELECT orders.id FROM public.orders))",
            "app.may_see(tenant_id, SET)",
            "(tenant_id ~~ SET)",
            "(unbalanced",
        ] {
            assert!(matches!(verdict(text), Verdict::Unknown(_)), "{text}");
        }
        let deep = format!("{}x{}", "(".repeat(100_000), ")".repeat(100_000));
        assert!(matches!(verdict(&deep), Verdict::Unknown(_)));
    }

    #[test]
    fn shared_rows_default_tenants_and_columns_are_told() {
        let judged = |text: &str| judge(&text.replace("SET", SET), &vocabulary());
        let shared = judged("((tenant_id IS NULL) OR (tenant_id = SET))");
        assert_eq!((shared.verdict, shared.shares), (Verdict::Tenant, true));
        assert_eq!(shared.columns, ["tenant_id"]);
        let narrowed = judged("(((tenant_id IS NULL) OR (a = SET)) AND (\"Tenant\" = SET))");
        assert!(!narrowed.shares);
        assert_eq!(narrowed.columns, ["Tenant", "a"]);
        let default = judged("(t.tenant_id = COALESCE(SET, 'demo'::text))");
        assert_eq!(default.default_tenant.as_deref(), Some("\"demo\""));
        assert_eq!(default.columns, ["tenant_id"]);
    }

    #[test]
    fn calls_for_each_row_are_found_and_wrapped() {
        let text =
            format!("((tenant_id = {SET}) AND (a = ( SELECT {SET} AS x)) AND (b = app.me()))");
        let judged = judge(&text, &vocabulary());
        assert_eq!(judged.per_row.len(), 2);
        let expected = format!(
            "((tenant_id = (SELECT {SET})) AND (a = ( SELECT {SET} AS x)) AND (b = (SELECT app.me())))"
        );
        assert_eq!(wrapped(&text, &judged.per_row), expected);
        assert!(judge(&expected, &vocabulary()).per_row.is_empty());
    }
}
