//! Where attacks are played: two tenants beside each other as their placement keeps them apart,
//! each with rows of its own in a table that was made for it. Nothing that was there before is
//! touched.

use std::sync::Arc;

use tokio_postgres::Client;

use super::Words;
use super::made::{Made, Result, Thing, describe, literal, quoted};
use super::session::Way;
use crate::config::guests::random_word;
use crate::config::{Config, Route, SEALED_VARIABLE};

/// The table of both, or of each.
const TABLE: &str = "canaries";

/// What keeps the two apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Apart {
    /// Row level security on the tenant's context.
    Rows,
    Schemas,
    Databases,
}

/// Who sees to the rows of a tenant.
struct Keeper {
    client: Arc<Client>,
    table: String,
    rows: Vec<Row>,
}

type Row = (String, i32, String);

pub struct Stage {
    pub apart: Apart,
    pub words: Words,
    /// A's, B's.
    pub ways: [Way; 2],
    /// Where both take turns on one direct connection: the message that gives it to the one and to
    /// the other.
    pub turns: Option<[Vec<u8>; 2]>,
    pub secret: String,
    pub planted: String,
    pub number: String,
    keepers: [Keeper; 2],
}

/// What the stage is made of.
#[derive(Debug)]
pub struct Cast<'c> {
    pub routes: [&'c Route; 2],
    pub ways: [Way; 2],
    /// In letters and digits; part of the names of what is made.
    pub mark: String,
    /// With a function that sets the variable, as applications have them.
    pub setter: bool,
}

impl Stage {
    /// Makes the tenants' place. What was made is in `made`, also after an error.
    ///
    /// # Errors
    /// The server has no admin login, or that may not do what is needed.
    pub async fn make(made: &mut Made, cast: Cast<'_>) -> Result<Self> {
        let [a, b] = cast.routes;
        let apart = apart(a, b)?;
        let database = made.server.admin_database.clone();
        let client = Arc::new(made.connect(&database).await?);
        let own_roles = a.pool.login.user != b.pool.login.user;
        // In an order in which they can be undone.
        for route in cast.routes {
            if own_roles {
                own_role(made, &database, &client, route).await?;
            }
        }
        for route in cast.routes {
            if apart == Apart::Databases {
                own_database(made, &database, &client, route).await?;
            }
            if own_roles {
                let home = quoted(&route.pool.database);
                let role = quoted(&route.pool.login.user);
                let revoke = format!("REVOKE ALL ON DATABASE {home} FROM {role}");
                made.undone_by(&database, revoke);
                let grant = format!("GRANT CONNECT, TEMPORARY ON DATABASE {home} TO {role}");
                made.run(&client, &grant).await?;
            }
        }
        let letters = |what: &str| format!("{what}{}", random_word(12));
        let mut stage = Building {
            apart,
            cast,
            secret: letters("of_b_"),
            planted: letters("of_a_"),
            number: rand::random_range(100_000_000..214_748_364_u32).to_string(),
        };
        if apart != Apart::Databases {
            // The large object of an attack that was cut off in the middle.
            made.undone_by(&a.pool.database, unlink(&stage.number));
        }
        let keepers = match apart {
            Apart::Rows => stage.rows(made).await?,
            Apart::Schemas => stage.schemas(made).await?,
            Apart::Databases => stage.databases(made).await?,
        };
        let stage = stage.built(keepers);
        stage.mend().await?;
        for keeper in &stage.keepers {
            made.run(&keeper.client, &format!("ANALYZE {}", keeper.table))
                .await?;
        }
        Ok(stage)
    }

    /// The words of an application that may act for A alone: of its login, by what it chooses, and
    /// what it calls A and B.
    pub fn let_act(&mut self, config: &Config, names: &[String; 2]) {
        let Some((id, application)) = config.applications.first_key_value() else {
            return;
        };
        let variable = application.variables.first();
        let variable = variable.map(|name| &**name).unwrap_or_default();
        for (word, value) in [
            ("application", id.as_str()),
            ("acting", id.as_str()),
            ("choice", variable),
            ("a_id", &names[0]),
            ("b_id", &names[1]),
        ] {
            self.words.set(word, value);
        }
    }

    /// Whether B's rows are as they were. Whatever changed, of A's too, is put right again.
    ///
    /// # Errors
    /// The rows cannot be read.
    pub async fn inspect(&self) -> Result<bool> {
        let [a, b] = &self.keepers;
        let (a_is, b_is) = (a.is_untouched().await?, b.is_untouched().await?);
        if !a_is || !b_is {
            self.mend().await?;
        }
        Ok(b_is)
    }

    async fn mend(&self) -> Result<()> {
        for keeper in &self.keepers {
            let sql = format!("DELETE FROM {}", keeper.table);
            let done = keeper.client.execute(&sql, &[]).await;
            done.map_err(|error| describe(&sql, &error))?;
        }
        for keeper in &self.keepers {
            let sql = format!("INSERT INTO {} VALUES ($1, $2, $3)", keeper.table);
            for (tenant, id, secret) in &keeper.rows {
                keeper
                    .client
                    .execute(&sql, &[tenant, id, secret])
                    .await
                    .map_err(|error| describe(&sql, &error))?;
            }
        }
        Ok(())
    }
}

impl Keeper {
    async fn is_untouched(&self) -> Result<bool> {
        let sql = format!(
            "SELECT tenant, id, secret FROM {} WHERE tenant = $1 ORDER BY id",
            self.table
        );
        let tenant = &self.rows[0].0;
        let rows = self.client.query(&sql, &[tenant]).await;
        let rows = rows.map_err(|error| describe(&sql, &error))?;
        let found = rows.iter().map(|row| (row.get(0), row.get(1), row.get(2)));
        Ok(found.eq(self.rows.iter().cloned()))
    }
}

fn apart(a: &Route, b: &Route) -> Result<Apart> {
    match () {
        () if a.pool.server != b.pool.server => Err("both must be on one server".to_owned()),
        () if a.pool.database != b.pool.database => Ok(Apart::Databases),
        () if a.schema != b.schema => Ok(Apart::Schemas),
        () if !a.context.is_empty() => Ok(Apart::Rows),
        () => Err("nothing keeps its tenants apart".to_owned()),
    }
}

async fn own_database(
    made: &mut Made,
    database: &str,
    client: &Arc<Client>,
    route: &Route,
) -> Result<()> {
    let name = &route.pool.database;
    let quoted = quoted(name);
    let thing = Thing {
        name,
        exists: "SELECT FROM pg_database WHERE datname = $1",
        sql: format!("CREATE DATABASE {quoted}"),
        undo: format!("DROP DATABASE IF EXISTS {quoted} WITH (FORCE)"),
    };
    made.make((database, client), thing).await?;
    let revoke = format!("REVOKE ALL ON DATABASE {quoted} FROM PUBLIC");
    made.run(client, &revoke).await
}

async fn own_role(
    made: &mut Made,
    database: &str,
    client: &Arc<Client>,
    route: &Route,
) -> Result<()> {
    let login = &route.pool.login;
    let role = quoted(&login.user);
    let password = login.password.as_ref().map_or_else(String::new, |secret| {
        format!("PASSWORD {}", literal(secret.expose()))
    });
    let thing = Thing {
        name: &login.user,
        exists: "SELECT FROM pg_roles WHERE rolname = $1",
        sql: format!("CREATE ROLE {role} LOGIN {password}"),
        undo: format!("DROP ROLE IF EXISTS {role}"),
    };
    made.make((database, client), thing).await
}

struct Building<'c> {
    apart: Apart,
    cast: Cast<'c>,
    secret: String,
    planted: String,
    number: String,
}

impl Building<'_> {
    /// One table under row level security in a schema of its own.
    async fn rows(&mut self, made: &mut Made) -> Result<[Keeper; 2]> {
        let [a, b] = self.cast.routes;
        let database = &a.pool.database;
        let client = Arc::new(made.connect(database).await?);
        let schema = self.schema();
        new_schema(made, (database, &client), &schema).await?;
        let whose = match a.seal {
            Some(_) => "pgtenant.tenant_id()".to_owned(),
            None => format!("current_setting({}, true)", literal(&variable(a, b).0)),
        };
        let table = format!("{schema}.{TABLE}");
        let roles: Vec<_> = self
            .cast
            .routes
            .map(|route| quoted(&route.pool.login.user))
            .into();
        let roles = match a.pool.login.user == b.pool.login.user {
            true => roles[0].clone(),
            false => roles.join(", "),
        };
        let sql = format!(
            "{create}
             ALTER TABLE {table} ALTER tenant SET DEFAULT {whose};
             ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;
             CREATE POLICY tenant ON {table} USING (tenant = (SELECT {whose})) WITH CHECK (tenant = (SELECT {whose}));
             CREATE SEQUENCE {schema}.numbers MINVALUE {number}0 START {number}0 MAXVALUE {number}9 CYCLE;
             GRANT USAGE ON SCHEMA {schema} TO {roles};
             GRANT USAGE ON SEQUENCE {schema}.numbers TO {roles};
             {grant} TO {roles}",
            create = create(&table),
            number = self.number,
            grant = grant(&table),
        );
        made.run(&client, &sql).await?;
        if self.cast.setter {
            let sql = format!(
                "CREATE FUNCTION {schema}.act_as(text) RETURNS text LANGUAGE sql AS $$ SELECT set_config({}, $1, false) $$",
                literal(&variable(a, b).0)
            );
            made.run(&client, &sql).await?;
        }
        Ok([0, 1].map(|who| self.keeper(who, &client, table.clone())))
    }

    /// A schema with a table for each.
    async fn schemas(&mut self, made: &mut Made) -> Result<[Keeper; 2]> {
        let [a, _] = self.cast.routes;
        let database = &a.pool.database;
        let client = Arc::new(made.connect(database).await?);
        let mut tables = Vec::new();
        for route in self.cast.routes {
            let schema = quoted(route.schema.as_deref().unwrap_or_default());
            new_schema(made, (database, &client), &schema).await?;
            let role = quoted(&route.pool.login.user);
            let table = format!("{schema}.{TABLE}");
            let sql = format!(
                "{}; GRANT USAGE ON SCHEMA {schema} TO {role}; {} TO {role}",
                create(&table),
                grant(&table)
            );
            made.run(&client, &sql).await?;
            tables.push(table);
        }
        Ok([0, 1].map(|who| self.keeper(who, &client, tables[who].clone())))
    }

    async fn databases(&mut self, made: &mut Made) -> Result<[Keeper; 2]> {
        let mut clients = Vec::new();
        for route in self.cast.routes {
            let client = Arc::new(made.connect(&route.pool.database).await?);
            let role = quoted(&route.pool.login.user);
            let table = format!("public.{TABLE}");
            let sql = format!(
                "{}; GRANT USAGE ON SCHEMA public TO {role}; {} TO {role}",
                create(&table),
                grant(&table)
            );
            made.run(&client, &sql).await?;
            clients.push(client);
        }
        Ok([0, 1].map(|who| self.keeper(who, &clients[who], format!("public.{TABLE}"))))
    }

    fn schema(&self) -> String {
        format!("pgtenant_selftest_{}", self.cast.mark)
    }

    fn keeper(&self, who: usize, client: &Arc<Client>, table: String) -> Keeper {
        let secret = [&self.planted, &self.secret][who];
        let tenant = self.tenants()[who].clone();
        let rows = (1..=2).map(|id| (tenant.clone(), id, format!("{secret} {id}")));
        Keeper {
            client: client.clone(),
            table,
            rows: rows.collect(),
        }
    }

    /// Whose rows are whose.
    fn tenants(&self) -> [String; 2] {
        let [a, b] = self.cast.routes;
        match (&a.seal, &b.seal) {
            (Some(a), Some(b)) => [a.tenant.clone(), b.tenant.clone()],
            _ if a.context.is_empty() => ["a".to_owned(), "b".to_owned()],
            _ => [variable(a, b).1, variable(b, a).1],
        }
    }

    fn built(self, keepers: [Keeper; 2]) -> Stage {
        let words = self.words(&keepers);
        Stage {
            apart: self.apart,
            words,
            ways: self.cast.ways,
            turns: None,
            secret: self.secret,
            planted: self.planted,
            number: self.number,
            keepers,
        }
    }

    fn words(&self, keepers: &[Keeper; 2]) -> Words {
        let mut words = Words::default();
        let [a, b] = self.cast.routes;
        let [a_way, b_way] = &self.cast.ways;
        let b_table = match self.apart {
            Apart::Databases => format!("{}.{}", quoted(&b.pool.database), keepers[1].table),
            _ => keepers[1].table.clone(),
        };
        words.set("loot", format!("SELECT secret FROM {b_table}"));
        words.set("b_table", b_table);
        words.set("name", TABLE);
        let table = match self.apart {
            Apart::Rows => &keepers[0].table,
            _ => TABLE,
        };
        words.set("table", table);
        words.set("database", quoted(&a.pool.database));
        words.set("secret", &*self.secret);
        words.set("planted", &*self.planted);
        words.set("number", &*self.number);
        words.set("sjis", [0x95, 0x5c]);
        let [a_tenant, b_tenant] = self.tenants();
        words.set("a_tenant", a_tenant);
        words.set("b_tenant", b_tenant);
        if self.apart == Apart::Rows {
            words.set("sequence", format!("{}.numbers", self.schema()));
        }
        if !a.context.is_empty() {
            spell(&mut words, &variable(a, b), &variable(b, a));
        }
        if self.cast.setter && self.apart == Apart::Rows {
            words.set("setter", format!("{}.act_as", self.schema()));
        }
        if a.seal.is_some() {
            words.set("context", SEALED_VARIABLE);
        }
        let mut others = |word, a: &str, b: &str, shown: String| {
            if a != b {
                words.set(word, shown);
            }
        };
        let (a_role, b_role) = (&a.pool.login.user, &b.pool.login.user);
        others("b_role", a_role, b_role, quoted(b_role));
        let schemas = [a, b].map(|route| route.schema.as_deref().unwrap_or_default());
        others("b_schema", schemas[0], schemas[1], quoted(schemas[1]));
        let (a_user, b_user) = (&a_way.key.login.user, &b_way.key.login.user);
        others("b_user", a_user, b_user, b_user.clone());
        let (a_home, b_home) = (&a_way.key.database, &b_way.key.database);
        others("b_database", a_home, b_home, b_home.clone());
        words
    }
}

/// The variable in which two tenants differ, and its value for the first.
fn variable(of: &Route, other: &Route) -> (String, String) {
    let differs = of
        .context
        .iter()
        .find(|(name, value)| other.pinned(name) != Some(value));
    differs.or(of.context.first()).cloned().unwrap_or_default()
}

/// The words that spell a variable and its values.
fn spell(words: &mut Words, a: &(String, String), b: &(String, String)) {
    let name = &a.0;
    let (head, tail) = name.split_at(name.len() / 2);
    let escaped = |escape: fn(u8) -> String| name.bytes().map(escape).collect::<String>();
    words.set("variable", &**name);
    words.set("head", head);
    words.set("tail", tail);
    words.set("upper", name.to_uppercase());
    words.set("hex", escaped(|byte| format!("\\x{byte:02x}")));
    words.set("unicode", escaped(|byte| format!("\\{byte:04x}")));
    words.set("unicode!", escaped(|byte| format!("!{byte:04x}")));
    words.set("a", &*a.1);
    words.set("b", &*b.1);
}

fn create(table: &str) -> String {
    format!(
        "CREATE TABLE {table} (tenant text NOT NULL, id int, secret text, touched int DEFAULT 0, PRIMARY KEY (tenant, id));"
    )
}

fn grant(table: &str) -> String {
    format!("GRANT SELECT, INSERT, UPDATE, DELETE ON {table}")
}

fn unlink(number: &str) -> String {
    format!(
        "DO $$ BEGIN PERFORM lo_unlink(oid) FROM pg_largeobject_metadata WHERE oid = {number};
         EXCEPTION WHEN insufficient_privilege THEN NULL; END $$"
    )
}

async fn new_schema(made: &mut Made, place: (&str, &Arc<Client>), schema: &str) -> Result<()> {
    let thing = Thing {
        name: schema.trim_matches('"'),
        exists: "SELECT FROM pg_namespace WHERE nspname = $1",
        sql: format!("CREATE SCHEMA {schema}"),
        undo: format!("DROP SCHEMA IF EXISTS {schema} CASCADE"),
    };
    made.make(place, thing).await
}
