//! The real binary against a daemon with a fixed state: what an operator sees.

mod api_fake;

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use api_fake::Fake;

fn matapa(socket: &Path, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_matapa"));
    command.args(arguments.split_whitespace()).env("MATAPA_SOCKET", socket);
    for variable in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "MATAPA_LOG", "COLUMNS", "JOURNAL_STREAM"] {
        command.env_remove(variable);
    }
    command
}

fn run(socket: &Path, arguments: &str) -> Output {
    matapa(socket, arguments).stdin(Stdio::null()).output().expect("it runs")
}

/// Command, exit status and both outputs, as a terminal would show them; the directory's name is left out.
fn transcript(fake: &Fake, arguments: &str) -> String {
    let output = run(&fake.socket(), arguments);
    let text = format!(
        "$ matapa {arguments}\n{}{}[exit {}]",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
        output.status.code().expect("no signal")
    );
    assert!(!text.contains('\x1b'), "escape codes in piped output: {text:?}");
    text.replace(&fake.directory.path().display().to_string(), "/run/matapa")
}

macro_rules! screens {
    ($($name:ident: $arguments:literal;)*) => {$(
        #[test]
        fn $name() {
            insta::assert_snapshot!(transcript(&Fake::start(), $arguments));
        }
    )*};
}

screens! {
    summary: "show summary";
    services: "show services";
    one_service: "show services --service dns";
    unknown_service: "show services --service web";
    backends: "show backends";
    checks: "show backends --checks";
    checks_of_none: "show backends --checks --service dns";
    checks_of_unknown_service: "show backends --checks --service web";
    checks_json: "show backends --checks --json";
    flows: "show flows";
    flows_limited: "show flows --limit 1 --service mail";
    flows_of_none: "show flows --service dns";
    flows_of_unknown_service: "show flows --service web";
    counters: "show counters";
    counters_all: "show counters --all";
    counters_json: "show counters --json";
    flows_json: "show flows --limit 1 --json";
    summary_json: "show --json";
    explain_new: "explain 192.0.2.7:40000 203.0.113.10:25";
    explain_known: "explain 192.0.2.7:40000 203.0.113.10:26 --ack --vlan 10";
    explain_second_chance: "explain 192.0.2.7:40000 203.0.113.10:27";
    explain_room: "explain 192.0.2.7:40000 203.0.113.10:28";
    explain_answer: "explain 198.51.100.11:25 192.0.2.7:40000 --syn --ack";
    explain_nothing: "explain [2001:db8::7]:40000 [2001:db8::10]:443/tcp --interface eth0";
    explain_json: "explain 192.0.2.7:40000 203.0.113.10:25 --json";
    explain_no_interface: "explain 192.0.2.7:40000 203.0.113.10:25 --interface eth9";
    explain_bad_usage: "explain 192.0.2.7 203.0.113.10:25";
    explain_bad_flags: "explain 192.0.2.7:1 203.0.113.10:25 --flags syn,urg";
    trace: "trace service mail --count 3";
    trace_steps: "trace service mail --count 2 -v";
    trace_json: "trace service mail --count 1 --json";
    trace_unknown_service: "trace service web";
    trace_bad_filter: "trace hots 192.0.2.1";
    trace_bad_time: "trace --duration 3d";
    doctor_without_configuration: "doctor -c /nonexistent/matapa.toml";
    carp: "show carp";
    sync: "show sync";
    carp_demote: "carp demote";
    carp_unknown: "carp promote web";
    drain: "backend drain mx1";
    weight: "backend weight mx1 5";
    weight_of_the_file: "backend weight mx1 file --service mail";
    weight_of_unknown_backend: "backend weight mx9 5";
    weight_of_nothing: "backend weight mx1 heavy";
    service_disable: "service disable mail";
    service_already_enabled: "service enable mail";
    service_unknown: "service disable web";
    unknown_backend: "backend disable mx9";
    reload: "reload";
    reload_json: "reload --json";
    dry_run: "reload --dry-run";
    dry_run_json: "reload --dry-run --json";
    poll: "poll";
    usage_unknown_command: "shwo";
    usage_unknown_option: "show --jsno";
    usage_bad_watch: "show --watch flows";
    usage_missing_name: "backend drain";
}

#[test]
fn the_summary_is_the_default_and_words_can_be_shortened() {
    let fake = Fake::start();
    let full = run(&fake.socket(), "show summary").stdout;
    for short in ["show", "sh", "sh sum"] {
        assert_eq!(run(&fake.socket(), short).stdout, full, "{short}");
    }
}

#[test]
fn the_socket_option_wins_over_the_environment() {
    let fake = Fake::start();
    let option = format!("--socket {}", fake.socket().display());
    for arguments in [format!("{option} show backends"), format!("show backends {option}")] {
        let output = run(Path::new("/nonexistent"), &arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_refused_reload_lists_each_error() {
    let fake = Fake::start();
    *fake.reload.lock().expect("the outcome") = Err(vec![
        "/etc/matapa/matapa.toml:3:1: unknown key `lisen`; did you mean `listen`?".to_owned(),
        "/etc/matapa/matapa.toml:9:12: no pool `mx`".to_owned(),
    ]);
    insta::assert_snapshot!(transcript(&fake, "reload"));
}

#[test]
fn a_dry_run_tells_of_errors_and_of_nothing_to_do() {
    let fake = Fake::start();
    *fake.reload.lock().expect("the outcome") = Ok(0);
    let nothing = transcript(&fake, "reload --dry-run");
    *fake.reload.lock().expect("the outcome") =
        Err(vec!["/etc/matapa/matapa.toml:3:1: unknown key `lisen`; did you mean `listen`?".to_owned()]);
    insta::assert_snapshot!(format!("{nothing}\n{}", transcript(&fake, "reload --dry-run")));
}

#[test]
fn events_are_one_line_each() {
    // The gap in the numbers is a line of its own.
    for (name, arguments, lines) in [("monitor", "monitor", 10), ("monitor_json", "monitor --json", 9)] {
        let mut fake = Fake::start();
        let mut child = matapa(&fake.socket(), arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it runs");
        let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        fake.wait_for_reader();
        for event in api_fake::events() {
            fake.events.send(event).expect("a reader");
        }
        let mut text = String::new();
        for _ in 0..lines {
            assert_ne!(stdout.read_line(&mut text).expect("output"), 0, "it ended: {text}");
        }
        fake.stop();
        stdout.read_to_string(&mut text).expect("output");
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(4));
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        insta::assert_snapshot!(
            name,
            text.replace(&fake.directory.path().display().to_string(), "/run/matapa")
        );
    }
}

#[test]
fn without_a_daemon_the_exit_status_is_4() {
    let directory = tempfile::tempdir().expect("a directory");
    let missing = directory.path().join("control.sock");
    let stale = directory.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).expect("bound"));
    let mut texts = Vec::new();
    for (socket, arguments) in
        [(&missing, "show"), (&stale, "reload"), (&missing, "monitor"), (&missing, "poll")]
    {
        let output = run(socket, arguments);
        assert_eq!(output.status.code(), Some(4), "{arguments}");
        assert!(output.stdout.is_empty());
        texts.push(
            String::from_utf8_lossy(&output.stderr).replace(&directory.path().display().to_string(), "/run"),
        );
    }
    insta::assert_snapshot!(texts.concat());
}

#[test]
fn colours_can_be_forced_and_forbidden() {
    let fake = Fake::start();
    let always = String::from_utf8(run(&fake.socket(), "--color always show").stdout).expect("UTF-8");
    assert!(always.contains("\x1b["), "{always:?}");
    assert!(!always.contains("\x1b[2J"));
    let backends =
        String::from_utf8(run(&fake.socket(), "--color always show backends").stdout).expect("UTF-8");
    assert!(!backends.contains("\x1b[2J"), "a server's greeting reached the terminal");
    let mut never = matapa(&fake.socket(), "--color never show");
    let never = never.env("CLICOLOR_FORCE", "1").output().expect("it runs").stdout;
    assert!(!never.contains(&0x1b));
}

#[test]
fn a_closed_pipe_is_no_error() {
    let fake = Fake::start();
    for arguments in ["show", "show --json", "show --watch 0.1", "completions bash", "--help", "--version"] {
        let mut child = matapa(&fake.socket(), arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it runs");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments}");
        assert_eq!(output.status.code(), Some(0), "{arguments}");
    }
}

#[test]
fn a_full_disk_is_an_error() {
    let fake = Fake::start();
    let full = fs_open("/dev/full");
    let output =
        matapa(&fake.socket(), "show").stdout(full).stderr(Stdio::piped()).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("matapa: cannot write the output: "));
}

fn fs_open(path: &str) -> std::fs::File {
    std::fs::OpenOptions::new().write(true).open(path).expect("it opens")
}

#[test]
fn watching_shows_again_until_the_daemon_goes_away() {
    let mut fake = Fake::start();
    let mut child = matapa(&fake.socket(), "show summary --watch 0.1")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it runs");
    let mut output = child.stdout.take().expect("a pipe");
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while text.matches("Avlblty").count() < 3 {
        let length = output.read(&mut buffer).expect("output");
        assert_ne!(length, 0, "it ended: {text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    fake.stop();
    assert_eq!(child.wait().expect("it ends").code(), Some(4));
    assert!(!text.contains('\x1b'));
}
