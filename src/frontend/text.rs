//! Reads the texts of Query and Parse messages as they pass, whole or in pieces.

use crate::protocol::frame::FrontendTag;
use crate::sql::effects::{Effects, Scanner};

/// Where in the body of a message the reader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum At {
    /// In no message with a text.
    #[default]
    Nowhere,
    /// In the statement's name, before the text.
    Name,
    Text,
    /// Behind the text.
    Behind,
}

#[derive(Debug)]
pub struct TextReader {
    scanner: Scanner,
    tag: FrontendTag,
    at: At,
}

impl Default for TextReader {
    fn default() -> Self {
        Self {
            scanner: Scanner::default(),
            tag: FrontendTag::QUERY,
            at: At::Nowhere,
        }
    }
}

impl TextReader {
    /// A message begins. `backslashes`: `standard_conforming_strings` is off.
    pub fn begin(&mut self, tag: FrontendTag, backslashes: bool) {
        self.at = match tag {
            FrontendTag::QUERY => At::Text,
            FrontendTag::PARSE => At::Name,
            _ => return,
        };
        self.tag = tag;
        self.scanner.begin(backslashes);
    }

    /// The next bytes of its body.
    pub fn feed(&mut self, mut body: &[u8]) {
        while !body.is_empty() && matches!(self.at, At::Name | At::Text) {
            let end = body.iter().position(|&b| b == 0);
            let text = &body[..end.unwrap_or(body.len())];
            if self.at == At::Text {
                self.scanner.feed(text);
            }
            if end.is_some() {
                self.at = match self.at {
                    At::Name => At::Text,
                    _ => At::Behind,
                };
            }
            body = end.map_or(&[], |end| &body[end + 1..]);
        }
    }

    /// The message is at its end. None: it had no text.
    pub fn finish(&mut self) -> Option<Effects> {
        match std::mem::take(&mut self.at) {
            At::Nowhere => None,
            _ => Some(self.scanner.finish()),
        }
    }

    /// Of the message that is read.
    pub fn tag(&self) -> FrontendTag {
        self.tag
    }

    /// In the middle of a message with a text.
    pub fn is_reading(&self) -> bool {
        self.at != At::Nowhere
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::effects::What;

    #[test]
    fn a_text_is_read_in_pieces_of_any_size() {
        for (tag, body) in [
            (FrontendTag::QUERY, &b"SELECT 1; LISTEN a\0"[..]),
            (FrontendTag::PARSE, b"SET\0LISTEN a\0\0\0"),
        ] {
            for piece in [1, 3, 100] {
                let mut reader = TextReader::default();
                reader.begin(tag, false);
                body.chunks(piece).for_each(|piece| reader.feed(piece));
                assert_eq!(reader.finish().unwrap().what, What::LISTEN);
                assert_eq!(reader.finish(), None);
            }
        }
    }
}
