//! The tables put right as a whole, and differences named.

use podwire_attach::Attachment;
use podwire_attach::rules::{self, Repaired};

use crate::lab::{bridge, full_pod, id, in_new_netns, nft, run};

fn install(attachment: &Attachment) {
    rules::install(&mut nft(), attachment, &|_| true).expect("installed");
}

fn differences(attachment: &Attachment) -> Vec<String> {
    rules::check(&mut nft(), attachment).expect("checked").iter().map(ToString::to_string).collect()
}

fn reconcile(attachments: &[&Attachment]) -> Repaired {
    rules::reconcile(&mut nft(), attachments, &|_| false).expect("reconciled")
}

/// What an administrator does to the rules, and the difference that CHECK names then.
const DAMAGES: &[(&[&str], &str)] = &[
    (&["flush", "ruleset"], "nftables table inet podwire is missing"),
    (&["delete", "table", "bridge", "podwire"], "nftables table bridge podwire is missing"),
    (
        &["delete", "element", "inet", "podwire", "conditioned4", "{ tcp . 8001 }"],
        "host port 8001/tcp is missing in conditioned4 of nftables table inet podwire",
    ),
    (
        &["delete", "element", "inet", "podwire", "masquerade6", "{ fd01::1 }"],
        "address fd01::1 is missing in masquerade6 of nftables table inet podwire",
    ),
    (
        &["delete", "element", "inet", "podwire", "localnet", "{ br0 }"],
        "link br0 is missing in localnet of nftables table inet podwire",
    ),
    (
        &["flush", "chain", "inet", "podwire", "forward"],
        "the rules of chain forward of nftables table inet podwire were changed",
    ),
    (
        &["insert", "rule", "inet", "podwire", "host-ports", "return"],
        "the rules of chain host-ports of nftables table inet podwire were changed",
    ),
    (
        &["flush", "chain", "bridge", "podwire", "arp-sender"],
        "the rules of chain arp-sender of nftables table bridge podwire were changed",
    ),
];

#[test]
fn each_damage_is_named_and_mended() {
    in_new_netns(|| {
        bridge("br0");
        let (one, two) = (full_pod(1), full_pod(2));
        install(&one);
        install(&two);
        let right = sorted(&run("nft", &["list", "ruleset"]));
        for (damage, difference) in DAMAGES {
            run("nft", damage);
            let named = differences(&one);
            assert!(named.iter().any(|named| named == difference), "after {damage:?}: {named:#?}");
            assert!(!reconcile(&[&one, &two]).is_clean(), "after {damage:?}");
            assert_eq!(differences(&one), Vec::<String>::new(), "after {damage:?}");
            assert_eq!(differences(&two), Vec::<String>::new(), "after {damage:?}");
            assert_eq!(sorted(&run("nft", &["list", "ruleset"])), right, "after {damage:?}");
            assert!(reconcile(&[&one, &two]).is_clean(), "after {damage:?}");
        }
    });
}

/// Elements come in no order.
fn sorted(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text
        .lines()
        .map(|line| line.replace("elements = {", "").replace(['}', ','], "").trim().to_owned())
        .collect();
    lines.sort();
    lines
}

#[test]
fn an_edited_chain_that_pods_share_is_mended() {
    in_new_netns(|| {
        let pod = full_pod(1);
        bridge("br0");
        install(&pod);
        let listed = run("nft", &["list", "chains", "inet"]);
        let masquerade =
            listed.lines().find_map(|line| line.trim().strip_prefix("chain masq-")).expect("a chain");
        let chain = format!("masq-{}", masquerade.trim_end_matches(" {"));
        run("nft", &["flush", "chain", "inet", "podwire", &chain]);
        assert_eq!(differences(&pod).len(), 1);
        assert_eq!(reconcile(&[&pod]), Repaired { chains: 1, ..Repaired::default() });
        assert!(differences(&pod).is_empty());
    });
}

#[test]
fn a_table_without_a_set_is_made_anew_by_the_next_pod_and_keeps_its_elements() {
    in_new_netns(|| {
        bridge("br0");
        let one = full_pod(1);
        install(&one);
        run("nft", &["flush", "chain", "inet", "podwire", "forward"]);
        run("nft", &["delete", "map", "inet", "podwire", "ingress4"]);
        install(&full_pod(2));
        assert!(differences(&full_pod(2)).is_empty(), "{:?}", differences(&full_pod(2)));
        // What was in the map is gone; the rest is not.
        let lost = ["address 10.1.0.1 is missing in ingress4 of nftables table inet podwire"];
        assert_eq!(differences(&one), lost);
    });
}

#[test]
fn a_table_of_another_version_is_replaced_and_those_left_alone_are_kept() {
    in_new_netns(|| {
        bridge("br0");
        let (one, two) = (full_pod(1), full_pod(2));
        install(&one);
        install(&two);
        // The comment has the version.
        let text = run("nft", &["list", "table", "inet", "podwire"]);
        let older = format!("delete table inet podwire\n{}", text.replace("podwire 2", "podwire 0"));
        let file = std::env::temp_dir().join(format!("podwire-rules-{}", std::process::id()));
        std::fs::write(&file, older).expect("written");
        run("nft", &["-f", file.to_str().expect("a path")]);
        std::fs::remove_file(&file).expect("removed");
        // The agent of that version goes on with it; what is missing in it is named all the same.
        assert_eq!(differences(&one), Vec::<String>::new());
        run("nft", &["delete", "element", "inet", "podwire", "masquerade4", "{ 10.1.0.1 }"]);
        let lost = ["address 10.1.0.1 is missing in masquerade4 of nftables table inet podwire"];
        assert_eq!(differences(&one), lost);
        let repaired = rules::reconcile(&mut nft(), &[&one], &|owner| owner == id("c2")).expect("reconciled");
        assert_eq!(repaired.skeletons, 1);
        assert!(differences(&one).is_empty(), "{:?}", differences(&one));
        assert!(differences(&two).is_empty(), "{:?}", differences(&two));
    });
}

#[test]
fn what_nobody_needs_goes_and_what_is_left_alone_stays() {
    in_new_netns(|| {
        bridge("br0");
        let (one, two, three) = (full_pod(1), full_pod(2), full_pod(3));
        [&one, &two, &three].into_iter().for_each(install);
        rules::reconcile(&mut nft(), &[&one], &|owner| owner == id("c2")).expect("reconciled");
        assert_eq!(rules::owners(&mut nft()).expect("read"), [id("c1"), id("c2")].into());
        assert!(differences(&one).is_empty());
        assert!(differences(&two).is_empty());
        reconcile(&[]);
        assert!(rules::owners(&mut nft()).expect("read").is_empty());
        let listed = run("nft", &["list", "ruleset"]);
        assert!(!listed.contains("masq-") && !listed.contains("elements = { \"pw"), "{listed}");
        // 127.0.0.0/8 is still routed over the bridge, so the drop stays.
        assert!(listed.contains("elements = { \"br0\" }"), "{listed}");
        assert!(reconcile(&[]).is_clean());
    });
}

/// Every packet pays for a base chain.
#[test]
fn base_chains_are_there_while_a_pod_needs_them() {
    in_new_netns(|| {
        bridge("br0");
        let full = full_pod(1);
        let mut plain = full_pod(2);
        let traffic = plain.traffic.as_mut().expect("known");
        traffic.ports.clear();
        traffic.ingress = podwire_attach::IngressPolicy::Open;
        let hooks = || {
            let listed = run("nft", &["list", "table", "inet", "podwire"]);
            ["forward", "raw-prerouting"].map(|chain| listed.contains(&format!("chain {chain} {{")))
        };
        install(&plain);
        assert_eq!(hooks(), [false, false]);
        install(&full);
        assert_eq!(hooks(), [true, true]);
        assert!(differences(&full).is_empty() && differences(&plain).is_empty());

        // One of another kind in its place, and one that is gone.
        run("nft", &["add chain inet podwire forward { policy drop; }"]);
        run("nft", &["flush chain inet podwire raw-prerouting; delete chain inet podwire raw-prerouting"]);
        let named = [
            "chain forward of nftables table inet podwire was changed",
            "chain raw-prerouting of nftables table inet podwire is missing",
        ];
        assert_eq!(differences(&full), named);
        assert_eq!(reconcile(&[&full, &plain]), Repaired { chains: 2, ..Repaired::default() });
        assert!(differences(&full).is_empty());

        // What a pod that is left alone needs stays, and so does the drop of what 127.0.0.1 is routed to.
        rules::reconcile(&mut nft(), &[&plain], &|owner| owner == id("c1")).expect("reconciled");
        assert_eq!(hooks(), [true, true]);
        reconcile(&[&plain]);
        assert_eq!(hooks(), [false, true]);
        podwire_kernel::sysctl::write("net/ipv4/conf/br0/route_localnet", "0").expect("written");
        reconcile(&[&plain]);
        assert_eq!(hooks(), [false, false]);
        assert!(reconcile(&[&plain]).is_clean());

        // Made again by the next that needs them, in a table that is there.
        install(&full);
        assert_eq!(hooks(), [true, true]);
        assert!(differences(&full).is_empty());
    });
}

/// The tables of version 1 had the two base chains whether anybody needed them or not.
#[test]
fn base_chains_of_an_older_version_go_where_nobody_needs_them() {
    in_new_netns(|| {
        bridge("br0");
        let mut plain = full_pod(1);
        let traffic = plain.traffic.as_mut().expect("known");
        traffic.ports.clear();
        traffic.ingress = podwire_attach::IngressPolicy::Open;
        install(&plain);
        let text = run("nft", &["list", "table", "inet", "podwire"]).replace("podwire 2", "podwire 1");
        let file = std::env::temp_dir().join(format!("podwire-rules-older-{}", std::process::id()));
        let older = format!(
            "delete table inet podwire\n{text}\n\
             add chain inet podwire forward {{ type filter hook forward priority 0; }}\n\
             add rule inet podwire forward ct state established,related accept\n\
             add chain inet podwire raw-prerouting {{ type filter hook prerouting priority -300; }}\n"
        );
        std::fs::write(&file, older).expect("written");
        run("nft", &["-f", file.to_str().expect("a path")]);
        std::fs::remove_file(&file).expect("removed");
        assert_eq!(differences(&plain), Vec::<String>::new());
        assert_eq!(reconcile(&[&plain]).skeletons, 1);
        let listed = run("nft", &["list", "table", "inet", "podwire"]);
        assert!(!listed.contains("chain forward") && !listed.contains("chain raw-prerouting"), "{listed}");
        assert!(differences(&plain).is_empty());
    });
}

#[test]
fn without_attachments_nothing_is_made() {
    in_new_netns(|| {
        assert!(reconcile(&[]).is_clean());
        assert_eq!(run("nft", &["list", "ruleset"]), "");
    });
}

#[test]
fn other_tables_are_not_touched() {
    in_new_netns(|| {
        bridge("br0");
        run(
            "nft",
            &[
                "add table inet mine; add chain inet mine c { type filter hook forward priority 0; policy drop; }; \
             add rule inet mine c counter; add table ip podwire-node; add set ip podwire-node s { type ipv4_addr; }",
            ],
        );
        let before = run("nft", &["list", "ruleset"]);
        let pod = full_pod(1);
        install(&pod);
        reconcile(&[&pod]);
        run("nft", &["delete", "table", "inet", "podwire"]);
        reconcile(&[&pod]);
        rules::remove(&mut nft(), pod.owner.id(), None).expect("removed");
        rules::uninstall(&mut nft()).expect("removed");
        assert_eq!(run("nft", &["list", "ruleset"]), before);
        assert_eq!(podwire_kernel::sysctl::read("net/ipv4/conf/br0/route_localnet").expect("read"), "0");
    });
}
