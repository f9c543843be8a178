//! What the agent's socket receives: one request a line. Requests that can be read are carried out on a pool in
//! memory, which must stay consistent whatever they ask for.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podwire_ipam::service::{Op, Request, Response, SPEAKS, frame, read_request, receive};
use podwire_ipam::{BootMillis, Change, Lease, Observation, Pool, Sight, Sights};

fuzz_target!(|data: &[u8]| {
    let _ = receive::<Request>(&mut &*data);
    let _ = receive::<Response>(&mut &*data);

    let mut pool = Pool::default();
    pool.apply_all(pool.new_boot("a"));
    for (line, now) in data.split(|byte| *byte == b'\n').zip(1..) {
        match read_request(line, &SPEAKS) {
            Ok(request) => {
                let framed = frame(&request).expect("what was read can be written");
                assert_eq!(receive::<Request>(&mut &*framed).expect("and read again"), request);
                let changes = carry_out(&pool, request.op, BootMillis(now * 1000));
                pool.apply_all(changes);
                assert_eq!(pool.invariants(), Vec::<String>::new());
            }
            Err(Some(refused)) => assert!(frame(&refused).is_ok()),
            Err(None) => {}
        }
    }
});

fn carry_out(pool: &Pool, op: Op, now: BootMillis) -> Vec<Change> {
    match op {
        Op::Reserve(reserve) => {
            let gone = |lease: &Lease| (lease.attachment.owner.id(), Sight::Gone);
            let seen: Sights = pool.port_rivals(&reserve.attachment).map(gone).collect();
            pool.reserve(&reserve, &seen, now).map(|(_, changes)| changes).unwrap_or_default()
        }
        Op::Attached { owner, generation, finished } => {
            pool.attached(owner.id(), generation, finished.as_deref(), now).unwrap_or_default()
        }
        Op::Cancel { owner, generation } => pool.cancel(owner.id(), generation, now),
        Op::Delete { owner, ends } => {
            let ended: Vec<_> = pool.ended_by(&owner, ends).map(|lease| lease.attachment.owner.clone()).collect();
            ended.iter().filter_map(|owner| pool.begin_delete(owner)).flat_map(|(_, changes)| changes).collect()
        }
        Op::FinishDelete { owner, generation } => pool.finish_delete(owner, generation, now),
        Op::Gc { network, valid, runtime } => {
            pool.gc(&network, &valid, runtime.as_deref(), &Observation::default()).changes
        }
        Op::Usage { network, sets } => {
            for usage in pool.usage(&network, &sets) {
                assert!(usage.free() <= usage.total);
            }
            Vec::new()
        }
        Op::Adopt { network, attachments, cursors, .. } => pool.import(&network, &attachments, &cursors).changes,
        Op::Import { .. } | Op::Find { .. } | Op::Leases { .. } | Op::Extras { .. } => Vec::new(),
    }
}
