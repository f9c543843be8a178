//! The Container Runtime Interface (v1), as far as the tests speak it: what a kubelet says to a runtime.
//!
//! The messages are written by hand from api.proto of k8s.io/cri-api v1: fields that are not used here are left
//! out, which protocol buffers allow, so neither protoc nor a build script is needed.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use prost::Message;
use tokio::runtime::Runtime;

use crate::error::{LabError, Result};
use crate::traffic::Transport;

/// How long one call may take. Runtimes give a plugin longer, but no test waits for that.
const CALL_LIMIT: Duration = Duration::from_secs(60);

macro_rules! messages {
    ($($name:ident { $($(#[$attribute:meta])* $field:ident: $type:ty),* $(,)? })*) => { $(
        #[derive(Clone, PartialEq, Message)]
        struct $name { $($(#[$attribute])* $field: $type),* }
    )* };
}

messages! {
    Empty {}
    PodMetadata {
        #[prost(string, tag = "1")] name: String,
        #[prost(string, tag = "2")] uid: String,
        #[prost(string, tag = "3")] namespace: String,
        #[prost(uint32, tag = "4")] attempt: u32,
    }
    LinuxPod {
        #[prost(string, tag = "1")] cgroup_parent: String,
    }
    PortMapping {
        #[prost(int32, tag = "1")] protocol: i32,
        #[prost(int32, tag = "2")] container_port: i32,
        #[prost(int32, tag = "3")] host_port: i32,
        #[prost(string, tag = "4")] host_ip: String,
    }
    PodConfig {
        #[prost(message, optional, tag = "1")] metadata: Option<PodMetadata>,
        #[prost(string, tag = "2")] hostname: String,
        #[prost(message, repeated, tag = "5")] port_mappings: Vec<PortMapping>,
        #[prost(map = "string, string", tag = "7")] annotations: HashMap<String, String>,
        #[prost(message, optional, tag = "8")] linux: Option<LinuxPod>,
    }
    RunPodRequest {
        #[prost(message, optional, tag = "1")] config: Option<PodConfig>,
    }
    Id {
        #[prost(string, tag = "1")] id: String,
    }
    PodIp {
        #[prost(string, tag = "1")] ip: String,
    }
    PodNetwork {
        #[prost(string, tag = "1")] ip: String,
        #[prost(message, repeated, tag = "2")] additional: Vec<PodIp>,
    }
    PodStatus {
        #[prost(message, optional, tag = "5")] network: Option<PodNetwork>,
    }
    PodStatusRequest {
        #[prost(string, tag = "1")] id: String,
        #[prost(bool, tag = "2")] verbose: bool,
    }
    PodStatusResponse {
        #[prost(message, optional, tag = "1")] status: Option<PodStatus>,
        #[prost(map = "string, string", tag = "2")] info: HashMap<String, String>,
    }
    PodItem {
        #[prost(string, tag = "1")] id: String,
        #[prost(message, optional, tag = "2")] metadata: Option<PodMetadata>,
        #[prost(int32, tag = "3")] state: i32,
    }
    PodList {
        #[prost(message, repeated, tag = "1")] items: Vec<PodItem>,
    }
    ContainerMetadata {
        #[prost(string, tag = "1")] name: String,
        #[prost(uint32, tag = "2")] attempt: u32,
    }
    ImageSpec {
        #[prost(string, tag = "1")] image: String,
    }
    ContainerConfig {
        #[prost(message, optional, tag = "1")] metadata: Option<ContainerMetadata>,
        #[prost(message, optional, tag = "2")] image: Option<ImageSpec>,
        #[prost(string, repeated, tag = "3")] command: Vec<String>,
        #[prost(message, optional, tag = "15")] linux: Option<Empty>,
    }
    CreateRequest {
        #[prost(string, tag = "1")] pod: String,
        #[prost(message, optional, tag = "2")] config: Option<ContainerConfig>,
        #[prost(message, optional, tag = "3")] pod_config: Option<PodConfig>,
    }
    ExecRequest {
        #[prost(string, tag = "1")] id: String,
        #[prost(string, repeated, tag = "2")] command: Vec<String>,
        #[prost(int64, tag = "3")] timeout: i64,
    }
    ExecResponse {
        #[prost(bytes = "vec", tag = "1")] stdout: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")] stderr: Vec<u8>,
        #[prost(int32, tag = "3")] exit_code: i32,
    }
    Condition {
        #[prost(string, tag = "1")] name: String,
        #[prost(bool, tag = "2")] status: bool,
        #[prost(string, tag = "3")] reason: String,
        #[prost(string, tag = "4")] message: String,
    }
    RuntimeStatus {
        #[prost(message, repeated, tag = "1")] conditions: Vec<Condition>,
    }
    StatusResponse {
        #[prost(message, optional, tag = "1")] status: Option<RuntimeStatus>,
    }
    VersionResponse {
        #[prost(string, tag = "2")] runtime: String,
        #[prost(string, tag = "3")] version: String,
    }
}

/// As the CRI has it: the protocols have numbers of their own.
fn port_mapping(port: &HostPort) -> PortMapping {
    PortMapping {
        protocol: match port.transport {
            Transport::Tcp => 0,
            Transport::Udp => 1,
        },
        container_port: port.container_port.into(),
        host_port: port.host_port.into(),
        host_ip: port.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
    }
}

/// A connection to a runtime.
pub struct Cri {
    // The order matters: the channel's task ends before the runtime that it runs on.
    grpc: tonic::client::Grpc<tonic::transport::Channel>,
    runtime: Runtime,
    cgroup: String,
}

/// What a pod may have besides a name.
#[derive(Debug, Clone, Default)]
pub struct PodOptions {
    /// Ports of the node that lead to it.
    pub ports: Vec<HostPort>,
    /// Annotations, such as `kubernetes.io/ingress-bandwidth`, from which a runtime reads rates.
    pub annotations: Vec<(&'static str, &'static str)>,
}

/// A port of the node that leads to a pod.
#[derive(Debug, Clone, Copy)]
pub struct HostPort {
    /// The protocol.
    pub transport: Transport,
    /// The node's address; `None` for all.
    pub host_ip: Option<IpAddr>,
    /// The node's port.
    pub host_port: u16,
    /// The pod's port.
    pub container_port: u16,
}

impl HostPort {
    /// A port on all of the node's addresses.
    pub fn new(transport: Transport, host_port: u16, container_port: u16) -> Self {
        Self { transport, host_ip: None, host_port, container_port }
    }
}

impl PodOptions {
    /// The rates of a pod as Kubernetes writes them, such as `20M`: what it receives, and what it sends.
    pub fn rates(mut self, ingress: &'static str, egress: &'static str) -> Self {
        self.annotations.push(("kubernetes.io/ingress-bandwidth", ingress));
        self.annotations.push(("kubernetes.io/egress-bandwidth", egress));
        self
    }

    /// One more port.
    pub fn port(mut self, port: HostPort) -> Self {
        self.ports.push(port);
        self
    }
}

/// A pod as the runtime lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedPod {
    /// The sandbox's id.
    pub id: String,
    /// The pod's name.
    pub name: String,
    /// SANDBOX_READY.
    pub ready: bool,
}

/// How a command in a container ended.
#[derive(Debug, Clone)]
pub struct Exec {
    /// Its exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Cri {
    /// Connects to the runtime's socket. Pods are run below the control group `/<cgroup>`.
    ///
    /// # Errors
    /// If nobody listens there.
    pub fn connect(socket: &Path, cgroup: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(LabError::because("start tokio"))?;
        let what = format!("connect to {}", socket.display());
        let socket = socket.to_owned();
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move {
                let stream = tokio::net::UnixStream::connect(socket).await?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        });
        let endpoint = tonic::transport::Endpoint::from_static("http://localhost");
        let channel =
            runtime.block_on(endpoint.connect_with_connector(connector)).map_err(LabError::because(what))?;
        let grpc = tonic::client::Grpc::new(channel);
        Ok(Self { grpc, runtime, cgroup: format!("/{cgroup}") })
    }

    fn call<Q, R>(&mut self, method: &str, request: Q) -> Result<R>
    where
        Q: Message + Send + Sync + 'static,
        R: Message + Default + Send + Sync + 'static,
    {
        self.call_within(method, request, CALL_LIMIT)
    }

    fn call_within<Q, R>(&mut self, method: &str, request: Q, limit: Duration) -> Result<R>
    where
        Q: Message + Send + Sync + 'static,
        R: Message + Default + Send + Sync + 'static,
    {
        let path = format!("/runtime.v1.RuntimeService/{method}")
            .parse()
            .map_err(LabError::because("make a gRPC path"))?;
        let Self { grpc, runtime, .. } = self;
        runtime.block_on(async {
            grpc.ready().await.map_err(LabError::because(format!("{method}: the runtime is gone")))?;
            let mut request = tonic::Request::new(request);
            request.set_timeout(limit);
            let codec = tonic_prost::ProstCodec::<Q, R>::default();
            let answer = grpc.unary(request, path, codec).await;
            answer
                .map(tonic::Response::into_inner)
                .map_err(|status| LabError::new(format!("{method}: {} {}", status.code(), status.message())))
        })
    }

    /// The runtime's name and version.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn version(&mut self) -> Result<(String, String)> {
        let answer: VersionResponse = self.call("Version", Empty {})?;
        Ok((answer.runtime, answer.version))
    }

    /// Whether the runtime says that the pod network is ready; if not, why.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn network_ready(&mut self) -> Result<std::result::Result<(), String>> {
        let answer: StatusResponse = self.call("Status", Empty {})?;
        let conditions = answer.status.unwrap_or_default().conditions;
        Ok(match conditions.into_iter().find(|condition| condition.name == "NetworkReady") {
            Some(condition) if condition.status => Ok(()),
            Some(condition) => Err(format!("{}: {}", condition.reason, condition.message)),
            None => Err("the runtime says nothing about its network".to_owned()),
        })
    }

    /// Runs a pod, that is, its sandbox: RunPodSandbox, where CNI's ADD happens. Gives the sandbox's id.
    ///
    /// # Errors
    /// With the runtime's message, which quotes the plugin's.
    pub fn run_pod(&mut self, name: &str) -> Result<String> {
        let config = self.pod_config(name);
        let answer: Id = self.call("RunPodSandbox", RunPodRequest { config: Some(config) })?;
        Ok(answer.id)
    }

    /// Runs a pod with ports and annotations.
    ///
    /// # Errors
    /// See [`Cri::run_pod`].
    pub fn run_pod_with(&mut self, name: &str, options: &PodOptions) -> Result<String> {
        let mut config = self.pod_config(name);
        config.port_mappings = options.ports.iter().map(port_mapping).collect();
        config.annotations =
            options.annotations.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
        let answer: Id = self.call("RunPodSandbox", RunPodRequest { config: Some(config) })?;
        Ok(answer.id)
    }

    /// Runs a pod and gives up after `limit`, as a kubelet does: the runtime then kills the plugin.
    ///
    /// # Errors
    /// See [`Cri::run_pod`]; DeadlineExceeded after the limit.
    pub fn run_pod_within(&mut self, name: &str, limit: Duration) -> Result<String> {
        let config = self.pod_config(name);
        let answer: Id = self.call_within("RunPodSandbox", RunPodRequest { config: Some(config) }, limit)?;
        Ok(answer.id)
    }

    fn pod_config(&self, name: &str) -> PodConfig {
        PodConfig {
            metadata: Some(PodMetadata {
                name: name.to_owned(),
                uid: format!("uid-{name}"),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            port_mappings: Vec::new(),
            annotations: HashMap::new(),
            linux: Some(LinuxPod { cgroup_parent: self.cgroup.clone() }),
        }
    }

    /// The pod's addresses, the primary one first.
    ///
    /// # Errors
    /// If the runtime does not know the pod, or gives something that is no address.
    pub fn pod_addresses(&mut self, pod: &str) -> Result<Vec<IpAddr>> {
        let request = PodStatusRequest { id: pod.to_owned(), verbose: false };
        let answer: PodStatusResponse = self.call("PodSandboxStatus", request)?;
        let network = answer.status.unwrap_or_default().network.unwrap_or_default();
        let texts = std::iter::once(network.ip).chain(network.additional.into_iter().map(|also| also.ip));
        texts
            .filter(|text| !text.is_empty())
            .map(|text| text.parse().map_err(LabError::because(format!("the runtime's address {text:?}"))))
            .collect()
    }

    /// The path of the pod's network namespace inside the node.
    ///
    /// # Errors
    /// If the runtime does not know the pod or does not say.
    pub fn pod_netns(&mut self, pod: &str) -> Result<String> {
        let request = PodStatusRequest { id: pod.to_owned(), verbose: true };
        let answer: PodStatusResponse = self.call("PodSandboxStatus", request)?;
        let info = answer.info.get("info").map(String::as_str).unwrap_or_default();
        let info: serde_json::Value =
            serde_json::from_str(info).map_err(LabError::because("read a pod's details"))?;
        let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array();
        let network = namespaces.into_iter().flatten().find(|namespace| namespace["type"] == "network");
        let path = network.and_then(|namespace| namespace["path"].as_str());
        path.map(str::to_owned).ok_or_else(|| LabError::new("the runtime does not tell the pod's netns"))
    }

    /// The pods, stopped ones too.
    ///
    /// # Errors
    /// If the runtime does not answer.
    pub fn pods(&mut self) -> Result<Vec<ListedPod>> {
        let answer: PodList = self.call("ListPodSandbox", Empty {})?;
        let listed = |pod: PodItem| ListedPod {
            id: pod.id,
            name: pod.metadata.unwrap_or_default().name,
            ready: pod.state == 0,
        };
        Ok(answer.items.into_iter().map(listed).collect())
    }

    /// Creates and starts a container in a pod. Gives its id.
    ///
    /// # Errors
    /// With the runtime's message.
    pub fn start_container(
        &mut self,
        pod: &str,
        pod_name: &str,
        image: &str,
        command: &[&str],
    ) -> Result<String> {
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: "main".to_owned(), attempt: 0 }),
            image: Some(ImageSpec { image: image.to_owned() }),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            linux: Some(Empty {}),
        };
        let pod_config = Some(self.pod_config(pod_name));
        let request = CreateRequest { pod: pod.to_owned(), config: Some(config), pod_config };
        let created: Id = self.call("CreateContainer", request)?;
        let _: Empty = self.call("StartContainer", Id { id: created.id.clone() })?;
        Ok(created.id)
    }

    /// Runs a command in a container to its end, within 20 s.
    ///
    /// # Errors
    /// If it cannot be run; an exit code other than 0 is no error here.
    pub fn exec(&mut self, container: &str, command: &[&str]) -> Result<Exec> {
        let command = command.iter().map(|&word| word.to_owned()).collect();
        let request = ExecRequest { id: container.to_owned(), command, timeout: 20 };
        let answer: ExecResponse = self.call("ExecSync", request)?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Exec { code: answer.exit_code, stdout: text(answer.stdout), stderr: text(answer.stderr) })
    }

    /// StopPodSandbox: ends the pod's containers and calls CNI's DEL. May be repeated.
    ///
    /// # Errors
    /// With the runtime's message.
    pub fn stop_pod(&mut self, pod: &str) -> Result<()> {
        self.call("StopPodSandbox", Id { id: pod.to_owned() }).map(|Empty {}| ())
    }

    /// RemovePodSandbox, which calls DEL once more.
    ///
    /// # Errors
    /// With the runtime's message.
    pub fn remove_pod(&mut self, pod: &str) -> Result<()> {
        self.call("RemovePodSandbox", Id { id: pod.to_owned() }).map(|Empty {}| ())
    }
}
