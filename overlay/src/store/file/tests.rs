use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use tokio::sync::{oneshot, watch};
use tokio::task::LocalSet;

use super::*;
use crate::store::{Action, Health, Identity, Remembered};

const LIST: &str = r#"
[[range]]
range = "10.244.0.0/16"
subnet_prefix = 24
[[node]]
name = "a"
addresses = ["192.0.2.1"]
subnets = ["10.244.1.0/24"]
[[node]]
name = "b"
addresses = ["192.0.2.2"]
subnets = ["10.244.2.0/24"]
"#;

fn with_node(list: &str, number: u8) -> String {
    format!(
        "{list}[[node]]\nname = \"n{number}\"\naddresses = [\"192.0.2.{number}\"]\nsubnets = [\"10.244.{number}.0/24\"]\n"
    )
}

/// A store at work, and what it says.
struct Scene {
    events: mpsc::Receiver<StoreEvent>,
    commands: Option<mpsc::Sender<Command>>,
    announcement: watch::Sender<Announcement>,
    reload: Arc<Notify>,
    task: tokio::task::JoinHandle<()>,
}

impl Scene {
    fn start(path: &Path, remembered: Option<Remembered>) -> Self {
        let (sender, events) = mpsc::channel(16);
        let (commands, asked) = mpsc::channel(1);
        let (announcement, says) = watch::channel(Announcement::default());
        let (_pods, has_pods) = watch::channel(false);
        let reload = Arc::new(Notify::new());
        let context = StoreContext {
            identity: Identity { name: "a".to_owned(), instance: String::new(), boot: String::new() },
            remembered,
            announcement: says,
            has_pods,
            health: watch::channel(Health::default()).1,
            events: sender,
            commands: asked,
        };
        let store = Box::new(FileStore::new(path.to_owned(), reload.clone()));
        let task = tokio::task::spawn_local(store.run(context));
        Self { events, commands: Some(commands), announcement, reload, task }
    }

    /// The next event, as a line; within the second in which a change is to be seen, and some more where others build.
    async fn next(&mut self) -> String {
        let event =
            tokio::time::timeout(Duration::from_secs(10), self.events.recv()).await.expect("an event");
        match event.expect("the store runs") {
            StoreEvent::Joined(membership) => format!("joined {}", membership.subnets[0]),
            StoreEvent::Snapshot { snapshot, .. } => {
                format!("snapshot {}", snapshot.nodes.keys().cloned().collect::<Vec<_>>().join(" "))
            }
            StoreEvent::Lost { why } => format!("lost: {why}"),
            StoreEvent::Found => "found".to_owned(),
            StoreEvent::Refused { why } => format!("refused: {why}"),
            StoreEvent::Fenced { why } => format!("fenced: {why}"),
            StoreEvent::Notice(text) => format!("notice: {text}"),
        }
    }

    async fn expect(&mut self, expected: &[&str]) {
        for expected in expected {
            let said = self.next().await;
            assert!(said.contains(expected), "{said}\nexpected {expected}");
        }
    }

    /// Nothing is said while the file is looked at several times.
    async fn expect_silence(&mut self) {
        let silence = tokio::time::timeout(LOOK_EVERY * 4, self.events.recv()).await;
        assert!(silence.is_err(), "{silence:?}");
    }

    async fn end(mut self) {
        self.commands = None;
        tokio::time::timeout(Duration::from_secs(10), self.task).await.expect("an end").expect("no panic");
    }
}

fn run<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

fn remembered(list: &str) -> Remembered {
    let snapshot = parse("f", list).unwrap();
    let subnets = snapshot.nodes["a"].subnets.clone();
    Remembered {
        membership: Membership { subnets, generation: 0, claimed: 0, ..Membership::default() },
        snapshot,
        mark: None,
    }
}

#[test]
fn a_change_is_seen_however_it_is_made() {
    run(async {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("peers.toml");
        fs::write(&path, LIST).unwrap();
        let mut scene = Scene::start(&path, None);
        scene.expect(&["joined 10.244.1.0/24", "snapshot a b"]).await;

        let begun = std::time::Instant::now();
        fs::write(&path, with_node(LIST, 3)).unwrap();
        scene.expect(&["snapshot a b n3"]).await;
        // The promise is a second; a machine that builds at the same time gets some more.
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());

        let new = root.path().join("new");
        fs::write(&new, with_node(LIST, 4)).unwrap();
        fs::rename(&new, &path).unwrap();
        scene.expect(&["snapshot a b n4"]).await;

        // As Kubernetes mounts a ConfigMap: file -> ..data/file, ..data -> a directory that is replaced.
        for number in [5, 6] {
            let directory = root.path().join(format!("..{number}"));
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("peers.toml"), with_node(LIST, number)).unwrap();
            symlink(&directory, root.path().join("..new")).unwrap();
            fs::rename(root.path().join("..new"), root.path().join("..data")).unwrap();
            if number == 5 {
                symlink("..data/peers.toml", root.path().join("link")).unwrap();
                fs::rename(root.path().join("link"), &path).unwrap();
            }
            scene.expect(&[&format!("snapshot a b n{number}")]).await;
        }

        // The same text again is no change.
        fs::write(root.path().join("..data/peers.toml"), with_node(LIST, 6)).unwrap();
        scene.reload.notify_one();
        scene.expect_silence().await;
        scene.end().await;
    });
}

#[test]
fn a_file_that_is_being_written_is_waited_for() {
    run(async {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("peers.toml");
        fs::write(&path, LIST).unwrap();
        let mut scene = Scene::start(&path, None);
        scene.expect(&["joined", "snapshot a b"]).await;
        // Half a list is a list, too: without node b.
        let (half, rest) = LIST.split_at(LIST.rfind("[[node]]").unwrap());
        let mut file = fs::File::create(&path).unwrap();
        std::io::Write::write_all(&mut file, half.as_bytes()).unwrap();
        scene.reload.notify_one();
        tokio::time::sleep(look::SETTLED / 3).await;
        std::io::Write::write_all(&mut file, rest.as_bytes()).unwrap();
        scene.expect_silence().await;
        scene.end().await;
    });
}

#[test]
fn a_list_that_is_wrong_changes_nothing() {
    run(async {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("peers.toml");
        fs::write(&path, LIST).unwrap();
        let mut scene = Scene::start(&path, None);
        scene.expect(&["joined", "snapshot"]).await;
        fs::write(&path, format!("{LIST}x = 1\n")).unwrap();
        scene.expect(&["notice: the last usable list of nodes is kept: "]).await;
        fs::remove_file(&path).unwrap();
        scene.expect(&["lost: cannot read "]).await;
        scene.expect_silence().await;
        fs::write(&path, LIST).unwrap();
        scene.expect(&["found", "snapshot a b"]).await;
        scene.end().await;
    });
}

#[test]
fn a_node_that_is_not_in_the_list_has_no_part_in_it() {
    run(async {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("peers.toml");
        let others = LIST.replace("name = \"a\"", "name = \"c\"");
        fs::write(&path, &others).unwrap();
        let mut scene = Scene::start(&path, None);
        scene.expect(&["refused: ", "snapshot b c"]).await;
        fs::write(&path, LIST).unwrap();
        scene.expect(&["joined 10.244.1.0/24", "snapshot a b"]).await;
        fs::write(&path, LIST.replace("10.244.1.0", "10.244.9.0")).unwrap();
        scene.expect(&["joined 10.244.9.0/24", "snapshot a b"]).await;
        fs::write(&path, &others).unwrap();
        scene.expect(&["fenced: ", "snapshot b c"]).await;
        fs::write(&path, LIST).unwrap();
        scene.expect(&["joined 10.244.1.0/24", "snapshot a b"]).await;
        scene.end().await;
    });
}

#[test]
fn who_was_in_it_goes_on_without_the_file() {
    run(async {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("peers.toml");
        let mut scene = Scene::start(&path, Some(remembered(LIST)));
        scene.expect(&["lost: cannot read "]).await;
        fs::write(&path, "nonsense").unwrap();
        scene.expect(&["found", "notice: the last usable"]).await;
        fs::write(&path, LIST).unwrap();
        scene.expect(&["joined 10.244.1.0/24", "snapshot a b"]).await;
        scene.end().await;

        fs::write(&path, "nonsense").unwrap();
        let mut unknown = Scene::start(&path, None);
        unknown.expect(&["refused: "]).await;
        unknown.end().await;
    });
}

#[test]
fn addresses_that_this_node_does_not_have_are_told_once() {
    run(async {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("peers.toml");
        fs::write(&path, LIST).unwrap();
        let mut scene = Scene::start(&path, None);
        scene.expect(&["joined", "snapshot"]).await;
        let say = |address: &str| {
            let addresses = vec![address.parse().unwrap()];
            scene.announcement.send_replace(Announcement { addresses, ..Announcement::default() });
        };
        say("192.0.2.9");
        scene.expect(&["has address 192.0.2.1, but its own are 192.0.2.9"]).await;
        scene.expect_silence().await;
        let say = |address: &str| {
            let addresses = vec![address.parse().unwrap()];
            scene.announcement.send_replace(Announcement { addresses, ..Announcement::default() });
        };
        say("192.0.2.1");
        scene.expect_silence().await;
        scene.end().await;
    });
}

#[test]
fn what_is_asked_of_the_cluster_is_to_be_written_into_the_file() {
    run(async {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("peers.toml");
        fs::write(&path, LIST).unwrap();
        let scene = Scene::start(&path, None);
        let (answer, answered) = oneshot::channel();
        let command = Command { action: Action::Leave, answer };
        scene.commands.as_ref().unwrap().send(command).await.unwrap();
        let said = answered.await.unwrap().unwrap_err();
        assert!(said.contains(&format!("edit {}", path.display())), "{said}");
        scene.end().await;
    });
}

#[test]
fn records_that_are_as_before_are_shared() {
    let before = parse("f", LIST).unwrap();
    let mut after = parse("f", &LIST.replace("192.0.2.2", "192.0.2.3")).unwrap();
    share(&mut after.nodes, &before.nodes);
    let is_same = |name: &str| Arc::ptr_eq(&before.nodes[name], &after.nodes[name]);
    assert_eq!((is_same("a"), is_same("b")), (true, false));
}
