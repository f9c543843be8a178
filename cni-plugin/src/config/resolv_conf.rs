//! resolv.conf(5), as host-local reads it.

use crate::protocol::Dns;

/// The name servers of a resolv.conf. Lines that are not understood are passed over, as resolvers do.
pub fn parse_resolv_conf(content: &str) -> Dns {
    let mut dns = Dns::default();
    for line in content.lines() {
        let line = line.trim();
        if line.starts_with(['#', ';']) {
            continue;
        }
        let mut words = line.split_whitespace();
        let (Some(keyword), Some(first)) = (words.next(), words.next()) else { continue };
        let all = || std::iter::once(first).chain(words).map(str::to_owned);
        match keyword {
            "nameserver" => dns.nameservers.push(first.to_owned()),
            "domain" => dns.domain = first.to_owned(),
            "search" => dns.search.extend(all()),
            "options" => dns.options.extend(all()),
            _ => {}
        }
    }
    dns
}
