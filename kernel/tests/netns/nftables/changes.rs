//! What nftables tells by itself.

use std::time::Duration;

use podwire_kernel::nft::{Batch, Change, Changed, Family, Generation, NftEvent, NftEvents, TableRef};

use super::{TABLE, chain, nft_does, open, port, ports};
use crate::lab::in_new_netns;

/// Runs on one thread, so that the socket is opened in the test's namespace.
fn on_tokio<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(test)
}

/// The changes up to the end of the next transaction, and that end.
async fn transaction(events: &mut NftEvents) -> (Vec<Change>, Generation) {
    let mut changes = Vec::new();
    loop {
        let event = tokio::time::timeout(Duration::from_secs(5), events.next()).await;
        match event.unwrap_or_else(|_| panic!("not within 5 s; {changes:?}")).expect("an event") {
            NftEvent::Changed(change) => changes.push(change),
            NftEvent::Generation(generation) => return (changes, generation),
            NftEvent::Overrun => panic!("overrun"),
        }
    }
}

fn change(removed: bool, table: TableRef<'_>, object: Changed) -> Change {
    Change { removed, family: table.family, table: table.name.to_owned(), object }
}

#[test]
fn a_flush_is_told_object_by_object_and_by_whom() {
    in_new_netns(|| {
        on_tokio(async {
            let mut nft = open();
            let mut events = NftEvents::open().expect("listening");
            let mut batch = Batch::new();
            batch.create_table(TABLE, None);
            batch.create_set(TABLE, &ports());
            batch.create_chain(TABLE, &chain("host-ports"));
            batch.create_elements(TABLE, "ports4", &[port(80, [10, 0, 0, 1])]);
            nft.commit(&batch).expect("committed");
            let (changes, made) = transaction(&mut events).await;
            let elements = || Changed::Elements("ports4".to_owned());
            let expected = [
                Changed::Table,
                Changed::Set("ports4".to_owned()),
                Changed::Chain("host-ports".to_owned()),
                elements(),
            ];
            assert_eq!(changes, expected.map(|object| change(false, TABLE, object)));
            assert_eq!(made.pid, nix::unistd::gettid().as_raw().cast_unsigned());
            assert_eq!(nft.generation().expect("asked").id, made.id);

            let mut batch = Batch::new();
            batch.delete_elements(TABLE, "ports4", &[port(80, [0; 4])]);
            nft.commit(&batch).expect("committed");
            assert_eq!(transaction(&mut events).await.0, [change(true, TABLE, elements())]);

            nft_does("add rule inet podwire host-ports accept");
            let (changes, _) = transaction(&mut events).await;
            assert_eq!(changes, [change(false, TABLE, Changed::Rule("host-ports".to_owned()))]);

            nft_does("flush ruleset");
            let (changes, flushed) = transaction(&mut events).await;
            for object in
                [Changed::Table, Changed::Chain("host-ports".to_owned()), Changed::Set("ports4".to_owned())]
            {
                assert!(changes.contains(&change(true, TABLE, object)), "{changes:?}");
            }
            assert_eq!(flushed.process, "nft");
            assert_ne!(flushed.pid, made.pid);

            nft_does(
                "table ip filter { chain FORWARD { type filter hook forward priority 0; policy accept; }; }",
            );
            transaction(&mut events).await;
            nft_does("chain ip filter FORWARD { policy drop; };");
            let filter = TableRef::new(Family::Ip, "filter");
            let (changes, _) = transaction(&mut events).await;
            assert_eq!(changes, [change(false, filter, Changed::Chain("FORWARD".to_owned()))]);
        });
    });
}

#[test]
fn lost_events_are_told() {
    in_new_netns(|| {
        on_tokio(async {
            let mut nft = open();
            let mut events = NftEvents::open().expect("listening");
            let mut batch = Batch::new();
            batch.create_table(TABLE, None);
            batch.create_set(TABLE, &ports());
            nft.commit(&batch).expect("committed");
            let element = |i: u16| [port(i, [10, 0, 0, 1]).comment("x".repeat(120))];
            let (mut there, mut gone) = (Batch::new(), Batch::new());
            (0..200).for_each(|i| there.create_elements(TABLE, "ports4", &element(i)));
            (0..200).for_each(|i| gone.delete_elements(TABLE, "ports4", &element(i)));
            for _ in 0..100 {
                nft.commit(&there).expect("committed");
                nft.commit(&gone).expect("committed");
            }
            let mut lost = false;
            while !lost {
                let event = tokio::time::timeout(Duration::from_secs(5), events.next()).await;
                lost = event.expect("within 5 s").expect("an event") == NftEvent::Overrun;
            }
            // And it goes on after that.
            let mut batch = Batch::new();
            batch.delete_table(TABLE);
            nft.commit(&batch).expect("removed");
            let (changes, _) = transaction(&mut events).await;
            assert!(changes.contains(&change(true, TABLE, Changed::Table)), "{changes:?}");
        });
    });
}
