//! What a CommandComplete says of a statement, as `pg_stat_statements` counts calls and rows.

/// What the server has run, that is in no metrics yet.
#[derive(Debug, Default)]
pub struct Executed {
    pub statements: u64,
    pub rows: u64,
    /// DataRows that no end of a statement was said of yet.
    passing: u64,
}

impl Executed {
    pub fn row(&mut self) {
        self.passing += 1;
    }

    /// A statement has ended, with this tag.
    pub fn complete(&mut self, tag: &[u8]) {
        self.passing = 0;
        if let Some(rows) = rows(tag) {
            self.statements += 1;
            self.rows = self.rows.wrapping_add(rows);
        }
    }

    /// So much of a portal was read as was asked for: the tag at its end has only the rest.
    pub fn suspend(&mut self) {
        self.rows = self.rows.wrapping_add(std::mem::take(&mut self.passing));
    }

    pub fn fail(&mut self) {
        self.passing = 0;
    }
}

/// Rows of a statement that ended, of which this is the tag of its CommandComplete. None: it is
/// none of its own to `pg_stat_statements`, which counts an EXECUTE and not the PREPARE before it.
///
/// Rows are what it counts, too (`pgss_ProcessUtility` in pg_stat_statements.c): those that are
/// returned, written, copied or fetched, and not those that a MOVE passes.
fn rows(tag: &[u8]) -> Option<u64> {
    if tag == b"PREPARE" {
        return None;
    }
    // No other tag ends in a number.
    if !tag.last().is_some_and(u8::is_ascii_digit) || tag.starts_with(b"MOVE ") {
        return Some(0);
    }
    let digits = tag.iter().rposition(|byte| !byte.is_ascii_digit());
    let digits = &tag[digits.map_or(0, |at| at + 1)..];
    let rows = digits.iter().fold(0_u64, |rows, digit| {
        rows.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'))
    });
    Some(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_portal_that_is_read_in_parts_is_one_statement_with_all_its_rows() {
        let mut executed = Executed::default();
        for rows in [2, 2] {
            (0..rows).for_each(|_| executed.row());
            executed.suspend();
        }
        executed.row();
        executed.complete(b"SELECT 1");
        // What failed in the middle counts for nothing.
        executed.row();
        executed.fail();
        executed.complete(b"PREPARE");
        assert_eq!((executed.statements, executed.rows), (1, 5));
    }

    #[test]
    fn rows_are_the_number_at_the_end_of_the_tag() {
        for (tag, expected) in [
            ("SELECT 7", Some(7)),
            ("INSERT 0 120", Some(120)),
            ("UPDATE 0", Some(0)),
            ("DELETE 18446744073709551615", Some(u64::MAX)),
            ("MERGE 3", Some(3)),
            ("COPY 10", Some(10)),
            ("FETCH 2", Some(2)),
            ("MOVE 2", Some(0)),
            ("BEGIN", Some(0)),
            ("CREATE TABLE", Some(0)),
            ("CREATE TABLE AS", Some(0)),
            ("SET", Some(0)),
            ("", Some(0)),
            ("PREPARE", None),
            ("PREPARE TRANSACTION", Some(0)),
        ] {
            assert_eq!(rows(tag.as_bytes()), expected, "{tag}");
        }
    }
}
