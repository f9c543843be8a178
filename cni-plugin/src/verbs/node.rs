//! What a call reads of the node it runs on, and the lock that says that a bridge is in use.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use podwire_attach::{Attachment, node_id, rules};
use podwire_ipam::NodeConfig;
use podwire_kernel::nft::Nft;
use podwire_kernel::{Netns, NetnsError};

use super::addresses;
use super::wanted::NodeFacts;
use crate::config::{Config, Ipam, parse_resolv_conf};
use crate::protocol::{CniError, Dns, code};
use crate::{Environment, failure};

/// CNI_NETNS, opened, and not the host's own.
///
/// # Errors
/// Code 8 when it is missing, no network namespace, or the host's (unless CNI_NETNS_OVERRIDE allows it).
pub(super) fn open_netns(env: &Environment) -> Result<Netns, CniError> {
    let path = env.netns.as_deref().unwrap_or_default();
    let wrong = |error: NetnsError| {
        CniError::from_cause(code::INVALID_NETNS, &error).context(&format!("CNI_NETNS {path:?}"))
    };
    let netns = Netns::open(path).map_err(wrong)?;
    if !env.netns_override {
        let own = Netns::current().map_err(wrong)?;
        if netns.same_as(&own) {
            let text =
                format!("CNI_NETNS {path:?} is the host's own network namespace; a pod needs one of its own");
            return Err(CniError::new(code::INVALID_NETNS, text));
        }
    }
    Ok(netns)
}

/// What the configuration does not say and the node does.
///
/// # Errors
/// Code 11 when the agent's file about this node cannot be read as one.
pub(super) fn facts(config: &Config) -> Result<NodeFacts, CniError> {
    let agent = NodeConfig::read(&addresses::dirs(config), &config.network.name).map_err(failure::ipam)?;
    Ok(NodeFacts { agent, ..lasting_facts() })
}

/// Of that, what is not the agent's to change while a pod runs.
pub(super) fn lasting_facts() -> NodeFacts {
    NodeFacts { id: node_id(), agent: None }
}

/// The name of the program that called: the runtime. One runtime's GC must not remove another's pods.
pub(super) fn runtime() -> Option<String> {
    let parent = nix::unistd::getppid();
    let name = fs::read_to_string(format!("/proc/{parent}/comm")).ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

/// What of the node's rules for this attachment is not as it should be.
///
/// # Errors
/// When the kernel does not answer.
pub(super) fn rules_drift(attachment: &Attachment) -> Result<Vec<String>, CniError> {
    if !attachment.is_filtered() {
        return Ok(Vec::new());
    }
    let mut nft = Nft::open().map_err(failure::kernel)?;
    let found = rules::check(&mut nft, attachment).map_err(failure::rules)?;
    Ok(found.iter().map(ToString::to_string).collect())
}

/// The name servers of the file that `resolvConf` names.
///
/// # Errors
/// Code 5 when the file cannot be read.
pub(super) fn resolv_conf(config: &Config) -> Result<Dns, CniError> {
    let Ipam::InProcess(ipam) = &config.ipam else { return Ok(Dns::default()) };
    let Some(path) = &ipam.resolv_conf else { return Ok(Dns::default()) };
    let content = fs::read_to_string(path).map_err(|error| {
        CniError::from_cause(code::IO_FAILURE, &error).context(&format!("read resolvConf {}", path.display()))
    })?;
    Ok(parse_resolv_conf(&content))
}

/// Held shared by every ADD from its first look at the bridge until its port is in. Who wants to take a bridge
/// back that it made must hold it alone: the kernel cannot remove a bridge "unless it has a port".
pub(super) struct BridgeUse(Flock<File>);

impl BridgeUse {
    /// Takes the lock shared, waiting for a removal that is under way (a few milliseconds).
    ///
    /// # Errors
    /// Code 5 when the lock file cannot be made or locked.
    pub(super) fn shared(run_dir: &Path) -> Result<Self, CniError> {
        let path = run_dir.join("bridges.lock");
        let failed = |error: &io::Error| {
            CniError::from_cause(code::IO_FAILURE, error).context(&format!("lock {}", path.display()))
        };
        let open = || OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = open().or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                return Err(error);
            }
            fs::DirBuilder::new().recursive(true).mode(0o755).create(run_dir)?;
            open()
        });
        let mut file = file.map_err(|error| failed(&error))?;
        loop {
            match Flock::lock(file, FlockArg::LockShared) {
                Ok(lock) => return Ok(Self(lock)),
                Err((again, Errno::EINTR)) => file = again,
                Err((_, errno)) => return Err(failed(&io::Error::from(errno))),
            }
        }
    }

    /// Whether no other ADD is at work now; then none begins before this lock is dropped.
    pub(super) fn is_alone(&self) -> bool {
        if self.0.relock(FlockArg::LockExclusiveNonblock).is_ok() {
            return true;
        }
        // flock(2): the shared lock is lost by the attempt, and this ADD may go on to try again.
        let _ = self.0.relock(FlockArg::LockShared);
        false
    }
}
