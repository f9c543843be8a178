//! The tests' API server against what a real Kubernetes 1.36 answered (`tests/kubernetes-1.36`), and what else its clients
//! rely on: versions, pages, watches, refusals.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use podwire_netns_tests::apiserver::{
    ADMIN_TOKEN, AGENT_TOKEN, Account, ApiServer, Fault, Kind, NodeSpec, ServerOptions,
};
use podwire_netns_tests::{LIMIT, LabError, Netns, Result, finish, program};
use serde_json::{Value, json};

const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const NODES: &str = "/api/v1/nodes";

/// A client that says who it is, and asks one thing with each connection.
struct Client<'a> {
    server: &'a ApiServer,
    token: Option<&'a str>,
}

impl<'a> Client<'a> {
    fn admin(server: &'a ApiServer) -> Self {
        Self { server, token: Some(ADMIN_TOKEN) }
    }

    fn send(&self, method: &str, path: &str, content_type: &str, body: &str) -> Result<BufReader<TcpStream>> {
        let mut stream = TcpStream::connect(self.server.address()).map_err(LabError::because("connect"))?;
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .map_err(LabError::because("set a connection's timeout"))?;
        let authorization =
            self.token.map_or_else(String::new, |token| format!("Authorization: Bearer {token}\r\n"));
        // HTTP/1.0: the answer ends with the connection and is in one piece.
        let head = format!(
            "{method} {path} HTTP/1.0\r\n{authorization}Content-Type: {content_type}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + body).as_bytes()).map_err(LabError::because("send a request"))?;
        Ok(BufReader::new(stream))
    }

    fn ask_as(&self, method: &str, path: &str, content_type: &str, body: &str) -> Result<(u16, Value)> {
        let mut reader = self.send(method, path, content_type, body)?;
        let code = read_head(&mut reader)?;
        let mut text = Vec::new();
        reader.read_to_end(&mut text).map_err(LabError::because("read an answer"))?;
        let value = serde_json::from_slice(&text).map_err(LabError::because("read an answer's JSON"))?;
        Ok((code, value))
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Result<(u16, Value)> {
        self.ask_as(method, path, "application/json", &body.to_string())
    }

    fn look(&self, path: &str) -> Result<(u16, Value)> {
        self.ask_as("GET", path, "", "")
    }

    fn patch(&self, format: &str, path: &str, patch: &Value) -> Result<(u16, Value)> {
        self.ask_as("PATCH", path, format, &patch.to_string())
    }

    /// Begins a watch.
    fn watch(&self, query: &str) -> Result<Watch> {
        let mut reader = self.send("GET", &format!("{NODES}?watch=true&{query}"), "", "")?;
        match read_head(&mut reader)? {
            200 => Ok(Watch(reader)),
            code => Err(LabError::new(format!("a watch was answered with {code}"))),
        }
    }
}

fn read_head(reader: &mut BufReader<TcpStream>) -> Result<u16> {
    let mut first = String::new();
    let mut line = String::new();
    reader.read_line(&mut first).map_err(LabError::because("read an answer"))?;
    while line != "\r\n" {
        line.clear();
        if reader.read_line(&mut line).map_err(LabError::because("read an answer"))? == 0 {
            return Err(LabError::new("the answer ended in its head"));
        }
    }
    let code = first.split(' ').nth(1).and_then(|code| code.parse().ok());
    code.ok_or_else(|| LabError::new(format!("no HTTP answer: {first}")))
}

/// Lines of a watch.
struct Watch(BufReader<TcpStream>);

impl Watch {
    /// The next line; `None` at the end.
    fn next(&mut self) -> Result<Option<Value>> {
        let mut line = String::new();
        self.0.read_line(&mut line).map_err(LabError::because("read a watch"))?;
        if line.is_empty() {
            return Ok(None);
        }
        serde_json::from_str(&line).map(Some).map_err(LabError::because(format!("read the line {line:?}")))
    }

    fn rest(mut self) -> Result<Vec<Value>> {
        let mut all = Vec::new();
        while let Some(line) = self.next()? {
            all.push(line);
        }
        Ok(all)
    }

    /// The next lines, short: what happened, to whom, in which version.
    fn short(&mut self, count: usize) -> Result<Vec<String>> {
        (0..count).map(|_| Ok(short(&self.next()?.unwrap_or_default()))).collect()
    }
}

fn short(line: &Value) -> String {
    let metadata = &line["object"]["metadata"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let words = [text(&line["type"]), text(&metadata["name"]), text(&metadata["resourceVersion"])];
    words.iter().filter(|word| !word.is_empty()).cloned().collect::<Vec<_>>().join(" ")
}

fn recorded(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/kubernetes-1.36").join(name);
    read(&path)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}

/// The first change was recorded with this version, and is 2 here.
const FIRST_RECORDED: u64 = 219;

/// Makes comparable what differs between two runs of the same requests: versions, uids, times of creation. The recorded
/// server also says who wrote which field.
fn normal(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("managedFields");
            for (name, field) in fields {
                let text = field.as_str().unwrap_or_default();
                match name.as_str() {
                    "uid" => *field = json!(text.split('-').map(str::len).collect::<Vec<_>>()),
                    "creationTimestamp" => *field = json!(text.replace(|c: char| c.is_ascii_digit(), "0")),
                    "resourceVersion" => {
                        let version: u64 = text.parse().expect("a version is a number");
                        let since = version.checked_sub(FIRST_RECORDED).map_or(version, |since| since + 2);
                        *field = json!(since);
                    }
                    _ => normal(field),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(normal),
        _ => {}
    }
}

#[track_caller]
fn assert_as_recorded(name: &str, (_, mut answer): (u16, Value)) {
    let mut expected: Value = serde_json::from_str(&recorded(name)).expect("a recorded answer is JSON");
    normal(&mut expected);
    normal(&mut answer);
    assert_eq!(answer, expected, "{name}");
}

#[track_caller]
fn assert_lines_as_recorded(name: &str, lines: Vec<Value>) {
    let text = recorded(name);
    let expected = text.lines().filter(|line| !line.is_empty());
    let mut expected: Vec<Value> =
        expected.map(|line| serde_json::from_str(line).expect("a recorded line is JSON")).collect();
    let mut lines = lines;
    expected.iter_mut().for_each(normal);
    lines.iter_mut().for_each(normal);
    let shorts = |lines: &[Value]| lines.iter().map(short).collect::<Vec<_>>();
    assert_eq!(lines, expected, "{name}: {:?} instead of {:?}", shorts(&lines), shorts(&expected));
}

#[test]
fn answers_have_the_shapes_of_a_recorded_server() -> Result<()> {
    let server = ApiServer::start(&ServerOptions::default())?;
    let admin = Client::admin(&server);
    let all = admin.watch(
        "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=2",
    )?;
    let object = |number: u8| {
        let name = format!("node-{number}");
        json!({
            "kind": "Node", "apiVersion": "v1",
            "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
            "spec": { "podCIDRs": [format!("10.244.{number}.0/24"), format!("fd00:10:244:{number}::/64")] },
        })
    };
    for number in 1..=3 {
        let created = admin.ask("POST", NODES, &object(number))?;
        assert_eq!(created.0, 201);
        assert_as_recorded(&format!("create-node-{number}.json"), created);
        let addresses = json!({ "status": { "addresses": [
            { "type": "InternalIP", "address": format!("172.30.0.{number}") },
            { "type": "InternalIP", "address": format!("fd99::{number}") },
            { "type": "Hostname", "address": format!("node-{number}") },
        ] } });
        assert_eq!(admin.patch(MERGE, &format!("{NODES}/node-{number}/status"), &addresses)?.0, 200);
    }
    let flannel = json!({ "metadata": { "annotations": {
        "flannel.alpha.coreos.com/backend-data": "{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:00:0c\"}",
        "flannel.alpha.coreos.com/backend-type": "vxlan",
        "flannel.alpha.coreos.com/kube-subnet-manager": "true",
        "flannel.alpha.coreos.com/public-ip": "172.30.0.3",
    } } });
    assert_as_recorded("patch-annotations.json", admin.patch(MERGE, &format!("{NODES}/node-3"), &flannel)?);
    let condition = json!({ "status": { "conditions": [{
        "type": "NetworkUnavailable", "status": "False", "reason": "PodwireReady",
        "message": "podwire is running on this node",
        "lastHeartbeatTime": "2026-11-21T00:00:00Z", "lastTransitionTime": "2026-11-21T00:00:00Z",
    }] } });
    assert_as_recorded(
        "patch-condition.json",
        admin.patch(STRATEGIC, &format!("{NODES}/node-1/status"), &condition)?,
    );
    assert_as_recorded("list-nodes.json", admin.look(NODES)?);
    let from_one = admin.watch("resourceVersion=1&allowWatchBookmarks=true&timeoutSeconds=1")?;
    assert_lines_as_recorded("watch-from-rv-1.jsonl", from_one.rest()?);

    assert_as_recorded("error-401.json", Client { server: &server, token: Some("wrong") }.look(NODES)?);
    assert_as_recorded("error-403-anonymous.json", Client { server: &server, token: None }.look(NODES)?);
    assert_as_recorded("error-404.json", admin.look(&format!("{NODES}/absent"))?);
    assert_as_recorded("error-409-already-exists.json", admin.ask("POST", NODES, &object(3))?);
    let (_, mut node) = admin.look(&format!("{NODES}/node-1"))?;
    node["metadata"]["resourceVersion"] = json!("2");
    assert_as_recorded("error-409-conflict.json", admin.ask("PUT", &format!("{NODES}/node-1"), &node)?);
    let other = json!({ "spec": { "podCIDR": "10.244.9.0/24", "podCIDRs": ["10.244.9.0/24", "fd00:10:244:1::/64"] } });
    let refused = admin.patch(MERGE, &format!("{NODES}/node-1"), &other)?;
    assert_as_recorded("error-422-podcidr-immutable.json", refused);

    assert_as_recorded("delete-node-2.json", admin.ask("DELETE", &format!("{NODES}/node-2"), &json!({}))?);
    assert_lines_as_recorded("watch-nodes.jsonl", all.rest()?);
    let initial = admin.watch(
        "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1",
    )?;
    assert_lines_as_recorded("watch-initial-events.jsonl", initial.rest()?);
    Ok(())
}

fn with_nodes(count: usize, options: &ServerOptions) -> Result<ApiServer> {
    let server = ApiServer::start(options)?;
    for number in 0..count {
        server.create_node(&NodeSpec::new(&format!("node-{number}")))?;
    }
    Ok(server)
}

#[test]
fn pages_are_of_one_version() -> Result<()> {
    let server = with_nodes(5, &ServerOptions::default())?;
    let admin = Client::admin(&server);
    let (_, first) = admin.look(&format!("{NODES}?limit=2"))?;
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    // What changes between pages is in none of them.
    server.delete_node("node-2")?;
    server.create_node(&NodeSpec::new("node-9"))?;
    let mut names = Vec::new();
    let mut page = first;
    loop {
        names.extend(
            page["items"].as_array().into_iter().flatten().map(|node| node["metadata"]["name"].clone()),
        );
        assert_eq!(page["metadata"]["resourceVersion"], "6");
        let Some(token) = page["metadata"]["continue"].as_str() else { break };
        page = admin.look(&format!("{NODES}?limit=2&continue={token}"))?.1;
    }
    assert_eq!(names, ["node-0", "node-1", "node-2", "node-3", "node-4"]);
    let (_, first) = admin.look(&format!("{NODES}?limit=2"))?;
    server.compact();
    let token = first["metadata"]["continue"].as_str().unwrap_or_default();
    let (code, gone) = admin.look(&format!("{NODES}?limit=2&continue={token}"))?;
    assert_eq!((code, &gone["reason"]), (410, &json!("Expired")));
    // Whatever is at hand comes whole.
    let (_, whole) = admin.look(&format!("{NODES}?limit=2&resourceVersion=0"))?;
    assert_eq!(whole["items"].as_array().map(Vec::len), Some(5));
    Ok(())
}

#[test]
fn watches_go_on_from_any_version_that_is_known() -> Result<()> {
    let server =
        with_nodes(2, &ServerOptions { bookmarks: Duration::from_millis(50), ..ServerOptions::default() })?;
    let admin = Client::admin(&server);
    let mut open = admin.watch("resourceVersion=2&allowWatchBookmarks=true")?;
    assert_eq!(open.short(2)?, ["ADDED node-1 3", "BOOKMARK 3"]);
    let mut one = admin.watch("fieldSelector=metadata.name%3Dnode-1&resourceVersion=3")?;
    server.patch_node("node-0", &json!({ "metadata": { "labels": { "a": "b" } } }))?;
    server.patch_node("node-1", &json!({ "metadata": { "labels": { "a": "b" } } }))?;
    // What changes nothing is no change.
    server.patch_node("node-1", &json!({ "metadata": { "labels": { "a": "b" } } }))?;
    server.delete_node("node-1")?;
    assert_eq!(one.short(2)?, ["MODIFIED node-1 5", "DELETED node-1 6"]);
    server.compact();
    let lines = admin.watch("resourceVersion=5")?.rest()?;
    let expected = json!([{ "type": "ERROR", "object": {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "too old resource version: 5 (7)", "reason": "Expired", "code": 410,
    } }]);
    assert_eq!(Value::Array(lines), expected);
    // Those that were open go on.
    server.create_node(&NodeSpec::new("node-1"))?;
    while let Some(line) = one.next()? {
        if short(&line) == "ADDED node-1 8" {
            return Ok(());
        }
    }
    Err(LabError::new("an open watch did not outlive a compaction"))
}

#[test]
fn a_server_that_offers_no_streaming_lists_says_so() -> Result<()> {
    let server = with_nodes(1, &ServerOptions { streaming_lists: false, ..ServerOptions::default() })?;
    let query =
        "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let (code, answer) = Client::admin(&server).look(&format!("{NODES}?{query}"))?;
    let why = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
    assert_eq!(code, 422);
    assert_eq!(
        answer["message"],
        format!("ListOptions.meta.k8s.io \"\" is invalid: sendInitialEvents: Forbidden: {why}")
    );
    Ok(())
}

#[test]
fn the_status_is_a_resource_of_its_own() -> Result<()> {
    let server = with_nodes(1, &ServerOptions::default())?;
    let admin = Client::admin(&server);
    let patch = json!({
        "metadata": { "annotations": { "a": "1" } },
        "spec": { "unschedulable": true },
        "status": { "phase": "Running" },
    });
    let (_, node) = admin.patch(MERGE, &format!("{NODES}/node-0/status"), &patch)?;
    assert_eq!(node["spec"]["unschedulable"], Value::Null, "/status keeps the spec");
    assert_eq!(node["status"]["phase"], "Running");
    assert_eq!(node["metadata"]["annotations"]["a"], "1", "/status of a Node takes its metadata");
    let patch = json!({ "spec": { "unschedulable": true }, "status": { "phase": "Pending" } });
    let (_, node) = admin.patch(MERGE, &format!("{NODES}/node-0"), &patch)?;
    assert_eq!(node["spec"]["unschedulable"], true);
    assert_eq!(node["status"]["phase"], "Running", "the main resource keeps the status");
    Ok(())
}

#[test]
fn accounts_may_do_what_their_rules_say() -> Result<()> {
    let server = with_nodes(2, &ServerOptions::default())?;
    server.admit("bound", Account::agent().bound_to("node-0"));
    let agent = Client { server: &server, token: Some("bound") };
    let annotation = json!({ "metadata": { "annotations": { "a": "1" } } });
    assert_eq!(agent.patch(MERGE, &format!("{NODES}/node-0"), &annotation)?.0, 200);
    for path in ["node-1", "node-1/status"] {
        let (code, denied) = agent.patch(MERGE, &format!("{NODES}/{path}"), &annotation)?;
        assert_eq!((code, &denied["reason"]), (422, &json!("Invalid")), "{denied}");
    }
    let (code, refused) = agent.ask("DELETE", &format!("{NODES}/node-0"), &json!({}))?;
    assert_eq!(code, 403);
    assert_eq!(
        refused["message"],
        "nodes \"node-0\" is forbidden: User \"system:serviceaccount:podwire-system:podwire\" cannot delete resource \
         \"nodes\" in API group \"\" at the cluster scope"
    );
    let (code, refused) = agent.look("/apis/apps/v1/namespaces/kube-flannel/daemonsets")?;
    assert_eq!(code, 403);
    assert_eq!(
        refused["message"],
        "daemonsets.apps is forbidden: User \"system:serviceaccount:podwire-system:podwire\" cannot list resource \
         \"daemonsets\" in API group \"apps\" in the namespace \"kube-flannel\""
    );
    server.rotate(AGENT_TOKEN, "next");
    assert_eq!(Client { server: &server, token: Some(AGENT_TOKEN) }.look(NODES)?.0, 401);
    assert_eq!(Client { server: &server, token: Some("next") }.look(NODES)?.0, 200);
    Ok(())
}

#[test]
fn objects_that_make_no_sense_are_refused() -> Result<()> {
    let server = with_nodes(1, &ServerOptions::default())?;
    let admin = Client::admin(&server);
    let check = |path: &str, patch: Value, code: u16, message: &str| -> Result<()> {
        let (found, answer) = admin.patch(MERGE, &format!("{NODES}/{path}"), &patch)?;
        assert_eq!(found, code, "{answer}");
        assert!(answer["message"].as_str().unwrap_or_default().contains(message), "{answer}");
        Ok(())
    };
    let huge = "x".repeat(256 << 10);
    check(
        "node-0",
        json!({ "metadata": { "annotations": { "a": huge } } }),
        422,
        "metadata.annotations: Too long: may not be more than 262144 bytes",
    )?;
    check("node-0", json!({ "metadata": { "uid": "another" } }), 422, "metadata.uid: Invalid value")?;
    check("node-0", json!({ "metadata": { "annotations": { "a": 1 } } }), 422, "patch: Invalid value")?;
    check(
        "node-0",
        json!({ "spec": { "podCIDRs": ["10.0.0.0/24", "10.1.0.0/24"] } }),
        422,
        "each IP family",
    )?;
    check("node-0", json!({ "metadata": { "resourceVersion": "1" } }), 409, "the object has been modified")?;
    let (code, _) = admin.patch("application/json-patch+json", &format!("{NODES}/node-0"), &json!([]))?;
    assert_eq!(code, 415);
    Ok(())
}

#[test]
fn events_are_served_by_both_groups() -> Result<()> {
    let server = with_nodes(1, &ServerOptions::default())?;
    let agent = Client { server: &server, token: Some(AGENT_TOKEN) };
    let path = "/apis/events.k8s.io/v1/namespaces/default/events";
    let event = json!({
        "kind": "Event", "apiVersion": "events.k8s.io/v1",
        "metadata": { "name": "node-0.1" }, "eventTime": "2026-11-21T00:00:00.000000Z",
        "regarding": { "kind": "Node", "name": "node-0", "uid": "1" },
        "reason": "PodwireReady", "action": "Report", "type": "Normal", "note": "ready",
        "reportingController": "podwire", "reportingInstance": "node-0",
    });
    let (code, created) = agent.ask("POST", path, &event)?;
    assert_eq!((code, &created["note"]), (201, &json!("ready")), "{created}");
    let series = json!({ "series": { "count": 2, "lastObservedTime": "2026-11-21T00:00:01.000000Z" } });
    assert_eq!(agent.patch(MERGE, &format!("{path}/node-0.1"), &series)?.1["series"]["count"], 2);
    let kept = server.events();
    assert_eq!(kept[0]["message"], "ready");
    assert_eq!(kept[0]["involvedObject"]["name"], "node-0");
    let about = "fieldSelector=involvedObject.name%3Dnode-0";
    let (_, list) = Client::admin(&server).look(&format!("/api/v1/namespaces/default/events?{about}"))?;
    assert_eq!(list["items"].as_array().map(Vec::len), Some(1));
    // What the real server refuses of events.
    for (field, value) in
        [("note", json!("x".repeat(1025))), ("type", json!("Error")), ("eventTime", Value::Null)]
    {
        let mut wrong = event.clone();
        wrong["metadata"]["name"] = json!("wrong");
        wrong[field] = value;
        let (code, answer) = agent.ask("POST", path, &wrong)?;
        assert_eq!(code, 422, "{field}: {answer}");
    }
    Ok(())
}

#[test]
fn pods_are_found_by_their_node() -> Result<()> {
    let server = ApiServer::start(&ServerOptions::default())?;
    for (name, node) in [("a", "node-1"), ("b", "node-2")] {
        let pod = json!({ "metadata": { "namespace": "web", "name": name }, "spec": {
            "nodeName": node, "containers": [{ "name": "c", "image": "i" }],
        } });
        server.create(Kind::Pod, pod)?;
    }
    let (_, list) = Client::admin(&server).look("/api/v1/pods?fieldSelector=spec.nodeName%3Dnode-2")?;
    let names: Vec<_> =
        list["items"].as_array().into_iter().flatten().map(|pod| &pod["metadata"]["name"]).collect();
    assert_eq!(names, ["b"]);
    Ok(())
}

#[test]
fn faults_come_and_go() -> Result<()> {
    let server = with_nodes(50, &ServerOptions::default())?;
    let admin = Client::admin(&server);
    let mut watch = admin.watch("resourceVersion=51")?;
    server.set_fault(Fault::Fail(500));
    let (code, answer) = admin.look(NODES)?;
    assert_eq!((code, &answer["reason"]), (500, &json!("InternalError")));
    server.set_fault(Fault::Cut);
    assert!(admin.look(NODES).is_err(), "half an answer is no answer");
    server.create_node(&NodeSpec::new("half"))?;
    assert!(watch.next().is_err(), "half a line is no line");
    server.set_fault(Fault::Slow(Duration::from_millis(200)));
    assert_eq!(admin.look(NODES)?.1["items"].as_array().map(Vec::len), Some(51));
    server.set_fault(Fault::None);
    let mut watch = admin.watch("resourceVersion=52")?;
    server.set_fault(Fault::Refuse);
    assert!(TcpStream::connect(server.address()).is_err(), "nobody listens");
    assert!(!matches!(watch.next(), Ok(Some(_))), "all connections are gone");
    server.set_fault(Fault::Silent);
    let mut late = admin.send("GET", NODES, "", "")?;
    server.set_fault(Fault::None);
    assert_eq!(read_head(&mut late)?, 200);
    assert_eq!(admin.look(NODES)?.0, 200);
    Ok(())
}

#[test]
fn a_server_listens_in_the_namespace_that_it_is_given() -> Result<()> {
    let network = Netns::create()?;
    let up = network.run(|| {
        finish(program("ip").args(["link", "set", "lo", "up"]).spawn()?, b"", Instant::now(), LIMIT)
            .map_err(std::io::Error::other)
    })?;
    up.map_err(LabError::because("run ip"))?.success("ip link set lo up")?;
    let options = ServerOptions { network: Some(Arc::new(network.try_clone()?)), ..ServerOptions::default() };
    let server = ApiServer::start(&options)?;
    let connects = || network.run(|| TcpStream::connect(server.address()).is_ok());
    assert!(connects()? && TcpStream::connect(server.address()).is_err());
    server.set_fault(Fault::Refuse);
    assert!(!connects()?);
    server.set_fault(Fault::None);
    assert!(connects()? && TcpStream::connect(server.address()).is_err());
    Ok(())
}

#[test]
fn heartbeats_change_every_node_and_nothing_else() -> Result<()> {
    let server = ApiServer::start(&ServerOptions::default())?;
    for number in 0..20 {
        server.create_node(&NodeSpec::new(&format!("node-{number:02}")).sized())?;
    }
    let size = server.node("node-00").unwrap_or_default().to_string().len();
    assert!((8 << 10..14 << 10).contains(&size), "a Node has {size} bytes");
    let mut watch = Client::admin(&server).watch(&format!("resourceVersion={}", server.version()))?;
    server.heartbeats(Some(Duration::from_millis(200)));
    let mut beaten: Vec<_> = (0..20)
        .map(|_| Ok(watch.next()?.unwrap_or_default()["object"]["metadata"]["name"].to_string()))
        .collect::<Result<_>>()?;
    server.heartbeats(None);
    beaten.sort();
    beaten.dedup();
    assert_eq!(beaten.len(), 20);
    assert_eq!(server.condition("node-00", "Ready").unwrap_or_default()["status"], "True");
    Ok(())
}
