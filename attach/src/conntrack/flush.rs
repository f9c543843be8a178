//! Connections listed and forgotten.

use std::collections::BTreeSet;
use std::net::IpAddr;

use podwire_kernel::conntrack::{Conntrack, Entry, Filter};
use podwire_kernel::{Error, Family, Netlink};

use super::{connectionless, is_of_pod, is_stale};
use crate::step::step;
use crate::{Attachment, PortMapping, Protocol};

/// Makes the kernel forget what leads from the attachment's host ports (UDP, SCTP) to anywhere else, once its rules are
/// in place. `host` is a socket in the calling thread's network namespace, the host's. How many there were.
///
/// # Errors
/// The kernel does not answer.
pub fn flush_stale(host: &mut Netlink, attachment: &Attachment) -> Result<usize, Error> {
    if connectionless(attachment).next().is_none() {
        return Ok(0);
    }
    step("flush-conntrack");
    let pod = addresses(attachment);
    let mut local: Option<BTreeSet<IpAddr>> = None;
    flush(attachment, &pod, |entry, port| {
        // Asked for only if there is a connection: usually there is none.
        if local.is_none() {
            local = Some(host.addresses(None)?.iter().map(|address| address.address.ip()).collect());
        }
        let is_local = |ip: IpAddr| ip.is_loopback() || local.as_ref().is_some_and(|all| all.contains(&ip));
        Ok(is_stale(entry, port, &pod, &is_local))
    })
}

/// Makes the kernel forget what leads from the attachment's host ports (UDP, SCTP) to its pod, once its rules are gone.
/// How many there were.
///
/// # Errors
/// The kernel does not answer.
pub fn flush_of(attachment: &Attachment) -> Result<usize, Error> {
    if connectionless(attachment).next().is_none() {
        return Ok(0);
    }
    step("flush-conntrack");
    let pod = addresses(attachment);
    flush(attachment, &pod, |entry, port| Ok(is_of_pod(entry, port, &pod)))
}

fn addresses(attachment: &Attachment) -> Vec<IpAddr> {
    attachment.all_addresses().map(|address| address.ip()).collect()
}

/// EPROTONOSUPPORT: a kernel without netfilter.
const NO_PROTOCOL: i32 = 93;

/// From so many ports on, one list of all connections of the protocol is taken instead of one of each port's: the kernel
/// walks its whole table for each list, some 10 ms.
const MANY: usize = 2;

fn flush(
    attachment: &Attachment,
    pod: &[IpAddr],
    mut is_doomed: impl FnMut(&Entry, &PortMapping) -> Result<bool, Error>,
) -> Result<usize, Error> {
    let mut conntrack = match Conntrack::open() {
        Ok(conntrack) => conntrack,
        Err(error) if error.errno() == NO_PROTOCOL => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut count = 0;
    for protocol in [Protocol::Udp, Protocol::Sctp] {
        let ports: Vec<_> = connectionless(attachment).filter(|port| port.protocol == protocol).collect();
        let wanted: Vec<Option<u16>> = match ports.len() {
            MANY.. => vec![None],
            _ => ports.iter().map(|port| Some(port.host_port)).collect(),
        };
        let families = [Family::V4, Family::V6].map(|family| pod.iter().any(|ip| Family::of(*ip) == family));
        let family = match families {
            [true, true] => None,
            [true, false] => Some(Family::V4),
            [false, true] => Some(Family::V6),
            [false, false] => return Ok(count),
        };
        for destination_port in wanted {
            let filter = Filter { family, protocol: protocol.number(), destination_port, reply_source: None };
            for entry in conntrack.entries(&filter)? {
                let mut is_any = false;
                for port in &ports {
                    is_any = is_any || is_doomed(&entry, port)?;
                }
                if is_any {
                    conntrack.delete(&entry)?;
                    count += 1;
                }
            }
        }
    }
    Ok(count)
}
