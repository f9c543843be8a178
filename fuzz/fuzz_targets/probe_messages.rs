//! What other agents, or whoever sends to their port, may write to a prober: questions, answers, and anything else.
#![no_main]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use podwire_overlay::probe::{Answer, Config, End, Engine, Output, PORT, Peer, Question, Responder, Targets};

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 0));

fuzz_target!(|datagram: &[u8]| {
    let targets = Targets {
        node: "here".into(),
        instance: "".into(),
        own: Vec::new(),
        peers: vec![Peer {
            node: "there".into(),
            instance: "".into(),
            ends: vec![End { address: PEER, mtu: 1450, tunnel: None }],
        }],
    };
    let now = Instant::now();
    if let Ok(question) = Question::parse(datagram) {
        assert_eq!(usize::from(question.length), datagram.len());
    }
    if let Ok(answer) = Answer::parse(datagram) {
        assert!(answer.node.len() + answer.instance.len() <= 3 * datagram.len());
    }
    let mut responder = Responder::new(PORT);
    responder.update(&targets);
    if let Some(reply) = responder.answer(datagram, (PEER, PORT).into(), now) {
        assert!(reply.bytes.len() <= datagram.len());
    }
    // With a token that real answers among the seeds have.
    let mut random = || 7;
    let mut engine = Engine::new(Config::default());
    engine.update(Arc::new(targets), now, &mut random);
    let later = now + Duration::from_secs(5);
    let asked = matches!(engine.poll(later, &mut random), Some(Output::Send { .. }));
    assert!(asked);
    engine.receive(PEER, datagram, later, &mut random);
    let mut outputs = 0;
    while engine.poll(later, &mut random).is_some() {
        outputs += 1;
        assert!(outputs < 4);
    }
});
