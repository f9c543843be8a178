//! What a large cluster's Nodes cost an agent, and what an agent costs the API: all Nodes but the agent's own are objects
//! of the stand-in alone.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use podwire_netns_tests::apiserver::Count;
use podwire_netns_tests::cluster::{Cluster, Options, Store, subnets};
use podwire_netns_tests::kubernetes::{ControlPlane, RECORD, node_spec};
use podwire_netns_tests::underlay::{Families, Layout, Underlay};
use podwire_netns_tests::{Lab, LabError, Result, wait_for};
use serde_json::json;

use crate::report::Report;
use crate::rows::Size;
use crate::scale::{FIRST, LIMIT, cpu_seconds, memory};

/// How often a Node's status changes.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// An agent in a cluster of many Nodes.
struct Crowd {
    cluster: Cluster,
    api: ControlPlane,
    nodes: u16,
}

impl Crowd {
    fn new(nodes: u16) -> Result<Self> {
        let lab = Lab::new("bench-kubernetes")?;
        let underlay = Underlay::new(Families::Ipv6, Layout::Flat)?;
        let api = ControlPlane::start(&lab, &underlay)?;
        let options = Options {
            nodes: 1,
            underlay: Families::Ipv6,
            // The lab's IPv6 range has room for as many.
            pods: Families::Ipv6,
            agent: "[probes]\nenabled = false".to_owned(),
            store: Store::Kubernetes(api.clone()),
            ..Options::default()
        };
        for number in 1..nodes {
            let address = IpAddr::from(Ipv6Addr::new(0xfd20, 0, 0, 0, 0, 0, 0, number));
            let [high, low] = number.to_be_bytes();
            let vtep = json!({"vni": 1, "port": 8472, "mac": format!("02:00:00:00:{high:02x}:{low:02x}")});
            let record = json!({
                "version": 1, "instance": format!("{number:032x}"), "addresses": [address], "mtu": 1500,
                "receives": [vtep], "sends": {"vni": 1, "port": 8472},
            });
            let name = format!("peer-{number:05}");
            let node = node_spec(&name, &subnets(Families::Ipv6, number), &[address]);
            api.server().create_node(&node.annotation(RECORD, &record.to_string()).sized())?;
        }
        let cluster = Cluster::prepare_on(&lab, &underlay, &options)?;
        Ok(Self { cluster, api, nodes })
    }

    fn metric(&self, name: &str) -> Result<f64> {
        self.cluster.member(0).agent()?.metric(name, "")
    }

    /// The share of a core, in percent, and how often something led to a comparison with the kernel, in that time.
    fn watch(&self, time: Duration) -> Result<(f64, f64)> {
        let pid = self.cluster.member(0).agent()?.pid();
        let causes = self.metric("podwire_convergence_seconds_count")?;
        let (cpu, began) = (cpu_seconds(pid)?, Instant::now());
        wait_for(time, || false);
        let used = (cpu_seconds(pid)? - cpu) / began.elapsed().as_secs_f64() * 100.0;
        Ok((used, self.metric("podwire_convergence_seconds_count")? - causes))
    }

    /// The requests since the last look, and the bytes of the answers, by what was asked for.
    fn requests(&self) -> BTreeMap<String, (f64, f64)> {
        let counts = self.api.server().counts();
        self.api.server().forget_requests();
        let named = counts.into_iter().map(|((verb, resource), Count { requests, bytes })| {
            (format!("{verb} {resource}"), (requests as f64, bytes as f64 / 1_048_576.0))
        });
        named.collect()
    }

    /// Ends the agent's watch, and counts what it asks for until it watches again.
    fn watches_again(&self, what: &str, report: &mut Report) -> Result<()> {
        let server = self.api.server();
        server.forget_requests();
        server.drop_watches();
        if !wait_for(LIMIT, || server.count("watch", "nodes") > 0 && server.watches() == 1) {
            return Err(LabError::new(format!("{what}: it is not within {LIMIT:?}")));
        }
        // What else follows from it.
        wait_for(Duration::from_secs(2), || false);
        self.report_requests(&format!("{} Nodes: {what}", self.nodes), report);
        Ok(())
    }

    fn report_requests(&self, what: &str, report: &mut Report) {
        let mut total = 0.0;
        for (request, (count, mebibytes)) in self.requests() {
            let line = format!("{what}: {request}");
            if count > 0.0 {
                report.amount(&format!("{line}, requests"), None, count, "");
            }
            if mebibytes >= 0.1 {
                report.amount(&format!("{line}, answers"), None, mebibytes, "MiB");
            }
            total += count;
        }
        report.amount(&format!("{what}: all requests"), None, total, "");
    }
}

/// 5,000 Nodes, each of which changes every ten seconds in what nobody here reads.
pub(crate) fn heartbeats(size: &Size, report: &mut Report) -> Result<()> {
    let (nodes, time) = if size.is_quick() { (500, 10) } else { (5_000, 60) };
    let time = Duration::from_secs(time);
    let mut crowd = Crowd::new(nodes)?;
    crowd.api.server().forget_requests();
    let began = Instant::now();
    crowd.cluster.member_mut(0).start_agent_under(&FIRST)?;
    let wanted = usize::from(nodes - 1);
    let routes = "ip -6 route show proto 112 | wc -l";
    crowd.cluster.member(0).wait_for(LIMIT, routes, |out| out.trim().parse() == Ok(wanted))?;
    let named = format!("{nodes} Nodes");
    report.amount(
        &format!("{named}: an agent starts, until all routes"),
        None,
        began.elapsed().as_secs_f64(),
        "s",
    );
    // What follows a start, such as the Node's condition, is part of it.
    let (idle, _) = crowd.watch(time.min(Duration::from_secs(20)))?;
    crowd.report_requests(&format!("{named}: an agent starts"), report);

    crowd.api.server().heartbeats(Some(HEARTBEAT));
    wait_for(HEARTBEAT, || false);
    crowd.api.server().forget_requests();
    let from = crowd.api.server().version();
    let (busy, causes) = crowd.watch(time)?;
    let beats = (crowd.api.server().version() - from) as f64 / time.as_secs_f64();
    crowd.api.server().heartbeats(None);
    let heartbeats = format!("{named} with {beats:.0} heartbeats a second");
    report.amount(&format!("{heartbeats}: CPU of the agent, of one core"), Some(3.0), busy, "%");
    report.amount(&format!("{named} without heartbeats: the same"), None, idle, "%");
    report.amount(&format!("{heartbeats}: comparisons with the kernel caused"), Some(0.0), causes, "");
    let pid = crowd.cluster.member(0).agent()?.pid();
    report.amount(
        &format!("{heartbeats}: memory of the agent (VmRSS)"),
        Some(96.0),
        memory(pid, "VmRSS:")?,
        "MiB",
    );
    let most = memory(pid, "VmHWM:")?;
    report.amount(&format!("{named}: the most that it ever had (VmHWM)"), Some(96.0), most, "MiB");
    crowd.report_requests(&format!("{heartbeats}: in {} s", time.as_secs()), report);

    crowd.watches_again("a watch ends and is begun again", report)?;
    crowd.api.server().compact();
    crowd.watches_again("the same, with its history gone", report)?;
    crowd.cluster.member_mut(0).stop_agent()?;
    crowd.api.server().forget_requests();
    crowd.cluster.member_mut(0).start_agent_under(&FIRST)?;
    wait_for(Duration::from_secs(5), || false);
    crowd.report_requests(&format!("{named}: an agent starts again"), report);
    crowd.api.server().set_streaming_lists(false);
    crowd.api.server().compact();
    crowd.watches_again("a watch ends, its history is gone, and there are no streaming lists", report)
}
