//! Names the BPF object that is embedded in the binary, or an empty one when there is none yet.
//!
//! The object is built by `cargo xtask build`, not here: it needs another compiler.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Names another object than the one in the target directory.
const VARIABLE: &str = "MATAPA_BPF_OBJECT";
const OBJECT: &str = "bpf/matapa-xdp.o";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    let object = match env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
        Some(path) => {
            let path = PathBuf::from(path);
            println!("cargo::rerun-if-changed={}", path.display());
            if !path.is_file() {
                return Err(format!("{VARIABLE} names {}, which is not a file", path.display()).into());
            }
            Some(path)
        }
        None => in_target(&out)?,
    };
    let bytes = object.map(fs::read).transpose()?.unwrap_or_default();
    fs::write(out.join("matapa-xdp.o"), bytes)?;
    Ok(())
}

/// The object in cargo's target directory, wherever that is; watched also while it is not there.
fn in_target(out: &Path) -> io::Result<Option<PathBuf>> {
    let target = target_dir(out);
    let object = target.join(OBJECT);
    if object.is_file() {
        println!("cargo::rerun-if-changed={}", object.display());
        return Ok(Some(object));
    }
    // A missing file would make cargo run this script each time; a directory is watched quietly.
    let dir = object.parent().unwrap_or(&target);
    fs::create_dir_all(dir)?;
    println!("cargo::rerun-if-changed={}", dir.display());
    Ok(None)
}

/// Cargo's target directory is the parent of OUT_DIR that it has tagged as a cache.
fn target_dir(out: &Path) -> PathBuf {
    let tagged = out.ancestors().filter(|dir| dir.join("CACHEDIR.TAG").is_file()).last();
    tagged.map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), Path::to_path_buf)
}
