//! `SHOW CATALOG`.

use super::{Column, Row, View, int, row, text};

pub const COLUMNS: &[Column] = &[
    text("kind"),
    text("name"),
    text("state"),
    int("revision"),
    int("tenants"),
    int("age"),
    text("message"),
];

/// The catalog itself first: where what is in force comes from (`catalog`, `memory` or `copy`), how
/// many seconds ago it was current, and why it cannot be reached. Then every entry that is not in
/// force, and why.
pub fn rows(view: &View) -> Vec<Row> {
    let Some(catalog) = &view.config.catalog else {
        return Vec::new();
    };
    let known = view.app.catalog.view();
    let tenants = view.config.tenants.values();
    let listed = tenants.filter(|tenant| tenant.listed.is_some()).count();
    let age = known.age();
    let problem = known.error.or_else(|| {
        let error = known.copy_error?;
        Some(format!("the copy cannot be written: {error}"))
    });
    let own = row![
        "catalog",
        format!("{}/{}", catalog.server, catalog.database),
        known.source.word(),
        known.revision,
        listed,
        age.map(|age| age.as_secs()),
        problem,
    ];
    let refused = known.refused.into_iter().map(|((kind, name), refused)| {
        row![
            kind,
            name,
            "refused",
            refused.revision,
            None::<u64>,
            None::<u64>,
            refused.mistakes,
        ]
    });
    std::iter::once(own).chain(refused).collect()
}
