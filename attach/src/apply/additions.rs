//! What is done for a pod beyond its interface: tuning, limits, rules, forgotten connections.

use podwire_kernel::link::{self, LinkChange, LinkRef};
use podwire_kernel::nft::Nft;

use super::{AttachError, Places};
use crate::plan::Step;
use crate::shaping::{self, HostQueue};
use crate::step::step;
use crate::tuning::tune;
use crate::{Attachment, Tuning, conntrack, rules};

/// Where the host's end is.
#[derive(Debug, Clone, Copy)]
pub(super) struct HostEndAt {
    pub(super) index: u32,
    pub(super) mtu: u32,
}

pub(super) struct Additions<'w> {
    attachment: &'w Attachment,
    tuning: &'w Tuning,
    pub(super) host_end: HostEndAt,
    /// The host's end's name where it stays after the attachment, another plugin's.
    given: Option<&'w str>,
    /// What the tuned settings were.
    pub(super) before: Tuning,
    pub(super) notices: Vec<String>,
}

impl<'w> Additions<'w> {
    pub(super) fn new(attachment: &'w Attachment, tuning: &'w Tuning, given: Option<&'w str>) -> Self {
        let host_end = HostEndAt { index: 0, mtu: 0 };
        let before = Tuning::default();
        Self { attachment, tuning, host_end, given, before, notices: Vec::new() }
    }

    pub(super) fn step(&mut self, places: &mut Places<'_>, planned: &Step) -> Result<(), AttachError> {
        let owner = &self.attachment.owner;
        match planned {
            Step::SetPort { name, hairpin, isolated } => {
                let change = LinkChange { hairpin: *hairpin, isolated: *isolated, ..LinkChange::default() };
                places.host.apply(&link::change(LinkRef::Name(name), &change))?;
            }
            Step::Tune => self.before = tune(places.pod, places.inside, &owner.ifname, self.tuning)?,
            Step::Untune => {
                tune(places.pod, places.inside, &owner.ifname, &self.before)?;
            }
            Step::Shape => {
                let Some(traffic) = &self.attachment.traffic else { return Ok(()) };
                let own_name = owner.link_name();
                let name = self.given.unwrap_or(&own_name);
                let queue = HostQueue { name, index: self.host_end.index, mtu: self.host_end.mtu };
                shaping::shape(places.host, owner, queue, &traffic.shaping)?;
            }
            Step::Unshape => shaping::unshape(places.host, owner.id(), self.given)?,
            Step::InstallRules => {
                let installed = rules::install(&mut Nft::open()?, self.attachment, places.is_alive)?;
                self.notices.extend(installed.notices);
            }
            Step::RemoveRules => {
                rules::remove(&mut Nft::open()?, owner.id(), Some(self.attachment))?;
            }
            Step::FlushConntrack => {
                conntrack::flush_stale(places.host, self.attachment)?;
                step("flushed-conntrack");
            }
            // The attachment's own, which is not here.
            _ => {}
        }
        Ok(())
    }
}
