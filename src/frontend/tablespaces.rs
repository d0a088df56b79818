//! `temp_tablespaces` of a StartupMessage. PostgreSQL takes any list then, and passes over
//! tablespaces that are not there or that the role may not use; SET, which a shared server
//! connection gets, refuses them. So those that SET refuses are left out.

use std::sync::Arc;
use std::time::Instant;

use crate::backend::binding::{Binding, Settings};
use crate::backend::instance::Pool;
use crate::error::{Error, Result};
use crate::tenant::state::TenantState;
use crate::workers::WorkerId;

const NAME: &str = "temp_tablespaces";

/// Longest list that is looked into. Each of it costs an exchange with the server.
const MAX_LISTED: usize = 16;

/// Whether an error is of a tablespace that is not there (undefined_object) or not the role's to
/// use.
fn is_of_one(error: &Error) -> bool {
    matches!(error.sqlstate(), "42704" | "42501")
}

/// The settings of `wanted` with the tablespaces that the server takes. None: `error` is not for
/// want of tablespaces.
///
/// # Errors
/// 53300, 08006: no server could be asked.
pub async fn narrowed(
    pool: &Arc<Pool>,
    tenant: &Arc<TenantState>,
    wanted: &Binding,
    error: &Error,
    worker: WorkerId,
) -> Result<Option<Settings>> {
    let Some(list) = wanted.settings.get(NAME).filter(|_| is_of_one(error)) else {
        return Ok(None);
    };
    let listed = elements(list);
    if listed.len() > MAX_LISTED {
        return Ok(None);
    }
    let mut usable = Vec::new();
    let since = Instant::now();
    for &tablespace in &listed {
        let only = Settings::from([(NAME.to_owned(), tablespace.to_owned())]);
        let asked = Binding {
            settings: Arc::new(only),
            ..wanted.clone()
        };
        loop {
            let grant = pool.checkout(tenant, worker, since).await?;
            match grant.lease(&asked).await {
                Ok(Some(lease)) => {
                    lease.checkin();
                    usable.push(tablespace);
                    break;
                }
                // It had died.
                Ok(None) => {}
                Err(refused) if is_of_one(&refused) => break,
                Err(refused) => return Err(refused),
            }
        }
    }
    if usable.len() == listed.len() {
        return Ok(None);
    }
    let mut settings = Settings::clone(&wanted.settings);
    settings.insert(NAME.to_owned(), usable.join(","));
    Ok(Some(settings))
}

/// The names in a list, as they are written, quotes and all.
fn elements(list: &str) -> Vec<&str> {
    let mut quoted = false;
    let parts = list.split(|c| {
        quoted ^= c == '"';
        c == ',' && !quoted
    });
    parts
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_split_at_commas_that_are_not_quoted() {
        for (list, expected) in [
            ("", &[][..]),
            (" a ", &["a"]),
            ("a,\"b, \"\"c\" , d", &["a", "\"b, \"\"c\"", "d"]),
            ("\"\"", &["\"\""]),
        ] {
            assert_eq!(elements(list), expected, "{list}");
        }
    }
}
