//! `podwired install`: what the node's runtime calls, and what people use on the node.

use std::env;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use podwire_ipam::file;

use crate::commands::print;

/// podwired too, for `podwired cleanup` on a node that the image has left.
const PROGRAMS: [&str; 4] = ["podwire", "podwire-ipam", "podwired", "podwirectl"];
const PLUGIN: &str = "podwire";
/// podwire under other names. Ours alone: it is made to lead to podwire, whatever it was.
const TUNING: &str = "podwire-tuning";
/// Everybody's: one that is there stays, whosever it is.
const LOOPBACK: &str = "loopback";
const MODE: u32 = 0o755;

/// Copies the programs that lie beside this one.
///
/// # Errors
/// What could not be read or written. What was written before that stays: each program is whole.
pub(crate) fn install(to: &Path) -> Result<(), String> {
    let this = env::current_exe().map_err(|error| format!("find this program: {error}"))?;
    let from = this.parent().unwrap_or(Path::new("/"));
    let done = install_from(from, to)?;
    print(&done.iter().map(|line| format!("{line}\n")).collect::<String>())
}

fn install_from(from: &Path, to: &Path) -> Result<Vec<String>, String> {
    fs::create_dir_all(to).map_err(|error| format!("make {}: {error}", to.display()))?;
    let mut done = Vec::new();
    let mut tell = |what: &str, path: PathBuf| done.push(format!("{what}: {}", path.display()));
    for name in PROGRAMS {
        let (source, target) = (from.join(name), to.join(name));
        let program = fs::read(&source).map_err(|error| format!("read {}: {error}", source.display()))?;
        if is_installed(&target, &program) {
            tell("unchanged", target);
            continue;
        }
        file::replace(&target, &program, MODE)
            .map_err(|error| format!("write {}: {error}", target.display()))?;
        tell("installed", target);
    }
    for (name, is_ours) in [(TUNING, true), (LOOPBACK, false)] {
        let target = to.join(name);
        let linked = link(&target, is_ours).map_err(|error| format!("link {}: {error}", target.display()))?;
        tell(if linked { "installed" } else { "unchanged" }, target);
    }
    Ok(done)
}

/// A regular file with that content which everybody can run. What cannot be read is written, and tells why not.
fn is_installed(target: &Path, program: &[u8]) -> bool {
    let is_usual = fs::symlink_metadata(target)
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o777 == MODE);
    is_usual && fs::read(target).is_ok_and(|found| found == program)
}

/// Makes a link to the plugin, in the place of another one only if the name is ours. Says whether it made one.
fn link(target: &Path, is_ours: bool) -> io::Result<bool> {
    match fs::symlink_metadata(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(_) if !is_ours => return Ok(false),
        Ok(_) if fs::read_link(target).is_ok_and(|leads_to| leads_to == Path::new(PLUGIN)) => {
            return Ok(false);
        }
        Ok(_) => {}
    }
    let temporary = target.with_extension("new");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(PLUGIN, &temporary)?;
    fs::rename(&temporary, target).map(|()| true)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place {
        root: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir(root.path().join("image")).unwrap();
            for name in PROGRAMS {
                fs::write(root.path().join("image").join(name), format!("{name} 1")).unwrap();
            }
            Self { root }
        }

        fn image(&self) -> PathBuf {
            self.root.path().join("image")
        }

        /// Below a directory that is not there yet.
        fn bin(&self) -> PathBuf {
            self.root.path().join("opt/cni/bin")
        }

        fn install(&self) -> Result<Vec<String>, String> {
            let bin = format!("{}/", self.bin().display());
            let done = install_from(&self.image(), &self.bin())?;
            Ok(done.into_iter().map(|line| line.replace(&bin, "")).collect())
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(self.bin()).unwrap();
            let mut names: Vec<_> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }

        fn read(&self, name: &str) -> String {
            fs::read_to_string(self.bin().join(name)).unwrap()
        }
    }

    #[test]
    fn programs_are_copied_and_again_only_where_they_differ() {
        let place = Place::new();
        let first = place.install().unwrap();
        assert!(first.iter().all(|line| line.starts_with("installed: ")), "{first:?}");
        let all = ["loopback", "podwire", "podwire-ipam", "podwire-tuning", "podwirectl", "podwired"];
        assert_eq!(place.names(), all);
        for (name, content) in
            [("podwire", "podwire 1"), ("podwire-tuning", "podwire 1"), ("loopback", "podwire 1")]
        {
            assert_eq!(place.read(name), content);
            assert_eq!(fs::metadata(place.bin().join(name)).unwrap().permissions().mode() & 0o777, MODE);
        }
        let again = place.install().unwrap();
        assert!(again.iter().all(|line| line.starts_with("unchanged: ")), "{again:?}");

        fs::write(place.image().join("podwire"), "podwire 2").unwrap();
        fs::set_permissions(place.bin().join("podwirectl"), fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(
            place.install().unwrap(),
            [
                "installed: podwire",
                "unchanged: podwire-ipam",
                "unchanged: podwired",
                "installed: podwirectl",
                "unchanged: podwire-tuning",
                "unchanged: loopback"
            ]
        );
        assert_eq!(place.read("loopback"), "podwire 2");
        assert_eq!(place.names(), all, "no temporary file stays");
    }

    #[test]
    fn a_program_that_runs_is_replaced_and_not_written_to() {
        let place = Place::new();
        place.install().unwrap();
        let running = fs::File::open(place.bin().join("podwire")).unwrap();
        fs::write(place.image().join("podwire"), "podwire 2").unwrap();
        place.install().unwrap();
        assert_eq!(io::read_to_string(running).unwrap(), "podwire 1");
    }

    #[test]
    fn what_is_not_ours_stays() {
        let place = Place::new();
        fs::create_dir_all(place.bin()).unwrap();
        for name in ["loopback", "flannel", "host-local"] {
            fs::write(place.bin().join(name), "another's").unwrap();
        }
        fs::write(place.bin().join("podwire-tuning"), "an old copy").unwrap();
        symlink("elsewhere", place.bin().join("podwirectl")).unwrap();
        place.install().unwrap();
        for name in ["loopback", "flannel", "host-local"] {
            assert_eq!(place.read(name), "another's");
        }
        assert_eq!(place.read("podwire-tuning"), "podwire 1");
        assert_eq!(place.read("podwirectl"), "podwirectl 1");
        // Also one that leads nowhere now: somebody made it.
        fs::remove_file(place.bin().join("loopback")).unwrap();
        symlink("gone", place.bin().join("loopback")).unwrap();
        place.install().unwrap();
        assert_eq!(fs::read_link(place.bin().join("loopback")).unwrap(), Path::new("gone"));
    }

    #[test]
    fn what_cannot_be_done_is_told_with_its_path() {
        let place = Place::new();
        fs::create_dir_all(place.bin().join("podwire-ipam")).unwrap();
        let error = place.install().unwrap_err();
        assert!(error.starts_with("write ") && error.contains("bin/podwire-ipam: "), "{error}");
        assert_eq!(place.names(), ["podwire", "podwire-ipam"]);

        fs::remove_file(place.image().join("podwire")).unwrap();
        let error = place.install().unwrap_err();
        assert!(error.starts_with("read ") && error.contains("image/podwire: "), "{error}");

        let file = place.root.path().join("file");
        fs::write(&file, "").unwrap();
        let error = install_from(&place.image(), &file.join("bin")).unwrap_err();
        assert!(error.starts_with("make ") && error.contains("file/bin: "), "{error}");
    }
}
