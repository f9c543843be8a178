//! Something done at each of many points, some at once.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{LabError, Result};

/// The steps of several runs of the same: which there are, and whether every run came there. What another process, or
/// the kernel, is just finishing may or may not be left for this one to do.
#[derive(Debug)]
pub struct Steps(Vec<(String, bool)>);

impl Steps {
    /// Three runs; `run` gives the steps of one.
    ///
    /// # Errors
    /// If a run fails.
    pub fn of(run: impl Fn() -> Result<Vec<String>>) -> Result<Self> {
        let runs = [run()?, run()?, run()?];
        let all: BTreeSet<String> = runs.iter().flatten().cloned().collect();
        let always = |step: &String| runs.iter().all(|run| run.contains(step));
        Ok(Self(all.into_iter().map(|step| (step.clone(), always(&step))).collect()))
    }

    /// Whether every run came to that step.
    pub fn contains(&self, step: &str) -> bool {
        self.0.iter().any(|(name, always)| *always && name == step)
    }

    /// Those whose name begins so.
    pub fn only(mut self, begin: &str) -> Self {
        self.0.retain(|(name, _)| name.starts_with(begin));
        self
    }

    /// Kills at each of them, some at once: `kill` makes all anew, looks at what came of it, and says whether its run
    /// came to the step.
    ///
    /// # Errors
    /// With what failed; with a step that every run comes to, and not one of several that were to be killed there.
    pub fn kill_at_each(&self, at_once: usize, kill: impl Fn(&str) -> Result<bool> + Sync) -> Result<()> {
        let names: Vec<&str> = self.0.iter().map(|(name, _)| name.as_str()).collect();
        each(&names, at_once, |step| {
            for _ in 0..4 {
                if kill(step)? {
                    return Ok(());
                }
            }
            if self.contains(step) { Err(LabError::new("nothing came to this step")) } else { Ok(()) }
        })
    }
}

/// Does something with each item, some at once, and fails with all that failed.
///
/// # Errors
/// With a line for each item that failed, led by the item.
pub fn each<T: Sync + std::fmt::Display>(
    items: &[T],
    at_once: usize,
    work: impl Fn(&T) -> Result<()> + Sync,
) -> Result<()> {
    let failures = at_once_for(items, at_once, work).into_iter().zip(items);
    let failures: Vec<_> =
        failures.filter_map(|(done, item)| Some(format!("{item}: {:?}", done.err()?))).collect();
    if failures.is_empty() {
        return Ok(());
    }
    Err(LabError::new(format!("{} of {} failed:\n{}", failures.len(), items.len(), failures.join("\n"))))
}

/// Does something with each item, some at once; what came of each, in their order.
pub fn at_once_for<T: Sync, R: Send>(
    items: &[T],
    at_once: usize,
    work: impl Fn(&T) -> Result<R> + Sync,
) -> Vec<Result<R>> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..at_once.min(items.len()) {
            scope.spawn(|| {
                while let Some((number, item)) = claim(items, &next) {
                    let result = work(item);
                    done.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push((number, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, result)| result).collect()
}

fn claim<'a, T>(items: &'a [T], next: &AtomicUsize) -> Option<(usize, &'a T)> {
    let number = next.fetch_add(1, Ordering::Relaxed);
    items.get(number).map(|item| (number, item))
}
