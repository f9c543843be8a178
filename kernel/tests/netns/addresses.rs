//! Addresses.

use podwire_kernel::addr;

use crate::lab::{eventually, in_new_netns, network, pair, socket};

#[test]
fn addresses_come_and_go_and_nodad_makes_them_usable_at_once() {
    in_new_netns(|| {
        let mut host = socket();
        let (link, _pod) = pair(&mut host, "left");
        let (v4, quick, slow) = (network("10.1.0.1/24"), network("fd00::1/64"), network("fd00::2/64"));
        host.apply(&[
            addr::add(link.index, v4, false),
            addr::add(link.index, quick, true),
            addr::add(link.index, slow, false),
        ])
        .expect("added");
        let mut find = |wanted| {
            let found = host.addresses(Some(link.index)).expect("listed");
            found.into_iter().find(|address| address.address == wanted)
        };
        assert!(find(v4).expect("there").flags.permanent);
        assert_eq!(find(v4).expect("there").protocol, addr::PROTOCOL, "IFA_PROTO needs kernel 5.18");
        let flags = find(quick).expect("there").flags;
        assert!(flags.nodad && flags.permanent && !flags.tentative && !flags.dadfailed, "{flags:?}");
        assert!(find(slow).expect("there").flags.tentative);
        eventually("DAD to end", || (!find(slow)?.flags.tentative).then_some(()));

        let error = host.apply(&[addr::add(link.index, v4, false)]).expect_err("there already");
        assert!(error.is_exists(), "{error}");
        assert!(error.to_string().starts_with(&format!("add address 10.1.0.1/24 of link {}: ", link.index)));
        host.apply(&[addr::remove(link.index, v4), addr::remove(link.index, quick)]).expect("removed");
        let error = host.apply(&[addr::remove(link.index, v4)]).expect_err("gone");
        assert!(error.is_missing(), "{error}");
        let left = host.addresses(None).expect("listed");
        assert!(left.iter().all(|address| address.address != v4 && address.address != quick), "{left:?}");
        // The whole list has other links' addresses too.
        assert!(left.iter().any(|address| address.address == network("127.0.0.1/8")), "{left:?}");
    });
}

#[test]
fn an_ipv4_address_has_its_subnets_broadcast_address() {
    in_new_netns(|| {
        let mut host = socket();
        let (link, _pod) = pair(&mut host, "left");
        host.apply(&[addr::add(link.index, network("10.1.0.1/24"), false)]).expect("added");
        host.apply(&[addr::add(link.index, network("10.2.0.0/31"), false)]).expect("a /31 has none");
        let shown = std::process::Command::new("ip").args(["-4", "addr", "show", "dev", "left"]).output();
        let shown = String::from_utf8(shown.expect("the program `ip` (iproute2)").stdout).expect("text");
        assert!(shown.contains("inet 10.1.0.1/24 brd 10.1.0.255 scope global left"), "{shown}");
        assert!(shown.contains("inet 10.2.0.0/31 scope global left"), "{shown}");
    });
}
