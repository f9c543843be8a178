//! nftables.

use std::io::Write;
use std::process::{Command, Stdio};

use podwire_kernel::nft::{
    self, Base, Chain, ChainKind, DataType, Element, Family, Hook, MapData, Nft, Policy, Set, TableRef,
};

#[cfg(test)]
mod changes;
#[cfg(test)]
mod foreign;
#[cfg(test)]
mod transactions;
#[cfg(test)]
mod values;

const TABLE: TableRef<'_> = TableRef::new(Family::Inet, "podwire");

fn open() -> Nft {
    Nft::open().expect("an nftables socket")
}

/// What the program `nft` prints, in this thread's network namespace.
fn nft(arguments: &[&str]) -> String {
    let output = Command::new("nft").args(arguments).output().expect("the program `nft` (nftables)");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "nft {arguments:?}: {errors}");
    String::from_utf8(output.stdout).expect("text")
}

/// Has the program `nft` carry out commands.
fn nft_does(commands: &str) {
    let mut program = Command::new("nft");
    program.args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = program.spawn().expect("the program `nft` (nftables)");
    writeln!(child.stdin.take().expect("piped"), "{commands}").expect("written");
    let output = child.wait_with_output().expect("ended");
    assert!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
}

fn chain(name: &str) -> Chain {
    Chain { name: name.to_owned(), ..Chain::default() }
}

fn base(name: &str, kind: ChainKind, hook: Hook, priority: i32, policy: Policy) -> Chain {
    let base = Base { kind, hook, priority, policy, device: None };
    Chain { name: name.to_owned(), base: Some(base), comment: None }
}

fn set(name: &str, key: DataType, data: Option<MapData>) -> Set {
    Set { name: name.to_owned(), key, data, ..Set::default() }
}

/// A host port: protocol, address and port, to address and port.
fn port(number: u16, pod: [u8; 4]) -> Element {
    let key = nft::concat(&[&[6], &[0; 4], &number.to_be_bytes()]);
    Element::new(key).value(nft::concat(&[&pod, &80_u16.to_be_bytes()]))
}

fn ports() -> Set {
    let key = DataType::concat(&[DataType::INET_PROTO, DataType::IPV4_ADDR, DataType::INET_SERVICE]);
    let data = DataType::concat(&[DataType::IPV4_ADDR, DataType::INET_SERVICE]);
    set("ports4", key, Some(MapData::Value(data)))
}
