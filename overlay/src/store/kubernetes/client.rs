//! Requests of the API server, each with a deadline. Who this node is, is read anew when the server does not know it any more.

use std::cell::RefCell;
use std::env;
use std::error::Error;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Bytes;
use hyper::header::{ACCEPT, CONTENT_TYPE};
use hyper::{Request, StatusCode, Uri};
use kube::client::{AuthError, Body};
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::object::Refusal;
use super::record::cut;
use crate::store::Announcement;

/// The largest answer that is read as a whole, in bytes. A page of 500 Nodes has some 5 MiB.
const LARGEST_ANSWER: usize = 64 << 20;

/// The longest text that is taken from others, in characters.
const LONGEST_REASON: usize = 500;

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    /// The server said no.
    #[error("{}", explain(.what, .refusal))]
    Refused {
        /// What was asked for.
        what: What,
        /// Its answer.
        refusal: Refusal,
    },
    /// The answer is larger than anybody expects.
    #[error("{what}: the answer has more than {LARGEST_ANSWER} bytes")]
    TooLarge {
        /// What was asked for.
        what: What,
    },
    /// There is no answer.
    #[error("{what}: {why}")]
    Broken {
        /// What was asked for.
        what: What,
        /// What went wrong.
        why: String,
    },
    /// This node does not know where the server is, or who it is itself.
    #[error("{0}")]
    Unknown(String),
}

impl Failure {
    pub(super) fn broken(what: What, why: impl Into<String>) -> Self {
        Self::Broken { what, why: why.into() }
    }

    /// What the server answered with, as HTTP has it.
    pub(super) fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { refusal, .. } => Some(refusal.code),
            _ => None,
        }
    }
}

/// What is asked for: as Kubernetes' roles have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct What {
    /// The verb.
    pub(super) verb: &'static str,
    /// The resource.
    pub(super) resource: &'static str,
}

impl std::fmt::Display for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)
    }
}

fn explain(what: &What, refusal: &Refusal) -> String {
    let Refusal { code, reason, message } = refusal;
    let said = if message.is_empty() { reason } else { message };
    let What { verb, resource } = what;
    match code {
        401 => format!("{what}: the API server does not know this node's token or certificate (401): {said}"),
        403 => format!(
            "{what}: this node's account may not: give it the verb {verb:?} on {resource} (ClusterRole podwire of \
             conf/kubernetes/podwire.yaml has it); the API server says: {said}"
        ),
        _ => format!("{what}: {said} ({code})"),
    }
}

/// The way to the API server, and who this node is there.
pub(super) struct Access {
    kubeconfig: Option<PathBuf>,
    limit: Duration,
    announcement: watch::Receiver<Announcement>,
    /// Which addresses this node had when the connections that there are were made.
    own: RefCell<Vec<IpAddr>>,
    known: RefCell<Option<Known>>,
}

/// The server, and who this node is there.
#[derive(Clone)]
pub(super) struct Known {
    pub(super) client: Client,
    /// Where it is, for people.
    server: String,
}

/// The answer to a request, while it arrives.
pub(super) struct Answer {
    what: What,
    limit: Duration,
    body: Body,
}

impl Access {
    /// `limit` is how long a request may take to be answered, or to go on being answered.
    pub(super) fn new(
        kubeconfig: Option<PathBuf>,
        limit: Duration,
        announcement: watch::Receiver<Announcement>,
    ) -> Self {
        Self { kubeconfig, limit, announcement, own: RefCell::default(), known: RefCell::new(None) }
    }

    /// Where the server is said to be.
    pub(super) fn describe(kubeconfig: Option<&PathBuf>) -> String {
        match kubeconfig {
            Some(path) => format!("Kubernetes as in {}", path.display()),
            // What a kubelet says in each container.
            None => match (env::var("KUBERNETES_SERVICE_HOST"), env::var("KUBERNETES_SERVICE_PORT")) {
                (Ok(host), Ok(port)) if host.contains(':') => {
                    format!("Kubernetes at https://[{host}]:{port}")
                }
                (Ok(host), Ok(port)) => format!("Kubernetes at https://{host}:{port}"),
                _ => "Kubernetes".to_owned(),
            },
        }
    }

    /// The client, made anew if there is none.
    pub(super) async fn client(&self) -> Result<Client, Failure> {
        Ok(self.known().await?.client)
    }

    async fn known(&self) -> Result<Known, Failure> {
        let own = self.announcement.borrow().addresses.clone();
        let before = self.own.replace(own.clone());
        if before != own && !before.is_empty() {
            self.forget();
        }
        if let Some(known) = self.known.borrow().as_ref() {
            return Ok(known.clone());
        }
        let (kubeconfig, limit) = (self.kubeconfig.clone(), self.limit);
        // It reads files, and a kubeconfig may name a program that has to be waited for.
        let making = spawn_blocking(move || Handle::current().block_on(connect(kubeconfig, limit)));
        let known = match timeout(self.limit * 3, making).await {
            Ok(Ok(made)) => made?,
            Ok(Err(_)) => return Err(Failure::Unknown("the part that reads credentials failed".to_owned())),
            Err(_) => {
                let seconds = (self.limit * 3).as_secs();
                return Err(Failure::Unknown(format!("credentials: nothing came within {seconds} s")));
            }
        };
        *self.known.borrow_mut() = Some(known.clone());
        Ok(known)
    }

    /// Waits until this node has other addresses than it has now. Connections from those that it had may hang until they run out
    /// of time.
    pub(super) async fn moved(&self) {
        let mut announcement = self.announcement.clone();
        let mut own = announcement.borrow_and_update().addresses.clone();
        while announcement.changed().await.is_ok() {
            let new = announcement.borrow_and_update().addresses.clone();
            if new != own && !own.is_empty() {
                return;
            }
            own = new;
        }
        // The agent ends.
        std::future::pending().await
    }

    /// Asks for something, and waits for the answer to begin.
    ///
    /// # Errors
    /// There is none, or the server says no. One that does not know this node makes it read its credentials anew.
    pub(super) async fn get(&self, what: What, path: &str) -> Result<Answer, Failure> {
        self.send(what, Request::get(path).header(ACCEPT, "application/json"), Vec::new()).await
    }

    /// Changes something, and reads what it is then.
    ///
    /// # Errors
    /// See [`Access::get`].
    pub(super) async fn patch(
        &self,
        what: What,
        path: &str,
        kind: &'static str,
        patch: &serde_json::Value,
    ) -> Result<Vec<u8>, Failure> {
        let request = Request::patch(path).header(ACCEPT, "application/json").header(CONTENT_TYPE, kind);
        self.send(what, request, patch.to_string().into_bytes()).await?.whole().await
    }

    async fn send(
        &self,
        what: What,
        request: hyper::http::request::Builder,
        body: Vec<u8>,
    ) -> Result<Answer, Failure> {
        let Known { client, server } = self.known().await?;
        let request = request
            .body(Body::from(body))
            .map_err(|error| Failure::broken(what, format!("it cannot be asked: {error}")))?;
        let sent = tokio::select! {
            sent = timeout(self.limit, client.send(request)) => sent,
            () = self.moved() => {
                return Err(Failure::broken(what, format!("{server}: this node has other addresses now")));
            }
        };
        let response = match sent {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                return Err(Failure::broken(what, format!("{server}: {}", self.failed(&error))));
            }
            Err(_) => return Err(Failure::broken(what, format!("{server}: {}", late(self.limit)))),
        };
        let status = response.status();
        let answer = Answer { what, limit: self.limit, body: response.into_body() };
        if status.is_success() {
            return Ok(answer);
        }
        if status == StatusCode::UNAUTHORIZED {
            self.forget();
        }
        let said = answer.whole().await.ok().and_then(|said| serde_json::from_slice::<Refusal>(&said).ok());
        let said = said.unwrap_or_else(|| Refusal {
            reason: status.canonical_reason().unwrap_or("it says no").to_owned(),
            ..Refusal::default()
        });
        let message = cut(&said.message, LONGEST_REASON);
        Err(Failure::Refused { what, refusal: Refusal { code: status.as_u16(), message, ..said } })
    }

    /// Takes note of a failure of a request that was made by way of [`Access::client`], and says what it is.
    pub(super) fn failed(&self, error: &kube::Error) -> String {
        let is_unknown = matches!(error, kube::Error::Api(status) if status.code == 401);
        if is_unknown || matches!(error, kube::Error::Auth(_)) {
            self.forget();
        }
        reason(error)
    }

    /// The next request reads the credentials anew.
    fn forget(&self) {
        *self.known.borrow_mut() = None;
    }
}

impl Answer {
    /// What has come next; `None`: that was all. Nothing is lost if it is dropped while it waits.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Some(Err(error)) => return Err(Failure::broken(self.what, reason(&error))),
            }
        }
    }

    /// All of it.
    pub(super) async fn whole(mut self) -> Result<Vec<u8>, Failure> {
        let mut whole = Vec::new();
        loop {
            match timeout(self.limit, self.next()).await {
                Ok(Ok(Some(data))) => whole.extend_from_slice(&data),
                Ok(Ok(None)) => return Ok(whole),
                Ok(Err(failure)) => return Err(failure),
                Err(_) => return Err(Failure::broken(self.what, late(self.limit))),
            }
            if whole.len() > LARGEST_ANSWER {
                return Err(Failure::TooLarge { what: self.what });
            }
        }
    }
}

pub(super) async fn connect(kubeconfig: Option<PathBuf>, limit: Duration) -> Result<Known, Failure> {
    let mut config = match &kubeconfig {
        Some(path) => {
            let unusable = |error: &(dyn Error + 'static)| {
                Failure::Unknown(format!("kubeconfig {} cannot be used: {}", path.display(), reason(error)))
            };
            let read = Kubeconfig::read_from(path).map_err(|error| unusable(&error))?;
            let options = KubeConfigOptions::default();
            Config::from_custom_kubeconfig(read, &options).await.map_err(|error| unusable(&error))?
        }
        None => Config::incluster().map_err(|error| {
            Failure::Unknown(format!(
                "this is no pod with a service account ({}), and no cluster.kubernetes.kubeconfig is given",
                reason(&error)
            ))
        })?,
    };
    config.connect_timeout = Some(limit);
    config.write_timeout = Some(limit);
    // Watches are silent for long; what waits has deadlines of its own, and tries again by itself.
    config.read_timeout = None;
    config.default_retry = false;
    let server = shown(&config.cluster_url);
    match Client::try_from(config) {
        Ok(client) => Ok(Known { client, server }),
        Err(error) => Err(Failure::Unknown(format!("{server}: {}", reason(&error)))),
    }
}

/// An address without a user and a password, which it could have.
fn shown(url: &Uri) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{}{port}", url.scheme_str().unwrap_or("https"), url.host().unwrap_or_default())
}

fn late(limit: Duration) -> String {
    format!("no answer within {} ms", limit.as_millis())
}

/// What an error says, with its causes. Never what could be a part of a credential: the output of a program that makes them, or
/// the line of a file that has them.
fn reason(error: &(dyn Error + 'static)) -> String {
    let secret = causes(error).find_map(|error| match (error.downcast_ref(), error.downcast_ref()) {
        (Some(AuthError::AuthExecRun { cmd, out }), _) => Some(format!("{cmd} failed: {}", out.status)),
        (Some(AuthError::AuthExecParse(_)), _) => Some("what it prints is no credential".to_owned()),
        (_, Some(KubeconfigError::Parse(_))) => Some("it is no kubeconfig, which is YAML".to_owned()),
        _ => None,
    });
    if let Some(secret) = secret {
        return format!("the credentials of this node: {secret}");
    }
    // kube's own words for a request that failed say no more than that.
    let is_plain = |error: &&(dyn Error + 'static)| {
        !matches!(error.downcast_ref(), Some(kube::Error::Service(_) | kube::Error::HyperError(_)))
    };
    let mut text = String::new();
    for error in causes(error).filter(is_plain) {
        let more = error.to_string();
        if text.is_empty() {
            text = more;
        } else if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
    }
    cut(&text, LONGEST_REASON)
}

/// An error, and what it came from.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{ExitStatus, Output};

    use super::*;

    #[test]
    fn what_is_refused_names_what_is_missing() {
        let forbidden: Refusal = serde_json::from_str(include_str!(
            "../../../../netns-tests/tests/kubernetes-1.36/error-403-anonymous.json"
        ))
        .unwrap();
        let what = What { verb: "list", resource: "nodes" };
        let text = Failure::Refused { what, refusal: forbidden }.to_string();
        assert!(
            text.starts_with("list nodes: this node's account may not: give it the verb \"list\" on nodes"),
            "{text}"
        );
        assert!(
            text.ends_with("cannot list resource \"nodes\" in API group \"\" at the cluster scope"),
            "{text}"
        );
        let unknown: Refusal = serde_json::from_str(include_str!(
            "../../../../netns-tests/tests/kubernetes-1.36/error-401.json"
        ))
        .unwrap();
        let text = Failure::Refused { what, refusal: unknown }.to_string();
        assert_eq!(
            text,
            "list nodes: the API server does not know this node's token or certificate (401): Unauthorized"
        );
    }

    #[test]
    fn credentials_are_never_told() {
        let out = Output { status: ExitStatus::from_raw(256), stdout: b"hunter2".into(), stderr: Vec::new() };
        let error = AuthError::AuthExecRun { cmd: "login".to_owned(), out: Box::new(out) };
        let text = reason(&kube::Error::Auth(error));
        assert_eq!(text, "the credentials of this node: login failed: exit status: 1");
        let url: Uri = "https://admin:hunter2@[fd00::1]:6443/x".parse().unwrap();
        assert_eq!(shown(&url), "https://[fd00::1]:6443");

        for text in
            ["users: [{user: {token: hunter2", "users:\n- user: {token: [hunter2]}\n", "hunter2", "\thunter2"]
        {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            if let Err(error) = Kubeconfig::read_from(file.path()) {
                assert!(!reason(&error).contains("hunter2"), "{text}: {}", reason(&error));
            }
        }
    }
}
