//! How pinned maps may be laid out: the layouts that this binary can read, and how their records become its own.
//!
//! Each change of the layout leaves the one before it here, with what it takes to read it: then a daemon of the new
//! version moves the flows of the old one. The first word of `CONTROL` is the version in every layout.

#[cfg(feature = "next-layout")]
mod before;

use lb_common::abi::endpoint::ENDPOINT_WAYS;
use lb_common::abi::flow::WAYS;
use lb_common::abi::{self, ABI_VERSION, Backend, FlowTuple, Listener, Settings, map};

/// One layout.
#[derive(Debug)]
pub struct Layout {
    pub version: u32,
    /// Bytes of an element in the maps that are read. When another size is found, the maps are of no layout that is
    /// known.
    pub sizes: [(&'static str, usize); 10],
    /// How a record becomes one of this version.
    pub settings: fn(&[u8]) -> Settings,
    pub listener: fn(&[u8]) -> Listener,
    pub backend: fn(&[u8]) -> Backend,
    /// How flows become those of this version. `None`: they are, and the table is read where it stands.
    pub flows: Option<FlowDecoder>,
    /// Whether programs over such maps heed [`lb_common::abi::Features::MOVING`], at its place in `SETTINGS`.
    pub moves: bool,
    /// Maps whose elements are copied as they are.
    pub copied: &'static [&'static str],
}

/// How flows of another layout become those of this version.
#[derive(Debug)]
pub struct FlowDecoder {
    pub word: fn(u64) -> u64,
    pub tuple: fn(&[u8]) -> FlowTuple,
}

/// What this binary makes.
pub static CURRENT: Layout = THIS;

const THIS: Layout = Layout {
    version: ABI_VERSION,
    sizes: [
        (map::SETTINGS, size_of::<Settings>()),
        (map::ENDPOINTS, ENDPOINT_WAYS * 8),
        (map::LISTENERS, size_of::<Listener>()),
        (map::LISTENER_NAMES, abi::NAME_LEN),
        (map::BACKENDS, size_of::<Backend>()),
        (map::BACKEND_NAMES, abi::NAME_LEN),
        (map::TABLES, 8),
        (map::FLOWS, WAYS * 8),
        (map::FLOW_TUPLES, size_of::<FlowTuple>()),
        (map::SNAT_ADDRESSES, 16),
    ],
    settings: bytemuck::pod_read_unaligned,
    listener: bytemuck::pod_read_unaligned,
    backend: bytemuck::pod_read_unaligned,
    flows: None,
    moves: true,
    copied: &[map::PORTS, map::VLANS, map::STICKY, map::FRAGMENTS, map::COUNTERS, map::BACKEND_STATS],
};

/// Version 3 counts a reason less, and the last word of its `CONTROL` was the time at which a daemon was last alive. Its
/// programs judge replies to flows that only the new maps know: the answer to a SYN may get lost that comes between the
/// replacement of the program on one interface and on the next.
#[cfg(not(feature = "next-layout"))]
static THREE: Layout = Layout { version: 3, moves: false, ..THIS };

/// What it can read, the one that it makes first.
#[cfg(not(feature = "next-layout"))]
static READABLE: [&Layout; 2] = [&CURRENT, &THREE];
#[cfg(feature = "next-layout")]
static READABLE: [&Layout; 2] = [&CURRENT, &before::LAYOUT];

/// Why pinned maps cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error(
        "the pinned maps have layout {0}, which is newer than this binary knows ({known}): they were made by a newer \
         matapa, which must go on with them; start that one, or run `matapa detach` to forget their connections and \
         begin anew with this one (this interrupts forwarding)",
        known = readable_versions()
    )]
    Newer(u32),
    #[error(
        "the pinned maps have layout {0}, which this binary can no longer read ({known}); start a version in between, \
         which moves their connections, or run `matapa detach` to forget them (this interrupts forwarding)",
        known = readable_versions()
    )]
    Older(u32),
    #[error(
        "the pinned maps say that they have layout {version}, but {what}; run `matapa detach` to forget their \
         connections and begin anew (this interrupts forwarding)"
    )]
    Broken { version: u32, what: String },
}

fn readable_versions() -> String {
    let versions: Vec<_> = READABLE.iter().map(|layout| layout.version.to_string()).collect();
    format!("it reads {}", versions.join(" and "))
}

/// The layout of this version, if its maps can be read.
///
/// # Errors
/// For a version that this binary does not know.
pub fn of_version(version: u32) -> Result<&'static Layout, Unreadable> {
    let found = READABLE.iter().find(|layout| layout.version == version);
    found.copied().ok_or(if version > ABI_VERSION {
        Unreadable::Newer(version)
    } else {
        Unreadable::Older(version)
    })
}

impl Layout {
    /// Whether maps of this layout can be used as they are.
    pub const fn is_current(&self) -> bool {
        self.version == ABI_VERSION
    }

    /// Bytes of an element of a map that is read; 0 for others.
    pub fn size(&self, name: &str) -> usize {
        self.sizes.iter().find(|(known, _)| *known == name).map_or(0, |(_, size)| *size)
    }

    /// Compares the sizes of the elements that are found.
    ///
    /// # Errors
    /// When one is not what this layout has.
    pub fn check(&self, found: impl Fn(&str) -> anyhow::Result<usize>) -> anyhow::Result<()> {
        for (name, size) in self.sizes {
            let found = found(name)?;
            if found != size {
                let what = format!("an element of {name} has {found} bytes instead of {size}");
                return Err(Unreadable::Broken { version: self.version, what }.into());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_layouts_are_refused_with_what_to_do() {
        let current = of_version(ABI_VERSION).unwrap();
        assert!(current.is_current());
        let newer = of_version(ABI_VERSION + 1).unwrap_err();
        assert_eq!(newer, Unreadable::Newer(ABI_VERSION + 1));
        let text = newer.to_string();
        let expected = format!("have layout {}, which is newer than this binary knows", ABI_VERSION + 1);
        assert!(text.contains(&expected) && text.contains("matapa detach"), "{text}");
        let text = of_version(1).unwrap_err().to_string();
        assert!(text.contains("layout 1, which this binary can no longer read (it reads"), "{text}");
    }

    #[test]
    fn an_element_of_another_size_is_named() {
        let sizes = |name: &str| Ok(CURRENT.size(name) + usize::from(name == map::BACKENDS) * 8);
        let text = CURRENT.check(sizes).unwrap_err().to_string();
        assert!(text.contains("an element of BACKENDS has 72 bytes instead of 64"), "{text}");
        assert!(CURRENT.check(|name| Ok(CURRENT.size(name))).is_ok());
    }
}
