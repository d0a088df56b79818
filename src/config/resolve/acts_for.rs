//! For whom an application may act, and what it calls them.

use super::MAX_CONTEXT_VALUE;
use crate::config::Tenant;
use crate::config::file::{ActsForFile, ThoseFile};
use crate::id::TenantId;

/// For whom an application may act, and by what.
#[derive(Debug, Clone)]
pub(super) struct ActsFor {
    pub application: TenantId,
    pub tenants: ActsForFile,
    /// The attribute that it chooses by. None: the id.
    pub attribute: Option<String>,
    pub service: Option<String>,
}

impl ActsFor {
    /// Whether the application may act for this tenant.
    pub fn covers(&self, tenant: &Tenant) -> bool {
        if let Some((_, own)) = &tenant.service
            && Some(&**own) != self.service.as_deref()
        {
            return false;
        }
        match &self.tenants {
            ActsForFile::All(_) => true,
            ActsForFile::List(names) => names.iter().any(|name| name == tenant.name().as_str()),
            ActsForFile::Those(those) => is_one_of(tenant, those),
        }
    }

    /// Whether it may act for all, by their ids.
    pub fn is_all_by_id(&self) -> bool {
        let is_all = matches!(self.tenants, ActsForFile::All(_));
        is_all && self.attribute.is_none() && self.service.is_none()
    }

    /// What the application calls a tenant.
    ///
    /// # Errors
    /// Why it can call it nothing.
    pub fn value_of<'t>(&self, tenant: &'t Tenant) -> Result<&'t str, String> {
        let id = tenant.name();
        let Some(attribute) = &self.attribute else {
            return Ok(id.as_str());
        };
        let value = tenant.attribute(attribute);
        let value = value.ok_or_else(|| format!("tenant {id} has no attribute {attribute:?}"))?;
        let printable = |c: char| c.is_ascii_graphic() || c == ' ';
        match !value.is_empty() && value.len() <= MAX_CONTEXT_VALUE && value.chars().all(printable)
        {
            true => Ok(value),
            false => Err(format!(
                "attribute {attribute:?} of tenant {id} must be 1 to {MAX_CONTEXT_VALUE} bytes of printable ASCII"
            )),
        }
    }

    /// The mistake of two tenants that it calls the same.
    pub fn called_alike(&self, one: &TenantId, other: &TenantId, value: &str) -> String {
        let key = self.attribute.as_deref().unwrap_or_default();
        format!(
            "tenants {one} and {other} have the same attribute {key:?}, {value:?}: a choice would be both's"
        )
    }
}

/// Whether what an application says of a tenant is not what the tenant's context says: then a text
/// that runs with its choice in it would change the context.
pub(super) fn says_otherwise(
    variables: &[Box<str>],
    value: &str,
    tenant: &Tenant,
) -> Option<String> {
    let route = &tenant.route;
    let mut variables = variables.iter();
    let (name, own) = variables.find_map(|name| {
        let own = route.pinned(name).filter(|own| *own != value)?;
        Some((name, own))
    })?;
    let id = &tenant.id;
    Some(format!(
        "tenant {id} is {value:?} to the application, and its context has {own:?} in {name}: they must be the same"
    ))
}

fn is_one_of(tenant: &Tenant, those: &ThoseFile) -> bool {
    let placement = &tenant.route.placement.name;
    let placements = those.placements.as_ref();
    let lives_there =
        placements.is_none_or(|names| names.iter().any(|name| name == placement.as_str()));
    let mut attributes = those.attributes.iter();
    lives_there && attributes.all(|(name, value)| tenant.attribute(name) == Some(value))
}
