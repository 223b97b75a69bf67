//! A directory of relayd.conf: what becomes of each, and that Matapa's own loader takes it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use lb_userspace::config;
use lb_userspace::import::relayd::{self, Imported, Options, Surroundings};

fn directory(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/relayd").join(kind)
}

fn files(kind: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory(kind))
        .expect("a directory")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "conf"))
        .collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

/// As the command does it, with names that do not depend on the machine.
fn import(path: &Path) -> Result<Imported, String> {
    let text = std::fs::read_to_string(path).expect("a readable file");
    let name = path.file_name().expect("a name").to_string_lossy().into_owned();
    let surroundings = Surroundings {
        read: &|file| {
            let beside = path.with_file_name(Path::new(file).file_name().unwrap_or_default());
            std::fs::read_to_string(beside).map_err(|_| "there is no such file".to_owned())
        },
        port: &|name| relayd::service_port("", name),
        addresses: &|name| match name {
            "mx1.example.org" => vec![IpAddr::from([198, 51, 100, 11])],
            "www.example.org" => {
                vec![IpAddr::from([203, 0, 113, 80]), "2001:db8::80".parse().expect("an address")]
            }
            _ => Vec::new(),
        },
    };
    relayd::import(&name, &text, &Options::default(), &surroundings)
        .map_err(|errors| errors.iter().map(|errors| errors.render(false)).collect())
}

fn settings(kind: &str) -> insta::Settings {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(directory(kind));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings
}

fn stem(path: &Path) -> String {
    path.file_stem().expect("a name").to_string_lossy().into_owned()
}

#[test]
fn what_becomes_of_each_example() {
    settings("good").bind(|| {
        for file in files("good") {
            let imported = import(&file).unwrap_or_else(|errors| panic!("{}: {errors}", file.display()));
            let notes: String = imported.notes.iter().map(|note| format!("{note}\n")).collect();
            let text = format!("{notes}---\n{}", imported.text);
            insta::assert_snapshot!(stem(&file), text);
            let loaded = config::parse(&imported.text, Path::new("imported.toml"));
            match loaded {
                Ok(config) => assert!(imported.usable && !config.services.is_empty()),
                Err(errors) => assert!(!imported.usable, "{}: {errors}", file.display()),
            }
        }
    });
}

#[test]
fn errors_have_file_line_and_column() {
    settings("bad").bind(|| {
        for file in files("bad") {
            let errors = import(&file).map(|imported| imported.text).expect_err("an error");
            assert!(errors.contains(".conf:"), "{errors}");
            insta::assert_snapshot!(stem(&file), errors);
        }
    });
}

#[test]
fn the_command_has_its_exit_codes() {
    let run = |arguments: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_matapa"))
            .args(["import", "relayd"])
            .args(arguments)
            .output()
            .expect("it runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let file = |name: &str| directory(name).display().to_string();
    let (code, stdout, stderr) = run(&[&file("good/mail.conf"), "--interface", "ext", "--interface", "int"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("interfaces = [\"ext\", \"int\"]"), "{stdout}");
    assert!(stderr.contains("mail.conf:19: demote: "), "{stderr}");
    config::parse(&stdout, Path::new("imported.toml")).expect("a configuration");
    let (code, stdout, stderr) = run(&[&file("good/overview.conf"), "-D", "public=203.0.113.99"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("listen = \"203.0.113.99:80\""), "{stdout}");
    let (code, stdout, stderr) = run(&[&file("bad/tables.conf")]);
    assert_eq!((code, stdout.as_str()), (Some(3), ""));
    assert!(stderr.contains("tables.conf:2:18: error: macro $b is not defined"), "{stderr}");
    let (code, stdout, stderr) = run(&[&file("good/nothing.conf")]);
    assert_eq!((code, stdout.as_str()), (Some(1), ""), "{stderr}");
    assert_eq!(run(&[&file("nosuch.conf")]).0, Some(1));
    assert_eq!(run(&["-D", "novalue", &file("good/mail.conf")]).0, Some(2));
    assert_eq!(run(&[]).0, Some(2));
}
