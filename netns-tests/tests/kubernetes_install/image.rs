//! The image in a real containerd, its containers confined as the manifests say.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Container, PodSpec};
use podwire_netns_tests::apiserver::{AGENT_TOKEN, Account, ApiServer, NodeSpec, Rule, ServerOptions, Tls};
use podwire_netns_tests::containerd::{Containerd, DEBIAN};
use podwire_netns_tests::image::BUSYBOX;
use podwire_netns_tests::{Lab, LabError, Node, NodeOptions, Result, dist_dir, wait_for};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::manifests::{containers, mounts, only, pod};
use crate::rendered::{conf, render};

/// Makes the image of the programs under test.
fn build(to: &Path) -> Result<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/build-image");
    let done = Command::new(script)
        .arg(to)
        .env("PODWIRE_DIST", fs::canonicalize(dist_dir()).map_err(LabError::because("find the programs"))?)
        .output()
        .map_err(LabError::because("start scripts/build-image"))?;
    if !done.status.success() {
        return Err(LabError::new(format!("scripts/build-image: {}", String::from_utf8_lossy(&done.stderr))));
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// The files of an archive.
fn unpack(archive: &[u8]) -> Vec<(PathBuf, u32, Vec<u8>)> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().expect("a tar archive");
    let files = entries.map(|entry| {
        use std::io::Read;
        let mut entry = entry.expect("an entry");
        let mut content = Vec::new();
        entry.read_to_end(&mut content).expect("its content");
        (entry.path().expect("its path").into_owned(), entry.header().mode().expect("its mode"), content)
    });
    files.collect()
}

fn digest(content: &[u8]) -> String {
    let hash = Sha256::digest(content);
    format!("sha256:{}", hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

#[test]
fn the_image_is_one_by_the_specification_and_the_same_each_time() -> Result<()> {
    let lab = Lab::new("image")?;
    let archives = [lab.dir().join("one.tar"), lab.dir().join("two.tar")];
    for archive in &archives {
        build(archive)?;
    }
    let [one, two] = archives.map(|archive| fs::read(archive).unwrap_or_default());
    assert_eq!(digest(&one), digest(&two));
    let files = unpack(&one);
    let content = |path: &str| {
        let found = files.iter().find(|(name, ..)| name == Path::new(path));
        found.map(|(_, _, content)| content.as_slice()).unwrap_or_else(|| panic!("no {path}"))
    };
    let json = |content: &[u8]| serde_json::from_slice::<Value>(content).expect("JSON");
    let blob = |descriptor: &Value| {
        let name = descriptor["digest"]
            .as_str()
            .and_then(|digest| digest.strip_prefix("sha256:"))
            .expect("a digest");
        let content = content(&format!("blobs/sha256/{name}"));
        assert_eq!(digest(content), descriptor["digest"].as_str().unwrap_or_default());
        assert_eq!(content.len() as u64, descriptor["size"].as_u64().unwrap_or_default());
        content
    };
    assert_eq!(json(content("oci-layout")), json!({"imageLayoutVersion": "1.0.0"}));
    let index = json(content("index.json"));
    let manifest = json(blob(&index["manifests"][0]));
    let config = json(blob(&manifest["config"]));
    blob(&manifest["layers"][0]);
    assert_eq!(config["config"]["Entrypoint"], json!(["/usr/local/bin/podwired"]));
    assert_eq!(config["config"]["Env"], json!(["PATH=/usr/local/bin"]), "for kubectl exec … podwirectl");
    assert_eq!(config["config"]["Labels"]["org.opencontainers.image.version"], env!("CARGO_PKG_VERSION"));
    let dockerfile = fs::read_to_string(conf("../Dockerfile")).expect("Dockerfile");
    for line in ["FROM scratch", "ENV PATH=/usr/local/bin", "ENTRYPOINT [\"/usr/local/bin/podwired\"]"] {
        assert!(dockerfile.lines().any(|is| is == line), "Dockerfile has no line {line}");
    }
    Ok(())
}

/// A node with containerd and the image.
struct Scene {
    node: Node,
    containerd: Containerd,
    image: String,
}

impl Scene {
    fn new(name: &str) -> Result<Self> {
        let node =
            Lab::new(name)?.node_with("n", &NodeOptions { no_plugins: true, ..NodeOptions::default() })?;
        // As systemd has it, so that containers see what is mounted later.
        node.run("mount", &["--make-rshared", "/run"])?.success("share /run")?;
        for line in [
            "link add u0 type veth peer name u1",
            "addr add 172.30.0.1/24 dev u0",
            "link set u0 up",
            "link set u1 up",
            "route add default via 172.30.0.254 dev u0",
        ] {
            node.run("ip", &line.split(' ').collect::<Vec<_>>())?.success(line)?;
        }
        let containerd = Containerd::start(&node, DEBIAN)?;
        let archive = node.lab().dir().join("podwire.tar");
        build(&archive)?;
        containerd.ctr(&["-n", "k8s.io", "images", "import", &archive.to_string_lossy()])?;
        let image = format!("docker.io/library/podwire:{}", env!("CARGO_PKG_VERSION"));
        Ok(Self { node, containerd, image })
    }

    /// Starts a container with the confinement, mounts and arguments of one of the DaemonSet's, as a kubelet would.
    fn run(&self, name: &str, container: &Container, options: &[String]) -> Result<String> {
        let context = container.security_context.clone().unwrap_or_default();
        let mut words =
            ["-n", "k8s.io", "run", "--net-host", "--read-only", "--seccomp"].map(str::to_owned).to_vec();
        words.extend_from_slice(options);
        let capabilities = context.capabilities.unwrap_or_default();
        let added = capabilities.add.unwrap_or_default();
        assert_eq!(capabilities.drop, Some(vec!["ALL".to_owned()]));
        words.extend(
            USUAL
                .iter()
                .filter(|name| !added.iter().any(|is| is == *name))
                .flat_map(|name| ["--cap-drop".to_owned(), format!("CAP_{name}")]),
        );
        words.extend(added.iter().flat_map(|name| ["--cap-add".to_owned(), format!("CAP_{name}")]));
        words.extend([self.image.clone(), name.to_owned(), "/usr/local/bin/podwired".to_owned()]);
        words.extend(container.args.clone().unwrap_or_default());
        self.containerd.ctr(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Ends a container's process with that signal, and waits for it.
    fn end(&self, name: &str, signal: &str) -> Result<()> {
        self.containerd.ctr(&["-n", "k8s.io", "task", "kill", "--signal", signal, name])?;
        let has_ended = || {
            let tasks = self.containerd.ctr(&["-n", "k8s.io", "task", "ls"]).unwrap_or_default();
            let mut tasks = tasks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            tasks.any(|task| task.first() == Some(&name) && task.last() == Some(&"STOPPED"))
        };
        if wait_for(Duration::from_secs(60), has_ended) {
            return Ok(());
        }
        Err(LabError::new(format!("{name} goes on after {signal}; its log is\n{}", self.log())))
    }

    /// What podwirectl says in a container, as by `kubectl exec`.
    fn look(&self, name: &str, args: &[&str]) -> Result<String> {
        let exec = ["-n", "k8s.io", "task", "exec", "--exec-id", args[0], name, "/usr/local/bin/podwirectl"];
        self.containerd.ctr(&[&exec[..], args].concat())
    }

    /// The agents' log.
    fn log(&self) -> String {
        self.node.read(LOG).unwrap_or_default()
    }
}

const LOG: &str = "/run/agent.log";

/// What containerd gives a container that asks for nothing.
const USUAL: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The mounts of a container as `ctr` takes them.
fn bind(pod: &PodSpec, container: &Container) -> Vec<String> {
    let mounts = mounts(pod, container);
    let mounts = mounts.iter().map(|(inside, (outside, is_writable))| {
        let how = if *is_writable { "rw" } else { "ro" };
        let slave = if outside == Path::new("/run/netns") { "rslave" } else { "rprivate" };
        format!("type=bind,src={},dst={},options=rbind:{slave}:{how}", outside.display(), inside.display())
    });
    mounts.flat_map(|mount| ["--mount".to_owned(), mount]).collect()
}

const NODE: &str = "node-1";
const ADDRESS: &str = "172.30.0.1";
const POD_CIDR: &str = "10.244.7.0/24";
/// Where the kubelet puts a pod's account, by a path without links.
const ACCOUNT: &str = "/run/secrets/kubernetes.io/serviceaccount";

/// The API server on the node, with the Node, and with an account that may do what the manifests say.
fn api_server(node: &Node, documents: &[Value]) -> Result<ApiServer> {
    let directory = node.lab().dir().join("tls");
    fs::create_dir(&directory).map_err(LabError::because("make a directory"))?;
    let options = ServerOptions {
        listen: (std::net::Ipv4Addr::UNSPECIFIED, 6443).into(),
        network: Some(Arc::new(node.netns().try_clone()?)),
        tls: Some(Tls::make(&directory, &[std::net::Ipv4Addr::new(172, 30, 0, 1).into()], &[])?),
        ..ServerOptions::default()
    };
    let server = ApiServer::start(&options)?;
    server.admit(AGENT_TOKEN, Account { rules: rules(documents), ..Account::agent().bound_to(NODE) });
    server.create_node(&NodeSpec::new(NODE).pod_cidrs(&[POD_CIDR]).internal_ips(&[ADDRESS]))?;
    node.write(format!("{ACCOUNT}/token"), AGENT_TOKEN)?;
    node.write(format!("{ACCOUNT}/ca.crt"), server.ca().unwrap_or_default())?;
    node.write(format!("{ACCOUNT}/namespace"), "podwire-system")?;
    Ok(server)
}

/// What the roles of the manifests allow.
fn rules(documents: &[Value]) -> Vec<Rule> {
    fn words(list: &Value) -> Vec<&str> {
        list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
    }
    let is_role = |document: &&Value| document["kind"].as_str().is_some_and(|kind| kind.ends_with("Role"));
    let rules =
        documents.iter().filter(is_role).flat_map(|role| role["rules"].as_array().into_iter().flatten());
    let rules = rules.map(|rule| {
        Rule::new(words(&rule["apiGroups"])[0], &words(&rule["resources"]), &words(&rule["verbs"]))
    });
    rules.collect()
}

/// Runs the init container, twice: as after a restart of the pod.
fn install_programs(scene: &Scene, pod: &PodSpec) -> Result<()> {
    let [install, _] = containers(pod);
    for (said, left) in [("installed", "unchanged"), ("unchanged", "installed")] {
        let told = scene.run(said, install, &[vec!["--rm".to_owned()], bind(pod, install)].concat())?;
        assert!(told.contains(said) && !told.contains(left), "{told}");
    }
    assert_eq!(
        scene.node.list("/opt/cni/bin"),
        ["loopback", "podwire", "podwire-ipam", "podwire-tuning", "podwirectl", "podwired"]
    );
    let version = scene.node.run("/opt/cni/bin/podwired", &["--version"])?.success("podwired --version")?;
    assert_eq!(version.out().trim(), concat!("podwired ", env!("CARGO_PKG_VERSION")));
    Ok(())
}

/// What the agent's container is given: its mounts, and what the kubelet adds to them.
fn agent_options(node: &Node, documents: &[Value]) -> Result<Vec<String>> {
    let pod = pod(documents);
    let [_, agent] = containers(&pod);
    let config: ConfigMap = only(documents, "ConfigMap");
    node.write("/run/config/podwired.toml", &config.data.unwrap_or_default()["podwired.toml"])?;
    let node_name = &agent.env.iter().flatten().next().expect("a variable").name;
    let given = [
        "--detach",
        "--log-uri",
        &format!("file://{LOG}"),
        "--env",
        &format!("{node_name}={NODE}"),
        "--env",
        &format!("KUBERNETES_SERVICE_HOST={ADDRESS}"),
        "--env",
        "KUBERNETES_SERVICE_PORT=6443",
        "--mount",
        "type=bind,src=/run/config,dst=/etc/podwire,options=rbind:ro",
        "--mount",
        &format!("type=bind,src={ACCOUNT},dst=/var{ACCOUNT},options=rbind:ro"),
    ];
    Ok([given.map(str::to_owned).to_vec(), bind(&pod, agent)].concat())
}

#[test]
fn a_node_is_installed_serves_pods_and_is_cleaned() -> Result<()> {
    let documents = render(&conf("kubernetes"))?;
    let pod = pod(&documents);
    let [install, agent] = containers(&pod);
    let mut scene = Scene::new("install")?;
    let node = scene.node.clone();
    for (_, (outside, _)) in mounts(&pod, install).into_iter().chain(mounts(&pod, agent)) {
        fs::create_dir_all(node.path(outside)).map_err(LabError::because("make a mount's directory"))?;
    }
    // It is for the agent to switch it on.
    node.run("sh", &["-c", "echo 0 > /proc/sys/net/ipv4/ip_forward"])?.success("switch forwarding off")?;
    let server = api_server(&node, &documents)?;

    install_programs(&scene, &pod)?;
    let options = agent_options(&node, &documents)?;
    scene.run("agent", agent, &options)?;
    let is_ready = || {
        server.condition(NODE, "NetworkUnavailable").is_some_and(|condition| condition["status"] == "False")
    };
    assert!(
        wait_for(Duration::from_secs(120), is_ready),
        "the Node is not ready; the agent's log is\n{}",
        scene.log()
    );
    let forwards = node.run("cat", &["/proc/sys/net/ipv4/ip_forward"])?.out();
    assert_eq!(forwards.trim(), "1", "{}", scene.log());
    assert!(server.annotation(NODE, "podwire.dev/node").is_some(), "{}", scene.log());
    assert!(
        !scene.log().contains("EROFS") && !scene.log().contains("EPERM") && !scene.log().contains("EACCES"),
        "{}",
        scene.log()
    );

    // Pods, made by the plugins of the init container.
    scene.containerd.wait_for_network()?;
    let cri = scene.containerd.cri();
    let pods = [cri.run_pod("a")?, cri.run_pod("b")?];
    let container = cri.start_container(&pods[0], "a", BUSYBOX, &["sleep", "inf"])?;
    let other = cri.pod_addresses(&pods[1])?[0].to_string();
    assert!(other.starts_with("10.244.7."), "{other}");
    let pinged = cri.exec(&container, &["ping", "-c", "2", "-i", "0.2", "-W", "5", &other])?;
    assert_eq!(pinged.code, 0, "{}{}", pinged.stdout, pinged.stderr);

    let leases = scene.look("agent", &["ipam", "show"])?;
    assert!(leases.contains(&other), "{leases}");
    let status = scene.look("agent", &["status"])?;
    assert!(status.contains(NODE) && status.contains(POD_CIDR), "{status}");

    // Another agent, which has to find out again who has which address.
    scene.end("agent", "SIGKILL")?;
    node.run("rm", &["-r", "/var/lib/podwire/ipam"])?.success("lose the address store")?;
    scene.run("second", agent, &options)?;
    let knows_pods = || scene.look("second", &["ipam", "show"]).is_ok_and(|leases| leases.contains(&other));
    assert!(wait_for(Duration::from_secs(60), knows_pods), "{}", scene.log());
    scene.end("second", "SIGTERM")?;
    // It ended in order. Its last lines may be lost in the runtime's shim.
    let left = node.list("/run/podwire");
    assert!(!left.iter().any(|name| name.ends_with(".sock")), "{left:?}\n{}", scene.log());

    // Removing it again.
    for pod in &pods {
        scene.containerd.cri().stop_pod(pod)?;
        scene.containerd.cri().remove_pod(pod)?;
    }
    node.run("/opt/cni/bin/podwired", &["cleanup"])?.success("podwired cleanup")?;
    assert_eq!(node.list("/etc/cni/net.d"), [""; 0]);
    let links = node.links()?;
    assert!(links.iter().all(|link| ["u0", "u1"].contains(&link.as_str())), "{links:?}");
    Ok(())
}
