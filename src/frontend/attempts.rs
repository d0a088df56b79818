//! What the audit hears of logins and clients: which refusals, the proxy's and the servers', are
//! attempts to reach what is another tenant's.

use std::net::SocketAddr;

use crate::app::App;
use crate::audit::{Audit, Event, Kind, Who};
use crate::backend::seal;
use crate::client::ClientHandle;
use crate::error::{self, Error};
use crate::frontend::forbidden::forbidden_parameter;
use crate::id::TenantId;
use crate::metrics::TenantMetrics;
use crate::protocol::reply::ErrorFields;
use crate::protocol::startup::Startup;
use crate::tenant::identify::{Claim, Unknown};

/// The SQLSTATEs, as fields of an ErrorResponse, of servers' errors that may be attempts.
const SQLSTATES: [&[u8]; 4] = [b"\0C42501\0", b"\0C55000\0", b"\0C3F000\0", b"\0C3D000\0"];

/// A login under way.
pub struct Caller<'a> {
    pub app: &'a App,
    pub claim: &'a Claim,
    pub startup: &'a Startup,
    pub peer: SocketAddr,
}

impl Caller<'_> {
    /// The login failed. `user_known`: there is a password that would have been right.
    pub fn note_wrong(&self, user_known: bool, error: &Error) {
        let kind = match self.claim {
            Claim::Nobody(Unknown::Hints) => Kind::Hints,
            Claim::Nobody(Unknown::Tenant) => Kind::UnknownTenant,
            Claim::Admin { .. } => Kind::Console,
            Claim::Tenant { .. } if user_known => Kind::Password,
            Claim::Tenant { .. } => Kind::UnknownUser,
        };
        let database = self.startup.database.as_deref();
        let named = matches!(self.claim, Claim::Nobody(_));
        self.note(kind, error, database.filter(|_| named));
    }

    /// The login is true and was refused; many refusals are no attempt at anything.
    pub fn note_refused(&self, error: &Error) {
        let Claim::Tenant { tenant, .. } = self.claim else {
            return;
        };
        let (kind, detail) = match error.kind() {
            error::Kind::UnknownDatabase => (Kind::Database, self.startup.database.as_deref()),
            error::Kind::InsufficientPrivilege => {
                let forbidden = forbidden_parameter(&self.app.config(), tenant, self.startup);
                (Kind::Parameter, forbidden.map(|(name, _)| name))
            }
            error::Kind::FeatureNotSupported => (Kind::Replication, None),
            _ => return,
        };
        self.note(kind, error, detail);
    }

    fn note(&self, kind: Kind, error: &Error, detail: Option<&str>) {
        let tenant = match self.claim {
            Claim::Tenant { tenant, .. } => Some(self.app.tenant(&tenant.id)),
            _ => None,
        };
        self.app.audit.record(&Event {
            kind,
            who: Who {
                tenant: tenant.as_ref().map(|tenant| (&tenant.id, &tenant.metrics)),
                application: None,
                user: Some(&self.startup.user),
                peer: Some(self.peer),
                client: None,
            },
            sqlstate: Some(error.sqlstate()),
            detail,
            statement: None,
        });
    }
}

/// A cancel request with a key that nobody has; also that of a client that has just left.
pub fn note_cancel(app: &App, peer: SocketAddr) {
    app.audit.record(&Event {
        kind: Kind::CancelKey,
        who: Who {
            peer: Some(peer),
            ..Who::default()
        },
        sqlstate: None,
        detail: None,
        statement: None,
    });
}

/// A client that is logged in.
pub fn who<'a>(client: &'a ClientHandle, metrics: &'a TenantMetrics) -> Who<'a> {
    Who {
        tenant: Some((&client.tenant, metrics)),
        application: None,
        user: Some(&client.user),
        peer: client.peer,
        client: Some(client.id),
    }
}

/// An application's client that is served for a tenant.
pub fn who_for<'a>(
    client: &'a ClientHandle,
    tenant: &'a TenantId,
    metrics: &'a TenantMetrics,
) -> Who<'a> {
    Who {
        tenant: Some((tenant, metrics)),
        application: Some(&client.tenant),
        ..who(client, metrics)
    }
}

/// No attempt: an application acts for all tenants by this variable, as it may.
pub fn note_for_all(audit: &Audit, who: Who<'_>, variable: &str, statement: Option<&[u8]>) {
    audit.record(&Event {
        kind: Kind::AllTenants,
        who,
        sqlstate: None,
        detail: Some(variable),
        statement,
    });
}

/// What a server's error is, of which `body` is the ErrorResponse or at least its start, and its
/// SQLSTATE. None: no attempt at anything.
pub fn of_server_error(body: &[u8]) -> Option<(Kind, String)> {
    // By far the most errors are told here.
    if !SQLSTATES
        .iter()
        .any(|code| memchr::memmem::find(body, code).is_some())
    {
        return None;
    }
    let fields = ErrorFields::read(body);
    // PostgreSQL has one routine for all that has privileges: its message tells them apart, in
    // English.
    let denied = fields.message.strip_prefix("permission denied for ");
    let denied_is = |what| denied.is_some_and(|denied| denied.starts_with(what));
    let kind = match &*fields.sqlstate {
        _ if seal::is_refusal(&fields) => Kind::Seal,
        "42501" if fields.routine == "ExecWithCheckOptions" => Kind::Rls,
        "42501" if denied_is("schema ") => Kind::Schema,
        "42501" if denied_is("database ") => Kind::Database,
        "42501" => Kind::Privilege,
        "3F000" => Kind::Schema,
        "3D000" => Kind::Database,
        _ => return None,
    };
    Some((kind, fields.sqlstate))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(fields: &[&str]) -> Option<Kind> {
        let body = [&["SERROR", "VERROR"], fields].concat().join("\0") + "\0\0";
        of_server_error(body.as_bytes()).map(|(kind, sqlstate)| {
            assert_eq!(sqlstate, fields[0][1..]);
            kind
        })
    }

    #[test]
    fn an_error_of_a_server_is_told_by_what_no_language_changes_where_it_can() {
        let forged = "Mthe tenant context of this session is not valid";
        for (fields, kind) in [
            (
                &["C42501", "Mneue Zeile …", "RExecWithCheckOptions"][..],
                Some(Kind::Rls),
            ),
            (
                &[
                    "C42501",
                    "Mpermission denied for table t",
                    "Raclcheck_error",
                ],
                Some(Kind::Privilege),
            ),
            (
                &[
                    "C42501",
                    "Mpermission denied for schema s",
                    "Raclcheck_error",
                ],
                Some(Kind::Schema),
            ),
            (
                &[
                    "C42501",
                    "Mpermission denied for database d",
                    "Raclcheck_error",
                ],
                Some(Kind::Database),
            ),
            (&["C42501", forged, "Rexec_stmt_raise"], Some(Kind::Seal)),
            (
                &["C42501", forged, "Raclcheck_error"],
                Some(Kind::Privilege),
            ),
            (
                &[
                    "C55000",
                    "Mx",
                    "WPL/pgSQL function pgtenant.tenant_id() line 19",
                    "Rcurrval_oid",
                ],
                Some(Kind::Seal),
            ),
            (&["C55000", "Mcurrval of sequence …", "Rcurrval_oid"], None),
            (
                &["C3F000", "Mschema \"x\" does not exist"],
                Some(Kind::Schema),
            ),
            (
                &["C3D000", "Mdatabase \"x\" does not exist"],
                Some(Kind::Database),
            ),
            (&["C42601", "Msyntax error"], None),
            (&["C42P01", "MC42501"], None),
        ] {
            assert_eq!(of(fields), kind, "{fields:?}");
        }
        assert_eq!(of_server_error(b""), None);
        assert_eq!(
            of_server_error(b"SERROR\0VERROR\0C42501\0Mcut"),
            Some((Kind::Privilege, "42501".into()))
        );
    }
}
