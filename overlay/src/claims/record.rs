//! What stands at the keys: JSON with a format version. PURE.
//!
//! Anybody with the store's credentials can write there, versions to come among them. What cannot be read is left out by name;
//! it is never taken for absent.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::key::{Key, check_name};
use crate::cluster::topology::check_config;
use crate::cluster::{ClusterConfig, NodeRecord};

/// The format that is written, and the only one that is read.
const FORMAT: u32 = 1;

/// The largest record that is read, in bytes. Ours have some 400.
pub const LARGEST: usize = 64 << 10;

/// Which course of the store's history this is. A backup that is restored leads back to an earlier one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Epoch {
    /// Counts the restored backups.
    pub number: u64,
    /// The store's cluster id, in hexadecimal digits: programs that read JSON tend to lose the ends of large numbers.
    pub cluster: String,
    /// At least so many more log entries than revisions the store had: see [`Lineage`](super::Lineage).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lead: Option<i64>,
}

/// Why nobody makes new claims for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Grace {
    /// Who noticed that the store was restored.
    pub node: String,
}

/// Who has a subnet, or had it last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hold {
    /// The node's name.
    pub node: String,
    /// Its installation.
    pub instance: String,
    /// The store's revision that the claim was made at.
    pub claimed: u64,
    /// The epoch that it was made in.
    #[serde(default)]
    pub epoch: u64,
    /// Why the claim has ended: the subnet is nobody's, and nobody else may have it before the record is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resting: Option<Ended>,
}

impl Hold {
    /// Whether it names that installation of that node.
    pub fn is_of(&self, node: &str, instance: &str) -> bool {
        self.node == node && self.instance == instance
    }
}

/// Why a claim has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ended {
    /// The node left.
    Left,
    /// An administrator removed it.
    Removed,
    /// It was absent for too long.
    Absent,
    /// Another installation took its name.
    Replaced,
    /// The node holds another subnet of the same range.
    Surplus,
}

/// That a node is connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Presence {
    /// Which installation of the name.
    pub instance: String,
    /// Which boot of it.
    pub boot: String,
    /// Which process: random.
    pub session: String,
}

/// What stands at a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// At [`Key::Config`].
    Config(ClusterConfig),
    /// At [`Key::Epoch`].
    Epoch(Epoch),
    /// At [`Key::Grace`].
    Grace(Grace),
    /// At [`Key::Node`].
    Node(NodeRecord),
    /// At [`Key::Subnet`].
    Subnet(Hold),
    /// At [`Key::Presence`].
    Presence(Presence),
}

impl Value {
    /// Reads what stands at a key.
    ///
    /// # Errors
    /// With what is wrong about it, without the key.
    pub fn parse(key: &Key, bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > LARGEST {
            return Err(format!("it has {} bytes, more than {LARGEST}", bytes.len()));
        }
        let Format { format } = read(bytes)?;
        if format != FORMAT {
            return Err(format!(
                "it has format {format}, and this podwired reads {FORMAT}: is there a newer version?"
            ));
        }
        match key {
            Key::Config => {
                let config = read(bytes)?;
                check_config(&config).map(|()| Self::Config(config)).map_err(|error| error.to_string())
            }
            Key::Epoch => read(bytes).map(Self::Epoch),
            Key::Grace => read(bytes).map(Self::Grace),
            Key::Node(name) => {
                let record: NodeRecord = read(bytes)?;
                if record.name != *name {
                    return Err(format!("it speaks of node {:?}", cut(&record.name)));
                }
                check_id(&record.instance).map(|()| Self::Node(record))
            }
            Key::Subnet(_) => {
                let hold: Hold = read(bytes)?;
                check_name(&hold.node).and_then(|()| check_id(&hold.instance)).map(|()| Self::Subnet(hold))
            }
            Key::Presence(_) => {
                let presence: Presence = read(bytes)?;
                check_id(&presence.instance)
                    .and_then(|()| check_id(&presence.boot))
                    .map(|()| Self::Presence(presence))
            }
        }
    }

    /// As it is written.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Config(value) => write(value),
            Self::Epoch(value) => write(value),
            Self::Grace(value) => write(value),
            Self::Node(value) => write(value),
            Self::Subnet(value) => write(value),
            Self::Presence(value) => write(value),
        }
    }
}

#[derive(Deserialize)]
struct Format {
    format: u32,
}

#[derive(Serialize)]
struct Framed<'a, T> {
    format: u32,
    #[serde(flatten)]
    value: &'a T,
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|error| cut(&error.to_string()))
}

fn write<T: Serialize>(value: &T) -> Vec<u8> {
    // These types have no keys that are not strings, and no writer that fails.
    serde_json::to_vec(&Framed { format: FORMAT, value }).unwrap_or_default()
}

/// Instance and boot ids are 32 hexadecimal digits or a UUID; what others use shall only be something to compare and print.
fn check_id(id: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if (1..=64).contains(&id.len()) && id.chars().all(fits) {
        Ok(())
    } else {
        Err(format!("{:?} is no instance or boot id", cut(id)))
    }
}

/// The first 100 characters, none of them a control character, for a message.
fn cut(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        text.parse().unwrap()
    }

    fn parse(at: &str, text: &str) -> Result<Value, String> {
        Value::parse(&key(at), text.as_bytes())
    }

    #[test]
    fn records_are_read_as_they_are_written() {
        let node = r#"{"format":1,"name":"a","instance":"1f","generation":7,"addresses":["192.0.2.1"],
            "subnets":["10.244.5.0/24"],"claimed":3,"mtu":1500,
            "receives":[{"vni":1,"port":8472,"mac":"02:00:00:00:00:01"}],"sends":{"vni":1,"port":8472},"more":[{}]}"#;
        let config = r#"{"format":1,"name":"c","ranges":[{"range":"10.244.0.0/16","subnetPrefix":24}]}"#;
        for (at, text) in [
            ("nodes/a", node),
            ("config", config),
            ("epoch", r#"{"format":1,"number":1,"cluster":"cdf818194e3a8c32","lead":4}"#),
            ("grace", r#"{"format":1,"node":"a"}"#),
            (
                "subnets/10.244.5.0-24",
                r#"{"format":1,"node":"a","instance":"1f","claimed":3,"resting":"left"}"#,
            ),
            ("presence/a", r#"{"format":1,"instance":"1f","boot":"2e-3","session":"x"}"#),
        ] {
            let value = parse(at, text).unwrap();
            assert_eq!(Value::parse(&key(at), &value.to_bytes()), Ok(value), "{at}");
        }
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        let huge = format!(r#"{{"format":1,"x":"{}"}}"#, "x".repeat(LARGEST));
        for (at, text, why) in [
            ("nodes/a", "", "EOF"),
            ("nodes/a", "\u{0}\u{1}", "expected value"),
            ("nodes/a", "[]", "expected"),
            ("nodes/a", r#"{"name":"a"}"#, "format"),
            ("nodes/a", r#"{"format":2,"everything":"new"}"#, "newer version"),
            ("nodes/a", r#"{"format":-1}"#, "invalid value"),
            ("nodes/a", &huge, "bytes"),
            (
                "nodes/a",
                r#"{"format":1,"name":"b","instance":"1","addresses":[],"subnets":[]}"#,
                "speaks of node",
            ),
            (
                "nodes/a",
                r#"{"format":1,"name":"a","instance":"\u001b","addresses":[],"subnets":[]}"#,
                "instance",
            ),
            (
                "nodes/a",
                r#"{"format":1,"name":"a","instance":"1","addresses":["x"],"subnets":[]}"#,
                "IP address",
            ),
            ("config", r#"{"format":1,"name":"c","ranges":[]}"#, "no range"),
            (
                "config",
                r#"{"format":1,"name":"c","ranges":[{"range":"10.244.0.0/16","subnetPrefix":8}]}"#,
                "is not between",
            ),
            ("subnets/10.0.0.0-24", r#"{"format":1,"node":"../x","instance":"1","claimed":0}"#, "name"),
            (
                "subnets/10.0.0.0-24",
                r#"{"format":1,"node":"x","instance":"1","claimed":0,"resting":"why"}"#,
                "variant",
            ),
        ] {
            let error = parse(at, text).expect_err(at);
            assert!(error.contains(why), "{at}: {error}");
        }
        // A stack overflow would be a crash: serde_json stops at 128.
        assert!(parse("nodes/a", &"[".repeat(60_000)).is_err());
    }
}
