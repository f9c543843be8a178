//! containerd of newer Debian releases, unpacked beside the machine's own and never installed.
//!
//! apt fetches the package with lists and a cache of its own, so the machine's package lists stay as they are;
//! `dpkg -x` unpacks it. What was fetched once stays in the target directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{LabError, Result};
use crate::node::target_dir;
use crate::process::{finish, program};

/// apt's lists are about 10 MB and the package about 30 MB.
const FETCH_LIMIT: Duration = Duration::from_secs(240);

/// The directory with `containerd`, `ctr` and the shims of the first of those releases (`trixie`, `sid`, …) that has a
/// containerd whose version starts with `version`.
///
/// # Errors
/// If there is none, or no way to fetch it. A caller that leaves its test out for that says so: see [`left_out`].
pub fn containerd(releases: &[&str], version: &str) -> Result<PathBuf> {
    let mut reasons = Vec::new();
    for release in releases {
        match fetch(release, version) {
            Ok(programs) => return Ok(programs),
            Err(error) => reasons.push(format!("{release}: {error:?}")),
        }
    }
    Err(LabError::new(format!("no containerd {version}: {}", reasons.join("; "))))
}

/// Reports that a test was left out for want of something that others may take away, such as a package of a moving
/// release. On the terminal at once, and in the file of the environment variable `PODWIRE_LEFT_OUT`, which `make
/// test` prints at its end.
pub fn left_out(what: &str, why: &LabError) {
    use std::io::Write;
    let line = format!("LEFT OUT: {what}: {why:?}\n");
    // Not eprintln!: the test runner keeps the output of tests that pass to itself.
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(file) = std::env::var_os("PODWIRE_LEFT_OUT") {
        let opened = fs::OpenOptions::new().create(true).append(true).open(file);
        let _ = opened.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}

fn fetch(release: &str, version: &str) -> Result<PathBuf> {
    let dir = cache_dir()?.join(release);
    let programs = dir.join("root/usr/bin");
    let note = dir.join("version");
    let kept = |note: &Path| fs::read_to_string(note).is_ok_and(|text| text.starts_with(version));
    if kept(&note) && programs.join("containerd").exists() {
        return Ok(programs);
    }
    let make =
        |dir: &Path| fs::create_dir_all(dir).map_err(LabError::because(format!("make {}", dir.display())));
    let _ = fs::remove_dir_all(&dir);
    make(&dir.join("lists/partial"))?;
    make(&dir.join("cache/archives/partial"))?;
    let sources = format!(
        "Types: deb\nURIs: {}\nSuites: {release}\nComponents: main\nTargets: Packages\n\
         Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n",
        mirror()?
    );
    fs::write(dir.join("apt.sources"), sources).map_err(LabError::because("write apt sources"))?;
    apt(&dir, &["apt-get", "--quiet", "--error-on=any", "update"])?;
    let policy = apt(&dir, &["apt-cache", "policy", "containerd"])?;
    let candidate =
        policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: ")).unwrap_or("(none)");
    if !candidate.starts_with(version) {
        return Err(LabError::new(format!("the release has {candidate}")));
    }
    apt(&dir, &["apt-get", "--quiet", "download", "containerd"])?;
    let entries = fs::read_dir(&dir).map_err(LabError::because("look for the package"))?;
    let mut files = entries.flatten().map(|entry| entry.path());
    let package = files.find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let package = package.ok_or_else(|| LabError::new("apt left no package"))?;
    run(&dir, &["dpkg", "-x", &package.to_string_lossy(), "root"])?;
    let _ = fs::remove_dir_all(dir.join("lists"));
    let _ = fs::remove_file(package);
    fs::write(&note, candidate).map_err(LabError::because("note the version"))?;
    Ok(programs)
}

fn cache_dir() -> Result<PathBuf> {
    let dir = target_dir().join("newer-containerd");
    fs::create_dir_all(&dir).map_err(LabError::because(format!("make {}", dir.display())))?;
    dir.canonicalize().map_err(LabError::because(format!("find {}", dir.display())))
}

/// The mirror of the machine's own sources: the first that serves its own release from a directory named `debian`.
fn mirror() -> Result<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    files.extend(
        fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|entry| entry.path()),
    );
    let texts = files.iter().filter_map(|file| fs::read_to_string(file).ok());
    let found = texts.into_iter().find_map(|text| {
        let lines = text.lines().filter(|line| line.starts_with("deb ") || line.starts_with("URIs:"));
        let mut words = lines.flat_map(str::split_whitespace);
        let uri = words.find(|word| word.contains("://") && word.trim_end_matches('/').ends_with("/debian"));
        uri.map(str::to_owned)
    });
    found.ok_or_else(|| LabError::new("apt's own sources name no mirror of Debian"))
}

/// Runs a program of apt's with lists, cache and sources in `dir`.
fn apt(dir: &Path, words: &[&str]) -> Result<String> {
    let at = |path: &str| dir.join(path).to_string_lossy().into_owned();
    let options = [
        format!("Dir::Etc::sourcelist={}", at("apt.sources")),
        "Dir::Etc::sourceparts=/dev/null".to_owned(),
        format!("Dir::State::lists={}", at("lists")),
        format!("Dir::Cache={}", at("cache")),
        // The directory need not be readable for apt's own user.
        "APT::Sandbox::User=root".to_owned(),
        "Acquire::Languages=none".to_owned(),
        // A mirror that stands still is good enough for a test; signatures are checked all the same.
        "Acquire::Check-Valid-Until=false".to_owned(),
        "Acquire::Retries=2".to_owned(),
    ];
    let mut all = words.to_vec();
    for option in &options {
        all.extend(["-o", option]);
    }
    run(dir, &all)
}

fn run(dir: &Path, words: &[&str]) -> Result<String> {
    let what = words.iter().take(4).copied().collect::<Vec<_>>().join(" ");
    let mut words = words.iter();
    let name = words.next().ok_or_else(|| LabError::new("no program to run"))?;
    let mut command = program(name);
    command.args(words).current_dir(dir).env("LC_ALL", "C.UTF-8");
    let began = Instant::now();
    let child = command.spawn().map_err(LabError::because(format!("start {name}")))?;
    Ok(finish(child, b"", began, FETCH_LIMIT)?.success(&what)?.out())
}
