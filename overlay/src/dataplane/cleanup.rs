//! Everything of ours taken away, for a node that leaves for good.

use podwire_attach::remove_unused_bridge;
use podwire_kernel::route::{self, ROUTE_PROTOCOL, RouteFilter};
use podwire_kernel::{Family, Netlink, link};

use super::Failure;
use super::filter::{FilterKeeper, TABLE};
use crate::desired::Naming;

/// What [`cleanup`] came to.
#[derive(Debug, Default)]
pub struct Cleaned {
    /// What was removed, as the commands that would do the same.
    pub removed: Vec<String>,
    /// What was not. The rest was gone on with.
    pub failures: Vec<Failure>,
}

/// Removes our devices with all they have, our routes, table `podwire-node`, and the bridge of that name unless it has ports.
/// No thread of ours may run: it would put all of it back. Nothing there is success; what is not ours stays.
pub fn cleanup(bridge: Option<&str>) -> Cleaned {
    let mut cleaned = Cleaned::default();
    let mut netlink = match Netlink::open() {
        Ok(netlink) => netlink,
        Err(error) => {
            cleaned.fail("look", "look at the node's network", &error);
            return cleaned;
        }
    };
    cleaned.routes(&mut netlink);
    cleaned.devices(&mut netlink);
    match FilterKeeper::default().remove() {
        Ok(true) => cleaned.removed.push(format!("nft delete table {TABLE}")),
        Ok(false) => {}
        Err(error) => cleaned.fail("rules", format!("nft delete table {TABLE}"), &error),
    }
    if let Some(bridge) = bridge {
        match remove_unused_bridge(&mut netlink, bridge) {
            Ok(true) => cleaned.removed.push(format!("ip link del {bridge}")),
            Ok(false) => {}
            Err(error) => cleaned.fail("link", format!("ip link del {bridge}"), &error),
        }
    }
    cleaned
}

impl Cleaned {
    fn fail(&mut self, kind: &'static str, operation: impl Into<String>, error: &podwire_kernel::Error) {
        let operation = operation.into();
        self.failures.push(Failure { kind, operation, error: error.to_string(), peer: None });
    }

    fn devices(&mut self, netlink: &mut Netlink) {
        let links = match netlink.links() {
            Ok(links) => links,
            Err(error) => return self.fail("link", "ip link", &error),
        };
        // Whoever has adopted another program's devices goes back first.
        let naming = Naming::default();
        for device in links.iter().filter(|link| naming.of(link).is_some()) {
            let command = format!("ip link del {}", device.name);
            match netlink.apply(&[link::delete(device.index, &device.name)]) {
                Err(error) if !error.is_missing() => self.fail("link", command, &error),
                _ => self.removed.push(command),
            }
        }
    }

    /// Before the devices: those that lead to other links do not go with them.
    fn routes(&mut self, netlink: &mut Netlink) {
        for family in [Family::V4, Family::V6] {
            let ours = RouteFilter { protocol: Some(ROUTE_PROTOCOL), ..RouteFilter::main(family) };
            let routes = match netlink.routes(&ours) {
                Ok(routes) => routes,
                Err(error) if error.is_without_family() => continue,
                Err(error) => {
                    return self.fail("route", format!("ip route show proto {ROUTE_PROTOCOL}"), &error);
                }
            };
            if routes.is_empty() {
                continue;
            }
            let requests: Vec<_> = routes.iter().map(route::remove).collect();
            match netlink.apply_all(&requests) {
                Ok(failures) => {
                    let failures: Vec<_> = failures.into_iter().filter(|error| !error.is_missing()).collect();
                    let removed = routes.len() - failures.len();
                    self.removed
                        .push(format!("ip route flush proto {ROUTE_PROTOCOL} ({removed} {family} routes)"));
                    for error in &failures {
                        self.fail("route", "ip route del", error);
                    }
                }
                Err(error) => self.fail("route", "ip route del", &error),
            }
        }
    }
}
