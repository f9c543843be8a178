use podwire_kernel::nft::{CT_ESTABLISHED, CT_NEW};
use proptest::prelude::*;

use super::*;

fn read(family: Family, words: &[&str]) -> Result<Option<Conditions>, ConditionError> {
    let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
    parse(family, &words)
}

fn one(text: &str) -> Vec<Expr> {
    let parsed = read(Family::V4, &[text]).unwrap().unwrap();
    assert_eq!(parsed.alternatives.len(), 1, "{text}");
    parsed.alternatives.into_iter().next().unwrap()
}

fn source() -> Expr {
    Expr::payload(Header::Network, 12, 4, KEY)
}

#[test]
fn matches_become_what_nft_makes_of_them() {
    let mask = |bytes: [u8; 4]| Expr::mask(KEY, bytes);
    let protocol = |number: u8| [Expr::meta(MetaKey::L4proto, KEY), Expr::eq(KEY, [number])];
    let destination_port = || Expr::payload(Header::Transport, 2, 2, KEY);
    let swapped = || Expr::Byteorder { from: KEY, to: KEY, to_network: true, len: 4, size: 4 };
    let state = || Expr::Ct { key: CtKey::State, direction: None, to: KEY };
    let cases: Vec<(&str, Vec<Expr>)> = vec![
        ("ip saddr 192.0.2.1", vec![source(), Expr::eq(KEY, [192, 0, 2, 1])]),
        ("ip saddr == 192.0.2.1", vec![source(), Expr::eq(KEY, [192, 0, 2, 1])]),
        (
            // Bits beyond the prefix do not count, as in nft.
            "ip saddr 192.0.2.7/24",
            vec![source(), mask([255, 255, 255, 0]), Expr::eq(KEY, [192, 0, 2, 0])],
        ),
        (
            "ip daddr != 192.0.2.0/24",
            vec![
                Expr::payload(Header::Network, 16, 4, KEY),
                mask([255, 255, 255, 0]),
                Expr::ne(KEY, [192, 0, 2, 0]),
            ],
        ),
        (
            "ip saddr != 192.0.2.1-192.0.2.9",
            vec![
                source(),
                Expr::Range { reg: KEY, invert: true, from: vec![192, 0, 2, 1], to: vec![192, 0, 2, 9] },
            ],
        ),
        (
            "tcp dport 1024-65535",
            [
                protocol(6).to_vec(),
                vec![
                    destination_port(),
                    Expr::Range { reg: KEY, invert: false, from: vec![4, 0], to: vec![255, 255] },
                ],
            ]
            .concat(),
        ),
        (
            "th dport >= 1024",
            vec![destination_port(), Expr::Cmp { reg: KEY, op: CmpOp::Ge, value: vec![4, 0] }],
        ),
        ("meta l4proto udp", protocol(17).to_vec()),
        (
            r#"iifname "eth0""#,
            vec![Expr::meta(MetaKey::Iifname, KEY), Expr::eq(KEY, *b"eth0\0\0\0\0\0\0\0\0\0\0\0\0")],
        ),
        ("meta oifname eth*", vec![Expr::meta(MetaKey::Oifname, KEY), Expr::eq(KEY, *b"eth")]),
        ("mark 0x10", vec![Expr::meta(MetaKey::Mark, KEY), swapped(), Expr::eq(KEY, [0, 0, 0, 16])]),
        (
            "ct mark and 0xff != 7",
            vec![
                Expr::Ct { key: CtKey::Mark, direction: None, to: KEY },
                Expr::mask(KEY, 0xff_u32.to_ne_bytes()),
                swapped(),
                Expr::ne(KEY, [0, 0, 0, 7]),
            ],
        ),
        (
            "ct state new,established",
            vec![state(), Expr::mask(KEY, (CT_NEW | CT_ESTABLISHED).to_ne_bytes()), Expr::ne(KEY, [0; 4])],
        ),
        ("ct state != { new }", vec![state(), Expr::mask(KEY, CT_NEW.to_ne_bytes()), Expr::eq(KEY, [0; 4])]),
    ];
    for (text, expressions) in cases {
        assert_eq!(one(text), expressions, "{text}");
    }
}

#[test]
fn lists_are_alternatives_and_their_negation_is_all_at_once() {
    let both =
        read(Family::V4, &["ip saddr { 192.0.2.1, 192.0.2.2 } tcp sport { 1, 2, 3 }"]).unwrap().unwrap();
    assert_eq!(both.alternatives.len(), 6);
    let neither = one("ip saddr != { 192.0.2.1, 192.0.2.2 }");
    assert_eq!(neither, [source(), Expr::ne(KEY, [192, 0, 2, 1]), source(), Expr::ne(KEY, [192, 0, 2, 2])]);
}

#[test]
fn words_may_come_in_any_number_of_entries() {
    let joined = read(Family::V4, &["ip  saddr 192.0.2.0/24", "mark 7"]).unwrap();
    let split = read(Family::V4, &["ip", "saddr", "192.0.2.0/24", "mark", "7"]).unwrap();
    assert_eq!(joined, split);
    assert_eq!(joined.unwrap().text, "ip saddr 192.0.2.0/24 mark 7");
    assert_eq!(read(Family::V4, &[]).unwrap(), None);
    assert_eq!(read(Family::V6, &["", " "]).unwrap(), None);
}

#[test]
fn what_is_not_understood_is_named() {
    let cases = [
        (Family::V4, "-s 192.0.2.0/24", r#"conditionsV4: "-s" where ip, ip6, tcp"#),
        (Family::V4, "! -d 192.0.2.0/24", r#""!" where"#),
        (Family::V4, "ip6 saddr ::1", r#""ip6" where ip is expected"#),
        (Family::V6, "ip saddr 192.0.2.1", r#"conditionsV6: "ip" where ip6 is expected"#),
        (Family::V4, "ip saddr", "nothing where a value is expected"),
        (Family::V4, "ip", "nothing where saddr or daddr is expected"),
        (Family::V4, "ip ttl 3", r#""ttl" where saddr or daddr"#),
        (Family::V4, "ip saddr 2001:db8::1", r#""2001:db8::1" where an IPv4 address"#),
        (Family::V6, "ip6 saddr 192.0.2.1", r#""192.0.2.1" where an IPv6 address"#),
        (Family::V4, "ip saddr 192.0.2.9-192.0.2.1", "where an IPv4 address"),
        (Family::V4, "ip saddr < 192.0.2.9", r#""<" where ==, != or a value"#),
        (Family::V4, "ip saddr @blocked", r#""@blocked" where"#),
        (Family::V4, "ip saddr { 192.0.2.1 192.0.2.2 }", r#""192.0.2.2" where a comma or a closing brace"#),
        (Family::V4, "ip saddr { 192.0.2.1", "nothing where a comma or a closing brace"),
        (Family::V4, "ip saddr {}", r#""}" where a value"#),
        (Family::V4, "tcp dport http", r#""http" where a port's number"#),
        (Family::V4, "tcp dport 65536", r#""65536" where a port's number"#),
        (Family::V4, "tcp dport < 1-2", "where a single value"),
        (Family::V4, "tcp flags syn", r#""flags" where sport or dport"#),
        (Family::V4, "iifname averyveryverylongname", "where a link's name"),
        (Family::V4, "ct state open", r#""open" where a connection's state"#),
        (Family::V4, "meta skuid 0", r#""skuid" where l4proto, mark, iifname or oifname"#),
        (Family::V4, "mark and zero 1", r#""zero" where a mask"#),
        (Family::V4, r#""ip" saddr 192.0.2.1"#, r#""ip" where"#),
        (Family::V4, "ip saddr 192.0.2.1 accept", r#""accept" where"#),
        (Family::V4, "drop", r#""drop" where"#),
    ];
    for (family, text, named) in cases {
        let error = read(family, &[text]).unwrap_err().to_string();
        assert!(error.contains(named), "{text}: {error}");
        assert!(error.contains("saddr"), "shows an example: {error}");
    }
}

#[test]
fn lists_do_not_grow_into_thousands_of_rules() {
    let ports: Vec<String> = (1..=20).map(|port| port.to_string()).collect();
    let list = ports.join(",");
    let error = read(Family::V4, &[&format!("tcp sport {{{list}}} tcp dport {{{list}}}")]).unwrap_err();
    assert!(error.to_string().contains("shorter list"), "{error}");
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "[ -~é]{0,60}", other in r#"(ip|saddr|tcp|dport|[{},=!<>&" ]|[0-9./:-]|mark|ct|state){0,30}"#) {
        for text in [text, other] {
            let _ = parse(Family::V4, std::slice::from_ref(&text));
            let _ = parse(Family::V6, &[text]);
        }
    }
}
