use std::fs;

use super::*;

/// A plugin made of a shell script, in a directory of its own.
struct Script {
    directory: tempfile::TempDir,
}

impl Script {
    fn new(body: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        // Written by another process: where this one has it open for writing while another test's thread forks,
        // running it fails with "text file busy".
        let write = r#"printf '#!/bin/sh\n%s\n' "$1" >"$2" && chmod 755 "$2""#;
        let program = directory.path().join("other-ipam");
        let status = Command::new("sh").args(["-c", write, "sh", body]).arg(&program).status().unwrap();
        assert!(status.success());
        Self { directory }
    }

    fn delegate(&self) -> Delegate {
        Delegate::find("other-ipam", &[PathBuf::from("/nonexistent"), self.directory.path().to_owned()])
            .unwrap()
    }
}

fn environment(verb: &str) -> Environment {
    let variables = [
        ("CNI_COMMAND", verb),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/a"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
    ];
    Environment::parse(variables.map(|(name, value)| (name.into(), value.into()))).unwrap().unwrap()
}

#[test]
fn it_gets_the_call_and_its_answer_is_the_result() {
    let script = Script::new(
        r#"input=$(cat)
[ "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $CNI_NETNS" = "ADD c1 eth0 /run/netns/a" ] || exit 9
[ "$input" = '{"name":"raw   bytes"}' ] || exit 8
[ -n "$PATH" ] || exit 7
echo '{"cniVersion":"0.2.0","ip4":{"ip":"10.1.0.7/24","gateway":"10.1.0.1"}}'"#,
    );
    let result = script.delegate().add(&environment("ADD"), br#"{"name":"raw   bytes"}"#).unwrap();
    assert_eq!(result.ips[0].address.to_string(), "10.1.0.7/24");
    assert_eq!(result.ips[0].gateway.unwrap().to_string(), "10.1.0.1");
}

#[test]
fn a_failed_add_can_be_followed_by_a_del() {
    let script = Script::new(r#"[ "$CNI_COMMAND" = DEL ]"#);
    let delegate = script.delegate();
    assert_eq!(delegate.call(Verb::Del, &environment("ADD"), b"{}"), Ok(()));
    let error = delegate.call(Verb::Check, &environment("CHECK"), b"{}").unwrap_err();
    assert_eq!(error.code, code::DELEGATE_FAILED);
    assert_eq!(error.msg, r#"IPAM plugin "other-ipam" failed on CHECK: exit status: 1"#);
}

#[test]
fn its_own_error_is_passed_on() {
    let script =
        Script::new(r#"cat >/dev/null; echo '{"Code": 11, "msg":"pool busy","details":"d"}'; exit 1"#);
    let error = script.delegate().add(&environment("ADD"), b"{}").unwrap_err();
    assert_eq!(error.code, code::TRY_AGAIN_LATER);
    assert_eq!(error.msg, r#"IPAM plugin "other-ipam" failed on ADD: pool busy"#);
    assert_eq!(error.details, "d");
}

#[test]
fn what_it_prints_instead_of_json_is_quoted() {
    let script = Script::new("echo panic: out of luck; exit 2");
    let error = script.delegate().add(&environment("ADD"), b"{}").unwrap_err();
    assert_eq!((error.code, error.details.as_str()), (code::DELEGATE_FAILED, "panic: out of luck"));
    let script = Script::new("kill -9 $$");
    let error = script.delegate().add(&environment("ADD"), b"{}").unwrap_err();
    assert!(error.msg.contains("signal: 9"), "{error}");
    for printed in ["", "hello", "[]", r#"{"ips":[{"address":"10.0.0.1"}]}"#] {
        let script = Script::new(&format!("echo '{printed}'"));
        let error = script.delegate().add(&environment("ADD"), b"{}").unwrap_err();
        assert_eq!(error.code, code::DELEGATE_FAILED, "{printed}: {error}");
        assert!(error.msg.contains("other-ipam"), "{error}");
    }
}

#[test]
fn neither_side_waits_for_the_other_for_ever() {
    let large = vec![b' '; MAX_INPUT];
    // It reads nothing.
    assert_eq!(Script::new("exit 0").delegate().call(Verb::Del, &environment("DEL"), &large), Ok(()));
    // It prints more than a pipe holds before it reads.
    let script = Script::new("head -c 500000 /dev/zero | tr '\\0' ' '; cat >/dev/null; echo '{}'");
    assert_eq!(script.delegate().add(&environment("ADD"), &large), Ok(CniResult::default()));
    // It never stops printing.
    let error = Script::new("exec yes").delegate().add(&environment("ADD"), &large).unwrap_err();
    assert_eq!(error.code, code::IO_FAILURE);
    assert!(error.msg.contains("more than 1048576 bytes"), "{error}");
}

#[test]
fn only_plain_names_are_looked_up() {
    let path = [PathBuf::from("/bin"), PathBuf::from("/")];
    for name in ["", ".", "..", "/bin/sh", "../bin/sh", "bin/sh", "a\\b", "a\0b"] {
        assert_eq!(Delegate::find(name, &path).unwrap_err().code, code::INVALID_NETWORK_CONFIG, "{name:?}");
    }
    // "bin" is in "/", but it is a directory.
    let error = Delegate::find("bin", &path).unwrap_err();
    assert_eq!(error.code, code::DELEGATE_MISSING);
    assert_eq!(error.msg, r#"cannot find IPAM plugin "bin" in CNI_PATH [/bin /]"#);
}

#[test]
fn a_file_that_cannot_be_run_is_named() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("other-ipam"), "no program").unwrap();
    let delegate = Delegate::find("other-ipam", &[directory.path().to_owned()]).unwrap();
    let error = delegate.add(&environment("ADD"), b"{}").unwrap_err();
    assert_eq!(error.code, code::DELEGATE_MISSING);
    assert!(error.msg.contains("other-ipam: Permission denied"), "{error}");
}
