//! The completions for a shell: of the command line, and of the names of this node's pods where a command takes one.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;

/// Replaces the function that clap made for bash by one that also asks for pods.
const BASH: &str = r#"
_podwirectl_with_pods() {
    _podwirectl "$@"
    local word command= current="${COMP_WORDS[COMP_CWORD]}"
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case "$word" in
            pods|explain|trace) command="$word"; break ;;
        esac
    done
    if [[ -n "$command" && "$current" != -* ]]; then
        local pod
        while IFS= read -r pod; do
            [[ "$pod" == "$current"* ]] && COMPREPLY+=("$pod")
        done < <("${COMP_WORDS[0]}" pods --names 2>/dev/null)
    fi
    return 0
}
complete -F _podwirectl_with_pods -o bashdefault -o default podwirectl
"#;

/// For zsh: what arguments of that kind are completed by.
const ZSH: &str = r#"
_podwirectl_pods() {
    local -a pods
    pods=(${(f)"$(_call_program pods podwirectl pods --names 2>/dev/null)"})
    compadd -a pods
}
"#;

const FISH: &str = r#"
complete -c podwirectl -n "__fish_seen_subcommand_from pods explain trace" -f -a "(podwirectl pods --names 2>/dev/null)"
"#;

/// The script for a shell.
pub(crate) fn script(shell: Shell) -> String {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "podwirectl", &mut text);
    let text = String::from_utf8_lossy(&text).into_owned();
    match shell {
        Shell::Bash => text + BASH,
        Shell::Zsh => with_pods(&text),
        Shell::Fish => text + FISH,
        _ => text,
    }
}

/// Before clap's function, which may be called as soon as it is read.
fn with_pods(script: &str) -> String {
    let is_pod = |line: &str| {
        ["':from -- ", "':to -- ", "'::pod -- "].iter().any(|start| line.trim_start().starts_with(start))
    };
    let mut lines = script.lines();
    // The first line is the one by which zsh knows what the file is for.
    let mut text = lines.next().unwrap_or_default().to_owned() + "\n" + ZSH;
    for line in lines {
        if is_pod(line) {
            text += &line.replace(":_default'", ":_podwirectl_pods'");
        } else {
            text += line;
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// What bash offers for a command line whose last word is being typed.
    fn offered(words: &str) -> Vec<String> {
        let root = tempfile::tempdir().unwrap();
        let asked = root.path().join("podwirectl");
        std::fs::write(&asked, "#!/bin/sh\nprintf 'default/web\\nkube-system/dns\\n'\n").unwrap();
        std::fs::set_permissions(&asked, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let script = format!(
            "{}\nCOMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}}-1))\n\
             _podwirectl_with_pods podwirectl \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"\n\
             printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            script(Shell::Bash)
        );
        let words = format!("{}:{}", root.path().display(), std::env::var("PATH").unwrap_or_default());
        let done = Command::new("bash").args(["-c", &script]).env("PATH", words).output().expect("bash");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn bash_offers_pods_where_a_command_takes_one() {
        for (words, pods) in [
            ("podwirectl explain ''", 2),
            ("podwirectl --json explain default/web kube", 1),
            ("podwirectl trace def", 1),
            ("podwirectl pods de", 1),
            ("podwirectl explain --t", 0),
            ("podwirectl nodes de", 0),
        ] {
            let offered = offered(words);
            let found = offered.iter().filter(|word| word.contains('/')).count();
            assert_eq!(found, pods, "{words}: {offered:?}");
        }
        assert!(offered("podwirectl exp").contains(&"explain".to_owned()));
    }

    #[test]
    fn zsh_and_fish_ask_for_pods_too() {
        let zsh = script(Shell::Zsh);
        assert!(zsh.starts_with("#compdef podwirectl"));
        // Two ends of two commands, and one of `pods`.
        assert_eq!(zsh.matches(":_podwirectl_pods'").count(), 5, "{zsh}");
        assert!(script(Shell::Fish).contains("podwirectl pods --names"));
    }
}
