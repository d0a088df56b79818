//! Reading the file: YAML to values, values to the structs of the format, and a mistake for all
//! that does not fit.

use std::collections::BTreeMap;
use std::fmt;

use indexmap::IndexMap;
use serde::de::{self, Deserialize, DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_ignored::Path as IgnoredPath;
use serde_path_to_error::{Segment, Track};
use serde_yaml::{Mapping, Value};

use super::environment::{Environment, expanded, is_template};
use super::known::{known_settings, said_elsewhere, unknown_setting};
use super::{ConfigFile, TenantFile};
use crate::config::outline::{At, Mistakes, Outline, element};
use crate::config::{Extras, Mistake};

/// Most type mistakes reported of one entry.
const MAX_TYPE_MISTAKES: usize = 50;

impl ConfigFile {
    /// Reads the text. The mistakes found so far come back in any case; without a file there is
    /// nothing more to find.
    pub fn read<'t>(text: &'t str, environment: Environment<'_>) -> (Option<Self>, Mistakes<'t>) {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let reading = Outline::read(text);
        let readable = reading.readable;
        let mut mistakes = Mistakes::from(reading);
        if !readable {
            return (None, mistakes);
        }
        let root = match serde_yaml::from_str::<FirstKeyWins>(text) {
            Ok(FirstKeyWins(root)) => root,
            Err(error) => {
                // The two parsers differ in rare corners only; both must accept the text.
                let line = error.location().map(|location| location.line());
                mistakes.add_in_line(line, format!("not valid YAML: {error}"));
                return (None, mistakes);
            }
        };
        let file = match root {
            Value::Mapping(values) => {
                let reader = Reader {
                    environment,
                    mistakes: &mut mistakes,
                };
                Some(Self::sections(Root {
                    values,
                    known: Vec::new(),
                    reader,
                }))
            }
            Value::Null => {
                mistakes.add(&At::ROOT, "the file is empty");
                None
            }
            _ => {
                mistakes.add(
                    &At::ROOT,
                    "must be a mapping of settings such as `servers: …`",
                );
                None
            }
        };
        (file, mistakes)
    }

    /// Reads one tenant of the catalog, whose settings are JSON.
    ///
    /// # Errors
    /// All that is wrong with it, without lines.
    pub fn read_tenant(name: &str, json: &str) -> Result<TenantFile, Vec<Mistake>> {
        let mut mistakes = Mistakes::default();
        let section = At::ROOT.key("tenants");
        let at = section.key(name);
        let file = read_json(&mut mistakes, &at, json);
        for (user, credential) in file.iter().flat_map(|file: &TenantFile| &file.users) {
            if credential.password.is_some() {
                let message = "must be a verifier (`scram`): passwords do not stand in a catalog";
                mistakes.add(&at.key("users").key(&**user), message);
            }
        }
        match file {
            Some(file) if mistakes.is_empty() => Ok(file),
            _ => Err(mistakes.into_sorted()),
        }
    }

    /// Adds servers and placements that stand in a catalog. Those of the file count. Variables in
    /// them are replaced as in the file.
    pub fn add(
        &mut self,
        extras: &Extras,
        mistakes: &mut Mistakes<'_>,
        environment: Environment<'_>,
    ) {
        fn add<T: DeserializeOwned>(
            mine: &mut Option<IndexMap<String, Option<T>>>,
            section: &'static str,
            others: &BTreeMap<String, String>,
            reader: &mut Reader<'_, '_>,
        ) {
            let at = At::ROOT.key(section);
            for (name, json) in others {
                let mine = mine.get_or_insert_default();
                if !mine.contains_key(name) {
                    let at = at.key(&**name);
                    let value = json_value(reader.mistakes, &at, json);
                    let read = value.and_then(|value| reader.read(value, &at));
                    mine.insert(name.clone(), read);
                }
            }
        }
        let reader = &mut Reader {
            environment,
            mistakes,
        };
        add(&mut self.servers, "servers", &extras.servers, reader);
        add(
            &mut self.placements,
            "placements",
            &extras.placements,
            reader,
        );
    }

    fn sections(mut root: Root<'_, '_>) -> Self {
        let file = Self {
            listen: root.list("listen"),
            http: root.section("http"),
            admin: root.section("admin"),
            log: root.section("log").unwrap_or_default(),
            audit: root.section("audit").unwrap_or_default(),
            usage: root.section("usage").unwrap_or_default(),
            workers: root.section("workers"),
            io_uring: root.section("io_uring"),
            identify: root.section("identify").unwrap_or_default(),
            limits: root.section("limits").unwrap_or_default(),
            metrics: root.section("metrics").unwrap_or_default(),
            timeouts: root.section("timeouts").unwrap_or_default(),
            tcp_keepalives: root.section("tcp_keepalives").unwrap_or_default(),
            doctor: root.section("doctor").unwrap_or_default(),
            catalog: root.section("catalog"),
            servers: root.entries("servers"),
            placements: root.entries("placements"),
            applications: root.entries("applications"),
            tenants: root.entries("tenants"),
        };
        root.finish();
        file
    }
}

/// Makes a `T` of a JSON text, and reports what does not fit as if it stood at `at` in a file.
fn read_json<T: DeserializeOwned>(
    mistakes: &mut Mistakes<'_>,
    at: &At<'_>,
    json: &str,
) -> Option<T> {
    // Most texts have no mistake, and are read once.
    let mut is_known = json.trim_start().starts_with('{');
    let mut reader = serde_json::Deserializer::from_str(json);
    let read = serde_ignored::deserialize(&mut reader, |_| is_known = false);
    if let (Ok(read), true) = (read, is_known) {
        return Some(read);
    }
    let value = json_value(mistakes, at, json)?;
    let mut reader = Reader {
        environment: &|_| None,
        mistakes,
    };
    reader.read_expanded(value, at, true)
}

fn json_value(mistakes: &mut Mistakes<'_>, at: &At<'_>, json: &str) -> Option<Value> {
    let read = serde_json::from_str::<FirstKeyWins>(json);
    let read = read.map_err(|error| mistakes.add(at, format_args!("is not JSON: {error}")));
    read.ok().map(|FirstKeyWins(value)| value)
}

/// The top level of the file, taken apart section by section.
struct Root<'r, 't> {
    values: Mapping,
    known: Vec<&'static str>,
    reader: Reader<'r, 't>,
}

impl Root<'_, '_> {
    fn take(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.values
            .swap_remove(name)
            .filter(|value| !value.is_null())
    }

    fn section<T: DeserializeOwned>(&mut self, name: &'static str) -> Option<T> {
        let value = self.take(name)?;
        self.reader.read(value, &At::ROOT.key(name))
    }

    fn list<T: DeserializeOwned>(&mut self, name: &'static str) -> Option<Vec<Option<T>>> {
        let at = At::ROOT.key(name);
        let Value::Sequence(values) = self.take(name)? else {
            self.reader.mistakes.add(&at, "must be a list");
            // Given, if not rightly: not to be reported as missing as well.
            return Some(vec![None]);
        };
        let values = values.into_iter().enumerate();
        Some(
            values
                .map(|(i, value)| self.reader.read(value, &at.index(i)))
                .collect(),
        )
    }

    fn entries<T: DeserializeOwned>(
        &mut self,
        name: &'static str,
    ) -> Option<IndexMap<String, Option<T>>> {
        let at = At::ROOT.key(name);
        let Value::Mapping(values) = self.take(name)? else {
            self.reader.mistakes.add(&at, "must be a mapping of names");
            return Some(IndexMap::new());
        };
        let mut entries = IndexMap::with_capacity(values.len());
        for (key, value) in values {
            match key {
                Value::String(key) => {
                    let entry = self.reader.read(value, &at.key(&*key));
                    entries.insert(key, entry);
                }
                other => self.reader.mistakes.add(&at, unquoted_key(&other)),
            }
        }
        Some(entries)
    }

    fn finish(self) {
        for key in self.values.keys() {
            match key {
                Value::String(key) => {
                    let message = unknown_setting(key, &self.known);
                    self.reader.mistakes.add(&At::ROOT.key(&**key), message);
                }
                other => self.reader.mistakes.add(&At::ROOT, unquoted_key(other)),
            }
        }
    }
}

fn unquoted_key(key: &Value) -> String {
    let shown = match key {
        Value::Number(number) => number.to_string(),
        Value::Bool(word) => word.to_string(),
        _ => "~".to_owned(),
    };
    format!("has the name {shown}, which YAML does not take for text: put it in quotes")
}

/// Makes typed entries of values.
struct Reader<'r, 't> {
    environment: Environment<'r>,
    mistakes: &'r mut Mistakes<'t>,
}

impl Reader<'_, '_> {
    /// Makes a `T` of one value and reports what does not fit. After a mistake the offending value
    /// is taken out and the rest is read again, so that one mistake does not hide the next.
    fn read<T: DeserializeOwned>(&mut self, mut value: Value, at: &At<'_>) -> Option<T> {
        let text_only = value.is_string();
        let whole = self.expand(&mut value, at);
        if text_only && !whole {
            return None;
        }
        self.read_expanded(value, at, whole)
    }

    /// The same of what has no variables in it. `whole`: nothing is missing yet.
    fn read_expanded<T: DeserializeOwned>(
        &mut self,
        mut value: Value,
        at: &At<'_>,
        mut whole: bool,
    ) -> Option<T> {
        for _ in 0..MAX_TYPE_MISTAKES {
            let mut unknown = Vec::new();
            let mut track = Track::new();
            let tracked = serde_path_to_error::Deserializer::new(&value, &mut track);
            let mut note = |path: IgnoredPath<'_>| unknown.push(segments(&path));
            let noted = serde_ignored::Deserializer::new(tracked, &mut note);
            match T::deserialize(noted) {
                Ok(read) => {
                    unknown.iter().for_each(|path| self.add_unknown(at, path));
                    return whole.then_some(read);
                }
                Err(error) => {
                    let path = error_path(track);
                    whole = false;
                    self.add_below(at, &path, &type_mistake(&error.to_string()));
                    if !remove(&mut value, &path) {
                        break;
                    }
                }
            }
        }
        None
    }

    /// Replaces `${NAME}` and `${NAME:-text}` in all texts below `at`. A setting in which this
    /// fails is taken out, so that nothing else is said of it. Returns whether all went well.
    fn expand(&mut self, value: &mut Value, at: &At<'_>) -> bool {
        match value {
            Value::String(text) if text.contains("${") => {
                match expanded(text, is_template(at), self.environment) {
                    Ok(replaced) => {
                        *text = replaced;
                        true
                    }
                    Err(errors) => {
                        errors.iter().for_each(|error| self.mistakes.add(at, error));
                        // Any text does to find what else is wrong; elsewhere a number may be
                        // meant.
                        let any_text_does =
                            is_template(at) || at.segments().ends_with(&["password"]);
                        if any_text_does {
                            "unset".clone_into(text);
                        }
                        any_text_does
                    }
                }
            }
            Value::Mapping(mapping) => {
                let mut whole = true;
                mapping.retain(|key, value| {
                    let Value::String(key) = key else { return true };
                    let expanded = self.expand(value, &at.key(&**key));
                    whole &= expanded;
                    expanded || !value.is_string()
                });
                whole
            }
            Value::Sequence(values) => values
                .iter_mut()
                .enumerate()
                .fold(true, |whole, (i, value)| {
                    self.expand(value, &at.index(i)) && whole
                }),
            _ => true,
        }
    }

    fn add_below(&mut self, at: &At<'_>, path: &[String], message: &str) {
        match path.split_first() {
            None => self.mistakes.add(at, message),
            Some((first, rest)) => self.add_below(&at.key(&**first), rest, message),
        }
    }

    fn add_unknown(&mut self, at: &At<'_>, path: &[String]) {
        let Some((key, parent)) = path.split_last() else {
            return;
        };
        let above = at.segments();
        let section: Vec<&str> = above
            .into_iter()
            .chain(parent.iter().map(|s| &**s))
            .collect();
        match said_elsewhere(&section, key) {
            Some(message) => self.add_below(at, path, message),
            None => self.add_below(at, path, &unknown_setting(key, known_settings(&section))),
        }
    }
}

fn error_path(track: Track) -> Vec<String> {
    let path = track.path();
    let segments = path.iter().filter_map(|segment| match segment {
        Segment::Seq { index } => Some(element(*index)),
        Segment::Map { key } => Some(key.clone()),
        Segment::Enum { .. } | Segment::Unknown => None,
    });
    segments.collect()
}

fn segments(path: &IgnoredPath<'_>) -> Vec<String> {
    match path {
        IgnoredPath::Root => Vec::new(),
        IgnoredPath::Seq { parent, index } => {
            let mut path = segments(parent);
            path.push(element(*index));
            path
        }
        IgnoredPath::Map { parent, key } => {
            let mut path = segments(parent);
            path.push(key.clone());
            path
        }
        IgnoredPath::Some { parent }
        | IgnoredPath::NewtypeStruct { parent }
        | IgnoredPath::NewtypeVariant { parent } => segments(parent),
    }
}

/// Takes the value at `path` out; whether there was one. A list goes as a whole: taking out one
/// element would give those after it other numbers.
fn remove(value: &mut Value, path: &[String]) -> bool {
    let Value::Mapping(mapping) = value else {
        return false;
    };
    let Some((key, rest)) = path.split_first() else {
        return false;
    };
    match mapping.get_mut(&**key) {
        Some(inner @ Value::Mapping(_)) if !rest.is_empty() => remove(inner, rest),
        Some(_) => {
            mapping.retain(|other, _| other.as_str() != Some(key));
            true
        }
        None => false,
    }
}

/// serde's words in ours. The value that does not fit is left out: it may be a password that was
/// written in the wrong place.
fn type_mistake(error: &str) -> String {
    if let Some((found, expected)) = error
        .strip_prefix("invalid type: ")
        .and_then(|rest| rest.rsplit_once(", expected "))
    {
        let found = if found.starts_with("string") {
            "text"
        } else if found.starts_with("integer") || found.starts_with("floating point") {
            "a number"
        } else if found.starts_with("boolean") {
            "a boolean"
        } else if found.starts_with("sequence") {
            "a list"
        } else if found.starts_with("map") {
            "a mapping"
        } else {
            return format!("must be {expected}, and is empty");
        };
        let hint = match (expected, found) {
            ("a string", "a number" | "a boolean") => ": put it in quotes",
            _ => "",
        };
        return format!("must be {expected}, not {found}{hint}");
    }
    if let Some((found, expected)) = error
        .strip_prefix("unknown variant ")
        .and_then(|rest| rest.split_once(", expected "))
    {
        return format!("must be {expected}, not {found}");
    }
    error.to_owned()
}

/// Any YAML. Of duplicate keys, which the outline has reported, the first counts; the library's own
/// `Value` would stop at them and hide all other mistakes.
struct FirstKeyWins(Value);

impl<'de> Deserialize<'de> for FirstKeyWins {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
                Ok(Value::Bool(value))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
                Ok(Value::from(value))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
                Ok(Value::from(value))
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
                Ok(Value::from(value))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
                Ok(Value::from(value))
            }

            fn visit_string<E: de::Error>(self, value: String) -> Result<Value, E> {
                Ok(Value::from(value))
            }

            fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_none<E: de::Error>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
                let mut values = Vec::new();
                while let Some(FirstKeyWins(value)) = seq.next_element()? {
                    values.push(value);
                }
                Ok(Value::Sequence(values))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                let mut values = Mapping::new();
                while let Some((FirstKeyWins(key), FirstKeyWins(value))) = map.next_entry()? {
                    values.entry(key).or_insert(value);
                }
                Ok(Value::Mapping(values))
            }
        }

        deserializer.deserialize_any(Any).map(Self)
    }
}
