//! The layout before that of the feature `next-layout`, which is there for the tests: it is what a change of the layout
//! leaves behind. That one has longer names, and the fields of two records in another order.

use bytemuck::{Pod, Zeroable};
use lb_common::abi::endpoint::ENDPOINT_WAYS;
use lb_common::abi::flow::WAYS;
use lb_common::abi::{
    self, ABI_VERSION, Backend, BackendFlags, Be16, FlowTuple, Listener, Mode, Settings, map,
};

use super::{FlowDecoder, Layout};

const NAME_LEN: usize = 64;

pub(super) static LAYOUT: Layout = Layout {
    version: ABI_VERSION - 1,
    sizes: [
        (map::SETTINGS, size_of::<Settings>()),
        (map::ENDPOINTS, ENDPOINT_WAYS * 8),
        (map::LISTENERS, size_of::<Listener>()),
        (map::LISTENER_NAMES, NAME_LEN),
        (map::BACKENDS, size_of::<BackendBefore>()),
        (map::BACKEND_NAMES, NAME_LEN),
        (map::TABLES, 8),
        (map::FLOWS, WAYS * 8),
        (map::FLOW_TUPLES, size_of::<TupleBefore>()),
        (map::SNAT_ADDRESSES, 16),
    ],
    settings: bytemuck::pod_read_unaligned,
    listener: bytemuck::pod_read_unaligned,
    backend: |bytes| bytemuck::pod_read_unaligned::<BackendBefore>(bytes).now(),
    flows: Some(FlowDecoder {
        word: |word| word,
        tuple: |bytes| bytemuck::pod_read_unaligned::<TupleBefore>(bytes).now(),
    }),
    moves: true,
    copied: super::THIS.copied,
};

const _: () = assert!(abi::NAME_LEN != NAME_LEN, "the layouts differ");

/// As [`Backend`] was.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct BackendBefore {
    addr: [u8; 16],
    port: Be16,
    flags: BackendFlags,
    health: u8,
    listener: u32,
    admin: u8,
    mode: Mode,
    weight: u16,
    next: u32,
    server: u32,
    outer_port: Be16,
    weight_by_hand: u16,
    vip: [u8; 16],
    vip_port: Be16,
    address_change: u16,
    transport_change: u16,
    protocol: u8,
    reserved: u8,
}

impl BackendBefore {
    const fn now(self) -> Backend {
        let Self {
            addr,
            port,
            flags,
            health,
            listener,
            admin,
            mode,
            weight,
            next,
            server,
            outer_port,
            weight_by_hand,
            vip,
            vip_port,
            address_change,
            transport_change,
            protocol,
            reserved,
        } = self;
        Backend {
            addr,
            port,
            flags,
            health,
            listener,
            admin,
            mode,
            weight,
            next,
            server,
            outer_port,
            weight_by_hand,
            vip,
            vip_port,
            address_change,
            transport_change,
            protocol,
            reserved,
        }
    }
}

/// As [`FlowTuple`] was.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct TupleBefore {
    client: [u8; 16],
    client_port: Be16,
    vip_port: Be16,
    listener: u32,
    partner: u32,
    snat_port: Be16,
    snat_index: u16,
}

impl TupleBefore {
    const fn now(self) -> FlowTuple {
        let Self { client, client_port, vip_port, listener, partner, snat_port, snat_index } = self;
        FlowTuple { client, client_port, vip_port, listener, partner, snat_port, snat_index }
    }
}
