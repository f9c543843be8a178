//! Cases as data: a row says which calls are made and what must come of them, and is replayed on a node of its own.
//!
//! The same rows run against podwire, against Debian's reference plugins (`PODWIRE_REFERENCE=1`) and, for IPAM,
//! against `podwire-ipam` under the reference `bridge`. Where the reference answers otherwise, the row says
//! both what it does and why podwire does not, and docs/differences.md lists it: see [`differences`].
//!
//! After its last step each row deletes every attachment that it added, and the node must then hold neither a veth
//! nor an interface in a pod. So no row needs to say so.

mod expect;
mod reference;
mod run;
mod scene;
mod step;

use serde_json::Value;

pub use expect::{Expect, Want, error, ok};
pub use run::{BridgeNetfilter, Subject, replay, replay_with};
pub use scene::Scene;
pub use step::{
    Act, Call, Look, Reach, Seen, Step, Text, act, add, check, del, gc, look, reach, script, serve, status,
    unreachable, verb,
};

/// Every version of the specification.
pub const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The newest version that Debian's reference plugins know.
pub const REFERENCE_NEWEST: &str = "1.0.0";

/// One row of a table.
pub struct Case {
    /// What the row shows. Unique in its table; docs/differences.md names rows by it.
    pub name: &'static str,
    /// The versions of the specification that it is replayed with, each on a fresh node.
    pub versions: Versions,
    /// The program that is called.
    pub plugin: Plugin,
    /// The network configuration. The runner adds `cniVersion`, `name` ("net") and `type`, where it has none.
    pub config: Value,
    /// What happens, in this order.
    pub steps: Vec<Step>,
    /// Whether the reference does the same.
    pub reference: Reference,
}

/// Which versions a row is replayed with.
#[derive(Debug, Clone, Copy)]
pub enum Versions {
    /// All; against the reference, those that it knows.
    All,
    /// Those from this one on; against the reference, those that it knows.
    From(&'static str),
    /// These, also against the reference.
    These(&'static [&'static str]),
}

impl Versions {
    /// The versions to replay.
    pub fn list(self, reference: bool) -> Vec<&'static str> {
        let known = |version: &&str| !reference || *version <= REFERENCE_NEWEST;
        match self {
            Self::All => VERSIONS.into_iter().filter(known).collect(),
            Self::From(first) => {
                VERSIONS.into_iter().filter(|version| *version >= first).filter(known).collect()
            }
            Self::These(versions) => versions.to_vec(),
        }
    }
}

/// Which program a row calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plugin {
    /// `podwire`, or the reference `bridge`.
    Main,
    /// `podwire-ipam`, or `host-local`, called alone.
    Ipam,
    /// `podwire` as `loopback`, or the reference `loopback`.
    Loopback,
    /// `podwire`, or the chain of reference plugins that has the configuration's keys; with a host outside the node.
    Network,
}

/// Whether Debian's reference plugins do what a row says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reference {
    /// They do.
    Same,
    /// They do not: what they do, and why podwire does otherwise. At least one step says what to expect of them.
    Differs(&'static str),
    /// They have nothing of the kind, and the row is not replayed with them: why podwire has it.
    Lacks(&'static str),
}

/// Checks that the section `heading` of docs/differences.md lists the rows that differ, with their reasons, and no
/// other. With `PODWIRE_UPDATE_DOCS=1` the section is written instead.
///
/// # Errors
/// With the section as it should be, if it is not; if the table contradicts itself.
pub fn differences(heading: &str, cases: &[Case]) -> Result<(), String> {
    let mut wanted = String::from("| case | the reference plugins, and why podwire differs |\n|---|---|\n");
    for case in cases {
        let overridden = case.steps.iter().any(Step::is_overridden);
        match case.reference {
            Reference::Same if overridden => {
                return Err(format!("{:?} expects something else of the reference and says Same", case.name));
            }
            Reference::Differs(_) if !overridden => {
                return Err(format!("{:?} does not say what to expect of the reference", case.name));
            }
            Reference::Lacks(_) if overridden => {
                return Err(format!("{:?} is not replayed with the reference", case.name));
            }
            Reference::Same => {}
            Reference::Differs(why) | Reference::Lacks(why) => {
                wanted.push_str(&format!("| {} | {why} |\n", case.name))
            }
        }
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/differences.md");
    let text = std::fs::read_to_string(path).map_err(|error| format!("docs/differences.md: {error}"))?;
    let start = format!("## {heading}\n");
    let no_section = || format!("docs/differences.md has no section {start:?}");
    let (before, rest) = text.split_once(&start).ok_or_else(no_section)?;
    let (section, after) = match rest.find("\n## ") {
        Some(next) => rest.split_at(next + 1),
        None => (rest, ""),
    };
    let (intro, table) = section.split_at(section.find("| case |").unwrap_or(section.len()));
    if table.trim_end() == wanted.trim_end() {
        return Ok(());
    }
    if std::env::var_os("PODWIRE_UPDATE_DOCS").is_some_and(|value| value == "1") {
        let space = if after.is_empty() { "" } else { "\n" };
        let text = format!("{before}{start}{intro}{wanted}{space}{after}");
        return std::fs::write(path, text).map_err(|error| format!("docs/differences.md: {error}"));
    }
    Err(format!(
        "the table under {start:?} in docs/differences.md should be (PODWIRE_UPDATE_DOCS=1 writes it):\n{wanted}"
    ))
}
