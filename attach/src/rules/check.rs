//! Whether an attachment's rules are as they should be.

use std::net::IpAddr;

use podwire_kernel::nft::{Element, Nft};
use podwire_kernel::sysctl;

use super::compare::{RulesDrift, chain_drift, is_of_another_version, is_same_element, skeleton_drift};
use super::content::{Content, content};
use super::install::route_localnet;
use super::look;
use super::skeleton::{INET, SetRef, skeleton};
use super::{RulesError, forward};
use crate::Attachment;

/// All differences, none where all is right. Nothing is changed. Of a table that another version of podwire made, which
/// is in use until the agent is that of the plugin, only the elements are looked at.
///
/// # Errors
/// See [`RulesError`].
pub fn check(nft: &mut Nft, attachment: &Attachment) -> Result<Vec<RulesDrift>, RulesError> {
    let content = content(attachment)?;
    let mut drift = Vec::new();
    for table in content.tables() {
        let found = nft.content(table, false)?;
        if found.as_ref().is_some_and(is_of_another_version) {
            continue;
        }
        drift.extend(skeleton_drift(&skeleton(table), found.as_ref()));
        if table == INET
            && let Some(found) = &found
        {
            for chain in content.chains.values() {
                drift.extend(chain_drift(table, &chain.chain(), &chain.rules, found));
            }
        }
    }
    for (wanted, is_owned) in [(&content.owned, true), (&content.shared, false)] {
        for (set, elements) in wanted {
            let found = look::missing_is_empty(nft.find_elements(set.table, set.name, elements))?;
            let found = found.into_iter().chain(std::iter::repeat(None));
            drift.extend(elements.iter().zip(found).filter_map(|(wanted, found)| {
                let difference = match found {
                    None => RulesDrift::NoElement,
                    Some(found) if is_owned && !is_same_element(wanted, &found) => RulesDrift::Element,
                    Some(_) => return None,
                };
                Some(difference(set.table.to_string(), set.name.to_owned(), describe(&content, *set, wanted)))
            }));
        }
    }
    if let Some(device) = &content.localnet
        && look::missing_is_empty(sysctl::read(&route_localnet(device)))? != "1"
    {
        drift.push(RulesDrift::NoRouteLocalnet(device.clone()));
    }
    if let Some(traffic) = attachment.traffic.as_ref().filter(|traffic| !traffic.device.is_empty()) {
        drift.extend(forward::drift(nft, &traffic.device)?);
    }
    Ok(drift)
}

/// What an element is for.
fn describe(content: &Content, set: SetRef, element: &Element) -> String {
    if let Some(port) = content.ports.get(&(set, element.key.clone())) {
        return format!("host port {port}");
    }
    let key = element.key.as_slice();
    let address: Option<IpAddr> = match key.len() {
        4 => <[u8; 4]>::try_from(key).ok().map(Into::into),
        16 if set.name.ends_with('6') => <[u8; 16]>::try_from(key).ok().map(Into::into),
        _ => None,
    };
    match address {
        Some(address) => format!("address {address}"),
        None if set.name.starts_with("snat") => "a host port's clients".to_owned(),
        None => {
            let name = key.get(..16.min(key.len())).unwrap_or_default();
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            format!("link {}", String::from_utf8_lossy(name))
        }
    }
}
