//! The node's kernel as it is: what a plan is compared with.

use std::collections::BTreeMap;

use podwire_kernel::route::RouteFilter;
use podwire_kernel::{Error, Family, Netlink, sysctl};

use crate::desired::DeviceId;
use crate::plan::{Observed, forwarding_sysctl};

/// Reads links, addresses and the main table's routes, and of our devices the neighbours and forwarding entries.
///
/// # Errors
/// The kernel does not answer, or its tables kept changing while they were read.
pub(super) fn observe(netlink: &mut Netlink) -> Result<Observed, Error> {
    let mut observed =
        Observed { links: netlink.links()?, addresses: netlink.addresses(None)?, ..Observed::default() };
    for family in [Family::V4, Family::V6] {
        match netlink.routes(&RouteFilter::main(family)) {
            // A kernel without IPv6.
            Err(error) if error.is_without_family() => {}
            routes => observed.routes.extend(routes?),
        }
    }
    for link in &observed.links {
        if DeviceId::of(link).is_some() {
            observed.neighbours.extend(netlink.neighbours(link.index)?);
            observed.fdb.extend(netlink.fdb(link.index)?);
        }
    }
    Ok(observed)
}

/// Reads these sysctls and those of forwarding. What cannot be read, such as a device's that is yet to be made, is left
/// out.
pub(super) fn sysctls<'n>(names: impl Iterator<Item = &'n str>) -> BTreeMap<String, String> {
    let names = names.chain([Family::V4, Family::V6].map(forwarding_sysctl));
    names.filter_map(|name| Some((name.to_owned(), sysctl::read(name).ok()?))).collect()
}
