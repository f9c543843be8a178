use podwire_kernel::nft::Data;

use super::*;
use crate::rules::chains::is_content_name;
use crate::{Masquerade, PodAddress, PortAccess, Protocol, SourceCheck};

fn pod(addresses: &[&str], traffic: Traffic) -> Attachment {
    let address = |text: &&str| PodAddress { address: text.parse().unwrap(), gateway: None };
    Attachment {
        owner: Owner::new("net", "c1", "eth0"),
        addresses: addresses.iter().map(address).collect(),
        mac: None,
        link: None,
        bridge: None,
        netns: String::new(),
        netns_identity: None,
        pod: None,
        runtime: None,
        given: Vec::new(),
        traffic: Some(traffic),
    }
}

fn on_bridge() -> Traffic {
    Traffic { device: "br0".to_owned(), host_end: "pw0".to_owned(), ..Traffic::default() }
}

fn port(host_ip: Option<&str>, host_port: u16) -> PortMapping {
    let host_ip = host_ip.map(|ip| ip.parse().unwrap());
    PortMapping { protocol: Protocol::Tcp, host_ip, host_port, container_port: 80 }
}

/// A line for each element: set, key and, after an arrow, where it leads.
fn show(content: &Content) -> String {
    let mut lines = Vec::new();
    for (set, elements) in content.owned.iter().chain(&content.shared) {
        for element in elements {
            let leads = match &element.data {
                None => String::new(),
                Some(Data::Value(value)) => format!(" -> {}", hex(value)),
                // Without the hash.
                Some(Data::Verdict(Verdict::Jump(chain))) => {
                    format!(" -> {}", chain.trim_end_matches(|c: char| c.is_ascii_hexdigit()))
                }
                Some(Data::Verdict(verdict)) => format!(" -> {verdict:?}"),
            };
            lines.push(format!("{} {} {}{leads}", set.table.family, set.name, hex(&element.key)));
        }
    }
    lines.join("\n")
}

/// Bytes in groups of four, the registers they are compared in.
fn hex(bytes: &[u8]) -> String {
    let group = |group: &[u8]| group.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    bytes.chunks(4).map(group).collect::<Vec<_>>().join(".")
}

fn check(addresses: &[&str], traffic: Traffic, golden: &str) {
    let shown = show(&content(&pod(addresses, traffic)).unwrap());
    let golden: Vec<&str> = golden.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    assert_eq!(shown, golden.join("\n"));
}

#[test]
fn nothing_asked_is_nothing_put_in() {
    check(&["10.1.0.7/24"], on_bridge(), "");
    let mut unknown = pod(&["10.1.0.7/24"], on_bridge());
    unknown.traffic = None;
    assert!(content(&unknown).unwrap().is_empty());
}

#[test]
fn ports_of_all_addresses_and_of_one() {
    let ports = vec![
        port(None, 8080),
        port(Some("192.0.2.1"), 8081),
        port(Some("0.0.0.0"), 8082),
        port(Some("::"), 8083),
        // The same once more: the first counts.
        PortMapping { container_port: 81, ..port(None, 8080) },
    ];
    // Of two addresses of a family the first answers.
    check(
        &["10.1.0.7/24", "10.1.0.8/24", "fd01::7/64"],
        Traffic { ports, ..on_bridge() },
        "
        inet address-ports4 06000000.c0000201.1f910000 -> 0a010007.00500000
        inet clients4 0a010007 -> snat-
        inet clients6 fd010000.00000000.00000000.00000007 -> snat-
        inet ports4 06000000.1f900000 -> 0a010007.00500000
        inet ports4 06000000.1f920000 -> 0a010007.00500000
        inet ports6 06000000.1f900000 -> fd010000.00000000.00000000.00000007.00500000
        inet ports6 06000000.1f930000 -> fd010000.00000000.00000000.00000007.00500000
        inet snat-tcp4 0a010007.1f900000
        inet snat-tcp4 0a010007.1f910000
        inet snat-tcp4 0a010007.1f920000
        inet snat-tcp6 fd010000.00000000.00000000.00000007.1f900000
        inet snat-tcp6 fd010000.00000000.00000000.00000007.1f930000
        inet localnet 62723000.00000000.00000000.00000000
        ",
    );
}

#[test]
fn without_masquerade_of_clients_a_port_is_not_on_the_loopback_network() {
    let traffic = Traffic {
        ports: vec![port(None, 8080)],
        port_access: PortAccess { snat: Snat::Off, ..PortAccess::default() },
        ..on_bridge()
    };
    check(
        &["10.1.0.7/24", "fd01::7/64"],
        traffic.clone(),
        "
        inet conditional4 06000000.1f900000 -> cond-
        inet conditioned4 06000000.1f900000 -> 0a010007.00500000
        inet ports6 06000000.1f900000 -> fd010000.00000000.00000000.00000007.00500000
        ",
    );
    assert_eq!(content(&pod(&["10.1.0.7/24"], traffic)).unwrap().localnet, None);
}

#[test]
fn everything_else() {
    let traffic = Traffic {
        masquerade: Some(Masquerade { inside: vec!["10.1.0.0/16".parse().unwrap()], fully_random: true }),
        ingress: IngressPolicy::Isolated,
        source_check: Some(SourceCheck { mac: podwire_kernel::MacAddr([2, 0, 0, 0, 0, 7]), addresses: true }),
        ..on_bridge()
    };
    check(
        &["10.1.0.7/24", "fd01::7/64"],
        traffic,
        "
        inet ingress4 0a010007 -> in-
        inet ingress6 fd010000.00000000.00000000.00000007 -> in-
        inet itself4 0a010007.0a010007
        inet itself6 fd010000.00000000.00000000.00000007.fd010000.00000000.00000000.00000007
        inet masquerade4 0a010007 -> masq-
        inet masquerade6 fd010000.00000000.00000000.00000007 -> masq-
        bridge addressed 70773000.00000000.00000000.00000000
        bridge addresses4 70773000.00000000.00000000.00000000.0a010007
        bridge addresses6 70773000.00000000.00000000.00000000.fd010000.00000000.00000000.00000007
        bridge checked 70773000.00000000.00000000.00000000
        bridge macs 70773000.00000000.00000000.00000000.02000000.00070000
        bridge senders4 70773000.00000000.00000000.00000000.02000000.00070000.0a010007
        inet guarded 62723000.00000000.00000000.00000000
        ",
    );
}

#[test]
fn a_link_of_its_own_is_checked_where_packets_are_routed() {
    let mac = podwire_kernel::MacAddr([2, 0, 0, 0, 0, 7]);
    let traffic = Traffic {
        device: "veth0".to_owned(),
        host_end: "veth0".to_owned(),
        source_check: Some(SourceCheck { mac, addresses: true }),
        ..Traffic::default()
    };
    let content = content(&pod(&["10.1.0.7/24"], traffic)).unwrap();
    assert_eq!(content.tables(), [skeleton::LINKS]);
    assert_eq!(content.owned.values().flatten().count(), 4);
}

#[test]
fn base_chains_are_for_those_who_need_them() {
    let base = |traffic| {
        let chains = content(&pod(&["10.1.0.7/24"], traffic)).unwrap().chains.into_values();
        chains.filter(|chain| chain.base.is_some()).map(|chain| chain.name).collect::<Vec<_>>()
    };
    let masquerade = Some(Masquerade { inside: Vec::new(), fully_random: true });
    assert_eq!(base(Traffic { masquerade, ..on_bridge() }), Vec::<String>::new());
    assert_eq!(base(Traffic { ingress: IngressPolicy::SameBridge, ..on_bridge() }), ["forward"]);
    assert_eq!(base(Traffic { ports: vec![port(None, 8080)], ..on_bridge() }), ["raw-prerouting"]);
}

#[test]
fn pods_of_a_network_share_their_chains_and_others_do_not() {
    let chains = |address: &str, inside: &str, policy| {
        let masquerade = Masquerade { inside: vec![inside.parse().unwrap()], fully_random: true };
        let traffic = Traffic { masquerade: Some(masquerade), ingress: policy, ..on_bridge() };
        content(&pod(&[address], traffic))
            .unwrap()
            .chains
            .into_keys()
            .filter(|name| is_content_name(name))
            .collect::<Vec<_>>()
    };
    let one = chains("10.1.0.7/24", "10.1.0.0/16", IngressPolicy::SameBridge);
    assert_eq!(one, chains("10.1.0.8/24", "10.1.0.0/16", IngressPolicy::SameBridge));
    let other = chains("10.1.0.8/24", "10.2.0.0/16", IngressPolicy::Isolated);
    assert!(one.iter().all(|chain| !other.contains(chain)), "{one:?} {other:?}");
}

#[test]
fn owners_are_read_from_comments_and_from_nothing_else() {
    let attachment = pod(&["10.1.0.7/24"], on_bridge());
    let element = |comment: &str| Element::new([0]).comment(comment);
    let text = comment(&attachment.owner);
    assert_eq!(text, format!("{} c1 eth0 net", attachment.owner.id()));
    assert_eq!(owner_of(&element(&text)), Some(attachment.owner.id()));
    assert_eq!(describe_owner(&element(&text)), "eth0 of container c1 on network net");
    for other in ["", "web server", "00112233445566778899aabbccddee", "00112233445566778899aabbccddeeffaa c1"]
    {
        assert_eq!(owner_of(&element(other)), None, "{other:?}");
    }
    assert_eq!(owner_of(&Element::new([0])), None);
    let cut = comment(&Owner::new("n".repeat(90), "c".repeat(64), "é0"));
    assert!(cut.len() <= MAX_COMMENT && OwnerId::try_from(cut[..32].to_owned()).is_ok());
    assert_eq!(
        describe_owner(&element(&cut)),
        format!("é0 of container {} on network {}", "c".repeat(64), &cut[102..])
    );
}
