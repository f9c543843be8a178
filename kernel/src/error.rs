//! One error type for every request to the kernel: what was asked, of which object, and what the kernel said.

use std::fmt;
use std::io;

use nix::errno::Errno;

/// The result of a request to the kernel.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A request that the kernel, or the way to it, refused.
///
/// Written `create veth pw3f9a: File exists (EEXIST): <the kernel's own words>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// What was asked, such as `create veth`.
    pub op: &'static str,
    /// Of which object: a link's name, an address, a path.
    pub object: String,
    /// The error's number, as in `errno(3)`; never 0.
    pub errno: i32,
    /// The kernel's words (netlink's extended acknowledgement), or ours where the number alone says too little.
    pub detail: Option<String>,
    /// Which of several requests failed, counted from 0; `None` for a single one.
    pub index: Option<usize>,
}

impl Error {
    pub(crate) fn new(op: &'static str, object: impl Into<String>, errno: Errno) -> Self {
        Self { op, object: object.into(), errno: errno as i32, detail: None, index: None }
    }

    /// The error of a library call; one without a number becomes EIO with the library's text.
    pub(crate) fn io(op: &'static str, object: impl Into<String>, error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(errno) => Self { errno, ..Self::new(op, object, Errno::EIO) },
            None => Self::new(op, object, Errno::EIO).with(error.to_string()),
        }
    }

    pub(crate) fn with(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// The error's number, as in `errno(3)`.
    pub fn errno(&self) -> i32 {
        self.errno
    }

    fn is(&self, any: &[Errno]) -> bool {
        any.iter().any(|errno| *errno as i32 == self.errno)
    }

    /// Whether the object of the request is not there: no such link, address, route, table or file. A removal that
    /// fails so has nothing left to do.
    pub fn is_missing(&self) -> bool {
        self.is(&[Errno::ENODEV, Errno::ENOENT, Errno::ESRCH, Errno::EADDRNOTAVAIL, Errno::ENXIO])
    }

    /// Whether no route leads to the destination (ENETUNREACH, EHOSTUNREACH).
    pub fn is_unreachable(&self) -> bool {
        self.is(&[Errno::ENETUNREACH, Errno::EHOSTUNREACH])
    }

    /// Whether the object to be made is there already (EEXIST).
    pub fn is_exists(&self) -> bool {
        self.is(&[Errno::EEXIST])
    }

    /// Whether the kernel, or the link in question, does without the address family (EAFNOSUPPORT): a kernel without
    /// IPv6, a link whose MTU is too small for it.
    pub fn is_without_family(&self) -> bool {
        self.is(&[Errno::EAFNOSUPPORT])
    }

    /// Whether the object is in use (EBUSY), or the kernel asks for another try (EAGAIN).
    pub fn is_busy(&self) -> bool {
        self.is(&[Errno::EBUSY, Errno::EAGAIN])
    }

    /// Whether what the request was made for has changed meanwhile (ERESTART, EINTR): read again, then try again.
    pub fn is_changed(&self) -> bool {
        self.is(&[Errno::ERESTART, Errno::EINTR])
    }

    /// Whether the caller lacks the right (EPERM, EACCES): podwire needs CAP_NET_ADMIN and CAP_SYS_ADMIN.
    pub fn is_denied(&self) -> bool {
        self.is(&[Errno::EPERM, Errno::EACCES])
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.op)?;
        if !self.object.is_empty() {
            write!(f, " {}", self.object)?;
        }
        match Errno::from_raw(self.errno) {
            Errno::UnknownErrno => write!(f, ": error {}", self.errno)?,
            errno => write!(f, ": {} ({errno:?})", errno.desc())?,
        }
        match &self.detail {
            Some(detail) => write!(f, ": {detail}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_operation_object_and_cause() {
        let error = Error::new("create veth", "pw3f9a", Errno::EEXIST);
        assert_eq!(error.to_string(), "create veth pw3f9a: File exists (EEXIST)");
        assert!(error.is_exists() && !error.is_missing());
        let error =
            Error::new("create veth", "pw3f9a", Errno::EINVAL).with("mtu greater than device maximum");
        assert_eq!(
            error.to_string(),
            "create veth pw3f9a: Invalid argument (EINVAL): mtu greater than device maximum"
        );
        let error = Error { errno: 4095, ..Error::new("open netlink socket", "", Errno::EIO) };
        assert_eq!(error.to_string(), "open netlink socket: error 4095");
    }

    #[test]
    fn a_library_error_keeps_its_number_or_its_text() {
        let numbered = Error::io("read", "/x", &io::Error::from_raw_os_error(2));
        assert!(numbered.is_missing());
        let worded = Error::io("read", "/x", &io::Error::other("odd"));
        assert_eq!(worded.to_string(), "read /x: I/O error (EIO): odd");
    }
}
