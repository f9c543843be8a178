//! Containers of podman on a CNI network.

use std::net::IpAddr;

use podwire_netns_tests::network::{conflist, left_behind};
use podwire_netns_tests::podman::Podman;
use podwire_netns_tests::traffic::{Outside, Port, Server};
use podwire_netns_tests::{LIMIT, Lab, Node, Result, wait_for};

#[test]
fn containers_of_podman_reach_each_other_and_leave_nothing() -> Result<()> {
    let node = Lab::new("podman")?.node("n")?;
    node.install_conflist("10-podwire.conflist", &conflist("10-podwire.conflist")?)?;
    let podman = Podman::set_up(&node, "podwire")?;
    let server = ["sh", "-c", "echo $0 > /www/index.html; exec httpd -f -p 80 -h /www"];
    for name in ["a", "b"] {
        podman.start(name, &[server.as_slice(), &[name]].concat())?;
    }
    let addresses = podman.addresses("b")?;
    assert_eq!(addresses.iter().map(IpAddr::is_ipv4).collect::<Vec<_>>(), [true, false], "{addresses:?}");
    for address in &addresses {
        podman.exec("a", &["ping", "-c", "2", "-i", "0.2", "-W", "2", &address.to_string()])?;
        let url = match address {
            IpAddr::V4(address) => format!("http://{address}/"),
            IpAddr::V6(address) => format!("http://[{address}]/"),
        };
        let page = podman.exec("a", &["timeout", "10", "wget", "-q", "-O", "-", &url])?;
        assert_eq!(page.trim(), "b");
    }
    for name in ["a", "b"] {
        podman.remove(name)?;
    }
    assert_eq!(left_behind(&node, "podwire", "podwire0")?, [""; 0]);
    Ok(())
}

/// A page of a container's web server, fetched in a network namespace of the node or, for "", on the node itself.
fn fetch(node: &Node, from: &str, url: &str) -> Result<String> {
    let wget = ["timeout", "3", "busybox", "wget", "-q", "-O", "-", url];
    let words =
        if from.is_empty() { wget.to_vec() } else { [&["ip", "netns", "exec", from], &wget[..]].concat() };
    let done = node.run(words[0], &words[1..])?.success(&format!("fetch {url} from {from:?}"))?;
    Ok(done.out().trim().to_owned())
}

/// The same from a web server that has just been started.
fn fetch_soon(node: &Node, from: &str, url: &str) -> Result<String> {
    let mut page = fetch(node, from, url);
    wait_for(LIMIT, || {
        if page.is_err() {
            page = fetch(node, from, url);
        }
        page.is_ok()
    });
    page
}

#[test]
fn published_ports_of_podman_lead_to_its_containers() -> Result<()> {
    let node = Lab::new("publish")?.node("n")?;
    node.install_conflist("10-podwire.conflist", &conflist("10-podwire.conflist")?)?;
    let outside = Outside::link_to(&node)?;
    let podman = Podman::set_up(&node, "podwire")?;
    let server = ["sh", "-c", "hostname > /www/index.html; exec httpd -f -p 80 -h /www"];
    let published = ["--publish=18080:80", "--publish=127.0.0.1:18081:80/tcp", "--hostname=web"];
    podman.start_with("web", &published, &server)?;
    let [first, _, six] = Outside::NODE;
    let all = [format!("http://{first}:18080/"), format!("http://[{six}]:18080/")];
    for url in &all {
        assert_eq!(fetch_soon(&node, "outside", url)?, "web", "{url} from outside");
        assert_eq!(fetch(&node, "", url)?, "web", "{url} from the node");
        let itself = podman.exec("web", &["timeout", "3", "wget", "-q", "-O", "-", url])?;
        assert_eq!(itself.trim(), "web", "{url} from the container itself");
    }
    assert_eq!(fetch(&node, "", "http://127.0.0.1:18080/")?, "web");
    assert_eq!(fetch(&node, "", "http://127.0.0.1:18081/")?, "web");
    assert!(fetch(&node, "outside", &format!("http://{first}:18081/")).is_err());

    // Out of the container as the node.
    let _listener = Server::start(&outside, Port::tcp([0; 4], 7000))?;
    let said =
        podman.exec("web", &["sh", "-c", &format!("echo | timeout 3 nc {} 7000", Outside::HOST[0])])?;
    assert!(said.starts_with(&format!("outside {first}:")), "what outside says that it sees: {said:?}");

    // Stopped and started, it has its ports again: podman holds them itself meanwhile.
    podman.podman(&["restart", "--time", "0", "web"])?;
    assert_eq!(fetch_soon(&node, "outside", &all[0])?, "web", "after a restart");
    podman.remove("web")?;
    assert!(fetch(&node, "outside", &all[0]).is_err(), "a port of a container that is gone");
    let mut left = left_behind(&node, "podwire", "podwire0")?;
    left.retain(|what| what != "link uplink" && what != "/run/netns/outside");
    assert_eq!(left, [""; 0]);
    Ok(())
}
