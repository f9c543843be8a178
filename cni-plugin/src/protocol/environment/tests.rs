use super::*;

fn parse(variables: &[(&str, &str)]) -> Result<Option<Environment>, CniError> {
    Environment::parse(variables.iter().map(|(name, value)| (name.into(), value.into())))
}

/// A complete environment in which these variables are replaced.
fn with(verb: &str, changes: &[(&str, &str)]) -> Result<Option<Environment>, CniError> {
    let mut variables = vec![
        ("CNI_COMMAND", verb),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/a"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin:/usr/lib/cni"),
    ];
    variables.extend(changes);
    parse(&variables)
}

fn message(outcome: Result<Option<Environment>, CniError>) -> String {
    let error = outcome.unwrap_err();
    assert_eq!(error.code, code::INVALID_ENVIRONMENT);
    error.msg
}

#[test]
fn a_call_is_read() {
    let environment = with("ADD", &[("CNI_ARGS", "IP=10.1.0.7"), ("HOME", "/root")]).unwrap().unwrap();
    assert_eq!(environment.verb, Verb::Add);
    assert_eq!(environment.netns.as_deref(), Some("/run/netns/a"));
    assert_eq!(environment.path, [PathBuf::from("/opt/cni/bin"), PathBuf::from("/usr/lib/cni")]);
    assert_eq!(environment.args.ip, "10.1.0.7".parse().ok());
    assert!(!environment.netns_override);
    let owner = environment.owner("pods");
    assert_eq!([owner.network, owner.container, owner.ifname], ["pods", "c1", "eth0"]);
}

#[test]
fn without_a_command_somebody_asks_what_this_is() {
    for variables in [&[][..], &[("CNI_COMMAND", "")], &[("PATH", "/bin"), ("CNI_IFNAME", "a/b")]] {
        assert_eq!(parse(variables), Ok(None));
    }
}

#[test]
fn all_missing_variables_are_named_at_once_and_in_order() {
    let all = "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH";
    for (verb, missing) in [
        ("ADD", all),
        ("CHECK", all),
        ("DEL", "CNI_CONTAINERID,CNI_IFNAME,CNI_PATH"),
        ("GC", "CNI_PATH"),
        ("STATUS", "CNI_PATH"),
    ] {
        let expected = format!("required env variables [{missing}] missing");
        assert_eq!(message(parse(&[("CNI_COMMAND", verb)])), expected, "{verb}");
        for name in all.split(',') {
            let outcome = with(verb, &[(name, "")]);
            if missing.split(',').any(|missing| missing == name) {
                assert_eq!(message(outcome), format!("required env variables [{name}] missing"), "{verb}");
            } else {
                assert!(outcome.is_ok(), "{verb} without {name}");
            }
        }
    }
    assert_eq!(parse(&[("CNI_COMMAND", "VERSION")]).unwrap().unwrap().verb, Verb::Version);
}

#[test]
fn del_needs_no_netns() {
    assert_eq!(with("DEL", &[("CNI_NETNS", "")]).unwrap().unwrap().netns, None);
}

#[test]
fn an_unknown_command_is_named() {
    for verb in ["FOO", "add", "ADD "] {
        assert_eq!(message(with(verb, &[])), format!("unknown CNI_COMMAND: {verb}"));
    }
}

#[test]
fn container_ids_have_the_specifications_form() {
    for good in ["a", "0", "A.b_c-d", &"f".repeat(300)] {
        assert!(with("ADD", &[("CNI_CONTAINERID", good)]).is_ok(), "{good}");
    }
    for bad in ["-a", "_a", ".a", "a b", "a/b", "a;b", "é", "a\n", "../a"] {
        for verb in ["ADD", "DEL", "CHECK"] {
            let message = message(with(verb, &[("CNI_CONTAINERID", bad)]));
            assert!(message.starts_with(&format!("invalid CNI_CONTAINERID: {bad:?}")), "{message}");
        }
        assert!(with("GC", &[("CNI_CONTAINERID", bad)]).is_ok());
    }
}

#[test]
fn interfaces_have_names_that_the_kernel_takes() {
    for good in ["eth0", "e", "a.b", "fifteen_bytes_x", "-", "ä"] {
        assert!(with("ADD", &[("CNI_IFNAME", good)]).is_ok(), "{good}");
    }
    for bad in [".", "..", "a/b", "a:b", "a b", "a\tb", "a\nb", "a\u{a0}b", "sixteen_bytes_xy", "ääääääää"]
    {
        let message = message(with("DEL", &[("CNI_IFNAME", bad)]));
        assert!(message.starts_with(&format!("invalid interface name in CNI_IFNAME: {bad:?}")), "{message}");
    }
}

#[test]
fn the_hosts_netns_can_be_allowed() {
    for (value, allowed) in
        [("1", true), ("true", true), ("TRUE", true), ("0", false), ("", false), ("yes", false)]
    {
        let environment = with("ADD", &[("CNI_NETNS_OVERRIDE", value)]).unwrap().unwrap();
        assert_eq!(environment.netns_override, allowed, "{value}");
    }
}

#[test]
fn trace_context_is_accepted() {
    let plain = with("ADD", &[]);
    let traced = [
        ("TRACEPARENT", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("TRACESTATE", "a=b"),
        ("BAGGAGE", "c=d"),
    ];
    assert_eq!(with("ADD", &traced), plain);
}

#[test]
fn text_that_is_no_text_is_named() {
    use std::os::unix::ffi::OsStringExt;
    let variables =
        [("CNI_COMMAND".into(), "ADD".into()), ("CNI_NETNS".into(), OsString::from_vec(vec![b'/', 0xff]))];
    assert_eq!(message(Environment::parse(variables)), "CNI_NETNS is not UTF-8 text");
    // Variables of others may be anything.
    let variables = [
        ("CNI_COMMAND".into(), "VERSION".into()),
        (OsString::from_vec(vec![0xff]), OsString::from_vec(vec![0xff])),
    ];
    assert!(Environment::parse(variables).is_ok());
}

#[test]
fn arguments_are_read() {
    let args = CniArgs::parse(
        "K8S_POD_NAME=a;IP=10.1.0.7/24;K8S_POD_INFRA_CONTAINER_ID=8bc6;K8S_POD_UID=u=1;K8S_POD_NAMESPACE=default;MAC=02-00-5e-10-00-01",
    );
    let args = args.unwrap();
    assert_eq!(args.ip, "10.1.0.7".parse().ok());
    assert_eq!(args.mac, "02:00:5e:10:00:01".parse().ok());
    assert_eq!(args.pod, Some(PodName { namespace: "default".into(), name: "a".into(), uid: "u=1".into() }));
    assert_eq!(CniArgs::parse(""), Ok(CniArgs::default()));
    assert_eq!(CniArgs::parse("IP=;MAC=;IgnoreUnknown=0"), Ok(CniArgs::default()));
}

#[test]
fn unknown_arguments_need_ignore_unknown_anywhere() {
    for good in [
        "IgnoreUnknown=1;FOO=bar",
        "FOO=bar;IgnoreUnknown=true",
        "a=b;IgnoreUnknown=TRUE;ip=x",
        "IgnoreUnknown=1;=;a=",
    ] {
        assert_eq!(CniArgs::parse(good), Ok(CniArgs::default()), "{good}");
    }
    for (bad, named) in [
        ("FOO=bar", r#"unknown args ["FOO=bar"]"#),
        ("FOO=bar;a=b;IgnoreUnknown=0", r#"unknown args ["FOO=bar", "a=b"]"#),
        ("ip=10.1.0.7", r#"unknown args ["ip=10.1.0.7"]"#),
        ("FOO", r#"not a pair K=V: "FOO""#),
        ("IP=10.1.0.7;", r#"not a pair K=V: """#),
        ("IgnoreUnknown=2", r#"expected 1, true, 0 or false: "IgnoreUnknown=2""#),
        ("IgnoreUnknown=1;IP=10.1.0", r#"not an IP address: "IP=10.1.0""#),
        ("IP=10.1.0.7/33", r#"not an IP address: "IP=10.1.0.7/33""#),
        ("MAC=01:00:5e:10:00:01", r#"not a unicast MAC address: "MAC=01:00:5e:10:00:01""#),
        ("MAC=00:00:00:00:00:00", "not a unicast MAC address"),
        ("MAC=2", "not a unicast MAC address"),
    ] {
        let error = CniArgs::parse(bad).unwrap_err();
        assert_eq!(error.code, code::INVALID_ENVIRONMENT, "{bad}");
        assert!(error.msg.starts_with("CNI_ARGS: ") && error.msg.contains(named), "{bad}: {error}");
    }
}

#[test]
fn bad_arguments_stop_add_but_no_removal() {
    for (verb, stopped) in [("ADD", true), ("CHECK", true), ("DEL", false), ("GC", false), ("STATUS", false)]
    {
        assert_eq!(with(verb, &[("CNI_ARGS", "FOO=bar")]).is_err(), stopped, "{verb}");
    }
}

proptest::proptest! {
    #[test]
    fn no_arguments_panic(text in "([A-Za-z0-9_]*=?[^;]{0,20};?){0,5}") {
        let _ = CniArgs::parse(&text);
        let _ = with("ADD", &[("CNI_ARGS", &text), ("CNI_IFNAME", &text), ("CNI_CONTAINERID", &text)]);
    }
}
