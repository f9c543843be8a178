//! Faults that nodes outlive in the same way whatever they meet in: the store is away, a node's address is another one, a
//! machine is made again with the name of one that was.

use std::net::IpAddr;

use crate::error::{LabError, Result};
use crate::process::wait_for;

use super::{AT_LAST, Cluster, Scene};

/// What nodes meet in, as something that can go away and come back with all that it knew.
pub trait Meeting {
    /// Nobody answers from now on.
    ///
    /// # Errors
    /// If it was away.
    fn vanish(&mut self) -> Result<()>;

    /// It is back when this returns.
    ///
    /// # Errors
    /// If it does not come up.
    fn come_back(&mut self) -> Result<()>;
}

impl Scene {
    /// The store goes away, and the agent of node 0 is killed and started before it is back: its subnets are its own, pods
    /// start and reach others, what somebody breaks is repaired, and no packet is lost but those that the breaking took.
    ///
    /// # Errors
    /// With what did not hold.
    pub fn outlives_the_store(&mut self, store: &mut impl Meeting) -> Result<()> {
        let before = self.cluster.subnets()?;
        // What it knows is written to its disk now and then, and when it ends.
        self.cluster.member_mut(0).stop_agent()?;
        self.cluster.member_mut(0).start_agent()?;
        store.vanish()?;
        self.cluster.member_mut(0).kill_agent()?;
        self.cluster.member_mut(0).spawn_agent()?;
        self.serves_from_memory(&before[0])?;
        self.break_and_repair("ip link del $device", AT_LAST)?;
        // And a stop in order, although nobody can be told.
        self.cluster.member_mut(0).stop_agent()?;
        self.cluster.member_mut(0).spawn_agent()?;
        store.come_back()?;
        self.cluster.member_mut(0).agent_mut()?.wait_until_ready(AT_LAST)?;
        self.all_good()?;
        same(&before, &self.cluster.subnets()?)?;
        self.state_comes_back()
    }

    /// The agent of node 0 has started with the store away: it knows its subnets, and a pod that starts reaches the other
    /// node. Nothing was lost.
    ///
    /// # Errors
    /// If it does not, with the agent's log.
    pub fn serves_from_memory(&mut self, subnets: &[String]) -> Result<()> {
        let member = self.cluster.member(0);
        member.serves()?;
        let mut last = Vec::new();
        let served = wait_for(AT_LAST, || {
            last = member.agent().and_then(|agent| agent.subnets()).unwrap_or_default();
            last == subnets
        });
        if !served {
            return Err(LabError::new(format!("{last:?} instead of {subnets:?}: {}", self.log())));
        }
        let pod = self.cluster.pod(0, "from-memory")?;
        self.cluster.assert_reach(&pod, &self.pods[1])?;
        pod.delete()?;
        self.all_good()
    }

    /// Packets flow, and none was lost since the last lap.
    ///
    /// # Errors
    /// With those that were.
    pub fn all_good(&mut self) -> Result<()> {
        self.all_flow()?;
        let lost = self.flows.assert_none_lost();
        lost.map_err(|error| LabError::new(format!("{error:?}; the log is\n{}", self.log())))
    }
}

impl Cluster {
    /// Each node's subnets, as its agent says.
    ///
    /// # Errors
    /// If one does not run or has none.
    pub fn subnets(&self) -> Result<Vec<Vec<String>>> {
        self.members().iter().map(|member| member.agent()?.subnets()).collect()
    }

    /// Gives a node other addresses of its own on its link, and takes the ones that it has.
    ///
    /// # Errors
    /// If it has the new ones, or not the old ones.
    pub fn renumber(&self, number: usize, old: &[IpAddr], new: &[IpAddr]) -> Result<()> {
        let uplink = self.member(number).uplink();
        for (old, new) in old.iter().zip(new) {
            uplink.add_address(*new)?;
            uplink.remove_address(*old)?;
        }
        uplink.add_default_routes()
    }

    /// Makes a node whose agent does not run another machine: nothing on its disk, another boot, no device, other
    /// addresses. It keeps its name.
    ///
    /// # Errors
    /// If something of it cannot be taken away.
    pub fn make_again(&self, number: usize, old: &[IpAddr], new: &[IpAddr]) -> Result<()> {
        let member = self.member(number);
        member.sh(
            "for device in $(ip -o link show type vxlan | sed 's/^[0-9]*: \\([^:@]*\\).*/\\1/'); do ip link del $device; done
             nft flush ruleset; rm -f /var/lib/podwire/*.json /run/podwire/podwire/node.json",
        )?;
        let boot = format!("{:08x}-2222-4333-8444-{:012x}", std::process::id(), super::count());
        member.node().set_boot_id(&boot)?;
        self.renumber(number, old, new)
    }

    /// Waits until a node sends to one other node alone, by that address.
    ///
    /// # Errors
    /// With what its forwarding table says instead.
    pub fn sends_only_to(&self, number: usize, device: &str, address: IpAddr) -> Result<()> {
        let wanted = format!("dst {address} ");
        let shown = format!("bridge fdb show dev {device}");
        let only = |out: &str| out.contains(&wanted) && out.lines().count() == 1;
        self.member(number).wait_for(AT_LAST, &shown, only).map(drop)
    }
}

fn same(before: &[Vec<String>], now: &[Vec<String>]) -> Result<()> {
    if before == now {
        Ok(())
    } else {
        Err(LabError::new(format!("subnets were {before:?} and are {now:?}")))
    }
}
