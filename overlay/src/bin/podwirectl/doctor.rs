//! `podwirectl doctor`: reads what the examination is made of.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use podwire_ipam::Dirs;
use podwire_kernel::link::Link;
use podwire_kernel::nft::Nft;
use podwire_kernel::route::RouteFilter;
use podwire_kernel::{Family, Netlink, clock, legacy_iptables, offload, sysctl};
use podwire_overlay::adoption::Adoption;
use podwire_overlay::conflist;
use podwire_overlay::doctor::{self, Facts, Flannel, Networkd};
use podwire_overlay::explain::DEVICE_ALIAS;
use podwire_overlay::leases;
use podwire_overlay::status::PodStatus;
use serde_json::Value;

use crate::cli;
use crate::explain::ruleset;
use crate::ipam;
use crate::node::Known;
use crate::output::{Failure, Output, Verdict};

/// The bridge where nothing says otherwise.
const BRIDGE: &str = "podwire0";

/// The network where nothing says otherwise.
const NETWORK: &str = "podwire";

pub(crate) fn run(dirs: &Dirs, options: &cli::Doctor, output: &Output) -> Result<Verdict, Failure> {
    let facts = gather(dirs, options)?;
    let findings = doctor::examine(&facts);
    if output.json {
        output.value(&findings)?;
    } else {
        output.raw(&doctor::text(&findings, output.style))?;
    }
    Ok((!findings.iter().any(doctor::is_problem)).into())
}

fn gather(dirs: &Dirs, options: &cli::Doctor) -> Result<Facts, Failure> {
    let known = Known::gather(dirs)?;
    let mut unread = Vec::new();
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    let mut routes = Vec::new();
    for family in [Family::V4, Family::V6] {
        routes.extend(netlink.routes(&RouteFilter::main(family))?);
    }
    let (leases, pods) = match ipam::leases(dirs, None) {
        Ok(leases) => {
            let boot = clock::boot_id()?;
            let pods: Vec<PodStatus> = leases.iter().map(leases::pod_status).collect();
            (leases::check(&leases, &links, &boot), pods)
        }
        Err(failure) => {
            unread.push(failure.text);
            (Vec::new(), Vec::new())
        }
    };
    let adoption = Adoption::load(&dirs.state).map_err(|error| unread.push(error)).ok().flatten();
    let adopted = adoption.and_then(|adoption| adoption.bridge);
    let bridge =
        options.bridge.clone().or(adopted).or_else(|| pods.iter().find_map(|pod| pod.bridge.clone()));
    let bridge = bridge.unwrap_or_else(|| BRIDGE.to_owned());
    let mut legacy_drops = Vec::new();
    for family in [Family::V4, Family::V6] {
        match legacy_iptables::drops_forwarded(family, &bridge) {
            Ok(true) => legacy_drops.push(family),
            Ok(false) => {}
            Err(error) => unread.push(error.to_string()),
        }
    }
    let legacy_tunnel_drops = legacy_tunnel_drops(&links, &mut unread);
    let ruleset = ruleset().map_err(|failure| unread.push(failure.text)).ok();
    let tables = Nft::open().and_then(|mut nft| nft.tables()).unwrap_or_default();
    let sysctls = doctor::sysctls(&links)
        .into_iter()
        .filter_map(|name| Some((name.clone(), sysctl::read(&name).ok()?)));
    let ours = links.iter().filter(|link| link.alias.as_deref() == Some(DEVICE_ALIAS));
    let without_offload =
        ours.filter(|link| offload::tx_checksum(&link.name) == Ok(false)).map(|link| link.name.clone());
    let rivals = conflist::rivals(&options.conflist, NETWORK).map_err(|error| {
        unread.push(format!("read the directory of {}: {error}", options.conflist.display()));
    });
    let rivals = rivals.unwrap_or_default().into_iter();
    Ok(Facts {
        subnets: own_subnets(&known),
        addresses: netlink.addresses(None)?,
        routes,
        bridge,
        ruleset,
        tables: tables.iter().map(|found| format!("{} {}", found.object.family, found.object.name)).collect(),
        legacy_drops,
        legacy_tunnel_drops,
        is_kubernetes: known
            .status
            .as_ref()
            .and_then(|status| status.store.as_ref())
            .is_some_and(|store| store.kind == "kubernetes"),
        flannel: flannel(&options.conflist),
        sysctls: sysctls.collect(),
        without_offload: without_offload.collect(),
        networkd: networkd(),
        rivals: rivals.map(|rival| rival.to_string()).collect(),
        leases,
        now: Some(SystemTime::now()),
        newest_file: newest(&[
            dirs.state.join("cluster.json"),
            dirs.state.join("identity.json"),
            dirs.lock(),
        ]),
        release: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        peers: known.peers.unwrap_or_default(),
        config: known.config,
        status: known.status,
        silence: known.silence,
        links,
        unread,
    })
}

/// For each of podwire's devices: whether legacy iptables lets its datagrams in.
fn legacy_tunnel_drops(links: &[Link], unread: &mut Vec<String>) -> Vec<(Family, u16)> {
    let ours = links.iter().filter(|link| link.alias.as_deref() == Some(DEVICE_ALIAS));
    let mut drops = Vec::new();
    for vxlan in ours.filter_map(|link| link.vxlan.as_ref()) {
        let Some(local) = vxlan.local else { continue };
        let family = Family::of(local);
        match legacy_iptables::drops_received(family, vxlan.port) {
            Ok(true) => drops.push((family, vxlan.port)),
            Ok(false) => {}
            Err(error) => unread.push(error.to_string()),
        }
    }
    drops.dedup();
    drops
}

/// What runs of flannel, and what its installation has written beside our conflist.
fn flannel(conflist: &Path) -> Flannel {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        let process: u32 = entry.file_name().to_str()?.parse().ok()?;
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        (name.trim() == "flanneld").then_some(process)
    });
    let mut processes: Vec<u32> = processes.collect();
    processes.sort_unstable();
    let directory = conflist.parent().unwrap_or(Path::new("/etc/cni/net.d"));
    let configurations = ["conf", "conflist", "json"].into_iter().flat_map(|ending| files(directory, ending));
    let conflists = configurations.filter(|path| {
        let document = fs::read(path).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
        document.is_some_and(|document| conflist::has_plugin(&document, "flannel"))
    });
    Flannel { processes, conflists: conflists.map(|path| path.display().to_string()).collect() }
}

fn own_subnets(known: &Known) -> Vec<ipnetwork::IpNetwork> {
    let by_status =
        known.status.as_ref().map(|status| status.subnets.clone()).filter(|subnets| !subnets.is_empty());
    by_status.unwrap_or_else(|| {
        let own = known.peers.iter().flatten().find(|peer| peer.is_self);
        own.map(|own| own.record.subnets.clone()).unwrap_or_default()
    })
}

fn newest(paths: &[PathBuf]) -> Option<SystemTime> {
    paths.iter().filter_map(|path| fs::metadata(path).ok()?.modified().ok()).max()
}

/// Whether systemd-networkd runs here, and what its files say. None of them is a reason to fail.
fn networkd() -> Option<Networkd> {
    // It writes its state there while it runs, and the directory goes with it.
    if !Path::new("/run/systemd/netif/state").exists() {
        return None;
    }
    let mut found = Networkd::default();
    // In the order in which systemd reads them: later ones win.
    for dir in ["/usr/lib/systemd", "/lib/systemd", "/run/systemd", "/etc/systemd"].map(Path::new) {
        for text in std::iter::once(dir.join("networkd.conf"))
            .chain(files(&dir.join("networkd.conf.d"), "conf"))
            .filter_map(read)
        {
            if let Some(value) = setting(&text, "ManageForeignRoutes") {
                found.manages_foreign_routes =
                    Some(["1", "yes", "true", "on"].contains(&value.to_lowercase().as_str()));
            }
        }
        for text in files(&dir.join("network"), "network").into_iter().filter_map(read) {
            let is_ours = setting(&text, "Name")
                .is_some_and(|names| names.split_whitespace().any(|name| name.starts_with("podwire")));
            found.leaves_ours_alone |=
                is_ours && setting(&text, "KeepConfiguration").is_some_and(|value| value != "no");
        }
    }
    Some(found)
}

fn files(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|found| found == ending));
    files.sort();
    files
}

fn read(path: PathBuf) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// The last value of a key in a file of systemd's.
fn setting<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';']));
    let of_key = lines.filter_map(|line| line.split_once('=')).filter(|(found, _)| found.trim() == key);
    of_key.map(|(_, value)| value.trim()).next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_counts_and_comments_do_not() {
        let text = "[Network]\n#ManageForeignRoutes=no\nManageForeignRoutes = yes\nManageForeignRoutes=no\n";
        assert_eq!(setting(text, "ManageForeignRoutes"), Some("no"));
        assert_eq!(setting(text, "Foreign"), None);
    }
}
