//! The product with its maps filled from a configuration.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};
use lb_common::abi::{Be16, VlanKey};
use lb_common::verdict::Reason;
use lb_userspace::api::types::AdminState;
use lb_userspace::config::{self, Backend, Config, Listen, Member, Service};
use lb_userspace::dataplane::Dataplane;
use lb_userspace::dataplane::desired::{Verdicts, desired};
use lb_userspace::dataplane::image::Image;
use lb_userspace::dataplane::kernel::Kernel;
use lb_userspace::dataplane::kernel::load::{Geometry, Programs, load};
use lb_userspace::dataplane::kernel::pins::Pins;
use lb_userspace::dataplane::plan::plan;
use lb_userspace::dataplane::snapshot::Readable as _;
use lb_userspace::health::Health;
use lb_userspace::net::watch::EpochWriter as _;

use crate::network::{Interfaces, VLAN};

/// A loaded program and what its maps hold.
#[derive(Debug)]
pub struct Instance {
    dataplane: Dataplane<Kernel>,
    config: Config,
}

/// All servers are up but those of services with these names.
struct Checked {
    /// Not up yet.
    none: &'static str,
    /// Down, once traffic has flowed.
    dead: Option<&'static str>,
}

/// The service of which no server has ever been up.
pub const NONE: &str = "none";
/// The service whose servers go down after its flows were made.
pub const DEAD: &str = "dead";

impl Verdicts for Checked {
    fn health(&self, service: &Service, _listen: &Listen, _member: &Member<'_>) -> Health {
        if service.name == self.none {
            Health::Unknown
        } else if self.dead == Some(service.name.as_str()) {
            Health::Down
        } else {
            Health::Up
        }
    }

    fn admin(&self, _service: &Service, _backend: &Backend) -> AdminState {
        AdminState::Enabled
    }
}

impl Instance {
    /// Loads the program over maps of its own and fills them.
    ///
    /// # Errors
    /// When the configuration is wrong or the kernel refuses something.
    pub fn new(text: &str, geometry: Geometry) -> Result<Self> {
        let config = config::parse(text, Path::new("bench.toml"))?;
        let pins = Pins::open(&pin_directory())?;
        let loaded = load(&pins, geometry, None, Programs::All);
        // Maps and programs live on by their descriptors.
        pins.remove_all().context("cannot remove the pins of the bench")?;
        let mut instance = Self { dataplane: Dataplane::over(loaded?.kernel, Image::default()), config };
        instance.fill(None)?;
        // Routes do not change here: next hops are remembered, as the daemon has it.
        instance.kernel().route_epoch().set(1);
        Ok(instance)
    }

    /// Now the servers of the service [`DEAD`] are down.
    ///
    /// # Errors
    /// When the kernel refuses something.
    pub fn kill(&mut self) -> Result<()> {
        self.fill(Some(DEAD))
    }

    fn fill(&mut self, dead: Option<&'static str>) -> Result<()> {
        self.follow(&Checked { none: NONE, dead })
    }

    /// Brings the maps to what follows from these verdicts.
    ///
    /// # Errors
    /// When the kernel refuses something.
    pub fn follow(&mut self, verdicts: &impl Verdicts) -> Result<()> {
        let image = self.dataplane.image();
        let wanted = desired(&self.config, verdicts, image, self.dataplane.maps().capacity())?;
        for step in plan(image, &wanted) {
            self.dataplane.apply(&step)?;
        }
        Ok(())
    }

    /// What the maps hold.
    pub fn image(&self) -> &Image {
        self.dataplane.image()
    }

    /// Tells the program of its interfaces.
    ///
    /// # Errors
    /// When the kernel refuses something.
    pub fn connect(&mut self, interfaces: &Interfaces) -> Result<()> {
        let kernel = self.dataplane.maps_mut();
        kernel.set_ports(&[interfaces.client, interfaces.server]);
        let key = VlanKey { device: interfaces.client, outer: Be16::new(VLAN), ..VlanKey::default() };
        kernel.write_vlans(&BTreeMap::from([(key, interfaces.vlan)]))?;
        Ok(())
    }

    pub fn kernel(&self) -> &Kernel {
        self.dataplane.maps()
    }

    /// Why packets went where they went.
    ///
    /// # Errors
    /// When the kernel refuses to read the map.
    pub fn counters(&self) -> Result<BTreeMap<Reason, u64>> {
        self.kernel().counters()
    }

    /// Occupied places of the flow table.
    pub fn occupied(&self) -> u64 {
        let count = Cell::new(0);
        let kernel = self.kernel();
        let (image, key) = (self.dataplane.image(), kernel.hash_key());
        // Nothing is wanted, so nothing is read but the words themselves.
        let wanted = |_| {
            count.set(count.get() + 1);
            false
        };
        for _ in kernel.flows().list(image, &key, wanted) {}
        count.get()
    }

    /// Forgets all flows.
    pub fn forget_flows(&self) {
        for id in self.dataplane.image().backends.keys() {
            self.kernel().flows().forget(*id);
        }
    }
}

fn pin_directory() -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("/sys/fs/bpf/matapa-bench-{}-{number}", std::process::id()).into()
}
