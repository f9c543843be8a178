//! `podwirectl cluster` and `node`: what all nodes share.

use podwire_ipam::Dirs;
use podwire_overlay::cluster::{ClusterConfig, DirectRouting, IpFamily};
use podwire_overlay::store::Action;
use podwire_overlay::terminal::{Table, harmless};
use serde_json::json;

use crate::agent::{Agent, Silence};
use crate::cli::{Cluster, Node};
use crate::node::Known;
use crate::output::{Failure, Output, Verdict, note};

pub(crate) fn node(dirs: &Dirs, command: &Node, output: &Output) -> Result<Verdict, Failure> {
    let agent = Agent::of(dirs);
    let action = match command {
        Node::Rm { name, force } => Action::RemoveNode { name: name.clone(), force: *force },
        Node::Leave { force } => {
            // The agent must be there before its pods are looked at: without one this cannot be done anyway.
            let pods = agent.get::<Vec<podwire_overlay::status::PodStatus>>("/v1/pods")?;
            if !pods.is_empty() && !force {
                return Err(Failure::new(format!(
                    "{} pods still run on this node: move them first, or say --force",
                    pods.len()
                )));
            }
            Action::Leave
        }
    };
    done(output, &agent.act(&action)?)
}

fn done(output: &Output, message: &str) -> Result<Verdict, Failure> {
    if output.json {
        output.value(&json!({ "message": message }))?;
    } else {
        output.raw(&format!("{}\n", harmless(message)))?;
    }
    Ok(Verdict::Fine)
}

pub(crate) fn run(dirs: &Dirs, command: &Cluster, output: &Output) -> Result<Verdict, Failure> {
    match command {
        Cluster::Show => show(dirs, output),
        Cluster::Set { changes } => {
            let agent = Agent::of(dirs);
            let mut config: ClusterConfig = match agent.get("/v1/cluster") {
                Err(Silence::Unknown(text)) => return Err(Failure::new(text)),
                config => config?,
            };
            let before = config.clone();
            for change in changes {
                apply(&mut config, change).map_err(Failure::usage)?;
            }
            if config == before {
                return done(output, "nothing to change: it is so already");
            }
            done(output, &agent.act(&Action::Configure(Box::new(config)))?)
        }
    }
}

fn show(dirs: &Dirs, output: &Output) -> Result<Verdict, Failure> {
    let known = Known::gather(dirs)?;
    let Some(config) = known.config else {
        return Err(match known.silence {
            Some(silence) => Failure::no_agent(silence),
            None => Failure::usage("the agent has no cluster, or does not know its settings yet"),
        });
    };
    if let Some(silence) = &known.silence {
        note(&format!("{silence}. What follows is what this node remembers"));
    }
    if output.json {
        output.value(&config)?;
        return Ok(Verdict::Fine);
    }
    let mut table = Table::new(["SETTING", "VALUE"]);
    table.row(["name".into(), config.name.as_str().into()]);
    for range in &config.ranges {
        table.row([
            "range".into(),
            format!("{}, a /{} for each node", range.range, range.subnet_prefix).into(),
        ]);
    }
    table.row(["vni".into(), config.encapsulation.vni.to_string().into()]);
    table.row(["port".into(), config.encapsulation.port.to_string().into()]);
    for other in &config.also_receive {
        table.row(["also received".into(), format!("VNI {} on port {}", other.vni, other.port).into()]);
    }
    table.row(["direct-routing".into(), direct(config.direct_routing).into()]);
    let underlay: Vec<&str> = config.underlay.iter().copied().map(family).collect();
    table.row(["underlay".into(), underlay.join(",").into()]);
    let reclaim =
        config.reclaim_after_seconds.map_or("never".to_owned(), |seconds| format!("{} h", seconds / 3600));
    table.row(["reclaim-after".into(), reclaim.into()]);
    output.raw(&table.text(output.style))?;
    Ok(Verdict::Fine)
}

fn direct(routing: DirectRouting) -> &'static str {
    match routing {
        DirectRouting::Never => "never",
        DirectRouting::Auto => "auto",
        DirectRouting::Always => "always",
    }
}

fn family(family: IpFamily) -> &'static str {
    match family {
        IpFamily::Ipv4 => "ipv4",
        IpFamily::Ipv6 => "ipv6",
    }
}

/// Changes one setting.
fn apply(config: &mut ClusterConfig, change: &str) -> Result<(), String> {
    let (key, value) = change.split_once('=').ok_or_else(|| format!("{change:?} is not KEY=VALUE"))?;
    let wrong = |what: &str| format!("{key}: {value:?} is not {what}");
    // Also as configuration files have it: encapsulation.port, direct_routing.
    let plain = key.trim_start_matches("cluster.").trim_start_matches("encapsulation.").replace('_', "-");
    match plain.as_str() {
        "vni" => {
            let vni: u32 = value.parse().map_err(|_| wrong("a number"))?;
            if !(1..1 << 24).contains(&vni) {
                return Err(wrong("between 1 and 16777215"));
            }
            config.encapsulation.vni = vni;
        }
        "port" => {
            let port: u16 = value.parse().map_err(|_| wrong("a port"))?;
            if port == 0 {
                return Err(wrong("a port"));
            }
            config.encapsulation.port = port;
        }
        "direct-routing" => {
            config.direct_routing = match value {
                "never" => DirectRouting::Never,
                "auto" => DirectRouting::Auto,
                "always" => DirectRouting::Always,
                _ => return Err(wrong("never, auto or always")),
            }
        }
        "underlay" => {
            let one = |name: &str| match name {
                "ipv4" => Ok(IpFamily::Ipv4),
                "ipv6" => Ok(IpFamily::Ipv6),
                _ => Err(wrong("ipv4, ipv6, ipv4,ipv6 or ipv6,ipv4")),
            };
            let families = value.split(',').map(one).collect::<Result<Vec<_>, _>>()?;
            let mut distinct = families.clone();
            distinct.sort_unstable();
            distinct.dedup();
            if distinct.len() != families.len() {
                return Err(wrong("each family once"));
            }
            config.underlay = families;
        }
        "reclaim-after" | "reclaim-after-hours" => {
            config.reclaim_after_seconds = match value.trim_end_matches('h') {
                "never" => None,
                hours => {
                    let hours: u64 = hours.parse().map_err(|_| wrong("a number of hours, or never"))?;
                    let seconds = hours.checked_mul(3600).filter(|_| hours >= 24);
                    Some(seconds.ok_or_else(|| wrong("at least 24 hours"))?)
                }
            }
        }
        "name" | "range" | "ranges" => {
            return Err(format!("{key} cannot be changed: addresses of pods that run depend on it"));
        }
        _ => {
            return Err(format!(
                "there is no setting {key:?}: vni, port, direct-routing, underlay, reclaim-after"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ClusterConfig {
        serde_json::from_str(r#"{"name":"c","ranges":[{"range":"10.244.0.0/16","subnetPrefix":24}]}"#)
            .unwrap()
    }

    #[test]
    fn each_setting_is_changed_alone() {
        for (change, json) in
            [("vni=7", r#"{"vni":7,"port":8472}"#), ("port=4789", r#"{"vni":1,"port":4789}"#)]
        {
            let mut changed = config();
            apply(&mut changed, change).unwrap();
            assert_eq!(serde_json::to_string(&changed.encapsulation).unwrap(), json);
        }
        let mut changed = config();
        for change in ["direct-routing=auto", "underlay=ipv6", "reclaim-after=48h"] {
            apply(&mut changed, change).unwrap();
        }
        assert_eq!(changed.direct_routing, DirectRouting::Auto);
        assert_eq!(changed.underlay, [IpFamily::Ipv6]);
        assert_eq!(changed.reclaim_after_seconds, Some(48 * 3600));
        apply(&mut changed, "reclaim-after=never").unwrap();
        assert_eq!(changed.reclaim_after_seconds, None);
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_what_would() {
        for (change, told) in [
            ("vni", "KEY=VALUE"),
            ("vni=16777216", "16777215"),
            ("port=0", "port"),
            ("direct-routing=maybe", "never, auto or always"),
            ("underlay=ipv4,ipv4", "once"),
            ("reclaim-after=1", "24"),
            ("reclaim-after=99999999999999999999", "number"),
            ("name=x", "cannot be changed"),
            ("mtu=1", "there is no setting"),
        ] {
            let error = apply(&mut config(), change).unwrap_err();
            assert!(error.contains(told), "{change}: {error}");
        }
    }
}
