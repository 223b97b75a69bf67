//! What ethtool(8) would say of an interface, by the old ioctls of linux/ethtool.h, which every kernel has. Only three
//! questions, so no crate.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Of linux/sockios.h.
const SIOCETHTOOL: libc::c_ulong = 0x8946;
/// Of linux/ethtool.h.
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GTXCSUM: u32 = 0x16;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETH_FLAG_LRO: u32 = 1 << 15;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware_version: [u8; 32],
    bus_info: [u8; 32],
    erom_version: [u8; 32],
    reserved: [u8; 12],
    counts: [u32; 5],
}

/// `struct ifreq` with a pointer, at its full size.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    data: *mut libc::c_void,
    rest: [u8; 16],
}

#[derive(Debug)]
pub(super) struct Ethtool(OwnedFd);

impl Ethtool {
    /// # Errors
    /// When there are no sockets at all.
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self(socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?))
    }

    /// # Errors
    /// When the driver does not tell.
    pub(super) fn driver(&self, interface: &str) -> io::Result<String> {
        let mut info = DriverInfo {
            command: ETHTOOL_GDRVINFO,
            driver: [0; 32],
            version: [0; 32],
            firmware_version: [0; 32],
            bus_info: [0; 32],
            erom_version: [0; 32],
            reserved: [0; 12],
            counts: [0; 5],
        };
        // SAFETY: the kernel writes a `struct ethtool_drvinfo`, which `info` is laid out as.
        unsafe { self.call(interface, &raw mut info) }?;
        let name = info.driver.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(name).into_owned())
    }

    /// Whether it joins packets that it receives (LRO).
    ///
    /// # Errors
    /// When the driver does not tell.
    pub(super) fn joins_received(&self, interface: &str) -> io::Result<bool> {
        Ok(self.value(interface, ETHTOOL_GFLAGS)? & ETH_FLAG_LRO != 0)
    }

    /// Whether checksums of what it sends are left to the card, or, of a virtual one, to the other end.
    ///
    /// # Errors
    /// When the driver does not tell.
    pub(super) fn leaves_checksums(&self, interface: &str) -> io::Result<bool> {
        Ok(self.value(interface, ETHTOOL_GTXCSUM)? != 0)
    }

    fn value(&self, interface: &str, command: u32) -> io::Result<u32> {
        let mut value = Value { command, data: 0 };
        // SAFETY: the kernel writes a `struct ethtool_value`, which `value` is laid out as.
        unsafe { self.call(interface, &raw mut value) }?;
        Ok(value.data)
    }

    /// # Safety
    /// `data` must point to what the command that it begins with expects.
    unsafe fn call<T>(&self, interface: &str, data: *mut T) -> io::Result<()> {
        let mut request = Request { name: [0; libc::IFNAMSIZ], data: data.cast(), rest: [0; 16] };
        let name = interface.as_bytes();
        // The last byte stays zero.
        if name.len() >= libc::IFNAMSIZ {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        request.name[..name.len()].copy_from_slice(name);
        // SAFETY: `request` is a `struct ifreq`, and what it points to is as the caller promises.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layouts_are_the_kernels() {
        assert_eq!(size_of::<DriverInfo>(), 196);
        assert_eq!(size_of::<Request>(), 40);
    }

    #[test]
    fn an_interface_that_is_not_there() {
        let ethtool = Ethtool::open().unwrap();
        assert!(ethtool.driver("nosuch0").is_err());
        assert!(ethtool.driver("a-name-that-is-too-long").is_err());
    }
}
