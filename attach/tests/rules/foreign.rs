//! Other programs' forward chains that drop, as iptables-nft and Docker make them.

use podwire_attach::rules;

use crate::lab::{bridge, in_new_netns, nft, pod, run};

const OURS: [&str; 2] = [
    "-A FORWARD -i br0 -m comment --comment podwire -j ACCEPT",
    "-A FORWARD -o br0 -m comment --comment podwire -j ACCEPT",
];

#[test]
fn a_chain_that_drops_accepts_pods_and_iptables_reads_and_edits_it() {
    in_new_netns(|| {
        for iptables in ["iptables-nft", "ip6tables-nft"] {
            run(iptables, &["-P", "FORWARD", "DROP"]);
            run(iptables, &["-A", "FORWARD", "-i", "eth7", "-j", "ACCEPT"]);
        }
        let pod = pod("c1", &["10.1.0.7/24"]);
        for _ in 0..2 {
            rules::install(&mut nft(), &pod, &|_| true).expect("installed");
        }
        for iptables in ["iptables-nft", "ip6tables-nft"] {
            let listed = run(iptables, &["-S", "FORWARD"]);
            let wanted = ["-P FORWARD DROP", OURS[0], OURS[1], "-A FORWARD -i eth7 -j ACCEPT"].join("\n");
            assert_eq!(listed.trim_end(), wanted);
            let saved = run(&format!("{iptables}-save"), &[]);
            assert!(saved.contains(OURS[0]) && !saved.contains("incompatible"), "{saved}");
            // Its own program may take one away; CHECK says so, and it comes back.
            run(
                iptables,
                &["-D", "FORWARD", "-o", "br0", "-m", "comment", "--comment", "podwire", "-j", "ACCEPT"],
            );
            run(iptables, &["-A", "FORWARD", "-i", "eth8", "-j", "ACCEPT"]);
        }
        let drift = rules::check(&mut nft(), &pod).expect("checked");
        let named: Vec<String> = drift.iter().map(ToString::to_string).collect();
        assert_eq!(
            named,
            ["ip", "ip6"].map(|family| format!(
                "chain FORWARD of nftables table {family} filter drops packets and does not accept those from and to br0"
            ))
        );
        let repaired = rules::reconcile(&mut nft(), &[&pod], &|_| false).expect("reconciled");
        assert_eq!(repaired.forwards, 2);
        assert!(rules::check(&mut nft(), &pod).expect("checked").is_empty());
        rules::uninstall(&mut nft()).expect("removed");
        for iptables in ["iptables-nft", "ip6tables-nft"] {
            let wanted = "-P FORWARD DROP\n-A FORWARD -i eth7 -j ACCEPT\n-A FORWARD -i eth8 -j ACCEPT";
            assert_eq!(run(iptables, &["-S", "FORWARD"]).trim_end(), wanted);
        }
    });
}

#[test]
fn rules_that_iptables_wrote_itself_are_known_again() {
    in_new_netns(|| {
        run("iptables-nft", &["-P", "FORWARD", "DROP"]);
        for direction in ["-i", "-o"] {
            let rule =
                ["-I", "FORWARD", direction, "br0", "-m", "comment", "--comment", "podwire", "-j", "ACCEPT"];
            run("iptables-nft", &rule);
        }
        let before = run("iptables-nft", &["-S"]);
        rules::accept_forwarding(&mut nft(), "br0").expect("accepted");
        assert_eq!(run("iptables-nft", &["-S"]), before);
    });
}

#[test]
fn docker_leaves_a_chain_to_others() {
    in_new_netns(|| {
        for arguments in [
            ["-N", "DOCKER-USER", "", ""],
            ["-A", "FORWARD", "-j", "DOCKER-USER"],
            ["-A", "DOCKER-USER", "-j", "RETURN"],
            ["-P", "FORWARD", "DROP", ""],
        ] {
            let arguments: Vec<&str> =
                arguments.into_iter().filter(|argument| !argument.is_empty()).collect();
            run("iptables-nft", &arguments);
        }
        rules::accept_forwarding(&mut nft(), "br0").expect("accepted");
        let listed = run("iptables-nft", &["-S"]);
        let ours = OURS.map(|rule| rule.replace("FORWARD", "DOCKER-USER")).join("\n");
        assert!(listed.contains(&format!("{ours}\n-A DOCKER-USER -j RETURN")), "{listed}");
        assert!(listed.contains("-A FORWARD -j DOCKER-USER") && !listed.contains(OURS[0]), "{listed}");
        rules::uninstall(&mut nft()).expect("removed");
        assert!(!run("iptables-nft", &["-S"]).contains("podwire"));
    });
}

#[test]
fn a_last_rule_that_drops_or_rejects_counts_as_well() {
    for last in [["-j", "DROP"], ["-j", "REJECT"]] {
        in_new_netns(move || {
            run("iptables-nft", &[&["-A", "FORWARD"][..], &last].concat());
            rules::accept_forwarding(&mut nft(), "br0").expect("accepted");
            let listed = run("iptables-nft", &["-S", "FORWARD"]);
            assert!(listed.contains(&OURS.join("\n")), "{last:?}: {listed}");
        });
    }
}

#[test]
fn a_chain_that_lets_pass_is_left_as_it_is() {
    in_new_netns(|| {
        bridge("br0");
        run("iptables-nft", &["-A", "FORWARD", "-s", "192.0.2.1", "-j", "DROP"]);
        let before = run("nft", &["list", "ruleset"]);
        rules::accept_forwarding(&mut nft(), "br0").expect("nothing to do");
        assert_eq!(run("nft", &["list", "ruleset"]), before);
    });
}

#[test]
fn legacy_iptables_is_told_of_and_left_alone() {
    in_new_netns(|| {
        let told = || rules::accept_forwarding(&mut nft(), "br0").expect("told");
        assert!(told().is_empty());
        // Looking made no table.
        assert_eq!(std::fs::read_to_string("/proc/thread-self/net/ip_tables_names").expect("read"), "");
        for (iptables, version) in [("iptables-legacy", "IPv4"), ("ip6tables-legacy", "IPv6")] {
            run(iptables, &["-A", "FORWARD", "-i", "eth7", "-j", "ACCEPT"]);
            assert!(told().is_empty());
            run(iptables, &["-P", "FORWARD", "DROP"]);
            let before = run(iptables, &["-S"]);
            let text = told().pop().expect("a notice");
            assert!(
                text.starts_with(&format!("legacy iptables drops forwarded {version} packets")),
                "{text}"
            );
            assert_eq!(run(iptables, &["-S"]), before);
            // What it says is to be typed.
            let commands = text.split('`').nth(1).expect("commands");
            run("sh", &["-c", commands]);
            assert!(told().is_empty());
        }
    });
}
