//! What the kernel says of interfaces.

use std::collections::BTreeSet;

use tokio::sync::mpsc;

use super::Engine;
use crate::carp::io::link::{Link, Netlink};
use crate::carp::io::socket::Sockets;

/// An interface with vhids.
#[derive(Debug, Default)]
pub(super) struct Port {
    /// `None`: there is none of this name.
    pub(super) link: Option<Link>,
    pub(super) sockets: Option<Sockets>,
    /// Families that the sockets were opened for: IPv4, IPv6.
    pub(super) families: (bool, bool),
    /// The last complaint, so that it is made once.
    pub(super) trouble: Option<String>,
}

impl Port {
    pub(super) fn is_running(&self) -> bool {
        self.sockets.is_some() && self.link.as_ref().is_some_and(|link| link.running)
    }
}

/// What the kernel says of interfaces, by their names.
pub(super) type Seen = Vec<(String, std::io::Result<Option<Link>>)>;

pub(super) async fn gather(netlink: Netlink, interfaces: BTreeSet<String>) -> Seen {
    let mut seen = Vec::new();
    for name in interfaces {
        let link = netlink.link(&name).await;
        seen.push((name, link));
    }
    seen
}

/// Asks the kernel about interfaces apart from the protocol: while something else configures interfaces, the kernel may
/// take long to answer.
#[derive(Debug)]
pub(super) struct Looker {
    pub(super) seen: mpsc::Receiver<Seen>,
    pub(super) to: mpsc::Sender<Seen>,
    pub(super) asking: bool,
    /// Something has changed since it asked.
    pub(super) again: bool,
}

impl Looker {
    pub(super) fn new() -> Self {
        let (to, seen) = mpsc::channel(1);
        Self { seen, to, asking: false, again: false }
    }

    pub(super) fn ask(&mut self, engine: &Engine) {
        if self.asking {
            self.again = true;
            return;
        }
        self.asking = true;
        let (to, netlink, interfaces) = (self.to.clone(), engine.netlink.clone(), engine.interfaces());
        tokio::spawn(async move {
            // Nobody waits for it while the thread ends.
            let _ = to.send(gather(netlink, interfaces).await).await;
        });
    }

    pub(super) fn answered(&mut self, engine: &Engine) {
        self.asking = false;
        if std::mem::take(&mut self.again) {
            self.ask(engine);
        }
    }
}
