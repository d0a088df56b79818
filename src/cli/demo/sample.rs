//! The sample: which tenants there are, the SQL that makes their places, and the proxy's config.

use std::fmt::Write as _;

use futures_util::future::try_join_all;

use crate::cluster::{Binaries, Cluster, Error, Options, Result};
use crate::control::catalog;

const DATABASE: &str = include_str!("sql/database.sql");
const POOL: &str = include_str!("sql/pool.sql");
const SCHEMA: &str = include_str!("sql/schema.sql");
const SCHEMA_VIEWS: &str = include_str!("sql/schema_views.sql");
const OWN_DATABASE: &str = include_str!("sql/own_database.sql");
/// What is made in the schema of a tenant that is new.
pub const NEW_TENANT: &str = include_str!("sql/new_tenant.sql");
const CONFIG: &str = include_str!("pgtenant.yaml");

/// The database of the catalog, and the instance that has it.
const CATALOG: &str = "catalog";
const CATALOG_SERVER: &str = "eu-2";

/// How a placement keeps its tenants apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Apart {
    /// The same tables, policies on `app.tenant_id`.
    Rows,
    /// A schema with tables for each.
    Schema,
    /// A schema with views over a table for each.
    Views,
    /// A database for each, or an instance.
    Database,
}

/// A placement of `pgtenant.yaml`.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    pub name: &'static str,
    pub tier: &'static str,
    pub servers: &'static [&'static str],
    /// `{tenant}` is filled in.
    database: &'static str,
    login: &'static str,
    pub apart: Apart,
}

const FREE: Place = Place {
    name: "free",
    tier: "pool",
    servers: &["eu-1"],
    database: "free",
    login: "app_free",
    apart: Apart::Rows,
};
const TURNS: Place = Place {
    name: "turns",
    tier: "pool, size 1",
    database: "turns",
    login: "app_turns",
    ..FREE
};
const SPREAD: Place = Place {
    name: "spread",
    tier: "pool, sharded",
    servers: &["eu-1", "eu-2"],
    database: "spread",
    login: "app_spread",
    apart: Apart::Rows,
};
const PRO: Place = Place {
    name: "pro",
    tier: "schema",
    servers: &["eu-1"],
    database: "pro",
    login: "t_{tenant}",
    apart: Apart::Schema,
};
const VIEWS: Place = Place {
    name: "views",
    tier: "schema, own tables",
    servers: &["eu-2"],
    database: "views",
    login: "t_{tenant}",
    apart: Apart::Views,
};
const BUSINESS: Place = Place {
    name: "business",
    tier: "database",
    servers: &["eu-1"],
    database: "db_{tenant}",
    login: "db_{tenant}",
    apart: Apart::Database,
};
const ACME: Place = Place {
    name: "acme",
    tier: "instance",
    servers: &["acme-box"],
    database: "acme_app",
    login: "acme_app",
    apart: Apart::Database,
};
const CLINIC: Place = Place {
    name: "clinic",
    tier: "instance, compliance",
    servers: &["vault"],
    database: "clinic",
    login: "app_clinic",
    apart: Apart::Rows,
};

/// Where a login of the demo says which tenant it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NamedBy {
    /// `user=app.globex`; the database is the placement's.
    User,
    /// `dbname=globex`.
    Database,
}

/// A tenant of the sample.
#[derive(Debug)]
pub struct Tenant {
    pub name: &'static str,
    pub place: &'static Place,
    named_by: NamedBy,
    /// The instance where its rows are; absent when the proxy chooses by hash.
    pub server: Option<&'static str>,
    /// A tenant whose data it must not reach, in the same place if there is one.
    pub other: &'static str,
    items: &'static [&'static str],
}

/// The tenants that take turns on one server connection.
pub const TAKING_TURNS: [&str; 2] = ["hooli", "aviato"];

#[rustfmt::skip]
pub const TENANTS: &[Tenant] = &[
    Tenant { name: "globex", place: &FREE, named_by: NamedBy::User, server: Some("eu-1"), other: "initech", items: &["globex orchid", "globex hammock"] },
    Tenant { name: "initech", place: &FREE, named_by: NamedBy::Database, server: Some("eu-1"), other: "globex", items: &["initech stapler", "initech printer", "initech mug"] },
    Tenant { name: "hooli", place: &TURNS, named_by: NamedBy::User, server: Some("eu-1"), other: "aviato", items: &["hooli phone", "hooli box"] },
    Tenant { name: "aviato", place: &TURNS, named_by: NamedBy::Database, server: Some("eu-1"), other: "hooli", items: &["aviato ticket"] },
    Tenant { name: "umbrella", place: &SPREAD, named_by: NamedBy::User, server: Some("eu-2"), other: "tyrell", items: &["umbrella vaccine", "umbrella lamp"] },
    Tenant { name: "tyrell", place: &SPREAD, named_by: NamedBy::Database, server: None, other: "weyland", items: &["tyrell owl", "tyrell snake"] },
    Tenant { name: "weyland", place: &SPREAD, named_by: NamedBy::User, server: None, other: "tyrell", items: &["weyland loader"] },
    Tenant { name: "stark", place: &PRO, named_by: NamedBy::User, server: Some("eu-1"), other: "wayne", items: &["stark reactor", "stark helmet"] },
    Tenant { name: "wayne", place: &PRO, named_by: NamedBy::Database, server: Some("eu-1"), other: "stark", items: &["wayne cape", "wayne rope"] },
    Tenant { name: "oscorp", place: &VIEWS, named_by: NamedBy::User, server: Some("eu-2"), other: "wonka", items: &["oscorp glider"] },
    Tenant { name: "wonka", place: &VIEWS, named_by: NamedBy::Database, server: Some("eu-2"), other: "oscorp", items: &["wonka bar", "wonka gum"] },
    Tenant { name: "soylent", place: &BUSINESS, named_by: NamedBy::User, server: Some("eu-1"), other: "dunder", items: &["soylent red", "soylent yellow"] },
    Tenant { name: "dunder", place: &BUSINESS, named_by: NamedBy::Database, server: Some("eu-1"), other: "soylent", items: &["dunder paper"] },
    Tenant { name: "acme", place: &ACME, named_by: NamedBy::Database, server: Some("acme-box"), other: "globex", items: &["acme anvil", "acme rocket"] },
    Tenant { name: "mercy", place: &CLINIC, named_by: NamedBy::User, server: Some("vault"), other: "stmary", items: &["mercy bandage", "mercy splint"] },
    Tenant { name: "stmary", place: &CLINIC, named_by: NamedBy::Database, server: Some("vault"), other: "mercy", items: &["stmary crutch"] },
];

/// A row of `orders`, as text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Order {
    pub id: i32,
    pub tenant: String,
    pub item: String,
    pub amount: String,
}

impl Tenant {
    pub fn named(name: &str) -> Option<&'static Self> {
        TENANTS.iter().find(|tenant| tenant.name == name)
    }

    pub fn password(&self) -> String {
        format!("{}-secret", self.name)
    }

    pub fn database(&self) -> String {
        self.place.database.replace("{tenant}", self.name)
    }

    /// The role that the proxy logs in as.
    pub fn server_login(&self) -> String {
        self.place.login.replace("{tenant}", self.name)
    }

    pub fn schema(&self) -> String {
        match self.place.apart {
            Apart::Schema | Apart::Views => format!("t_{}", self.name),
            Apart::Rows | Apart::Database => "public".to_owned(),
        }
    }

    /// User and database of a login at the proxy.
    pub fn login(&self) -> (String, String) {
        match self.named_by {
            NamedBy::User => (format!("app.{}", self.name), self.database()),
            NamedBy::Database => ("app".to_owned(), self.name.to_owned()),
        }
    }

    /// Exactly the rows that it has and may see.
    pub fn orders(&self) -> Vec<Order> {
        let index = TENANTS
            .iter()
            .position(|tenant| tenant.name == self.name)
            .unwrap_or_default();
        (1..)
            .zip(self.items)
            .map(|(number, item)| {
                let id = i32::try_from(index + 1).unwrap_or_default() * 100 + number;
                Order {
                    id,
                    tenant: self.name.to_owned(),
                    item: (*item).to_owned(),
                    amount: format!("{id}.50"),
                }
            })
            .collect()
    }

    /// Writes its rows into the table `orders` of `schema`, absent: where the search path leads.
    pub fn insert(&self, schema: Option<&str>) -> String {
        let table = schema.map_or_else(|| "orders".to_owned(), |schema| format!("{schema}.orders"));
        let rows: Vec<_> = self
            .orders()
            .iter()
            .map(|order| {
                format!(
                    "({}, '{}', '{}', {})",
                    order.id, order.tenant, order.item, order.amount
                )
            })
            .collect();
        format!(
            "INSERT INTO {table} (id, tenant_id, item, amount) VALUES {}",
            rows.join(", ")
        )
    }
}

/// The PostgreSQL instances of the sample.
pub struct Servers(Vec<Cluster>);

impl Servers {
    /// Starts all of them, side by side.
    pub async fn start(binaries: &Binaries) -> Result<Self> {
        let names = ["eu-1", "eu-2", "acme-box", "vault"];
        let starting = names.map(|name| {
            let settings = vec![("shared_buffers".to_owned(), "16MB".to_owned())];
            Cluster::start(
                binaries,
                Options {
                    settings,
                    ..Options::named(name)
                },
            )
        });
        Ok(Self(try_join_all(starting).await?))
    }

    pub fn all(&self) -> &[Cluster] {
        &self.0
    }

    pub fn named(&self, name: &str) -> Result<&Cluster> {
        let found = self.0.iter().find(|cluster| cluster.name() == name);
        found.ok_or_else(|| Error::new(format!("the demo has no instance {name}")))
    }

    /// Makes every tenant's place, and writes the rows of those whose instance is known. `secret`
    /// is the password of all roles that the proxy logs in as.
    pub async fn fill(&self, secret: &str) -> Result<()> {
        try_join_all(self.0.iter().map(|cluster| fill(cluster, secret))).await?;
        self.make_catalog(secret).await
    }

    /// A catalog of tenants, without any, and who reads and changes it.
    async fn make_catalog(&self, secret: &str) -> Result<()> {
        let server = self.named(CATALOG_SERVER)?;
        for statement in DATABASE
            .replace("{database}", CATALOG)
            .split_inclusive(";\n")
        {
            server.run("postgres", statement).await?;
        }
        server.run(CATALOG, catalog::SQL).await?;
        for role in ["reader", "writer"] {
            let sql = format!(
                "CREATE ROLE catalog_{role} LOGIN PASSWORD '{secret}'; \
                 GRANT pgtenant_catalog_{role} TO catalog_{role}; \
                 GRANT CONNECT ON DATABASE {CATALOG} TO catalog_{role}"
            );
            server.run(CATALOG, &sql).await?;
        }
        Ok(())
    }

    pub async fn stop(self) -> Result<()> {
        try_join_all(self.0.into_iter().map(Cluster::stop))
            .await
            .map(drop)
    }
}

async fn fill(cluster: &Cluster, secret: &str) -> Result<()> {
    let mut databases: Vec<String> = Vec::new();
    for tenant in TENANTS
        .iter()
        .filter(|tenant| tenant.place.servers.contains(&cluster.name()))
    {
        let database = tenant.database();
        let filled = |sql: &str| {
            sql.replace("{database}", &database)
                .replace("{login}", &tenant.server_login())
                .replace("{tenant}", tenant.name)
                .replace("{password}", secret)
        };
        let new = !databases.contains(&database);
        if new {
            for statement in filled(DATABASE).split_inclusive(";\n") {
                cluster.run("postgres", statement).await?;
            }
            databases.push(database.clone());
        }
        match tenant.place.apart {
            Apart::Rows if new => cluster.run(&database, &filled(POOL)).await?,
            Apart::Rows => {}
            Apart::Schema => cluster.run(&database, &filled(SCHEMA)).await?,
            Apart::Views => cluster.run(&database, &filled(SCHEMA_VIEWS)).await?,
            Apart::Database => cluster.run(&database, &filled(OWN_DATABASE)).await?,
        }
        if tenant.server == Some(cluster.name()) {
            cluster
                .run(&database, &tenant.insert(Some(&tenant.schema())))
                .await?;
        }
    }
    Ok(())
}

/// The proxy's config for these servers.
pub fn config(servers: &Servers, port: u16, http_port: u16, secret: &str) -> String {
    let mut config = CONFIG.replace("@SECRET@", secret);
    config = config
        .replace("@PORT@", &port.to_string())
        .replace("@HTTP_PORT@", &http_port.to_string());
    for cluster in servers.all() {
        let name = cluster.name().to_uppercase().replace('-', "_");
        config = config
            .replace(&format!("@{name}_PORT@"), &cluster.port().to_string())
            .replace(&format!("@{name}_ADMIN@"), cluster.superuser_password());
    }
    config.push_str("\ntenants:\n");
    for tenant in TENANTS {
        // Writing to a String cannot fail.
        let _ = writeln!(
            config,
            "  {}: {{ placement: {}, users: {{ app: {{ password: {} }} }} }}",
            tenant.name,
            tenant.place.name,
            tenant.password()
        );
    }
    config
}
