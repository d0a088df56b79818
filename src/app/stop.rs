//! How the console has the process end, and how a wait of the console is cancelled.

use std::sync::Arc;

use tokio::sync::Notify;

use super::App;
use crate::protocol::startup::{CancelKey, Secret};

/// `SHUTDOWN`: later ones are stronger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// Takes no new clients, and ends when the last has left.
    WaitForClients,
    /// Takes no new clients, lets transactions end, however long they take.
    WaitForServers,
    /// Ends clients wherever they are.
    AtOnce,
}

impl App {
    /// Has the process end. What was asked for before stays where it is stronger.
    pub fn ask_to_stop(&self, how: Stop) {
        self.stop.send_if_modified(|stop| {
            let is_stronger = stop.is_none_or(|stop| stop < how);
            if is_stronger {
                *stop = Some(how);
            }
            is_stronger
        });
    }

    /// Whether the process was asked to end: then no client may log in.
    pub fn is_closing(&self) -> bool {
        self.stop.borrow().is_some()
    }

    /// Ready once the process was asked to end in a way that is stronger than `before`.
    ///
    /// Cancel safe.
    pub async fn asked_to_stop(&self, before: Option<Stop>) -> Stop {
        let mut stop = self.stop.subscribe();
        loop {
            let asked = *stop.borrow_and_update();
            match asked {
                Some(how) if asked > before => return how,
                // The sender lives as long as self.
                _ => _ = stop.changed().await,
            }
        }
    }

    /// Whether a client is logged in.
    pub fn has_clients(&self) -> bool {
        !self.clients.is_empty()
    }

    /// A session of the console that can be cancelled by `key`, for as long as the answer lives.
    pub fn open_console(self: &Arc<Self>, key: &CancelKey) -> OpenConsole {
        let cancelled = Arc::new(Notify::new());
        let console = (key.pid, cancelled.clone());
        self.consoles.insert(key.secret.clone(), console);
        OpenConsole {
            app: self.clone(),
            secret: key.secret.clone(),
            cancelled,
        }
    }

    /// Sessions of the console.
    pub fn open_consoles(&self) -> usize {
        self.consoles.len()
    }

    /// Cancels what a session of the console waits for. False: no session has this key.
    pub fn cancel_console(&self, key: &CancelKey) -> bool {
        let console = self.consoles.get(&key.secret);
        console.is_some_and(|console| {
            let (pid, cancelled) = &*console;
            let is_its = *pid == key.pid;
            if is_its {
                cancelled.notify_waiters();
            }
            is_its
        })
    }
}

/// See [`App::open_console`].
pub struct OpenConsole {
    app: Arc<App>,
    secret: Secret,
    cancelled: Arc<Notify>,
}

impl OpenConsole {
    /// Ready when the user cancels what it waits for from now on.
    ///
    /// Cancel safe.
    pub async fn cancelled(&self) {
        self.cancelled.notified().await;
    }
}

impl Drop for OpenConsole {
    fn drop(&mut self) {
        self.app.consoles.remove(&self.secret);
    }
}
