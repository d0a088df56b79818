//! The right to use a server connection: a [`Grant`] from the pool, then a [`Lease`] once the
//! connection is there and carries the client's context.
//!
//! A lease goes back only by [`Lease::checkin`] at a clean point. Dropped anywhere else, by an
//! error, a panic or a cancelled task, it closes the connection.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::binding::{self, Binding, Refusal, Settings};
use crate::backend::connection::{Frame, ServerConnection};
use crate::backend::context::{self, Adopted};
use crate::backend::instance::Pool;
use crate::backend::instance::queue::Granted;
use crate::backend::leftovers::Handover;
use crate::backend::residue::{self, Answer, Question};
use crate::config::{PoolKey, Route};
use crate::error::{Error, Kind, Result};
use crate::guard::check_policies;
use crate::protocol::buffer::Buffer;
use crate::protocol::frame::BackendTag;
use crate::protocol::reply::{ErrorFields, SYNC};
use crate::tenant::state::TenantState;
use crate::timer;
use crate::workers::WorkerId;

/// A connection that may or may not be good, or room for a new one. Dropped unused, it goes back.
pub struct Grant {
    pool: Arc<Pool>,
    tenant: Arc<TenantState>,
    /// Of the client that it is for, which is to use it there.
    worker: WorkerId,
    granted: Option<Granted>,
}

impl Grant {
    pub(super) fn new(
        pool: Arc<Pool>,
        tenant: Arc<TenantState>,
        worker: WorkerId,
        granted: Granted,
    ) -> Self {
        Self {
            pool,
            tenant,
            worker,
            granted: Some(granted),
        }
    }

    /// Makes it a lease if it is an idle connection of its worker that carries the tenant's context
    /// on `route` and the client's `settings`.
    ///
    /// # Errors
    /// Itself, as it was.
    pub fn lease_at_once(
        mut self,
        route: &Arc<Route>,
        settings: &Arc<Settings>,
    ) -> Result<Lease, Self> {
        let is_ready = match &mut self.granted {
            Some(Granted::Ready(connection)) => {
                let tenant = &self.tenant.id;
                self.pool
                    .is_ready(connection, self.worker, tenant, route, settings)
            }
            _ => false,
        };
        match self.granted.take_if(|_| is_ready) {
            Some(Granted::Ready(connection)) => {
                let (pool, tenant) = (self.pool.clone(), self.tenant.clone());
                Ok(Lease::of(pool, tenant, connection))
            }
            _ => Err(self),
        }
    }

    /// Makes it a lease: connects if it must, and sets the context. None: the idle connection had
    /// died, or the server lets nobody in for now; check out again.
    ///
    /// Not cancel safe: what was begun is closed.
    ///
    /// # Errors
    /// 08006 and what the server gave as it refused; a setting of the client's that the server does
    /// not accept, with the server's SQLSTATE and words.
    pub async fn lease(self, wanted: &Binding) -> Result<Option<Lease>> {
        self.lease_as(wanted, When::Now).await
    }

    /// As [`lease`](Self::lease), for a client that has a message to send: the context may be set
    /// together with that.
    ///
    /// Not cancel safe: what was begun is closed.
    ///
    /// # Errors
    /// As there.
    pub async fn lease_for_message(self, wanted: &Binding) -> Result<Option<Lease>> {
        self.lease_as(wanted, When::WithTheMessage).await
    }

    /// The connection that was granted, or a new one in its room; and whether it was there before.
    /// None: it had died, or the server lets nobody in for now.
    async fn take_connection(&mut self) -> Result<Option<(Lease, bool)>> {
        let mut lease = Lease {
            pool: self.pool.clone(),
            tenant: self.tenant.clone(),
            held: Held::Nothing,
            busy: false,
        };
        match self.granted.take() {
            Some(Granted::Ready(connection)) => {
                lease.held = Held::Connection(connection);
                let is_good = self.is_good(&mut lease).await;
                return Ok(is_good.then_some((lease, true)));
            }
            Some(Granted::Slot) => lease.held = Held::Slot,
            Some(Granted::Evict { connection, .. }) => {
                lease.held = Held::Slot;
                connection.close(false).await;
            }
            None => return Ok(None),
        }
        let is_in = lease.connect(&self.pool.key, self.worker).await?;
        Ok(is_in.then_some((lease, false)))
    }

    async fn lease_as(mut self, wanted: &Binding, when: When) -> Result<Option<Lease>> {
        let Some((mut lease, mut reused)) = self.take_connection().await? else {
            return Ok(None);
        };
        let deadline = (self.tenant).connect_timeout(&self.pool.instance.timeouts());
        lease.busy = true;
        if lease.is_of_another(&self.tenant) {
            match self.may_be_handed_over(&mut lease, wanted, deadline).await {
                Ok(true) => {}
                Ok(false) => {
                    if !lease.connect(&self.pool.key, self.worker).await? {
                        return Ok(None);
                    }
                    reused = false;
                }
                Err(error) => return Ok(self.give_up(&error)),
            }
        }
        let (route, settings) = (&wanted.route, &wanted.settings);
        match permit_settings(&self.pool, &mut lease, route, settings, deadline).await {
            Ok(()) => {}
            Err(Refusal::Broken(error)) if reused => return Ok(self.give_up(&error)),
            Err(Refusal::Broken(error)) => return Err(error),
            Err(Refusal::Setting(error)) => {
                lease.checkin();
                return Err(error);
            }
        }
        lease.had_by = Some(self.tenant.id.clone());
        // It goes ahead only where a failure would be this client's: what the last one left fails a
        // change that is waited for.
        let ahead = reused
            && when == When::WithTheMessage
            && !context::carries(&lease, &wanted.tenant, &wanted.route, &wanted.settings);
        let reported = ahead
            .then(|| self.pool.profile(&wanted.settings))
            .flatten()
            .map(|(_, reported)| reported);
        // What another client listened to is not this one's.
        let nobody = &mut Buffer::new();
        match context::adopt(&mut lease, wanted, deadline, reported, nobody).await {
            Ok(adopted) => {
                if adopted == Adopted::Scrubbed {
                    lease.tenant.metrics.switches.add(1);
                }
                if adopted != Adopted::AsItWas && lease.switch.is_none() {
                    self.pool
                        .share_parameters(&wanted.settings, &mut lease.parameters);
                }
                Ok(Some(lease))
            }
            // What the last one left undone is not this client's fault; nothing of it was sent.
            Err(Refusal::Broken(error)) if reused => Ok(self.give_up(&error)),
            Err(Refusal::Broken(error)) => Err(error),
            Err(Refusal::Setting(error)) => {
                lease.checkin();
                Err(error)
            }
        }
    }

    /// Whether an idle connection is of use, where the client is. If not, it is to be closed.
    async fn is_good(&self, connection: &mut ServerConnection) -> bool {
        if connection.worker != self.worker {
            self.pool.metrics().moves.add(1);
            if let Err(error) = connection.come_to(self.worker).await {
                tracing::debug!(%error, "a server connection could not be moved");
                return false;
            }
        }
        connection.is_alive() && self.pool.instance.is_current(connection)
    }

    /// A connection is closed that another client had, and cannot be this one's.
    fn give_up(&self, error: &Error) -> Option<Lease> {
        tracing::warn!(tenant = %self.tenant.id, %error, "a server connection could not change hands");
        None
    }

    /// Whether a connection that another tenant had may be this one's. Where it is not known what
    /// stays in it, the server is asked.
    ///
    /// Not cancel safe: the connection must be closed.
    ///
    /// # Errors
    /// 08006: it must be closed.
    async fn may_be_handed_over(
        &self,
        connection: &mut ServerConnection,
        wanted: &Binding,
        deadline: Duration,
    ) -> Result<bool> {
        let leftovers = &self.pool.leftovers;
        let tolerated = &wanted.route.placement.tolerate;
        let now = Instant::now();
        let mut handover = leftovers.judge(tolerated, now);
        if handover == Handover::Unknown {
            context::scrub(connection, deadline).await?;
            self.tenant.metrics.switches.add(1);
            let question = Question {
                libraries: true,
                ..Question::default()
            };
            let answer = ask_in_time(connection, &question, deadline).await?;
            if let Some(found) = leftovers.learn(answer.as_ref(), now) {
                let database = &self.pool.key.database;
                let user = &self.pool.key.login.user;
                tracing::warn!(%database, %user, libraries = found.join(", "),
                    "what these libraries keep stays in server connections: they are ended instead of changing tenants");
            }
            handover = leftovers.judge(tolerated, now);
        }
        if let Handover::Allowed { reseed } = handover {
            connection.reseed = reseed;
        }
        Ok(matches!(handover, Handover::Allowed { .. }))
    }

    /// Makes it a lease of a new connection, on which nothing is set after login: to be had alone,
    /// and never given back. None: the server lets nobody in for now; check out again. `key`: the
    /// pool's, with parameters of the client's own.
    ///
    /// Not cancel safe: what was begun is closed.
    ///
    /// # Errors
    /// 08006 and what the server gave as it refused.
    pub async fn connect(mut self, key: &PoolKey) -> Result<Option<Lease>> {
        let mut lease = Lease {
            pool: self.pool.clone(),
            tenant: self.tenant.clone(),
            held: Held::Slot,
            busy: false,
        };
        match self.granted.take() {
            Some(Granted::Ready(connection) | Granted::Evict { connection, .. }) => {
                connection.close(false).await;
            }
            Some(Granted::Slot) | None => {}
        }
        let is_in = lease.connect(key, self.worker).await?;
        Ok(is_in.then_some(lease))
    }
}

/// When a client's context is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Now,
    /// Before its next message is run.
    WithTheMessage,
}

/// Whether a client that is served at `route` may have these `settings`, where policies may read
/// them. What policies read, the server is asked if that is not known.
///
/// Not cancel safe: the connection must be closed.
///
/// # Errors
/// What the connection is lost by; 42501 for a variable that policies read.
pub async fn permit_settings(
    pool: &Pool,
    connection: &mut ServerConnection,
    route: &Route,
    settings: &Settings,
    deadline: Duration,
) -> Result<(), Refusal> {
    let policies = &pool.policies;
    if !route.policies_matter() {
        return Ok(());
    }
    if policies.must_ask() {
        let question = Question {
            policies: true,
            ..Question::default()
        };
        let asked = ask_in_time(connection, &question, deadline).await;
        let answer = asked.map_err(Refusal::Broken)?;
        let answer = answer.filter(|answer| !answer.unreadable);
        let names = answer.as_ref().map(|answer| &*answer.policy_variables);
        policies.learn(names, Instant::now());
    }
    let placement = &route.placement;
    settings
        .keys()
        .try_for_each(|name| {
            let is_privileged = || placement.privileged.iter().any(|known| **known == *name);
            // What these are set to was looked at before.
            match route.pinned(name).is_some() || is_privileged() {
                true => Ok(()),
                false => check_policies(name, policies, &placement.user_variables),
            }
        })
        .map_err(|offence| Refusal::Setting(offence.into_error()))
}

/// None: the server would not say.
async fn ask_in_time(
    connection: &mut ServerConnection,
    question: &Question,
    deadline: Duration,
) -> Result<Option<Answer>> {
    // A statement_timeout of the last client's, which is discarded, may still end the first.
    for _ in 0..2 {
        let nobodys = &mut Buffer::new();
        let asked = timer::timeout(deadline, residue::ask(connection, question, nobodys)).await;
        let answer = asked.unwrap_or_else(|_| Err(binding::not_set("no answer in time")))?;
        if answer.is_some() {
            return Ok(answer);
        }
    }
    Ok(None)
}

impl Drop for Grant {
    fn drop(&mut self) {
        if let Some(granted) = self.granted.take() {
            let mut queue = self.pool.instance.queue();
            queue.take_back(self.pool.id, granted);
            queue.deactivate(&self.tenant);
        }
    }
}

/// A server connection in use by one client of one tenant.
pub struct Lease {
    pool: Arc<Pool>,
    tenant: Arc<TenantState>,
    held: Held,
    /// Something may be running on it: when it is closed, that is cancelled first.
    pub busy: bool,
}

enum Held {
    /// Room in the budget; the connection is just being made.
    Slot,
    Connection(Box<ServerConnection>),
    /// It was given back.
    Nothing,
}

impl Lease {
    /// Of an idle connection that is as the client needs it.
    pub(super) fn of(
        pool: Arc<Pool>,
        tenant: Arc<TenantState>,
        connection: Box<ServerConnection>,
    ) -> Self {
        Self {
            pool,
            tenant,
            held: Held::Connection(connection),
            busy: true,
        }
    }

    /// Has the server report what changed since it last said that it is ready: an idle session is
    /// not told of a promotion or a reload before it is asked something (ReportChangedGUCOptions in
    /// guc.c). Only at a clean point.
    ///
    /// Not cancel safe: a lease that is left in the middle must be dropped.
    ///
    /// # Errors
    /// 08006: it must be dropped.
    pub async fn ask_what_changed(&mut self) -> Result<()> {
        self.send(SYNC).await?;
        loop {
            let Frame { tag, body } = self.receive().await?;
            match tag {
                BackendTag::READY_FOR_QUERY => return Ok(()),
                BackendTag::PARAMETER_STATUS => self.note_parameter(&body)?,
                BackendTag::ERROR_RESPONSE => {
                    let fields = ErrorFields::read(&body);
                    let error =
                        Error::new(Kind::ConnectionFailure, "the server connection was lost");
                    return Err(error.caused_by(fields.message));
                }
                // Notices, and what the last client listened to.
                _ => {}
            }
        }
    }

    /// Whether the connection that it holds was last used by another than `tenant`.
    fn is_of_another(&self, tenant: &TenantState) -> bool {
        let had_by = self.had_by.as_ref();
        had_by.is_some_and(|had| *had != tenant.id)
    }

    /// Puts a new connection in its slot, or in the place of the one that it holds. False: the
    /// server lets nobody in for now.
    ///
    /// Not cancel safe: what was begun is closed.
    ///
    /// # Errors
    /// 08006 and what the server gave as it refused.
    async fn connect(&mut self, key: &PoolKey, worker: WorkerId) -> Result<bool> {
        if let Held::Connection(old) = std::mem::replace(&mut self.held, Held::Slot) {
            old.close(false).await;
        }
        let deadline = self.tenant.connect_timeout(&self.pool.instance.timeouts());
        match self.pool.connect(key, worker, deadline).await {
            Ok(connection) => {
                self.held = Held::Connection(connection);
                Ok(true)
            }
            Err(error) if self.pool.waits_out(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Gives the connection back. Only at a clean point: nothing owed in either direction, outside
    /// a transaction, no cancel under way.
    pub fn checkin(mut self) {
        let Held::Connection(connection) = std::mem::replace(&mut self.held, Held::Nothing) else {
            return;
        };
        let instance = &self.pool.instance;
        let now = Instant::now();
        let outlived = connection.has_outlived(instance.timeouts().server_lifetime, now);
        let mut queue = instance.queue();
        let unwanted = connection.switch.is_some()
            || outlived
            || queue.is_over()
            || self.pool.is_retired()
            || self.pool.is_outdated(connection.born);
        if unwanted || !instance.is_current(&connection) {
            queue.deactivate(&self.tenant);
            drop(queue);
            instance.close(self.pool.id, connection, false);
        } else {
            let surplus = queue.put_back(self.pool.id, &self.tenant, connection, now);
            let watch = queue.must_be_watched(self.pool.id);
            drop(queue);
            if watch {
                instance.watch_lingering(self.pool.id);
            }
            if let Some(connection) = surplus {
                instance.close(self.pool.id, connection, false);
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let instance = &self.pool.instance;
        match std::mem::replace(&mut self.held, Held::Nothing) {
            Held::Nothing => {}
            Held::Slot => {
                let mut queue = instance.queue();
                queue.deactivate(&self.tenant);
                queue.release(self.pool.id);
            }
            Held::Connection(connection) => {
                instance.queue().deactivate(&self.tenant);
                instance.close(self.pool.id, connection, self.busy);
            }
        }
    }
}

impl Deref for Lease {
    type Target = ServerConnection;

    fn deref(&self) -> &ServerConnection {
        match &self.held {
            Held::Connection(connection) => connection,
            _ => unreachable!("a lease that is handed out holds a connection"),
        }
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut ServerConnection {
        match &mut self.held {
            Held::Connection(connection) => connection,
            _ => unreachable!("a lease that is handed out holds a connection"),
        }
    }
}
