//! The packet path as the daemon sees it: what the maps hold, what they should hold, and the steps between.
//!
//! [`image`] is the content of the maps as plain data; [`mod@plan`] finds the ordered steps from one image to another;
//! [`desired`] makes an image from a configuration and what the checks say. [`Dataplane`] takes the steps, over the
//! kernel's maps ([`kernel`]) or over plain memory ([`memory`]), where tests run the same packet code on the host.

pub mod desired;
pub mod endpoints;
pub mod first_stages;
pub mod flows;
pub mod image;
pub mod kernel;
pub mod memory;
pub mod object;
pub mod plan;
pub mod regions;
pub mod snapshot;
#[cfg(test)]
pub(crate) mod worlds;

use std::time::Instant;

use lb_common::abi::{Backend, Features, Listener, SiblingKey, TableRef};

use endpoints::{Endpoint, NoPlace};
use image::{Id, Image, Table, TunnelSources, address_bytes};
use plan::{Op, advance, plan};
use regions::Regions;
use snapshot::Readable;

/// Why a step could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error(
        "no room for {0} more slots in the TABLES map, which was made for fewer backends or services; \
         run `matapa detach` and start the daemon again to make it larger (this interrupts forwarding)"
    )]
    NoRoomForTable(u32),
    #[error(
        "no room for {endpoint} in the ENDPOINTS map ({why}); run `matapa detach` and start the daemon again, which \
         spreads endpoints anew (this interrupts forwarding)"
    )]
    NoRoomForEndpoint { endpoint: Endpoint, why: NoPlace },
    #[error("writing to the {map} map failed")]
    Map {
        map: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// How much of each thing the maps were made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    pub listeners: u32,
    pub backends: u32,
    /// Of all Maglev tables together, the ones being replaced included.
    pub table_slots: u32,
}

impl Capacity {
    /// Lines of `ENDPOINTS`.
    pub const fn endpoint_lines(&self) -> u32 {
        endpoints::lines_for(self.listeners, self.backends)
    }
}

/// The maps themselves: single writes, each of which is complete for a packet that comes in the middle.
pub trait Maps: Readable {
    fn write_features(&mut self, features: Features);
    fn write_tunnel(&mut self, tunnel: &TunnelSources);
    fn write_snat_address(&mut self, index: u8, address: [u8; 16]);
    fn write_listener(&mut self, id: Id, record: &Listener, service: &str);
    fn write_table_ref(&mut self, id: Id, table: TableRef);
    fn write_backend(&mut self, id: Id, record: &Backend, name: &str);

    /// # Errors
    /// When the kernel refuses it, such as for a full map.
    fn put_sibling(&mut self, key: SiblingKey, backend: Id) -> Result<(), ApplyError>;

    /// # Errors
    /// When the kernel refuses it. A sibling that is not there is none.
    fn remove_sibling(&mut self, key: SiblingKey) -> Result<(), ApplyError>;

    fn write_slots(&mut self, offset: u32, slots: &[Id]);
}

/// Maps and what they hold.
#[derive(Debug)]
pub struct Dataplane<M> {
    maps: M,
    image: Image,
    regions: Regions,
}

impl<M: Maps> Dataplane<M> {
    /// Over maps that hold `image`, or nothing. A table whose place contradicts another's is forgotten, to be built
    /// anew.
    pub fn over(maps: M, mut image: Image) -> Self {
        let mut regions = Regions::new(maps.capacity().table_slots);
        for (id, listener) in &mut image.listeners {
            let table = maps.table_ref(*id);
            if table.size() != 0 && !regions.claim(table.offset(), table.size()) {
                listener.table.members.clear();
            }
        }
        Self { maps, image, regions }
    }

    /// Over new maps, which hold nothing, and get what `image` says others hold, under the same numbers. Tables that were
    /// left half changed stay empty, to be built anew.
    ///
    /// # Errors
    /// As of [`Self::apply`].
    pub fn filled(maps: M, image: &Image) -> Result<Self, ApplyError> {
        let mut image = image.clone();
        for listener in image.listeners.values_mut() {
            if !listener.table.members.keys().all(|id| image.backends.contains_key(id)) {
                listener.table.members.clear();
            }
        }
        let empty = Image { pace: maps.pace(), ..Image::default() };
        let mut dataplane = Self::over(maps, empty);
        for step in plan(dataplane.image(), &image) {
            dataplane.apply(&step)?;
        }
        Ok(dataplane)
    }

    pub fn maps(&self) -> &M {
        &self.maps
    }

    /// For what changes more than maps, such as running the program.
    pub fn maps_mut(&mut self) -> &mut M {
        &mut self.maps
    }

    /// The maps, and what they hold now.
    pub fn into_parts(self) -> (M, Image) {
        (self.maps, self.image)
    }

    /// What the maps hold now.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Takes one step.
    ///
    /// # Errors
    /// When the kernel refuses a write or a map is full; the image is what it was then.
    pub fn apply(&mut self, op: &Op) -> Result<(), ApplyError> {
        match op {
            Op::PutFeatures(features) => self.maps.write_features(*features),
            Op::PutTunnel(tunnel) => self.maps.write_tunnel(tunnel),
            Op::PutSnatAddress(index, address) => {
                self.maps.write_snat_address(*index, address_bytes(*address));
            }
            Op::PutBackend(id, entry) => {
                // First, as the record says whether it holds.
                self.maps.flows().set_limit(*id, entry.max_flows.unwrap_or(0));
                self.maps.write_backend(*id, &entry.record(), &entry.name);
            }
            Op::LinkBackend(id, next) => {
                if let Some(entry) = self.image.backends.get(id) {
                    let record = Backend { next: *next, ..entry.record() };
                    self.maps.write_backend(*id, &record, &entry.name);
                }
            }
            Op::PutSibling(key, id) => self.maps.put_sibling(*key, *id)?,
            Op::PutListener(id, entry) => {
                let table = match self.image.listeners.get(id) {
                    Some(old) if old.is_same(entry) => self.maps.table_ref(*id),
                    _ => TableRef::EMPTY,
                };
                self.maps.write_listener(*id, &entry.record(table), &entry.service);
            }
            Op::PutTable(id, table) => self.put_table(*id, table)?,
            Op::LinkListener(id, next) => {
                if let Some(entry) = self.image.listeners.get(id) {
                    let record = Listener { next: *next, ..entry.record(self.maps.table_ref(*id)) };
                    self.maps.write_listener(*id, &record, &entry.service);
                }
            }
            Op::PutEndpoint(endpoint, id) => {
                let old = self.image.endpoints.get(endpoint).copied();
                let put = self.maps.endpoints().put(endpoint.hash(&self.maps.hash_key()), old, *id);
                put.map_err(|why| ApplyError::NoRoomForEndpoint { endpoint: *endpoint, why })?;
            }
            Op::RemoveEndpoint(endpoint) => {
                if let Some(id) = self.image.endpoints.get(endpoint) {
                    self.maps.endpoints().remove(endpoint.hash(&self.maps.hash_key()), *id);
                }
            }
            Op::RemoveListener(id) => {
                let table = self.maps.table_ref(*id);
                // A packet that is at this one at this very moment still finds the rest of the chain.
                let next = self.image.listeners.get(id).map_or(0, |entry| entry.next);
                self.maps.write_listener(*id, &Listener { next, ..Listener::default() }, "");
                self.give_back(table);
            }
            Op::RemoveSibling(key) => self.maps.remove_sibling(*key)?,
            Op::RemoveBackend(id) => {
                let next = self.image.backends.get(id).map_or(0, |entry| entry.next);
                self.maps.write_backend(*id, &Backend { next, ..Backend::default() }, "");
                self.maps.flows().forget(*id);
                self.maps.flows().set_limit(*id, 0);
            }
        }
        advance(&mut self.image, op);
        Ok(())
    }

    /// Builds a table beside the old one and swaps them with one write.
    fn put_table(&mut self, id: Id, table: &Table) -> Result<(), ApplyError> {
        let slots = self.image.fill(table, self.maps.hash_key().seed);
        let old = self.maps.table_ref(id);
        let size = u32::try_from(slots.len()).unwrap_or(u32::MAX);
        let new = if slots.is_empty() {
            TableRef::EMPTY
        } else {
            let offset = loop {
                match self.regions.take(size, Instant::now()) {
                    Ok(offset) => break offset,
                    // Only when tables are replaced many times within a tenth of a second.
                    Err(Some(wait)) => std::thread::sleep(wait),
                    Err(None) => return Err(ApplyError::NoRoomForTable(size)),
                }
            };
            self.maps.write_slots(offset, &slots);
            TableRef::new(offset, size, u16::try_from(table.members.len()).unwrap_or(u16::MAX))
        };
        self.maps.write_table_ref(id, new);
        self.give_back(old);
        Ok(())
    }

    fn give_back(&mut self, table: TableRef) {
        if table.size() != 0 {
            self.regions.give(table.offset(), table.size(), Instant::now());
        }
    }
}

#[cfg(test)]
mod tests;
