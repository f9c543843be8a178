use podwire_kernel::addr::AddressFlags;
use podwire_kernel::link::LinkFlags;
use podwire_kernel::route::Nexthop;

use super::*;

/// eth0 has the default routes and 192.0.2.1, 2001:db8::1; eth1 is down the hall with 10.1.0.1, 10.1.0.2 and fd01::1.
fn node() -> (Vec<Link>, Vec<Address>, Vec<Route>) {
    let link = |index, name: &str| Link {
        index,
        name: name.to_owned(),
        mtu: 1500,
        flags: LinkFlags { up: true, ..LinkFlags::default() },
        ..Link::default()
    };
    let address = |ifindex, text: &str| Address {
        ifindex,
        address: text.parse().unwrap(),
        flags: AddressFlags { permanent: true, ..AddressFlags::default() },
        scope: 0,
        protocol: 0,
    };
    let default = |network: &str, gateway: &str| {
        let nexthop = Nexthop { gateway: Some(gateway.parse().unwrap()), oif: Some(2) };
        Route::new(network.parse().unwrap(), vec![nexthop])
    };
    let addresses = [
        (2, "192.0.2.1/24"),
        (2, "2001:db8::1/64"),
        (3, "10.1.0.1/24"),
        (3, "10.1.0.2/24"),
        (3, "fd01::1/64"),
    ];
    (
        vec![link(2, "eth0"), link(3, "eth1")],
        addresses.map(|(index, text)| address(index, text)).to_vec(),
        vec![default("0.0.0.0/0", "192.0.2.254"), default("::/0", "2001:db8::fe")],
    )
}

fn chosen(wanted: &Underlay, before: &UnderlayFacts) -> UnderlayFacts {
    let (links, addresses, routes) = node();
    facts(wanted, &links, &addresses, &routes, before)
}

fn shown(facts: &UnderlayFacts) -> String {
    let links = facts.links.iter().map(|link| format!("{} {}", link.name, link.address));
    links.collect::<Vec<_>>().join(", ")
}

fn ips(text: &str) -> Vec<IpAddr> {
    text.split_whitespace().map(|ip| ip.parse().unwrap()).collect()
}

#[test]
fn the_configuration_goes_before_the_store_and_that_before_the_default_route() {
    for (interface, addresses, stated, expected) in [
        ("", "", "", "eth0 192.0.2.1, eth0 2001:db8::1"),
        // The store's word, for one family or both.
        ("", "", "10.1.0.2", "eth1 10.1.0.2, eth0 2001:db8::1"),
        ("", "", "fd01::1 10.1.0.1", "eth1 10.1.0.1, eth1 fd01::1"),
        // On no link: NAT, others' business.
        ("", "", "203.0.113.7", "eth0 192.0.2.1, eth0 2001:db8::1"),
        ("", "10.1.0.1", "192.0.2.1 fd01::1", "eth1 10.1.0.1, eth1 fd01::1"),
        ("eth1", "", "192.0.2.1 2001:db8::1", "eth1 10.1.0.1, eth1 fd01::1"),
        ("eth0", "", "10.1.0.2 fd01::1", "eth0 192.0.2.1, eth0 2001:db8::1"),
        ("eth1", "10.1.0.2", "192.0.2.1", "eth1 10.1.0.2, eth1 fd01::1"),
        // A configured one that is not there is waited for.
        ("", "10.9.9.9", "192.0.2.1", "eth0 2001:db8::1"),
    ] {
        let wanted = Underlay {
            interface: Some(interface.to_owned()).filter(|name| !name.is_empty()),
            addresses: ips(addresses),
            stated: ips(stated),
        };
        let found = chosen(&wanted, &UnderlayFacts::default());
        assert_eq!(shown(&found), expected, "{wanted:?}");
    }
}

#[test]
fn the_stores_word_goes_before_what_was() {
    let stated = |text| Underlay { stated: ips(text), ..Underlay::default() };
    let first = chosen(&stated("10.1.0.1"), &UnderlayFacts::default());
    assert_eq!(shown(&chosen(&stated("10.1.0.2"), &first)), "eth1 10.1.0.2, eth0 2001:db8::1");
    assert_eq!(shown(&chosen(&stated(""), &first)), "eth0 192.0.2.1, eth0 2001:db8::1");
}
