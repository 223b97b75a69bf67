//! From a verdict to the packet path: the image made anew, the steps planned, tables built and swapped in the kernel's maps.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use lb_userspace::api::types::AdminState;
use lb_userspace::config::{Backend, Listen, Member, Service};
use lb_userspace::dataplane::Capacity;
use lb_userspace::dataplane::desired::Verdicts;
use lb_userspace::dataplane::kernel::load::Geometry;
use lb_userspace::health::Health;

use super::Row;
use crate::instance::Instance;
use crate::network::server4;

/// Slots of a service's table, where there are few services.
const SLOTS: usize = 65_537;

/// All servers are up but one.
struct Lost(IpAddr);

impl Verdicts for Lost {
    fn health(&self, _service: &Service, _listen: &Listen, member: &Member<'_>) -> Health {
        if member.backend.address == self.0 { Health::Down } else { Health::Up }
    }

    fn admin(&self, _service: &Service, _backend: &Backend) -> AdminState {
        AdminState::Enabled
    }
}

/// A service with so many servers, of which another one is down in each round.
///
/// # Errors
/// When the kernel refuses something, or the table has another size than is said.
pub fn change(backends: u16, rounds: u16) -> Result<Row> {
    let mut text = String::from(
        "interfaces = [\"client0\", \"server0\"]\n[services.many]\nlisten = \"203.0.113.10:80\"\nbackends = [",
    );
    for n in 1..=backends {
        write!(text, "\"{}\", ", server4(n))?;
    }
    text += "]\n";
    let capacity = Capacity { listeners: 16, backends: u32::from(backends) + 16, table_slots: 1 << 19 };
    let mut instance = Instance::new(&text, Geometry { capacity, flow_lines: 64 })?;
    let slots = instance.image().listeners.values().map(|listener| listener.table.size).max();
    if slots != Some(SLOTS as u32) {
        bail!("the table has {slots:?} slots, not {SLOTS}");
    }
    let mut took = Vec::new();
    for n in 1..=rounds.min(backends) {
        let begun = Instant::now();
        instance.follow(&Lost(server4(n).into())).context("a server goes down")?;
        took.push(begun.elapsed());
        // Replaced slots rest before they are used again.
        std::thread::sleep(std::time::Duration::from_millis(110));
    }
    Ok(Row::times("verdict to packet path, 65,537 slots", backends.into(), "servers", &took))
}
