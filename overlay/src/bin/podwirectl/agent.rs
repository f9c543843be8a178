//! Asking the agent, on its control socket.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use podwire_ipam::Dirs;
use podwire_overlay::status::ActionAnswer;
use podwire_overlay::store::Action;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::output::Failure;

/// How long to wait for an answer; the agent waits half a minute for its store.
const DEADLINE: Duration = Duration::from_secs(40);

/// The largest answer: all nodes of the largest cluster, with their records, take some 30 MiB.
const LARGEST: usize = 256 << 20;

/// The agent's control socket.
#[derive(Debug)]
pub(crate) struct Agent {
    socket: PathBuf,
}

/// Why it gave no answer.
#[derive(Debug)]
pub(crate) enum Silence {
    /// There is none.
    Absent(String),
    /// The caller may not ask.
    Denied(String),
    /// It has nothing at that path: it is another version, or has no cluster.
    Unknown(String),
    /// It refuses, or failed.
    Failed(String),
}

impl From<Silence> for Failure {
    fn from(silence: Silence) -> Self {
        match silence {
            Silence::Absent(text) => Self::no_agent(text),
            Silence::Denied(text) | Silence::Unknown(text) | Silence::Failed(text) => Self::new(text),
        }
    }
}

impl Agent {
    pub(crate) fn of(dirs: &Dirs) -> Self {
        Self { socket: dirs.run.join("podwired.sock") }
    }

    /// What it says at a path.
    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Silence> {
        self.ask(Method::GET, path, Vec::new())
    }

    /// Has it do something; what it did.
    pub(crate) fn act(&self, action: &Action) -> Result<String, Silence> {
        let body = serde_json::to_vec(action).map_err(|error| Silence::Failed(error.to_string()))?;
        let answer: ActionAnswer = self.ask(Method::POST, "/v1/actions", body)?;
        Ok(answer.message.unwrap_or_else(|| "done".to_owned()))
    }

    /// Has it read its configuration again.
    pub(crate) fn reload(&self) -> Result<(), Silence> {
        self.ask::<ActionAnswer>(Method::POST, "/v1/reload", Vec::new()).map(drop)
    }

    fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Vec<u8>) -> Result<T, Silence> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Silence::Failed(format!("cannot start: {error}")))?;
        let answer = runtime.block_on(async {
            tokio::time::timeout(DEADLINE, self.exchange(method, path, body)).await.unwrap_or_else(|_| {
                Err(Silence::Absent(format!("the agent did not answer within {} s", DEADLINE.as_secs())))
            })
        });
        let (status, body) = answer?;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|error| {
                Silence::Failed(format!(
                    "the agent's answer is not understood ({error}): is it of another version?"
                ))
            });
        }
        let said = serde_json::from_slice::<ActionAnswer>(&body).ok().and_then(|answer| answer.error);
        let said = said.unwrap_or_else(|| format!("the agent answered {status}"));
        Err(if status == StatusCode::NOT_FOUND { Silence::Unknown(said) } else { Silence::Failed(said) })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Bytes), Silence> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.silence(&error))?;
        let broken =
            |error: hyper::Error| Silence::Absent(format!("the agent broke off its answer: {error}"));
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "podwired")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| Silence::Failed(format!("{path:?} cannot be asked for: {error}")))?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(broken)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), LARGEST).collect().await;
            let body =
                body.map_err(|error| Silence::Absent(format!("the agent broke off its answer: {error}")))?;
            Ok((status, body.to_bytes()))
        };
        tokio::pin!(exchange, connection);
        tokio::select! {
            answer = &mut exchange => answer,
            // What it sent may still have to be read.
            ended = &mut connection => match ended {
                Ok(()) => exchange.await,
                Err(error) => Err(broken(error)),
            },
        }
    }

    fn silence(&self, error: &io::Error) -> Silence {
        let socket = self.socket.display();
        match error.kind() {
            io::ErrorKind::PermissionDenied => {
                Silence::Denied(format!("{socket} is for root alone: run podwirectl as root"))
            }
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Silence::Absent(format!(
                "the agent does not run (nobody listens on {socket}): start podwired; `podwirectl doctor`, `explain` and \
                 `pods` work without it"
            )),
            _ => Silence::Absent(format!("cannot ask the agent on {socket}: {error}")),
        }
    }
}
