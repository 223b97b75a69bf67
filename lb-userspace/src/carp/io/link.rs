//! Interfaces and their addresses, over rtnetlink(7).

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::TryStreamExt as _;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, MacVlanMode};
use rtnetlink::packet_route::route::RouteType;
use rtnetlink::{Handle, LinkMacVlan, LinkUnspec, MulticastGroup};
use tokio::sync::mpsc;

use super::announce::Mac;

/// An answer that takes longer never comes; the protocol must not wait for it.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long the kernel may take until it receives what comes to a new address, and between two looks.
const RECEIVING: Duration = Duration::from_millis(100);
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// An address with the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Assigned {
    pub address: IpAddr,
    pub prefix: u8,
}

impl Assigned {
    /// Whether this address is in the network that the other one and its prefix length name.
    #[must_use]
    pub fn is_in_network_of(&self, other: &Self) -> bool {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
            IpAddr::V6(v6) => v6.to_bits(),
        };
        let differing = bits(self.address) ^ bits(other.address);
        self.address.is_ipv4() == other.address.is_ipv4()
            && differing.leading_zeros() >= u32::from(other.prefix)
    }
}

impl std::fmt::Display for Assigned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// An interface as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub mac: Mac,
    pub up: bool,
    /// Up, and with a carrier.
    pub running: bool,
    /// In the kernel's order.
    pub addresses: Vec<Assigned>,
}

/// Questions and orders to the kernel.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: Handle,
}

/// Something about links or addresses has changed.
pub type Changes = mpsc::Receiver<()>;

impl Netlink {
    /// Must be called in a tokio runtime.
    ///
    /// # Errors
    /// When there is no rtnetlink.
    pub fn open() -> io::Result<(Self, Changes)> {
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let (connection, handle, mut messages) = rtnetlink::new_multicast_connection(&groups)?;
        tokio::spawn(connection);
        // One place: what changes in the meantime is seen when the kernel is asked.
        let (to, changes) = mpsc::channel(1);
        tokio::spawn(async move {
            while messages.next().await.is_some() {
                if let Err(mpsc::error::TrySendError::Closed(())) = to.try_send(()) {
                    break;
                }
            }
        });
        Ok((Self { handle }, changes))
    }

    /// The interface of this name; `None` if there is none.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn link(&self, name: &str) -> io::Result<Option<Link>> {
        in_time(async {
            let mut links = self.handle.link().get().match_name(name.to_owned()).execute();
            let message = match links.try_next().await {
                Ok(Some(message)) => message,
                Ok(None) => return Ok(None),
                Err(error) if is_missing(&error) => return Ok(None),
                Err(error) => return Err(io::Error::other(error)),
            };
            let index = message.header.index;
            let mac = message.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::Address(bytes) => Mac::try_from(bytes.as_slice()).ok(),
                _ => None,
            });
            let running = message.header.flags.contains(LinkFlags::Up | LinkFlags::Running);
            let up = message.header.flags.contains(LinkFlags::Up);
            let addresses = self.addresses(index).await?;
            Ok(Some(Link { index, mac: mac.unwrap_or_default(), up, running, addresses }))
        })
        .await
    }

    async fn addresses(&self, index: u32) -> io::Result<Vec<Assigned>> {
        let mut stream = std::pin::pin!(self.handle.address().get().set_link_index_filter(index).execute());
        let mut found = Vec::new();
        while let Some(message) = stream.try_next().await.map_err(io::Error::other)? {
            if let Some(address) = address_of(&message) {
                found.push(Assigned { address, prefix: message.header.prefix_len });
            }
        }
        Ok(found)
    }

    /// Puts an address on an interface. An IPv6 one is usable at once: that nobody else has it is what CARP is for.
    /// `route`: its network is reached by this interface. Returns once packets to the address are received.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn add(&self, index: u32, new: Assigned, route: bool) -> io::Result<()> {
        in_time(async {
            let mut request = self.handle.address().add(index, new.address, new.prefix).replace();
            let mut flags = AddressFlags::empty();
            flags.set(AddressFlags::Nodad, new.address.is_ipv6());
            flags.set(AddressFlags::Noprefixroute, !route);
            request.message_mut().attributes.push(AddressAttribute::Flags(flags));
            request.execute().await.map_err(io::Error::other)
        })
        .await?;
        if new.address.is_ipv6() {
            self.wait_received(new.address).await;
        }
        Ok(())
    }

    /// The kernel puts an IPv6 address in force later than it says, in a work queue. Until then it already asks for
    /// neighbours from there, and sends their answers away again: were the address announced now, the first neighbour
    /// would be asked for once more after a second, and its packets would wait.
    async fn wait_received(&self, address: IpAddr) {
        let start = tokio::time::Instant::now();
        // On a device that is down it does not come into force.
        while start.elapsed() < RECEIVING && !self.receives(address).await {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Whether what comes to `address` is for this machine.
    pub async fn receives(&self, address: IpAddr) -> bool {
        let message = crate::net::way::question(address);
        let route = in_time(async {
            let mut routes = self.handle.route().get(message).execute();
            routes.try_next().await.map_err(io::Error::other)
        });
        // An error is the kernel's way of saying that there is no route.
        route.await.ok().flatten().is_some_and(|route| route.header.kind == RouteType::Local)
    }

    /// Makes a device with a MAC address of its own on top of another. It is down.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn add_macvlan(&self, name: &str, parent: u32, mac: Mac) -> io::Result<()> {
        in_time(async {
            // In private mode a frame from another master, which has the same MAC address, would not reach the parent.
            let device = LinkMacVlan::new(name, parent, MacVlanMode::Bridge).address(mac.to_vec()).build();
            self.handle.link().add(device).execute().await.map_err(io::Error::other)
        })
        .await
    }

    /// # Errors
    /// When the kernel refuses.
    pub async fn set_up(&self, index: u32, up: bool) -> io::Result<()> {
        in_time(async {
            let device = LinkUnspec::new_with_index(index);
            let message = if up { device.up() } else { device.down() }.build();
            self.handle.link().change(message).execute().await.map_err(io::Error::other)
        })
        .await
    }

    /// # Errors
    /// When the kernel refuses.
    pub async fn delete(&self, index: u32) -> io::Result<()> {
        in_time(async { self.handle.link().del(index).execute().await.map_err(io::Error::other) }).await
    }

    /// Takes an address off an interface. One that is not there is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn remove(&self, index: u32, old: Assigned) -> io::Result<()> {
        in_time(async {
            let mut message = AddressMessage::default();
            message.header.index = index;
            message.header.prefix_len = old.prefix;
            message.header.family = if old.address.is_ipv4() {
                rtnetlink::packet_route::AddressFamily::Inet
            } else {
                rtnetlink::packet_route::AddressFamily::Inet6
            };
            message.attributes.push(AddressAttribute::Local(old.address));
            message.attributes.push(AddressAttribute::Address(old.address));
            match self.handle.address().del(message).execute().await {
                Err(error) if !is_missing(&error) => Err(io::Error::other(error)),
                _ => Ok(()),
            }
        })
        .await
    }
}

/// The interface's own address: `Local` where there is a peer address as well.
fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(local) => return Some(*local),
            AddressAttribute::Address(other) => address = Some(*other),
            _ => {}
        }
    }
    address.filter(|address| *address != IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}

fn is_missing(error: &rtnetlink::Error) -> bool {
    let rtnetlink::Error::NetlinkError(message) = error else { return false };
    message.code.is_some_and(|code| [-libc::ENODEV, -libc::EADDRNOTAVAIL].contains(&code.get()))
}

async fn in_time<T>(call: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(PATIENCE, call).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks() {
        let at = |text: &str, prefix| Assigned { address: text.parse().unwrap(), prefix };
        assert!(at("192.0.2.1", 24).is_in_network_of(&at("192.0.2.200", 24)));
        assert!(!at("192.0.2.1", 24).is_in_network_of(&at("192.0.3.1", 24)));
        assert!(at("192.0.2.1", 32).is_in_network_of(&at("192.0.3.1", 23)));
        assert!(at("2001:db8::1", 64).is_in_network_of(&at("2001:db8::2", 64)));
        assert!(!at("2001:db8::1", 64).is_in_network_of(&at("2001:db8::2", 128)));
        assert!(!at("192.0.2.1", 24).is_in_network_of(&at("::", 1)));
    }
}
