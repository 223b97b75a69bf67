//! docs/cli.md against the real binary: what the page says is printed is what is printed.

mod api_fake;
mod printed;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use api_fake::Fake;
use clap::CommandFactory as _;
use lb_userspace::cli::args::Cli;
use printed::{Block, blocks, check, page};

fn matapa(fake: &Fake, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_matapa"));
    command.args(arguments.split_whitespace()).env("MATAPA_SOCKET", fake.socket());
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    for variable in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "MATAPA_LOG", "COLUMNS", "JOURNAL_STREAM"] {
        command.env_remove(variable);
    }
    command
}

/// What both outputs show.
fn run(fake: &Fake, arguments: &str) -> String {
    let output = matapa(fake, arguments).stdin(Stdio::null()).output().expect("it runs");
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8(text)
        .expect("UTF-8")
        .replace(&fake.directory.path().display().to_string(), "/run/matapa")
}

/// As many events as there are, and a line for those that were missed.
fn monitor(fake: &Fake, arguments: &str) -> String {
    let events = api_fake::events();
    let mut child = matapa(fake, arguments).stdout(Stdio::piped()).spawn().expect("it runs");
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    fake.wait_for_reader();
    let lines = events.len() + usize::from(!arguments.contains("--json"));
    for event in events {
        fake.events.send(event).expect("a reader");
    }
    let mut text = String::new();
    for _ in 0..lines {
        assert_ne!(output.read_line(&mut text).expect("output"), 0, "it ended: {text}");
    }
    child.kill().expect("ended");
    child.wait().expect("it ends");
    text
}

/// The block anew: each command of it, in order, with what it prints.
fn again(block: &Block) -> String {
    let fake = Fake::start();
    match block.name.as_str() {
        "reload with errors" => {
            *fake.reload.lock().expect("the outcome") = Err(vec![
                "/etc/matapa/matapa.toml:6:69: `rise` is out of range: 0; write `rise = N` with N from 1 to 1000".to_owned(),
                "/etc/matapa/matapa.toml:16:1: unknown key \"lisen\" in a service; did you mean `listen`?".to_owned(),
            ]);
        }
        "reload of what runs" => *fake.reload.lock().expect("the outcome") = Ok(0),
        _ => {}
    }
    let commands = block.text.lines().filter_map(|line| line.strip_prefix("$ matapa "));
    let shown = |arguments: &str| match arguments {
        "monitor" | "monitor --json" => monitor(&fake, arguments),
        _ => run(&fake, arguments),
    };
    commands.map(|arguments| format!("$ matapa {arguments}\n{}", shown(arguments))).collect()
}

#[test]
fn the_page_shows_what_is_printed() {
    let blocks = blocks(&page());
    assert!(blocks.len() >= 20, "only {} blocks of docs/cli.md are marked", blocks.len());
    // Drawn, not printed: the tests of `matapa top` look after it.
    for block in blocks.iter().filter(|block| block.name != "top") {
        let real = again(block);
        assert!(!real.is_empty(), "`{}` has no command", block.name);
        check(&block.name, &real);
    }
}

#[test]
fn names_of_blocks_are_used_once() {
    let blocks = blocks(&page());
    for (index, block) in blocks.iter().enumerate() {
        assert!(!blocks[..index].iter().any(|other| other.name == block.name), "{} twice", block.name);
    }
}

/// What prints something must be on the page, and where it depends on the machine, the page must say so.
#[test]
fn every_command_is_on_the_page_and_no_output_is_unmarked() {
    let page = page();
    let shown: String = blocks(&page).iter().map(|block| block.text.clone()).collect();
    let cli = Cli::command();
    for command in cli.get_subcommands().filter(|command| command.get_name() != "help") {
        let name = command.get_name();
        assert!(
            page.contains(&format!("## matapa {name}")) || page.contains(&format!(", matapa {name}")),
            "{name}"
        );
        if name == "show" {
            for screen in command.get_subcommands().filter(|screen| screen.get_name() != "help") {
                let wanted = format!("$ matapa show {}", screen.get_name());
                assert!(shown.contains(&wanted), "no marked block of docs/cli.md has {wanted}");
            }
        }
    }
    let mut before = "";
    for line in page.lines() {
        let output = line.starts_with("$ matapa ") || line.starts_with("# matapa ");
        if before == "```" && output {
            let (above, _) = page.split_once(&format!("```\n{line}\n")).expect("it is there");
            let mark = above.trim_end().lines().last().unwrap_or_default();
            assert!(
                mark.starts_with("<!-- printed: ") || mark == "<!-- from the lab -->",
                "{line} stands below {mark:?}, neither marked as printed nor as from the lab"
            );
        }
        before = line;
    }
}

#[test]
fn every_screen_can_be_watched() {
    let fake = Fake::start();
    let cli = Cli::command();
    let show = cli.find_subcommand("show").expect("a command");
    let screens: Vec<&str> =
        show.get_subcommands().map(clap::Command::get_name).filter(|name| *name != "help").collect();
    assert!(screens.len() >= 7, "{screens:?}");
    for screen in screens {
        let once = run(&fake, &format!("show {screen}"));
        let mut child = matapa(&fake, &format!("show {screen} --watch 0.1"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("it runs");
        let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
        let wanted = format!("{once}\n{once}");
        let mut text = String::new();
        while text.len() < wanted.len() {
            assert_ne!(output.read_line(&mut text).expect("output"), 0, "it ended: {text}");
        }
        child.kill().expect("ended");
        child.wait().expect("it ends");
        assert_eq!(text, wanted, "{screen}");
    }
}
