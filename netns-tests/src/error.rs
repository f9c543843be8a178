//! What can go wrong in the harness itself.

use std::error::Error;
use std::fmt;

/// The harness could not do its part. A test that gets one has failed: nothing is skipped.
#[derive(thiserror::Error)]
#[error("{what}")]
pub struct LabError {
    what: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// A harness result.
pub type Result<T> = std::result::Result<T, LabError>;

impl LabError {
    /// An error without a cause of its own.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), source: None }
    }

    /// `what` failed because of `source`. For `map_err(LabError::because("mount …"))`.
    pub fn because<E>(what: impl Into<String>) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let what = what.into();
        move |source| Self { what, source: Some(source.into()) }
    }
}

/// A test that returns the error prints it with `Debug`: the whole chain, in words.
impl fmt::Debug for LabError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        let mut cause = self.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
