//! `[carp.NAME]`: addresses shared with other gateways.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::diagnostics::{At, Errors, Span};
use super::document::{self, Entry, Known, Value};
use super::general;
use super::known_keys::Place;
use super::values::{self, quote};

/// Of a password in bytes: `ifconfig` cuts off the rest, ucarp refuses it.
pub const LONGEST_PASSWORD: usize = 19;

const LONGEST_DELAY: Duration = Duration::from_secs(3600);
const DEFAULT_GROUP: &str = "carp";

/// One vhid: addresses that one gateway of several has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carp {
    pub name: String,
    /// Where the addresses are, and where advertisements are sent and heard.
    pub interface: String,
    /// 1 to 255, one of its own on each network segment.
    pub vhid: u8,
    /// In the order of the file.
    pub addresses: Vec<VirtualAddress>,
    pub password: Password,
    /// Seconds between advertisements. Default 1.
    pub advbase: u8,
    /// 1/256 seconds more; the gateway with the least is master. Default 0, at most 254.
    pub advskew: u8,
    /// Take over from a master that advertises more slowly. Default false.
    pub preempt: bool,
    /// How long such a master is left in peace first. Default none.
    pub preempt_delay: Duration,
    /// Advertisements go to these and come from these; with none, to and from everybody by multicast.
    pub peers: Vec<IpAddr>,
    /// Program and arguments, run at each change with the name and the new state.
    pub notify: Option<Vec<String>>,
    /// Vhids with the same group are demoted together. Default `carp`.
    pub group: String,
    pub dialect: CarpDialect,
    pub mac: CarpMac,
}

/// An address and the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VirtualAddress {
    pub address: IpAddr,
    pub prefix: u8,
}

impl fmt::Display for VirtualAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// Where the password is.
#[derive(Clone, PartialEq, Eq)]
pub enum Password {
    Inline(String),
    /// One line.
    File(PathBuf),
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inline(_) => f.write_str("Inline(..)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// Which master-down time is used where the implementations differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CarpDialect {
    /// `3 * advbase + advskew/256`, as FreeBSD and ucarp; works with all.
    #[default]
    Any,
    /// `3 * (advbase + advskew/256)`, as OpenBSD.
    OpenBsd,
}

/// For `matapa check`.
pub(super) fn write(out: &mut String, carp: &Carp) -> fmt::Result {
    writeln!(out, "\ncarp {}", carp.name)?;
    let addresses: Vec<String> = carp.addresses.iter().map(ToString::to_string).collect();
    writeln!(out, "  shares      {}", addresses.join(", "))?;
    writeln!(
        out,
        "  as          vhid {} on {}, demoted with group {}",
        carp.vhid, carp.interface, carp.group
    )?;
    writeln!(out, "  advertises  every {} + {}/256 s", carp.advbase, carp.advskew)?;
    let preempt = match (carp.preempt, carp.preempt_delay) {
        (false, _) => "does not replace a master that advertises more slowly".to_owned(),
        (true, Duration::ZERO) => "replaces a master that advertises more slowly".to_owned(),
        (true, delay) => {
            format!("replaces a master that advertises more slowly after {}", values::show_duration(delay))
        }
    };
    writeln!(out, "  preempt     {preempt}")?;
    if carp.dialect == CarpDialect::OpenBsd {
        writeln!(out, "  dialect     OpenBSD's time until a silent master counts as down")?;
    }
    if carp.mac == CarpMac::Virtual {
        writeln!(out, "  mac         00:00:5e:00:01:{:02x}", carp.vhid)?;
    }
    if !carp.peers.is_empty() {
        let peers: Vec<String> = carp.peers.iter().map(ToString::to_string).collect();
        writeln!(out, "  peers       {}, by unicast", peers.join(", "))?;
    }
    if let Some(notify) = &carp.notify {
        writeln!(out, "  notifies    {}", notify.join(" "))?;
    }
    Ok(())
}

/// Which MAC address goes with the shared addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CarpMac {
    /// The interface's own, as ucarp: neighbours learn the new one at each takeover.
    #[default]
    Interface,
    /// 00:00:5e:00:01:VHID, as the BSDs: neighbours notice nothing, only switches learn.
    Virtual,
}

/// `[carp]`, which may be absent. What is incomplete has been reported.
pub(super) fn read(errors: &mut Errors, entry: Option<Entry<'_>>) -> Vec<Carp> {
    let mut all: Vec<At<Carp>> = Vec::new();
    let Some(entry) = entry else { return Vec::new() };
    for (name, table) in document::named_tables(errors, entry, Place::Carp) {
        if let Some(value) = read_one(errors, name, table) {
            report_duplicates(errors, &all, &At { value: value.clone(), span: name.span });
            all.push(At { value, span: name.span });
        }
    }
    all.into_iter().map(|one| one.value).collect()
}

fn report_duplicates(errors: &mut Errors, before: &[At<Carp>], new: &At<Carp>) {
    for old in before {
        if (&old.value.interface, old.value.vhid) == (&new.value.interface, new.value.vhid) {
            let message = format!("vhid {} is used twice on {}", new.value.vhid, new.value.interface);
            let error = errors.at(new.span, message).related(old.span, "first here");
            error.help("give each vhid of an interface a number of its own, the same on all gateways");
        }
        let shared = new
            .value
            .addresses
            .iter()
            .find(|new| old.value.addresses.iter().any(|old| old.address == new.address));
        if let Some(shared) = shared {
            let message = format!("{} belongs to two vhids", shared.address);
            errors.at(new.span, message).related(old.span, "first here").help("remove it from one of them");
        }
    }
}

fn read_one(errors: &mut Errors, name: At<&str>, table: &DeTable<'_>) -> Option<Carp> {
    let known = Known::read(errors, Place::Carp, table);
    let mut required = |key: &str, example: &str| {
        let entry = known.get(key);
        if entry.is_none() && known.lacks(key) {
            let message = format!("carp {} has no `{key}`", quote(name.value));
            errors.absent(name.span, message).help(format!("add `{example}`"));
        }
        entry
    };
    let interface = required("interface", "interface = \"eth0\"");
    let vhid = required("vhid", "vhid = 10");
    let addresses = required("addresses", "addresses = [\"203.0.113.10/24\"]");

    let interface = interface.and_then(|entry| read_interface(errors, entry));
    let vhid = vhid.and_then(|entry| small(errors, entry, 1, 255));
    let addresses = addresses.and_then(|entry| read_addresses(errors, entry));
    let password = read_password(errors, name, &known);
    let mut number = |key: &str, most, default| match known.get(key) {
        Some(entry) => small(errors, entry, 0, most),
        None => Some(default),
    };
    let advbase = number("advbase", 254, 1);
    let advskew = number("advskew", 254, 0);
    let preempt = match known.get("preempt") {
        Some(entry) => document::boolean(errors, entry),
        None => Some(false),
    };
    let preempt_delay = match known.get("preempt_delay") {
        Some(entry) => {
            let delay = values::duration(errors, entry, &(Duration::ZERO..=LONGEST_DELAY));
            if let (Some(delay), Some(false)) = (delay, preempt) {
                let error = errors.at(delay.span, "`preempt_delay` without `preempt`: nothing is delayed");
                error.help("add `preempt = true`, or remove it");
            }
            delay.map(|delay| delay.value)
        }
        None => Some(Duration::ZERO),
    };
    let peers = match known.get("peers") {
        Some(entry) => read_peers(errors, entry),
        None => Some(Vec::new()),
    };
    let notify = match known.get("notify") {
        Some(entry) => read_notify(errors, entry).map(Some),
        None => Some(None),
    };
    let group = match known.get("group") {
        Some(entry) => {
            document::text(errors, "group", entry.value, "a name in quotes", "write `group = \"carp\"`")
                .filter(|name| values::check_name(errors, "group", *name))
                .map(|name| name.value.to_owned())
        }
        None => Some(DEFAULT_GROUP.to_owned()),
    };
    let dialect = match known.get("dialect") {
        Some(entry) => {
            match document::word(errors, Place::CarpDialect, entry, "write \"any\" or \"openbsd\"") {
                Some("openbsd") => Some(CarpDialect::OpenBsd),
                word => word.map(|_| CarpDialect::Any),
            }
        }
        None => Some(CarpDialect::Any),
    };
    let mac = match known.get("mac") {
        Some(entry) => {
            match document::word(errors, Place::CarpMac, entry, "write \"interface\" or \"virtual\"") {
                Some("virtual") => Some(CarpMac::Virtual),
                word => word.map(|_| CarpMac::Interface),
            }
        }
        None => Some(CarpMac::Interface),
    };
    Some(Carp {
        name: name.value.to_owned(),
        interface: interface?,
        vhid: vhid?,
        addresses: addresses?,
        password: password?,
        advbase: advbase?,
        advskew: advskew?,
        preempt: preempt?,
        preempt_delay: preempt_delay?,
        peers: peers?,
        notify: notify?,
        group: group?,
        dialect: dialect?,
        mac: mac?,
    })
}

fn small(errors: &mut Errors, entry: Entry<'_>, least: u32, most: u32) -> Option<u8> {
    document::integer(errors, entry, least..=most).and_then(|number| u8::try_from(number).ok())
}

fn read_interface(errors: &mut Errors, entry: Entry<'_>) -> Option<String> {
    let help = "write `interface = \"eth0\"`";
    let text = document::text(errors, "interface", entry.value, "the name of an interface", help)?;
    if let Some(wrong) = general::wrong_interface(text.value) {
        errors.at(text.span, wrong).help("`ip link` lists the interfaces of this machine");
        return None;
    }
    Some(text.value.to_owned())
}

fn read_addresses(errors: &mut Errors, entry: Entry<'_>) -> Option<Vec<VirtualAddress>> {
    let help = "write addresses with their prefix lengths, as in [\"203.0.113.10/24\", \"2001:db8::10/64\"]";
    let items = document::list(errors, entry, "a list of addresses", help);
    let mut complete = !items.is_empty();
    let mut seen: HashMap<IpAddr, Span> = HashMap::new();
    let mut addresses = Vec::new();
    for item in items {
        let read = document::text(errors, "addresses", item, "a list of addresses in quotes", help)
            .and_then(|text| Some((read_address(errors, text)?, text.span)));
        let Some((address, span)) = read else {
            complete = false;
            continue;
        };
        if let Some(first) = seen.insert(address.address, span) {
            let error = errors.at(span, format!("{} is listed twice", address.address));
            error.related(first, "first here").help("remove one of the two");
        }
        addresses.push(address);
    }
    complete.then_some(addresses)
}

fn read_address(errors: &mut Errors, text: At<&str>) -> Option<VirtualAddress> {
    let shown = quote(text.value);
    let (address, length) = match text.value.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text.value, None),
    };
    let Ok(address) = address.parse::<IpAddr>() else {
        let error = errors.at(text.span, format!("{shown} is no address with a prefix length"));
        error.help("write an address, a slash and a length, such as \"203.0.113.10/24\"");
        return None;
    };
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let Some(length) = length else {
        let error = errors.at(text.span, format!("{shown} has no prefix length"));
        let usual = if address.is_ipv4() { 24 } else { 64 };
        error.help(format!(
            "write \"{address}/{usual}\" with the length of its network, or \"{address}/{longest}\""
        ));
        return None;
    };
    let Some(prefix) = length.parse().ok().filter(|length: &u8| *length >= 1 && *length <= longest) else {
        let error = errors.at(text.span, format!("{shown} has no valid prefix length"));
        error.help(format!("write a length from 1 to {longest} after the slash"));
        return None;
    };
    if let Some(what) = unusable(address) {
        let error = errors.at(text.span, format!("carp address {address} is {what}"));
        error.help("write an address that a machine can have, such as \"203.0.113.10/24\"");
        return None;
    }
    Some(VirtualAddress { address, prefix })
}

pub(super) fn unusable(address: IpAddr) -> Option<&'static str> {
    match address {
        address if address.is_unspecified() => Some("the unspecified address"),
        address if address.is_multicast() => Some("a multicast address"),
        address if address.is_loopback() => Some("a loopback address"),
        IpAddr::V4(v4) if v4.is_broadcast() => Some("the broadcast address"),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Some("an IPv4 address in IPv6 form"),
        _ => None,
    }
}

fn read_password(errors: &mut Errors, name: At<&str>, known: &Known<'_>) -> Option<Password> {
    let inline = known.get("password");
    let file = known.get("password_file");
    match (inline, file) {
        (Some(inline), Some(file)) => {
            let error = errors.at(file.key.span, "both `password` and `password_file` are given");
            error.related(inline.key.span, "the other").help("remove one of the two");
            None
        }
        (Some(entry), None) => {
            let help = "write `password = \"...\"`, at most 19 characters";
            let text = document::text(errors, "password", entry.value, "a text in quotes", help)?;
            // The password itself must not end up in a log.
            if let Err(wrong) = check_password(text.value.as_bytes()) {
                errors.at(entry.key.span, format!("`password` {wrong}")).help(help);
                return None;
            }
            Some(Password::Inline(text.value.to_owned()))
        }
        (None, Some(entry)) => {
            let help = "write `password_file = \"/etc/matapa/carp.key\"`";
            let text = document::text(errors, "password_file", entry.value, "a path in quotes", help)?;
            if !text.value.starts_with('/') || text.value.contains('\0') {
                let message = format!("`password_file` is no absolute path: {}", quote(text.value));
                errors.at(text.span, message).help(help);
                return None;
            }
            Some(Password::File(PathBuf::from(text.value)))
        }
        (None, None) => {
            if known.lacks("password_file") && known.lacks("password") {
                let error = errors.absent(name.span, format!("carp {} has no password", quote(name.value)));
                error.help(
                    "add `password_file = \"/etc/matapa/carp.key\"`, a file with one line of at most 19 \
                     characters that is the same on all gateways",
                );
            }
            None
        }
    }
}

/// Whether all implementations can use a password.
///
/// # Errors
/// With what is wrong, to be put after what it is.
pub fn check_password(password: &[u8]) -> Result<(), String> {
    if password.is_empty() {
        Err("is empty".to_owned())
    } else if password.len() > LONGEST_PASSWORD {
        Err(format!("has {} bytes, and CARP can use {LONGEST_PASSWORD}", password.len()))
    } else if password.contains(&0) {
        Err("contains a NUL byte".to_owned())
    } else {
        Ok(())
    }
}

fn read_peers(errors: &mut Errors, entry: Entry<'_>) -> Option<Vec<IpAddr>> {
    let help = "write the other gateways' addresses, as in [\"192.0.2.2\"]";
    let items = document::list(errors, entry, "a list of addresses", help);
    let mut peers = Vec::new();
    let mut complete = !items.is_empty();
    for item in items {
        let text = document::text(errors, "peers", item, "a list of addresses in quotes", help);
        let peer = text.and_then(|text| {
            let peer = text.value.parse().ok().filter(|peer| unusable(*peer).is_none());
            if peer.is_none() {
                let message = format!("{} is no address of a gateway", quote(text.value));
                errors.at(text.span, message).help(help);
            }
            peer
        });
        complete &= peer.is_some();
        peers.extend(peer);
    }
    complete.then_some(peers)
}

/// A text is split at blanks; a list is taken as it is.
fn read_notify(errors: &mut Errors, entry: Entry<'_>) -> Option<Vec<String>> {
    let help = "write `notify = \"/etc/matapa/notify\"`, or [\"/etc/matapa/notify\", \"argument\"]";
    let words = match entry.value.get_ref() {
        DeValue::String(text) => text.split_whitespace().map(str::to_owned).collect(),
        _ => {
            let items = document::list(errors, entry, "a command, or a list of its words", help);
            items.iter().map(|item| read_word(errors, item, help)).collect::<Option<Vec<String>>>()?
        }
    };
    if !words.first().is_some_and(|program| program.starts_with('/')) {
        errors.at(entry.span(), "`notify` does not begin with the absolute path of a program").help(help);
        return None;
    }
    Some(words)
}

fn read_word(errors: &mut Errors, item: &Value<'_>, help: &str) -> Option<String> {
    document::text(errors, "notify", item, "a list of texts", help).map(|text| text.value.to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::parse;
    use super::*;

    const GOOD: &str = r#"
[carp.mail]
interface = "eth0"
vhid = 10
addresses = ["203.0.113.10/24", "2001:db8::10/64"]
password = "love"
"#;

    #[test]
    fn a_vhid_needs_no_service() {
        let config = parse(GOOD, Path::new("m.toml")).unwrap();
        let carp = &config.carp[0];
        assert_eq!((carp.vhid, carp.advbase, carp.advskew, carp.preempt), (10, 1, 0, false));
        assert_eq!(carp.addresses[0].to_string(), "203.0.113.10/24");
        assert_eq!(carp.group, "carp");
        assert!(config.services.is_empty() && config.interfaces.is_empty());
        assert!(!format!("{config:?}").contains("love"), "the password is in the debug text");
    }

    #[test]
    fn everything_can_be_said() {
        let text = GOOD.replace("password = \"love\"", "password_file = \"/etc/matapa/carp.key\"")
            + "advbase = 0\nadvskew = 254\npreempt = true\npreempt_delay = \"30s\"\npeers = [\"192.0.2.2\"]\n\
               notify = \"/bin/notify now\"\ngroup = \"edge\"\ndialect = \"openbsd\"\nmac = \"virtual\"\n";
        let config = parse(&text, Path::new("m.toml")).unwrap();
        let carp = &config.carp[0];
        assert_eq!(carp.password, Password::File(PathBuf::from("/etc/matapa/carp.key")));
        assert_eq!(carp.notify, Some(vec!["/bin/notify".to_owned(), "now".to_owned()]));
        assert_eq!(carp.mac, CarpMac::Virtual);
        assert_eq!((carp.preempt_delay, carp.dialect), (Duration::from_secs(30), CarpDialect::OpenBsd));
    }

    #[test]
    fn each_mistake_is_told() {
        let table = [
            ("vhid = 10", "vhid = 0", "`vhid` is out of range"),
            ("vhid = 10", "vhid = 256", "`vhid` is out of range"),
            ("vhid = 10\n", "", "has no `vhid`"),
            ("interface = \"eth0\"\n", "", "has no `interface`"),
            ("\"eth0\"", "\"a/b\"", "contains \"/\""),
            ("203.0.113.10/24", "203.0.113.10", "has no prefix length"),
            ("203.0.113.10/24", "203.0.113.10/33", "no valid prefix length"),
            ("203.0.113.10/24", "224.0.0.1/24", "a multicast address"),
            ("203.0.113.10/24", "mail/24", "is no address"),
            ("2001:db8::10/64", "203.0.113.10/32", "is listed twice"),
            ("password = \"love\"", "", "has no password"),
            ("\"love\"", "\"\"", "is empty"),
            ("\"love\"", "\"12345678901234567890\"", "has 20 bytes"),
            ("password = \"love\"", "password = \"a\"\npassword_file = \"/b\"", "both `password`"),
            ("password = \"love\"", "password_file = \"carp.key\"", "no absolute path"),
            ("vhid = 10", "vhid = 10\nadvbase = 255", "`advbase` is out of range"),
            ("vhid = 10", "vhid = 10\nadvskew = 255", "`advskew` is out of range"),
            ("vhid = 10", "vhid = 10\npreempt_delay = \"1s\"", "nothing is delayed"),
            ("vhid = 10", "vhid = 10\npeers = [\"224.0.0.18\"]", "no address of a gateway"),
            ("vhid = 10", "vhid = 10\nnotify = \"notify\"", "absolute path of a program"),
            ("vhid = 10", "vhid = 10\ndialect = \"linux\"", "unknown dialect"),
            ("vhid = 10", "vhid = 10\nadvscew = 3", "did you mean `advskew`?"),
        ];
        for (from, to, expected) in table {
            let error = parse(&GOOD.replacen(from, to, 1), Path::new("m.toml")).unwrap_err();
            let lines = error.lines().join("\n");
            assert!(lines.contains(expected), "{to}: {lines}");
            assert!(!lines.contains("12345678901234567890"), "a password is in the message: {lines}");
        }
        let twice = GOOD.to_owned() + &GOOD.replace("carp.mail", "carp.other");
        let lines = parse(&twice, Path::new("m.toml")).unwrap_err().lines().join("\n");
        assert!(lines.contains("vhid 10 is used twice on eth0"), "{lines}");
        assert!(lines.contains("203.0.113.10 belongs to two vhids"), "{lines}");
    }
}
