//! The environment of a call, CNI_ARGS above all: one variable a line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podwire_cni::Environment;
use podwire_cni::protocol::{CniArgs, code};

fuzz_target!(|text: &str| {
    let variables = text.lines().filter_map(|line| line.split_once('='));
    if let Err(error) = Environment::parse(variables.map(|(name, value)| (name.into(), value.into()))) {
        assert_eq!(error.code, code::INVALID_ENVIRONMENT);
    }
    if let Err(error) = CniArgs::parse(text) {
        assert_eq!(error.code, code::INVALID_ENVIRONMENT);
    }
});
