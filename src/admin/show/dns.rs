//! `SHOW DNS_HOSTS`.

use std::collections::BTreeMap;

use super::{Column, Row, View, int, row, text};

pub const COLUMNS: &[Column] = &[text("hostname"), int("ttl"), text("addrs")];

/// A row for each name of a server that was resolved: `ttl` is the whole seconds until it is
/// resolved again.
pub fn rows(view: &View) -> Vec<Row> {
    let life = view.config.timeouts.dns_max_ttl;
    let mut names = BTreeMap::new();
    for instance in view.app.instances().values() {
        if let Some(known) = &**instance.names.known() {
            let ttl = life.saturating_sub(known.asked.elapsed()).as_secs();
            let addresses = known.addresses.iter().map(ToString::to_string);
            let addresses = addresses.collect::<Vec<_>>().join(",");
            names.insert(known.name.clone(), (ttl, addresses));
        }
    }
    names
        .into_iter()
        .map(|(name, (ttl, addresses))| row![name, ttl, addresses])
        .collect()
}
