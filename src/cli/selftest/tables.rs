//! The operator's own tables, as a tenant that has no rows in them sees them.

use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use crate::attacks::session::Way;
use crate::config::ServerAddress;
use crate::control::door;

/// What a tenant without rows found.
#[derive(Debug, Default)]
pub struct Found {
    /// Tables under row level security that show it rows.
    pub leaking: Vec<String>,
    pub notices: Vec<String>,
}

/// Nothing waits behind this, and nothing of it runs for long.
const BOUNDS: &str = "SET statement_timeout = '2s'; SET lock_timeout = '500ms'";

/// Tables that the tenant's role can read, and whether row level security is enabled.
const READABLE: &str = "SELECT c.oid::pg_catalog.regclass, c.relrowsecurity
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'm', 'f') AND n.nspname !~ '^(pg_|information_schema$|pgtenant_selftest_)'
        AND NOT c.relispartition AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')
        AND pg_catalog.has_any_column_privilege(c.oid, 'SELECT')
        AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')
    ORDER BY 1";

/// Looks into every table as the tenant that comes in by `way`.
///
/// # Errors
/// It cannot log in, or not read the catalog.
pub async fn look(way: &Way) -> Result<Found, String> {
    let client = connect(way).await?;
    let mut found = Found::default();
    let mut open = Vec::new();
    for row in rows(&client, READABLE).await? {
        let [table, is_secured] = &row[..] else {
            continue;
        };
        // The own table of a tenant in tier schema.
        if table == "canaries" {
            continue;
        }
        match is_secured == "t" {
            true => look_into(&client, table, &mut found).await,
            false => open.push(table.clone()),
        }
    }
    if !open.is_empty() {
        let notice = format!(
            "every tenant can read, without row level security: {}",
            open.join(", ")
        );
        found.notices.push(notice);
    }
    Ok(found)
}

async fn look_into(client: &Client, table: &str, found: &mut Found) {
    let sql = format!("SELECT 1 FROM {table} LIMIT 1");
    match rows(client, &sql).await {
        Ok(rows) if rows.is_empty() => {}
        Ok(_) => found.leaking.push(table.to_owned()),
        Err(why) => found.notices.push(format!(
            "{table} could not be read as a tenant without rows: {why}"
        )),
    }
}

async fn connect(way: &Way) -> Result<Client, String> {
    let mut config = door::config(&way.key.login, &way.key.database, "pgtenant selftest");
    if let ServerAddress::Tcp { host, port } = &way.server.address {
        config.host(host).port(*port);
    }
    let (client, connection) = config
        .connect(NoTls)
        .await
        .map_err(|error| door::words(&error))?;
    // Its errors reach the client's calls.
    tokio::spawn(connection);
    client
        .batch_execute(BOUNDS)
        .await
        .map_err(|error| door::words(&error))?;
    Ok(client)
}

async fn rows(client: &Client, sql: &str) -> Result<Vec<Vec<String>>, String> {
    let messages = client
        .simple_query(sql)
        .await
        .map_err(|error| door::words(&error))?;
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => {
            let columns =
                (0..row.len()).map(|column| row.get(column).unwrap_or_default().to_owned());
            Some(columns.collect())
        }
        _ => None,
    });
    Ok(rows.collect())
}
