//! What decides about a packet: elements of sets, and matches of xtables.

use podwire_kernel::nft::{Element, Set};

use super::Holds;

/// The element that a key finds.
pub(super) fn element<'a>(set: &Set, elements: &'a [Element], key: &[u8]) -> Option<&'a Element> {
    if !set.interval {
        return elements.iter().find(|element| element.key == key);
    }
    if elements.iter().any(|element| element.key_end.is_some()) {
        return elements.iter().find(|element| {
            let end = element.key_end.as_ref().unwrap_or(&element.key);
            is_between(set, key, &element.key, end)
        });
    }
    // Where the last interval before the key begins: it is in the set unless it is one's end.
    let last = elements
        .iter()
        .filter(|element| element.key.as_slice() <= key)
        // An end and a beginning may stand at one place; then the beginning counts.
        .max_by_key(|element| (&element.key, !element.interval_end))?;
    (!last.interval_end).then_some(last)
}

/// Whether each part of a concatenation is within its own bounds.
fn is_between(set: &Set, key: &[u8], from: &[u8], to: &[u8]) -> bool {
    let mut start = 0;
    for part in set.key.parts.iter().take_while(|part| **part > 0) {
        let end = start + usize::from(*part);
        let (Some(key), Some(from), Some(to)) =
            (key.get(start..end), from.get(start..end), to.get(start..end))
        else {
            return false;
        };
        if key < from || key > to {
            return false;
        }
        start = end.next_multiple_of(4);
    }
    true
}

/// Whether a match of xtables lets the first packet of a connection through.
pub(super) fn xtables(name: &str, info: &[u8]) -> Holds {
    match name {
        "comment" => Holds::Yes,
        "conntrack" => conntrack(info),
        "mark" => mark(info),
        _ => Holds::Perhaps,
    }
}

/// `struct xt_mark_mtinfo1`: the mark, a mask, and whether it must be another one. The packet has none.
fn mark(info: &[u8]) -> Holds {
    match info {
        [a, b, c, d, _, _, _, _, invert, ..] => (([a, b, c, d] == [&0; 4]) != (*invert != 0)).into(),
        _ => Holds::Perhaps,
    }
}

/// `struct xt_conntrack_mtinfo3`: after eight addresses, two times and five ports stand which conditions it has, which of
/// them are inverted, and the mask of states.
fn conntrack(info: &[u8]) -> Holds {
    const FLAGS: usize = 146;
    /// XT_CONNTRACK_STATE
    const STATE: u16 = 1;
    /// XT_CONNTRACK_STATE_BIT(IP_CT_NEW)
    const NEW: u16 = 1 << 3;
    let number = |at: usize| info.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes);
    let (Some(flags), Some(inverted), Some(states)) = (number(FLAGS), number(FLAGS + 2), number(FLAGS + 4))
    else {
        return Holds::Perhaps;
    };
    if flags != STATE {
        return Holds::Perhaps;
    }
    ((states & NEW != 0) != (inverted & STATE != 0)).into()
}

/// Whether an expression that is not known may end a rule.
pub(super) fn is_condition(name: &str) -> Holds {
    match name {
        "log" | "dynset" | "objref" | "flow_offload" | "synproxy" | "tproxy" | "dup" | "last" => Holds::Yes,
        _ => Holds::Perhaps,
    }
}
