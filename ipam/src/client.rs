//! The plugin's end of the agent's socket.

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use podwire_attach::step::step;

use crate::Error;
use crate::service::{self, Answer, DEADLINE_SECONDS, Op, Outcome, Request, Response, SPEAKS, VERSION_CODE};

/// A connection to the agent.
#[derive(Debug)]
pub(crate) struct Client {
    stream: UnixStream,
    path: PathBuf,
    speaks: RangeInclusive<u32>,
    /// The version in use: the newest until the agent says that it is older.
    version: u32,
    next_id: u64,
    /// The deadline that the socket has.
    seconds: u64,
}

impl Client {
    /// Connects; `None` if no agent listens there.
    pub(crate) fn connect(path: &Path) -> Result<Option<Self>, Error> {
        Self::connect_speaking(path, SPEAKS, DEADLINE_SECONDS)
    }

    /// The same with another deadline.
    pub(crate) fn connect_within(path: &Path, seconds: u64) -> Result<Option<Self>, Error> {
        Self::connect_speaking(path, SPEAKS, seconds)
    }

    pub(crate) fn connect_speaking(
        path: &Path,
        speaks: RangeInclusive<u32>,
        seconds: u64,
    ) -> Result<Option<Self>, Error> {
        let failed = |errno: Errno| Error::io("connect to", path, errno.into());
        let address = UnixAddr::new(path).map_err(failed)?;
        let socket =
            socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).map_err(failed)?;
        // Also the connection itself waits no longer: an agent that is stopped has a full queue at some time.
        let deadline = TimeVal::seconds(i64::try_from(seconds).unwrap_or(i64::MAX));
        setsockopt(&socket, sockopt::SendTimeout, &deadline).map_err(failed)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &deadline).map_err(failed)?;
        loop {
            return match connect(socket.as_raw_fd(), &address) {
                Ok(()) => Ok(Some(Self {
                    stream: UnixStream::from(socket),
                    path: path.to_owned(),
                    version: *speaks.end(),
                    speaks,
                    next_id: 1,
                    seconds,
                })),
                Err(Errno::EINTR) => continue,
                Err(Errno::ENOENT | Errno::ECONNREFUSED | Errno::ENOTDIR) => Ok(None),
                Err(Errno::EAGAIN) => Err(Error::Timeout { socket: path.to_owned(), seconds }),
                Err(errno) => Err(failed(errno)),
            };
        }
    }

    /// Asks and waits for the answer, so many seconds at most between any two bytes. `meanwhile` is run while the
    /// agent is at work.
    pub(crate) fn call(
        &mut self,
        op: &Op,
        seconds: u64,
        meanwhile: &mut dyn FnMut(),
    ) -> Result<Answer, Error> {
        if seconds != self.seconds {
            let timeout = Some(Duration::from_secs(seconds));
            self.stream.set_read_timeout(timeout).map_err(|e| self.failed(e, seconds))?;
            self.seconds = seconds;
        }
        if self.version < op.version() {
            // An earlier answer on this connection has said what the agent speaks.
            return Err(Error::Versions {
                socket: self.path.clone(),
                agent_oldest: *self.speaks.start(),
                agent_newest: self.version,
                oldest: op.version(),
                newest: *self.speaks.end(),
            });
        }
        // Downwards only, so it ends.
        loop {
            let response = self.ask(op, meanwhile).map_err(|e| self.failed(e, seconds))?;
            match response.result {
                Outcome::Ok(answer) => return Ok(answer),
                Outcome::Error(failure) if failure.code == VERSION_CODE => {
                    self.version = self.lower(response.speaks, op.version())?;
                }
                Outcome::Error(failure) => return Err(failure.into()),
            }
        }
    }

    fn ask(&mut self, op: &Op, meanwhile: &mut dyn FnMut()) -> io::Result<Response> {
        let id = self.next_id;
        self.next_id += 1;
        let request = Request { version: self.version, id, op: op.clone() };
        service::send(&mut self.stream, &request)?;
        step("agent-asked");
        meanwhile();
        let response: Response = service::receive(&mut self.stream)?;
        step("agent-answered");
        if response.id != id {
            let what = format!("an answer to request {}, not to {id}", response.id);
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(response)
    }

    /// The newest version that both speak, if it is lower than the present one and not below the lowest that will do.
    fn lower(&self, (agent_oldest, agent_newest): (u32, u32), lowest: u32) -> Result<u32, Error> {
        let version = agent_newest.min(self.version.saturating_sub(1));
        if version >= agent_oldest.max(lowest) && self.speaks.contains(&version) {
            return Ok(version);
        }
        Err(Error::Versions {
            socket: self.path.clone(),
            agent_oldest,
            agent_newest,
            oldest: lowest.max(*self.speaks.start()),
            newest: *self.speaks.end(),
        })
    }

    fn failed(&self, error: io::Error, seconds: u64) -> Error {
        let socket = self.path.clone();
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::Timeout { socket, seconds },
            io::ErrorKind::InvalidData => {
                Error::Protocol { socket, what: format!("something that is no answer: {error}") }
            }
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::NotConnected => Error::Disconnected { socket },
            _ => Error::io("talk to the agent at", &self.path, error),
        }
    }

    /// For an answer that does not belong to the question.
    pub(crate) fn unexpected(&self, answer: &Answer) -> Error {
        let answer = format!("{answer:?}");
        let kind = answer.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
        Error::Protocol { socket: self.path.clone(), what: format!("an answer of another kind ({kind})") }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use podwire_attach::{Attachment, Owner, PortMapping, Protocol, Traffic};

    use super::*;
    use crate::Reserve;

    fn reserve(ports: Vec<PortMapping>) -> Op {
        let attachment = Attachment {
            owner: Owner::new("n", "c", "eth0"),
            addresses: Vec::new(),
            mac: None,
            link: None,
            bridge: None,
            netns: String::new(),
            netns_identity: None,
            pod: None,
            runtime: None,
            given: Vec::new(),
            traffic: Some(Traffic { ports, ..Traffic::default() }),
        };
        let (sets, requested) = (Vec::new(), Vec::new());
        Op::Reserve(Box::new(Reserve { attachment, sets, requested, quarantine_ms: 0, import_dir: None }))
    }

    #[test]
    fn an_agent_that_knows_no_traffic_is_asked_for_none() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let agent = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = Vec::new();
            while let Ok(request) = service::receive::<serde_json::Value>(&mut stream) {
                let version = request["version"].as_u64().unwrap();
                asked.push(version);
                let answer = match version {
                    1 => serde_json::json!({"ok": "done"}),
                    _ => serde_json::json!({"error": {"code": VERSION_CODE, "msg": "", "retry": false}}),
                };
                let response = serde_json::json!({
                    "version": version, "speaks": [1, 1], "id": request["id"], "result": answer,
                });
                service::send(&mut stream, &response).unwrap();
            }
            asked
        });
        let mut client = Client::connect(&path).unwrap().expect("it listens");
        let port = PortMapping { protocol: Protocol::Tcp, host_ip: None, host_port: 80, container_port: 80 };
        // The same whether or not it is known already what the agent speaks.
        for _ in 0..2 {
            let refused = client.call(&reserve(vec![port]), DEADLINE_SECONDS, &mut || ()).unwrap_err();
            let expected =
                "speaks versions 1 to 1 of the protocol, this program 2 to 2: upgrade the older of the two";
            assert!(refused.to_string().ends_with(expected), "{refused}");
            let plain = client.call(&reserve(Vec::new()), DEADLINE_SECONDS, &mut || ()).unwrap();
            assert_eq!(plain, Answer::Done);
        }
        drop(client);
        assert_eq!(agent.join().unwrap(), [2, 2, 1, 1]);
    }
}
