//! Containers of podman on a CNI network.

use std::net::IpAddr;

use podwire_netns_tests::network::{conflist, left_behind};
use podwire_netns_tests::podman::Podman;
use podwire_netns_tests::{Lab, Result};

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
