//! `podwire`: environment and standard input in, JSON and exit code out.

use std::process::ExitCode;

use podwire_cni::program::{self, Program};

fn main() -> ExitCode {
    program::main(Program::of_this_process())
}
