use super::*;

/// What a real API server of Kubernetes 1.36 answered.
const LIST: &str = include_str!("../../../../../netns-tests/tests/kubernetes-1.36/list-nodes.json");
const WATCH: &str = include_str!("../../../../../netns-tests/tests/kubernetes-1.36/watch-nodes.jsonl");
const INITIAL: &str =
    include_str!("../../../../../netns-tests/tests/kubernetes-1.36/watch-initial-events.jsonl");
const PATCHED: &str = include_str!("../../../../../netns-tests/tests/kubernetes-1.36/patch-annotations.json");
const CONFLICT: &str =
    include_str!("../../../../../netns-tests/tests/kubernetes-1.36/error-409-conflict.json");

#[test]
fn a_real_list_is_read() {
    let page = page(LIST.as_bytes()).unwrap();
    assert_eq!((page.version.as_str(), page.next), ("226", None));
    let names: Vec<&str> = page.nodes.iter().map(|node| node.metadata.name.as_str()).collect();
    assert_eq!(names, ["node-1", "node-2", "node-3"]);
    let [first, _, third] = page.nodes.as_slice() else { panic!("three nodes") };
    assert_eq!(first.pod_cidrs().collect::<Vec<_>>(), ["10.244.1.0/24", "fd00:10:244:1::/64"]);
    assert_eq!(first.metadata.uid, "194fc8be-1aa7-44d4-af63-ea710a448853");
    assert_eq!(first.created(), 1_795_224_165);
    let addresses: Vec<_> =
        first.status.addresses.iter().map(|a| (a.kind.as_str(), a.address.as_str())).collect();
    assert_eq!(addresses, [("InternalIP", "172.30.0.1"), ("InternalIP", "fd99::1"), ("Hostname", "node-1")]);
    let condition = first.status.network_unavailable.as_ref().unwrap();
    assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("False", "PodwireReady"));
    assert_eq!(condition.since, "2026-11-21T00:00:00Z");
    assert_eq!(third.status.network_unavailable, None);
    assert_eq!(third.metadata.annotations.public_ip.as_deref(), Some("172.30.0.3"));
    assert_eq!(third.metadata.annotations.kube_subnet_manager.as_deref(), Some("true"));
    assert_eq!(&node(PATCHED.as_bytes()).unwrap(), third);
}

#[test]
fn real_watches_are_read() {
    let told: Vec<String> = WATCH
        .lines()
        .map(|line| match change(line.as_bytes()).unwrap() {
            Change::Put(node, version) => format!("+{}@{version}", node.metadata.name),
            Change::Deleted(name, version) => format!("-{name}@{version}"),
            Change::Bookmark { version, is_initial_end } => format!("={version} {is_initial_end}"),
            Change::Refused(refusal) => format!("!{}", refusal.code),
        })
        .collect();
    assert_eq!(told.first().map(String::as_str), Some("=1 true"));
    assert!(told.contains(&"+node-1@226".to_owned()) && told.contains(&"-node-2@227".to_owned()), "{told:?}");
    let initial: Vec<Change> = INITIAL.lines().map(|line| change(line.as_bytes()).unwrap()).collect();
    let [Change::Put(..), Change::Put(..), Change::Bookmark { is_initial_end: true, .. }] =
        initial.as_slice()
    else {
        panic!("{initial:?}")
    };
}

#[test]
fn the_end_of_a_watch_is_read() {
    let line = r#"{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure",
        "message":"too old resource version: 1 (226)","reason":"Expired","code":410}}"#;
    let Change::Refused(refusal) = change(line.as_bytes()).unwrap() else { panic!() };
    assert_eq!((refusal.code, refusal.reason.as_str()), (410, "Expired"));
    let refusal: Refusal = serde_json::from_str(CONFLICT).unwrap();
    assert_eq!((refusal.code, refusal.reason.as_str()), (409, "Conflict"));
}

#[test]
fn what_is_no_change_is_an_error() {
    for line in [
        "",
        "{}",
        "null",
        r#"{"type":"MOVED","object":{}}"#,
        r#"{"type":"ADDED","object":[]}"#,
        "{\"type\":\"AD",
    ] {
        assert!(change(line.as_bytes()).is_err(), "{line}");
    }
    assert!(page(b"{}").is_err());
    assert!(change(r#"{"type":"ADDED","object":"#.repeat(60_000).as_bytes()).is_err());
}

#[test]
fn lines_are_cut_wherever_they_are_torn() {
    let whole = WATCH.as_bytes();
    let expected: Vec<&[u8]> = WATCH.lines().map(str::as_bytes).collect();
    for size in [1, 7, 100, 4096, whole.len()] {
        let (mut lines, mut found) = (Lines::default(), Vec::new());
        for chunk in whole.chunks(size) {
            assert!(lines.feed(chunk, |line| found.push(line.to_vec())));
        }
        assert_eq!(found, expected, "{size}");
    }
}

#[test]
fn a_line_without_end_is_given_up() {
    let mut lines = Lines::default();
    let data = vec![b'x'; 1 << 20];
    let fed = (0..20).take_while(|_| lines.feed(&data, |_| panic!("there is no line"))).count();
    assert_eq!(fed, LARGEST_LINE >> 20);
}
