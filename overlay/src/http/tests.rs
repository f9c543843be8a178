use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::LocalSet;

/// Says what it was asked.
struct Echo;

impl Handler for Echo {
    fn handle(self: Rc<Self>, request: Request) -> Pin<Box<dyn Future<Output = Reply>>> {
        Box::pin(async move {
            let Request { method, path, query, body } = request;
            Reply::text(StatusCode::OK, format!("{method} {path} {query} {}", body.len()))
        })
    }
}

/// Runs `client` beside a server on an address of its own.
fn with_server<T>(client: impl AsyncFnOnce(std::net::SocketAddr) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = spawn_local(serve_tcp(listener, Rc::new(Echo)));
        let result = client(address).await;
        server.abort();
        result
    })
}

async fn ask(address: std::net::SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The server may answer and close before it has read all.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn a_request_is_answered_and_its_connection_closed() {
    let answer = with_server(async |address| {
        ask(address, b"POST /a?b=c HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc").await
    });
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("POST /a b=c 3"), "{answer}");
}

#[test]
fn what_is_too_large_or_no_http_is_refused() {
    with_server(async |address| {
        let large = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(LARGEST_HEAD));
        let mut many = "GET / HTTP/1.1\r\n".to_owned();
        (0..100).for_each(|n| many.push_str(&format!("X-{n}: 1\r\n")));
        many.push_str("\r\n");
        for request in [large.as_str(), &many, "what is this\r\n\r\n", "\u{0}\u{0}"] {
            let answer = ask(address, format!("{request}\r\n\r\n").as_bytes()).await;
            assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
        let mut body = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", LARGEST_BODY + 1);
        body.push_str(&"b".repeat(LARGEST_BODY + 1));
        let answer = ask(address, body.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 413") || answer.is_empty(), "{answer}");
        // And the next one is served.
        assert!(ask(address, b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n").await.contains("GET /next"));
    });
}

#[tokio::test]
async fn silent_clients_do_not_keep_others_out() {
    LocalSet::new()
        .run_until(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            spawn_local(serve_tcp_within(listener, Rc::new(Echo), Duration::from_millis(50)));
            let mut silent = Vec::new();
            for _ in 0..CLIENTS + 5 {
                silent.push(TcpStream::connect(address).await.unwrap());
            }
            let answer = ask(address, b"GET /late HTTP/1.1\r\nHost: x\r\n\r\n").await;
            assert!(answer.contains("GET /late"), "{answer}");
        })
        .await;
}

#[tokio::test]
async fn root_is_served_on_the_control_socket() {
    LocalSet::new()
        .run_until(async {
            let root = tempfile::tempdir().unwrap();
            let path = root.path().join("control.sock");
            let listener = UnixListener::bind(&path).unwrap();
            spawn_local(serve_unix(listener, Rc::new(Echo)));
            let mut stream = UnixStream::connect(&path).await.unwrap();
            stream.write_all(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.ends_with("GET /v1/status  0"), "{answer}");
        })
        .await;
}

#[test]
fn errors_are_json_that_says_why() {
    let request = Request {
        method: Method::POST,
        path: "/v1/nodes".to_owned(),
        query: String::new(),
        body: Bytes::new(),
    };
    let reply = Reply::wrong_method(&request, &Method::GET);
    let answer: ActionAnswer = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(answer.error.as_deref(), Some("/v1/nodes takes GET, not POST"));
    assert_eq!(Reply::not_found(&request).status, StatusCode::NOT_FOUND);
}
