//! Debian's etcd, each member on a node of its own on an underlay, where it can be killed, cut off, and restored from a
//! backup.

use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::cluster::{Meeting, range_lines};
use crate::error::{LabError, Result};
use crate::lab::Lab;
use crate::node::{Node, NodeOptions};
use crate::process::{program, wait_for};
use crate::underlay::{Families, Underlay, Uplink};

/// The number of the first member's node on the underlay.
pub const FIRST_MEMBER: u8 = 200;

const DATA: &str = "/run/etcd";
const LOG: &str = "/run/etcd.log";
const CLIENTS: u16 = 2379;
const PEERS: u16 = 2380;
/// Where all members find the test's files: backups, certificates.
const SHARED: &str = "/run/etcd-files";

/// How etcd is run.
#[derive(Debug, Clone)]
pub struct EtcdOptions {
    /// How many members: an odd number.
    pub members: u8,
    /// More arguments of each member; `{shared}` is a directory that all members and the test have.
    pub arguments: Vec<String>,
    /// `https` where the arguments name certificates.
    pub scheme: &'static str,
}

impl Default for EtcdOptions {
    fn default() -> Self {
        Self { members: 1, arguments: Vec::new(), scheme: "http" }
    }
}

/// An etcd cluster; it ends with this value.
pub struct Etcd {
    members: Vec<Member>,
    options: EtcdOptions,
    shared: PathBuf,
    /// Grows with each restored backup: members of different histories must not find each other.
    history: u32,
}

struct Member {
    process: Option<Child>,
    uplink: Uplink,
    node: Node,
    address: IpAddr,
    name: String,
}

impl Etcd {
    /// Starts the members and waits until they have a leader. Their files are on a tmpfs: what they promise, they promise
    /// until they are killed.
    ///
    /// # Errors
    /// If they do not come to that; a log is in the message.
    pub fn start(lab: &Lab, underlay: &Underlay, options: &EtcdOptions) -> Result<Self> {
        let shared = tempfile::Builder::new().prefix("etcd").tempdir_in(lab.dir());
        // It goes with the lab's directory.
        let shared = shared.map_err(LabError::because("make a directory for etcd"))?.keep();
        let mut members = Vec::new();
        for number in 0..options.members {
            let name = format!("etcd{number}");
            let files = (shared.clone(), PathBuf::from(SHARED));
            let node = lab.node_with(
                &name,
                &NodeOptions { shared: vec![files], no_plugins: true, ..NodeOptions::default() },
            )?;
            let at = FIRST_MEMBER + number;
            let uplink = underlay.attach(&node, at)?;
            let address = underlay.addresses(at).first().copied();
            let address = address.ok_or_else(|| LabError::new("the underlay gives no address"))?;
            members.push(Member { process: None, uplink, node, address, name });
        }
        let mut etcd = Self { members, options: options.clone(), shared, history: 0 };
        for number in 0..etcd.members.len() {
            etcd.spawn(number)?;
        }
        etcd.wait_until_healthy()?;
        Ok(etcd)
    }

    /// Where clients find each member.
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| self.url(member, CLIENTS)).collect()
    }

    /// The lines of an agent's configuration for this etcd, with the settings that the cluster gets if it has none: those of
    /// a cluster with pods of both families. `more` are lines of the table `[cluster]`.
    pub fn agent_settings(&self, more: &str) -> String {
        let endpoints = self.endpoints();
        let ranges = range_lines(Families::Dual, "cluster.range");
        format!(
            "[cluster]\nstore = \"etcd\"\netcd.endpoints = {endpoints:?}\nname = \"lab\"\n{more}\n{ranges}"
        )
    }

    /// The directory that the members see too, as the test sees it.
    pub fn shared(&self) -> &Path {
        &self.shared
    }

    /// The link of a member's node.
    ///
    /// # Panics
    /// If there is no such member.
    pub fn uplink(&self, number: usize) -> &Uplink {
        &self.members[number].uplink
    }

    /// Kills a member with SIGKILL. Its files stay.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill(&mut self, number: usize) -> Result<()> {
        let process = self.members.get_mut(number).and_then(|member| member.process.take());
        let mut process = process.ok_or_else(|| LabError::new(format!("etcd{number} does not run")))?;
        process.kill().map_err(LabError::because("kill etcd"))?;
        process.wait().map(drop).map_err(LabError::because("wait for etcd"))
    }

    /// Kills all members that run.
    ///
    /// # Errors
    /// If one cannot be killed.
    pub fn kill_all(&mut self) -> Result<()> {
        for number in 0..self.members.len() {
            if self.members[number].process.is_some() {
                self.kill(number)?;
            }
        }
        Ok(())
    }

    /// Starts the members that do not run, with the files that they have, and waits for a leader.
    ///
    /// # Errors
    /// If they do not come to that.
    pub fn start_again(&mut self) -> Result<()> {
        for number in 0..self.members.len() {
            if self.members[number].process.is_none() {
                self.spawn(number)?;
            }
        }
        self.wait_until_healthy()
    }

    /// Which member leads.
    ///
    /// # Errors
    /// If none does within 20 s.
    pub fn leader(&self) -> Result<usize> {
        let mut found = None;
        wait_for(Duration::from_secs(20), || {
            found = self.find_leader();
            found.is_some()
        });
        found.ok_or_else(|| LabError::new(format!("no member of etcd leads: {}", self.log())))
    }

    /// Runs `etcdctl` against the members that run. Its standard output.
    ///
    /// # Errors
    /// If it fails.
    pub fn etcdctl(&self, args: &[&str]) -> Result<String> {
        let running: Vec<_> = self.members.iter().filter(|member| member.process.is_some()).collect();
        let member = running.first().ok_or_else(|| LabError::new("no member of etcd runs"))?;
        let endpoints: Vec<_> = running.iter().map(|member| self.url(member, CLIENTS)).collect();
        let mut words =
            vec!["--endpoints".to_owned(), endpoints.join(","), "--command-timeout=10s".to_owned()];
        words.extend(args.iter().map(|word| (*word).to_owned()));
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let done = member.node.run("etcdctl", &words)?;
        Ok(done.success(&format!("etcdctl {} (package etcd-client)", args.join(" ")))?.out())
    }

    /// Writes a key, whatever is there.
    ///
    /// # Errors
    /// If `etcdctl` fails.
    pub fn put(&self, key: &str, value: &str) -> Result<()> {
        // A value that is an option's look-alike is a value after this.
        self.etcdctl(&["put", "--", key, value]).map(drop)
    }

    /// The value of a key; empty if there is none.
    ///
    /// # Errors
    /// If `etcdctl` fails.
    pub fn value(&self, key: &str) -> Result<String> {
        Ok(self.etcdctl(&["get", "--print-value-only", key])?.trim_end().to_owned())
    }

    /// All keys below a prefix.
    ///
    /// # Errors
    /// If `etcdctl` fails.
    pub fn keys(&self, prefix: &str) -> Result<Vec<String>> {
        let out = self.etcdctl(&["get", "--prefix", "--keys-only", prefix])?;
        Ok(out.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
    }

    /// Makes a backup of that name.
    ///
    /// # Errors
    /// If `etcdctl` fails.
    pub fn back_up(&self, name: &str) -> Result<()> {
        // Of one member alone, as etcdctl wants it.
        let member = self.members.iter().find(|member| member.process.is_some());
        let member = member.ok_or_else(|| LabError::new("no member of etcd runs"))?;
        let (url, file) = (self.url(member, CLIENTS), format!("{SHARED}/{name}"));
        member
            .node
            .run("etcdctl", &["--endpoints", &url, "snapshot", "save", &file])?
            .success("back etcd up")
            .map(drop)
    }

    /// Kills all members, replaces their files by a backup's, and starts them again.
    ///
    /// # Errors
    /// If they do not come up.
    pub fn restore(&mut self, name: &str) -> Result<()> {
        self.kill_all()?;
        self.history += 1;
        let (token, all) = (format!("history{}", self.history), self.initial_cluster());
        for member in &self.members {
            member.node.run("rm", &["-rf", DATA])?.success("remove etcd's files")?;
            let (file, own) = (format!("{SHARED}/{name}"), self.url(member, PEERS));
            member
                .node
                .run(
                    "etcdctl",
                    &[
                        "snapshot",
                        "restore",
                        &file,
                        "--data-dir",
                        DATA,
                        "--name",
                        &member.name,
                        "--initial-cluster",
                        &all,
                        "--initial-cluster-token",
                        &token,
                        "--initial-advertise-peer-urls",
                        &own,
                    ],
                )?
                .success("restore etcd")?;
        }
        self.start_again()
    }

    /// Kills all members and starts them again without anything.
    ///
    /// # Errors
    /// If they do not come up.
    pub fn wipe(&mut self) -> Result<()> {
        self.kill_all()?;
        self.history += 1;
        for member in &self.members {
            member.node.run("rm", &["-rf", DATA])?.success("remove etcd's files")?;
        }
        self.start_again()
    }

    /// The ends of all members' logs.
    pub fn log(&self) -> String {
        let tail = |member: &Member| {
            let log = member.node.read(LOG).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            format!(
                "{}:\n{}\n",
                member.name,
                lines.get(lines.len().saturating_sub(15)..).unwrap_or_default().join("\n")
            )
        };
        self.members.iter().map(tail).collect()
    }

    fn url(&self, member: &Member, port: u16) -> String {
        let scheme = if port == CLIENTS { self.options.scheme } else { "http" };
        format!("{scheme}://{}", SocketAddr::new(member.address, port))
    }

    fn initial_cluster(&self) -> String {
        let each = self.members.iter().map(|member| format!("{}={}", member.name, self.url(member, PEERS)));
        each.collect::<Vec<_>>().join(",")
    }

    fn spawn(&mut self, number: usize) -> Result<()> {
        let (all, token) = (self.initial_cluster(), format!("history{}", self.history));
        let member = &self.members[number];
        let (clients, peers) = (self.url(member, CLIENTS), self.url(member, PEERS));
        let log = File::options().create(true).append(true).open(member.node.path(LOG));
        let log = log.map_err(LabError::because("open etcd's log"))?;
        let mut command = program("/usr/bin/etcd");
        command
            .args(["--name", &member.name, "--data-dir", DATA])
            .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &all, "--initial-cluster-token", &token])
            .args(["--heartbeat-interval", "50", "--election-timeout", "500", "--logger", "zap"])
            .args(self.options.arguments.iter().map(|argument| argument.replace("{shared}", SHARED)))
            .env_clear()
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(LabError::because("share etcd's log"))?)
            .stderr(log);
        let process =
            member.node.spawn(&mut command).map_err(LabError::because("start etcd (package etcd-server)"))?;
        self.members[number].process = Some(process);
        Ok(())
    }

    fn wait_until_healthy(&self) -> Result<()> {
        // Whoever leads answers, and a majority with it. What asks for certificates or a password is not asked.
        if self.options.scheme != "http" {
            let listens = |member: &Member| {
                let at = SocketAddr::new(member.address, CLIENTS);
                let connect =
                    || std::net::TcpStream::connect_timeout(&at, Duration::from_millis(200)).is_ok();
                member.node.netns().run(connect).unwrap_or(false)
            };
            let all = wait_for(Duration::from_secs(30), || self.members.iter().all(listens));
            return if all {
                Ok(())
            } else {
                Err(LabError::new(format!("etcd does not listen: {}", self.log())))
            };
        }
        let healthy = wait_for(Duration::from_secs(30), || {
            self.etcdctl(&["endpoint", "health"]).is_ok() && self.find_leader().is_some()
        });
        if healthy { Ok(()) } else { Err(LabError::new(format!("etcd does not come up: {}", self.log()))) }
    }

    fn find_leader(&self) -> Option<usize> {
        let shown = self.etcdctl(&["endpoint", "status", "--write-out", "json"]).ok()?;
        let shown: Value = serde_json::from_str(&shown).ok()?;
        let leads = |entry: &&Value| entry["Status"]["leader"] == entry["Status"]["header"]["member_id"];
        let endpoint = shown.as_array()?.iter().find(leads)?["Endpoint"].as_str()?.to_owned();
        self.members.iter().position(|member| self.url(member, CLIENTS) == endpoint)
    }
}

impl Meeting for Etcd {
    fn vanish(&mut self) -> Result<()> {
        self.kill_all()
    }

    fn come_back(&mut self) -> Result<()> {
        self.start_again()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.kill_all();
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}
