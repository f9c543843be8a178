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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_reads_what_it_writes() {
        for version in CniVersion::ALL {
            assert_eq!(CniVersion::parse(version.as_str()), Ok(version));
        }
        assert!(CniVersion::ALL.is_sorted());
        assert_eq!(CniVersion::parse(""), Ok(CniVersion::V0_1_0));
    }

    #[test]
    fn unspoken_versions_and_no_versions_differ() {
        for unspoken in ["1", "1.0", "0.5.0", "1.2.0", "2.0.0", "01.0.0", "0.0.0", "999999999.0.0"] {
            let error = CniVersion::parse(unspoken).unwrap_err();
            assert_eq!(error.code, code::INCOMPATIBLE_VERSION, "{unspoken}");
            assert!(error.details.contains(&format!("{unspoken:?}")), "{error}");
            assert!(error.details.contains("0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"), "{error}");
        }
        let long = "1".repeat(100_000);
        for malformed in [
            "v1.0.0",
            "1.0.a",
            "1.0.0-rc1",
            "1.0.0.0",
            "1..0",
            ".",
            "1.0.",
            " 1.0.0",
            "+1.0.0",
            "-1.0.0",
            "x",
            &long,
        ] {
            let error = CniVersion::parse(malformed).unwrap_err();
            assert_eq!(error.code, code::DECODING_FAILURE, "{malformed}");
            assert!(error.msg.contains("cniVersion") && error.msg.len() < 200, "{error}");
        }
    }

    #[test]
    fn verbs_need_the_version_they_came_with() {
        use CniVersion as V;
        for (verb, since) in [
            (Verb::Add, V::V0_1_0),
            (Verb::Del, V::V0_1_0),
            (Verb::Version, V::V0_1_0),
            (Verb::Check, V::V0_4_0),
            (Verb::Gc, V::V1_1_0),
            (Verb::Status, V::V1_1_0),
        ] {
            for version in CniVersion::ALL {
                let outcome = version.check_verb(verb);
                assert_eq!(outcome.is_ok(), version >= since, "{verb} at {version}");
                if let Err(error) = outcome {
                    assert_eq!(error.code, code::INCOMPATIBLE_VERSION);
                    assert_eq!(
                        error.msg,
                        format!("config version {version} does not allow {verb}, which came with {since}")
                    );
                }
            }
        }
    }

    #[test]
    fn version_answers_what_is_spoken() {
        let expected = r#"{"cniVersion":"1.1.0","supportedVersions":["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}"#;
        assert_eq!(version_answer(), expected);
    }
}
