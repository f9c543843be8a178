//! Versions of the protocol.

use std::fmt;

use serde::Serialize;

use super::code;
use super::environment::Verb;
use super::error::CniError;

/// A version of the CNI specification that we speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CniVersion {
    /// 0.1.0, also meant where a configuration names none.
    V0_1_0,
    /// 0.2.0.
    V0_2_0,
    /// 0.3.0: results list interfaces and any number of addresses.
    V0_3_0,
    /// 0.3.1.
    V0_3_1,
    /// 0.4.0: CHECK, prevResult on DEL.
    V0_4_0,
    /// 1.0.0: addresses carry no `version`.
    V1_0_0,
    /// 1.1.0: GC, STATUS, MTUs of interfaces, attributes of routes.
    V1_1_0,
}

impl CniVersion {
    /// All of them, oldest first.
    pub const ALL: [Self; 7] =
        [Self::V0_1_0, Self::V0_2_0, Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// The newest, used where no configuration says another.
    pub const LATEST: Self = Self::V1_1_0;

    /// As written in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Reads a configuration's `cniVersion`; the empty text is 0.1.0, as for every CNI library.
    ///
    /// # Errors
    /// Code 6 if it is not one to three numbers with dots between, code 1 if we do not speak it.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        if text.is_empty() {
            return Ok(Self::V0_1_0);
        }
        if let Some(version) = Self::ALL.into_iter().find(|version| version.as_str() == text) {
            return Ok(version);
        }
        let parts: Vec<&str> = text.split('.').collect();
        let numeric =
            |part: &&str| !part.is_empty() && part.len() <= 9 && part.bytes().all(|b| b.is_ascii_digit());
        if parts.len() > 3 || !parts.iter().all(numeric) {
            let shown: String = text.chars().take(64).collect();
            let message = format!("malformed cniVersion {shown:?} (expected a version such as 1.0.0)");
            return Err(CniError::new(code::DECODING_FAILURE, message));
        }
        let spoken = Self::ALL.map(Self::as_str).join(", ");
        let details = format!("the configuration has {text:?}, podwire supports {spoken}");
        Err(CniError::new(code::INCOMPATIBLE_VERSION, "incompatible CNI versions").with_details(details))
    }

    /// Whether a configuration of this version may be used with that verb.
    ///
    /// # Errors
    /// Code 1: CHECK came with 0.4.0, GC and STATUS with 1.1.0.
    pub fn check_verb(self, verb: Verb) -> Result<(), CniError> {
        let since = match verb {
            Verb::Add | Verb::Del | Verb::Version => Self::V0_1_0,
            Verb::Check => Self::V0_4_0,
            Verb::Gc | Verb::Status => Self::V1_1_0,
        };
        if self >= since {
            return Ok(());
        }
        let message = format!("config version {self} does not allow {verb}, which came with {since}");
        Err(CniError::new(code::INCOMPATIBLE_VERSION, message))
    }

    /// Results have one address for each family, as `ip4` and `ip6`.
    pub fn is_single_address(self) -> bool {
        self < Self::V0_3_0
    }
}

impl fmt::Display for CniVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The answer to VERSION.
pub fn version_answer() -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        cni_version: &'static str,
        supported_versions: [&'static str; 7],
    }
    let answer = Answer {
        cni_version: CniVersion::LATEST.as_str(),
        supported_versions: CniVersion::ALL.map(CniVersion::as_str),
    };
    super::json::write(&answer)
}
