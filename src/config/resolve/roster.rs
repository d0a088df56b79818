//! Tenants that come and go one at a time, as those of a catalog do. Each is looked at as if it
//! stood in the file, beside all the others that there are; one with mistakes changes nothing.

use std::path::PathBuf;
use std::sync::Arc;

use super::acts_for::says_otherwise;
use super::application::own_names;
use super::places::Places;
use super::tenant::Rules;
use super::{Resolver, services};
use crate::config::file::{ConfigFile, TenantFile};
use crate::config::outline::{At, Mistakes};
use crate::config::units::Moment;
use crate::config::{
    Called, Config, Lifecycle, Listed, Mistake, PoolKey, Services, Sharded, State, Tenant, Users,
};
use crate::id::TenantId;

/// A tenant as the catalog has it.
#[derive(Debug, Clone)]
pub struct Entry {
    pub name: String,
    /// The settings of `tenants.*` as JSON.
    pub spec: String,
    pub lifecycle: Lifecycle,
    pub generation: u64,
    pub revision: u64,
    pub version: Option<String>,
}

/// What is needed to put tenants into a configuration. It belongs to one [`Config`] and those that
/// were made of it: all of their tenants are known to it.
pub struct Roster {
    pub(super) rules: Rules,
    pub(super) places: Places,
    pub(super) dir: PathBuf,
}

/// What a tenant was and is: itself, or each of its services.
#[derive(Debug, Clone, Default)]
pub struct Change {
    pub old: Vec<Arc<Tenant>>,
    pub new: Vec<Arc<Tenant>>,
}

/// What is put: read already, or not yet.
struct Described {
    name: String,
    file: TenantFile,
    users: Option<Users>,
    listed: (u64, u64, Option<Arc<str>>),
}

impl Roster {
    /// Puts a tenant of the catalog into `config`, or takes it out if it is deleted.
    ///
    /// # Errors
    /// What is wrong with it; then nothing has changed, and what was known of it before stays.
    pub fn put(&mut self, config: &mut Config, entry: &Entry) -> Result<Change, Vec<Mistake>> {
        let name = &entry.name;
        if entry.lifecycle.state == State::Deleted {
            self.is_ours(config, name)?;
            return Ok(self.remove(config, name));
        }
        let mut file = ConfigFile::read_tenant(name, &entry.spec)?;
        let Lifecycle {
            state,
            reason,
            until,
            expires,
        } = entry.lifecycle.clone();
        file.state = state;
        file.reason = reason.map(String::from);
        file.until = until.map(Moment);
        file.expires = expires.map(Moment);
        let version = entry.version.as_deref().map(Arc::from);
        let described = Described {
            name: name.clone(),
            file,
            users: None,
            listed: (entry.generation, entry.revision, version),
        };
        self.put_described(config, described)
    }

    /// Puts a tenant of the catalog that was in another configuration into this one.
    ///
    /// # Errors
    /// What is wrong with it here.
    pub fn put_again(
        &mut self,
        config: &mut Config,
        tenant: &Tenant,
    ) -> Result<Change, Vec<Mistake>> {
        let Some(listed) = &tenant.listed else {
            return Ok(Change::default());
        };
        let mut file = TenantFile::clone(&listed.settings);
        let attributes = tenant.attributes.iter();
        let attributes = attributes.map(|(name, value)| (name.to_string(), value.to_string()));
        file.attributes = attributes.collect();
        let described = Described {
            name: tenant.name().as_str().to_owned(),
            file,
            users: Some(tenant.users.clone()),
            listed: (listed.generation, listed.revision, listed.version.clone()),
        };
        self.put_described(config, described)
    }

    fn put_described(
        &mut self,
        config: &mut Config,
        described: Described,
    ) -> Result<Change, Vec<Mistake>> {
        let Described {
            name,
            file,
            users,
            listed: (generation, revision, version),
        } = described;
        self.is_ours(config, &name)?;
        let old = tenants_of(config, &name);
        let had: Vec<_> = old
            .iter()
            .map(|tenant| self.places.release(tenant))
            .collect();
        let dir = std::mem::take(&mut self.dir);
        let mut resolver = Resolver {
            mistakes: Mistakes::default(),
            dir: &dir,
            has_catalog: true,
            is_catalog: true,
        };
        let section = At::ROOT.key("tenants");
        let at = section.key(&*name);
        if config.applications.contains_key(&*name) {
            let message = "is the name of an application, too: its login would be both's";
            resolver.mistakes.add(&at, message);
        }
        let (rules, places) = (&self.rules, &mut self.places);
        let mut new = resolver.tenant(&at, &name, Some(&file), users, rules, places);
        for tenant in &new {
            if places.shares_minimum(&tenant.route.pool) {
                let message = "is of one tenant, whose server connections are not others', too";
                resolver.mistakes.add(&at.key("pool").key("min"), message);
            }
            resolver.fits_applications(&at, config, tenant, &old, rules);
        }
        let mistakes = resolver.mistakes.into_sorted();
        self.dir = dir;
        if !mistakes.is_empty() {
            new.iter()
                .for_each(|tenant| _ = self.places.release(tenant));
            for (tenant, usual) in old.iter().zip(had) {
                self.places.claim(&tenant.id, &tenant.route, &usual);
            }
            return Err(mistakes);
        }
        let settings = self.places.settings(file);
        for tenant in &mut new {
            tenant.listed = Some(Listed {
                generation,
                revision,
                version: version.clone(),
                settings: settings.clone(),
            });
        }
        let new: Vec<_> = new.into_iter().map(Arc::new).collect();
        self.exchange(config, &name, &old, &new);
        Ok(Change { old, new })
    }

    /// A tenant of the file is not the catalog's.
    fn is_ours(&self, config: &Config, name: &str) -> Result<(), Vec<Mistake>> {
        let is_of_file = |tenant: &Arc<Tenant>| tenant.listed.is_none();
        match tenants_of(config, name).iter().any(is_of_file) {
            false => Ok(()),
            true => Err(vec![Mistake {
                path: format!("tenants.{name}"),
                line: None,
                message: "stands in the config file, which counts".to_owned(),
            }]),
        }
    }

    /// Takes a tenant of the catalog out of `config`.
    pub fn remove(&mut self, config: &mut Config, name: &str) -> Change {
        let old = tenants_of(config, name);
        old.iter()
            .for_each(|tenant| _ = self.places.release(tenant));
        self.exchange(config, name, &old, &[]);
        Change {
            old,
            new: Vec::new(),
        }
    }

    /// Whether no tenant uses this pool any more.
    pub fn is_unused(&self, pool: &PoolKey) -> bool {
        self.places.is_unused(pool)
    }

    fn exchange(&self, config: &mut Config, name: &str, old: &[Arc<Tenant>], new: &[Arc<Tenant>]) {
        config.own_minimums += own_minimums(new);
        config.own_minimums -= own_minimums(old);
        for tenant in old {
            if !new.iter().any(|now| now.id == tenant.id) {
                config.tenants.remove(tenant.id.as_str());
            }
        }
        for tenant in new {
            config.tenants.insert(tenant.clone());
        }
        config.services.remove(name);
        let new_services = services(&new.iter().cloned().collect());
        for services in new_services.values() {
            config.services.insert(services.clone());
        }
        for acts_for in &self.rules.acts_for {
            let Some(application) = config.applications.get_mut(&acts_for.application) else {
                continue;
            };
            if application.tenants.is_none() {
                continue;
            }
            let Some(known) = &mut Arc::make_mut(application).tenants else {
                continue;
            };
            let covered = |tenant: &&Arc<Tenant>| acts_for.covers(tenant);
            for tenant in old.iter().filter(covered) {
                if let Ok(value) = acts_for.value_of(tenant)
                    && known
                        .get(value)
                        .is_some_and(|called| called.id == tenant.id)
                {
                    known.remove(value);
                }
            }
            for tenant in new.iter().filter(covered) {
                if let Ok(value) = acts_for.value_of(tenant) {
                    known.insert(Called {
                        value: value.into(),
                        id: tenant.id.clone(),
                    });
                }
            }
        }
    }
}

/// How many of these have a minimum of their own.
pub(super) fn own_minimums<'t>(tenants: impl IntoIterator<Item = &'t Arc<Tenant>>) -> usize {
    let tenants = tenants.into_iter();
    let with = tenants.filter(|tenant| tenant.route.pool_min.is_some());
    with.count()
}

/// The tenant of this name, or its services.
fn tenants_of(config: &Config, name: &str) -> Vec<Arc<Tenant>> {
    let Some(services) = config.services.get(name) else {
        return config.tenants.get(name).cloned().into_iter().collect();
    };
    let Services { ids, .. } = &**services;
    let ids = ids.values();
    ids.filter_map(|id: &TenantId| config.tenants.get(id.as_str()).cloned())
        .collect()
}

impl Resolver<'_, '_> {
    /// Each application can tell a tenant from all others, and its login from its own.
    fn fits_applications(
        &mut self,
        at: &At<'_>,
        config: &Config,
        tenant: &Tenant,
        old: &[Arc<Tenant>],
        rules: &Rules,
    ) {
        for acts_for in &rules.acts_for {
            let Some(application) = config.applications.get(&acts_for.application) else {
                continue;
            };
            for user in application.login.users.keys() {
                let is_name = own_names(application, user).contains(tenant.name().as_str());
                if rules.identify.by_database && is_name && tenant.users.contains_key(user) {
                    let name = &acts_for.application;
                    let message = format_args!(
                        "is a user of application {name}, too, and the login would be both's"
                    );
                    self.mistakes.add(&at.key("users").key(user), message);
                }
            }
            if !acts_for.covers(tenant) {
                continue;
            }
            let value = match acts_for.value_of(tenant) {
                Ok(value) => value,
                Err(mistake) => {
                    self.mistakes.add(&at.key("attributes"), mistake);
                    continue;
                }
            };
            if let Some(mistake) = says_otherwise(&application.variables, value, tenant) {
                self.mistakes.add(at, mistake);
            }
            let known: Option<&Sharded<Called>> = application.tenants.as_ref();
            let other = known.and_then(|known| known.get(value));
            if let Some(other) = other
                && !old.iter().any(|tenant| tenant.id == other.id)
            {
                let message = acts_for.called_alike(&other.id, &tenant.id, value);
                self.mistakes.add(&at.key("attributes"), message);
            }
        }
    }
}

#[cfg(test)]
mod tests;
