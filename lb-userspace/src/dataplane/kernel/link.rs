//! Taking a program off an interface now.
//!
//! Without its pin a link goes away too, but some time later: the kernel frees the file first. Until then the
//! interface has no room for a program in another mode, and packets still meet the old one.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use log::debug;

/// Of enum bpf_cmd in linux/bpf.h.
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_LINK_DETACH: libc::c_int = 34;

/// Takes the program off the interface and removes the pin of the link.
///
/// # Errors
/// When the pin cannot be removed.
pub fn take_off(pin: &Path) -> io::Result<()> {
    // An interface that is gone has taken the link with it.
    if let Err(error) = detach(pin) {
        debug!("{} was not detached: {error}", pin.display());
    }
    std::fs::remove_file(pin)
}

fn detach(pin: &Path) -> io::Result<()> {
    /// The part of union bpf_attr for BPF_OBJ_GET.
    #[repr(C)]
    struct ObjGet {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let attr = ObjGet { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: `attr` is what the command expects, and the path outlives the call.
    let fd = unsafe { bpf(BPF_OBJ_GET, &attr) }?;
    // SAFETY: the descriptor was just opened and belongs to nobody else.
    let link = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the command takes the number of a descriptor.
    unsafe { bpf(BPF_LINK_DETACH, &link.as_raw_fd()) }.map(drop)
}

/// # Safety
/// `attr` must be laid out as the part of union bpf_attr that `command` reads, and what it points to must be alive.
unsafe fn bpf<T>(command: libc::c_int, attr: &T) -> io::Result<libc::c_int> {
    // SAFETY: as the caller promises; the kernel reads size_of::<T>() bytes.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}
