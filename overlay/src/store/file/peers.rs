//! The peers file's text. PURE.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::cluster::{ClusterConfig, NodeRecord, Snapshot};
use crate::config::document::{Field, Located, Mistake, Place};
use crate::config::layers::Layers;
use crate::config::{ConfigErrors, Key, own_addresses, shared};

const fn key(name: &'static str, default: &'static str) -> Key {
    Key { name, default }
}

/// The file's keys. The shared settings are those of the agent's configuration below `cluster`.
const KEYS: &[Key] = &[
    key("name", r#""podwire""#),
    key("range", "[]"),
    key("encapsulation.vni", "1"),
    key("encapsulation.port", "8472"),
    key("also_receive", "[]"),
    key("direct_routing", r#""never""#),
    key("underlay", r#"["ipv4", "ipv6"]"#),
    key("node", "[]"),
];

/// Reads a peers file; `name` is what errors call it.
///
/// # Errors
/// All that is wrong with it. Two nodes that say the same subnet, name or address make the list wrong as a whole: whoever
/// wrote it knows which is right.
pub fn parse(name: &str, text: &str) -> Result<Snapshot, ConfigErrors> {
    let mut layers = Layers::new(KEYS);
    layers.add_file(name, text);
    let config = shared::read(&mut layers, "");
    if config.ranges.is_empty() && !layers.has_mistakes() {
        let why =
            "is missing: write [[range]] with range = \"10.244.0.0/16\" and subnet_prefix = 24, for example";
        layers.add(Mistake::new(&Place::of(name), "range", why));
    }
    let mut list = List { config: &config, nodes: BTreeMap::new(), taken: Taken::default() };
    match layers.take("node").map(|located| located.value) {
        Some(crate::config::document::Value::List(nodes)) => {
            for located in &nodes {
                if let Err(mistake) = list.add(&Field::new("node", located)) {
                    layers.add(mistake);
                }
            }
        }
        _ => {
            layers.add(Mistake::new(&Place::of(name), "node", "is no list of nodes: write [[node]] for each"))
        }
    }
    let nodes = list.nodes;
    match layers.into_mistakes() {
        mistakes if mistakes.is_empty() => Ok(Snapshot { config, nodes }),
        mistakes => Err(ConfigErrors(mistakes)),
    }
}

struct List<'a> {
    config: &'a ClusterConfig,
    nodes: BTreeMap<String, Arc<NodeRecord>>,
    taken: Taken,
}

/// Who has which, for those who come later.
#[derive(Default)]
struct Taken {
    addresses: BTreeMap<IpAddr, String>,
    subnets: BTreeMap<IpNetwork, String>,
}

const MTU: &str = "the MTU of the node's link in bytes,";

impl List<'_> {
    fn add(&mut self, node: &Field<'_>) -> Result<(), Mistake> {
        let entries = node.table(&["name", "addresses", "subnets", "mtu"])?;
        let name = name(node, entries)?;
        if self.nodes.contains_key(&name) {
            return Err(node.mistake(format!("a second node {name:?}")));
        }
        let addresses = self.addresses(&name, &node.entry(entries, "addresses")?)?;
        let subnets = self.subnets(&name, &node.entry(entries, "subnets")?)?;
        let mtu = match entries.get("mtu") {
            Some(located) => Some(Field::new("mtu", located).number(1280..=65535, MTU)?),
            None => None,
        };
        let record = NodeRecord {
            instance: String::new(),
            generation: 0,
            claimed: 0,
            addresses,
            subnets,
            mtu,
            receives: Vec::new(),
            sends: None,
            same_family: false,
            name: name.clone(),
        };
        self.nodes.insert(name, Arc::new(record));
        Ok(())
    }

    fn addresses(&mut self, name: &str, field: &Field<'_>) -> Result<Vec<IpAddr>, Mistake> {
        let addresses = own_addresses(field)?;
        if addresses.is_empty() {
            return Err(field.mistake(format!("is empty: node {name:?} is reached by none")));
        }
        for address in &addresses {
            if let Some(range) = self.config.ranges.iter().find(|range| range.range.contains(*address)) {
                return Err(field.mistake(format!("{address} is among the pods' addresses, {}", range.range)));
            }
            if let Some(other) = self.taken.addresses.insert(*address, name.to_owned()) {
                return Err(field.mistake(format!("{address} is node {other:?}'s, too")));
            }
        }
        Ok(addresses)
    }

    fn subnets(&mut self, name: &str, field: &Field<'_>) -> Result<Vec<IpNetwork>, Mistake> {
        let mut subnets: Vec<IpNetwork> = Vec::new();
        for element in field.list("subnets such as 10.244.1.0/24")? {
            let subnet = shared::network(&element, "a subnet such as 10.244.1.0/24")?;
            if subnets.iter().any(|other| other.is_ipv4() == subnet.is_ipv4()) {
                let family = if subnet.is_ipv4() { "IPv4" } else { "IPv6" };
                return Err(element.mistake(format!("{subnet} is a second {family} subnet")));
            }
            self.check_within_range(&element, subnet)?;
            // All of a family have the same length: they are equal or have nothing in common.
            if let Some(other) = self.taken.subnets.insert(subnet, name.to_owned()) {
                return Err(element.mistake(format!("{subnet} is node {other:?}'s, too")));
            }
            subnets.push(subnet);
        }
        if subnets.is_empty() {
            return Err(field.mistake(format!("is empty: pods of node {name:?} would have no addresses")));
        }
        Ok(subnets)
    }

    fn check_within_range(&self, element: &Field<'_>, subnet: IpNetwork) -> Result<(), Mistake> {
        let range = self.config.ranges.iter().find(|range| range.range.is_ipv4() == subnet.is_ipv4());
        let Some(range) = range else {
            // If the ranges are wrong, that is told already.
            if self.config.ranges.is_empty() {
                return Ok(());
            }
            let family = if subnet.is_ipv4() { "IPv4" } else { "IPv6" };
            return Err(element.mistake(format!("{subnet}: the cluster has no {family} range")));
        };
        if range.range.contains(subnet.ip()) && range.subnet_prefix == subnet.prefix() {
            return Ok(());
        }
        Err(element.wrong(format!("a /{} within {}, as [[range]] says", range.subnet_prefix, range.range)))
    }
}

fn name(node: &Field<'_>, entries: &BTreeMap<String, Located>) -> Result<String, Mistake> {
    const ALLOWED: &str = "a node's name: letters, digits, '.', '_' and '-', the first a letter or digit";
    let Some(located) = entries.get("name") else { return Err(node.mistake("name is missing")) };
    let field = Field::new("name", located);
    let name = field.text(ALLOWED)?;
    if shared::is_name(name) { Ok(name.to_owned()) } else { Err(field.wrong(ALLOWED)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cluster::{ClusterRange, DirectRouting, Encapsulation, IpFamily};

    const HEAD: &str = "[[range]]\nrange = \"10.244.0.0/16\"\nsubnet_prefix = 24\n";

    fn node(name: &str, address: &str, subnet: &str) -> String {
        format!("[[node]]\nname = \"{name}\"\naddresses = [\"{address}\"]\nsubnets = [\"{subnet}\"]\n")
    }

    fn told(text: &str) -> String {
        parse("peers.toml", text).unwrap_err().to_string()
    }

    #[test]
    fn the_example_is_a_list_of_three_nodes() {
        let snapshot = parse("peers.toml", include_str!("../../../../conf/peers.toml")).unwrap();
        assert_eq!(snapshot.nodes.keys().collect::<Vec<_>>(), ["node-1", "node-2", "node-3"]);
        assert_eq!(snapshot.config.encapsulation, Encapsulation::default());
        let node = &snapshot.nodes["node-2"];
        assert_eq!(node.addresses, ["192.0.2.2".parse::<IpAddr>().unwrap()]);
        assert_eq!(node.subnets.len(), 2);
    }

    #[test]
    fn every_key_can_be_given() {
        let text = r#"
            name = "west"
            direct_routing = "always"
            underlay = ["ipv6"]
            also_receive = [{ vni = 1, port = 8472 }]
            range = [{ range = "fd00::/48", subnet_prefix = 64 }]
            encapsulation = { vni = 9, port = 4789 }
            node = [{ name = "a", addresses = ["2001:db8::1", "192.0.2.1"], subnets = ["fd00:0:0:7::/64"], mtu = 9000 }]"#;
        let Snapshot { config, nodes } = parse("f", text).unwrap();
        let expected = ClusterConfig {
            name: "west".to_owned(),
            ranges: vec![ClusterRange { range: "fd00::/48".parse().unwrap(), subnet_prefix: 64 }],
            encapsulation: Encapsulation { vni: 9, port: 4789 },
            also_receive: vec![Encapsulation::default()],
            direct_routing: DirectRouting::Always,
            underlay: vec![IpFamily::Ipv6],
            reclaim_after_seconds: None,
        };
        assert_eq!(config, expected);
        assert_eq!((nodes["a"].mtu, nodes["a"].addresses.len()), (Some(9000), 2));
    }

    #[test]
    fn each_mistake_is_told_with_its_line() {
        let a = node("a", "192.0.2.1", "10.244.1.0/24");
        let cases: &[(String, &str)] = &[
            (String::new(), "peers.toml: range: is missing: write [[range]]"),
            ("nodes = []".to_owned(), "peers.toml:1: nodes: no such key: did you mean node?"),
            (format!("{HEAD}[node]\nname = \"a\"\n"), "peers.toml: node: is no list of nodes"),
            (
                format!("{HEAD}[[node]]\nnam = \"a\"\n"),
                "peers.toml:5: node.nam: no such key: did you mean name?",
            ),
            (format!("{HEAD}[[node]]\n"), "peers.toml:4: node: name is missing"),
            (format!("{HEAD}[[node]]\nname = \"a\"\n"), "peers.toml:4: node: addresses is missing"),
            (
                format!("{HEAD}{}", node("a b", "192.0.2.1", "10.244.1.0/24")),
                "peers.toml:5: name: \"a b\" is not a",
            ),
            (
                format!("{HEAD}{}", node("a", "127.0.0.1", "10.244.1.0/24")),
                "peers.toml:6: addresses: \"127.0.0.1\"",
            ),
            (
                format!("{HEAD}{}", node("a", "10.244.7.1", "10.244.1.0/24")),
                "10.244.7.1 is among the pods' addresses",
            ),
            (
                format!("{HEAD}{}", node("a", "192.0.2.1", "10.245.1.0/24")),
                "peers.toml:7: subnets: \"10.245.1.0/24\" is not a /24 within 10.244.0.0/16",
            ),
            (format!("{HEAD}{}", node("a", "192.0.2.1", "10.244.1.0/25")), "is not a /24 within"),
            (format!("{HEAD}{}", node("a", "192.0.2.1", "10.244.1.7/24")), "did you mean 10.244.1.0/24?"),
            (format!("{HEAD}{}", node("a", "192.0.2.1", "10.244.1.0")), "is not a subnet such as"),
            (
                format!("{HEAD}{}", node("a", "192.0.2.1", "fd00::/64")),
                "fd00::/64: the cluster has no IPv6 range",
            ),
            (format!("{HEAD}{a}{a}"), "peers.toml:8: node: a second node \"a\""),
            (
                format!("{HEAD}{a}{}", node("b", "192.0.2.1", "10.244.2.0/24")),
                "peers.toml:10: addresses: 192.0.2.1 is node \"a\"'s, too",
            ),
            (
                format!("{HEAD}{a}{}", node("b", "192.0.2.2", "10.244.1.0/24")),
                "peers.toml:11: subnets: 10.244.1.0/24 is node \"a\"'s, too",
            ),
            (
                format!("{HEAD}{a}mtu = 1000\n"),
                "peers.toml:8: mtu: 1000 is not the MTU of the node's link in bytes, from 1280 to 65535",
            ),
            (
                format!("{HEAD}{}", node("a", "192.0.2.1\", \"192.0.2.2", "10.244.1.0/24")),
                "a second IPv4 address",
            ),
            (format!("{HEAD}[[node]]\nname = \"a\"\naddresses = []\nsubnets = []"), "addresses: is empty"),
        ];
        for (text, expected) in cases {
            let told = told(text);
            assert!(told.contains(expected), "{text}\n{told}\nexpected {expected}");
            assert_eq!(told.lines().count(), 1, "{told}");
        }
    }

    #[test]
    fn what_is_wrong_with_several_nodes_is_told_at_once() {
        let text =
            format!("{HEAD}{}{}", node("a", "::1", "10.244.1.0/24"), node("b", "192.0.2.2", "10.0.0.0/24"));
        assert_eq!(told(&text).lines().count(), 2);
    }

    proptest! {
        #[test]
        fn no_text_is_a_panic(text in "\\PC{0,200}", at in 0_usize..400) {
            let _ = parse("f", &text);
            let example = include_str!("../../../../conf/peers.toml");
            let Some((before, after)) = example.split_at_checked(example.len() * at / 400) else { return Ok(()) };
            let _ = parse("f", &format!("{before}{text}{after}"));
        }
    }
}
