//! Telling the service manager how it stands (sd_notify(3)): a datagram to a socket that the environment names. So few
//! lines need no library.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::OnceLock;

use log::debug;

/// Who is told, if anybody.
static MANAGER: OnceLock<Option<Manager>> = OnceLock::new();

#[derive(Debug)]
struct Manager {
    socket: UnixDatagram,
    address: SocketAddr,
    /// It wants to hear of us again and again.
    watches: bool,
}

impl Manager {
    /// # Errors
    /// When the address is none, or there are no sockets.
    fn new(address: &OsString, watches: bool) -> io::Result<Self> {
        let address = match address.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(address)?,
        };
        let socket = UnixDatagram::unbound()?;
        // One that does not read must not hold the daemon up.
        socket.set_nonblocking(true)?;
        Ok(Self { socket, address, watches })
    }

    fn from_environment() -> Option<Self> {
        let address = std::env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty())?;
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        // The process that is watched may be another one, which has started this one.
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watches = ours && number("WATCHDOG_USEC").is_some_and(|time| time > 0);
        Self::new(&address, watches).inspect_err(|error| debug!("NOTIFY_SOCKET cannot be used: {error}")).ok()
    }

    fn send(&self, text: &str) {
        if let Err(error) = self.socket.send_to_addr(text.as_bytes(), &self.address) {
            debug!("the service manager cannot be told {text:?}: {error}");
        }
    }
}

fn manager() -> Option<&'static Manager> {
    MANAGER.get_or_init(Manager::from_environment).as_ref()
}

/// It forwards, and answers.
pub(super) fn ready() {
    tell("READY=1");
}

/// It is ending.
pub(super) fn stopping() {
    tell("STOPPING=1");
}

/// To be called every second or so by what must not get stuck.
pub(crate) fn alive() {
    if let Some(manager) = manager().filter(|manager| manager.watches) {
        manager.send("WATCHDOG=1");
    }
}

fn tell(text: &str) {
    if let Some(manager) = manager() {
        manager.send(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_address_are_reached() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let name = format!("@matapa-test-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&name.as_bytes()[1..]).unwrap();
        for (address, heard) in [
            (path.clone().into_os_string(), UnixDatagram::bind(&path).unwrap()),
            (OsString::from(&name), UnixDatagram::bind_addr(&abstract_address).unwrap()),
        ] {
            Manager::new(&address, false).unwrap().send("READY=1");
            let mut buffer = [0; 16];
            assert_eq!(heard.recv(&mut buffer).unwrap(), 7);
            assert_eq!(&buffer[..7], b"READY=1");
        }
        // One that has gone is no harm.
        Manager::new(&directory.path().join("nosuch").into_os_string(), true).unwrap().send("WATCHDOG=1");
    }
}
