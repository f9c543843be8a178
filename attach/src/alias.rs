//! The text on a host veth that says whose it is (IFLA_IFALIAS).
//!
//! ```text
//! podwire1 <owner id> <network id> <address,address|-> <container> <ifname> <network>
//! ```
//! The kernel takes 255 bytes (IFALIASZ − 1). Two ids and two IPv6 addresses leave room for a container id of
//! 64 digits and most of a network's name; what does not fit is cut from the end, and the owner id tells a
//! whole text from a cut one. The store can be rebuilt from these texts alone.

use std::fmt::Write;

use ipnetwork::IpNetwork;

use crate::{NetworkId, Owner, OwnerId};

/// The most bytes an alias may have: the kernel's IFALIASZ (256) less the closing zero byte.
pub const MAX_LEN: usize = 255;

/// The first word: ours, and the format's version.
const TAG: &str = "podwire1";

/// What an alias says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkAlias {
    /// The owner's id, always whole.
    pub owner_id: OwnerId,
    /// The network's id, always whole.
    pub network_id: NetworkId,
    /// The pod's addresses with their prefix lengths.
    pub addresses: Vec<IpNetwork>,
    /// The owner's names, as far as they fitted.
    pub owner: Owner,
    /// Whether `owner` is complete: its id is `owner_id`.
    pub whole: bool,
}

/// The alias of this owner's link. At most [`MAX_LEN`] bytes; addresses that do not fit are left out whole.
pub fn format(owner: &Owner, addresses: &[IpNetwork]) -> String {
    let mut text = format!("{TAG} {} {} ", owner.id(), NetworkId::of(&owner.network));
    let mut listed = String::new();
    for address in addresses {
        let before = listed.len();
        let comma = if before == 0 { "" } else { "," };
        // Writing to a String cannot fail.
        let _ = write!(listed, "{comma}{address}");
        if text.len() + listed.len() > MAX_LEN {
            listed.truncate(before);
            break;
        }
    }
    text.push_str(if listed.is_empty() { "-" } else { &listed });
    for name in [&owner.container, &owner.ifname, &owner.network] {
        text.push(' ');
        text.push_str(name);
    }
    cut(text)
}

/// As much of a text as a link's alias holds.
pub(crate) fn cut(mut text: String) -> String {
    // Names that passed validation are ASCII; a cut may still not fall inside a character.
    text.truncate(text.floor_char_boundary(MAX_LEN));
    text
}

/// What this alias says; `None` if it is not one of ours.
pub fn parse(alias: &str) -> Option<LinkAlias> {
    let mut words = alias.splitn(7, ' ');
    if words.next() != Some(TAG) {
        return None;
    }
    let owner_id = OwnerId::try_from(words.next()?.to_owned()).ok()?;
    let network_id = NetworkId::try_from(words.next()?.to_owned()).ok()?;
    let addresses = match words.next()? {
        "-" => Vec::new(),
        list => list.split(',').map(|address| address.parse().ok()).collect::<Option<_>>()?,
    };
    let mut name = || words.next().unwrap_or_default().to_owned();
    let (container, ifname, network) = (name(), name(), name());
    let owner = Owner::new(network, container, ifname);
    let whole = owner.id() == owner_id;
    Some(LinkAlias { owner_id, network_id, addresses, owner, whole })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn owner(network: &str, container: &str) -> Owner {
        Owner::new(network, container, "eth0")
    }

    #[test]
    fn a_dual_stack_pod_of_containerd_fits_whole() {
        let owner = owner("podwire", &"0f".repeat(32));
        let addresses = ["10.244.201.117/24".parse().unwrap(), "fd00:10:244:2001::1f2e/64".parse().unwrap()];
        let alias = format(&owner, &addresses);
        let parsed = parse(&alias).expect("ours");
        assert!(parsed.whole, "{alias}");
        assert_eq!((parsed.owner, parsed.addresses), (owner, addresses.to_vec()));
    }

    #[test]
    fn a_long_network_name_is_cut_and_known_by_its_id() {
        let owner = owner(&"n".repeat(200), &"0f".repeat(32));
        let parsed = parse(&format(&owner, &[])).expect("ours");
        assert!(!parsed.whole);
        assert_eq!(parsed.owner_id, owner.id());
        assert_eq!(parsed.network_id, NetworkId::of(&owner.network));
    }

    #[test]
    fn foreign_texts_are_not_ours() {
        for alias in ["", "podwire1", "podwire1 x y - a b c", "podwire2 0 0 -", "k8s:ns/pod"] {
            assert_eq!(parse(alias), None, "{alias:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "\\PC{0,300}") {
            let _ = parse(&text);
        }

        #[test]
        fn every_owner_is_found_again(network in "[a-zA-Z0-9][a-zA-Z0-9_.-]{0,250}",
                                      container in "[a-zA-Z0-9][a-zA-Z0-9_.-]{0,250}",
                                      ifname in "[a-z0-9]{1,15}",
                                      addresses in prop::collection::vec(any::<u128>(), 0..6)) {
            let owner = Owner::new(network, container, ifname);
            let addresses: Vec<IpNetwork> = addresses
                .into_iter()
                .map(|bits| IpNetwork::new(std::net::Ipv6Addr::from(bits).into(), 64).unwrap())
                .collect();
            let alias = format(&owner, &addresses);
            prop_assert!(alias.len() <= MAX_LEN);
            let parsed = parse(&alias).expect("ours");
            prop_assert_eq!(parsed.owner_id, owner.id());
            prop_assert!(addresses.starts_with(&parsed.addresses));
        }
    }
}
