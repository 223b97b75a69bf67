//! The task that follows the kernel.

use std::io;
use std::time::Duration;

use log::{info, warn};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::RouteMessage;
use tokio::sync::watch;
use tokio::time::Instant;

use super::ports::Interfaces;
use super::routes::{self, Effect, Events};
use super::socket::{NetlinkSocket, dump};

/// How long to wait before routes are read once more, so that a table that is being replaced is not read for each route.
const PAUSE: Duration = Duration::from_millis(500);

/// Where the route epoch is written to.
pub trait EpochWriter: Send + 'static {
    /// The epoch that stands there.
    fn get(&self) -> u32;
    /// Replaces it; 0 has next hops looked up for every packet.
    fn set(&self, epoch: u32);
}

/// Starts to follow routes, neighbours and interfaces. Next hops are not remembered before everything was read once, nor
/// after the task has ended.
///
/// # Errors
/// When there is no netlink.
pub fn spawn(
    epoch: impl EpochWriter,
    interfaces: watch::Sender<Interfaces>,
    stopped: impl Future<Output = ()> + Send + 'static,
) -> io::Result<tokio::task::JoinHandle<()>> {
    let socket = NetlinkSocket::events()?;
    let watcher = Watcher {
        last: epoch.get(),
        epoch,
        interfaces,
        events: Events::default(),
        obstacle: None,
        caching: false,
        reread_at: Some(Instant::now()),
        interfaces_lost: true,
    };
    watcher.epoch.set(0);
    Ok(tokio::spawn(async move {
        let mut watcher = watcher;
        tokio::select! {
            () = watcher.follow(socket) => {}
            () = stopped => {}
        }
        // Nobody would tell the program of changes.
        watcher.epoch.set(0);
    }))
}

struct Watcher<E> {
    epoch: E,
    /// The last epoch that was not 0.
    last: u32,
    interfaces: watch::Sender<Interfaces>,
    events: Events,
    /// Why next hops are not remembered, when something about routes or rules is the reason.
    obstacle: Option<String>,
    caching: bool,
    /// Rules and routes are to be read then.
    reread_at: Option<Instant>,
    /// So are links and addresses.
    interfaces_lost: bool,
}

impl<E: EpochWriter> Watcher<E> {
    async fn follow(&mut self, mut socket: NetlinkSocket) {
        loop {
            let reread = async {
                match self.reread_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                received = socket.next() => match received {
                    Ok(messages) => messages.iter().for_each(|message| self.heard(message.as_ref())),
                    Err(error) => {
                        if error.raw_os_error() != Some(libc::ENOBUFS) {
                            warn!("cannot read changes of routes and interfaces: {error}");
                            // So that an error that stays does not keep a processor busy.
                            tokio::time::sleep(PAUSE).await;
                        }
                        self.lost();
                    }
                },
                () = reread => self.read().await,
            }
        }
    }

    fn heard(&mut self, message: Option<&RouteNetlinkMessage>) {
        let Some(message) = message else {
            // A kind that is not understood, such as nexthop objects: it may be about anything.
            return self.suspend();
        };
        self.interfaces.send_if_modified(|interfaces| interfaces.learn(message));
        match self.events.effect(message, self.caching) {
            Effect::Nothing => {}
            Effect::Forget => self.bump(),
            Effect::Reread => self.suspend(),
        }
    }

    /// Events were lost.
    fn lost(&mut self) {
        self.events.forget();
        self.interfaces_lost = true;
        self.suspend();
    }

    fn bump(&mut self) {
        if self.caching {
            self.last = routes::next_epoch(self.last);
            self.epoch.set(self.last);
        }
    }

    fn suspend(&mut self) {
        let wait = if self.caching { Duration::ZERO } else { PAUSE };
        self.caching = false;
        self.epoch.set(0);
        if self.reread_at.is_none() {
            self.reread_at = Some(Instant::now() + wait);
        }
    }

    /// Reads everything that is out of date. What changes meanwhile comes as an event afterwards.
    async fn read(&mut self) {
        self.reread_at = None;
        if let Err(error) = self.try_read().await {
            if error.kind() != io::ErrorKind::Interrupted {
                warn!("cannot read rules, routes and interfaces: {error}");
            }
            self.reread_at = Some(Instant::now() + PAUSE);
        }
    }

    async fn try_read(&mut self) -> io::Result<()> {
        if self.interfaces_lost {
            let mut fresh = Interfaces::default();
            for request in [
                RouteNetlinkMessage::GetLink(Default::default()),
                RouteNetlinkMessage::GetAddress(Default::default()),
            ] {
                for message in dump(request).await? {
                    fresh.learn(&message);
                }
            }
            self.interfaces.send_if_modified(|known| {
                let changed = *known != fresh;
                *known = fresh;
                changed
            });
            self.interfaces_lost = false;
        }
        let rules = dump(RouteNetlinkMessage::GetRule(Default::default())).await?;
        let rules = rules.iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewRule(rule) => Some(rule),
            _ => None,
        });
        let table = dump(RouteNetlinkMessage::GetRoute(RouteMessage::default())).await?;
        let table = table.iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewRoute(route) => Some(route),
            _ => None,
        });
        let obstacle = routes::obstacle(rules, table);
        match (&self.obstacle, &obstacle) {
            (_, Some(why)) if self.obstacle != obstacle => {
                info!("next hops are looked up for every packet, because of {why}");
            }
            (Some(_), None) => info!("next hops are remembered again"),
            _ => {}
        }
        self.caching = obstacle.is_none();
        self.obstacle = obstacle;
        self.bump();
        Ok(())
    }
}
