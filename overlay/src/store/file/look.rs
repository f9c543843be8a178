//! Whether a file has changed, and to what.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// More than any list of nodes needs.
const LARGEST: u64 = 32 << 20;

/// For how long a file must have been left alone: who writes in place has not finished before, and half a list of nodes
/// can be a list, too.
pub(super) const SETTLED: Duration = Duration::from_millis(120);

/// For how long that is waited for. An editor that never stops must not keep a change from being seen.
const PATIENCE: u32 = 5;

/// What a look at the file has found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// What the last one has.
    Same,
    /// This, another text than before.
    Text(String),
    /// Why it cannot be read.
    Unreadable(String),
}

/// Looks at a file, and remembers what it saw.
#[derive(Debug)]
pub(super) struct Looker {
    path: PathBuf,
    /// The file that was read last.
    seen: Option<Mark>,
    text: Option<String>,
}

/// What changes with a file's content, as stat(2) tells it. Time and size alone would miss a rename.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Looker {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, seen: None, text: None }
    }

    /// Looks, off the thread that serves others where there is much to read.
    pub(super) async fn look(&mut self) -> Look {
        let mut mark = match mark(&self.path) {
            Ok(mark) if Some(mark) == self.seen => return Look::Same,
            Ok(mark) => mark,
            Err(why) => return self.unreadable(&why),
        };
        for _ in 0..PATIENCE {
            tokio::time::sleep(SETTLED).await;
            let path = self.path.clone();
            let read = tokio::task::spawn_blocking(move || read(&path)).await;
            let read = read.unwrap_or_else(|error| Err(io::Error::other(error)));
            match read {
                Ok((now, text)) if now == mark => return self.text(now, text),
                Ok((now, _)) => mark = now,
                Err(why) => return self.unreadable(&why),
            }
        }
        // It goes on changing: the next look may find it at rest.
        Look::Same
    }

    fn text(&mut self, mark: Mark, text: String) -> Look {
        self.seen = Some(mark);
        if self.text.as_ref() == Some(&text) {
            return Look::Same;
        }
        self.text = Some(text.clone());
        Look::Text(text)
    }

    fn unreadable(&mut self, why: &io::Error) -> Look {
        self.seen = None;
        Look::Unreadable(format!("cannot read {}: {why}", self.path.display()))
    }
}

fn mark(path: &Path) -> io::Result<Mark> {
    fs::metadata(path).map(|found| Mark::of(&found))
}

impl Mark {
    fn of(found: &fs::Metadata) -> Self {
        Self {
            file: (found.dev(), found.ino()),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        }
    }
}

/// The text, with the mark of the file that it is from; an error unless that is a file of a sensible size.
fn read(path: &Path) -> io::Result<(Mark, String)> {
    let file = File::open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut text = String::new();
    (&file).take(LARGEST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LARGEST {
        return Err(io::Error::other(format!("it is larger than {} MiB", LARGEST >> 20)));
    }
    // Of the file that was read, not of one that was renamed over it meanwhile.
    Ok((Mark::of(&file.metadata()?), text))
}
