//! The program on the interfaces: attached by links that are pinned, replaced without a packet lost.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, Xdp, XdpMode as AyaMode};
use lb_common::abi::map;
use log::{info, warn};

use super::Kernel;
use super::link::take_off;
use super::pins::Pins;
use crate::config::XdpMode;

/// An interface with the program on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    pub name: String,
    pub index: u32,
    /// In the driver, as opposed to generic.
    pub native: bool,
}

impl Attached {
    pub const fn mode(&self) -> &'static str {
        if self.native { "native" } else { "generic" }
    }
}

/// Numbers of the interfaces, so that an unknown one is found before anything is attached.
///
/// # Errors
/// For a name that no interface has; the text has those that exist.
pub fn resolve(interfaces: &[String]) -> anyhow::Result<Vec<(String, u32)>> {
    interfaces
        .iter()
        .map(|name| match nix::net::if_::if_nametoindex(name.as_str()) {
            Ok(index) => Ok((name.clone(), index)),
            Err(_) => bail!("there is no interface {name}; this machine has {}", names()),
        })
        .collect()
}

/// As [`resolve`], without those that are not there.
pub fn present(interfaces: &[String]) -> Vec<(String, u32)> {
    let index = |name: &String| nix::net::if_::if_nametoindex(name.as_str()).ok();
    interfaces.iter().filter_map(|name| Some((name.clone(), index(name)?))).collect()
}

fn names() -> String {
    let names = nix::net::if_::if_nameindex().map(|all| {
        all.iter().map(|i| i.name().to_string_lossy().into_owned()).collect::<Vec<_>>().join(", ")
    });
    names.unwrap_or_else(|_| "none that can be listed".to_owned())
}

impl Kernel {
    /// Puts the program on these interfaces, and on no others. One that has an older daemon's program gets the new one
    /// in its place, between two packets. When one cannot be attached, the new ones are taken off again.
    ///
    /// # Errors
    /// When the kernel or driver refuses; the text says what to do.
    pub fn attach(
        &mut self,
        pins: &Pins,
        interfaces: &[(String, u32)],
        mode: XdpMode,
    ) -> anyhow::Result<Vec<Attached>> {
        // Before any interface runs the new program, which is nothing without its stages.
        let stages = self.pin_stages(pins)?;
        let mut attached = Vec::new();
        let mut fresh = Vec::new();
        for (name, index) in interfaces {
            match self.attach_one(pins, name, *index, mode) {
                Ok((done, pin, is_fresh)) => {
                    attached.push(done);
                    if is_fresh {
                        fresh.push(pin);
                    }
                }
                Err(error) => {
                    for pin in fresh {
                        detach(&pin);
                    }
                    return Err(error);
                }
            }
        }
        for pin in pins.links().context("cannot read the pinned links")? {
            let wanted = attached.iter().any(|a| pins.link(&a.name, a.index, a.mode()) == pin);
            if !wanted {
                info!("taking the program off {}", pin.display());
                detach(&pin);
            }
        }
        self.set_ports(&attached.iter().map(|a| a.index).collect::<Vec<_>>());
        self.pin_program(pins)?;
        // No interface runs an older program any more.
        settle_stages(pins, &stages)?;
        self.keep_programs(pins);
        Ok(attached)
    }

    fn attach_one(
        &mut self,
        pins: &Pins,
        name: &str,
        index: u32,
        mode: XdpMode,
    ) -> anyhow::Result<(Attached, PathBuf, bool)> {
        for native in [true, false] {
            let attached = Attached { name: name.to_owned(), index, native };
            let pin = pins.link(name, index, attached.mode());
            if !pin.exists() {
                continue;
            }
            let fits = match mode {
                XdpMode::Auto => true,
                XdpMode::Native => native,
                XdpMode::Generic => !native,
            };
            if fits && self.replace(&pin).is_ok() {
                return Ok((attached, pin, false));
            }
            // Another mode is wanted, or the interface was removed and made again under the same number.
            detach(&pin);
        }
        let native = match mode {
            XdpMode::Generic => false,
            XdpMode::Native => true,
            XdpMode::Auto => match self.attach_fresh(pins, name, index, true) {
                Ok(done) => return Ok(done),
                Err(error) if refused_by_driver(&error) => {
                    warn!(
                        "the driver of {name} cannot run XDP ({error:#}); using generic mode, which costs several \
                         times as much per packet. `xdp_mode = \"generic\"` makes this choice silent"
                    );
                    false
                }
                Err(error) => return Err(error),
            },
        };
        self.attach_fresh(pins, name, index, native)
    }

    fn attach_fresh(
        &mut self,
        pins: &Pins,
        name: &str,
        index: u32,
        native: bool,
    ) -> anyhow::Result<(Attached, PathBuf, bool)> {
        let attached = Attached { name: name.to_owned(), index, native };
        let mode = if native { AyaMode::Driver } else { AyaMode::Skb };
        let program = &mut self.own.instance.program;
        let id = program.attach_to_if_index(index, mode).map_err(|error| explain(name, error))?;
        let link = program.take_link(id)?;
        let link = FdLink::try_from(link).with_context(|| {
            format!("the kernel cannot pin an XDP link on {name}; it needs Linux 5.9 or newer")
        })?;
        let pin = pins.link(name, index, attached.mode());
        link.pin(&pin).with_context(|| format!("cannot pin the link of {name} at {}", pin.display()))?;
        Ok((attached, pin, true))
    }

    fn replace(&mut self, pin: &Path) -> anyhow::Result<()> {
        replace(&mut self.own.instance.program, pin)
    }

    /// Pins the array of the program's stages, beside that of an older daemon: the kernel empties an array that is
    /// neither pinned nor held, and the interfaces still run the older program. Says where.
    fn pin_stages(&self, pins: &Pins) -> anyhow::Result<PathBuf> {
        let path = pins.new_stages().context("cannot read the pinned program arrays")?;
        self.own
            .instance
            .map(map::STAGES)?
            .pin(&path)
            .with_context(|| format!("cannot pin the program's stages at {}", path.display()))?;
        Ok(path)
    }

    fn pin_program(&mut self, pins: &Pins) -> anyhow::Result<()> {
        let path = pins.program();
        if path.exists()
            && let Err(error) = fs::remove_file(&path)
        {
            complain(&path, &error);
        }
        self.own
            .instance
            .program
            .pin(&path)
            .with_context(|| format!("cannot pin the program at {}", path.display()))
    }
}

/// Puts a program into a pinned link, in the place of the one that is there.
pub(super) fn replace(program: &mut Xdp, pin: &Path) -> anyhow::Result<()> {
    let link = FdLink::from(PinnedLink::from_pin(pin)?);
    let id = program.attach_to_link(XdpLink::try_from(link)?)?;
    // The pin keeps the link; our descriptor of it is not needed.
    drop(program.take_link(id)?);
    Ok(())
}

/// Puts the pin of the stages that are in use in the place of all others.
fn settle_stages(pins: &Pins, used: &Path) -> anyhow::Result<()> {
    let path = pins.stages();
    fs::rename(used, &path)
        .with_context(|| format!("cannot rename {} to {}", used.display(), path.display()))?;
    for other in pins.all_stages().context("cannot read the pinned program arrays")? {
        if other != path
            && let Err(error) = fs::remove_file(&other)
        {
            complain(&other, &error);
        }
    }
    Ok(())
}

fn detach(pin: &Path) {
    if let Err(error) = take_off(pin) {
        complain(pin, &error);
    }
}

fn complain(pin: &Path, error: &std::io::Error) {
    warn!("cannot remove the pin {}: {error}", pin.display());
}

fn errno(error: &ProgramError) -> Option<i32> {
    match error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    }
}

fn explain(name: &str, error: ProgramError) -> anyhow::Error {
    let hint = match errno(&error) {
        Some(libc::EBUSY) => format!(
            "another XDP program is on {name}; take it off with `ip link set dev {name} xdp off` or by the program \
             that put it there"
        ),
        Some(libc::EPERM) => format!("not allowed to attach to {name}; run as root"),
        _ => format!("cannot attach to {name}"),
    };
    anyhow::Error::new(error).context(hint)
}

/// Whether generic mode may succeed where native mode has failed.
fn refused_by_driver(error: &anyhow::Error) -> bool {
    let errno = error.downcast_ref::<ProgramError>().and_then(errno);
    // EOPNOTSUPP: no XDP; EINVAL, ERANGE, E2BIG, ENOSPC, ENOMEM: not with this MTU, these queues or offloads.
    matches!(
        errno,
        Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ERANGE | libc::E2BIG | libc::ENOSPC | libc::ENOMEM)
    )
}
