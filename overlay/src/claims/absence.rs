//! For how long other nodes have been absent. PURE.

use std::collections::BTreeMap;
use std::time::Duration;

use super::replica::Replica;
use super::terms::BootTime;

/// The longest time between two looks that still counts as having watched. A machine that was suspended, or cut off, has not seen
/// who came and went.
const LONGEST_BLINK: Duration = Duration::from_secs(120);

/// Since when which nodes have been seen to be absent, without a break.
#[derive(Debug, Default)]
pub struct Absences {
    since: BTreeMap<String, BootTime>,
    looked: Option<BootTime>,
}

impl Absences {
    /// Takes a look. `replica` must be what stands in the store now.
    pub fn look(&mut self, replica: &Replica, now: BootTime) {
        if self.looked.is_none_or(|looked| now.0.saturating_sub(looked.0) > LONGEST_BLINK) {
            self.since.clear();
        }
        self.looked = Some(now);
        let absent = replica.names().into_iter().filter(|name| replica.presence(name).is_absent());
        self.since =
            absent.map(|name| (name.to_owned(), self.since.get(name).copied().unwrap_or(now))).collect();
    }

    /// Forgets everything: there may have been something that was not seen.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// Who has been absent for `limit` or longer, as of the last look.
    pub fn longer_than(&self, limit: Duration) -> impl Iterator<Item = &str> {
        let looked = self.looked.unwrap_or_default();
        let long = move |since: BootTime| looked.0.saturating_sub(since.0) >= limit;
        self.since.iter().filter(move |(_, since)| long(**since)).map(|(name, _)| name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(86_400);

    fn replica(present: bool) -> Replica {
        let mut replica = Replica::default();
        replica.put("subnets/10.0.0.0-24", 1, br#"{"format":1,"node":"a","instance":"1","claimed":0}"#);
        if present {
            replica.put("presence/a", 2, br#"{"format":1,"instance":"1","boot":"1","session":"1"}"#);
        }
        replica
    }

    fn after(looks: &[(u64, bool)]) -> bool {
        let mut absences = Absences::default();
        for (second, present) in looks {
            absences.look(&replica(*present), BootTime(Duration::from_secs(*second)));
        }
        absences.longer_than(LIMIT).eq(["a"])
    }

    #[test]
    fn absence_is_what_was_watched_without_a_break() {
        let steady: Vec<_> = (0..=864).map(|step| (1_000 + step * 100, false)).collect();
        assert!(after(&steady));
        assert!(!after(&steady[..864]), "a look too early");
        let mut returned = steady.clone();
        returned[500].1 = true;
        assert!(!after(&returned), "it came back for a moment");
        let mut suspended = steady.clone();
        suspended.remove(500);
        assert!(!after(&suspended), "nobody looked for 200 s");
        assert!(!after(&[(0, false), (200_000, false)]), "two looks are no watch");
    }
}
