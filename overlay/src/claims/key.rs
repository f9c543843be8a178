//! The keys of a cluster, below `<prefix>/v1/`. PURE.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnetwork::IpNetwork;

/// A key. Its text is `config`, `epoch`, `grace`, `nodes/<name>`, `subnets/<address>-<prefix>` or `presence/<name>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// The shared settings.
    Config,
    /// Which course of the store's history this is.
    Epoch,
    /// There while nobody makes new claims, because the store was restored from a backup.
    Grace,
    /// What a node says of itself.
    Node(String),
    /// Who has a subnet. The network has no bits beyond its prefix.
    Subnet(IpNetwork),
    /// There while a node is connected.
    Presence(String),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config => f.write_str("config"),
            Self::Epoch => f.write_str("epoch"),
            Self::Grace => f.write_str("grace"),
            Self::Node(name) => write!(f, "nodes/{name}"),
            Self::Subnet(subnet) => write!(f, "subnets/{}-{}", subnet.ip(), subnet.prefix()),
            Self::Presence(name) => write!(f, "presence/{name}"),
        }
    }
}

impl FromStr for Key {
    type Err = String;

    /// # Errors
    /// With what is wrong about it, without the key.
    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, rest) = text.split_once('/').unwrap_or((text, ""));
        match (kind, rest) {
            ("config", "") => Ok(Self::Config),
            ("epoch", "") => Ok(Self::Epoch),
            ("grace", "") => Ok(Self::Grace),
            ("nodes", name) => check_name(name).map(|()| Self::Node(name.to_owned())),
            ("presence", name) => check_name(name).map(|()| Self::Presence(name.to_owned())),
            ("subnets", subnet) => parse_subnet(subnet).map(Self::Subnet),
            _ => Err("no such key is known".to_owned()),
        }
        // One thing has one key: with two spellings a subnet would have two owners.
        .and_then(|key| {
            if key.to_string() == text { Ok(key) } else { Err(format!("{key} is its only spelling")) }
        })
    }
}

fn parse_subnet(text: &str) -> Result<IpNetwork, String> {
    let wrong = || "its name is not <address>-<prefix>".to_owned();
    let (address, prefix) = text.rsplit_once('-').ok_or_else(wrong)?;
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
    let subnet = IpNetwork::new(address, prefix).map_err(|_| wrong())?;
    if subnet.network() == address {
        Ok(subnet)
    } else {
        Err("its address has bits beyond its prefix".to_owned())
    }
}

/// Whether a text can be a node's name: 1 to 253 letters, digits, `.`, `-` and `_`, the first a letter or a digit.
///
/// # Errors
/// With what is wrong.
pub fn check_name(name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if !(1..=253).contains(&name.len()) {
        Err(format!("a node's name has 1 to 253 characters, not {}", name.len()))
    } else if !name.chars().all(fits) || !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        Err("a node's name is made of letters, digits, '.', '-' and '_', and begins with a letter or a digit"
            .to_owned())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_read_as_it_is_written() {
        let subnet = |text: &str| Key::Subnet(text.parse().unwrap());
        for (key, text) in [
            (Key::Config, "config"),
            (Key::Epoch, "epoch"),
            (Key::Grace, "grace"),
            (Key::Node("node-1.example_x".into()), "nodes/node-1.example_x"),
            (Key::Presence("7".into()), "presence/7"),
            (subnet("10.244.5.0/24"), "subnets/10.244.5.0-24"),
            (subnet("fd00:10:244:5::/64"), "subnets/fd00:10:244:5::-64"),
        ] {
            assert_eq!(key.to_string(), text);
            assert_eq!(text.parse(), Ok(key));
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let long = format!("nodes/{}", "n".repeat(254));
        for text in [
            "",
            "/",
            "config/",
            "config/x",
            "nodes",
            "nodes/",
            "nodes/.",
            "nodes/a/b",
            "nodes/a b",
            "nodes/ä",
            "nodes/\u{1b}[2J",
            "nodes/-a",
            "presence/",
            &long,
            "subnets/",
            "subnets/10.244.5.0",
            "subnets/10.244.5.0-",
            "subnets/10.244.5.0-33",
            "subnets/10.244.5.0-024",
            "subnets/10.244.5.0-+24",
            "subnets/10.244.5.1-24",
            "subnets/FD00::-64",
            "subnets/fd00:0::-64",
            "subnets/::ffff:10.0.0.0-129",
            "leases/x",
            "grace/1",
        ] {
            assert!(text.parse::<Key>().is_err(), "{text}");
        }
    }
}
