//! The node below the plugin misbehaves: it reboots, its disk fills up, its store breaks, its clock jumps, its ranges
//! are changed, its multicast state expires, it lives by router advertisements.

use std::fs::{self, File};
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use podwire_netns_tests::faults::{
    ADDRESS_REFUSED, Agent, BRIDGE, GATEWAY, Site, TRY_AGAIN, addresses, each, network, pool,
};
use podwire_netns_tests::{LIMIT, LabError, NodeOptions, Pod, Result, program, wait_for};
use serde_json::{Value, json};

const DB: &str = "/var/lib/podwire/ipam/db";
/// The store as it was some pods before.
const OLDER: &str = "/var/lib/podwire/older";

fn parse(address: &str) -> Result<IpAddr> {
    address.parse().map_err(LabError::because(address))
}

fn ip(site: &Site, args: &str) -> Result<()> {
    let args: Vec<_> = args.split(' ').collect();
    site.node().run("ip", &args)?.success("ip").map(drop)
}

// -- reboot --

#[test]
fn a_reboot_frees_all_addresses_at_once() -> Result<()> {
    for with_agent in [false, true] {
        let site = Site::new("reboot")?;
        let config = pool(2);
        let before = site.pods("before", 2)?;
        for pod in &before {
            site.add(pod, &config)?;
        }
        // What a reboot leaves of a node: its disk.
        let links = site.node().links()?;
        for link in &links {
            ip(&site, &format!("link del {link}"))?;
        }
        fs::remove_dir_all(site.node().path("/run/podwire"))
            .map_err(LabError::because("empty /run/podwire"))?;
        site.node().set_boot_id("11111111-2222-4333-8444-555555555555")?;
        let agent = if with_agent { Some(site.agent()?) } else { None };

        let after = site.pods("after", 2)?;
        let first = site.add(&after[0], &config)?;
        let second = site.add(&after[1], &config)?;
        // The runtime tidies up late, with the old ids, and with netns paths that are gone.
        for pod in before {
            pod.unmount()?;
            site.del(&pod, &config)?;
        }
        site.check(&after[0], &config, &first)?.ok()?;
        site.check(&after[1], &config, &second)?.ok()?;
        after[0].ping(addresses(&second)[0])?;
        for pod in &after {
            site.del(pod, &config)?;
        }
        site.assert_nothing_left()?;
        agent.map_or(Ok(()), Agent::stop)?;
    }
    Ok(())
}

// -- disk --

/// Fills a file system of the node to the last byte.
fn fill(site: &Site, directory: &str) -> Result<()> {
    let mut filler = program("sh");
    filler
        .args(["-c", &format!("cat /dev/zero > {directory}/filler 2>/dev/null; test -s {directory}/filler")]);
    site.node().run_with(&mut filler, b"", LIMIT)?.success("fill the disk").map(drop)
}

#[test]
fn a_full_disk_refuses_new_pods_and_harms_none() -> Result<()> {
    for with_agent in [false, true] {
        let directory = "/var/lib/podwire";
        let small = vec![(directory.into(), 8 << 20)];
        let site = Site::with("full", &NodeOptions { small, ..NodeOptions::default() })?;
        let agent = if with_agent { Some(site.agent()?) } else { None };
        let config = pool(3);
        let pods = site.pods("p", 3)?;
        let results = [site.add(&pods[0], &config)?, site.add(&pods[1], &config)?];

        fill(&site, directory)?;
        for _ in 0..3 {
            let (code, message) = site.call("ADD", &pods[2], &config).run(site.node())?.error()?;
            assert_eq!(code, TRY_AGAIN, "{message}");
            assert!(message.contains(directory), "which disk? {message}");
            assert_eq!(pods[2].links()?, [""; 0]);
        }
        // A DEL that cannot be recorded is not done, or it is done whole.
        let del = site.call("DEL", &pods[1], &config).run(site.node())?;
        if del.exit() != Some(0) {
            assert_eq!(del.error()?.0, TRY_AGAIN);
        }
        pods[0].ping(parse(GATEWAY)?)?;

        fs::remove_file(site.node().path(format!("{directory}/filler")))
            .map_err(LabError::because("make room"))?;
        site.check(&pods[0], &config, &results[0])?.ok()?;
        site.del(&pods[1], &config)?;
        site.assert_pool_whole(&config, 3, &addresses(&results[0]))?;
        site.del(&pods[0], &config)?;
        site.assert_nothing_left()?;
        agent.map_or(Ok(()), Agent::stop)?;
    }
    Ok(())
}

#[test]
fn a_disk_that_was_full_from_the_start() -> Result<()> {
    let small = vec![("/var/lib/podwire".into(), 65536)];
    let site = Site::with("full-start", &NodeOptions { small, ..NodeOptions::default() })?;
    fill(&site, "/var/lib/podwire")?;
    let pod = site.pod("p")?;
    let (code, message) = site.call("ADD", &pod, &pool(1)).run(site.node())?.error()?;
    assert_eq!(code, TRY_AGAIN, "{message}");
    assert_eq!(site.node().links()?, [""; 0]);
    assert_eq!(pod.links()?, [""; 0]);
    Ok(())
}

// -- store --

/// A way to break a store: a name, and what is done to its directory.
struct Damage(&'static str, fn(&Site) -> std::io::Result<()>);

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

/// The store's file up to the last byte that is not 0: sled makes it far longer than what it has to say.
fn used(site: &Site) -> std::io::Result<Vec<u8>> {
    let mut bytes = fs::read(site.node().path(DB))?;
    bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
    Ok(bytes)
}

fn truncate(site: &Site, keep: impl Fn(usize) -> usize) -> std::io::Result<()> {
    let bytes = used(site)?;
    fs::write(site.node().path(DB), &bytes[..keep(bytes.len())])
}

fn scribble(site: &Site, part: impl Fn(usize) -> std::ops::Range<usize>) -> std::io::Result<()> {
    let mut bytes = used(site)?;
    let part = part(bytes.len());
    for (number, byte) in bytes[part].iter_mut().enumerate() {
        // Garbage, and the same at each run.
        *byte = (number as u8).wrapping_mul(167) ^ 0x5a;
    }
    let mut db = File::options().write(true).open(site.node().path(DB))?;
    std::io::Write::write_all(&mut db, &bytes)
}

#[test]
fn a_truncated_or_garbage_store_costs_no_pod_its_address() -> Result<()> {
    let table = [
        Damage("truncated to nothing", |site| truncate(site, |_| 0)),
        Damage("truncated to an eighth", |site| truncate(site, |len| len / 8)),
        Damage("truncated to a half", |site| truncate(site, |len| len / 2)),
        Damage("truncated to three quarters", |site| truncate(site, |len| len * 3 / 4)),
        Damage("truncated by two hundred bytes", |site| truncate(site, |len| len - 200)),
        Damage("truncated by a twentieth", |site| truncate(site, |len| len * 95 / 100)),
        Damage("truncated by two twentieths", |site| truncate(site, |len| len * 90 / 100)),
        Damage("truncated by three twentieths", |site| truncate(site, |len| len * 85 / 100)),
        Damage("truncated by four twentieths", |site| truncate(site, |len| len * 80 / 100)),
        Damage("truncated by a byte", |site| truncate(site, |len| len - 1)),
        Damage("garbage", |site| scribble(site, |len| 0..len)),
        Damage("garbage at the start", |site| scribble(site, |_| 0..64)),
        Damage("garbage in the first half", |site| scribble(site, |len| 512..len / 2)),
        Damage("garbage in the second half", |site| scribble(site, |len| len / 2..len)),
        Damage("garbage in the last quarter", |site| scribble(site, |len| len * 3 / 4..len)),
        Damage("garbage in the last eighth", |site| scribble(site, |len| len * 7 / 8..len)),
        Damage("garbage in the last bytes", |site| scribble(site, |len| len - 10..len)),
        Damage("garbage in the configuration", |site| {
            fs::write(site.node().path("/var/lib/podwire/ipam/conf"), b"garbage")
        }),
        Damage("no configuration", |site| fs::remove_file(site.node().path("/var/lib/podwire/ipam/conf"))),
        Damage("no file", |site| fs::remove_file(site.node().path(DB))),
        Damage("an empty directory", |site| {
            fs::remove_dir_all(site.node().path("/var/lib/podwire/ipam"))?;
            fs::create_dir(site.node().path("/var/lib/podwire/ipam"))
        }),
        Damage("an older copy", |site| {
            fs::remove_dir_all(site.node().path("/var/lib/podwire/ipam"))?;
            fs::rename(site.node().path(OLDER), site.node().path("/var/lib/podwire/ipam"))
        }),
        Damage("no directory", |site| fs::remove_dir_all(site.node().path("/var/lib/podwire/ipam"))),
    ];
    each(&table, 3, |damage| {
        for with_agent in [false, true] {
            live_through(damage, with_agent).map_err(LabError::because(if with_agent {
                "with the agent"
            } else {
                "without the agent"
            }))?;
        }
        Ok(())
    })
}

fn live_through(damage: &Damage, with_agent: bool) -> Result<()> {
    let site = Site::new("damage")?;
    // As many as there are pods and one more: an address too many given would be one given twice.
    let config = pool(5);
    let pods = site.pods("p", 4)?;
    let mut results: Vec<_> = pods[..2].iter().map(|pod| site.add(pod, &config)).collect::<Result<_>>()?;
    site.node().run("cp", &["-a", "/var/lib/podwire/ipam", OLDER])?.success("copy the store")?;
    results.extend(pods[2..].iter().map(|pod| site.add(pod, &config)).collect::<Result<Vec<_>>>()?);
    damage.1(&site).map_err(LabError::because(format!("damage the store: {damage}")))?;
    let agent = if with_agent { Some(site.agent()?) } else { None };

    let new = site.pod("new")?;
    let answer = site.call("ADD", &new, &config).run(site.node())?;
    let told = answer.process.err();
    let given = addresses(&answer.ok()?);
    let earlier: Vec<_> = results.iter().flat_map(addresses).collect();
    if earlier.contains(&given[0]) {
        return Err(LabError::new(format!("{} was given twice; {told}", given[0])));
    }
    let one_more = site.pod("one-more")?;
    let (code, message) = site.call("ADD", &one_more, &config).run(site.node())?.error()?;
    assert_eq!(code, ADDRESS_REFUSED, "{message}");
    for (pod, result) in pods.iter().zip(&results) {
        site.check(pod, &config, result)?.ok().map_err(LabError::because(told.clone()))?;
        pod.ping(given[0])?;
    }
    // It is said, and the old store is kept for whoever wants to look; unless there was nothing to keep.
    if !with_agent && !site.set_aside().is_empty() {
        assert!(told.contains("could not be used") && told.contains("broken"), "{told}");
    }
    for pod in pods.iter().chain([&new, &one_more]) {
        site.del(pod, &config)?;
    }
    assert_eq!(site.node().links()?, [BRIDGE]);
    assert_eq!(site.leases()?, [Value::Null; 0]);
    site.assert_pool_whole(&config, 5, &[])?;
    agent.map_or(Ok(()), Agent::stop)
}

// -- ranges --

#[test]
fn pods_live_on_when_their_range_shrinks() -> Result<()> {
    let site = Site::new("shrunk")?;
    let range = |start: &str, end: &str| {
        network(json!([[{"subnet": "10.77.0.0/24", "rangeStart": start, "rangeEnd": end}]]))
    };
    let wide = range("10.77.0.2", "10.77.0.5");
    let pods = site.pods("p", 4)?;
    let results: Vec<_> = pods.iter().map(|pod| site.add(pod, &wide)).collect::<Result<_>>()?;
    let narrow = range("10.77.0.2", "10.77.0.3");
    let new = site.pod("new")?;
    let (code, message) = site.call("ADD", &new, &narrow).run(site.node())?.error()?;
    assert_eq!(code, ADDRESS_REFUSED, "{message}");
    pods[3].ping(addresses(&results[0])[0])?;
    pods[3].ping(parse(GATEWAY)?)?;
    site.check(&pods[3], &narrow, &results[3])?.ok()?;
    // What lies outside frees nothing inside; what lies inside does.
    site.del(&pods[3], &narrow)?;
    assert_eq!(site.call("ADD", &new, &narrow).run(site.node())?.error()?.0, ADDRESS_REFUSED);
    site.del(&pods[0], &narrow)?;
    assert_eq!(site.add_for_address(&new, &narrow)?, addresses(&results[0])[0]);
    pods[2].ping(addresses(&results[0])[0])?;
    for pod in pods.iter().chain([&new]) {
        site.del(pod, &narrow)?;
    }
    site.assert_nothing_left()
}

#[test]
fn pods_live_on_when_their_range_moves() -> Result<()> {
    let site = Site::new("moved")?;
    let at = |v4: &str, v6: &str| network(json!([[{"subnet": v4}], [{"subnet": v6}]]));
    let (before, after) = (at("10.77.0.0/24", "fd77::/64"), at("10.78.0.0/24", "fd78::/64"));
    let old = site.pods("old", 2)?;
    let results: Vec<_> = old.iter().map(|pod| site.add(pod, &before)).collect::<Result<_>>()?;
    let new = site.pod("new")?;
    let moved = site.add(&new, &after)?;
    assert_eq!(addresses(&moved), [parse("10.78.0.2")?, parse("fd78::2")?]);
    // The gateways that they know answer, and lead to each other.
    for (pod, reaches) in [
        (&old[0], vec![GATEWAY, "fd77::1", "10.77.0.3", "fd77::3", "10.78.0.2", "fd78::2"]),
        (&new, vec!["10.78.0.1", "fd78::1", "10.77.0.2", "fd77::2"]),
    ] {
        for address in reaches {
            pod.ping(parse(address)?)?;
        }
    }
    site.check(&old[1], &before, &results[1])?.ok()?;
    for pod in old.iter().chain([&new]) {
        site.del(pod, &after)?;
    }
    site.assert_nothing_left()
}

// -- clocks --

#[test]
fn the_wall_clock_set_back_changes_nothing() -> Result<()> {
    // The machine's clock is not the test's to set. What a clock that was set back leaves is files from the future.
    let site = Site::new("clock")?;
    let config = pool(2);
    let (first, second, third) = (site.pod("first")?, site.pod("second")?, site.pod("third")?);
    site.add(&first, &config)?;
    let result = site.add(&second, &config)?;
    site.del(&first, &config)?;
    let years_ahead = SystemTime::now() + Duration::from_secs(10 * 365 * 86400);
    let mut files = vec![site.node().path("/var/lib/podwire"), site.node().path("/run/podwire")];
    let mut seen = 0;
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
        let file = File::open(&path).map_err(LabError::because(format!("open {}", path.display())))?;
        file.set_modified(years_ahead).map_err(LabError::because("set a file's time"))?;
        seen += 1;
    }
    assert!(seen > 4, "the store's files are not where they were looked for");
    site.check(&second, &config, &result)?.ok()?;
    // The only other address rests for a minute, and is given when it is the last: by the clock since boot.
    let third_address = site.add_for_address(&third, &config)?;
    assert_ne!(third_address, addresses(&result)[0]);
    site.del(&third, &config)?;
    site.assert_pool_whole(&config, 2, &addresses(&result))?;
    site.del(&second, &config)?;
    site.assert_nothing_left()
}

#[test]
fn a_freed_address_rests_for_a_minute_of_the_clock_since_boot() -> Result<()> {
    let site = Site::new("rest")?;
    let config = pool(3);
    let pods = site.pods("p", 3)?;
    let results: Vec<_> = pods.iter().map(|pod| site.add(pod, &config)).collect::<Result<_>>()?;
    let given: Vec<_> = results.iter().flat_map(addresses).collect();
    assert_eq!(given, [parse("10.77.0.2")?, parse("10.77.0.3")?, parse("10.77.0.4")?]);
    // .3 is freed now, .2 in 100 s. Round robin comes to .2 first; but that one rests then.
    site.del(&pods[1], &config)?;
    // Without an agent the rest may begin only when the store is opened next.
    site.check(&pods[2], &config, &results[2])?.ok()?;
    site.run_later(100, &site.call("DEL", &pods[0], &config))?.ok()?;
    let result = site.run_later(110, &site.call("ADD", &pods[1], &config))?.ok()?;
    assert_eq!(addresses(&result), [parse("10.77.0.3")?]);
    // Better one that rests than none.
    let result = site.run_later(110, &site.call("ADD", &pods[0], &config))?.ok()?;
    assert_eq!(addresses(&result), [parse("10.77.0.2")?]);
    // And a clock that is back by two minutes, which no kernel's is within a boot, keeps no address from a pod.
    for pod in &pods {
        site.del(pod, &config)?;
    }
    site.assert_pool_whole(&config, 3, &[])?;
    site.assert_nothing_left()
}

// -- namespaces --

/// Adds a pod and deletes its netns without a DEL, again and again under one path, until the kernel gives a new one the
/// inode of the one before; that one, and the address that the pod had.
fn made_again(site: &Site, config: &Value, inode: impl Fn(&Pod) -> Result<u64>) -> Result<(Pod, IpAddr)> {
    let mut pod = site.pod("p")?;
    // The lowest inode that is free is given, but other tests make namespaces too: one time of four.
    for _ in 0..100 {
        let (address, before) = (site.add_for_address(&pod, config)?, inode(&pod)?);
        pod.delete()?;
        let gone = || site.node().links().is_ok_and(|links| links == [BRIDGE]);
        assert!(wait_for(Duration::from_secs(5), gone), "the kernel takes the veth with the netns");
        // The inode is free a moment later, which nothing tells.
        wait_for(Duration::from_millis(50), || false);
        pod = site.pod("p")?;
        if inode(&pod)? == before {
            return Ok((pod, address));
        }
    }
    Err(LabError::new("the kernel gave another inode each time"))
}

#[test]
fn a_netns_that_is_deleted_and_made_again_is_another_one() -> Result<()> {
    for with_agent in [false, true] {
        let site = Site::new("again")?;
        let agent = if with_agent { Some(site.agent()?) } else { None };
        let config = pool(2);
        let inode = |pod: &Pod| -> Result<u64> {
            use std::os::unix::fs::MetadataExt;
            let found = fs::metadata(site.node().path(pod.netns_path()));
            Ok(found.map_err(LabError::because("look at a netns"))?.ino())
        };
        let (second, address) = made_again(&site, &config, inode)?;
        let result = site.add(&second, &config)?;
        assert_eq!(addresses(&result), [address], "the same owner keeps its lease");
        assert_eq!(second.addresses("eth0")?, [format!("{address}/24")]);
        site.check(&second, &config, &result)?.ok()?;
        second.ping(parse(GATEWAY)?)?;
        site.assert_pool_whole(&config, 2, &[address])?;
        site.del(&second, &config)?;
        site.assert_nothing_left()?;
        agent.map_or(Ok(()), Agent::stop)?;
    }
    Ok(())
}
