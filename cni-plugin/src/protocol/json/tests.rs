use proptest::prelude::*;
use serde_json::json;

use super::*;

fn fold(document: &str) -> Value {
    parse_folded(document.as_bytes()).unwrap()
}

#[test]
fn keys_are_folded_at_every_level_and_values_are_not() {
    let folded = fold(r#"{"HostPort":[{"HostIP":"AbC","X":{"Y":null}}],"É":1}"#);
    assert_eq!(folded, json!({"hostport": [{"hostip": "AbC", "x": {"y": null}}], "É": 1}));
}

#[test]
fn names_of_sysctls_keep_their_case_and_their_order_and_are_all_there() {
    let folded = fold(r#"{"a":{"SysCtl":{"net.B":"1","net.A":{"C":2},"net.B":null}},"sysctl":[{"D":1}]}"#);
    let root = Field::root(&folded);
    let field = root.object("A").unwrap().at("sysctl");
    let pairs = field.pairs().unwrap();
    let found: Vec<_> = pairs.iter().map(|(name, value)| (*name, value.path())).collect();
    let path = |name| format!("sysctl[\"{name}\"]");
    let [first, second, third] = ["net.B", "net.A", "net.B"].map(|name| (name, format!("A.{}", path(name))));
    assert_eq!(found, [(first.0, &*first.1), (second.0, &*second.1), (third.0, &*third.1)]);
    assert_eq!(pairs[0].1.text(), Ok(Some("1")));
    // What stands below a name is folded again.
    assert_eq!(pairs[1].1.at("c").number(0..=9), Ok(Some(2)));
    assert!(pairs[2].1.is_null());
    assert_eq!(
        root.at("sysctl").pairs().unwrap_err().msg,
        r#"invalid sysctl: [{"d":1}] (expected an object)"#
    );
    assert_eq!(root.at("other").pairs().unwrap().len(), 0);
    let empty = fold(r#"{"sysctl":{}}"#);
    assert_eq!(Field::root(&empty).at("sysctl").pairs().unwrap().len(), 0);
}

#[test]
fn what_go_takes_for_absent_asks_for_nothing() {
    let value = fold(r#"{"zero":[null,false,0,0.0,"",[],{}],"more":[true,1,-1,0.5," ",[0],{"a":0}]}"#);
    let root = Field::root(&value);
    assert!(root.at("zero").list().unwrap().iter().all(Field::is_zero));
    assert!(!root.at("more").list().unwrap().iter().any(Field::is_zero));
}

#[test]
fn the_last_of_equal_keys_wins() {
    assert_eq!(fold(r#"{"mtu":1,"MTU":2,"Mtu":{"a":1,"A":2}}"#), json!({"mtu": {"a": 2}}));
    assert_eq!(fold(r#"{"mtu":{"a":1},"mtu":null}"#), json!({"mtu": null}));
}

#[test]
fn numbers_and_texts_stay_what_they_are() {
    let folded = fold(r#" [18446744073709551615,-9223372036854775808,1.5,1e3,true,"\u0000\n"] "#);
    assert_eq!(folded, json!([u64::MAX, i64::MIN, 1.5, 1000.0, true, "\0\n"]));
}

#[test]
fn what_is_not_json_is_an_error_with_its_place() {
    for wrong in
        ["", " ", "{", "{}x", "{} {}", "{'a':1}", r#"{"a":}"#, r#"{"a":1,}"#, "nul", "\u{feff}{}", "[1e999]"]
    {
        let error = parse_folded(wrong.as_bytes()).unwrap_err();
        assert_eq!(error.code, code::DECODING_FAILURE, "{wrong}");
        assert!(error.msg.starts_with("error parsing JSON: ") && error.msg.contains("line"), "{error}");
    }
    assert_eq!(parse_folded(b"{\"a\":\"\xff\"}").unwrap_err().code, code::DECODING_FAILURE);
}

#[test]
fn depth_and_size_are_bounded() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    assert!(parse_folded(nested(MAX_DEPTH).as_bytes()).is_ok());
    for depth in [MAX_DEPTH + 1, 500_000] {
        let error = parse_folded(nested(depth).as_bytes()).unwrap_err();
        assert!(error.msg.contains("more than 64 objects and arrays"), "{error}");
    }
    let open = "{\"a\":".repeat(100_000);
    assert!(parse_folded(open.as_bytes()).is_err());
    let spaces = vec![b' '; MAX_INPUT + 1];
    assert!(parse_folded(&spaces).unwrap_err().msg.contains("larger than 1048576 bytes"));
}

#[test]
fn input_is_read_up_to_a_bound() {
    assert_eq!(read_input(&b"{}"[..]), Ok(b"{}".to_vec()));
    assert_eq!(read_input(std::io::repeat(b' ').take(MAX_INPUT as u64)).unwrap().len(), MAX_INPUT);
    let endless = read_input(std::io::repeat(b' ')).unwrap_err();
    assert_eq!(endless.code, code::IO_FAILURE);

    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("gone"))
        }
    }
    let error = read_input(Broken).unwrap_err();
    assert_eq!((error.code, error.msg.as_str()), (code::IO_FAILURE, "error reading from stdin: gone"));
}

#[test]
fn errors_name_the_way_to_a_value_and_quote_it() {
    let value = fold(r#"{"ipam":{"ranges":[[{"Subnet":"10.0.0.0"}]]},"mtu":"1500","big":[1.5],"on":1}"#);
    let root = Field::root(&value);
    let range = &root.object("ipam").unwrap().at("ranges").list().unwrap()[0].list().unwrap()[0];
    let subnet = range.at("subnet").parsed("a subnet", |_| None::<()>).unwrap_err();
    assert_eq!(subnet.msg, r#"invalid ipam.ranges[0][0].subnet: "10.0.0.0" (expected a subnet)"#);
    assert_eq!(subnet.code, code::INVALID_NETWORK_CONFIG);
    let mtu = root.at("mtu").number(0..=9).unwrap_err();
    assert_eq!(mtu.msg, r#"invalid mtu: "1500" (expected a whole number from 0 to 9)"#);
    assert_eq!(root.at("on").switch().unwrap_err().msg, "invalid on: 1 (expected true or false)");
    assert_eq!(root.object("big").unwrap_err().msg, "invalid big: [1.5] (expected an object)");
    assert!(root.at("big").list().unwrap()[0].number(0..=9).is_err());
    assert_eq!(root.at("on").unsupported("not yet").code, code::UNSUPPORTED_FIELD);
    let long = Value::String("ä".repeat(1000));
    assert!(Field::root(&long).invalid("less").msg.len() < 400);
}

#[test]
fn null_and_empty_mean_not_set() {
    let value = fold(r#"{"a":null,"b":"","i":-1,"z":0}"#);
    let root = Field::root(&value);
    for key in ["a", "none"] {
        let field = root.at(key);
        assert_eq!(field.text(), Ok(None));
        assert_eq!(field.switch(), Ok(false));
        assert_eq!(field.number(5..=6), Ok(None));
        assert!(field.list().unwrap().is_empty());
        assert!(field.as_object().unwrap().is_null());
        assert!(field.is_unset());
    }
    assert_eq!((root.has("A"), root.has("none")), (true, false));
    assert_eq!(root.at("b").text(), Ok(None));
    assert!(root.at("b").is_unset());
    assert_eq!(root.at("i").index(), Ok(None));
    assert_eq!(root.at("z").index(), Ok(Some(0)));
    assert_eq!(root.at("z").positive(), Ok(None));
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map("[a-cA-C]{0,2}", inner, 0..5)
                .prop_map(|map| map.into_iter().collect()),
        ]
    })
}

fn all_keys_folded(value: &Value) -> bool {
    match value {
        Value::Array(values) => values.iter().all(all_keys_folded),
        Value::Object(map) => map
            .iter()
            .all(|(key, value)| !key.bytes().any(|b| b.is_ascii_uppercase()) && all_keys_folded(value)),
        _ => true,
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_folded(&bytes);
    }

    #[test]
    fn folding_twice_is_folding_once(value in any_json()) {
        let once = parse_folded(value.to_string().as_bytes()).unwrap();
        prop_assert!(all_keys_folded(&once));
        prop_assert_eq!(parse_folded(once.to_string().as_bytes()).unwrap(), once);
    }
}
