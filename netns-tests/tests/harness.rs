//! The harness itself, tried with Debian's reference plugins where a plugin is needed.

use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use podwire_netns_tests::{Lab, LabError, PluginCall, Result, program, wait_for};
use serde_json::json;

fn reference_network() -> serde_json::Value {
    json!({
        "cniVersion": "1.0.0", "name": "lab", "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.91.0.0/24"}], [{"subnet": "fd91::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}
    })
}

#[test]
fn two_pods_of_the_reference_plugins_reach_each_other() -> Result<()> {
    let lab = Lab::new("reference")?;
    let node = lab.node("n")?;
    let network = reference_network();
    let pods = [node.pod("a")?, node.pod("b")?];
    for pod in &pods {
        let result = PluginCall::new("bridge", "ADD").pod(pod).stdin(&network).run(&node)?.ok()?;
        assert_eq!(result["ips"].as_array().map(Vec::len), Some(2), "{result}");
    }
    let there: Vec<IpAddr> = pods[1]
        .addresses("eth0")?
        .iter()
        .filter_map(|address| address.split('/').next()?.parse().ok())
        .collect();
    assert_eq!(there.len(), 2);
    for address in there {
        pods[0].ping(address)?;
    }
    assert_eq!(node.links()?.len(), 3, "the bridge and two veths");
    for pod in &pods {
        PluginCall::new("bridge", "DEL").pod(pod).stdin(&network).run(&node)?.ok()?;
    }
    assert_eq!(node.links()?, ["cni0"]);
    assert!(!Path::new("/var/lib/cni/networks/lab").exists(), "leases are the node's own, not the machine's");
    Ok(())
}

#[test]
fn nothing_of_a_node_outlives_it() -> Result<()> {
    let lab = Lab::new("gone")?;
    let node = lab.node("n")?;
    // A daemon that detached itself, the way containerd's shims do.
    node.run("setsid", &["--fork", "sleep", "86397"])?.success("start a daemon")?;
    let alive = || {
        let found = Command::new("pgrep")
            .args(["-f", "sleep 86397"])
            .output()
            .map_err(LabError::because("run pgrep"))?;
        Ok::<_, LabError>(found.status.success())
    };
    assert!(alive()?);
    let dir = lab.dir().to_owned();
    drop(node);
    assert!(!alive()?, "a daemon outlived its node");
    drop(lab);
    assert!(!dir.exists());
    Ok(())
}

#[test]
fn nothing_of_a_node_outlives_a_killed_test() -> Result<()> {
    // The demonstration stands in for a test: it has a node with a containerd and pods.
    let mut command = Command::new(env!("CARGO_BIN_EXE_podwire-demo"));
    let mut demo =
        command.stdout(Stdio::piped()).spawn().map_err(LabError::because("start the demonstration"))?;
    let printed = demo.stdout.take().ok_or_else(|| LabError::new("no output"))?;
    let mut lines = BufReader::new(printed).lines();
    assert!(
        lines.any(|line| line.is_ok_and(|line| line.contains("client"))),
        "the demonstration ran no pods"
    );
    let inside = descendants(demo.id());
    assert!(inside.len() > 5, "a node, podwired, containerd, shims, pods: {inside:?}");
    demo.kill().and_then(|()| demo.wait()).map_err(LabError::because("kill the demonstration"))?;
    let alive = || inside.iter().filter(|pid| Path::new(&format!("/proc/{pid}")).exists()).count();
    assert!(wait_for(Duration::from_secs(10), || alive() == 0), "{} of {inside:?} live on", alive());
    Ok(())
}

/// The processes that a process started, and those that they did.
fn descendants(of: u32) -> Vec<u32> {
    let read = std::fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
    let children: Vec<u32> = read.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
    let below = children.iter().flat_map(|child| descendants(*child));
    below.chain(children.iter().copied()).collect()
}

#[test]
fn orphans_of_a_node_are_collected() -> Result<()> {
    let node = Lab::new("orphans")?.node("n")?;
    node.run("setsid", &["--fork", "sleep", "0.1"])?.success("start an orphan")?;
    let processes =
        || node.run("ps", &["-e", "-o", "stat=,args="]).map_or_else(|error| error.to_string(), |ps| ps.out());
    let gone = wait_for(Duration::from_secs(5), || !processes().contains("sleep"));
    assert!(gone, "a zombie stays: {}", processes());
    Ok(())
}

#[test]
fn a_program_past_its_limit_is_killed() -> Result<()> {
    let node = Lab::new("limit")?.node("n")?;
    let done = node.run_with(program("sleep").arg("60"), b"", Duration::from_millis(200))?;
    assert!(done.timed_out && done.signal() == Some(9), "{done:?}");
    assert!(done.duration < Duration::from_secs(5));
    Ok(())
}

#[test]
fn a_node_is_cut_off_from_the_machine() -> Result<()> {
    let node = Lab::new("apart")?.node("n")?;
    assert_eq!(node.links()?, [""; 0]);
    node.write("/etc/cni/net.d/10-lab.conf", "x")?;
    node.write("/var/lib/podwire/x", "x")?;
    assert!(!Path::new("/etc/cni/net.d/10-lab.conf").exists());
    assert!(!Path::new("/var/lib/podwire/x").exists());
    node.set_boot_id("00000000-0000-4000-8000-000000000001")?;
    let boot = node.run("cat", &["/proc/sys/kernel/random/boot_id"])?.out();
    assert_eq!(boot.trim(), "00000000-0000-4000-8000-000000000001");
    let pod = node.pod("p")?;
    assert_eq!(pod.links()?, [""; 0]);
    let shown = node.run("ls", &["/run/netns"])?.out();
    assert_eq!(shown.trim(), "p");
    pod.delete()?;
    assert_eq!(node.list("/run/netns"), [""; 0]);
    Ok(())
}
