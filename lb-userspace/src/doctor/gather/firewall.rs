//! The rules of nftables, as nft(8) prints them.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;

use super::super::facts::Firewall;

/// A ruleset of a hundred thousand rules takes about a second.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where it is when the user's path does not say.
const ELSEWHERE: [&str; 3] = ["nft", "/usr/sbin/nft", "/sbin/nft"];

pub(super) async fn read() -> Firewall {
    for program in ELSEWHERE {
        let mut command = Command::new(program);
        command.args(["--json", "list", "ruleset"]).stdin(Stdio::null()).kill_on_drop(true);
        match tokio::time::timeout(PATIENCE, command.output()).await {
            Err(_) => return Firewall::Unreadable("nft does not end".to_owned()),
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {}
            Ok(Err(error)) => return Firewall::Unreadable(error.to_string()),
            Ok(Ok(output)) if !output.status.success() => {
                let said = String::from_utf8_lossy(&output.stderr);
                return Firewall::Unreadable(said.lines().next().unwrap_or("nft fails").to_owned());
            }
            Ok(Ok(output)) => return parse(&output.stdout),
        }
    }
    Firewall::NoTool
}

fn parse(text: &[u8]) -> Firewall {
    let Ok(document) = serde_json::from_slice::<Value>(text) else {
        return Firewall::Unreadable("nft prints no JSON".to_owned());
    };
    match document.get("nftables").and_then(Value::as_array) {
        Some(objects) => Firewall::Rules(objects.clone()),
        None => Firewall::Unreadable("nft prints no ruleset".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rulesets_are_lists() {
        assert_eq!(
            parse(br#"{"nftables": [{"metainfo": {}}]}"#),
            Firewall::Rules(vec![serde_json::json!({"metainfo": {}})])
        );
        assert!(matches!(parse(b"{}"), Firewall::Unreadable(_)));
        assert!(matches!(parse(b"no"), Firewall::Unreadable(_)));
    }
}
