//! The node's kernel as it is: what a plan is compared with.

use std::collections::BTreeMap;

use podwire_kernel::route::RouteFilter;
use podwire_kernel::{Error, Family, Netlink, sysctl};

use crate::desired::Naming;
use crate::plan::{Observed, forwarding_sysctl};

/// Reads links, addresses and the main table's routes, and of our devices the neighbours and forwarding entries. `None`
/// if it was given up between two of them.
///
/// # Errors
/// The kernel does not answer, or its tables kept changing while they were read.
pub(super) fn observe(
    netlink: &mut Netlink,
    naming: &Naming,
    gives_up: &dyn Fn() -> bool,
) -> Result<Option<Observed>, Error> {
    let mut observed =
        Observed { links: netlink.links()?, addresses: netlink.addresses(None)?, ..Observed::default() };
    for family in [Family::V4, Family::V6] {
        if gives_up() {
            return Ok(None);
        }
        match netlink.routes(&RouteFilter::main(family)) {
            // A kernel without IPv6.
            Err(error) if error.is_without_family() => {}
            routes => observed.routes.extend(routes?),
        }
    }
    for link in &observed.links {
        if naming.of(link).is_some() {
            if gives_up() {
                return Ok(None);
            }
            observed.neighbours.extend(netlink.neighbours(link.index)?);
            if gives_up() {
                return Ok(None);
            }
            observed.fdb.extend(netlink.fdb(link.index)?);
        }
    }
    Ok(Some(observed))
}

/// Reads these sysctls and those of forwarding. What cannot be read, such as a device's that is yet to be made, is left
/// out.
pub(super) fn sysctls<'n>(names: impl Iterator<Item = &'n str>) -> BTreeMap<String, String> {
    let names = names.chain([Family::V4, Family::V6].map(forwarding_sysctl));
    names.filter_map(|name| Some((name.to_owned(), sysctl::read(name).ok()?))).collect()
}
