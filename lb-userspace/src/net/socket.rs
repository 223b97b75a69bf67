//! The netlink socket: events as they come, and everything at once on request.

use std::io;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};

/// `RTNLGRP_*` of linux/rtnetlink.h: link, neighbour, and of each family address, route and rule; nexthop objects.
const GROUPS: [u32; 9] = [1, 3, 5, 7, 8, 9, 11, 19, 32];
/// Bytes that wait for us: a full routing table that is replaced is many events.
const RECEIVE_BUFFER: usize = 4 << 20;

/// An open socket.
pub(super) struct NetlinkSocket(TokioSocket);

/// What was received: a message, or `None` for one of a kind that is not understood.
pub(super) type Received = Option<RouteNetlinkMessage>;

impl NetlinkSocket {
    /// A socket that hears of changes.
    pub(super) fn events() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        let raw = socket.socket_mut();
        raw.bind(&SocketAddr::new(0, 0))?;
        raw.set_rx_buf_sz(RECEIVE_BUFFER)?;
        for group in GROUPS {
            raw.add_membership(group)?;
        }
        Ok(Self(socket))
    }

    /// The next events.
    ///
    /// # Errors
    /// `ENOBUFS` when events were lost.
    pub(super) async fn next(&mut self) -> io::Result<Vec<Received>> {
        let (bytes, _) = self.0.recv_from_full().await?;
        Ok(messages(&bytes).into_iter().map(|(_, payload)| inner(payload)).collect())
    }
}

/// Everything of the kind that `request` asks for.
///
/// # Errors
/// When the kernel refuses, or when it changed so much meanwhile that the answer may have holes.
pub(crate) async fn dump(request: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
    /// The answer is inconsistent (linux/netlink.h).
    const NLM_F_DUMP_INTR: u16 = 0x10;

    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    socket.socket_mut().bind_auto()?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send_to(&bytes, &SocketAddr::new(0, 0)).await?;
    let mut all = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full().await?;
        for (flags, payload) in messages(&bytes) {
            if flags & NLM_F_DUMP_INTR != 0 {
                return Err(io::Error::new(io::ErrorKind::Interrupted, "it changed while it was read"));
            }
            match payload {
                Some(NetlinkPayload::Done(_)) => return Ok(all),
                Some(NetlinkPayload::Error(error)) => return Err(error.to_io()),
                payload => all.extend(inner(payload)),
            }
        }
    }
}

type Payload = Option<NetlinkPayload<RouteNetlinkMessage>>;

fn inner(payload: Payload) -> Received {
    match payload {
        Some(NetlinkPayload::InnerMessage(message)) => Some(message),
        _ => None,
    }
}

/// The messages of a datagram, each with its flags; without payload where that is not understood (netlink(7): each has
/// its length first, in host order, and the next begins at a multiple of four bytes).
fn messages(mut bytes: &[u8]) -> Vec<(u16, Payload)> {
    let mut all = Vec::new();
    while let (Some(length), Some(flags)) = (bytes.first_chunk::<4>(), bytes.get(6..8)) {
        let length = u32::from_ne_bytes(*length) as usize;
        let Some(message) = bytes.get(..length).filter(|message| message.len() >= 16) else { break };
        let payload = NetlinkMessage::deserialize(message).ok().map(|message| message.payload);
        all.push((u16::from_ne_bytes([flags[0], flags[1]]), payload));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    all
}
