//! Plays a plan: on a thread of its own, which has a kernel of its own.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use pgtenant::app::{App, Scope};
use pgtenant::backend::dns::Resolver;
use pgtenant::id::TenantId;
use tokio::runtime::{Builder, Handle};
use tokio::sync::{Notify, mpsc};

use crate::configs;
use crate::kernel;
use crate::plan::Plan;
use crate::world::{Control, Statistics, World};

/// How long a plan may take that takes milliseconds: a task of the proxy that never waits keeps the
/// clock from going on.
const PATIENCE: Duration = Duration::from_secs(20);

/// What came of a plan.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub failure: Option<String>,
    /// A hash of all that happened.
    pub trace: u64,
    pub told: Vec<String>,
    pub statistics: Statistics,
}

/// Plays a plan. `verbose`: it is told what happened.
pub fn play(plan: &Plan, verbose: bool) -> Outcome {
    let plan = plan.clone();
    // Nothing that takes of the thread's random numbers goes before its kernel.
    configs::all();
    let thread = std::thread::Builder::new().stack_size(4 << 20);
    let (done, is_done) = std::sync::mpsc::channel();
    let running = thread.spawn(move || {
        let outcome = play_here(plan, verbose);
        // Nobody waits for it any more if it took too long.
        let _ = done.send(outcome);
    });
    let running = running.expect("a thread");
    match is_done.recv_timeout(PATIENCE) {
        Ok(outcome) => outcome,
        Err(RecvTimeoutError::Timeout) => failed("the proxy goes round in circles".to_owned()),
        Err(RecvTimeoutError::Disconnected) => {
            let panic = running.join().err();
            let text = panic
                .as_ref()
                .and_then(|panic| panic.downcast_ref::<String>().cloned());
            let word = panic
                .as_ref()
                .and_then(|panic| panic.downcast_ref::<&str>());
            let text = text.or_else(|| word.map(|word| (*word).to_owned()));
            failed(format!("panic: {}", text.unwrap_or_default()))
        }
    }
}

fn failed(why: String) -> Outcome {
    Outcome {
        failure: Some(why),
        trace: 0,
        told: Vec::new(),
        statistics: Statistics::default(),
    }
}

fn play_here(plan: Plan, verbose: bool) -> Outcome {
    let configs = configs::all();
    let _kernel = kernel::install(plan.seed);
    let runtime = Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .expect("a runtime");
    let world = runtime.block_on(async {
        let config = configs[plan.config].clone();
        let app = App::new(config, None, vec![Handle::current()], Resolver::default());
        let app = app.unwrap_or_else(|error| panic!("{error}"));
        pgtenant::server::serve(&app).expect("a port");
        let (control, controls) = mpsc::unbounded_channel();
        let done = Arc::new(Notify::new());
        let world = World::new(plan, app.clone(), control, done.clone(), verbose);
        let world = Rc::new(RefCell::new(world));
        tokio::spawn(obey(app, controls, done.clone()));
        kernel::set_outside(Some(world.clone()));
        done.notified().await;
        kernel::set_outside(None);
        world
    });
    drop(runtime);
    let Ok(world) = Rc::try_unwrap(world) else {
        panic!("nobody else has the world");
    };
    let mut world = world.into_inner();
    let left = kernel::with(|kernel| kernel.open_sockets());
    if left > 0 && world.failure.is_none() {
        world.failure = Some(format!("{left} sockets are open after the end"));
    }
    Outcome {
        failure: world.failure.take(),
        trace: world.trace,
        told: world.told.take().unwrap_or_default(),
        statistics: world.statistics,
    }
}

async fn obey(app: Arc<App>, mut controls: mpsc::UnboundedReceiver<Control>, done: Arc<Notify>) {
    while let Some(control) = controls.recv().await {
        match control {
            Control::Reload(config) => drop(app.reload(configs::all()[config].clone())),
            Control::Pause(tenant) => {
                let tenant = TenantId::new(&format!("t{tenant}")).expect("a name");
                app.pause(Scope::Tenant(tenant));
            }
            Control::Resume => drop(app.resume(&Scope::All)),
            Control::Drain => app.drain(),
            Control::Kill => app.kill_clients(),
            Control::Close => {
                app.drain();
                app.close_servers().await;
                done.notify_one();
            }
        }
    }
}
