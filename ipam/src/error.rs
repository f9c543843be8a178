//! What can go wrong between a request for an address and its answer.

use std::io;
use std::path::{Path, PathBuf};

use podwire_attach::rules::RulesError;

use crate::{Refusal, Stale};

/// Why an operation on the addresses failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such address to give.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The reservation has been ended or replaced meanwhile.
    #[error(transparent)]
    Stale(#[from] Stale),
    /// Another process is the allocator and does not answer on the socket.
    #[error(
        "the address store {store} is in use by {holder} and no agent answers on {socket}: try again; if it lasts, see \
         what that process waits for",
        store = .store.display(), socket = .socket.display()
    )]
    Busy {
        /// The store.
        store: PathBuf,
        /// The agent's socket.
        socket: PathBuf,
        /// Who has the lock.
        holder: String,
    },
    /// Nothing can be recorded.
    #[error("no room for the address store on the disk of {path}: free some space and try again", path = .path.display())]
    DiskFull {
        /// The store.
        path: PathBuf,
    },
    /// A newer podwire wrote the store.
    #[error(
        "the address store {path} has format {found}, this program knows formats up to {known}: use the podwire that \
         wrote it, or a newer one",
        path = .path.display()
    )]
    NewerSchema {
        /// The store.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest that is known here.
        known: u32,
    },
    /// The store failed.
    #[error("{op} the address store {path}", path = .path.display())]
    Store {
        /// What was to be done.
        op: &'static str,
        /// The store.
        path: PathBuf,
        /// What it said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file could not be used.
    #[error("{op} {path}", path = .path.display())]
    Io {
        /// What was to be done.
        op: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// What the agent says about this node cannot be read.
    #[error("read {path}", path = .path.display())]
    Node {
        /// The file; see [`Dirs::node`](crate::Dirs::node).
        path: PathBuf,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The node's links could not be read or removed.
    #[error("{op}")]
    Kernel {
        /// What for.
        op: String,
        /// What the kernel said.
        source: podwire_kernel::Error,
    },
    /// The node's packet filter could not be changed.
    #[error("{op}")]
    Rules {
        /// What for.
        op: String,
        /// What was in the way.
        source: Box<RulesError>,
    },
    /// The agent answered that it failed.
    #[error("{message}")]
    Agent {
        /// The code of its error, as [`Error::code`] gives it.
        code: String,
        /// Its sentence.
        message: String,
        /// Whether the same request may succeed later.
        retry: bool,
    },
    /// What came over the socket is no message.
    #[error("the agent at {socket} sent {what}", socket = .socket.display())]
    Protocol {
        /// The agent's socket.
        socket: PathBuf,
        /// What it sent.
        what: String,
    },
    /// The two programs have no version of the protocol in common.
    #[error(
        "the agent at {socket} speaks versions {agent_oldest} to {agent_newest} of the protocol, this program \
         {oldest} to {newest}: upgrade the older of the two",
        socket = .socket.display()
    )]
    Versions {
        /// The agent's socket.
        socket: PathBuf,
        /// The oldest that the agent speaks.
        agent_oldest: u32,
        /// The newest that the agent speaks.
        agent_newest: u32,
        /// The oldest that this program speaks.
        oldest: u32,
        /// The newest that this program speaks.
        newest: u32,
    },
    /// The agent went away in the middle of a request, and again at each new try.
    #[error("the agent at {socket} closed the connection: try again", socket = .socket.display())]
    Disconnected {
        /// The agent's socket.
        socket: PathBuf,
    },
    /// The agent did not answer in time.
    #[error("the agent at {socket} did not answer within {seconds} s: try again", socket = .socket.display())]
    Timeout {
        /// The agent's socket.
        socket: PathBuf,
        /// How long was waited.
        seconds: u64,
    },
}

impl Error {
    pub(crate) fn io(op: &'static str, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::DiskFull { path: path.to_owned() }
            }
            _ => Self::Io { op, path: path.to_owned(), source },
        }
    }

    /// An error of the kernel crate with what it was asked for.
    pub fn kernel(op: impl Into<String>, source: podwire_kernel::Error) -> Self {
        Self::Kernel { op: op.into(), source }
    }

    /// The same for an error of the packet filter.
    pub fn rules(op: impl Into<String>, source: RulesError) -> Self {
        Self::Rules { op: op.into(), source: Box::new(source) }
    }

    /// Whether the same request may succeed later with nobody doing anything about it but waiting or making room:
    /// CNI's code 11.
    pub fn retry(&self) -> bool {
        match self {
            Self::Busy { .. }
            | Self::DiskFull { .. }
            | Self::Disconnected { .. }
            | Self::Timeout { .. }
            // The agent writes it again.
            | Self::Node { .. } => true,
            Self::Agent { retry, .. } => *retry,
            Self::Kernel { source, .. } => source.is_busy(),
            Self::Rules { source, .. } => match source.as_ref() {
                RulesError::Unsettled(_) => true,
                RulesError::Kernel(error) => error.is_busy(),
                _ => false,
            },
            Self::Refused(_)
            | Self::Stale(_)
            | Self::NewerSchema { .. }
            | Self::Store { .. }
            | Self::Io { .. }
            | Self::Protocol { .. }
            | Self::Versions { .. } => false,
        }
    }

    /// One word for the kind of error. An error that an agent reports keeps the word it had there.
    pub fn code(&self) -> &str {
        match self {
            Self::Refused(_) => "refused",
            Self::Stale(_) => "stale",
            Self::Busy { .. } => "busy",
            Self::DiskFull { .. } => "disk-full",
            Self::NewerSchema { .. } => "newer-schema",
            Self::Store { .. } => "store",
            Self::Io { .. } => "io",
            Self::Node { .. } => "node",
            Self::Kernel { .. } => "kernel",
            Self::Rules { .. } => "rules",
            Self::Agent { code, .. } => code,
            Self::Protocol { .. } => "protocol",
            Self::Versions { .. } => "versions",
            Self::Disconnected { .. } => "disconnected",
            Self::Timeout { .. } => "timeout",
        }
    }

    /// The sentence and those of its causes, for where one text is all there is.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}
