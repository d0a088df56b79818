use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::admin::testing::{CONFIG, app};
use crate::backend::health::Report;

async fn ask(address: std::net::SocketAddr, method: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

fn serve_http(app: &Arc<App>) -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    start(app, listener, &Handle::current()).unwrap();
    address
}

fn set_health(app: &App, server: &str, state: State) {
    let instances = app.instances();
    instances.get(server).unwrap().health.set(Report {
        state,
        ..Report::default()
    });
}

#[tokio::test]
async fn each_path_answers_for_itself_and_others_are_not_found() {
    let app = app(CONFIG, None);
    let address = serve_http(&app);
    assert_eq!(ask(address, "GET", "/healthz").await, (200, "ok\n".into()));
    assert_eq!(ask(address, "HEAD", "/healthz").await, (200, String::new()));
    assert_eq!(ask(address, "GET", "/").await.0, 404);
    assert_eq!(ask(address, "GET", "/metrics/").await.0, 404);
    assert_eq!(ask(address, "POST", "/metrics").await.0, 405);
    let (status, body) = ask(address, "GET", "/metrics?x=1").await;
    assert_eq!(status, 200);
    assert!(body.ends_with("# EOF\n"));
}

#[tokio::test]
async fn it_is_ready_unless_every_known_server_is_down_or_it_stops() {
    let app = app(CONFIG, None);
    let address = serve_http(&app);
    let expect = async |status| {
        let (found, reason) = ask(address, "GET", "/readyz").await;
        assert_eq!(found, status, "{reason}");
        assert_eq!(reason.lines().count(), 1);
    };
    expect(200).await;
    set_health(&app, "main", State::Down);
    expect(503).await;
    set_health(&app, "other", State::Up);
    expect(200).await;
    set_health(&app, "other", State::Down);
    expect(503).await;
    set_health(&app, "main", State::Up);
    expect(200).await;
    app.drain();
    expect(503).await;
    assert_eq!(ask(address, "GET", "/healthz").await.0, 200);
}

#[tokio::test]
async fn who_says_nothing_makes_way_for_who_asks() {
    let app = app(CONFIG, None);
    let address = serve_http(&app);
    let mut silent = Vec::new();
    for number in 0..1000 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // Some have begun to say something.
        let begin: &[u8] = if number % 2 == 0 {
            b""
        } else {
            b"GET /healthz HT"
        };
        stream.write_all(begin).await.unwrap();
        silent.push(stream);
        if number % 100 == 99 {
            let asked = std::time::Instant::now();
            assert_eq!(ask(address, "GET", "/healthz").await.0, 200);
            assert!(asked.elapsed() < HEADER_DEADLINE / 2);
        }
    }
    // They were closed to make room, and not all of them.
    let mut first = silent.remove(0);
    let mut rest = Vec::new();
    let _ = first.read_to_end(&mut rest).await;
    let mut last = silent.pop().unwrap();
    last.write_all(b"TP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    last.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}
