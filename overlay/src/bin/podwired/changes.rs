//! Hears who changes the packet filter, and has it looked after.

use std::time::Duration;

use podwire_attach::rules::is_own_table;
use podwire_kernel::nft::{Change, Changed, Family, NftEvent, NftEvents};

use crate::rules::{Cause, Rules};

/// Hears of changes until the runtime ends.
pub(crate) async fn mind(rules: Rules, mut events: NftEvents) {
    let mut transaction = Transaction::default();
    loop {
        match events.next().await {
            Ok(NftEvent::Changed(change)) => transaction.note(&change),
            Ok(NftEvent::Generation(by)) => {
                if let Some(cause) = std::mem::take(&mut transaction).end(&by.process) {
                    rules.changed(cause);
                }
            }
            Ok(NftEvent::Overrun) => rules.changed(Cause::Overrun),
            Err(error) => {
                tracing::warn!(%error, "the stream of packet filter events broke; opening another");
                events = open_again().await;
                rules.changed(Cause::Overrun);
            }
        }
    }
}

async fn open_again() -> NftEvents {
    loop {
        match NftEvents::open() {
            Ok(events) => return events,
            Err(error) => {
                tracing::error!(%error, "cannot listen for packet filter events");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

/// What one transaction has touched so far; its end says whose it was.
#[derive(Debug, Default)]
struct Transaction {
    own: bool,
    forwarding: bool,
}

impl Transaction {
    fn note(&mut self, change: &Change) {
        self.own |= is_own_table(change.family, &change.table);
        self.forwarding |= is_forwarding(change);
    }

    /// What has to be done about it. Podwire's programs know what they do.
    fn end(self, process: &str) -> Option<Cause> {
        if process.starts_with("podwire") {
            return None;
        }
        match self {
            Self { own: true, .. } => Some(Cause::Changed(process.to_owned())),
            Self { forwarding: true, .. } => Some(Cause::Forwarding),
            Self { .. } => None,
        }
    }
}

/// Whether it may have made forwarded packets drop, or taken our accept rules away.
fn is_forwarding(change: &Change) -> bool {
    let is_ours_to_mind = |chain: &str| matches!(chain, "FORWARD" | "DOCKER-USER");
    change.table == "filter"
        && matches!(change.family, Family::Ip | Family::Ip6)
        && match &change.object {
            Changed::Table => true,
            Changed::Chain(chain) => is_ours_to_mind(chain),
            Changed::Rule(chain) => is_ours_to_mind(chain),
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(family: Family, table: &str, object: Changed) -> Change {
        Change { removed: true, family, table: table.to_owned(), object }
    }

    fn cause(process: &str, changes: &[Change]) -> Option<Cause> {
        let mut transaction = Transaction::default();
        changes.iter().for_each(|change| transaction.note(change));
        transaction.end(process)
    }

    #[test]
    fn what_others_do_to_our_tables_and_to_forwarding_is_minded() {
        let rule = |chain: &str| Changed::Rule(chain.to_owned());
        let own = change(Family::Inet, "podwire", Changed::Table);
        let docker = change(Family::Ip, "filter", rule("FORWARD"));
        let proxy = change(Family::Ip, "filter", rule("KUBE-FORWARD"));
        let other = change(Family::Inet, "filter", rule("FORWARD"));
        let minded = Some(Cause::Changed("nft".to_owned()));
        assert_eq!(cause("nft", std::slice::from_ref(&own)), minded);
        assert_eq!(cause("nft", &[docker.clone(), own.clone(), proxy.clone()]), minded);
        for process in ["podwire", "podwired", "podwired-rules"] {
            assert_eq!(cause(process, &[own.clone(), docker.clone()]), None, "{process}");
        }
        assert_eq!(cause("dockerd", &[docker]), Some(Cause::Forwarding));
        assert_eq!(cause("kube-proxy", &[proxy, other]), None);
        assert_eq!(cause("nft", &[change(Family::Ip, "podwire", Changed::Table)]), None);
    }
}
