use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use super::*;
use crate::admin::testing::{CONFIG, app, listen};

async fn connect(address: SocketAddr) -> Client {
    let mut config = tokio_postgres::Config::new();
    config
        .host("127.0.0.1")
        .port(address.port())
        .user("admin")
        .password("console-secret")
        .dbname("pgtenant");
    let (client, connection) = config.connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// The fields of an error: SQLSTATE, message, detail, hint.
fn refused(error: &tokio_postgres::Error) -> (String, String, String, String) {
    let error = error.as_db_error().unwrap();
    let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
    (
        error.code().code().to_owned(),
        error.message().to_owned(),
        text(error.detail()),
        text(error.hint()),
    )
}

#[tokio::test]
async fn every_table_is_shown_in_both_protocols() {
    let app = app(CONFIG, None);
    let client = connect(listen(&app).await).await;
    for show in &show::SHOWS {
        let sql = format!("show {};", show.name.to_lowercase());
        let prepared = client.prepare(&sql).await.unwrap();
        let columns: Vec<_> = prepared
            .columns()
            .iter()
            .map(|column| (column.name(), column.type_().clone()))
            .collect();
        let expected: Vec<_> = show
            .columns
            .iter()
            .map(|column| match column.kind {
                ColumnKind::Int => (column.name, Type::INT8),
                ColumnKind::Text => (column.name, Type::TEXT),
            })
            .collect();
        assert_eq!(columns, expected, "{sql}");
        let binary = client.query(&prepared, &[]).await.unwrap();
        let text = client.simple_query(&sql).await.unwrap();
        let text = text
            .iter()
            .filter(|message| matches!(message, SimpleQueryMessage::Row(_)));
        assert_eq!(binary.len(), text.count(), "{sql}");
    }
    let rows = client.query("SHOW TENANTS", &[]).await.unwrap();
    let globex = rows.last().unwrap();
    assert_eq!(globex.get::<_, &str>("tenant"), "globex");
    assert_eq!(globex.get::<_, i64>("clients"), 0);
    assert_eq!(globex.get::<_, Option<i64>>("max_clients"), Some(3));
    assert_eq!(globex.get::<_, Option<i64>>("max_active"), None);
}

#[tokio::test]
async fn what_is_no_command_is_a_syntax_error_and_the_session_goes_on() {
    let app = app(CONFIG, None);
    let client = connect(listen(&app).await).await;
    for sql in ["SELECT 1", "SHOW EVERYTHING", "SHOW HELP; SHOW HELP"] {
        for error in [
            client.simple_query(sql).await.unwrap_err(),
            client.query(sql, &[]).await.unwrap_err(),
        ] {
            let (code, _, _, hint) = refused(&error);
            assert_eq!((&*code, &*hint), ("08P01", "Try SHOW HELP."), "{sql}");
        }
    }
    client.batch_execute("").await.unwrap();
    client.batch_execute(" ; ").await.unwrap();
    client.batch_execute("SET TimeZone = 'UTC'").await.unwrap();
    let set = client.execute("SET extra_float_digits TO 3", &[]).await;
    assert_eq!(set.unwrap(), 0);
    let shown = client.query("SHOW client_encoding", &[]).await.unwrap();
    assert_eq!(shown[0].get::<_, &str>("client_encoding"), "UTF8");
    assert!(client.query("", &[]).await.unwrap().is_empty());
    assert_eq!(client.query("SHOW VERSION", &[]).await.unwrap().len(), 1);
}

#[tokio::test]
async fn settings_that_can_be_are_changed_and_others_say_where_they_are() {
    let app = app(CONFIG, None);
    let client = connect(listen(&app).await).await;
    for (set, key, value) in [
        ("query_wait_timeout = 7", "timeouts.checkout", "7s"),
        ("query_wait_timeout = '1.5'", "timeouts.checkout", "1500ms"),
        ("TIMEOUTS.CHECKOUT TO '3m'", "timeouts.checkout", "3m"),
        ("\"server_idle_timeout\" = 60", "timeouts.server_idle", "1m"),
        ("max_client_conn = 321", "limits.clients", "321"),
    ] {
        client.batch_execute(&format!("SET {set};")).await.unwrap();
        let shown = client.query("SHOW CONFIG", &[]).await.unwrap();
        let row = shown.iter().find(|row| row.get::<_, &str>(0) == key);
        assert_eq!(row.unwrap().get::<_, &str>(1), value, "{set}");
    }
    assert_eq!(app.config().limits.clients, 321);
    for (set, code, word) in [
        ("default_pool_size = 3", "55P02", "placements.*.pool.size"),
        ("workers = 3", "55P02", "workers"),
        ("identify.by = 'user'", "55P02", "identify.by"),
        (
            "placements.shared.pool.size = 3",
            "55P02",
            "placements.shared.pool.size",
        ),
        ("nonsense = 3", "42704", "nonsense"),
        ("query_wait_timeout = soon", "22023", "timeouts.checkout"),
        ("query_wait_timeout = 0", "22023", "timeouts.checkout"),
        ("max_client_conn = -1", "22023", "limits.clients"),
    ] {
        let error = client
            .batch_execute(&format!("SET {set}"))
            .await
            .unwrap_err();
        let (found, message, ..) = refused(&error);
        assert_eq!(found, code, "{set}");
        assert!(message.contains(word), "{set}: {message}");
    }
}

#[tokio::test]
async fn a_reload_takes_effect_or_lists_every_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pgtenant.yaml");
    let app = app(CONFIG, Some(file.clone()));
    let client = connect(listen(&app).await).await;

    std::fs::write(&file, format!("workers: 0\nnonsense: 1\n{CONFIG}")).unwrap();
    let (code, _, detail, _) = refused(&client.batch_execute("RELOAD").await.unwrap_err());
    assert_eq!(code, "F0000");
    assert!(detail.contains("workers: must be at least 1"), "{detail}");
    assert!(detail.contains("nonsense"), "{detail}");

    let mut many = CONFIG.to_owned();
    for number in 0..3000 {
        many.push_str(&format!("  t{number}: {{}}\n"));
    }
    std::fs::write(&file, many).unwrap();
    let (_, _, detail, _) = refused(&client.batch_execute("RELOAD").await.unwrap_err());
    assert!(detail.ends_with(" more"), "{detail}");
    assert_eq!(app.config().tenants.len(), 2);

    let more = "  initech: { placement: shared, users: { app: { password: x } } }\n";
    std::fs::write(&file, format!("{CONFIG}{more}")).unwrap();
    let did = client.query("RELOAD", &[]).await.unwrap();
    let did: Vec<[&str; 3]> = did
        .iter()
        .map(|row| [row.get(0), row.get(1), row.get(2)])
        .collect();
    // A second tenant in its placement gives that a reserve.
    let reserve = "placements.shared.pool.reserve";
    assert_eq!(
        did,
        [
            ["changed", "placement", "shared"],
            ["added", "tenant", "initech"],
            ["changed", "setting", reserve]
        ]
    );
    let did = client.query("RELOAD", &[]).await.unwrap();
    assert_eq!(did[0].get::<_, &str>("action"), "unchanged");
    assert_eq!(app.config().tenants.len(), 3);
    let shown = client.query("SHOW TENANTS", &[]).await.unwrap();
    assert_eq!(shown.len(), 3);

    // A user that a reload removed says nothing more.
    let nobody = CONFIG.replace("admin: { password", "root: { password");
    std::fs::write(&file, nobody).unwrap();
    client.execute("RELOAD", &[]).await.unwrap();
    let (code, ..) = refused(&client.simple_query("SHOW HELP").await.unwrap_err());
    assert_eq!(code, "57P01");
}

#[tokio::test]
async fn an_idle_console_is_told_when_the_proxy_stops() {
    let app = app(CONFIG, None);
    let mut stream = TcpStream::connect(listen(&app).await).await.unwrap();
    log_in(&mut stream).await;
    assert_eq!(app.connections(), 1);
    app.drain();
    let mut last = Vec::new();
    stream.read_to_end(&mut last).await.unwrap();
    let last = String::from_utf8_lossy(&last);
    assert!(last.contains("FATAL") && last.contains("57P01"), "{last}");
    timer::timeout(Duration::from_secs(5), async {
        while app.connections() > 0 {
            timer::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn garbage_ends_the_session_with_a_word() {
    let app = app(CONFIG, None);
    let address = listen(&app).await;
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"Q\0\0\0\x03",
        b"P\0\0\0\x07\0\0\xff",
        b"B\0\0\0\x0a\0\0\0\0\xff\xff",
        b"F\0\0\0\x04",
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        log_in(&mut stream).await;
        stream.write_all(garbage).await.unwrap();
        let mut last = Vec::new();
        let _ = stream.read_to_end(&mut last).await;
        let last = String::from_utf8_lossy(&last);
        assert!(last.contains("FATAL") && last.contains("08P01"), "{last}");
    }
}

#[tokio::test]
async fn formats_and_parameters_that_do_not_fit_are_refused() {
    let app = app(CONFIG, None);
    let mut stream = TcpStream::connect(listen(&app).await).await.unwrap();
    log_in(&mut stream).await;
    let parse = frame(b'P', b"\0SHOW HELP\0\0\0");
    let execute = [frame(b'E', b"\0\0\0\0\0"), frame(b'S', b"")].concat();
    for (bind, expected) in [
        (&b"\0\0\0\0\0\0\0\x03\0\0\0\0\0\0"[..], "08P01"),
        (b"\0\0\0\0\0\x01\0\0\0\x01x\0\0", "08P01"),
        (b"\0\0\0\0\0\0\0\x02\0\0\0\x01", "SHOW"),
    ] {
        let messages = [parse.clone(), frame(b'B', bind), execute.clone()].concat();
        stream.write_all(&messages).await.unwrap();
        let answer = until_ready(&mut stream).await;
        assert!(answer.contains(expected), "{answer}");
    }
    // A cursor of two rows at a time.
    let first = [parse, frame(b'B', b"c\0\0\0\0\0\0\0\0")].concat();
    let two = frame(b'E', b"c\0\0\0\0\x02");
    let messages = [first, two.clone(), two, frame(b'S', b"")].concat();
    stream.write_all(&messages).await.unwrap();
    let answer = until_ready(&mut stream).await;
    assert_eq!(answer.matches("s\0\0\0\x04").count(), 2, "{answer}");
}

fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    [&[tag][..], &length, body].concat()
}

async fn until_ready(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    while !answer.ends_with(b"Z\0\0\0\x05I") {
        assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// A login by hand, up to ReadyForQuery.
async fn log_in(stream: &mut TcpStream) {
    use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
    let startup = b"\0\x03\0\0user\0admin\0database\0pgtenant\0\0";
    let length = u32::try_from(startup.len() + 4).unwrap().to_be_bytes();
    stream
        .write_all(&[&length[..], startup].concat())
        .await
        .unwrap();
    let mut scram = ScramSha256::new(b"console-secret", ChannelBinding::unsupported());
    receive(stream).await;
    let first = scram.message();
    let length = u32::try_from(first.len()).unwrap().to_be_bytes();
    let answer = [&b"SCRAM-SHA-256\0"[..], &length, first].concat();
    stream.write_all(&frame(b'p', &answer)).await.unwrap();
    let challenge = receive(stream).await;
    scram.update(&challenge[4..]).unwrap();
    stream
        .write_all(&frame(b'p', scram.message()))
        .await
        .unwrap();
    let welcome = until_ready(stream).await;
    assert!(welcome.contains("server_version"), "{welcome}");
}

/// The body of the next message.
async fn receive(stream: &mut TcpStream) -> Vec<u8> {
    let mut header = [0; 5];
    stream.read_exact(&mut header).await.unwrap();
    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
    let mut body = vec![0; length as usize - 4];
    stream.read_exact(&mut body).await.unwrap();
    body
}
