//! What the agent says of a node, and what that means to its pods: subnets, and why there are to be no new ones.

use podwire_netns_tests::{Lab, Node, PluginCall, Pod, Result};
use serde_json::{Value, json};

/// A network whose addresses are the agent's to say.
fn network() -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "net", "type": "podwire", "isDefaultGateway": true,
        "ipam": { "type": "podwire-ipam" },
    })
}

fn call(verb: &str, pod: &Pod, config: &Value) -> PluginCall {
    PluginCall::new("podwire", verb).pod(pod).stdin(config)
}

fn status(node: &Node) -> Result<Option<(u64, String)>> {
    let answer =
        PluginCall::new("podwire", "STATUS").env("CNI_PATH", "/opt/cni/bin").stdin(&network()).run(node)?;
    Ok(answer.json.map(|error| {
        (error["code"].as_u64().unwrap_or_default(), error["msg"].as_str().unwrap_or_default().to_owned())
    }))
}

fn agent_says(node: &Node, content: &str) -> Result<()> {
    node.write("/run/podwire/net/node.json", content)
}

#[test]
fn pods_wait_for_the_agent_and_those_that_run_do_not_need_it() -> Result<()> {
    let lab = Lab::new("node-config")?;
    let node = lab.node("n")?;
    let (first, second) = (node.pod("first")?, node.pod("second")?);
    let add = |pod: &Pod| call("ADD", pod, &network()).run(&node);

    // It has not joined.
    let (code, text) = status(&node)?.unwrap_or_default();
    assert!(code == 50 && text.contains("has not joined the cluster yet"), "{code} {text}");
    assert_eq!(add(&first)?.error()?.0, 11);

    // It tells why: there is nothing yet that pods could lose.
    agent_says(&node, &json!({ "refuse": "Node n has no podCIDR yet" }).to_string())?;
    let (code, text) = status(&node)?.unwrap_or_default();
    assert!(code == 50 && text.contains("has no podCIDR yet"), "{code} {text}");
    let (code, text) = add(&first)?.error()?;
    assert!(code == 11 && text.contains("has no podCIDR yet"), "{code} {text}");

    let subnets = json!(["10.1.0.0/24", "fd01::/64"]);
    agent_says(&node, &json!({ "subnets": subnets, "mtu": 1450, "generation": 1 }).to_string())?;
    assert_eq!(status(&node)?, None);
    let result = add(&first)?.ok()?;
    assert_eq!(result["ips"].as_array().map(Vec::len), Some(2), "{result}");
    let routes = result["routes"].to_string();
    assert!(routes.contains("0.0.0.0/0") && routes.contains("::/0"), "{routes}");

    // The subnets are another's now.
    let why = "its subnets are node n2's now: drain this node";
    agent_says(&node, &json!({ "subnets": subnets, "refuse": why, "generation": 2 }).to_string())?;
    let (code, text) = status(&node)?.unwrap_or_default();
    assert!(code == 51 && text.contains(why), "{code} {text}");
    let (code, text) = add(&second)?.error()?;
    assert!(code == 11 && text.contains(why), "{code} {text}");

    // Whatever it says, and if it says nothing any more, those that run are as they were.
    let mut checked = network();
    checked["prevResult"] = result;
    for content in ["garbage", "{}", &json!({ "refuse": why }).to_string()] {
        agent_says(&node, content)?;
        call("CHECK", &first, &checked).run(&node)?.ok()?;
        assert_eq!(add(&second)?.error()?.0, 11, "{content}");
    }
    call("DEL", &first, &network()).run(&node)?.ok()?;

    agent_says(&node, &json!({ "subnets": subnets, "generation": 3 }).to_string())?;
    assert_eq!(status(&node)?, None);
    add(&second)?.ok()?;
    Ok(())
}

#[test]
fn a_network_with_ranges_of_its_own_does_not_mind_the_agent() -> Result<()> {
    let lab = Lab::new("own-ranges")?;
    let node = lab.node("n")?;
    agent_says(&node, &json!({ "refuse": "no" }).to_string())?;
    let mut config = network();
    config["ipam"]["ranges"] = json!([[{ "subnet": "10.2.0.0/24" }]]);
    call("ADD", &node.pod("")?, &config).run(&node)?.ok()?;
    Ok(())
}
