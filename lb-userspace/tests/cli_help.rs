//! Help, manual pages and completions, which all come from one description.

use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_matapa"))
        .args(arguments)
        .env_remove("MATAPA_SOCKET")
        .env("COLUMNS", "100")
        .output()
        .expect("it runs")
}

#[test]
fn help_of_every_command() {
    let commands: &[&[&str]] = &[
        &[],
        &["run"],
        &["check"],
        &["show"],
        &["show", "summary"],
        &["show", "services"],
        &["show", "backends"],
        &["show", "flows"],
        &["show", "counters"],
        &["backend"],
        &["backend", "enable"],
        &["backend", "disable"],
        &["backend", "drain"],
        &["reload"],
        &["detach"],
        &["explain"],
        &["doctor"],
        &["trace"],
        &["poll"],
        &["top"],
        &["monitor"],
        &["import"],
        &["import", "relayd"],
        &["completions"],
        &["openapi"],
        &["man"],
    ];
    let mut text = String::new();
    for command in commands {
        let arguments = [*command, &["--help"]].concat();
        let output = run(&arguments);
        assert!(output.status.success(), "{arguments:?}");
        text.push_str(&format!("$ matapa {}\n", arguments.join(" ")));
        text.push_str(&String::from_utf8_lossy(&output.stdout));
        text.push('\n');
    }
    assert!(!text.contains('\x1b'));
    insta::assert_snapshot!(text);
}

#[test]
fn no_command_is_bad_usage() {
    let output = run(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    assert!(String::from_utf8_lossy(&output.stderr).contains("Usage: matapa"));
}

#[test]
fn each_shell_gets_a_script() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completions", shell]);
        assert!(output.status.success(), "{shell}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("matapa"), "{shell}");
    }
}

#[test]
fn a_page_for_each_command() {
    let directory = tempfile::tempdir().expect("a directory");
    let pages = directory.path().join("share/man1");
    let output = run(&["man", &pages.display().to_string()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut names: Vec<String> = std::fs::read_dir(&pages)
        .expect("the directory")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort_unstable();
    insta::assert_snapshot!(names.join("\n"));
    let main = std::fs::read_to_string(pages.join("matapa.1")).expect("the main page");
    assert!(main.contains("Exit status"), "{main}");
    let output = run(&["man", "/proc/nowhere"]);
    assert_eq!(output.status.code(), Some(1));
}
