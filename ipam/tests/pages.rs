//! Lists that are longer than one message.

use podwire_attach::{Attachment, Owner};
use podwire_ipam::service::{self, Answer, Outcome, SPEAKS};
use podwire_ipam::{Dirs, Engine, Lock, Reserve, Vantage};

/// A request whose caller named a netns of that length.
fn reserve(number: usize, length: usize) -> Reserve {
    let owner = Owner::new(format!("n{}", number % 2), format!("c{number}"), "eth0");
    let attachment = Attachment {
        link: Some(owner.link_name()),
        owner,
        addresses: Vec::new(),
        mac: None,
        bridge: None,
        netns: "x".repeat(length),
        netns_identity: None,
        pod: None,
        runtime: None,
        given: Vec::new(),
        traffic: None,
    };
    Reserve { attachment, sets: Vec::new(), requested: Vec::new(), quarantine_ms: 0, import_dir: None }
}

#[test]
fn a_page_of_leases_fits_a_message_however_long_the_names_in_it_are() {
    let root = tempfile::tempdir().unwrap();
    let dirs = Dirs::new(root.path().join("state"), root.path().join("run"));
    let (lock, _wanted) = Lock::wait(&dirs).unwrap();
    let mut engine = Engine::open(&dirs, lock, Vantage::Runtime).unwrap();
    engine
        .batch(|batch| {
            for number in 0..300 {
                // One that fills a page by itself, many that are far too long, and ordinary ones.
                let length = [20, 9_000, 700_000][usize::from(number % 3 == 0) + usize::from(number == 0)];
                batch.reserve(&reserve(number, length)).unwrap();
            }
        })
        .unwrap();
    for (network, count) in [(None, 300), (Some("n0"), 150), (Some("none"), 0)] {
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let answer = engine.leases(network, after);
            service::frame(&service::response(1, 1, &SPEAKS, Outcome::Ok(answer.clone()))).expect("it fits");
            let Answer::Leases { leases, more } = answer else { panic!("no leases") };
            seen.extend(leases.iter().map(|lease| lease.attachment.owner.id()));
            after = seen.last().copied();
            if !more {
                break;
            }
            assert!(!leases.is_empty());
        }
        assert_eq!(seen.len(), count, "{network:?}");
        assert!(seen.is_sorted());
        seen.dedup();
        assert_eq!(seen.len(), count, "{network:?}");
    }
}
