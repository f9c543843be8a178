//! What libcni remembers of each attachment (/var/lib/cni/results): a second witness after the store was lost.
//!
//! A runtime built on libcni writes one file for each attachment when its ADD has succeeded and removes it at DEL.
//! The files are read, never written, and not trusted: a container may be long dead, so only those count whose netns
//! is still there.

use std::fs::{self, File};
use std::io::Read;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use ipnetwork::IpNetwork;
use podwire_attach::{Owner, PodAddress, PodName};
use serde_json::Value;

use crate::import::{is_ifname, is_name};

/// Where libcni keeps them, unless a runtime has it otherwise.
pub const DIRECTORY: &str = "/var/lib/cni/results";

/// A result with several addresses and its configuration list takes a few KiB.
const MAX_FILE: u64 = 256 * 1024;
const MAX_FILES: usize = 1 << 16;

/// What one file tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedResult {
    /// Whose attachment it was.
    pub owner: Owner,
    /// Which of the addresses' keepers made it.
    pub kept_by: Keeper,
    /// The addresses that the result names for the interface.
    pub addresses: Vec<PodAddress>,
    /// The netns in which the result places the interface.
    pub netns: Option<String>,
    /// The pod, where the runtime named it in CNI_ARGS.
    pub pod: Option<PodName>,
}

/// Who gave the addresses of a cached result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeper {
    /// `podwire`, which also made the interface.
    Podwire,
    /// `podwire-ipam` under another plugin, which made the interface.
    PodwireIpam,
    /// Another program: not our concern.
    Other,
}

/// Reads all cached results that are well-formed. None if there is no such directory.
pub fn read(directory: &Path) -> Vec<CachedResult> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries
        .take(MAX_FILES)
        .filter_map(|entry| {
            let file = File::options()
                .read(true)
                .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOFOLLOW)
                .open(entry.ok()?.path())
                .ok()?;
            if !file.metadata().ok()?.is_file() {
                return None;
            }
            let mut bytes = Vec::new();
            file.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
            parse(&bytes)
        })
        .collect()
}

/// What one file's content tells; `None` if it is not libcni's.
pub fn parse(bytes: &[u8]) -> Option<CachedResult> {
    let cached: Value = serde_json::from_slice(bytes).ok()?;
    if cached.get("kind")?.as_str()? != "cniCacheV1" {
        return None;
    }
    let text = |key: &str| Some(cached.get(key)?.as_str()?.to_owned());
    let owner = Owner::new(text("networkName")?, text("containerId")?, text("ifName")?);
    if !is_name(&owner.network) || !is_name(&owner.container) || !is_ifname(&owner.ifname) {
        return None;
    }
    let config = base64(cached.get("config")?.as_str()?)?;
    let result = cached.get("result")?;
    let (addresses, netns) = addresses(result, &owner.ifname);
    Some(CachedResult { kept_by: keeper(&config), owner, addresses, netns, pod: pod(cached.get("cniArgs")) })
}

/// The pod that `[["K8S_POD_NAMESPACE","default"],…]` names. Without both there is none.
fn pod(args: Option<&Value>) -> Option<PodName> {
    /// The longest name in Kubernetes: a DNS subdomain.
    const LONGEST: usize = 253;
    let args = args?.as_array()?;
    let value = |key: &str| {
        let pair = args.iter().find(|pair| pair.get(0).and_then(Value::as_str) == Some(key))?;
        let value = pair.get(1)?.as_str()?;
        (!value.is_empty() && value.len() <= LONGEST).then(|| value.to_owned())
    };
    Some(PodName {
        namespace: value("K8S_POD_NAMESPACE")?,
        name: value("K8S_POD_NAME")?,
        uid: value("K8S_POD_UID").unwrap_or_default(),
    })
}

/// The configuration is one plugin's, or a list of plugins.
fn keeper(config: &[u8]) -> Keeper {
    let Ok(config) = serde_json::from_slice::<Value>(config) else { return Keeper::Other };
    let plugins = match config.get("plugins").and_then(Value::as_array) {
        Some(plugins) => plugins.as_slice(),
        None => std::slice::from_ref(&config),
    };
    let is = |value: Option<&Value>, name: &str| value.and_then(Value::as_str) == Some(name);
    for plugin in plugins {
        let ipam = plugin.get("ipam").and_then(|ipam| ipam.get("type"));
        if is(plugin.get("type"), "podwire") {
            return Keeper::Podwire;
        }
        if is(ipam, "podwire-ipam") {
            return Keeper::PodwireIpam;
        }
    }
    Keeper::Other
}

/// The interface's addresses and its netns, of a result of any version.
fn addresses(result: &Value, ifname: &str) -> (Vec<PodAddress>, Option<String>) {
    let interfaces = result.get("interfaces").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let in_pod = |interface: &Value| {
        interface.get("name").and_then(Value::as_str) == Some(ifname) && sandbox(interface).is_some()
    };
    let netns = interfaces.iter().find(|interface| in_pod(interface)).and_then(sandbox).map(str::to_owned);
    let of_pod = |ip: &&Value| match ip.get("interface").and_then(Value::as_u64) {
        // Without an interface all addresses are the pod's.
        None => true,
        Some(index) => usize::try_from(index).ok().and_then(|i| interfaces.get(i)).is_some_and(in_pod),
    };
    let mut addresses: Vec<PodAddress> = result
        .get("ips")
        .and_then(Value::as_array)
        .map_or(&[][..], Vec::as_slice)
        .iter()
        .filter(of_pod)
        .filter_map(|ip| address(ip, "address"))
        .collect();
    // Versions before 0.3.
    addresses.extend(["ip4", "ip6"].iter().filter_map(|family| address(result.get(family)?, "ip")));
    (addresses, netns)
}

fn address(value: &Value, key: &str) -> Option<PodAddress> {
    let address: IpNetwork = value.get(key)?.as_str()?.parse().ok()?;
    let gateway: Option<IpAddr> =
        value.get("gateway").and_then(Value::as_str).and_then(|text| text.parse().ok());
    Some(PodAddress { address, gateway })
}

fn sandbox(interface: &Value) -> Option<&str> {
    interface.get("sandbox")?.as_str().filter(|path| !path.is_empty())
}

/// Go writes a byte slice so: the standard alphabet, padded.
fn base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=');
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    let (mut bits, mut count) = (0_u32, 0_u32);
    for digit in text.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count & 0xff) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(text: &str) -> String {
        const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        text.as_bytes()
            .chunks(3)
            .flat_map(|chunk| {
                let bits = chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte))
                    << (8 * (3 - chunk.len()));
                (0..4).map(move |i| match i <= chunk.len() {
                    true => DIGITS[(bits >> (18 - 6 * i) & 63) as usize] as char,
                    false => '=',
                })
            })
            .collect()
    }

    fn cached(config: &str, result: &str) -> String {
        format!(
            r#"{{"kind":"cniCacheV1","containerId":"c1","config":"{}","ifName":"eth0","networkName":"net","cniArgs":[["IgnoreUnknown","1"]],"capabilityArgs":{{}},"result":{result}}}"#,
            encode(config)
        )
    }

    const ONE: &str = r#"{"cniVersion":"1.0.0","interfaces":[{"name":"cni0","mac":"a"},{"name":"pw1"},{"name":"eth0","sandbox":"/run/netns/x"}],
        "ips":[{"address":"10.9.0.2/24","gateway":"10.9.0.1","interface":2},{"address":"10.9.0.1/24","interface":0},{"address":"fd00::2/64"}]}"#;

    #[test]
    fn a_result_of_our_plugin_gives_owner_addresses_and_netns() {
        let list = r#"{"name":"net","plugins":[{"type":"portmap"},{"type":"podwire","ipam":{"type":"host-local"}}]}"#;
        let result = parse(cached(list, ONE).as_bytes()).expect("libcni's");
        assert_eq!(result.kept_by, Keeper::Podwire);
        assert_eq!(result.owner.to_string(), "eth0 of container c1 on network net");
        assert_eq!(result.netns.as_deref(), Some("/run/netns/x"));
        let addresses: Vec<String> = result.addresses.iter().map(|a| a.address.to_string()).collect();
        assert_eq!(addresses, ["10.9.0.2/24", "fd00::2/64"]);
        assert_eq!(result.addresses[0].gateway, Some("10.9.0.1".parse().unwrap()));
    }

    #[test]
    fn the_pod_is_named_by_the_runtimes_arguments() {
        let pod = |args: &str| {
            let text = cached(r#"{"type":"podwire"}"#, ONE).replace(r#"[["IgnoreUnknown","1"]]"#, args);
            parse(text.as_bytes()).expect("libcni's").pod
        };
        let named = r#"[["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","default"],["K8S_POD_NAME","web"],["K8S_POD_UID","u"]]"#;
        let web = |uid: &str| PodName { namespace: "default".into(), name: "web".into(), uid: uid.into() };
        assert_eq!(pod(named), Some(web("u")));
        assert_eq!(pod(&named.replace("K8S_POD_UID", "other")), Some(web("")));
        let long = format!(r#"[["K8S_POD_NAMESPACE","a"],["K8S_POD_NAME","{}"]]"#, "a".repeat(254));
        for args in
            [r#"[["K8S_POD_NAME","web"]]"#, r#"[["K8S_POD_NAMESPACE",7],["K8S_POD_NAME"]]"#, "7", &long]
        {
            assert_eq!(pod(args), None, "{args}");
        }
    }

    #[test]
    fn the_keeper_is_read_from_single_configurations_and_lists() {
        let table = [
            (r#"{"type":"podwire"}"#, Keeper::Podwire),
            (r#"{"type":"bridge","ipam":{"type":"podwire-ipam"}}"#, Keeper::PodwireIpam),
            (r#"{"plugins":[{"type":"macvlan","ipam":{"type":"podwire-ipam"}}]}"#, Keeper::PodwireIpam),
            (r#"{"type":"bridge","ipam":{"type":"host-local"}}"#, Keeper::Other),
            (r#"{"plugins":7}"#, Keeper::Other),
            ("no json", Keeper::Other),
        ];
        for (config, keeper) in table {
            assert_eq!(parse(cached(config, ONE).as_bytes()).map(|r| r.kept_by), Some(keeper), "{config}");
        }
    }

    #[test]
    fn old_results_are_read() {
        let old = r#"{"cniVersion":"0.2.0","ip4":{"ip":"10.9.0.3/24","gateway":"10.9.0.1"},"ip6":{"ip":"fd00::3/64"}}"#;
        let result = parse(cached(r#"{"type":"podwire"}"#, old).as_bytes()).expect("libcni's");
        assert_eq!(result.addresses.len(), 2);
        assert_eq!(result.netns, None);
    }

    #[test]
    fn what_is_not_libcnis_is_passed_over() {
        let good = cached("{}", "{}");
        assert!(parse(good.as_bytes()).is_some());
        for (from, to) in [
            ("cniCacheV1", "cniCacheV9"),
            ("\"c1\"", "\"../c1\""),
            ("\"eth0\"", "\"eth0/1\""),
            ("\"net\"", "\"\""),
            ("\"e30=\"", "\"!!\""),
            ("\"result\"", "\"other\""),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good, "{from}");
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
        for bytes in [&b""[..], b"[]", b"null", b"\xff\xff", b"{\"kind\":1}"] {
            assert_eq!(parse(bytes), None);
        }
    }

    #[test]
    fn a_directory_with_anything_in_it_is_read() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("net-c1-eth0"), cached(r#"{"type":"podwire"}"#, ONE)).unwrap();
        fs::write(root.path().join("garbage"), b"\0\0").unwrap();
        fs::create_dir(root.path().join("directory")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", root.path().join("link")).unwrap();
        assert_eq!(read(root.path()).len(), 1);
        assert_eq!(read(&root.path().join("missing")), []);
    }
}
