//! `vlan`, `vlanTrunk` and `preserveDefaultVlan`: which VLANs of the bridge the pod's port is in.

use std::ops::RangeInclusive;

use podwire_attach::plan::{Vlan, VlanMembership};

use super::wrong;
use crate::protocol::json::Field;
use crate::protocol::{CniError, code};

/// VLANs that a port can be in (IEEE 802.1Q, 9.6: 0 and 4095 are none).
const IDS: RangeInclusive<u64> = 1..=4094;

pub(super) fn read(root: &Field<'_>) -> Result<Option<Vlan>, CniError> {
    let access = root.at("vlan").number(0..=*IDS.end())?.filter(|id| *id != 0);
    let trunk = read_trunk(&root.at("vlanTrunk"))?;
    let preserve_default = root.at("preserveDefaultVlan").choice()?.unwrap_or(true);
    let membership = match (access.and_then(|id| u16::try_from(id).ok()), trunk) {
        (None, trunk) if trunk.is_empty() => return Ok(None),
        (Some(_), trunk) if !trunk.is_empty() => {
            return Err(wrong("vlan and vlanTrunk cannot both be set: a port is tagged or it is not"));
        }
        (Some(id), _) => VlanMembership::Access(id),
        (None, trunk) => VlanMembership::Trunk(trunk),
    };
    Ok(Some(Vlan { membership, preserve_default }))
}

fn read_trunk(field: &Field<'_>) -> Result<Vec<RangeInclusive<u16>>, CniError> {
    let mut ranges: Vec<RangeInclusive<u16>> = Vec::new();
    for item in field.list()? {
        let item = item.as_object()?;
        let id = |key| Ok(item.at(key).number(IDS)?.and_then(|id| u16::try_from(id).ok()));
        match (id("minID")?, id("maxID")?) {
            (Some(min), Some(max)) if min > max => {
                return Err(item.at("minID").invalid(&format!("at most maxID, which is {max}")));
            }
            (Some(min), Some(max)) => ranges.push(min..=max),
            (None, Some(_)) => return Err(item.at("minID").invalid("a VLAN id, since maxID is set")),
            (Some(_), None) => return Err(item.at("maxID").invalid("a VLAN id, since minID is set")),
            (None, None) => {}
        }
        ranges.extend(id("id")?.map(|id| id..=id));
    }
    ranges.sort_unstable_by_key(|range| *range.start());
    let mut merged: Vec<RangeInclusive<u16>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            // 4094 and one more fits.
            Some(last) if *range.start() <= last.end() + 1 => {
                *last = *last.start()..=*last.end().max(range.end());
            }
            _ => merged.push(range),
        }
    }
    Ok(merged)
}

/// The error for kernels whose bridges cannot do it.
pub fn refuse(vlan: &Vlan) -> CniError {
    let (key, value) = match &vlan.membership {
        VlanMembership::Access(id) => ("vlan", id.to_string()),
        VlanMembership::Trunk(ranges) => ("vlanTrunk", format!("{ranges:?}")),
    };
    let text = format!(
        "unsupported {key} {value}: this kernel's bridges cannot tell VLANs apart \
         (CONFIG_BRIDGE_VLAN_FILTERING); leave it out"
    );
    CniError::new(code::UNSUPPORTED_FIELD, text)
}
