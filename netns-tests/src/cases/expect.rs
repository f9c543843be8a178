//! What must come of a call: the answer's form, which all rows share, and its content.

use std::net::IpAddr;

use serde_json::Value;

use crate::plugin::Answer;

/// What comes of a call.
#[derive(Debug, Clone)]
pub enum Expect {
    /// Success.
    Ok(Vec<Want>),
    /// A CNI error.
    Error {
        /// Its code.
        code: u64,
        /// What its message or details say, whatever the case.
        says: Vec<&'static str>,
    },
    /// Whatever this machine's kernel makes of it.
    Anything,
    /// Exit code 0, nothing on standard output, and these words on standard error.
    About(&'static [&'static str]),
}

/// Something that a result has.
#[derive(Debug, Clone)]
pub enum Want {
    /// Exactly these addresses, in any version's form, in this order.
    Addresses(&'static [&'static str]),
    /// Exactly these gateways, one for each address.
    Gateways(&'static [&'static str]),
    /// Exactly these routes as `dst` or `dst via gw`, in any version's form and any order.
    Routes(&'static [&'static str]),
    /// This value at this JSON pointer.
    At(&'static str, Value),
    /// Nothing, or an empty list or object, at this JSON pointer.
    Nothing(&'static str),
    /// The result of the ADD of this pod, word for word.
    SameAs(&'static str),
    /// The MAC address of the container's interface.
    Mac(&'static str),
}

/// Success, with all these.
pub fn ok(wants: &[Want]) -> Expect {
    Expect::Ok(wants.to_vec())
}

/// An error with this code that says all these.
pub fn error(code: u64, says: &[&'static str]) -> Expect {
    Expect::Error { code, says: says.to_vec() }
}

/// What the expectations of one call are judged by.
pub(super) struct Judge<'a> {
    pub(super) version: &'a str,
    pub(super) verb: &'a str,
    pub(super) reference: bool,
    /// The expectation is of the reference alone, and its form may be among what differs.
    pub(super) overridden: bool,
    /// The plugin makes no interfaces.
    pub(super) ipam: bool,
    /// The result of a pod's last ADD.
    pub(super) added: &'a dyn Fn(&str) -> Option<Value>,
}

impl Judge<'_> {
    /// Compares an answer with what it must be.
    pub(super) fn judge(&self, expect: &Expect, answer: &Answer) -> Result<(), String> {
        match expect {
            Expect::Ok(wants) => self.success(wants, answer),
            Expect::Error { code, says } => self.failure(*code, says, answer),
            Expect::Anything => Ok(()),
            Expect::About(words) => about(words, answer),
        }
    }

    fn success(&self, wants: &[Want], answer: &Answer) -> Result<(), String> {
        if answer.exit() != Some(0) {
            return Err(format!("failed: {}{}", answer.process.out(), answer.process.err()));
        }
        let null = Value::Null;
        let result = match (self.verb, &answer.json) {
            ("ADD" | "VERSION", Some(json)) => json,
            ("ADD" | "VERSION", None) => return Err(format!("printed no JSON: {:?}", answer.process.out())),
            _ if answer.process.stdout.is_empty() => &null,
            _ => return Err(format!("printed something: {:?}", answer.process.out())),
        };
        if self.verb == "ADD" && !self.overridden {
            self.form(result).map_err(|why| format!("not a {} result ({why}): {result}", self.version))?;
        }
        for want in wants {
            self.want(want, result).map_err(|why| format!("{why} in {result}"))?;
        }
        Ok(())
    }

    fn failure(&self, code: u64, says: &[&str], answer: &Answer) -> Result<(), String> {
        let (got, message) =
            answer.error().map_err(|error| format!("expected error {code}, got {error:?}"))?;
        let json = answer.json.as_ref().unwrap_or(&Value::Null);
        let text = format!("{message}; {}", json["details"].as_str().unwrap_or_default());
        // The reference has this code for almost everything: docs/differences.md, "Everywhere".
        let vague = self.reference && got == 999;
        if got != code && !vague {
            return Err(format!("expected error {code}, got {got}: {text}"));
        }
        // Debian's reference plugins print errors without the version.
        if !self.reference && !json["cniVersion"].is_string() {
            return Err(format!("an error without cniVersion: {json}"));
        }
        if message.is_empty() {
            return Err("an error without a message".to_owned());
        }
        let folded = text.to_lowercase();
        match says.iter().find(|part| !folded.contains(&part.to_lowercase())) {
            Some(part) => Err(format!("the error does not say {part:?}: {text}")),
            None => Ok(()),
        }
    }

    fn want(&self, want: &Want, result: &Value) -> Result<(), String> {
        let differ = |what: &str, wanted: &[&str], got: Vec<String>| {
            if wanted.iter().copied().eq(got.iter().map(String::as_str)) {
                Ok(())
            } else {
                Err(format!("expected {what} {wanted:?}, got {got:?}"))
            }
        };
        match want {
            Want::Addresses(wanted) => differ("addresses", wanted, each_ip(result, "address", "ip")),
            Want::Gateways(wanted) => differ("gateways", wanted, each_ip(result, "gateway", "gateway")),
            Want::Routes(wanted) => {
                let mut sorted = wanted.to_vec();
                sorted.sort_unstable();
                differ("routes", &sorted, routes(result))
            }
            Want::At(pointer, wanted) => match result.pointer(pointer) {
                Some(got) if got == wanted => Ok(()),
                got => Err(format!("expected {wanted} at {pointer}, got {got:?}")),
            },
            Want::Nothing(pointer) => match result.pointer(pointer) {
                None | Some(Value::Null) => Ok(()),
                Some(Value::Array(list)) if list.is_empty() => Ok(()),
                Some(Value::Object(map)) if map.is_empty() => Ok(()),
                Some(got) => Err(format!("expected nothing at {pointer}, got {got}")),
            },
            Want::SameAs(pod) => match (self.added)(pod) {
                Some(before) if before == *result => Ok(()),
                before => Err(format!("expected the answer of before, {before:?},")),
            },
            Want::Mac(wanted) => {
                let interfaces = result["interfaces"].as_array();
                let mac = interfaces
                    .into_iter()
                    .flatten()
                    .find(|link| link["sandbox"].is_string())
                    .map(|link| &link["mac"]);
                if mac.and_then(Value::as_str) == Some(wanted) {
                    Ok(())
                } else {
                    Err(format!("expected MAC {wanted}, got {mac:?}"))
                }
            }
        }
    }

    /// Checks that a result has the form of its version: these keys and no other, of these types.
    fn form(&self, result: &Value) -> Result<(), String> {
        if result["cniVersion"] != self.version {
            return Err(format!("cniVersion is {}", result["cniVersion"]));
        }
        if self.version < "0.3.0" {
            keys(result, &["cniVersion", "ip4", "ip6", "dns"])?;
            let mut families = 0;
            for (key, is_family) in
                [("ip4", IpAddr::is_ipv4 as fn(&IpAddr) -> bool), ("ip6", IpAddr::is_ipv6)]
            {
                let Some(config) = result.get(key) else { continue };
                families += 1;
                keys(config, &["ip", "gateway", "routes"])?;
                if !address(&config["ip"]).is_some_and(|ip| is_family(&ip)) {
                    return Err(format!("{key} is {}", config["ip"]));
                }
                each(config, "routes", |route| keys(route, &["dst", "gw"]))?;
            }
            return if families == 0 { Err("no address".to_owned()) } else { Ok(()) };
        }
        let newest = self.version >= "1.1.0";
        keys(result, &["cniVersion", "interfaces", "ips", "routes", "dns"])?;
        if self.ipam != result.get("interfaces").is_none() {
            return Err("interfaces belong to the main plugin's result alone".to_owned());
        }
        let count = result["interfaces"].as_array().map_or(0, Vec::len);
        each(result, "interfaces", |link| {
            let more: &[&str] = if newest { &["mtu", "socketPath", "pciID"] } else { &[] };
            keys(link, &[&["name", "mac", "sandbox"], more].concat())?;
            if link["name"].is_string() { Ok(()) } else { Err("an interface without a name".to_owned()) }
        })?;
        each(result, "ips", |ip| {
            let old = self.version < "1.0.0";
            keys(
                ip,
                if old {
                    &["version", "interface", "address", "gateway"]
                } else {
                    &["interface", "address", "gateway"]
                },
            )?;
            let address = address(&ip["address"]).ok_or_else(|| format!("the address {}", ip["address"]))?;
            if old && ip["version"] != if address.is_ipv4() { "4" } else { "6" } {
                return Err(format!("version {} of {address}", ip["version"]));
            }
            match ip["interface"].as_u64() {
                None if self.ipam => Ok(()),
                Some(index) if !self.ipam && (index as usize) < count => Ok(()),
                index => Err(format!("the interface index {index:?} of {address}")),
            }
        })?;
        each(result, "routes", |route| {
            let more: &[&str] = if newest { &["mtu", "advmss", "priority", "table", "scope"] } else { &[] };
            keys(route, &[&["dst", "gw"], more].concat())
        })?;
        if !self.reference
            && self.version >= "1.0.0"
            && result.get("dns").is_some_and(|dns| *dns == serde_json::json!({}))
        {
            return Err("dns is empty, and 1.x leaves it out then".to_owned());
        }
        Ok(())
    }
}

fn about(words: &[&str], answer: &Answer) -> Result<(), String> {
    let text = answer.process.err();
    if answer.exit() != Some(0) || !answer.process.stdout.is_empty() {
        return Err(format!(
            "expected text on stderr alone and exit code 0: {:?} {:?}",
            answer.exit(),
            answer.process.out()
        ));
    }
    match words.iter().find(|word| !text.contains(**word)) {
        Some(word) => Err(format!("the about text does not say {word:?}: {text}")),
        None => Ok(()),
    }
}

fn keys(object: &Value, allowed: &[&str]) -> Result<(), String> {
    let map = object.as_object().ok_or_else(|| format!("{object} is no object"))?;
    match map.keys().find(|key| !allowed.contains(&key.as_str())) {
        Some(key) => Err(format!("a key {key:?}")),
        None => Ok(()),
    }
}

fn each(object: &Value, key: &str, check: impl Fn(&Value) -> Result<(), String>) -> Result<(), String> {
    match object.get(key) {
        None => Ok(()),
        Some(Value::Array(list)) => list.iter().try_for_each(check),
        Some(other) => Err(format!("{key} is {other}")),
    }
}

/// The address of `address/prefix`.
fn address(text: &Value) -> Option<IpAddr> {
    let (address, prefix) = text.as_str()?.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    prefix.parse::<u8>().is_ok_and(|prefix| prefix <= longest).then_some(address)
}

/// One key of each address of a result: `new` in `ips`, `old` in `ip4` and `ip6`.
fn each_ip(result: &Value, new: &str, old: &str) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or("none").to_owned();
    match result["ips"].as_array() {
        Some(ips) => ips.iter().map(|ip| text(&ip[new])).collect(),
        None => {
            ["ip4", "ip6"].iter().filter_map(|family| result.get(family)).map(|ip| text(&ip[old])).collect()
        }
    }
}

/// The routes of a result, sorted. Without a gateway they are as IPAM gave them.
fn routes(result: &Value) -> Vec<String> {
    let places = [&result["routes"], &result["ip4"]["routes"], &result["ip6"]["routes"]];
    let mut found: Vec<_> = places
        .iter()
        .filter_map(|place| place.as_array())
        .flatten()
        .map(|route| match (route["dst"].as_str().unwrap_or("none"), route["gw"].as_str()) {
            (dst, Some(gw)) => format!("{dst} via {gw}"),
            (dst, None) => dst.to_owned(),
        })
        .collect();
    found.sort();
    found
}
