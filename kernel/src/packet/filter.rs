//! Which frames the kernel hands out: conditions, compiled to a classic BPF program. Pure.

use nix::libc::{self, sock_filter};

/// How many bytes a [`Match`] looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// One.
    Byte,
    /// Two, in network byte order.
    Half,
    /// Four, in network byte order.
    Word,
}

/// A condition on a frame: the number at a place, as far as the mask lets it be seen, is the value. A frame that is too
/// short for it does not meet it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Match {
    /// The place, in bytes from the start of the Ethernet header.
    pub at: u32,
    /// How many bytes.
    pub width: Width,
    /// Which bits count.
    pub mask: u32,
    /// What they must be.
    pub value: u32,
}

impl Match {
    /// A byte.
    pub fn byte(at: u32, value: u8) -> Self {
        Self { at, width: Width::Byte, mask: u32::MAX, value: value.into() }
    }

    /// Two bytes, in network byte order.
    pub fn half(at: u32, value: u16) -> Self {
        Self { at, width: Width::Half, mask: u32::MAX, value: value.into() }
    }

    /// Four bytes, in network byte order.
    pub fn word(at: u32, value: u32) -> Self {
        Self { at, width: Width::Word, mask: u32::MAX, value }
    }

    fn end(&self) -> u32 {
        self.at.saturating_add(match self.width {
            Width::Byte => 1,
            Width::Half => 2,
            Width::Word => 4,
        })
    }
}

/// The program that accepts what meets all conditions of any of the lists; `None` if it would be too long.
pub(super) fn compile(lists: &[&[Match]]) -> Option<Vec<sock_filter>> {
    let mut program = Vec::new();
    for list in lists {
        // Each jump leads behind the list, where the next one starts.
        let length = 2 + 3 * list.len() + 1;
        let start = program.len();
        let behind = |program: &Vec<sock_filter>| u8::try_from(start + length - program.len() - 1).ok();
        // To load what is behind a frame's end would refuse it, whatever the other lists say.
        let end = list.iter().map(Match::end).max().unwrap_or(0);
        program.push(instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_LEN, 0, 0));
        program.push(instruction(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, behind(&program)?, end));
        for condition in *list {
            let width = match condition.width {
                Width::Byte => libc::BPF_B,
                Width::Half => libc::BPF_H,
                Width::Word => libc::BPF_W,
            };
            program.push(instruction(libc::BPF_LD | width | libc::BPF_ABS, 0, condition.at));
            program.push(instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, condition.mask));
            let value = condition.value;
            program.push(instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, behind(&program)?, value));
        }
        program.push(instruction(libc::BPF_RET | libc::BPF_K, 0, u32::MAX));
    }
    program.push(instruction(libc::BPF_RET | libc::BPF_K, 0, 0));
    // BPF_MAXINSNS
    (program.len() <= 4096).then_some(program)
}

fn instruction(code: u32, otherwise: u8, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: otherwise, k }
}
