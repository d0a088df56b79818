//! What of Markdown the rules look at: fences, links, headings. Not a parser: the documents are
//! written plainly.

use std::collections::BTreeSet;

/// A block between fences.
#[derive(Debug)]
pub struct Fence {
    /// What stands behind the opening fence.
    pub info: String,
    /// Without the fence's own indentation.
    pub text: String,
    /// Where it begins.
    pub line: usize,
}

/// The lines of `text`, each with its number, and whether it is within a fence or is one.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str, bool)> {
    let mut is_within = false;
    (1..).zip(text.lines()).map(move |(number, line)| {
        let is_fence = line.trim_start().starts_with("```");
        let was_within = is_within;
        is_within ^= is_fence;
        (number, line, was_within || is_fence)
    })
}

pub fn fenced(text: &str) -> Vec<Fence> {
    let mut fences = Vec::new();
    let mut open: Option<(Fence, usize)> = None;
    for (line, content) in (1..).zip(text.lines()) {
        let trimmed = content.trim_start();
        let indent = content.len() - trimmed.len();
        match (trimmed.strip_prefix("```"), &mut open) {
            (Some(_), Some(_)) => fences.extend(open.take().map(|(fence, _)| fence)),
            (Some(info), None) => {
                let info = info.trim().to_owned();
                let text = String::new();
                open = Some((Fence { info, text, line }, indent));
            }
            (None, Some((fence, indent))) => {
                let own = content.len() - trimmed.len();
                fence.text += &content[(*indent).min(own)..];
                fence.text.push('\n');
            }
            (None, None) => (),
        }
    }
    fences
}

/// The lines outside of fences, with their numbers.
pub fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    lines(text).filter_map(|(number, line, is_code)| (!is_code).then_some((number, line)))
}

/// `line` without what is between backticks.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect()
}

/// The targets of all links.
pub fn links(text: &str) -> Vec<String> {
    // A link's text may go from one line to the next.
    let text: Vec<_> = prose(text).map(|(_, line)| without_code(line)).collect();
    let text = text.join("\n");
    let targets = text.split("](").skip(1);
    let targets = targets.filter_map(|rest| rest.split_once(')'));
    targets.map(|(target, _)| target.to_owned()).collect()
}

/// The anchors of all headings, as GitHub and mdBook make them.
pub fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    for (_, line) in prose(text) {
        let Some((_, heading)) = line.split_once(' ').filter(|(marks, _)| is_heading(marks)) else {
            continue;
        };
        let kept = heading.trim().chars().filter_map(|c| match c {
            ' ' => Some('-'),
            c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
            _ => None,
        });
        let anchor: String = kept.flat_map(char::to_lowercase).collect();
        // The second of a name has a number.
        let names = (0..).map(|n| match n {
            0 => anchor.clone(),
            n => format!("{anchor}-{n}"),
        });
        let free = names.into_iter().find(|name| !anchors.contains(name));
        anchors.extend(free);
    }
    anchors
}

fn is_heading(marks: &str) -> bool {
    !marks.is_empty() && marks.chars().all(|c| c == '#')
}

/// The sections of a page by their headings of the second level: the heading, and what is below it.
pub fn sections(text: &str) -> Vec<(String, String)> {
    let mut sections: Vec<(String, String)> = Vec::new();
    for (_, line) in prose(text) {
        if let Some(heading) = line.strip_prefix("## ") {
            sections.push((heading.trim().to_owned(), String::new()));
        } else if let Some((_, below)) = sections.last_mut() {
            *below += line;
            below.push('\n');
        }
    }
    sections
}

/// What is between backticks.
pub fn code(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The first cells of all rows of the tables in `text`, but for heads.
pub fn first_cells(text: &str) -> Vec<&str> {
    let rows = text.lines().filter_map(|line| line.strip_prefix("| "));
    let cells = rows.filter_map(|row| row.split(" |").next());
    cells.filter(|cell| cell.contains('`')).collect()
}
