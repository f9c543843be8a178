//! The registers of a rule's expressions, some of whose bytes are not known.

use podwire_kernel::nft::Reg;

use super::Holds;

/// 16 registers of 4 bytes.
const BYTES: usize = 64;

/// By byte; `None` where it is not known.
pub(super) struct Registers([Option<u8>; BYTES]);

impl Default for Registers {
    fn default() -> Self {
        Self([None; BYTES])
    }
}

impl Registers {
    /// Loads a value; what is loaded ends the rule for no packet.
    pub(super) fn put(&mut self, to: Reg, value: Option<Vec<u8>>) -> Holds {
        let Some(value) = value else {
            self.forget(to);
            return Holds::Yes;
        };
        let start = usize::from(to.0) * 4;
        // As in the kernel, the rest of the last register is zero.
        let padded = value.len().next_multiple_of(4);
        let bytes = value.iter().copied().chain(std::iter::repeat(0)).take(padded);
        for (slot, byte) in self.0.iter_mut().skip(start).zip(bytes) {
            *slot = Some(byte);
        }
        Holds::Yes
    }

    /// Nothing is known of it any more, nor of what an IPv6 address or a name would fill.
    pub(super) fn forget(&mut self, to: Reg) {
        for slot in self.0.iter_mut().skip(usize::from(to.0) * 4).take(16) {
            *slot = None;
        }
    }

    /// So many bytes; `None` if one of them is not known.
    pub(super) fn read(&self, from: Reg, len: usize) -> Option<Vec<u8>> {
        let start = usize::from(from.0) * 4;
        self.0.get(start..start.checked_add(len)?)?.iter().copied().collect()
    }
}
