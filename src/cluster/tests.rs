use super::*;

fn is_running(pid: i32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

#[tokio::test]
async fn a_cluster_answers_restarts_and_leaves_nothing_behind() {
    let binaries = Binaries::find().unwrap();
    let options = Options {
        settings: vec![("work_mem".into(), "7MB".into())],
        hba: vec!["host postgres nobody_at_all 127.0.0.1/32 reject".into()],
        ..Options::named("it's mine")
    };
    let cluster = Cluster::start(&binaries, options).await.unwrap();
    cluster
        .run(
            "postgres",
            "CREATE TABLE kept (n int); INSERT INTO kept VALUES (42)",
        )
        .await
        .unwrap();

    for round in ["first", "restart", "crash", "kill"] {
        match round {
            "restart" => cluster.restart().await.unwrap(),
            "crash" => cluster.crash().await.unwrap(),
            "kill" => {
                cluster.shut_down(Shutdown::Kill).await.unwrap();
                cluster.start_again().await.unwrap();
            }
            _ => {}
        }
        let (client, connection) =
            tokio_postgres::connect(&cluster.superuser_dsn("postgres"), tokio_postgres::NoTls)
                .await
                .unwrap();
        tokio::spawn(connection);
        let row = client
            .query_one(
                "SELECT n, current_setting('work_mem'), current_setting('cluster_name'), inet_server_port() FROM kept",
                &[],
            )
            .await
            .unwrap();
        assert_eq!(row.get::<_, i32>(0), 42, "{round}");
        assert_eq!(row.get::<_, &str>(1), "7MB", "{round}");
        assert_eq!(row.get::<_, &str>(2), "it's mine", "{round}");
        assert_eq!(row.get::<_, i32>(3), i32::from(cluster.port()), "{round}");
    }
    assert!(
        cluster.log().contains("database system is ready"),
        "{}",
        cluster.log()
    );
    assert!(
        cluster.socket_dir().as_os_str().len() < 80,
        "{}",
        cluster.socket_dir().display()
    );

    let (pid, dir) = (cluster.pid().unwrap(), cluster.dir.path().to_owned());
    assert!(is_running(pid) && dir.is_dir());
    cluster.stop().await.unwrap();
    assert!(!is_running(pid) && !dir.exists());
}

#[tokio::test]
async fn a_cluster_can_demand_tls() {
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let options = Options {
        tls: Some(Tls {
            cert: key.cert.pem().into_bytes(),
            key: key.signing_key.serialize_pem().into_bytes(),
            client_ca: None,
        }),
        hba: vec!["hostnossl all all all reject".into()],
        ..Options::named("tls")
    };
    let cluster = Cluster::start(&Binaries::find().unwrap(), options)
        .await
        .unwrap();
    let client = cluster.connect("postgres").await.unwrap();
    let row = client.query_one("SHOW ssl", &[]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0), "on");
    let Err(error) =
        tokio_postgres::connect(&cluster.superuser_dsn("postgres"), tokio_postgres::NoTls).await
    else {
        panic!("plain TCP must be refused");
    };
    assert_eq!(
        error.code().map(tokio_postgres::error::SqlState::code),
        Some("28000"),
        "{error}"
    );
}

#[tokio::test]
async fn a_server_that_does_not_start_says_why() {
    let options = Options {
        settings: vec![("shared_buffers".into(), "none".into())],
        ..Options::default()
    };
    let error = Cluster::start(&Binaries::find().unwrap(), options)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("shared_buffers"), "{error}");
}

#[test]
fn a_process_ends_in_the_order_of_its_signals() {
    const STUBBORN: Ending = &[(Signal::SIGTERM, Duration::from_millis(200))];
    let mut command = dying_with_us("sh".as_ref(), Signal::SIGINT);
    command.args(["-c", "trap '' TERM; while :; do sleep 0.01; done"]);
    let process = Process::start("a stubborn shell", command, STUBBORN).unwrap();
    let pid = process.pid();
    assert!(is_running(pid));
    drop(process);
    assert!(!is_running(pid));
    let Err(error) = Process::start("nothing", Command::new("/nonexistent"), &[]) else {
        panic!("there is no such program");
    };
    assert!(
        error
            .to_string()
            .starts_with("cannot start nothing: /nonexistent"),
        "{error}"
    );
}
