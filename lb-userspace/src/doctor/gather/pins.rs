//! What an earlier daemon has left, by the names of its pins.

use std::io;

use super::super::facts::{PinnedLink, Pins};
use crate::dataplane::kernel::pins;

pub(super) fn read() -> Pins {
    let directory = pins::directory();
    let mut found = Pins { directory: directory.display().to_string(), ..Pins::default() };
    match pins::links_in(&directory) {
        Ok(links) => {
            let names = links.iter().filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()));
            found.links = names.filter_map(|name| parse(&name)).collect();
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => found.unreadable = Some(error.to_string()),
    }
    found
}

/// `INTERFACE@INDEX@MODE`; an interface's name may contain `@`.
fn parse(name: &str) -> Option<PinnedLink> {
    let (rest, _mode) = name.rsplit_once('@')?;
    let (interface, index) = rest.rsplit_once('@')?;
    Some(PinnedLink { interface: interface.to_owned(), index: index.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_pins() {
        let link = |interface: &str, index| Some(PinnedLink { interface: interface.to_owned(), index });
        assert_eq!(parse("eth0@7@native"), link("eth0", 7));
        assert_eq!(parse("a@b@7@generic"), link("a@b", 7));
        assert_eq!(parse("eth0@x@native"), None);
        assert_eq!(parse("eth0"), None);
    }
}
