//! What a tenant finds, and what it gets when it reaches for another tenant's data. Every claim of
//! the demo is made here, from the answers of the servers alone.

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use super::sample::{Apart, Order, Tenant};
use crate::cluster::{Error, Result, describe};

const PLACE: &str = "SELECT current_setting('cluster_name'), current_database(), current_schema(), pg_backend_pid()";
const ORDERS: &str = "SELECT id, tenant_id, item, amount::text FROM orders ORDER BY id";

/// Where a tenant's statements ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub server: String,
    pub database: String,
    pub schema: String,
    pub pid: String,
}

/// A session; it ends with the client.
pub async fn connect(config: &Config) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    // Its errors reach the client's calls.
    tokio::spawn(connection);
    Ok(client)
}

pub async fn place(client: &Client) -> Result<Place> {
    let row = simple(client, PLACE).await.map_err(failed)?.pop();
    match row.map(<[String; 4]>::try_from) {
        Some(Ok([server, database, schema, pid])) => Ok(Place {
            server,
            database,
            schema,
            pid,
        }),
        _ => Err(Error::new(format!(
            "one row of four columns expected of {PLACE}"
        ))),
    }
}

/// The rows that the tenant sees, asked for in the extended and in the simple protocol.
pub async fn orders(client: &Client) -> Result<Vec<Order>> {
    let rows = client.query(ORDERS, &[]).await.map_err(failed)?;
    let extended: Vec<Order> = rows
        .iter()
        .map(|row| Order {
            id: row.get(0),
            tenant: row.get(1),
            item: row.get(2),
            amount: row.get(3),
        })
        .collect();
    let simple = simple(client, ORDERS).await.map_err(failed)?;
    let extended_as_text: Vec<Vec<String>> = extended
        .iter()
        .map(|order| {
            vec![
                order.id.to_string(),
                order.tenant.clone(),
                order.item.clone(),
                order.amount.clone(),
            ]
        })
        .collect();
    if simple != extended_as_text {
        return Err(Error::new(format!(
            "the simple query saw {simple:?}, the extended one {extended_as_text:?}"
        )));
    }
    Ok(extended)
}

/// One attempt to reach another tenant's data: what came of it, and whether that is as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    pub outcome: String,
    pub repelled: bool,
}

impl Attempt {
    fn of<T>(answer: &Result<T, tokio_postgres::Error>, expected: &SqlState) -> Self {
        match answer {
            Ok(_) => Self {
                outcome: "SUCCEEDED".to_owned(),
                repelled: false,
            },
            Err(error) => match error.code() {
                Some(code) => Self {
                    outcome: format!("refused, {}", code.code()),
                    repelled: code == expected,
                },
                None => Self {
                    outcome: describe(error),
                    repelled: false,
                },
            },
        }
    }
}

/// Reads the other tenant's rows.
pub async fn read_other(client: &Client, tenant: &Tenant, other: &Tenant) -> Attempt {
    let sql = match tenant.place.apart {
        Apart::Rows => format!("SELECT * FROM orders WHERE tenant_id = '{}'", other.name),
        _ => format!("SELECT * FROM {}", table(tenant, other)),
    };
    match (simple(client, &sql).await, tenant.place.apart) {
        // Row level security hides, it does not refuse.
        (Ok(rows), Apart::Rows) => Attempt {
            outcome: format!("{} rows", rows.len()),
            repelled: rows.is_empty(),
        },
        (answer, _) => Attempt::of(&answer, &refusal(tenant)),
    }
}

/// Writes a row for the other tenant, then gives it its own rows or deletes what the other has.
pub async fn write_other(client: &Client, tenant: &Tenant, other: &Tenant) -> Attempt {
    let table = table(tenant, other);
    let name = other.name;
    let insert = format!(
        "INSERT INTO {table} (id, tenant_id, item, amount) VALUES (9999, '{name}', 'forged', 0)"
    );
    let change = match tenant.place.apart {
        Apart::Rows => format!("UPDATE {table} SET tenant_id = '{name}'"),
        _ => format!("DELETE FROM {table}"),
    };
    let inserted = Attempt::of(&client.batch_execute(&insert).await, &refusal(tenant));
    if !inserted.repelled {
        return inserted;
    }
    Attempt::of(&client.batch_execute(&change).await, &refusal(tenant))
}

/// How the tenant would have to name the other's table.
fn table(tenant: &Tenant, other: &Tenant) -> String {
    match tenant.place.apart {
        Apart::Rows => "orders".to_owned(),
        Apart::Schema => format!("{}.orders", other.schema()),
        Apart::Views => format!("data.orders_{}", other.name),
        Apart::Database => format!("{}.{}.orders", other.database(), other.schema()),
    }
}

fn refusal(tenant: &Tenant) -> SqlState {
    match tenant.place.apart {
        // No statement reaches another database.
        Apart::Database => SqlState::FEATURE_NOT_SUPPORTED,
        _ => SqlState::INSUFFICIENT_PRIVILEGE,
    }
}

/// Logs in as the other tenant; `config` has that tenant's user and database, and this one's
/// password.
pub async fn log_in_as_other(config: &Config) -> Attempt {
    Attempt::of(&connect(config).await, &SqlState::INVALID_PASSWORD)
}

async fn simple(client: &Client, sql: &str) -> Result<Vec<Vec<String>>, tokio_postgres::Error> {
    let messages = client.simple_query(sql).await?;
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(
            (0..row.len())
                .map(|column| row.get(column).unwrap_or_default().to_owned())
                .collect(),
        ),
        _ => None,
    });
    Ok(rows.collect())
}

#[allow(clippy::needless_pass_by_value)] // for map_err
fn failed(error: tokio_postgres::Error) -> Error {
    Error::new(describe(&error))
}
