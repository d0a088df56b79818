//! Taking a tenant away: the state first, and the data by a second, explicit step.

use super::{Failure, Kind, Result, Tenancy};
use crate::config::State;

/// What becomes of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    /// It is dropped, or deleted by `provision.delete`.
    Dropped,
    /// It stays where it is.
    Kept,
}

impl Tenancy {
    /// Puts a tenant into state deleted: its logins are refused, its data stays. Returns its
    /// revision.
    ///
    /// # Errors
    /// There is no such tenant.
    pub async fn delete(&self, name: &str, reason: Option<&str>) -> Result<i64> {
        self.set_state(name, State::Deleted, reason, None, None)
            .await
    }

    /// Forgets a tenant that is deleted, and drops its data first if asked to. Returns the revision
    /// in which it was forgotten. `early`: before its retention is over.
    ///
    /// Not cancel safe: what was dropped is dropped, and the rest is by the same call.
    ///
    /// # Errors
    /// It is not deleted, or not for long enough; the data was not made by pgtenant, or nothing
    /// says which it is.
    pub async fn purge(&mut self, name: &str, data: Data, early: bool) -> Result<i64> {
        self.lock(name).await?;
        let row = self.row(name).await?;
        if data == Data::Kept {
            let sql = "SELECT pgtenant_catalog.purge($1, $2, $3, $4)";
            let parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)] =
                &[&name, &early, &row.revision, &self.actor];
            return Ok(self.ask(sql, parameters).await?.get(0));
        }
        if row.state != State::Deleted.word() {
            let message = format!(
                "tenant {name:?} is {}: only one that is deleted can be purged",
                row.state
            );
            return Err(Failure::new(Kind::Conflict, message));
        }
        let tenants = self.resolve(name, &row.spec)?;
        for tenant in &tenants {
            self.maker(tenant)?.can_drop()?;
        }
        let sql = "SELECT pgtenant_catalog.begin_operation($1, 'purge', $2, $3)";
        let operation: i64 = self.ask(sql, &[&name, &early, &self.actor]).await?.get(0);
        for tenant in &tenants {
            let maker = self.maker(tenant)?;
            let step = |what: &str| match &tenant.service {
                None => what.to_owned(),
                Some((_, service)) => format!("{service}: {what}"),
            };
            self.take(operation, &step("drop data"), maker.drop_data())
                .await?;
            self.take(operation, &step("drop role"), maker.drop_role())
                .await?;
        }
        let sql = "SELECT pgtenant_catalog.finish_operation($1, $2)";
        Ok(self.ask(sql, &[&operation, &self.actor]).await?.get(0))
    }
}
