//! Addresses as CNI_ARGS, configurations and results write them.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// For errors: what was expected where an address stands.
pub(crate) const ADDRESS: &str = "an address such as 10.1.0.7 or fd00::7";

/// For errors: what was expected where an address with its subnet's prefix length stands.
pub(crate) const CIDR: &str = "an address and a prefix length such as 10.1.0.7/24";

/// A requested address, with or without the prefix length that some callers add.
pub(crate) fn parse_address(text: &str) -> Option<IpAddr> {
    let address = match text.split_once('/') {
        Some(_) => parse_cidr(text)?.ip(),
        None => text.parse::<IpAddr>().ok()?,
    };
    Some(address.to_canonical())
}

/// An address and its prefix length, the latter required and as a number: `10.1.0.7/24`.
pub(crate) fn parse_cidr(text: &str) -> Option<IpNetwork> {
    let (address, prefix) = text.split_once('/')?;
    if prefix.is_empty() || prefix.len() > 3 || !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    IpNetwork::new(address.parse().ok()?, prefix.parse().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_length_is_optional_for_a_requested_address_alone() {
        let plain: IpAddr = "10.1.0.7".parse().unwrap();
        for text in ["10.1.0.7", "10.1.0.7/24", "::ffff:10.1.0.7"] {
            assert_eq!(parse_address(text), Some(plain), "{text}");
        }
        assert_eq!(parse_cidr("10.1.0.7/24").unwrap().to_string(), "10.1.0.7/24");
        assert_eq!(parse_cidr("fd00::7/64").unwrap().to_string(), "fd00::7/64");
        for wrong in [
            "",
            "/",
            "10.1.0.7/",
            "10.1.0.7/33",
            "10.1.0.7/+8",
            "10.1.0.7/255.0.0.0",
            "10.1.0/8",
            "010.1.0.7/8",
            "fd00::/129",
            "10.1.0.7/24/24",
        ] {
            assert_eq!(parse_cidr(wrong), None, "{wrong}");
            assert_eq!(parse_address(wrong), None, "{wrong}");
        }
        assert_eq!(parse_cidr("10.1.0.7"), None);
    }
}
