//! GC: what belongs to no valid attachment goes, and what another runtime has there stays.

use std::net::IpAddr;

use podwire_netns_tests::faults::{Agent, GATEWAY, Site, network, pool};
use podwire_netns_tests::{LIMIT, LabError, Pod, Result, program};
use serde_json::{Value, json};

/// Runs `ip` in the pod.
fn ip_in(pod: &Pod, args: &str) -> Result<()> {
    let done = pod.run_program(program("ip").args(args.split(' ')), LIMIT)?;
    done.success(&format!("ip {args} in {}", pod.name())).map(drop)
}

fn parse(address: &str) -> Result<IpAddr> {
    address.parse().map_err(LabError::because(address))
}

fn with_valid(config: &Value, valid: Option<Value>) -> Value {
    let mut config = config.clone();
    if let Some(valid) = valid {
        config["cni.dev/valid-attachments"] = valid;
    }
    config
}

fn gc_by_list(with_agent: bool) -> Result<()> {
    let site = Site::new("gc")?;
    let agent = if with_agent { Some(site.agent()?) } else { None };
    let config = pool(9);
    let one = |container: &str| json!({"containerID": container, "ifname": "eth0"});
    // (list, which of the pods a, b, c stay)
    let table = [
        (None, "abc"),
        (Some(json!([one("a"), one("b"), one("c")])), "abc"),
        (Some(json!([one("c"), one("b"), one("unknown"), {"containerID": "a", "ifname": "eth1"}])), "bc"),
        (Some(json!([])), ""),
        (Some(Value::Null), ""),
    ];
    for (valid, stay) in table {
        let what = format!("{valid:?}");
        let pods = [site.pod("a")?, site.pod("b")?, site.pod("c")?];
        let results: Vec<_> = pods.iter().map(|pod| site.add(pod, &config)).collect::<Result<_>>()?;
        // Another network's pod is none of this GC's business.
        let mut elsewhere = network(json!([[{"subnet": "10.78.0.0/24"}]]));
        elsewhere["name"] = json!("elsewhere");
        elsewhere["bridge"] = json!("br1");
        let apart = site.pod("apart")?;
        site.add(&apart, &elsewhere)?;
        let call = site.call_for_network("GC", &with_valid(&config, valid));
        for _ in 0..2 {
            call.run(site.node())?.ok().map_err(LabError::because(format!("GC with {what}")))?;
        }
        for (pod, result) in pods.iter().zip(&results) {
            let stays = stay.contains(pod.name());
            assert_eq!(pod.links()?.len(), usize::from(stays), "{} after GC with {what}", pod.name());
            if stays {
                site.check(pod, &config, result)?.ok()?;
            }
        }
        assert_eq!(site.leases()?.len(), stay.len(), "{what}");
        assert_eq!(apart.links()?, ["eth0"]);
        site.del(&apart, &elsewhere)?;
        for pod in pods {
            site.del(&pod, &config)?;
            pod.delete()?;
        }
        apart.delete()?;
        site.node().run("ip", &["link", "del", "br1"])?.success("remove br1")?;
        site.assert_nothing_left()?;
    }
    agent.map_or(Ok(()), Agent::stop)
}

#[test]
fn gc_with_live_empty_null_and_absent_lists() -> Result<()> {
    gc_by_list(false)
}

#[test]
fn gc_with_live_empty_null_and_absent_lists_with_the_agent() -> Result<()> {
    gc_by_list(true)
}

#[test]
fn gc_reports_and_keeps_what_another_runtime_added() -> Result<()> {
    for with_agent in [false, true] {
        let site = Site::new("gc-foreign")?;
        let agent = if with_agent { Some(site.agent()?) } else { None };
        let config = pool(9);
        let (ours, theirs, dead) = (site.pod("ours")?, site.pod("theirs")?, site.pod("dead")?);
        site.run_by("containerd", &site.call("ADD", &ours, &config))?.ok()?;
        let result = site.run_by("crio", &site.call("ADD", &theirs, &config))?.ok()?;
        site.run_by("crio", &site.call("ADD", &dead, &config))?.ok()?;
        // A link that is gone is nobody's.
        ip_in(&dead, "link del eth0")?;

        let gc = site.call_for_network("GC", &with_valid(&config, Some(json!([]))));
        let answer = site.run_by("containerd", &gc)?;
        let told = answer.process.err();
        answer.ok()?;
        assert!(told.contains("eth0 of container theirs on network net"), "{told}");
        assert!(told.contains("another runtime added it"), "{told}");
        assert_eq!(ours.links()?, [""; 0]);
        site.check(&theirs, &config, &result)?.ok()?;
        theirs.ping(parse(GATEWAY)?)?;

        site.run_by("crio", &gc)?.ok()?;
        assert_eq!(theirs.links()?, [""; 0]);
        site.assert_nothing_left()?;
        agent.map_or(Ok(()), Agent::stop)?;
    }
    Ok(())
}
