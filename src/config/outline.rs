//! Where in the text each setting is, so that a mistake can name its line.
//!
//! The outline is read from the events of a YAML parser, before anything is made of the text. So
//! it is also the place that refuses what a config does not need and an attacker would use: deep
//! nesting, aliases (a few lines that expand to gigabytes) and tags. It recurses nowhere.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;

use saphyr_parser::{Event, Parser};

use super::Mistake;

/// Deepest nesting accepted; the file format needs six levels.
const MAX_DEPTH: usize = 32;

/// A place in the file, built up on the stack while walking down: `At::ROOT.key("tenants")…`.
#[derive(Debug)]
pub struct At<'a> {
    parent: Option<&'a At<'a>>,
    key: Cow<'a, str>,
}

impl At<'_> {
    /// The whole file.
    pub const ROOT: At<'static> = At {
        parent: None,
        key: Cow::Borrowed(""),
    };

    pub fn key<'a>(&'a self, key: impl Into<Cow<'a, str>>) -> At<'a> {
        At {
            parent: Some(self),
            key: key.into(),
        }
    }

    pub fn index(&self, index: usize) -> At<'_> {
        self.key(element(index))
    }

    /// From the root down.
    pub fn segments(&self) -> Vec<&str> {
        let mut segments = Vec::new();
        let mut at = self;
        while let Some(parent) = at.parent {
            segments.push(&*at.key);
            at = parent;
        }
        segments.reverse();
        segments
    }
}

/// How an element of a sequence appears among the segments of a path.
pub fn element(index: usize) -> String {
    format!("[{index}]")
}

/// `placements.free.pool.size`, `listen[0].address`.
pub fn dotted<S: AsRef<str>>(segments: &[S]) -> String {
    let mut path = String::new();
    for segment in segments {
        let segment = segment.as_ref();
        if !path.is_empty() && !segment.starts_with('[') {
            path.push('.');
        }
        path.push_str(segment);
    }
    path
}

/// The lines of all settings: a tree, as one map from (parent, key) to (node, line).
#[derive(Debug, Default)]
pub struct Outline<'t> {
    nodes: HashMap<(u32, Cow<'t, str>), (u32, usize)>,
    last: u32,
}

/// What reading the outline found.
#[derive(Debug)]
pub struct Reading<'t> {
    pub outline: Outline<'t>,
    pub mistakes: Vec<Mistake>,
    /// Whether the text is YAML of the kind a config is written in; if not, nothing else should
    /// read it.
    pub readable: bool,
}

/// Mistakes as they are found, each with the line that the outline knows for its path.
#[derive(Debug, Default)]
pub struct Mistakes<'t> {
    outline: Outline<'t>,
    list: Vec<Mistake>,
    warnings: Vec<Mistake>,
}

impl<'t> Mistakes<'t> {
    /// Of what may be meant as it is, and is told by `pgtenant check`.
    pub fn warn(&mut self, at: &At<'_>, message: impl fmt::Display) {
        let warning = self.mistake(at, message);
        self.warnings.push(warning);
    }

    pub fn add(&mut self, at: &At<'_>, message: impl fmt::Display) {
        let mistake = self.mistake(at, message);
        self.list.push(mistake);
    }

    fn mistake(&self, at: &At<'_>, message: impl fmt::Display) -> Mistake {
        let segments = at.segments();
        Mistake {
            path: dotted(&segments),
            line: self.outline.line(&segments),
            message: message.to_string(),
        }
    }

    /// The warnings so far, in the order of the file.
    pub fn take_warnings(&mut self) -> Vec<Mistake> {
        let mut warnings = std::mem::take(&mut self.warnings);
        warnings.sort_by_key(|warning| warning.line);
        warnings
    }

    /// A mistake of the whole file, of which only the line is known.
    pub fn add_in_line(&mut self, line: Option<usize>, message: String) {
        self.list.push(Mistake {
            path: String::new(),
            line,
            message,
        });
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// All of them in the order of the file.
    pub fn into_sorted(mut self) -> Vec<Mistake> {
        self.list.sort_by_key(|mistake| mistake.line);
        self.list
    }
}

impl<'t> From<Reading<'t>> for Mistakes<'t> {
    fn from(reading: Reading<'t>) -> Self {
        Self {
            outline: reading.outline,
            list: reading.mistakes,
            warnings: Vec::new(),
        }
    }
}

/// A collection that the parser is inside of.
enum Open<'t> {
    /// `value` is the node whose value comes next, `key` the last key.
    Mapping {
        node: u32,
        key: Cow<'t, str>,
        value: Option<u32>,
    },
    Sequence {
        node: u32,
        next: usize,
    },
}

impl<'t> Outline<'t> {
    pub fn read(text: &'t str) -> Reading<'t> {
        let mut reading = Reading {
            outline: Self::default(),
            mistakes: Vec::new(),
            readable: true,
        };
        if let Some(mistake) = control_character(text) {
            reading.refuse(mistake.0, mistake.1);
            return reading;
        }
        let mut open = Vec::new();
        let mut documents = 0;
        let mut parser = Parser::new_from_str(text);
        while let Some(event) = parser.next_event() {
            match event {
                Ok((Event::DocumentStart(_), span)) => {
                    documents += 1;
                    if documents > 1 {
                        reading.refuse(span.start.line(), "a second document is not read");
                        break;
                    }
                }
                Ok((event, span)) => {
                    reading.event(event, span.start.line(), &mut open);
                    if open.len() > MAX_DEPTH {
                        let message = format!("is nested deeper than {MAX_DEPTH} levels");
                        reading.refuse(span.start.line(), message);
                        break;
                    }
                }
                Err(error) => {
                    reading.syntax_error(text, error.marker().line(), error.info());
                    break;
                }
            }
        }
        reading
    }

    /// The line of the setting, or of the nearest thing around it that is in the file.
    pub fn line(&self, segments: &[&str]) -> Option<usize> {
        let mut node = 0;
        let mut found = None;
        for segment in segments {
            // The map's key borrows for as long as the text; a lookup needs an owned one.
            let key = (node, Cow::Owned((*segment).to_owned()));
            let Some(&(child, line)) = self.nodes.get(&key) else {
                break;
            };
            (node, found) = (child, Some(line));
        }
        found
    }

    fn new_node(&mut self) -> u32 {
        self.last = self.last.saturating_add(1);
        self.last
    }
}

impl<'t> Reading<'t> {
    fn event(&mut self, event: Event<'t>, line: usize, open: &mut Vec<Open<'t>>) {
        let tagged = match &event {
            Event::Scalar(.., tag) | Event::SequenceStart(_, tag) | Event::MappingStart(_, tag) => {
                tag.is_some()
            }
            _ => false,
        };
        if tagged {
            self.refuse(line, "a YAML tag (!…) has no meaning here");
        }
        match event {
            Event::Scalar(text, ..) => match open.last_mut() {
                Some(Open::Mapping {
                    key, value: None, ..
                }) => {
                    *key = text;
                    self.key(open, line);
                }
                _ => {
                    self.value(open, line);
                }
            },
            Event::MappingStart(..) => {
                let node = self.value(open, line);
                open.push(Open::Mapping {
                    node,
                    key: Cow::Borrowed(""),
                    value: None,
                });
            }
            Event::SequenceStart(..) => {
                let node = self.value(open, line);
                open.push(Open::Sequence { node, next: 0 });
            }
            Event::MappingEnd | Event::SequenceEnd => {
                open.pop();
            }
            Event::Alias(_) => {
                self.value(open, line);
                self.refuse(
                    line,
                    "a YAML alias (*…) is not accepted: write the value out",
                );
            }
            _ => {}
        }
    }

    /// The node of a value that begins here.
    fn value(&mut self, open: &mut [Open<'t>], line: usize) -> u32 {
        match open.last_mut() {
            None => 0,
            Some(Open::Sequence { node, next }) => {
                let child = self.outline.new_node();
                let key = (*node, Cow::Owned(element(*next)));
                *next += 1;
                self.outline.nodes.insert(key, (child, line));
                child
            }
            Some(Open::Mapping { value, .. }) => value.take().unwrap_or_else(|| {
                self.refuse(line, "a key must be plain text");
                // The value that follows must not be taken for the next key.
                *value = Some(0);
                self.outline.new_node()
            }),
        }
    }

    /// Notes the key that was just put into the innermost mapping.
    fn key(&mut self, open: &mut [Open<'t>], line: usize) {
        let child = self.outline.new_node();
        let Some(Open::Mapping { node, key, value }) = open.last_mut() else {
            return;
        };
        *value = Some(child);
        match self.outline.nodes.entry((*node, key.clone())) {
            Entry::Vacant(entry) => {
                entry.insert((child, line));
            }
            Entry::Occupied(entry) => {
                let message = format!("is given twice, first in line {}", entry.get().1);
                self.mistakes.push(Mistake {
                    path: path(open),
                    line: Some(line),
                    message,
                });
            }
        }
    }

    fn syntax_error(&mut self, text: &str, line: usize, info: &str) {
        let variable = text
            .lines()
            .nth(line.saturating_sub(1))
            .is_some_and(|l| l.contains("${"));
        let hint = if variable {
            " (a value with ${…} must be in quotes)"
        } else {
            ""
        };
        self.refuse(line, format!("not valid YAML: {info}{hint}"));
    }

    fn refuse(&mut self, line: usize, message: impl Into<String>) {
        self.readable = false;
        let message = message.into();
        self.mistakes.push(Mistake {
            path: String::new(),
            line: Some(line),
            message,
        });
    }
}

/// The path of the setting that the parser is at.
fn path(open: &[Open<'_>]) -> String {
    let segments: Vec<Cow<'_, str>> = open
        .iter()
        .map(|open| match open {
            Open::Mapping { key, .. } => Cow::Borrowed(&**key),
            Open::Sequence { next, .. } => Cow::Owned(element(next.saturating_sub(1))),
        })
        .collect();
    dotted(&segments)
}

/// The line of the first character that YAML does not allow, and a message. A NUL would silently
/// end the text for some readers.
fn control_character(text: &str) -> Option<(usize, String)> {
    let allowed = |c: char| !c.is_control() || matches!(c, '\n' | '\r' | '\t' | '\u{85}');
    let (at, character) = text.char_indices().find(|(_, c)| !allowed(*c))?;
    let line = text.split_at(at).0.matches('\n').count() + 1;
    Some((line, format!("has the control character {character:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
a: 1
b:
  c: { d: 2,
    e.f: 3 }
  'g': [x,
    y]
list:
  - one: 1
    two: 2
  -
    three: 3
";

    #[test]
    fn every_setting_has_the_line_of_its_key() {
        let reading = Outline::read(TEXT);
        assert!(reading.readable);
        assert_eq!(reading.mistakes, []);
        for (path, line) in [
            (&["a"][..], 1),
            (&["b"], 2),
            (&["b", "c"], 3),
            (&["b", "c", "d"], 3),
            (&["b", "c", "e.f"], 4),
            (&["b", "g", "[1]"], 6),
            (&["list", "[0]", "two"], 9),
            (&["list", "[1]", "three"], 11),
            (&["list", "[1]", "missing", "entirely"], 11),
            (&["b", "missing"], 2),
        ] {
            assert_eq!(reading.outline.line(path), Some(line), "{path:?}");
        }
        assert_eq!(reading.outline.line(&["missing"]), None);
    }

    #[test]
    fn all_duplicates_are_found_with_both_lines() {
        let reading = Outline::read("a: 1\nb: { c: 1, c: 2 }\na: { d: 1 }\na: { d: 1 }\n'b': 1\n");
        assert!(reading.readable);
        let found: Vec<_> = reading.mistakes.iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "line 2: b.c: is given twice, first in line 2",
                "line 3: a: is given twice, first in line 1",
                "line 4: a: is given twice, first in line 1",
                "line 5: b: is given twice, first in line 2",
            ]
        );
    }

    #[test]
    fn what_a_config_does_not_need_is_refused_with_its_line() {
        for (text, line, message) in [
            ("a: &x 1\nb: *x\n", 2, "alias"),
            ("a: 1\nb: !secret x\n", 2, "tag"),
            ("a: 1\n? [b]\n: 2\n", 2, "a key must be plain text"),
            ("a: 1\n---\nb: 2\n", 2, "a second document"),
            ("a: 1\nb: [\n", 3, "not valid YAML"),
            ("a: 1\nb: { c: ${X} }\n", 2, "must be in quotes"),
            ("a: 1\nb: x\0y\n", 2, "control character '\\0'"),
            ("a: 1\nb:\n\tc: 1\n", 3, "not valid YAML"),
        ] {
            let reading = Outline::read(text);
            assert!(!reading.readable, "{text:?}");
            let mistake = &reading.mistakes[0];
            assert_eq!(mistake.line, Some(line), "{text:?}: {mistake}");
            assert!(mistake.message.contains(message), "{text:?}: {mistake}");
        }
    }

    #[test]
    fn ten_thousand_levels_are_refused_without_reading_them() {
        for text in [
            "[".repeat(10_000),
            "{a: ".repeat(10_000),
            "- ".repeat(10_000),
            (0..10_000)
                .map(|i| format!("{}a:\n", " ".repeat(i % 200 + i / 200)))
                .collect(),
        ] {
            assert!(!Outline::read(&text).readable);
        }
    }
}
