//! `podwire-ipam`: podwire's addresses for other main plugins.

use std::process::ExitCode;

use podwire_cni::program::{self, Program};

fn main() -> ExitCode {
    program::main(Program::Ipam)
}
