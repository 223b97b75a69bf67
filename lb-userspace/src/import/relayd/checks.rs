//! Checks of relayd as Matapa's.

use super::syntax::{Check, HttpExpect};
use super::toml::quoted;

/// Where mail servers listen: there a greeting that is waited for is one of SMTP.
const MAIL_PORTS: [u16; 3] = [25, 587, 2525];

/// A check as it is written, without the keys that all checks have.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) kind: &'static str,
    /// Keys of this type with their values in TOML.
    pub(super) keys: Vec<(&'static str, String)>,
    /// What it does not do as relayd does.
    pub(super) notes: Vec<String>,
}

/// The check for a server whose port is `port`.
pub(super) fn write(check: &Check, port: u16) -> Written {
    let plain = |kind| Written { kind, keys: Vec::new(), notes: Vec::new() };
    match check {
        Check::Icmp => plain("icmp"),
        Check::Tcp => plain("tcp"),
        Check::Tls => {
            let mut written = plain("tls");
            written.keys.push(unverified());
            written
        }
        Check::Http { tls, path, host, expect } => {
            let mut written = plain(if *tls { "https" } else { "http" });
            written.keys.extend(tls.then(unverified));
            written.keys.push(("path", quoted(path)));
            if let Some(host) = host {
                written.keys.push(("host", quoted(host)));
            }
            match expect {
                HttpExpect::Code(code) => written.keys.push(("status", code.to_string())),
                HttpExpect::Digest => {
                    written.keys.push(("status", "200".to_owned()));
                    written.notes.push(
                        "digest: the page is not compared with a digest, only its status with 200; `body` looks for \
                         a text in it"
                            .to_owned(),
                    );
                }
            }
            written
        }
        Check::Send { send: None, expect, tls: false }
            if expect.starts_with("220") && MAIL_PORTS.contains(&port) =>
        {
            let note = "check send nothing expect \"220 ...\": smtp stands here, which also takes a greeting of several \
                        lines, and says EHLO and QUIT";
            Written { kind: "smtp", keys: Vec::new(), notes: vec![note.to_owned()] }
        }
        Check::Send { send, expect, tls } => {
            let mut written = plain("send-expect");
            let pattern = unescape(expect);
            let glob = without_sets(&pattern);
            if glob != pattern {
                written.notes.push(format!(
                    "check send: {} has ? where relayd's pattern has a set of characters; see that it fits",
                    quoted(&glob)
                ));
            }
            let send = send.as_ref().map(|send| format!("send = {}, ", quoted(&unescape(send))));
            let step = format!("{{ {}expect_glob = {} }}", send.unwrap_or_default(), quoted(&glob));
            written.keys.push(("steps", format!("[{step}]")));
            if *tls {
                written.keys.extend([("tls", "true".to_owned()), unverified()]);
            }
            written
        }
        Check::Binary { send, expect, tls } => {
            let mut written = plain("send-expect");
            let send = send.as_ref().map(|send| format!("send_hex = {}, ", quoted(send)));
            let step = format!("{{ {}expect_hex = {} }}", send.unwrap_or_default(), quoted(expect));
            written.keys.push(("steps", format!("[{step}]")));
            written.notes.push(
                "check binary send: the bytes may be anywhere in the answer; relayd wants them at its beginning".to_owned(),
            );
            if *tls {
                written.keys.extend([("tls", "true".to_owned()), unverified()]);
            }
            written
        }
        Check::Script(path) => {
            let mut written = plain("exec");
            written.keys.push(("command", format!("[{}]", quoted(path))));
            written.notes.push(
                "check script: relayd takes an exit status above 0 for up, Matapa takes 0; turn the script's around"
                    .to_owned(),
            );
            written
        }
    }
}

/// relayd looks at no certificate.
fn unverified() -> (&'static str, String) {
    ("verify", "false".to_owned())
}

/// A pattern of fnmatch(3) with `?` where it has a set of characters such as `[0-9]`: globs here have only `*` and `?`.
fn without_sets(pattern: &str) -> String {
    let mut glob = String::new();
    let mut rest = pattern;
    while let Some((before, set)) = rest.split_once('[') {
        glob.push_str(before);
        // A ] that comes first is one of the set.
        let end = set.char_indices().skip(1).find(|(_, c)| *c == ']');
        let Some((end, _)) = end else {
            rest = &rest[before.len()..];
            break;
        };
        glob.push('?');
        rest = &set[end + 1..];
    }
    glob.push_str(rest);
    glob
}

/// Line breaks as they are written in a pattern.
fn unescape(text: &str) -> String {
    text.replace("\\r", "\r").replace("\\n", "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(check: &Check, port: u16) -> String {
        let Written { kind, keys, notes } = write(check, port);
        let keys: String = keys.iter().map(|(key, value)| format!(" {key}={value}")).collect();
        format!("{kind}{keys} {}", notes.len())
    }

    #[test]
    fn each_check_has_an_equal() {
        let http = |tls, host: Option<&str>, expect| Check::Http {
            tls,
            path: "/up".to_owned(),
            host: host.map(str::to_owned),
            expect,
        };
        let send = |send: Option<&str>, expect: &str, tls| Check::Send {
            send: send.map(str::to_owned),
            expect: expect.to_owned(),
            tls,
        };
        let shown = [
            show(&Check::Icmp, 1),
            show(&Check::Tls, 1),
            show(&http(false, None, HttpExpect::Code(204)), 80),
            show(&http(true, Some("a.example"), HttpExpect::Digest), 443),
            show(&send(None, "220 *", false), 25),
            show(&send(None, "220 *", false), 21),
            show(&send(Some("PING\\r\\n"), "*PONG*", true), 6379),
            show(&Check::Binary { send: None, expect: "0aff".to_owned(), tls: false }, 1),
            show(&Check::Script("/bin/x".to_owned()), 1),
        ];
        assert_eq!(
            shown,
            [
                "icmp 0",
                "tls verify=false 0",
                r#"http path="/up" status=204 0"#,
                r#"https verify=false path="/up" host="a.example" status=200 1"#,
                "smtp 1",
                r#"send-expect steps=[{ expect_glob = "220 *" }] 0"#,
                r#"send-expect steps=[{ send = "PING\r\n", expect_glob = "*PONG*" }] tls=true verify=false 0"#,
                r#"send-expect steps=[{ expect_hex = "0aff" }] 1"#,
                r#"exec command=["/bin/x"] 1"#,
            ]
        );
    }

    #[test]
    fn a_set_of_characters_becomes_a_question_mark() {
        for (pattern, glob) in [
            ("[0-9]* ok[]x]", "?* ok?"),
            ("a[b", "a[b"),
            ("[]", "[]"),
            ("plain*", "plain*"),
            ("é[é]é", "é?é"),
        ] {
            assert_eq!(without_sets(pattern), glob, "{pattern}");
        }
    }
}
