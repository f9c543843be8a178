//! Debian's etcd on the loopback link of the test's own network namespace.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions};
use podwire_kernel::testing::run;
use tokio::time::{Instant, sleep};

/// The members. They end with this value, and with the test's thread in whatever way it ends.
pub(crate) struct Etcd {
    dir: tempfile::TempDir,
    members: Vec<Option<Child>>,
    arguments: Vec<String>,
    scheme: &'static str,
    /// How often it was restored from a backup: each has a cluster token of its own, if that is asked for.
    token: u32,
}

impl Etcd {
    /// Starts members and waits until they have a leader.
    pub(crate) async fn start(members: usize) -> Self {
        let etcd = Self::start_with(members, "http", &[]);
        etcd.client().await;
        etcd
    }

    /// Starts members with more arguments, and does not wait. `{dir}` is [`Etcd::dir`].
    pub(crate) fn start_with(members: usize, scheme: &'static str, arguments: &[&str]) -> Self {
        // Memory: what is tested is not whether etcd's files outlive a power cut.
        let dir = tempfile::Builder::new().prefix("podwire-etcd").tempdir_in("/dev/shm").expect("/dev/shm");
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let mut etcd = Self { dir, members: Vec::new(), arguments, scheme, token: 0 };
        etcd.members.resize_with(members, || None);
        etcd.start_again();
        etcd
    }

    /// Gets more members, with more arguments.
    pub(crate) fn grow(&mut self, members: usize, arguments: &[&str]) {
        self.arguments.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self.members.resize_with(members, || None);
        self.start_again();
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn address(member: usize) -> String {
        format!("127.0.1.{}", member + 1)
    }

    /// Where clients find each member.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        (0..self.members.len()).map(|member| self.url(member, 2379)).collect()
    }

    fn url(&self, member: usize, port: u16) -> String {
        let scheme = if port == 2379 { self.scheme } else { "http" };
        format!("{scheme}://{}:{port}", Self::address(member))
    }

    fn data(&self, member: usize) -> PathBuf {
        self.dir().join(format!("member{member}"))
    }

    fn initial_cluster(&self) -> String {
        let each = (0..self.members.len()).map(|member| format!("m{member}={}", self.url(member, 2380)));
        each.collect::<Vec<_>>().join(",")
    }

    /// Starts the members that do not run.
    pub(crate) fn start_again(&mut self) {
        for member in 0..self.members.len() {
            if self.members[member].is_none() {
                self.members[member] = Some(self.spawn(member));
            }
        }
    }

    fn spawn(&self, member: usize) -> Child {
        let (clients, peers) = (self.url(member, 2379), self.url(member, 2380));
        let log = File::options().create(true).append(true).open(self.log(member)).expect("a log");
        let dir = self.dir().display().to_string();
        // With the thread that started it, a member ends, whatever ended the thread.
        Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "etcd", "--logger", "zap", "--name", &format!("m{member}")])
            .arg("--data-dir")
            .arg(self.data(member))
            .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &self.initial_cluster()])
            .args(["--initial-cluster-token", &format!("t{}", self.token)])
            .args(self.arguments.iter().map(|argument| argument.replace("{dir}", &dir)))
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("setpriv (package util-linux) and etcd (package etcd-server) are needed by this test")
    }

    fn log(&self, member: usize) -> PathBuf {
        self.dir().join(format!("log{member}"))
    }

    /// Kills a member with SIGKILL.
    pub(crate) fn kill(&mut self, member: usize) {
        if let Some(mut process) = self.members[member].take() {
            process.kill().and_then(|()| process.wait()).expect("a member that runs");
        }
    }

    pub(crate) fn kill_all(&mut self) {
        (0..self.members.len()).for_each(|member| self.kill(member));
    }

    /// Waits until an answer comes from some member, and gives a client of all of them that the test can use.
    pub(crate) async fn client(&self) -> Client {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let options =
                ConnectOptions::new().with_timeout(Duration::from_secs(2)).with_require_leader(true);
            let running = self.members.iter().position(Option::is_some).expect("a member that runs");
            let mut client =
                Client::connect([self.url(running, 2379)], Some(options)).await.expect("a client");
            match client.get("x", None).await {
                Ok(_) => return client,
                Err(error) if Instant::now() > deadline => panic!("etcd: {error}\n{}", self.logs()),
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Which member leads.
    pub(crate) async fn leader(&self) -> usize {
        for (member, process) in self.members.iter().enumerate() {
            if process.is_none() {
                continue;
            }
            let mut client = Client::connect([self.url(member, 2379)], None).await.expect("a client");
            let status = client.status().await.expect("a member's status");
            if status.leader() == status.header().expect("a header").member_id() {
                return member;
            }
        }
        panic!("no leader");
    }

    /// Saves a backup of that name.
    pub(crate) fn back_up(&self, name: &str) {
        let file = self.dir().join(name).display().to_string();
        run(
            "env",
            &["ETCDCTL_API=3", "etcdctl", "--endpoints", &self.url(0, 2379), "snapshot", "save", &file],
        );
    }

    /// Kills all members, puts a backup in the place of their files, and starts them again.
    pub(crate) fn restore(&mut self, name: &str, new_token: bool) {
        self.kill_all();
        self.token += u32::from(new_token);
        let file = self.dir().join(name).display().to_string();
        for member in 0..self.members.len() {
            let data = self.data(member);
            std::fs::remove_dir_all(&data).expect("a member's files");
            let arguments = [
                "ETCDCTL_API=3",
                "etcdctl",
                "snapshot",
                "restore",
                &file,
                "--name",
                &format!("m{member}"),
                "--data-dir",
                &data.display().to_string(),
                "--initial-cluster",
                &self.initial_cluster(),
                "--initial-cluster-token",
                &format!("t{}", self.token),
                "--initial-advertise-peer-urls",
                &self.url(member, 2380),
            ];
            run("env", &arguments);
        }
        self.start_again();
    }

    /// Kills all members and starts them with nothing.
    pub(crate) fn wipe(&mut self) {
        self.kill_all();
        for member in 0..self.members.len() {
            std::fs::remove_dir_all(self.data(member)).expect("a member's files");
        }
        self.start_again();
    }

    pub(crate) fn logs(&self) -> String {
        let tail = |member| {
            let log = std::fs::read_to_string(self.log(member)).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            lines[lines.len().saturating_sub(20)..].join("\n")
        };
        (0..self.members.len()).map(tail).collect::<Vec<_>>().join("\n")
    }

    /// Drops all packets from and to a member's clients' port, or lets them through again.
    pub(crate) fn cut(cut: bool) {
        if cut {
            run(
                "nft",
                &["add table inet cut { chain i { type filter hook input priority 0; tcp dport 2379 drop; \
                          tcp sport 2379 drop; }; }"],
            );
        } else {
            run("nft", &["delete table inet cut"]);
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        self.kill_all();
    }
}
