//! Settings in which nothing is done against an attack: what poolers, servers and databases are
//! that were not thought through.

use pgtenant::attacks::made::Made;
use pgtenant::attacks::session::{self, Way};
use pgtenant::attacks::stage::Stage;
use pgtenant::attacks::{Attack, Connections};
use pgtenant::config::{Config, Login, Route, Secret};

use super::World;
use crate::harness::SECRET;

/// `pg_catalog.set_config`.
const SET_CONFIG: u32 = 2078;

/// Settings in which nothing is done against an attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weak {
    /// A pooler that opened its one connection for B, and gives it to A by SET, without a scrub.
    OpenedForB,
    /// The same, with the SET in a transaction that A can end.
    InTransaction,
    /// The same with a connection that was opened for nobody, by the owner of the database.
    OpenedForNobody,
    /// The same as the first, by a role that may set the variable for functions.
    MaySet,
    /// The same, with a policy whose function says that it is IMMUTABLE.
    Folded,
    /// A view instead of row level security.
    View,
    /// A policy that believes what the variable of the seal says.
    Trusting,
    /// A login that is above row level security.
    AboveRows,
    /// A login that owns the table and the database.
    Owner,
    /// One login for all schemas, and their search_path.
    SearchPath,
    /// One login for all schemas, and SET ROLE.
    SharedLogin,
    /// The same by SET SESSION AUTHORIZATION.
    SharedSuperuser,
    /// Straight to a server as it comes, where both use one role.
    Stock,
    /// The same, where both have roles, with the same password.
    SamePassword,
    /// Databases that everybody may connect to.
    OpenDatabases,
    /// The proxy, where nothing says how many connections a tenant may have.
    NoLimits,
}

/// The settings for an attack: each variant succeeds in one of them.
pub fn weak(attack: &Attack) -> &'static [Weak] {
    match attack.name {
        "read" | "write" | "statistics" => &[Weak::AboveRows],
        "leaky function" => &[Weak::View],
        "backslashes" | "encoding" => &[Weak::OpenedForB, Weak::Stock],
        "truncate" | "alter table" => &[Weak::Owner],
        "rollback" => &[Weak::InTransaction],
        "role" => &[Weak::SharedLogin, Weak::SharedSuperuser],
        "search_path" => &[Weak::SearchPath],
        "function with SET" => &[Weak::MaySet],
        "alter role" | "alter database" => &[Weak::OpenedForNobody],
        "spoil the role" | "startup parameters" => &[Weak::Stock, Weak::Trusting],
        "application" | "application's second choice" => &[Weak::Stock],
        "login as B" => &[Weak::SamePassword, Weak::OpenDatabases],
        "forged seal" => &[Weak::Trusting],
        "plans left" => &[Weak::Folded],
        "hold the pool" => &[Weak::NoLimits],
        _ if attack.connections == Connections::Several => &[Weak::Stock],
        _ => &[Weak::OpenedForB],
    }
}

impl Weak {
    pub fn placement(self) -> &'static str {
        match self {
            Self::Trusting => "trusting",
            Self::SearchPath | Self::SharedLogin | Self::SharedSuperuser | Self::SamePassword => {
                "schema"
            }
            Self::OpenDatabases => "database",
            _ => "plain",
        }
    }

    /// SQL before the tables are made.
    fn before(self) -> Option<&'static str> {
        match self {
            Self::Trusting => Some(
                "CREATE SCHEMA IF NOT EXISTS pgtenant; CREATE OR REPLACE FUNCTION pgtenant.tenant_id() RETURNS text LANGUAGE sql STABLE AS \
                 $$ SELECT current_setting('pgtenant.context', true) $$; GRANT USAGE ON SCHEMA pgtenant TO PUBLIC",
            ),
            _ => None,
        }
    }

    /// SQL that makes the stage as weak as it is to be.
    fn after(self) -> &'static str {
        match self {
            Self::Folded => {
                "CREATE FUNCTION {table}_whose() RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT current_setting('app.tenant_id', true) $$; \
                 DROP POLICY tenant ON {table}; CREATE POLICY tenant ON {table} USING (tenant = {table}_whose())"
            }
            Self::AboveRows => "ALTER ROLE plain BYPASSRLS; GRANT SELECT ON pg_statistic TO plain",
            Self::View => {
                "CREATE VIEW {table}_view AS SELECT * FROM {table} WHERE tenant = current_setting('app.tenant_id', true); \
                 GRANT SELECT ON {table}_view TO plain"
            }
            Self::MaySet => "GRANT SET ON PARAMETER app.tenant_id TO plain",
            Self::Owner | Self::OpenedForNobody => {
                "GRANT SET ON PARAMETER app.tenant_id TO plain; ALTER TABLE {table} OWNER TO plain; ALTER TABLE {table} FORCE ROW LEVEL SECURITY; ALTER DATABASE plain OWNER TO plain"
            }
            Self::SearchPath | Self::SharedLogin => "GRANT {a_role}, {b_role} TO schema",
            Self::SharedSuperuser => "ALTER ROLE schema SUPERUSER",
            Self::OpenDatabases => "GRANT CONNECT ON DATABASE {b_database} TO PUBLIC",
            _ => "SELECT 1",
        }
    }

    pub fn undone(self) -> &'static str {
        match self {
            Self::AboveRows => {
                "ALTER ROLE plain NOBYPASSRLS; REVOKE SELECT ON pg_statistic FROM plain"
            }
            Self::MaySet => "REVOKE SET ON PARAMETER app.tenant_id FROM plain",
            Self::Owner | Self::OpenedForNobody => {
                "REVOKE SET ON PARAMETER app.tenant_id FROM plain; ALTER DATABASE plain OWNER TO postgres; REASSIGN OWNED BY plain TO postgres"
            }
            Self::SharedSuperuser => "ALTER ROLE schema NOSUPERUSER",
            _ => "SELECT 1",
        }
    }

    /// Straight to the server, with whatever tells the tenants apart in the startup packet.
    fn ways(self, config: &Config, routes: &[Route; 2]) -> [Way; 2] {
        [0, 1].map(|who: usize| {
            let route = &routes[who];
            let mut key = (*route.pool).clone();
            key.startup.retain(|(name, _)| name == "search_path");
            let is_bare = self == Self::OpenedForNobody || self == Self::Stock && who == 0;
            if !is_bare {
                key.startup.extend(route.context.iter().cloned());
            }
            if let Some(seal) = &route.seal {
                key.startup
                    .push(("pgtenant.context".to_owned(), seal.tenant.clone()));
            }
            if [Self::SearchPath, Self::SharedLogin, Self::SharedSuperuser].contains(&self) {
                let login = Login {
                    user: "schema".to_owned(),
                    password: Some(Secret::new(SECRET.to_owned())),
                };
                key.login = login.into();
                key.startup.clear();
            }
            Way {
                server: config.servers[0].clone(),
                key,
            }
        })
    }

    /// What gives the one connection to a tenant.
    fn turns(self, routes: &[Route; 2]) -> Option<[Vec<u8>; 2]> {
        let each = |sql: &dyn Fn(&Route) -> String| {
            let [a, b] = routes;
            Some([a, b].map(|route| session::query(sql(route).as_bytes())))
        };
        let set = |route: &Route| format!("SET app.tenant_id = '{}'", route.context[0].1);
        let path = |route: &Route| {
            format!(
                "SET search_path = {}",
                route.schema.as_deref().unwrap_or_default()
            )
        };
        let role = |route: &Route| route.pool.login.user.clone();
        match self {
            // By a message that leaves the unnamed statement alone.
            Self::OpenedForB => {
                let [a, b] = routes;
                Some([a, b].map(|route| {
                    let (name, value) = &route.context[0];
                    let arguments = [&**name, &**value, "f"].map(|text| text.as_bytes().to_vec());
                    session::function_call(SET_CONFIG, &arguments)
                }))
            }
            Self::MaySet | Self::OpenedForNobody | Self::Folded => each(&set),
            Self::SearchPath => each(&path),
            Self::InTransaction => each(&|route| format!("BEGIN; {}", set(route))),
            Self::SharedLogin => {
                each(&|route| format!("SET ROLE {}; {}", role(route), path(route)))
            }
            Self::SharedSuperuser => {
                each(&|route| format!("SET SESSION AUTHORIZATION {}; {}", role(route), path(route)))
            }
            _ => None,
        }
    }

    pub async fn stage(self, world: &World, made: &mut Option<Made>) -> Stage {
        let placement = self.placement();
        if let Some(sql) = self.before() {
            world.run(placement, sql).await;
        }
        let (config, names) = world.config(placement, 1);
        let routes = World::routes(&config, &names);
        let made = made.insert(Made::on(config.servers[0].clone()));
        let mut stage = world
            .stage(made, placement, &routes, self.ways(&config, &routes))
            .await;
        stage.turns = self.turns(&routes);
        // An application that nobody holds to its tenants.
        let (name, _) = routes[0].context.first().cloned().unwrap_or_default();
        for (word, value) in [
            ("acting", &routes[0].pool.login.user),
            ("application", &routes[0].pool.database),
            ("choice", &name),
            ("a_id", &names[0]),
            ("b_id", &names[1]),
        ] {
            stage.words.set(word, &**value);
        }
        for (word, route) in ["a_role", "b_role"].into_iter().zip(&routes) {
            stage.words.set(word, &*route.pool.login.user);
        }
        let sql = stage.words.fill(self.after()).expect("words");
        let database = if self == Self::OpenDatabases {
            "postgres"
        } else {
            placement
        };
        world.run(database, &String::from_utf8_lossy(&sql)).await;
        if self == Self::View {
            let view = stage.words.fill("{table}_view").expect("a word");
            stage.words.set("table", view);
        }
        if self == Self::OpenDatabases {
            let sql = "GRANT SELECT ON canaries TO PUBLIC";
            world.run(&routes[1].pool.database, sql).await;
        }
        stage
    }
}
