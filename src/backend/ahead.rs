//! A change of tenant that goes ahead of the client's next message, in one write with it
//! ([`Switch`] reads the answers).

use std::sync::Arc;

use crate::backend::binding::{Binding, Context, follows_client};
use crate::backend::connection::{Parameters, ServerConnection};
use crate::backend::seal::Credential;
use crate::backend::switch::{Batch, Switch};
use crate::config::Pooling;

/// Whether the change may go ahead of the client's bytes. `reported`: what a server reports to a
/// client with these settings, by an earlier time that they were set; they are good.
pub fn may_go_ahead(
    connection: &ServerConnection,
    wanted: &Binding,
    reported: &Arc<Parameters>,
) -> bool {
    let scrubs = match &connection.context {
        // A limit that the last client set for itself could end the change: the connection would be
        // lost, and this client's message with it.
        Context::Bound(bound) => {
            bound.tenant != wanted.tenant
                && !bound.settings.keys().any(|name| name.ends_with("_timeout"))
        }
        // Clean may be what was scrubbed lately, under such a limit: PostgreSQL ends the next
        // statement for a statement_timeout that was over before it began.
        Context::Clean | Context::Unknown => false,
    };
    let same_server = || {
        let fixed = reported.iter().filter(|(name, _)| !follows_client(name));
        fixed.eq(connection
            .parameters
            .iter()
            .filter(|(name, _)| !follows_client(name)))
    };
    // What is in the batch is read in the encoding that a session begins with, which need not be
    // UTF-8.
    let is_plain = || {
        let context = wanted.route.context.iter().map(|(_, value)| value);
        let mut values = context.chain(wanted.settings.values());
        values.all(|value| value.is_ascii())
    };
    scrubs
        && is_plain()
        && wanted.route.pooling == Pooling::Transaction
        && (Arc::ptr_eq(reported, &connection.parameters) || same_server())
}

/// What is to be set.
pub struct Setting<'s> {
    /// It begins with a scrub.
    pub scrub: bool,
    /// What binds the session to its tenant, in posture sealed.
    pub credential: Option<&'s Credential>,
    /// A new state for `random()`.
    pub seed: Option<&'s str>,
    pub variables: &'s [(&'s str, &'s str)],
}

/// Puts the change before what the client says next. Nothing is sent yet.
pub fn go_ahead(
    connection: &mut ServerConnection,
    wanted: &Binding,
    setting: &Setting<'_>,
    reported: Arc<Parameters>,
) {
    let mut batch = Batch::default();
    if setting.scrub {
        batch.statement("DISCARD ALL", &[]);
    }
    batch.set(setting.credential, setting.seed, setting.variables);
    connection.context = Context::Unknown;
    connection.parameters = reported;
    connection.outbox.extend(&batch.request);
    let binding = Binding {
        stale: false,
        ..wanted.clone()
    };
    connection.switch = Some(Switch::of(binding, &batch));
}

/// Puts statements with which the client's transaction begins before what it says next. The change
/// of tenant that is about to be sent goes ahead of them.
pub fn begin_with(connection: &mut ServerConnection, statements: &[String]) {
    let mut batch = Batch::default();
    for text in statements {
        batch.statement(text, &[]);
    }
    connection.outbox.extend(&batch.request);
    if let Some(switch) = &mut connection.switch {
        switch.add_clients(&batch);
    } else if let Context::Bound(binding) = &connection.context {
        let mut switch = Switch::of(binding.clone(), &Batch::default());
        switch.add_clients(&batch);
        connection.switch = Some(switch);
        connection.context = Context::Unknown;
    }
}
