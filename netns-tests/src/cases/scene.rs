//! Where a row's traffic happens: its node, pods, the host outside, and the servers in them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::error::{LabError, Result};
use crate::node::Node;
use crate::plugin::uses_reference;
use crate::pod::Pod;
use crate::process::{LIMIT, program, wait_for};
use crate::traffic::{Client, Outside, Place, Port, Server};

use super::step::Seen;

/// How long a client waits that is to hear nothing. An answer that comes at all comes within a few milliseconds.
const SILENCE: Duration = Duration::from_millis(400);

/// A node with pods and a host outside. Places are named as rows name them: `node`, `outside`, or a pod's name.
pub struct Scene {
    node: Node,
    pods: BTreeMap<&'static str, Pod>,
    outside: Option<Outside>,
    servers: Mutex<Vec<Server>>,
}

impl Scene {
    pub(super) fn new(node: Node, with_outside: bool) -> Result<Self> {
        let outside = if with_outside { Some(Outside::link_to(&node)?) } else { None };
        Ok(Self { node, pods: BTreeMap::new(), outside, servers: Mutex::default() })
    }

    /// The node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// A pod that a call has named.
    ///
    /// # Errors
    /// If none has.
    pub fn pod(&self, name: &str) -> Result<&Pod> {
        self.pods.get(name).ok_or_else(|| LabError::new(format!("no call has named the pod {name}")))
    }

    pub(super) fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }

    pub(super) fn pod_or_new(&mut self, name: &'static str) -> Result<&Pod> {
        if !self.pods.contains_key(name) {
            self.pods.insert(name, self.node.pod(name)?);
        }
        self.pod(name)
    }

    /// The place of that name.
    ///
    /// # Errors
    /// If there is none.
    pub fn place(&self, name: &str) -> Result<&dyn Place> {
        match (name, &self.outside) {
            ("node", _) => Ok(&self.node),
            ("outside", Some(outside)) => Ok(outside),
            _ => self.pod(name).map(|pod| pod as &dyn Place),
        }
    }

    /// What a shell script prints on the node.
    ///
    /// # Errors
    /// If it fails.
    pub fn sh(&self, script: &str) -> Result<String> {
        let done = self.node.run_with(program("sh").args(["-ec", script]), b"", LIMIT)?;
        Ok(done.success("the script")?.out())
    }

    /// The name of the host's end of a pod's eth0.
    ///
    /// # Errors
    /// If it has none.
    pub fn host_end(&self, pod: &str) -> Result<String> {
        let link = self.pod(pod)?.ip(&["link", "show", "eth0"])?;
        let links = self.node.ip(&["link"])?;
        let mut links = links.as_array().into_iter().flatten();
        let end = links.find(|end| end["ifindex"].is_u64() && end["ifindex"] == link[0]["link_index"]);
        let name = end.and_then(|end| end["ifname"].as_str()).map(str::to_owned);
        name.ok_or_else(|| LabError::new(format!("{pod}'s eth0 has no end on the host")))
    }

    /// Starts a server, `tcp [::]:80` for one, that runs until the row ends.
    ///
    /// # Errors
    /// If the port is taken.
    pub fn serve(&self, place: &str, on: &str) -> Result<()> {
        let server = Server::start(self.place(place)?, on.parse()?)?;
        self.servers.lock().unwrap_or_else(PoisonError::into_inner).push(server);
        Ok(())
    }

    /// A client in a place, `node`, or with a source address, `node@127.0.0.1`.
    ///
    /// # Errors
    /// If there is no such place.
    pub fn client(&self, from: &str) -> Result<Client<'_>> {
        match from.split_once('@') {
            None => Ok(Client::at(self.place(from)?)),
            Some((place, source)) => {
                let source: IpAddr = source.parse().map_err(LabError::because("a source address"))?;
                Ok(Client::at(self.place(place)?).source(source))
            }
        }
    }

    pub(super) fn reach(&self, from: &str, to: &str, wanted: Seen) -> Result<()> {
        let client = self.client(from)?;
        let to: Port = to.parse()?;
        match wanted {
            Seen::Nothing => match client.limit(SILENCE).hear(to) {
                Err(_) => Ok(()),
                Ok(heard) => Err(LabError::new(format!("{} answered {}", heard.server, heard.peer))),
            },
            Seen::As(server, peers) => {
                let mut heard = client.hear(to);
                // The IPv6 addresses of a new bridge are tentative until the kernel has taken note of its carrier,
                // which it does once a second; the reference's for two seconds more.
                if to.at.is_ipv6() || uses_reference() {
                    wait_for(Duration::from_secs(3), || {
                        if heard.is_err() {
                            heard = client.hear(to);
                        }
                        heard.is_ok()
                    });
                }
                let heard = heard?;
                let peer = heard.peer.ip().to_string();
                if heard.server != server {
                    Err(LabError::new(format!("{} answered, not {server}", heard.server)))
                } else if peers != "any" && !peers.split('|').any(|allowed| allowed == peer) {
                    Err(LabError::new(format!("{server} sees {peer}, not {peers}")))
                } else {
                    Ok(())
                }
            }
        }
    }
}
