//! What went wrong below, as the runtime is told: one match for each crate's errors. docs/errors.md lists the
//! codes.

use podwire_attach::AttachError;
use podwire_attach::rules::RulesError;
use podwire_attach::tuning::TuningError;
use podwire_ipam::{Error as IpamError, Refusal};

use crate::protocol::{CniError, code};

/// The kernel refused.
pub(crate) fn kernel(error: podwire_kernel::Error) -> CniError {
    let failure = CniError::from_cause(code::KERNEL, &error);
    if error.is_denied() {
        return failure
            .with_details("podwire needs CAP_NET_ADMIN and CAP_SYS_ADMIN: the runtime must run as root");
    }
    failure
}

/// An attachment could not be made.
pub(crate) fn attach(error: AttachError) -> CniError {
    let code = match &error {
        AttachError::Kernel(cause) => return kernel(cause.clone()),
        AttachError::Conflict(_) => code::BRIDGE_CONFLICT,
        AttachError::IfnameTaken { .. } => code::IFNAME_TAKEN,
        AttachError::Unsettled(_) => code::TRY_AGAIN_LATER,
        AttachError::Tuning(cause) => tuning_code(cause),
        AttachError::Shaping(_) => code::SHAPING,
        AttachError::Rules(cause) => rules_code(cause),
        AttachError::NotUndone { .. } => code::NOT_UNDONE,
    };
    CniError::from_cause(code, &error)
}

/// A pod's settings could not be made or read.
pub(crate) fn tuning(error: TuningError) -> CniError {
    CniError::from_cause(tuning_code(&error), &error)
}

fn tuning_code(error: &TuningError) -> u32 {
    match error {
        TuningError::NoInterface(_) => code::NOT_CHAINABLE,
        TuningError::NoSysctl(_) | TuningError::Value { .. } | TuningError::Kernel(_) => code::TUNING,
    }
}

/// The node's rules could not be made, read or removed.
pub(crate) fn rules(error: RulesError) -> CniError {
    CniError::from_cause(rules_code(&error), &error)
}

fn rules_code(error: &RulesError) -> u32 {
    match error {
        RulesError::PortTaken { .. } => code::PORT_TAKEN,
        RulesError::AddressTaken { .. } => code::ADDRESS_REFUSED,
        RulesError::Conditions(_) => code::INVALID_NETWORK_CONFIG,
        RulesError::Unsettled(_) => code::TRY_AGAIN_LATER,
        RulesError::Kernel(_) | RulesError::Lacking(_) => code::RULES,
    }
}

/// The allocator refused, or could not be reached.
pub(crate) fn ipam(error: IpamError) -> CniError {
    let code = match &error {
        error if error.retry() => code::TRY_AGAIN_LATER,
        IpamError::Refused(Refusal::PortTaken { .. }) => code::PORT_TAKEN,
        IpamError::Refused(_) => code::ADDRESS_REFUSED,
        _ => match error.code() {
            "refused" => code::ADDRESS_REFUSED,
            "kernel" => code::KERNEL,
            "rules" => code::RULES,
            _ => code::STORE,
        },
    };
    CniError::from_cause(code, &error)
}
