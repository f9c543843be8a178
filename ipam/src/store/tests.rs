//! What stores of earlier versions say.

use podwire_attach::Role;

use super::codec;
use crate::{Change, Lease, LeaseState, Origin, Pool};

/// As podwire and podwire-ipam wrote them before leases told of a pod's traffic.
const BEFORE_TRAFFIC: [&str; 2] = [
    r#"{"attachment":{"owner":{"network":"net","container":"c1","ifname":"eth0"},"addresses":[{"address":"10.9.0.2/24","gateway":"10.9.0.1"},{"address":"fd00:9::2/64","gateway":"fd00:9::1"}],"mac":null,"link":"pwfbeb4bcb178e1","bridge":"br0","netns":"/run/netns/p1","netns_identity":null,"pod":{"namespace":"default","name":"web-0","uid":"1b2c"},"runtime":"bash"},"state":"attached","origin":"add","generation":1,"boot_id":"7f84e977-b88c-4655-a9df-679091f48996"}"#,
    r#"{"attachment":{"owner":{"network":"net","container":"c2","ifname":"eth1"},"addresses":[{"address":"10.9.0.3/24","gateway":"10.9.0.1"},{"address":"fd00:9::3/64","gateway":"fd00:9::1"}],"mac":null,"link":null,"bridge":null,"netns":"/run/netns/p1","netns_identity":{"device":4,"inode":4026532524,"ctime_ns":1795243273075342855,"cookie":170203},"pod":null,"runtime":"bash"},"state":"reserved","origin":"add","generation":2,"boot_id":"7f84e977-b88c-4655-a9df-679091f48996"}"#,
];

#[test]
fn leases_of_the_version_before_traffic_are_read_and_written_as_they_were() {
    let mut pool = Pool::default();
    for text in BEFORE_TRAFFIC {
        let lease: Lease = serde_json::from_str(text).unwrap();
        let id = lease.attachment.owner.id();
        let change = codec::read_owner(id.as_bytes(), text.as_bytes()).expect("a lease");
        let write = codec::write(&change);
        assert_eq!(
            (write.key.as_slice(), write.value.as_deref()),
            (&id.as_bytes()[..], Some(text.as_bytes()))
        );
        pool.apply(change);
    }
    let main = pool.leases().find(|lease| lease.attachment.owner.container == "c1").expect("it was read");
    assert_eq!((main.state, main.origin), (LeaseState::Attached, Origin::Add));
    assert_eq!(main.attachment.link.as_deref(), Some(main.attachment.owner.link_name().as_str()));
    for lease in pool.leases() {
        assert_eq!(lease.attachment.owner.role, Role::Main);
        // Unknown, and not nothing: rules of such a pod may be there.
        assert_eq!((lease.attachment.traffic.as_ref(), lease.attachment.given.len()), (None, 0));
        assert_eq!(lease.ports().count(), 0);
    }
}

#[test]
fn what_a_lease_says_of_traffic_is_read_again() {
    let text = BEFORE_TRAFFIC[0].replace(
        r#""runtime":"bash""#,
        r#""runtime":"bash","given":[{"address":"10.9.0.9/24","gateway":null}],"traffic":{"device":"br0","ports":[{"protocol":"udp","host_ip":"::","host_port":53,"container_port":5353}]}"#,
    );
    let lease: Lease = serde_json::from_str(&text).unwrap();
    assert_eq!(lease.ports().map(|port| port.to_string()).collect::<Vec<_>>(), ["[::]:53/udp"]);
    let id = lease.attachment.owner.id();
    let write = codec::write(&Change::PutLease(Box::new(lease.clone())));
    let again = codec::read_owner(id.as_bytes(), &write.value.expect("it is put"));
    assert_eq!(again, Some(Change::PutLease(Box::new(lease))));
}
