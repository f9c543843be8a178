//! Errors as a runtime sees them.

use std::error::Error;

use serde::Serialize;

use super::json::{self, Field};
use super::version::CniVersion;

/// A failed call. Printed on standard output as JSON; the process exits with 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{msg}{}{details}", if details.is_empty() { "" } else { ": " })]
pub struct CniError {
    /// See [`super::code`].
    pub code: u32,
    /// What failed, on one line.
    pub msg: String,
    /// More about it, such as its cause; may be empty.
    pub details: String,
}

impl CniError {
    /// An error without details.
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// The same error with these details.
    #[must_use]
    pub fn with_details(self, details: impl Into<String>) -> Self {
        Self { details: details.into(), ..self }
    }

    /// An error whose message is that of `cause`, with the causes behind it as details.
    pub fn from_cause(code: u32, cause: &dyn Error) -> Self {
        let mut details = String::new();
        let mut next = cause.source();
        while let Some(cause) = next {
            if !details.is_empty() {
                details.push_str(": ");
            }
            details.push_str(&cause.to_string());
            next = cause.source();
        }
        Self { code, msg: cause.to_string(), details }
    }

    /// The same error, its message led by what was being done.
    #[must_use]
    pub fn context(self, what: &str) -> Self {
        Self { msg: format!("{what}: {}", self.msg), ..self }
    }

    /// The document for standard output. Where the configuration's version is not known, any will do.
    pub fn to_json(&self, version: CniVersion) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Document<'a> {
            cni_version: &'a str,
            code: u32,
            msg: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            details: &'a str,
        }
        json::write(&Document {
            cni_version: version.as_str(),
            code: self.code,
            msg: &self.msg,
            details: &self.details,
        })
    }

    /// Reads another plugin's error document; `None` if it is none.
    pub fn parse(document: &[u8]) -> Option<Self> {
        let value = json::parse_folded(document).ok()?;
        let root = Field::root(&value);
        let code = root.at("code").number(0..=u32::MAX.into()).ok()??;
        let text = |key| root.at(key).text().ok().flatten().unwrap_or_default().to_owned();
        Some(Self { code: u32::try_from(code).ok()?, msg: text("msg"), details: text("details") })
    }
}

#[cfg(test)]
mod tests {
    use super::super::code;
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Layer>>,
    }

    #[test]
    fn the_document_is_the_specifications() {
        let error = CniError::new(code::INVALID_NETNS, "bad \"netns\"");
        assert_eq!(
            error.to_json(CniVersion::V0_3_1),
            r#"{"cniVersion":"0.3.1","code":8,"msg":"bad \"netns\""}"#
        );
        let error = error.with_details("why").context("opening it");
        let expected = r#"{"cniVersion":"1.1.0","code":8,"msg":"opening it: bad \"netns\"","details":"why"}"#;
        assert_eq!(error.to_json(CniVersion::V1_1_0), expected);
        assert_eq!(error.to_string(), r#"opening it: bad "netns": why"#);
    }

    #[test]
    fn it_reads_what_it_writes() {
        for details in ["", "why\n"] {
            let error = CniError::new(code::TRY_AGAIN_LATER, "later").with_details(details);
            assert_eq!(CniError::parse(error.to_json(CniVersion::LATEST).as_bytes()), Some(error));
        }
        assert_eq!(CniError::parse(br#"{"Code":7}"#), Some(CniError::new(7, "")));
        for none in [
            "",
            "{}",
            "[]",
            "null",
            r#"{"code":"7"}"#,
            r#"{"code":-1}"#,
            r#"{"code":4294967296}"#,
            r#"{"msg":"m"}"#,
        ] {
            assert_eq!(CniError::parse(none.as_bytes()), None, "{none}");
        }
    }

    #[test]
    fn causes_become_details() {
        let error = Layer { text: "c", source: None };
        let error = Layer { text: "b", source: Some(Box::new(error)) };
        let error = Layer { text: "a", source: Some(Box::new(error)) };
        let expected = CniError::new(code::KERNEL, "a").with_details("b: c");
        assert_eq!(CniError::from_cause(code::KERNEL, &error), expected);
    }
}
