//! What the documents say of PostgreSQL's catalogs is complete for the version at hand.

use std::collections::BTreeSet;
use std::path::Path;

use crate::harness::world;

/// A new version's view is one that nobody has looked at: what it shows of other tenants belongs
/// into the table.
#[tokio::test(flavor = "multi_thread")]
async fn the_documents_name_every_catalog_that_everybody_may_read() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/isolation.md");
    let text = std::fs::read_to_string(file).expect("docs/isolation.md");
    let from = text.find("## What stays in catalogs").expect("the section");
    let table = text[from..].split("\n\nFunctions show").next().expect("it");
    // Every other piece between backticks is in code.
    let rows = table.lines().filter(|line| line.starts_with("| `"));
    let named: BTreeSet<&str> = rows
        .filter_map(|row| row.split('|').nth(1))
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .collect();
    let client = world().await.shared.connect("postgres").await.unwrap();
    // 'r', 'v' and 'm': tables, views and materialized views.
    let readable = "SELECT c.relname::text FROM pg_class c WHERE c.relnamespace = 'pg_catalog'::regnamespace \
        AND c.relkind IN ('r', 'v', 'm') AND (has_table_privilege('public'::name, c.oid, 'SELECT') \
        OR has_any_column_privilege('public'::name, c.oid, 'SELECT'))";
    let rows = client.query(readable, &[]).await.unwrap();
    assert!(rows.len() > 100);
    let missing: Vec<String> = rows
        .iter()
        .map(|row| row.get(0))
        .filter(|name: &String| !named.contains(&**name))
        .collect();
    assert_eq!(missing, [""; 0]);
}
