//! The stage: a node, the yardstick programs, and the contestants' calls.

mod network;
mod tools;

use std::cell::Cell;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use podwire_netns_tests::{Lab, LabError, Node, NodeOptions, Pod, Result, wait_for};
use serde_json::Value;

pub(crate) use tools::compile;

pub(crate) use network::{Gives, Network, PODS_PORTS};

/// The node's address on its uplink, and that of who is at the other end.
pub(crate) const UPLINK: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// The host ports of slot 0.
const FIRST_PORT: u32 = 20_000;

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Contestant {
    /// The system calls alone: see floor/floor.c.
    Floor,
    /// Debian's bridge + host-local.
    Reference,
    /// Debian's bridge (which masquerades) + host-local, portmap and bandwidth, one after the other.
    Chain,
    /// podwire, while its agent holds the store.
    Agent,
    /// podwire on its own.
    Alone,
}

impl Contestant {
    /// All, in the order of tables.
    pub(crate) const ALL: [Self; 4] = [Self::Floor, Self::Reference, Self::Agent, Self::Alone];
    /// Those that are CNI plugins.
    pub(crate) const PLUGINS: [Self; 3] = [Self::Reference, Self::Agent, Self::Alone];
    /// All where pods have ports and rates too.
    pub(crate) const FULL: [Self; 4] = [Self::Floor, Self::Chain, Self::Agent, Self::Alone];
    /// Those that are podwire.
    pub(crate) const OURS: [Self; 2] = [Self::Agent, Self::Alone];

    /// The name in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Reference => "bridge + host-local",
            Self::Chain => "the reference chain",
            Self::Agent => "podwire with the agent",
            Self::Alone => "podwire without the agent",
        }
    }

    fn letter(self) -> &'static str {
        match self {
            Self::Floor => "f",
            Self::Reference => "r",
            Self::Chain => "c",
            Self::Agent => "a",
            Self::Alone => "p",
        }
    }
}

/// A node with everything that the measurements need, the store's and host-local's directories on the disk.
pub(crate) struct Stage {
    // Dropped first: an agent ends with its node.
    agents: Vec<Child>,
    node: Node,
    pods: Cell<u32>,
    files: Cell<u32>,
    tools: PathBuf,
    programs: PathBuf,
}

/// An attachment to be: a pod and the network that it is for.
pub(crate) struct Slot {
    pub(crate) pod: Pod,
    index: u32,
}

impl Slot {
    /// The first of the two ports of the node that lead to the pod.
    pub(crate) fn port(&self) -> u32 {
        FIRST_PORT + 2 * self.index
    }

    /// The address that the floor gives the pod.
    fn floor_address(&self) -> String {
        format!("10.88.{}.{}", 1 + self.index / 250, 2 + self.index % 250)
    }
}

impl Stage {
    /// A stage with the built programs.
    pub(crate) fn new() -> Result<Self> {
        Self::with_programs(PathBuf::from("/opt/cni/bin"), &[])
    }

    /// A stage with programs of another build of podwire, found in a directory of the machine.
    pub(crate) fn with_programs(programs: PathBuf, shared: &[(PathBuf, PathBuf)]) -> Result<Self> {
        let lab = Lab::new("bench")?;
        let options = NodeOptions {
            on_disk: vec!["/var/lib/podwire".into(), "/var/lib/cni".into()],
            shared: shared.to_vec(),
            ..NodeOptions::default()
        };
        let node = lab.node_with("node", &options)?;
        let tools = compile(&node)?;
        Ok(Self { agents: Vec::new(), node, pods: 0.into(), files: 0.into(), tools, programs })
    }

    /// A network of a contestant. `state` keeps the stores of podwire's apart: one for each agent.
    pub(crate) fn network(
        &self,
        contestant: Contestant,
        purpose: &str,
        state: &str,
        gives: Gives,
    ) -> Result<Network> {
        let network = Network::new(contestant, purpose, state, gives);
        if contestant == Contestant::Floor {
            // The others make theirs with the first ADD, which is not measured.
            self.must("ip", &["link", "add", &network.bridge, "type", "bridge"])?;
            self.must("ip", &["address", "add", "10.88.0.1/16", "dev", &network.bridge])?;
            self.must("ip", &["link", "set", &network.bridge, "up"])?;
            if gives != Gives::Link {
                self.node.write("/run/bench/table.nft", include_str!("../../../floor/table.nft"))?;
                self.must("nft", &["-f", "/run/bench/table.nft"])?;
            }
        }
        Ok(network)
    }

    /// The other side of the node's uplink: a pod at [`OUTSIDE`] that no contestant made, which the node sees from
    /// [`UPLINK`]. It has no route back to the pods.
    pub(crate) fn outside(&self) -> Result<Pod> {
        let outside = self.node.pod("outside")?;
        let script = format!(
            "ip link add uplink type veth peer name eth0 netns outside
             ip address add {UPLINK}/24 dev uplink
             ip link set uplink up
             ip -n outside address add {OUTSIDE}/24 dev eth0
             ip -n outside link set eth0 up"
        );
        self.must("sh", &["-e", "-c", &script])?;
        Ok(outside)
    }

    /// How many token buckets the node's links have.
    pub(crate) fn buckets(&self) -> Result<usize> {
        let shown = self.node.run("tc", &["qdisc", "show"])?.success("tc qdisc show")?.out();
        Ok(shown.lines().filter(|line| line.starts_with("qdisc tbf")).count())
    }

    /// Starts the agent that holds a network's store.
    pub(crate) fn agent(&mut self, network: &Network, env: &[(&str, &str)]) -> Result<()> {
        let [state, run] = network.dirs();
        let program = self.podwired();
        let mut command = Command::new(program);
        command
            .args(["run", "--state-dir", &state, "--run-dir", &run])
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut agent = self.node.spawn(&mut command)?;
        let socket = self.node.path(format!("{run}/ipam.sock"));
        if !wait_for(Duration::from_secs(10), || socket.exists()) {
            let _ = agent.kill();
            return Err(LabError::new(format!("the agent did not open {run}/ipam.sock within 10 s")));
        }
        self.agents.push(agent);
        Ok(())
    }

    fn podwired(&self) -> PathBuf {
        if self.programs == Path::new("/opt/cni/bin") {
            Node::dist("podwired")
        } else {
            self.programs.join("podwired")
        }
    }

    /// A pod for a network.
    pub(crate) fn slot(&self) -> Result<Slot> {
        self.pods.set(self.pods.get() + 1);
        let index = self.pods.get();
        Ok(Slot { pod: self.node.pod(&format!("pod{index}"))?, index })
    }

    /// Several pods.
    pub(crate) fn slots(&self, count: u32) -> Result<Vec<Slot>> {
        (0..count).map(|_| self.slot()).collect()
    }

    /// A call of a contestant for a pod, ready to be timed.
    pub(crate) fn call(&self, network: &Network, verb: &str, slot: &Slot) -> Result<Job> {
        match network.contestant {
            Contestant::Floor => self.floor(network, verb, slot),
            Contestant::Chain => self.chain(network, verb, slot),
            _ => self.plugin(network, verb, Some(slot), &network.config(Some(slot))),
        }
    }

    fn floor(&self, network: &Network, verb: &str, slot: &Slot) -> Result<Job> {
        let full = network.gives == Gives::Everything;
        let (host, address) = (format!("fl{}", slot.index), slot.floor_address());
        let mut command = Command::new(self.tools.join(if full { "full" } else { "floor" }));
        match (verb, full) {
            ("DEL", false) => command.args(["del", &host]),
            ("DEL", true) => command.args(["del", &address]),
            _ => {
                let netns = slot.pod.netns_path();
                command.arg("add").arg(netns).args([&host, &network.bridge, &address, "16", "10.88.0.1"])
            }
        };
        if full {
            command.args([slot.index.to_string(), slot.port().to_string()]);
        }
        self.job(command, None)
    }

    /// The reference plugins, run by a small program as a runtime would: see floor/chain.c.
    fn chain(&self, network: &Network, verb: &str, slot: &Slot) -> Result<Job> {
        let mut command = Command::new(self.tools.join("chain"));
        command.env_clear().arg(format!("/run/bench/result-{}-{}", network.name, slot.index));
        let mut plugins = network.chain(slot);
        if verb == "DEL" {
            plugins.reverse();
        }
        let mut files = Vec::new();
        for config in plugins {
            let (outside, inside) = self.file("config");
            std::fs::write(&outside, config.to_string())
                .map_err(LabError::because(format!("write {}", outside.display())))?;
            let program = config["type"].as_str().unwrap_or_default();
            command.arg(Path::new("/opt/cni/bin").join(program)).arg(inside);
            files.push(outside);
        }
        environment(&mut command, verb, Some(slot));
        let mut job = self.job(command, None)?;
        job.files.extend(files);
        Ok(job)
    }

    /// A call that is for no pod, with keys added to the configuration.
    pub(crate) fn call_of_none(&self, network: &Network, verb: &str, keys: &Value) -> Result<Job> {
        let mut config = network.config(None);
        for (key, value) in keys.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        self.plugin(network, verb, None, &config)
    }

    /// CHECK of a pod with the result of its ADD.
    pub(crate) fn check(&self, network: &Network, slot: &Slot, added: &Value) -> Result<Job> {
        let mut config = network.config(Some(slot));
        config["prevResult"] = added.clone();
        self.plugin(network, "CHECK", Some(slot), &config)
    }

    /// The program that does nothing.
    pub(crate) fn empty(&self) -> Result<Job> {
        self.job(Command::new(self.tools.join("empty")), None)
    }

    /// Waits until the kernel has ended what earlier deletions left it to do.
    pub(crate) fn barrier(&self) -> Result<Duration> {
        let mut command = Command::new(self.tools.join("floor"));
        command.arg("barrier");
        self.one(self.job(command, None)?).map(|(took, _)| took)
    }

    /// The peak resident memory of one call, in KiB: of the largest of its processes.
    pub(crate) fn peak(&self, job: Job) -> Result<u64> {
        let file = "/run/bench/peak";
        let mut command = Command::new(self.tools.join("peak"));
        command.arg(file).arg(job.command.get_program()).args(job.command.get_args()).env_clear();
        command.envs(job.command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        self.one(self.job(command, job.config.as_ref())?)?;
        self.node.read(file)?.trim().parse().map_err(LabError::because("read the peak memory"))
    }

    /// Runs one call; how long it took and what it printed.
    pub(crate) fn one(&self, job: Job) -> Result<(Duration, Value)> {
        let mut jobs = [job];
        let took = self.timed(&mut jobs, 1)?;
        let [job] = jobs;
        let printed = std::fs::read(&job.output).map_err(LabError::because("read what a call printed"))?;
        Ok((took, serde_json::from_slice(&printed).unwrap_or_default()))
    }

    /// Runs calls at once; the time until the last has ended.
    pub(crate) fn at_once(&self, mut jobs: Vec<Job>) -> Result<Duration> {
        self.timed(&mut jobs, usize::MAX)
    }

    /// Runs calls one after the other; the time of all together.
    pub(crate) fn in_a_row(&self, mut jobs: Vec<Job>) -> Result<Duration> {
        self.timed(&mut jobs, 1)
    }

    fn timed(&self, jobs: &mut [Job], width: usize) -> Result<Duration> {
        let width = width.min(jobs.len().max(1));
        // One thread spawns for everyone, with posix_spawn, that is vfork.
        let (took, codes) = self.node.enter(|| {
            let mut codes = Vec::with_capacity(jobs.len());
            let began = Instant::now();
            for part in jobs.chunks_mut(width) {
                let children: Vec<_> = part.iter_mut().map(|job| job.command.spawn()).collect();
                codes.extend(children.into_iter().map(|child| child?.wait()));
            }
            (began.elapsed(), codes)
        })?;
        for (job, code) in jobs.iter().zip(codes) {
            let status = code.map_err(LabError::because(job.what()))?;
            if !status.success() {
                let said = std::fs::read_to_string(&job.output).unwrap_or_default();
                return Err(LabError::new(format!("{}: {status}: {}", job.what(), said.trim())));
            }
        }
        Ok(took)
    }

    /// Whether a link of this name is on the node now.
    pub(crate) fn has_link(&self, name: &str) -> Result<bool> {
        self.node.in_network(|| nix::net::if_::if_nametoindex(name).is_ok())
    }

    /// How many ports a network's bridge has.
    pub(crate) fn ports(&self, network: &Network) -> Result<usize> {
        Ok(self.node.ip(&["link", "show", "master", &network.bridge])?.as_array().map_or(0, Vec::len))
    }

    /// Writes a directory of host-local's for a network, with so many leases of containers that never were.
    pub(crate) fn fill(&self, network: &mut Network, leases: u32) -> Result<()> {
        let dir = format!("/var/lib/cni/filled-{}", network.name);
        let inner = self.node.path(&dir).join(&network.name);
        std::fs::create_dir_all(&inner).map_err(LabError::because(format!("make {dir}")))?;
        let what = format!("fill {dir}");
        for index in 0..leases {
            let address = format!("10.88.{}.{}", 1 + index / 250, 2 + index % 250);
            std::fs::write(inner.join(address), format!("filled{index}\r\neth0"))
                .map_err(LabError::because(what.clone()))?;
        }
        // The next address comes behind them.
        std::fs::write(inner.join("last_reserved_ip.0"), "10.88.200.1").map_err(LabError::because(what))?;
        network.data_dir = Some(dir);
        Ok(())
    }

    fn plugin(&self, network: &Network, verb: &str, slot: Option<&Slot>, config: &Value) -> Result<Job> {
        let program = match network.contestant {
            Contestant::Reference => "/opt/cni/bin/bridge".into(),
            _ => self.programs.join("podwire"),
        };
        let mut command = Command::new(program);
        command.env_clear().envs(network.env.iter().cloned());
        environment(&mut command, verb, slot);
        self.job(command, Some(config))
    }

    /// A command with its input and output in files: pipes would need a reader's turn on a CPU.
    fn job(&self, mut command: Command, config: Option<&Value>) -> Result<Job> {
        let (output, _) = self.file("out");
        let file = File::create(&output).map_err(LabError::because(format!("make {}", output.display())))?;
        let errors = file.try_clone().map_err(LabError::because("duplicate a file descriptor"))?;
        command.stdin(Stdio::null()).stdout(file).stderr(errors);
        if let Some(config) = config {
            let (input, _) = self.file("in");
            let what = || LabError::because(format!("write {}", input.display()));
            std::fs::write(&input, config.to_string()).map_err(what())?;
            command.stdin(File::open(&input).map_err(what())?);
            // The descriptor holds it.
            std::fs::remove_file(&input).map_err(what())?;
        }
        Ok(Job { command, config: config.cloned(), output, files: Vec::new() })
    }

    /// A new file on the node's tmpfs, as seen from outside and from inside.
    fn file(&self, kind: &str) -> (PathBuf, PathBuf) {
        self.files.set(self.files.get() + 1);
        let inside = PathBuf::from(format!("/run/bench/{kind}{}", self.files.get()));
        (self.node.path(&inside), inside)
    }

    /// What traffic from one pod's network namespace to another's costs: see floor/meter.c.
    pub(crate) fn meter(&self, what: &str, time: Duration, way: &Way<'_>) -> Result<Metered> {
        let last = std::thread::available_parallelism().map_or(0, |cpus| cpus.get() - 1);
        let path = |pod: &Pod| self.node.path(pod.netns_path());
        let mut command = Command::new(self.tools.join("meter"));
        command
            .args([what, &time.as_millis().to_string(), &last.to_string()])
            .args([path(way.server), path(way.client)])
            .args([way.listen.to_string(), way.to.ip().to_string(), way.to.port().to_string()]);
        let done = command.output().map_err(LabError::because("start the traffic meter"))?;
        let said = String::from_utf8_lossy(&done.stdout);
        let read = || {
            let mut words = said.split_whitespace();
            let mut number = || words.next()?.parse::<f64>().ok();
            let (amount, _wall, cpu) = (number()?, number()?, number()?);
            Some(Metered { rate: amount / cpu, seen: words.next()?.parse().ok()? })
        };
        read().filter(|_| done.status.success()).ok_or_else(|| {
            LabError::new(format!(
                "{what} to {}: {}: {said}{}",
                way.to,
                done.status,
                String::from_utf8_lossy(&done.stderr)
            ))
        })
    }

    fn must(&self, program: &str, args: &[&str]) -> Result<()> {
        self.node.run(program, args)?.success(&format!("{program} {}", args.join(" "))).map(drop)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for agent in &mut self.agents {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

/// From where to where traffic is measured.
pub(crate) struct Way<'a> {
    pub(crate) client: &'a Pod,
    pub(crate) server: &'a Pod,
    /// The server's port, on all its addresses.
    pub(crate) listen: u16,
    /// Where the client connects to.
    pub(crate) to: SocketAddrV4,
}

/// What the meter said.
pub(crate) struct Metered {
    /// Bytes, or connections, per second of one CPU.
    pub(crate) rate: f64,
    /// The client's address as the server saw it.
    pub(crate) seen: Ipv4Addr,
}

/// A call, ready to be spawned.
pub(crate) struct Job {
    command: Command,
    config: Option<Value>,
    output: PathBuf,
    /// Files that it reads.
    files: Vec<PathBuf>,
}

impl Job {
    fn what(&self) -> String {
        let verb =
            self.command.get_envs().find(|(name, _)| *name == "CNI_COMMAND").and_then(|(_, value)| value);
        format!(
            "{} {}",
            self.command.get_program().to_string_lossy(),
            verb.unwrap_or_default().to_string_lossy()
        )
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        for file in self.files.iter().chain([&self.output]) {
            let _ = std::fs::remove_file(file);
        }
    }
}

/// The variables of a runtime's call.
fn environment(command: &mut Command, verb: &str, slot: Option<&Slot>) {
    command
        .env("CNI_COMMAND", verb)
        .env("CNI_PATH", "/opt/cni/bin")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    if let Some(slot) = slot {
        command.env("CNI_CONTAINERID", slot.pod.name()).env("CNI_NETNS", slot.pod.netns_path());
        command.env("CNI_IFNAME", "eth0");
    }
}
