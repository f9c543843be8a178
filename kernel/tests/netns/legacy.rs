//! What legacy iptables is said to do with a tunnel's datagrams, against rules that iptables-legacy has made.

use std::process::Command;

use podwire_kernel::{Family, legacy_iptables};

use crate::lab::in_new_netns;

const PORT: u16 = 8472;

fn run(program: &str, args: &str) {
    let done = Command::new(program).args(args.split_whitespace()).output();
    let done = done.unwrap_or_else(|error| panic!("{program} (package iptables): {error}"));
    assert!(done.status.success(), "{program} {args}: {}", String::from_utf8_lossy(&done.stderr));
}

const ACCEPT_KNOWN: &str = "-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT";
const ACCEPT_LOOPBACK: &str = "-A INPUT -i lo -j ACCEPT";
const ACCEPT_SSH: &str = "-A INPUT -p tcp --dport 22 -j ACCEPT";

/// Rules, and whether datagrams to the port are dropped by them.
const TABLE: &[(&[&str], bool)] = &[
    (&["-A INPUT -p tcp -j DROP"], false),
    (&["-P INPUT DROP"], true),
    (&["-P INPUT DROP", ACCEPT_KNOWN, ACCEPT_LOOPBACK, ACCEPT_SSH], true),
    (&["-P INPUT DROP", ACCEPT_KNOWN, "-A INPUT -p udp --dport 8472 -j ACCEPT"], false),
    (&["-P INPUT DROP", "-A INPUT -p udp --dport 8000:9000 -m comment --comment a -j ACCEPT"], false),
    (&["-P INPUT DROP", "-A INPUT -p udp --dport 8473 -j ACCEPT"], true),
    (&["-P INPUT DROP", "-A INPUT -i eth0 -j ACCEPT"], false),
    (&["-P INPUT DROP", "-A INPUT -p udp --dport 8472 -m conntrack --ctstate NEW -j ACCEPT"], false),
    (&["-P INPUT DROP", "-A INPUT -m limit --limit 1/s -j ACCEPT"], false),
    (&[ACCEPT_KNOWN, ACCEPT_SSH, "-A INPUT -j REJECT"], true),
    (&["-A INPUT -p udp --dport 8472 -j DROP"], true),
    (&["-A INPUT -p udp ! --dport 53 -j DROP"], false),
    (&["-A INPUT -p udp --sport 53 -j DROP"], false),
    (&["-A INPUT -i eth1 -p udp -j DROP"], false),
    (&["-A INPUT ! -p tcp -j DROP"], false),
    (&["-P INPUT DROP", "-A INPUT -m mark --mark 1 -j ACCEPT"], false),
    (&["-N apart", "-A apart -p udp -j DROP", "-A INPUT -p tcp -j apart"], false),
    (&["-N apart", "-A apart -p udp -j DROP", "-A INPUT -j apart"], true),
    (&["-N apart", "-A apart -p udp -j RETURN", "-A apart -j DROP", "-A INPUT -j apart"], false),
    (&["-P INPUT DROP", "-N apart", "-A apart -p udp -j ACCEPT", "-A INPUT -j apart"], false),
];

#[test]
fn an_input_chain_that_drops_the_tunnel_is_told_from_one_that_does_not() {
    for (program, family) in [("iptables-legacy", Family::V4), ("ip6tables-legacy", Family::V6)] {
        for (rules, drops) in TABLE {
            in_new_netns(move || {
                assert_eq!(legacy_iptables::drops_received(family, PORT), Ok(false), "there is no table");
                rules.iter().for_each(|rule| run(program, rule));
                assert_eq!(legacy_iptables::drops_received(family, PORT), Ok(*drops), "{program} {rules:?}");
            });
        }
    }
    let by_source =
        [("iptables-legacy", Family::V4, "10.0.0.0/8"), ("ip6tables-legacy", Family::V6, "fd00::/8")];
    for (program, family, source) in by_source {
        in_new_netns(move || {
            run(program, "-P INPUT DROP");
            run(program, &format!("-A INPUT -s {source} -j ACCEPT"));
            assert_eq!(legacy_iptables::drops_received(family, PORT), Ok(false), "it may be the nodes'");
        });
    }
}
