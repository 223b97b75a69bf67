//! Configurations that are refused: every file in `config/bad` has its message beside it, as an operator sees it.
//! `INSTA_UPDATE=always cargo test -p lb-userspace --test config_errors` writes them anew.

use std::path::{Path, PathBuf};

use lb_userspace::config;

fn bad_files() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config/bad");
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory)
        .expect("a directory of configurations")
        .map(|entry| entry.expect("a readable directory").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    files.sort();
    files
}

#[test]
fn bad_files_are_explained() {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("config/bad");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    let files = bad_files();
    assert!(files.len() >= 30);
    settings.bind(|| {
        for path in files {
            let source = std::fs::read_to_string(&path).unwrap();
            let file = Path::new(path.file_name().unwrap());
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            let errors = config::parse(&source, file).expect_err(&name);
            let text = format!("{}\n{}", errors.render(false), errors.lines().join("\n"));
            insta::assert_snapshot!(name, text);
        }
    });
}

#[test]
fn lines_are_sorted_single_lines_with_positions() {
    for path in bad_files() {
        let source = std::fs::read_to_string(&path).unwrap();
        let errors = config::parse(&source, Path::new("m.toml")).expect_err("a bad file");
        let positions: Vec<_> = errors.iter().map(|error| (error.line, error.column)).collect();
        assert!(positions.is_sorted(), "{}: {positions:?}", path.display());
        for (line, error) in errors.lines().iter().zip(&errors) {
            let prefix = format!("m.toml:{}:{}: {}", error.line, error.column, error.message);
            assert!(line.starts_with(&prefix) && !line.contains('\n'), "{line}");
        }
        for error in &errors {
            assert!(error.help.is_some() || error.message.starts_with("not TOML"), "{error:?}");
        }
    }
}

#[test]
fn color_changes_nothing_but_color() {
    for path in bad_files() {
        let source = std::fs::read_to_string(&path).unwrap();
        let errors = config::parse(&source, Path::new("m.toml")).expect_err("a bad file");
        let colored = errors.render(true);
        assert!(colored.contains("\u{1b}["));
        let plain: String = colored
            .split('\u{1b}')
            .enumerate()
            .map(|(index, part)| match part.split_once('m') {
                Some((_, rest)) if index > 0 => rest,
                _ => part,
            })
            .collect();
        let trimmed = |text: &str| text.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>();
        assert_eq!(trimmed(&plain), trimmed(&errors.render(false)));
    }
}

#[test]
fn control_characters_do_not_reach_the_terminal() {
    let source = "interfaces = [\"a\u{200b}b\", \"\\u001b[2J\"]\n\"\\u001b[31m\" = 1\n";
    let errors = config::parse(source, Path::new("m.toml")).unwrap_err();
    for text in [errors.render(false), errors.lines().join(" ")] {
        assert!(!text.contains('\u{1b}'), "{text:?}");
    }
}

#[test]
fn unreadable_files() {
    let directory = tempfile::tempdir().unwrap();
    let message = |path: &Path| {
        let error = config::load(path).unwrap_err();
        let text = error.to_string().replace(&path.display().to_string(), "FILE");
        assert_eq!(error.lines().len(), 1);
        text
    };
    let missing = directory.path().join("missing.toml");
    let expected = "cannot read FILE: there is no such file (another one is named with -c FILE)";
    assert_eq!(message(&missing), expected);
    assert_eq!(message(directory.path()), "cannot read FILE: it is a directory (name the file in it)");

    let binary = directory.path().join("binary.toml");
    std::fs::write(&binary, b"interfaces = [\n  \"\xff\"]").unwrap();
    assert_eq!(message(&binary), "FILE:2:4: not UTF-8 text, which a configuration must be");

    assert_eq!(message(Path::new("/dev/zero")), "FILE is larger than 4 MiB, which no configuration is");
}

#[test]
fn errors_of_a_file_bear_its_path() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("matapa.toml");
    std::fs::write(&path, "interfaces = [\"eth0\"]\n").unwrap();
    let error = config::load(&path).unwrap_err();
    assert!(error.lines()[0].starts_with(&format!("{}:1:1: there are no services", path.display())));
    assert!(error.render(false).contains("1 error\n"));
}
