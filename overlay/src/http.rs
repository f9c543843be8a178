//! The agent's HTTP server, on the control socket and on the telemetry address.
//!
//! It is small on purpose: one request for each connection, a few connections at once, and a limit on everything that a
//! client could make large or slow.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::spawn_local;
use tokio::time::timeout;

use crate::status::ActionAnswer;

/// The control socket's name in the run directory.
pub const SOCKET: &str = "podwired.sock";

/// How many clients are served at once; more wait in the socket's queue.
const CLIENTS: usize = 32;

/// How long a client may take to say what it wants.
const HEADERS_WITHIN: Duration = Duration::from_secs(5);

/// How long one connection may last: an action may wait for the cluster's store.
const CONNECTION_WITHIN: Duration = Duration::from_secs(60);

/// How large a request's headers may be together, in bytes.
const LARGEST_HEAD: usize = 16 * 1024;

/// How large a request's body may be, in bytes: a cluster's configuration has some hundreds.
const LARGEST_BODY: usize = 64 * 1024;

/// A request as a [`Handler`] sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `GET` and the like.
    pub method: Method,
    /// The path, without the query.
    pub path: String,
    /// What stands behind the `?`, as it was sent; empty without one.
    pub query: String,
    /// The body.
    pub body: Bytes,
}

/// What it is answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// The type of the body.
    pub content_type: &'static str,
    /// The body.
    pub body: Vec<u8>,
}

impl Reply {
    /// Lines for people.
    pub fn text(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", body: text.into().into_bytes() }
    }

    /// A value for programs.
    pub fn json(status: StatusCode, value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => Self { status, content_type: "application/json", body },
            Err(error) => Self::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }

    /// Why there is no answer.
    pub fn error(status: StatusCode, error: impl Into<String>) -> Self {
        Self::json(status, &ActionAnswer { error: Some(error.into()), message: None })
    }

    /// There is nothing at that path.
    pub fn not_found(request: &Request) -> Self {
        Self::error(StatusCode::NOT_FOUND, format!("there is nothing at {}", request.path))
    }

    /// There is, and it is asked for in another way.
    pub fn wrong_method(request: &Request, right: &Method) -> Self {
        let what = format!("{} takes {right}, not {}", request.path, request.method);
        Self::error(StatusCode::METHOD_NOT_ALLOWED, what)
    }
}

/// Answers requests, on the runtime's one thread.
pub trait Handler {
    /// Answers one.
    fn handle(self: Rc<Self>, request: Request) -> Pin<Box<dyn Future<Output = Reply>>>;
}

/// Serves root, and whom the agent itself runs as, on a Unix socket, until it is dropped. Inside a `LocalSet`.
pub async fn serve_unix(listener: UnixListener, handler: Rc<dyn Handler>) {
    let clients = Arc::new(Semaphore::new(CLIENTS));
    loop {
        // The place first. It is never closed.
        let place = Arc::clone(&clients).acquire_owned().await.ok();
        match listener.accept().await {
            Ok((stream, _)) if is_allowed(&stream) => {
                let handler = Rc::clone(&handler);
                spawn_local(async move {
                    let _place = place;
                    client(stream, handler, HEADERS_WITHIN).await;
                });
            }
            Ok(_) => {}
            Err(error) => refused(&error).await,
        }
    }
}

/// Whether a client of one of the agent's sockets is root, or whom the agent itself runs as. The socket's mode keeps
/// others out; this also tells of it if the mode is changed.
pub fn is_allowed(stream: &UnixStream) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == 0 || peer.uid() == own => true,
        Ok(peer) => {
            tracing::warn!(uid = peer.uid(), "turned a client away: it is not root");
            false
        }
        Err(error) => {
            tracing::warn!(%error, "turned a client away: it does not say who it is");
            false
        }
    }
}

/// Serves whoever comes to a TCP address, until it is dropped. Inside a `LocalSet`.
pub async fn serve_tcp(listener: TcpListener, handler: Rc<dyn Handler>) {
    serve_tcp_within(listener, handler, HEADERS_WITHIN).await;
}

async fn serve_tcp_within(listener: TcpListener, handler: Rc<dyn Handler>, patience: Duration) {
    let clients = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let place = Arc::clone(&clients).acquire_owned().await.ok();
        match listener.accept().await {
            Ok((stream, _)) => {
                let handler = Rc::clone(&handler);
                spawn_local(async move {
                    let _place = place;
                    client(stream, handler, patience).await;
                });
            }
            Err(error) => refused(&error).await,
        }
    }
}

/// No file is free, perhaps: trying again at once would take the processor.
async fn refused(error: &io::Error) {
    tracing::warn!(%error, "cannot accept an HTTP client");
    tokio::time::sleep(Duration::from_millis(50)).await;
}

async fn client(stream: impl AsyncRead + AsyncWrite + Unpin, handler: Rc<dyn Handler>, patience: Duration) {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let handler = Rc::clone(&handler);
        async move {
            let reply = match read(request, patience).await {
                Ok(request) => handler.handle(request).await,
                Err(refusal) => refusal,
            };
            let mut response = Response::new(Full::new(Bytes::from(reply.body)));
            *response.status_mut() = reply.status;
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(reply.content_type));
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .max_buf_size(LARGEST_HEAD)
        .max_headers(64)
        .keep_alive(false)
        .half_close(false)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(CONNECTION_WITHIN, connection).await {
        Ok(Ok(())) => {}
        // Clients may be anything.
        Ok(Err(error)) => tracing::debug!(%error, "an HTTP client did not come to its end"),
        Err(_) => tracing::debug!("an HTTP client took too long"),
    }
}

async fn read(request: hyper::Request<Incoming>, patience: Duration) -> Result<Request, Reply> {
    let (head, body) = request.into_parts();
    let body = match timeout(patience, Limited::new(body, LARGEST_BODY).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => {
            let what = format!("the request's body does not end within {LARGEST_BODY} bytes");
            return Err(Reply::error(StatusCode::PAYLOAD_TOO_LARGE, what));
        }
        Err(_) => return Err(Reply::error(StatusCode::REQUEST_TIMEOUT, "the request's body did not come")),
    };
    Ok(Request {
        method: head.method,
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        body,
    })
}

#[cfg(test)]
mod tests;
