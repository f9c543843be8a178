//! Settings of the pod's interface and of its network namespace: the keys of the reference tuning plugin, in
//! podwire's own configuration and in that of `podwire-tuning`.

use std::path::PathBuf;

use podwire_attach::Tuning;
use podwire_kernel::MacAddr;

use super::network::Network;
use super::{Reader, directory, read_mac, read_prev_result, wrong};
use crate::protocol::json::Field;
use crate::protocol::{CniError, CniResult, Environment, Verb, parse_folded};

mod allow_list;
mod sysctl;

pub use allow_list::AllowList;
pub use sysctl::Sysctl;

/// What to set in the pod. `args.cni` beats the configuration, as the reference has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TuningSettings {
    /// `sysctl`, in the document's order.
    pub sysctls: Vec<Sysctl>,
    /// `mac`, unless the runtime asks for another one (see [`super::Config::mac`]).
    pub mac: Option<MacAddr>,
    /// `mtu` in bytes.
    pub mtu: Option<u32>,
    /// `promisc`. The reference's `false` leaves the flag alone, and so does this.
    pub promiscuous: bool,
    /// `allmulti`.
    pub all_multicast: Option<bool>,
    /// `txQLen` in packets.
    pub tx_queue_length: Option<u32>,
}

impl TuningSettings {
    pub(super) fn read(
        root: &Field<'_>,
        args: &Field<'_>,
        environment: &Environment,
    ) -> Result<Self, CniError> {
        if environment.verb.is_removal() {
            return Ok(Self::default());
        }
        // Both are read, so that a wrong one is an error even where the other wins.
        let (promisc, own_promisc) = (args.at("promisc").choice()?, root.at("promisc").choice()?);
        let (multi, own_multi) = (args.at("allmulti").choice()?, root.at("allmulti").choice()?);
        let (queue, own_queue) = (read_count(&args.at("txQLen"))?, read_count(&root.at("txQLen"))?);
        let (mtu, own_mtu) = (super::read_mtu(&args.at("mtu"))?, super::read_mtu(&root.at("mtu"))?);
        let own = sysctl::read(&root.at("sysctl"), &environment.ifname)?;
        let sysctls = sysctl::replaced(own, sysctl::read(&args.at("sysctl"), &environment.ifname)?);
        Ok(Self {
            sysctls,
            mac: super::unicast(&root.at("mac"))?,
            mtu: mtu.or(own_mtu),
            promiscuous: promisc.or(own_promisc).unwrap_or(false),
            all_multicast: multi.or(own_multi),
            tx_queue_length: queue.or(own_queue),
        })
    }

    /// Whether all sysctls are on the list.
    ///
    /// # Errors
    /// Code 116 names the first that is not.
    pub fn check_allowed(&self, list: &AllowList) -> Result<(), CniError> {
        self.sysctls.iter().try_for_each(|sysctl| list.check(&sysctl.key))
    }

    /// For an interface that podwire makes, with its MAC address and MTU: what is to be set beside these.
    pub fn of_own_interface(&self) -> Tuning {
        Tuning { mac: None, mtu: None, ..self.of_given_interface() }
    }

    /// For an interface that another plugin made.
    pub fn of_given_interface(&self) -> Tuning {
        Tuning {
            sysctls: self.sysctls.iter().map(|sysctl| (sysctl.path.clone(), sysctl.value.clone())).collect(),
            mac: self.mac,
            mtu: self.mtu,
            promiscuous: self.promiscuous.then_some(true),
            all_multicast: self.all_multicast,
            tx_queue_length: self.tx_queue_length,
        }
    }
}

/// What the configuration of `podwire-tuning` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TuningConfig {
    /// Version, name and type.
    pub network: Network,
    /// `prevResult`, which ADD passes on. ADD and CHECK have one.
    pub prev_result: CniResult,
    /// What to set. DEL and GC have nothing of it: what they put back stands in `data_dir`.
    pub settings: TuningSettings,
    /// `dataDir`: where the former values are kept until DEL, /run/cni/tuning unless said otherwise.
    pub data_dir: PathBuf,
}

/// Where the reference keeps former values.
const DATA_DIR: &str = "/run/cni/tuning";

impl TuningConfig {
    /// Reads the configuration of any verb but VERSION.
    ///
    /// # Errors
    /// As [`super::Config::parse`], and code 7 for ADD and CHECK without `prevResult`.
    pub fn parse(stdin: &[u8], environment: &Environment) -> Result<Self, CniError> {
        let value = parse_folded(stdin)?;
        let root = Field::root(&value);
        let network = Network::from_field(&root, environment.verb)?;
        let mut reader = Reader { lenient: environment.verb.is_removal(), ignored: Vec::new() };
        let runtime = reader.take(root.object("runtimeConfig"))?;
        let args = reader.take(root.object("args").and_then(|args| args.object("cni")))?;
        let mut settings = TuningSettings::read(&root, &args, environment)?;
        settings.mac = reader.take(read_mac(environment, &args, &runtime))?.or(settings.mac);
        let previous = reader.take(read_prev_result(&root))?;
        if previous.is_none() && matches!(environment.verb, Verb::Add | Verb::Check) {
            return Err(wrong(
                "podwire-tuning needs prevResult: it must stand behind another plugin of the chain",
            ));
        }
        Ok(Self {
            network,
            prev_result: previous.unwrap_or_default(),
            settings,
            // A wrong guess here would not find what is to be put back.
            data_dir: directory(&root.at("dataDir"))?.unwrap_or_else(|| PathBuf::from(DATA_DIR)),
        })
    }
}

fn read_count(field: &Field<'_>) -> Result<Option<u32>, CniError> {
    Ok(field.number(0..=u32::MAX.into())?.and_then(|number| u32::try_from(number).ok()))
}
