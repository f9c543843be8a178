//! The tuning plugin: sysctls and link settings of an interface that an earlier plugin of the chain made.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;

use podwire_attach::Tuning;
use podwire_attach::tuning::{observe_tuning, tune, tuning_drift};
use podwire_kernel::link::LinkRef;
use podwire_kernel::{MacAddr, Netlink, Netns};
use serde::{Deserialize, Serialize};

use super::node::open_netns;
use crate::config::{AllowList, TuningConfig, TuningSettings};
use crate::failure;
use crate::protocol::{CniError, Environment, Verb, code};

/// Serves one call of any verb but VERSION; the text, if any, belongs on standard output.
///
/// # Errors
/// Code 8 if CNI_NETNS is no network namespace or the host's own; 115 if the kernel refuses a setting; 116 if the
/// node does not allow a sysctl; 117 if the interface is not there; 101 if CHECK finds a difference; and those of the
/// configuration. DEL says on standard error what it could not put back.
pub fn run(env: &Environment, stdin: &[u8]) -> Result<Option<String>, CniError> {
    let config = TuningConfig::parse(stdin, env)?;
    match env.verb {
        Verb::Add => add(env, config).map(Some),
        Verb::Check => check(env, &config).map(|()| None),
        Verb::Del => {
            delete(env, &config);
            Ok(None)
        }
        // What is kept between calls goes with DEL or with the next boot, and does not say of which network it is.
        Verb::Gc | Verb::Status | Verb::Version => Ok(None),
    }
}

/// Whether the node allows the sysctls of these settings.
///
/// # Errors
/// Code 116: one of them is not on the list, or the list cannot be read.
pub(super) fn check_allowed(settings: &TuningSettings) -> Result<(), CniError> {
    if settings.sysctls.is_empty() {
        return Ok(());
    }
    match fs::read_to_string(AllowList::PATH) {
        Ok(content) => settings.check_allowed(&AllowList::parse(&content)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(CniError::from_cause(code::SYSCTL_FORBIDDEN, &error)
            .context(&format!("read the list of allowed sysctls {}", AllowList::PATH))),
    }
}

fn add(env: &Environment, config: TuningConfig) -> Result<String, CniError> {
    check_allowed(&config.settings)?;
    let mut result = config.prev_result.clone();
    let wanted = config.settings.of_given_interface();
    result.retune(&env.ifname, &wanted);
    // A result that this version cannot express must not leave anything changed.
    let answer = result.to_json(config.network.version)?;
    let mut pod = Pod::open(env)?;
    let is = pod.observe(&wanted)?;
    let former = Former::of(&wanted, &is, Backup::of(env, &config).read());
    // Before the change, so that a DEL after a crash knows what was.
    Backup::of(env, &config).write(&former)?;
    tune(&pod.netns, &mut pod.inside, &env.ifname, &wanted).map_err(failure::tuning)?;
    Ok(answer)
}

fn check(env: &Environment, config: &TuningConfig) -> Result<(), CniError> {
    let wanted = config.settings.of_given_interface();
    let is = Pod::open(env)?.observe(&wanted)?;
    let differences: Vec<String> =
        tuning_drift(&wanted, &is, &env.ifname).iter().map(ToString::to_string).collect();
    if differences.is_empty() {
        return Ok(());
    }
    let text = format!("{} of container {} is not as ADD left it", env.ifname, env.container);
    Err(CniError::new(code::CHECK_FAILED, text).with_details(differences.join("; ")))
}

/// Puts back what was, as far as the interface is still there. In a chain it is about to be removed, so nothing of
/// this is worth keeping a pod from ending.
fn delete(env: &Environment, config: &TuningConfig) {
    let backup = Backup::of(env, config);
    let Some(former) = backup.read() else { return };
    if let Err(error) = put_back(env, &former) {
        super::say(&format!("{} of container {} keeps its settings: {error}", env.ifname, env.container));
    }
    if let Err(error) = fs::remove_file(&backup.file) {
        super::say(&format!("remove {}: {error}", backup.file.display()));
    }
}

fn put_back(env: &Environment, former: &Former) -> Result<(), CniError> {
    let Some(path) = env.netns.as_deref() else { return Ok(()) };
    if Netns::open(path).is_err_and(|error| error.is_gone()) {
        return Ok(());
    }
    match Pod::open(env) {
        Err(error) if error.code == code::NOT_CHAINABLE => Ok(()),
        Err(error) => Err(error),
        Ok(mut pod) => {
            let mut put_back = |one: &Tuning| {
                tune(&pod.netns, &mut pod.inside, &env.ifname, one).map_err(failure::tuning).err()
            };
            // One that cannot be put back does not keep the others from it.
            let failed: Vec<CniError> = former.settings().iter().filter_map(&mut put_back).collect();
            failed.into_iter().next().map_or(Ok(()), Err)
        }
    }
}

/// The pod's network namespace, with the interface in it.
struct Pod<'a> {
    netns: Netns,
    inside: Netlink,
    ifname: &'a str,
}

impl<'a> Pod<'a> {
    fn open(env: &'a Environment) -> Result<Self, CniError> {
        let netns = open_netns(env)?;
        let mut inside = netns.netlink().map_err(failure::kernel)?;
        if inside.link(LinkRef::Name(&env.ifname)).map_err(failure::kernel)?.is_none() {
            let text = format!("there is no interface {:?} in {}", env.ifname, netns.path().display());
            return Err(CniError::new(code::NOT_CHAINABLE, text));
        }
        Ok(Self { netns, inside, ifname: &env.ifname })
    }

    fn observe(&mut self, wanted: &Tuning) -> Result<Tuning, CniError> {
        observe_tuning(&self.netns, &mut self.inside, self.ifname, wanted).map_err(failure::tuning)
    }
}

/// What an interface was like before ADD, in the reference plugin's form, so that a node may change between both.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Former {
    #[serde(skip_serializing_if = "String::is_empty")]
    mac: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    promisc: Option<bool>,
    #[serde(skip_serializing_if = "is_zero")]
    mtu: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    allmulti: Option<bool>,
    #[serde(rename = "txQLen", skip_serializing_if = "Option::is_none")]
    queue: Option<u32>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's form")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Former {
    /// What is to be kept of an interface that is so and is to be otherwise. Where nothing is to change, an earlier
    /// ADD may have made it so, and what that one kept counts.
    fn of(wanted: &Tuning, is: &Tuning, kept: Option<Self>) -> Self {
        fn former<T: PartialEq>(wanted: Option<T>, is: Option<T>, kept: Option<T>) -> Option<T> {
            wanted.as_ref()?;
            if wanted == is { kept.or(is) } else { is }
        }
        let kept = kept.unwrap_or_default();
        let mac = former(wanted.mac, is.mac, kept.mac.parse().ok());
        Self {
            mac: mac.map(|mac: MacAddr| mac.to_string()).unwrap_or_default(),
            promisc: former(wanted.promiscuous, is.promiscuous, kept.promisc),
            mtu: former(wanted.mtu, is.mtu, Some(kept.mtu).filter(|mtu| *mtu != 0)).unwrap_or_default(),
            allmulti: former(wanted.all_multicast, is.all_multicast, kept.allmulti),
            queue: former(wanted.tx_queue_length, is.tx_queue_length, kept.queue),
        }
    }

    /// Each setting by itself.
    fn settings(&self) -> [Tuning; 5] {
        let none = Tuning::default;
        [
            Tuning { mtu: Some(self.mtu).filter(|mtu| *mtu != 0), ..none() },
            Tuning { mac: self.mac.parse().ok(), ..none() },
            Tuning { promiscuous: self.promisc, ..none() },
            Tuning { all_multicast: self.allmulti, ..none() },
            Tuning { tx_queue_length: self.queue, ..none() },
        ]
    }
}

/// The file in which [`Former`] waits for DEL.
struct Backup {
    directory: PathBuf,
    file: PathBuf,
}

impl Backup {
    /// The reference's name of it.
    fn of(env: &Environment, config: &TuningConfig) -> Self {
        let file = config.data_dir.join(format!("{}_{}.json", env.container, env.ifname));
        Self { directory: config.data_dir.clone(), file }
    }

    /// What is kept; `None` where there is no such file, or it is damaged, which the reference takes for none as well.
    fn read(&self) -> Option<Former> {
        serde_json::from_slice(&fs::read(&self.file).ok()?).ok()
    }

    fn write(&self, former: &Former) -> Result<(), CniError> {
        if *former == Former::default() {
            return Ok(());
        }
        let failed = |error: io::Error| {
            CniError::from_cause(code::TUNING, &error)
                .context(&format!("keep the former settings in {}", self.file.display()))
        };
        let document = serde_json::to_vec(former).map_err(|error| failed(error.into()))?;
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory).map_err(failed)?;
        // By rename, so that a DEL never reads half of it.
        let new = self.file.with_extension("json.new");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&new)
            .map_err(failed)?;
        file.write_all(&document).and_then(|()| fs::rename(&new, &self.file)).map_err(failed)
    }
}

#[cfg(test)]
mod tests;
