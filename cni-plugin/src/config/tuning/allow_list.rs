//! Which sysctls may be set on this node: an administrator's list, one regular expression a line.

use regex_lite::Regex;

use crate::protocol::{CniError, code};

/// The reference plugin's list.
#[derive(Debug, Clone, Default)]
pub struct AllowList {
    lines: Vec<Regex>,
}

impl AllowList {
    /// Where the reference reads it. Without that file every sysctl of the network namespace may be set.
    pub const PATH: &str = "/etc/cni/tuning/allowlist.conf";

    /// Reads the file's content: a line that is not empty is a regular expression, white space around it aside.
    ///
    /// # Errors
    /// Code 116 names the line that is none.
    pub fn parse(content: &str) -> Result<Self, CniError> {
        let lines = content.lines().enumerate().map(|(number, line)| (number + 1, line.trim()));
        let lines = lines.filter(|(_, line)| !line.is_empty()).map(|(number, line)| {
            Regex::new(line).map_err(|error| {
                let text = format!("line {number} of {} is no regular expression: {line:?}", Self::PATH);
                CniError::new(code::SYSCTL_FORBIDDEN, text).with_details(error.to_string())
            })
        });
        Ok(Self { lines: lines.collect::<Result<_, _>>()? })
    }

    /// Whether the sysctl may be set, by its name as the configuration writes it. An expression may match any part of
    /// the name: `^` and `$` bind it, and a `.` stands for any character.
    ///
    /// # Errors
    /// Code 116 if none of the lines matches.
    pub fn check(&self, key: &str) -> Result<(), CniError> {
        if self.lines.iter().any(|line| line.is_match(key)) {
            return Ok(());
        }
        let text = format!("sysctl {key:?} is not allowed on this node");
        Err(CniError::new(code::SYSCTL_FORBIDDEN, text)
            .with_details(format!("no line of {} matches it", Self::PATH)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_match_as_the_reference_matches_them() {
        let list = AllowList::parse(
            "\n  ^net\\.core\\.somaxconn$ \r\n\n^net.ipv4.conf.IFNAME.[a-z_]*$\nkeepalive\n",
        )
        .unwrap();
        for allowed in [
            "net.core.somaxconn",
            "net.ipv4.conf.IFNAME.arp_filter",
            "net/ipv4/conf/IFNAME/arp_filter",
            "net.ipv4.tcp_keepalive_time",
        ] {
            assert_eq!(list.check(allowed), Ok(()), "{allowed}");
        }
        for refused in ["net.core.somaxconn2", "net.ipv4.conf.eth0.arp_filter", "net.core.wmem_max"] {
            let error = list.check(refused).unwrap_err();
            assert_eq!(error.code, code::SYSCTL_FORBIDDEN, "{refused}");
            assert!(error.msg.contains(refused), "{error}");
        }
    }

    #[test]
    fn an_empty_list_allows_nothing() {
        for empty in ["", "\n \n"] {
            assert!(AllowList::parse(empty).unwrap().check("net.core.somaxconn").is_err());
        }
    }

    #[test]
    fn a_line_that_is_no_expression_is_named() {
        let error = AllowList::parse("net\n(\n").unwrap_err();
        assert_eq!(error.code, code::SYSCTL_FORBIDDEN);
        assert!(error.msg.starts_with("line 2 of /etc/cni/tuning/allowlist.conf"), "{error}");
    }
}
