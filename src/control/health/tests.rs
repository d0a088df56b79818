use std::path::Path;

use super::*;
use crate::backend::dns::Resolver;
use crate::cluster::{Binaries, Cluster, Options, Shutdown};
use crate::config;

const DEADLINE: Duration = Duration::from_secs(10);

fn config(cluster: &Cluster, admin: &str) -> config::Config {
    let text = format!(
        "servers: {{ main: {{ host: 127.0.0.1, port: {}, max_connections: 5000{admin} }} }}\n\
         placements: {{}}\ntenants: {{}}\n",
        cluster.port()
    );
    config::load_text(&text, Path::new(""), &|_| None).unwrap()
}

fn admin(user: &str, password: &str, database: &str) -> String {
    format!(", admin: {{ user: {user}, password: {password}, database: {database} }}")
}

/// One round as in [`Check::run`].
async fn round(check: &mut Check, instance: &Instance) -> Arc<Report> {
    let answered = check.ask(DEADLINE).await;
    check.report(instance, answered);
    instance.health.report()
}

async fn wait_for(instance: &Instance, state: State) {
    let reached = async {
        while instance.health.report().state != state {
            timer::sleep(Duration::from_millis(20)).await;
        }
    };
    timer::timeout(Duration::from_secs(20), reached)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_server_is_up_while_it_answers_and_down_while_it_does_not() {
    let binaries = Binaries::find().unwrap();
    let cluster = Cluster::start(&binaries, Options::named("health"))
        .await
        .unwrap();
    cluster
        .run("postgres", "CREATE ROLE checker LOGIN PASSWORD 'right'")
        .await
        .unwrap();

    let right = config(&cluster, &admin("checker", "right", "postgres"));
    let app = App::new(
        right,
        None,
        vec![tokio::runtime::Handle::current()],
        Resolver::default(),
    )
    .unwrap();
    let instances = app.instances();
    let instance = instances.values().next().unwrap();
    let server = instance.server();
    let login = server.admin.clone().unwrap();
    let mut check = Check::new(Arc::downgrade(instance), server.clone(), &login);

    let report = round(&mut check, instance).await;
    assert_eq!((report.state, &report.problem), (State::Up, &None));
    assert!(report.version.is_some() && report.capacity > Some(0));
    assert_eq!(check.too_many, report.capacity.map(|c| (5000, c)));
    assert!(!check.oid_warned, "set_config is function 2078");
    let again = round(&mut check, instance).await;
    assert_eq!(report, again);
    let mine = "SELECT 1 / (count(*) = 1)::int FROM pg_stat_activity WHERE usename = 'checker'";
    cluster.run("postgres", mine).await.unwrap();

    cluster.shut_down(Shutdown::Fast).await.unwrap();
    let lost = round(&mut check, instance).await;
    assert_eq!(lost.state, State::Down);
    assert!(lost.problem.is_some() && lost.version == report.version);
    cluster.start_again().await.unwrap();
    let back = round(&mut check, instance).await;
    assert_eq!((back.state, &back.problem), (State::Up, &None));

    // A server that refuses only the check is there for others.
    let nowhere = config(&cluster, &admin("checker", "right", "nowhere"));
    app.reload(nowhere).unwrap();
    let server = instance.server();
    let mut check = Check::new(Arc::downgrade(instance), server, &login);
    let report = round(&mut check, instance).await;
    let problem = report.problem.clone().unwrap_or_default();
    assert_eq!(report.state, State::Up);
    assert!(problem.starts_with("3D000: "), "{problem}");
    cluster.stop().await.unwrap();
    let report = round(&mut check, instance).await;
    assert_eq!(report.state, State::Down);
}

#[tokio::test]
async fn what_is_watched_follows_reloads() {
    let binaries = Binaries::find().unwrap();
    let cluster = Cluster::start(&binaries, Options::named("follows"))
        .await
        .unwrap();
    let with = config(&cluster, &admin("postgres", "any", "postgres"));
    let without = config(&cluster, "");
    let app = App::new(
        without.clone(),
        None,
        vec![tokio::runtime::Handle::current()],
        Resolver::default(),
    )
    .unwrap();
    let watching = tokio::spawn(watch(Arc::downgrade(&app)));
    let instances = app.instances();
    let instance = instances.values().next().unwrap();
    app.reload(with).unwrap();
    wait_for(instance, State::Up).await;
    app.reload(without).unwrap();
    wait_for(instance, State::Unknown).await;
    app.drain();
    timer::timeout(DEADLINE, watching).await.unwrap().unwrap();
    cluster.stop().await.unwrap();
}
