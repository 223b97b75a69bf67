//! Licences of the dependencies against the list in `deny.toml`, without any tool or network.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::process::host_cargo;
use crate::workspace::Workspace;

const REGISTRY: &str = "registry+";

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    /// Absent for a package of the workspace.
    source: Option<String>,
}

#[derive(Deserialize)]
struct Deny {
    licenses: Licenses,
}

#[derive(Deserialize)]
struct Licenses {
    allow: BTreeSet<String>,
}

/// Every dependency has an allowed licence and comes from the package registry.
pub fn check(workspace: &Workspace) -> Result<()> {
    let path = workspace.root.join("deny.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let deny: Deny = toml::from_str(&text).with_context(|| format!("cannot use {}", path.display()))?;
    let output = host_cargo(workspace)
        .args(["metadata", "--format-version", "1", "--locked", "--all-features"])
        .output()
        .context("cannot run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata: Metadata =
        serde_json::from_slice(&output.stdout).context("cannot read what cargo metadata prints")?;
    let bad: Vec<String> = metadata
        .packages
        .iter()
        .filter_map(|package| {
            Some(format!("{} {}: {}", package.name, package.version, fault(package, &deny)?))
        })
        .collect();
    if !bad.is_empty() {
        bail!("{} packages are not allowed by deny.toml: {}", bad.len(), bad.join("; "));
    }
    println!("{} packages, each with a licence that deny.toml allows", metadata.packages.len());
    Ok(())
}

fn fault(package: &Package, deny: &Deny) -> Option<String> {
    if package.source.as_ref().is_some_and(|source| !source.starts_with(REGISTRY)) {
        return Some("does not come from a registry".to_owned());
    }
    match &package.license {
        None => Some("names no licence".to_owned()),
        Some(licence) if allowed(licence, &deny.licenses.allow) => None,
        Some(licence) => Some(format!("licence {licence}")),
    }
}

/// Does an SPDX expression leave a choice that is allowed? `/` is the old way to write `OR`.
fn allowed(expression: &str, allow: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = &words[..];
    either(&mut rest, allow) && rest.is_empty()
}

fn either(words: &mut &[&str], allow: &BTreeSet<String>) -> bool {
    let mut good = both(words, allow);
    while let [word, rest @ ..] = *words
        && word.eq_ignore_ascii_case("OR")
    {
        *words = rest;
        good |= both(words, allow);
    }
    good
}

fn both(words: &mut &[&str], allow: &BTreeSet<String>) -> bool {
    let mut good = single(words, allow);
    while let [word, rest @ ..] = *words
        && word.eq_ignore_ascii_case("AND")
    {
        *words = rest;
        good &= single(words, allow);
    }
    good
}

fn single(words: &mut &[&str], allow: &BTreeSet<String>) -> bool {
    match *words {
        ["(", rest @ ..] => {
            *words = rest;
            let good = either(words, allow);
            let [")", rest @ ..] = *words else { return false };
            *words = rest;
            good
        }
        [licence, with, exception, rest @ ..] if with.eq_ignore_ascii_case("WITH") => {
            *words = rest;
            allow.contains(&format!("{licence} WITH {exception}")) || allow.contains(*licence)
        }
        [licence, rest @ ..] => {
            *words = rest;
            allow.contains(*licence)
        }
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_leave_a_choice_or_not() {
        let allow: BTreeSet<String> = ["MIT", "Apache-2.0", "Unicode-3.0"].map(String::from).into();
        for good in [
            "MIT",
            "GPL-3.0 OR MIT",
            "MIT/Unlicense",
            "(MIT OR GPL-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR GPL-2.0",
        ] {
            assert!(allowed(good, &allow), "{good}");
        }
        for bad in ["GPL-3.0", "MIT AND GPL-3.0", "(MIT OR GPL-2.0", "", "MIT OR", "MIT MIT"] {
            let expected = bad == "MIT OR";
            assert_eq!(allowed(bad, &allow), expected, "{bad}");
        }
    }
}
