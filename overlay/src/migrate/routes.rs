//! flannel's routes beside podwire's. PURE.
//!
//! flannel's have no metric, which for IPv4 is 0 and wins over podwire's. For IPv6 both have 1024, so there is but one.

use ipnetwork::IpNetwork;
use podwire_kernel::route::{MAIN_TABLE, PROTOCOL_BOOT, ROUTE_PROTOCOL, Route};

/// flannel's routes to other nodes' subnets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Foreign {
    /// Those that podwire has a route of its own beside.
    pub obsolete: Vec<Route>,
    /// Those that it has none beside: to nodes that are gone, or that it does not know.
    pub orphaned: Vec<Route>,
}

/// Finds flannel's routes: to a subnet within the cluster's ranges by a router, on a device that was flannel's or, as its
/// direct routing makes them, on any link that podwire has a route to the same subnet by.
pub fn foreign(routes: &[Route], devices: &[u32], ranges: &[IpNetwork]) -> Foreign {
    let within = |route: &&Route| {
        ranges.iter().any(|range| {
            range.contains(route.destination.ip()) && range.prefix() <= route.destination.prefix()
        })
    };
    let routes: Vec<&Route> = routes
        .iter()
        .filter(|route| route.table == MAIN_TABLE && route.kind == 1 && is_by_router(route))
        .filter(within)
        .collect();
    let mut found = Foreign::default();
    for route in routes.iter().filter(|route| route.protocol != ROUTE_PROTOCOL) {
        let has_own =
            routes.iter().any(|own| own.protocol == ROUTE_PROTOCOL && own.destination == route.destination);
        let is_on_device = route.nexthops.iter().all(|hop| hop.oif.is_some_and(|oif| devices.contains(&oif)));
        match (has_own, is_on_device) {
            (true, _) => found.obsolete.push((*route).clone()),
            (false, true) => found.orphaned.push((*route).clone()),
            (false, false) => {}
        }
    }
    found
}

/// As flannel would have made podwire's routes to other nodes.
pub fn as_flannel(routes: &[Route]) -> Vec<Route> {
    let ours = routes
        .iter()
        .filter(|route| route.protocol == ROUTE_PROTOCOL && route.table == MAIN_TABLE && is_by_router(route));
    ours.map(|route| Route { priority: None, protocol: PROTOCOL_BOOT, mtu: None, ..route.clone() }).collect()
}

fn is_by_router(route: &Route) -> bool {
    !route.nexthops.is_empty() && route.nexthops.iter().all(|hop| hop.gateway.is_some())
}

#[cfg(test)]
mod tests {
    use podwire_kernel::route::Nexthop;

    use super::*;

    /// `destination via gateway dev oif proto protocol`.
    fn route(text: &str, oif: u32, protocol: u8, priority: Option<u32>) -> Route {
        let (destination, gateway) = match text.split_once(" via ") {
            Some((destination, gateway)) => (destination, Some(gateway.parse().unwrap())),
            None => (text, None),
        };
        let hop = Nexthop { gateway, oif: Some(oif) };
        Route { protocol, priority, ..Route::new(destination.parse().unwrap(), vec![hop]) }
    }

    fn texts(routes: &[Route]) -> Vec<String> {
        routes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn those_that_podwire_has_one_beside_can_go_and_no_others() {
        let ranges = ["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/48".parse().unwrap()];
        let routes = [
            route("0.0.0.0/0 via 192.0.2.254", 2, 3, None),
            route("10.244.1.0/24", 5, 2, None), // cni0's own
            route("10.244.2.0/24 via 10.244.2.0", 7, 3, None),
            route("10.244.2.0/24 via 10.244.2.0", 7, ROUTE_PROTOCOL, Some(3)),
            route("10.244.3.0/24 via 192.0.2.3", 2, 3, None), // DirectRouting
            route("10.244.3.0/24 via 192.0.2.3", 2, ROUTE_PROTOCOL, Some(4)),
            route("10.244.4.0/24 via 10.244.4.0", 7, 3, None), // a node that is gone
            route("10.244.5.0/24 via 192.0.2.9", 2, 3, None),  // somebody else's
            route("10.250.0.0/24 via 10.250.0.0", 7, 3, None), // beyond the cluster
            route("fd00:10:244:2::/64 via fd00:10:244:2::", 8, ROUTE_PROTOCOL, Some(1024)),
        ];
        let found = foreign(&routes, &[7, 8], &ranges);
        assert_eq!(
            texts(&found.obsolete),
            ["10.244.2.0/24 via 10.244.2.0 dev 7", "10.244.3.0/24 via 192.0.2.3 dev 2"]
        );
        assert_eq!(texts(&found.orphaned), ["10.244.4.0/24 via 10.244.4.0 dev 7"]);
        assert_eq!(
            texts(&as_flannel(&routes)),
            [
                "10.244.2.0/24 via 10.244.2.0 dev 7",
                "10.244.3.0/24 via 192.0.2.3 dev 2",
                "fd00:10:244:2::/64 via fd00:10:244:2:: dev 8"
            ]
        );
    }
}
