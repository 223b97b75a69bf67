//! The XDP program that lets everything pass.
//!
//! What a veth interface sends by `XDP_TX` waits in its peer's queue until the peer polls, and nobody tells the peer to
//! unless it has a program, too (`veth_xdp_flush` in the kernel's drivers/net/veth.c). Real cards need no such thing.

use std::ffi::CString;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Of linux/bpf.h.
const BPF_PROG_LOAD: i32 = 5;
const BPF_OBJ_PIN: i32 = 6;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
/// For frames larger than a page.
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
/// `r0 = XDP_PASS; exit`.
const PROGRAM: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 2, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];

/// `union bpf_attr` as far as loading a program needs it.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    attach_type: u32,
}

/// And for pinning it.
#[repr(C)]
struct Pin {
    path: u64,
    fd: u32,
    flags: u32,
}

/// The program by name, for `ip link set DEVICE xdp pinned`; removed when dropped. Interfaces that have it keep it.
#[derive(Debug)]
pub struct Pinned(PathBuf);

impl Pinned {
    /// # Errors
    /// When the kernel refuses it.
    pub fn create(path: PathBuf) -> Result<Self> {
        let what = || format!("cannot pin a program as {}", path.display());
        let program = load().context("cannot load a program that lets everything pass")?;
        let name = CString::new(path.as_os_str().as_bytes()).with_context(what)?;
        let pin = Pin { path: name.as_ptr() as u64, fd: u32::try_from(program.as_raw_fd())?, flags: 0 };
        bpf(BPF_OBJ_PIN, &pin).with_context(what)?;
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn load() -> Result<OwnedFd> {
    let licence = c"Dual MIT/GPL";
    let load = Load {
        kind: BPF_PROG_TYPE_XDP,
        count: u32::try_from(PROGRAM.len())?,
        instructions: PROGRAM.as_ptr() as u64,
        licence: licence.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: BPF_F_XDP_HAS_FRAGS,
        name: *b"lab_pass\0\0\0\0\0\0\0\0",
        ifindex: 0,
        attach_type: BPF_XDP,
    };
    let fd = bpf(BPF_PROG_LOAD, &load)?;
    // SAFETY: the kernel has just given it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// bpf(2).
fn bpf<T>(command: i32, attributes: &T) -> Result<i32> {
    // SAFETY: the kernel reads as many bytes as it is told, and what they point to outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(i32::try_from(result)?)
}
