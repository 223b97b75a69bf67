//! Where things are.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The directories of one checkout.
#[derive(Debug)]
pub struct Workspace {
    pub root: PathBuf,
    /// Cargo's target directory: `CARGO_TARGET_DIR`, else `target` in the workspace.
    pub target: PathBuf,
}

impl Workspace {
    pub fn find() -> Self {
        let manifest = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest.parent().map_or_else(|| manifest.clone(), Path::to_path_buf);
        let target = match env::var_os("CARGO_TARGET_DIR").filter(|dir| !dir.is_empty()) {
            Some(dir) => env::current_dir().unwrap_or_else(|_| root.clone()).join(dir),
            None => root.join("target"),
        };
        Self { root, target }
    }

    /// What `setup` builds or unpacks; survives until `cargo clean`.
    pub fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }

    /// Logs of installations.
    pub fn logs(&self) -> PathBuf {
        self.tools().join("log")
    }

    /// Programs unpacked for the lab because installing them would start a service.
    pub fn lab_programs(&self) -> PathBuf {
        self.tools().join("lab/bin")
    }

    /// Finished BPF objects and nothing else, so that a build script can watch it.
    pub fn objects(&self) -> PathBuf {
        self.target.join("bpf")
    }

    /// Cargo's target directory for the BPF build.
    pub fn bpf_target(&self) -> PathBuf {
        self.target.join("bpf-build")
    }

    /// `path` as it is best shown to a person.
    pub fn display(&self, path: &Path) -> String {
        path.strip_prefix(&self.root).unwrap_or(path).display().to_string()
    }

    /// The caller's `PATH`, then the system's program directories, then the unpacked lab programs.
    pub fn search_path(&self) -> OsString {
        let current = env::var_os("PATH").unwrap_or_default();
        let mut dirs: Vec<PathBuf> = env::split_paths(&current).collect();
        let extra = ["/usr/sbin", "/sbin"].map(PathBuf::from).into_iter().chain([self.lab_programs()]);
        for dir in extra {
            if !dirs.contains(&dir) {
                dirs.push(dir);
            }
        }
        env::join_paths(dirs).unwrap_or(current)
    }
}

/// The first file called `program` in `PATH`.
pub fn find_program(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(program)).find(|file| is_executable(file))
}

pub fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}
