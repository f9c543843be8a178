//! The agent's socket without podwire at the other end: clients that hang up, agents of another version. A frame is a
//! length (4 bytes, big-endian) and so many bytes of JSON.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use crate::Node;
use crate::error::{LabError, Result};

/// A client.
pub struct Client(UnixStream);

impl Client {
    /// Connects to the socket at that path in the node, from the node: the agent changes nothing for others.
    ///
    /// # Errors
    /// If nobody listens.
    pub fn connect(node: &Node, socket: &str) -> Result<Self> {
        let connect = || UnixStream::connect(node.path(socket));
        let stream = node.in_network(connect)?.map_err(LabError::because("connect to the agent"))?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).map_err(LabError::because("set a timeout"))?;
        Ok(Self(stream))
    }

    /// Sends any bytes.
    ///
    /// # Errors
    /// If the other end is closed.
    pub fn send_raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.write_all(bytes).map_err(LabError::because("write to the agent"))
    }

    /// Sends a message.
    ///
    /// # Errors
    /// If the other end is closed.
    pub fn send(&mut self, message: &Value) -> Result<()> {
        self.send_raw(&frame(message))
    }

    /// Receives a message; `None` if the other end hung up.
    ///
    /// # Errors
    /// If nothing comes for 10 s, or no message.
    pub fn receive(&mut self) -> Result<Option<Value>> {
        receive(&mut self.0)
    }

    /// Sends a message and receives the answer.
    ///
    /// # Errors
    /// If there is none.
    pub fn ask(&mut self, message: &Value) -> Result<Value> {
        self.send(message)?;
        self.receive()?.ok_or_else(|| LabError::new(format!("the agent hung up on {message}")))
    }
}

/// A message as a frame.
pub fn frame(message: &Value) -> Vec<u8> {
    let body = message.to_string().into_bytes();
    let mut frame = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes().to_vec();
    frame.extend(body);
    frame
}

fn receive(stream: &mut UnixStream) -> Result<Option<Value>> {
    let mut header = [0; 4];
    match stream.read_exact(&mut header) {
        Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
            return Ok(None);
        }
        read => read.map_err(LabError::because("read from the agent's socket"))?,
    }
    let mut body = vec![0; u32::from_be_bytes(header) as usize];
    stream.read_exact(&mut body).map_err(LabError::because("read a frame's body"))?;
    serde_json::from_slice(&body).map(Some).map_err(LabError::because("read a frame's JSON"))
}

/// An agent that is none: it answers as it is told and keeps what it was asked. It ends with this value.
pub struct FakeAgent {
    asked: Arc<Mutex<Vec<Value>>>,
    socket: std::path::PathBuf,
}

impl FakeAgent {
    /// Listens at that path in the node. `answer` makes the response to a request; for `None` it hangs up.
    ///
    /// # Errors
    /// If the socket cannot be made.
    pub fn listen(
        node: &Node,
        socket: &str,
        answer: impl Fn(&Value) -> Option<Value> + Send + Sync + 'static,
    ) -> Result<Self> {
        let path = node.path(socket);
        let directory = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory).map_err(LabError::because("make the socket's directory"))?;
        let listener = UnixListener::bind(&path).map_err(LabError::because("listen"))?;
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (kept, answer) = (Arc::clone(&asked), Arc::new(answer));
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(std::result::Result::ok) {
                let (kept, answer) = (Arc::clone(&kept), Arc::clone(&answer));
                std::thread::spawn(move || {
                    while let Ok(Some(request)) = receive(&mut stream) {
                        let response = answer(&request);
                        if let Ok(mut kept) = kept.lock() {
                            kept.push(request);
                        }
                        let Some(response) = response else { break };
                        if stream.write_all(&frame(&response)).is_err() {
                            break;
                        }
                    }
                });
            }
        });
        Ok(Self { asked, socket: path })
    }

    /// All requests so far.
    pub fn asked(&self) -> Vec<Value> {
        self.asked.lock().map(|asked| asked.clone()).unwrap_or_default()
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        // The thread that listens stays until the test ends; nobody finds it any more.
        let _ = fs::remove_file(&self.socket);
    }
}

/// The answer of an agent that speaks versions `speaks` to a request that it does not understand.
pub fn other_version(request: &Value, speaks: [u32; 2]) -> Value {
    json!({
        "version": request["version"], "speaks": speaks, "id": request["id"],
        "result": {"error": {"code": "version", "msg": "another version is spoken here", "retry": false}}
    })
}
