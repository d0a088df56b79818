//! How places are made: what a placement's tier has a use for.

use super::{Resolver, name_mistake};
use crate::config::file::{PlacementFile, ProvisionFile, StatementsFile};
use crate::config::outline::At;
use crate::config::{Provision, Statement, Tier, template};

impl Resolver<'_, '_> {
    /// Without a section, what makes a place that is empty.
    pub(super) fn provision(&mut self, at: &At<'_>, file: &PlacementFile) -> Provision {
        let Some(provision) = &file.provision else {
            return Provision::default();
        };
        self.fits_the_tier(at, file, provision);
        for name in provision
            .when
            .keys()
            .filter(|name| !template::is_name(name))
        {
            let message = format_args!("{name:?} cannot be the name of an attribute");
            self.mistakes.add(&at.key("when"), message);
        }
        for (key, template) in [
            ("template_schema", &provision.template_schema),
            ("template_database", &provision.template_database),
        ] {
            if let Some(mistake) = template.as_deref().and_then(name_mistake) {
                self.mistakes.add(&at.key(key), mistake);
            }
        }
        for (i, role) in provision.member_of.iter().enumerate() {
            if let Some(mistake) = name_mistake(role) {
                self.mistakes.add(&at.key("member_of").index(i), mistake);
            }
        }
        for (i, path) in provision.sql.iter().enumerate() {
            if path.is_empty() {
                let message = "must not be empty";
                self.mistakes.add(&at.key("sql").index(i), message);
            }
        }
        Provision {
            when: provision.when.clone().into_iter().collect(),
            template_schema: provision.template_schema.clone(),
            template_database: provision.template_database.clone(),
            sql: provision.sql.iter().map(|path| self.path(path)).collect(),
            member_of: provision.member_of.clone(),
            after: self.statements(&at.key("after"), &provision.after),
            delete: self.statements(&at.key("delete"), &provision.delete),
        }
    }

    fn fits_the_tier(&mut self, at: &At<'_>, file: &PlacementFile, provision: &ProvisionFile) {
        let Some(tier) = file.tier else { return };
        if provision.template_database.is_some() && tier != Tier::Database {
            let message = "has no meaning but in tier database";
            self.mistakes.add(&at.key("template_database"), message);
        }
        if provision.template_schema.is_some() && tier != Tier::Schema {
            let message = "has no meaning but in tier schema";
            self.mistakes.add(&at.key("template_schema"), message);
        }
        if !provision.sql.is_empty() && !matches!(tier, Tier::Schema | Tier::Database) {
            let message = "has no meaning but in tiers schema and database";
            self.mistakes.add(&at.key("sql"), message);
        }
        if !provision.delete.texts().is_empty() && matches!(tier, Tier::Schema | Tier::Database) {
            let message = "has no meaning in tiers schema and database, which are dropped";
            self.mistakes.add(&at.key("delete"), message);
        }
    }

    fn statements(&mut self, at: &At<'_>, file: &StatementsFile) -> Vec<Statement> {
        let mut statements = Vec::new();
        for text in file.texts() {
            if text.trim().is_empty() {
                self.mistakes.add(at, "must not be empty");
                continue;
            }
            if let Some(template) = self.template(at, text) {
                let (sql, parameters) = template.with_parameters();
                statements.push(Statement { sql, parameters });
            }
        }
        statements
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::{Config, load_text};

    fn load(tier: &str, provision: &str) -> Result<Config, Vec<String>> {
        let text = format!(
            "servers: {{ s: {{ host: h, max_connections: 9 }} }}
placements:
  p: {{ tier: {tier}, server: s, database: 'd_{{tenant}}', login: {{ user: u }},
    provision: {{ {provision} }} }}
tenants: {{}}
"
        );
        let loaded = load_text(&text, Path::new("/etc/x"), &|_| None);
        loaded.map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn what_a_place_is_made_of_is_read() {
        let config = load(
            "database",
            "when: { plan: big }, template_database: t, sql: [a.sql, /b.sql], member_of: [app], \
             after: 'INSERT INTO t VALUES ({tenant}, {a}, {tenant})'",
        );
        let config = config.unwrap();
        let provision = &config.placements["p"].provision;
        assert_eq!(provision.when["plan"], "big");
        assert_eq!(provision.template_database.as_deref(), Some("t"));
        assert_eq!(
            provision.sql,
            [Path::new("/etc/x/a.sql"), Path::new("/b.sql")]
        );
        let [statement] = &provision.after[..] else {
            panic!("{provision:?}")
        };
        assert_eq!(statement.sql, "INSERT INTO t VALUES ($1, $2, $1)");
        assert_eq!(statement.parameters, ["tenant", "a"]);
    }

    #[test]
    fn what_a_tier_has_no_use_for_is_a_mistake() {
        let pool = "pool, context: { a.b: '{tenant}' }";
        let schema = "schema, schema: 's_{tenant}'";
        for (tier, provision, path) in [
            (pool, "template_database: t", "template_database"),
            (schema, "template_database: t", "template_database"),
            (pool, "template_schema: t", "template_schema"),
            ("database", "template_schema: t", "template_schema"),
            (schema, "template_schema: ''", "template_schema"),
            (pool, "sql: [a]", "sql"),
            ("instance", "sql: [a]", "sql"),
            (schema, "delete: x", "delete"),
            ("database", "delete: [x]", "delete"),
            ("database", "template_database: ''", "template_database"),
            ("database", "sql: ['']", "sql[0]"),
            ("database", "member_of: ['']", "member_of[0]"),
            ("database", "when: { 'a b': c }", "when"),
            ("database", "after: ''", "after"),
            ("database", "after: ['{']", "after"),
            ("database", "after: {}", "after"),
            ("database", "befor: x", "befor"),
        ] {
            let mistakes = load(tier, provision).unwrap_err();
            let expected = format!("placements.p.provision.{path}: ");
            let found = mistakes.iter().any(|mistake| mistake.contains(&expected));
            assert!(found, "{tier} {provision}: {mistakes:?}");
        }
    }
}
