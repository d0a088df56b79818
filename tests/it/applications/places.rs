//! Servers with tenants of one application in all four tiers, guarded and sealed, of which some
//! have rows in every place, so that a config can move them from one tier to another.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use pgtenant::cluster::{Cluster, Options};
use pgtenant::control::seal;

use crate::harness::{LOCKS, Running, SECRET, cluster, parse, server_line};

/// Where a tenant is. Each has its name from its placement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Tier pool, posture guarded. The application is at home here.
    Guarded,
    /// Tier pool, posture sealed.
    Sealed,
    /// A schema and a role of its own, posture guarded.
    Schema,
    Database,
    /// Another server, posture sealed.
    Instance,
}

pub const PLACES: [Place; 5] = [
    Place::Guarded,
    Place::Sealed,
    Place::Schema,
    Place::Database,
    Place::Instance,
];

impl Place {
    fn name(self) -> &'static str {
        match self {
            Self::Guarded => "guarded",
            Self::Sealed => "sealed",
            Self::Schema => "schema",
            Self::Database => "database",
            Self::Instance => "instance",
        }
    }

    /// The database where a tenant is when it lives here.
    pub fn database(self, tenant: &str) -> String {
        match self {
            Self::Database => format!("d_{tenant}"),
            other => other.name().to_owned(),
        }
    }
}

#[derive(Debug, Clone)]
pub struct Member {
    pub name: String,
    /// Where it is at first.
    pub place: Place,
    /// It has the same rows in every place.
    pub moves: bool,
    /// Exactly the bodies of its rows whose id is below 900.
    pub bodies: Vec<String>,
}

impl Member {
    fn lives_in(&self, place: Place) -> bool {
        self.moves || self.place == place
    }

    fn insert(&self, table: &str) -> String {
        let rows: Vec<_> = (1..)
            .zip(&self.bodies)
            .map(|(id, body)| format!("('{}', {id}, '{body}')", self.name))
            .collect();
        format!(
            "INSERT INTO {table} (tenant, id, body) VALUES {};\n",
            rows.join(", ")
        )
    }
}

/// How many tenants are in each place, in the order of [`PLACES`], and how many of each can be
/// moved.
pub struct Sizes {
    pub tenants: [usize; 5],
    pub movers: usize,
}

pub struct Places {
    pub shared: Cluster,
    pub silo: Cluster,
    pub members: Vec<Arc<Member>>,
    /// Of a pool, and of a server.
    pub pool_size: usize,
    pub max_connections: usize,
    /// More of the config, such as `timeouts`.
    pub sections: String,
}

impl Places {
    /// `name`: what the names of its servers begin with.
    pub async fn make(name: &str, sizes: &Sizes) -> Self {
        let options = |server: &str| Options {
            max_connections: 100,
            settings: vec![
                ("shared_buffers".into(), "32MB".into()),
                LOCKS.map(str::to_owned).into(),
            ],
            ..Options::named(&format!("{name}-{server}"))
        };
        let (shared, silo) = tokio::join!(cluster(options("shared")), cluster(options("silo")));
        let mut members = Vec::new();
        for (place, count) in PLACES.into_iter().zip(sizes.tenants) {
            for at in 0..count {
                let name = format!("{}{at}", &place.name()[..2]);
                members.push(Arc::new(Member {
                    place,
                    moves: at < sizes.movers,
                    bodies: (1..=1 + at % 3)
                        .map(|id| format!("{name} item {id}"))
                        .collect(),
                    name,
                }));
            }
        }
        let places = Self {
            shared,
            silo,
            members,
            pool_size: 3,
            max_connections: 40,
            sections: String::new(),
        };
        places.fill().await;
        places
    }

    fn of(&self, place: Place) -> impl Iterator<Item = &Arc<Member>> {
        let lives = move |member: &&Arc<Member>| member.lives_in(place);
        self.members.iter().filter(lives)
    }

    fn server(&self, place: Place) -> &Cluster {
        match place {
            Place::Instance => &self.silo,
            _ => &self.shared,
        }
    }

    async fn run(&self, place: Place, database: &str, sql: &str) {
        let done = self.server(place).run(database, sql).await;
        done.unwrap_or_else(|error| panic!("{error}\n{sql}"));
    }

    /// Makes what the tenants have.
    async fn fill(&self) {
        for place in [
            Place::Guarded,
            Place::Sealed,
            Place::Schema,
            Place::Instance,
        ] {
            let name = place.name();
            self.run(place, "postgres", &format!("CREATE DATABASE {name}"))
                .await;
            let login = format!("CREATE ROLE {name} LOGIN PASSWORD '{SECRET}'");
            self.run(place, name, &login).await;
        }
        let config = parse(&self.yaml(&|member| member.place));
        for (name, server) in &config.servers {
            for target in seal::targets(&config, name) {
                let done = seal::install(server, &target, Duration::from_secs(3600)).await;
                done.expect("it is sealed");
            }
        }
        for (place, tenant) in [
            (Place::Guarded, "current_setting('app.tenant_id', true)"),
            (Place::Sealed, "pgtenant.tenant_id()"),
            (Place::Instance, "pgtenant.tenant_id()"),
        ] {
            let name = place.name();
            let mut sql = format!(
                "CREATE TABLE items (tenant text NOT NULL DEFAULT {tenant}, id int, body text, PRIMARY KEY (tenant, id));
                 ALTER TABLE items ENABLE ROW LEVEL SECURITY;
                 CREATE POLICY tenant ON items USING (tenant = (SELECT {tenant}));
                 GRANT SELECT, INSERT, UPDATE, DELETE ON items TO {name};"
            );
            sql.extend(self.of(place).map(|member| member.insert("items")));
            self.run(place, name, &sql).await;
        }
        let mut sql = String::new();
        for member in self.of(Place::Schema) {
            let schema = format!("t_{}", member.name);
            let role = format!("r_{}", member.name);
            let _ = write!(sql, "CREATE SCHEMA {schema};");
            sql += &own_table(&member.name, &schema, &role);
            sql += &member.insert(&format!("{schema}.items"));
        }
        self.run(Place::Schema, Place::Schema.name(), &sql).await;
        for member in self.of(Place::Database) {
            let database = Place::Database.database(&member.name);
            let create = format!("CREATE DATABASE {database}");
            self.run(Place::Database, "postgres", &create).await;
            let sql = own_table(&member.name, "public", &database) + &member.insert("items");
            self.run(Place::Database, &database, &sql).await;
        }
    }

    /// The config, with each tenant where `place` says.
    pub fn yaml(&self, place: &dyn Fn(&Member) -> Place) -> String {
        let line = |name: &str, cluster: &Cluster| {
            let admin = format!(
                ", admin: {{ user: postgres, password: {} }}, seal: {{ key: \"a key of at least thirty-two letters\" }} }}\n",
                cluster.superuser_password()
            );
            server_line(name, cluster, self.max_connections).replace(" }\n", &admin)
        };
        let size = self.pool_size;
        let pool = |what: &str, name: &str, posture: &str| {
            format!(
                "  {name}: {{ {what}, database: {name}, login: {{ user: {name}, password: {SECRET} }}, posture: {posture}, \
                 context: {{ app.tenant_id: \"{{tenant}}\" }}, pool: {{ size: {size}, reserve: 1 }} }}\n"
            )
        };
        let own = |what: &str, role: &str| {
            format!(
                "{what}, server: shared, login: {{ user: \"{role}_{{tenant}}\", password: {SECRET} }}, pool: {{ size: {size} }} }}\n"
            )
        };
        let mut yaml = [
            "listen: [{ address: \"127.0.0.1:0\" }]\nworkers: 2\nlog: { filter: info }\n".to_owned(),
            self.sections.clone(),
            "\napplications:\n  web:\n    users: { web: { password: web-secret } }\n    tenants: all\n    \
             home: guarded\n    choose: { variables: [app.tenant_id] }\nservers:\n"
                .to_owned(),
            line("shared", &self.shared),
            line("silo", &self.silo),
            "placements:\n".to_owned(),
            pool("tier: pool, server: shared", "guarded", "guarded"),
            pool("tier: pool, server: shared", "sealed", "sealed"),
            pool("tier: instance, server: silo", "instance", "sealed"),
            own("  schema: { tier: schema, database: schema, schema: \"t_{tenant}\", posture: guarded", "r"),
            own("  database: { tier: database, database: \"d_{tenant}\"", "d"),
            "tenants:\n".to_owned(),
        ]
        .concat();
        for member in &self.members {
            let _ = writeln!(
                yaml,
                "  {}: {{ placement: {}, users: {{ app: {{ password: {}-secret }} }} }}",
                member.name,
                place(member).name(),
                member.name
            );
        }
        yaml
    }

    pub fn start(&self) -> Running {
        Running::start(&self.yaml(&|member| member.place))
    }
}

/// A role and a table of one tenant.
fn own_table(tenant: &str, schema: &str, role: &str) -> String {
    format!(
        "CREATE ROLE {role} LOGIN PASSWORD '{SECRET}';
         CREATE TABLE {schema}.items (tenant text NOT NULL DEFAULT '{tenant}' CHECK (tenant = '{tenant}'),
            id int, body text, PRIMARY KEY (tenant, id));
         GRANT USAGE ON SCHEMA {schema} TO {role};
         GRANT SELECT, INSERT, UPDATE, DELETE ON {schema}.items TO {role};\n"
    )
}
