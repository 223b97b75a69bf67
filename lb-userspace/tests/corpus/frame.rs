//! Frames in a readable notation (docs/corpus.md). Every checksum is computed from scratch here, never updated: what
//! the product does incrementally is compared with it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub type Mac = [u8; 6];

/// What a frame text may leave out.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    pub macs: &'a BTreeMap<String, Mac>,
    /// Source and destination of a bare `eth`.
    pub default: (Mac, Mac),
}

/// The sum of 16-bit words in one's complement, folded. An odd last byte counts as if a zero followed.
pub fn ones_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u64;
    for pair in bytes.chunks(2) {
        sum += u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Source and destination with protocol and length, as the transport checksums cover them.
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for address in [source, destination] {
        match address {
            IpAddr::V4(v4) => bytes.extend(v4.octets()),
            IpAddr::V6(v6) => bytes.extend(v6.octets()),
        }
    }
    bytes.extend((len as u32).to_be_bytes());
    bytes.extend([0, 0, 0, protocol]);
    bytes
}

/// The frame that a text describes.
pub fn build(text: &str, names: Names<'_>) -> Result<Vec<u8>, String> {
    let mut layers = Vec::new();
    let mut trims = Vec::new();
    for part in split(text) {
        let layer = Layer::parse(part).map_err(|e| format!("`{part}`: {e}"))?;
        match layer.word.as_str() {
            "cut" | "pad" => trims.push(layer),
            _ if !trims.is_empty() => return Err(format!("`{part}`: only `cut` and `pad` may follow these")),
            _ => layers.push(layer),
        }
    }
    let mut bytes = Vec::new();
    for index in (0..layers.len()).rev() {
        let (outer, rest) = layers.split_at_mut(index);
        let (layer, inner) = rest.split_first_mut().ok_or("no layers")?;
        bytes = layer
            .build(outer, inner.first(), bytes, names)
            .and_then(|bytes| layer.finish().map(|()| bytes))
            .map_err(|e| format!("`{}`: {e}", layer.text))?;
    }
    for mut trim in trims {
        let len: usize = trim.number("")?.ok_or_else(|| format!("`{}`: how many bytes?", trim.text))?;
        let fits = if trim.word == "cut" { len <= bytes.len() } else { len >= bytes.len() };
        if !fits {
            return Err(format!("`{}`: the frame has {} bytes", trim.text, bytes.len()));
        }
        bytes.resize(len, 0);
        trim.finish()?;
    }
    Ok(bytes)
}

/// Splits at ` / `, but not within quotes.
fn split(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut start = 0;
    let mut quoted = false;
    for (at, c) in text.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '/' if !quoted && text[..at].ends_with(' ') && text[at + 1..].starts_with(' ') => {
                parts.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    parts
}

/// One header or piece of payload, as written.
#[derive(Debug)]
struct Layer {
    text: String,
    word: String,
    plain: Vec<String>,
    keys: BTreeMap<String, String>,
}

impl Layer {
    fn parse(text: &str) -> Result<Self, String> {
        if let Some(quoted) = text.strip_prefix('"') {
            let inner = quoted.strip_suffix('"').ok_or("a quote is missing")?;
            let plain = vec![inner.replace("\\r", "\r").replace("\\n", "\n")];
            return Ok(Self { text: text.into(), word: "text".into(), plain, keys: BTreeMap::new() });
        }
        let mut words = text.split_whitespace();
        let word = words.next().ok_or("an empty layer")?.to_owned();
        let mut plain = Vec::new();
        let mut keys = BTreeMap::new();
        for token in words {
            match token.split_once('=') {
                Some((key, value)) => {
                    if keys.insert(key.to_owned(), value.to_owned()).is_some() {
                        return Err(format!("{key} is given twice"));
                    }
                }
                None => plain.push(token.to_owned()),
            }
        }
        Ok(Self { text: text.into(), word, plain, keys })
    }

    /// Everything that was written must have been understood.
    fn finish(&mut self) -> Result<(), String> {
        match self.plain.first().or(self.keys.keys().next()) {
            Some(left) => Err(format!("does not know {left}")),
            None => Ok(()),
        }
    }

    fn take(&mut self) -> Option<String> {
        (!self.plain.is_empty()).then(|| self.plain.remove(0))
    }

    fn flag(&mut self, name: &str) -> bool {
        let found = self.plain.iter().position(|p| p == name);
        found.map(|at| self.plain.remove(at)).is_some()
    }

    /// `A > B`.
    fn pair(&mut self) -> Result<(String, String), String> {
        match (self.take(), self.take().as_deref(), self.take()) {
            (Some(a), Some(">"), Some(b)) => Ok((a, b)),
            _ => Err("expected `A > B`".into()),
        }
    }

    /// A number by its key; the empty key is the next plain word.
    fn number<T: TryFrom<u64>>(&mut self, key: &str) -> Result<Option<T>, String> {
        let text = if key.is_empty() { self.take() } else { self.keys.remove(key) };
        let Some(text) = text else { return Ok(None) };
        let value = number(&text)?;
        T::try_from(value).map(Some).map_err(|_| format!("{text} is too large"))
    }

    fn number_or<T: TryFrom<u64>>(&mut self, key: &str, default: T) -> Result<T, String> {
        Ok(self.number(key)?.unwrap_or(default))
    }

    /// `opt=`: items separated by commas, hexadecimal or `nop`, each perhaps `*N`. Filled up to whole 32-bit words
    /// with zeros.
    fn options(&mut self) -> Result<Vec<u8>, String> {
        let Some(text) = self.keys.remove("opt") else { return Ok(Vec::new()) };
        let mut bytes = Vec::new();
        for item in text.split(',') {
            let (item, times) = match item.split_once('*') {
                Some((item, times)) => (item, number(times)?),
                None => (item, 1),
            };
            let item = if item == "nop" { vec![1] } else { hex(item)? };
            (0..times).for_each(|_| bytes.extend(&item));
        }
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        Ok(bytes)
    }

    /// A checksum field: `computed` unless `sum=` says otherwise. `+N` is `computed` and N more in one's complement:
    /// wrong, and as wrong after a correct update.
    fn sum(&mut self, computed: u16) -> Result<u16, String> {
        match self.keys.remove("sum").as_deref() {
            None => Ok(computed),
            Some(text) => match text.strip_prefix('+') {
                Some(more) => {
                    let [a, b] = computed.to_be_bytes();
                    let [c, d] = u16::try_from(number(more)?).map_err(|e| e.to_string())?.to_be_bytes();
                    Ok(ones_sum(&[a, b, c, d]))
                }
                None => u16::try_from(number(text)?).map_err(|e| e.to_string()),
            },
        }
    }

    /// Addresses of an `ip4` or `ip6` layer that is yet to be built.
    fn addresses(&self) -> Option<(IpAddr, IpAddr)> {
        match self.plain.as_slice() {
            [a, arrow, b, ..] if arrow == ">" => Some((a.parse().ok()?, b.parse().ok()?)),
            _ => None,
        }
    }

    fn build(
        &mut self,
        outer: &[Self],
        inner: Option<&Self>,
        payload: Vec<u8>,
        names: Names<'_>,
    ) -> Result<Vec<u8>, String> {
        match self.word.as_str() {
            "eth" => self.ethernet(inner, &payload, names),
            "vlan" | "qinq" => self.tag(inner, &payload),
            "ip4" => self.ip4(inner, &payload),
            "ip6" => self.ip6(inner, &payload),
            "ext" => self.extension(inner, &payload),
            "tcp" => self.tcp(outer, &payload),
            "udp" => self.udp(outer, &payload),
            "icmp" | "icmp6" => self.icmp(outer, &payload),
            "arp" => self.arp(names),
            "text" => Ok([self.take().unwrap_or_default().into_bytes(), payload].concat()),
            "hex" => {
                let mut bytes = Vec::new();
                while let Some(word) = self.take() {
                    bytes.extend(hex(&word)?);
                }
                Ok([bytes, payload].concat())
            }
            "bytes" => {
                let len: usize = self.number("")?.ok_or("how many?")?;
                Ok((0..len).map(|i| i as u8).chain(payload).collect())
            }
            other => Err(format!("no layer is called {other}")),
        }
    }

    fn ethernet(
        &mut self,
        inner: Option<&Self>,
        payload: &[u8],
        names: Names<'_>,
    ) -> Result<Vec<u8>, String> {
        let (source, destination) = if self.plain.is_empty() {
            names.default
        } else {
            let (a, b) = self.pair()?;
            (mac(&a, names)?, mac(&b, names)?)
        };
        let ether_type = self.ether_type(inner)?;
        Ok([&destination[..], &source, &ether_type, payload].concat())
    }

    fn tag(&mut self, inner: Option<&Self>, payload: &[u8]) -> Result<Vec<u8>, String> {
        let id: u16 = self.number("")?.ok_or("which number?")?;
        let ether_type = self.ether_type(inner)?;
        Ok([&id.to_be_bytes()[..], &ether_type, payload].concat())
    }

    fn ether_type(&mut self, inner: Option<&Self>) -> Result<[u8; 2], String> {
        let default = match inner.map(|l| l.word.as_str()) {
            Some("ip4") => Some(0x0800),
            Some("ip6") => Some(0x86dd),
            Some("vlan") => Some(0x8100),
            Some("qinq") => Some(0x88a8),
            Some("arp") => Some(0x0806),
            _ => None,
        };
        let number: Option<u16> = self.number("type")?;
        Ok(number.or(default).ok_or("needs `type=`")?.to_be_bytes())
    }

    fn ip_addresses(&mut self) -> Result<(IpAddr, IpAddr), String> {
        let (a, b) = self.pair()?;
        let parse = |text: &str| text.parse::<IpAddr>().map_err(|_| format!("{text} is no address"));
        Ok((parse(&a)?, parse(&b)?))
    }

    fn ip4(&mut self, inner: Option<&Self>, payload: &[u8]) -> Result<Vec<u8>, String> {
        let (source, destination) = self.ip_addresses()?;
        let (IpAddr::V4(source), IpAddr::V4(destination)) = (source, destination) else {
            return Err("not IPv4 addresses".into());
        };
        let options = self.options()?;
        let header_len = 20 + options.len();
        let ihl = self.number_or("ihl", header_len / 4)? as u8;
        let version = self.number_or("ver", 4u8)?;
        let len = self.number_or("len", (header_len + payload.len()) as u16)?;
        let id = self.number_or("id", 1u16)?;
        let mut fragment: u16 = self.number_or("off", 0u16)?;
        for (name, bit) in [("df", 0x4000), ("mf", 0x2000), ("evil", 0x8000)] {
            if self.flag(name) {
                fragment |= bit;
            }
        }
        let protocol = self.next_header("proto", inner)?;
        let mut bytes = vec![(version << 4) | (ihl & 0xf), self.number_or("tos", 0u8)?];
        bytes.extend(len.to_be_bytes());
        bytes.extend(id.to_be_bytes());
        bytes.extend(fragment.to_be_bytes());
        bytes.extend([self.number_or("ttl", 64u8)?, protocol, 0, 0]);
        bytes.extend(source.octets());
        bytes.extend(destination.octets());
        bytes.extend(options);
        let sum = self.sum(!ones_sum(&bytes))?;
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes.extend(payload);
        Ok(bytes)
    }

    fn ip6(&mut self, inner: Option<&Self>, payload: &[u8]) -> Result<Vec<u8>, String> {
        let (source, destination) = self.ip_addresses()?;
        let (IpAddr::V6(source), IpAddr::V6(destination)) = (source, destination) else {
            return Err("not IPv6 addresses".into());
        };
        let version = self.number_or("ver", 6u32)?;
        let class = self.number_or("class", 0u8)?;
        let flow = self.number_or("flow", 0u32)?;
        let first = version << 28 | u32::from(class) << 20 | flow;
        let len = self.number_or("len", payload.len() as u16)?;
        let next = self.next_header("next", inner)?;
        let mut bytes = first.to_be_bytes().to_vec();
        bytes.extend(len.to_be_bytes());
        bytes.extend([next, self.number_or("hlim", 64u8)?]);
        bytes.extend(source.octets());
        bytes.extend(destination.octets());
        bytes.extend(payload);
        Ok(bytes)
    }

    fn extension(&mut self, inner: Option<&Self>, payload: &[u8]) -> Result<Vec<u8>, String> {
        let kind = self.take().ok_or("which header?")?;
        let next = self.next_header("next", inner)?;
        let header = match kind.as_str() {
            // Filled up with PadN (RFC 8200 section 4.2).
            "hop-by-hop" | "destination" => vec![next, 0, 1, 4, 0, 0, 0, 0],
            "routing" => vec![next, 0, 253, 0, 0, 0, 0, 0],
            "fragment" => {
                let word = self.number_or("off", 0u16)? << 3 | u16::from(self.flag("mf"));
                let id = self.number_or("id", 1u32)?;
                [&[next, 0][..], &word.to_be_bytes(), &id.to_be_bytes()].concat()
            }
            other => return Err(format!("no extension header is called {other}")),
        };
        Ok([&header, payload].concat())
    }

    /// The number by which the layer after this one goes in an IP header.
    fn next_header(&mut self, key: &str, inner: Option<&Self>) -> Result<u8, String> {
        let default = inner.and_then(|l| match (l.word.as_str(), l.text.split_whitespace().nth(1)) {
            ("tcp", _) => Some(6),
            ("udp", _) => Some(17),
            ("icmp", _) => Some(1),
            ("icmp6", _) => Some(58),
            ("ip4", _) => Some(4),
            ("ip6", _) => Some(41),
            ("ext", Some("hop-by-hop")) => Some(0),
            ("ext", Some("routing")) => Some(43),
            ("ext", Some("fragment")) => Some(44),
            ("ext", Some("destination")) => Some(60),
            _ => None,
        });
        self.number(key)?.or(default).ok_or_else(|| format!("needs `{key}=`"))
    }

    fn tcp(&mut self, outer: &[Self], payload: &[u8]) -> Result<Vec<u8>, String> {
        let (source, destination) = self.ports()?;
        let mut flags = 0u8;
        for c in self.take().ok_or("needs flags, or `.` for none")?.chars() {
            flags |= match c {
                '.' => 0,
                'F' => 0x01,
                'S' => 0x02,
                'R' => 0x04,
                'P' => 0x08,
                'A' => 0x10,
                'U' => 0x20,
                'E' => 0x40,
                'C' => 0x80,
                _ => return Err(format!("no flag is called {c}")),
            };
        }
        let options = self.options()?;
        let doff = self.number_or("doff", (20 + options.len()) / 4)? as u8;
        let mut bytes = [source.to_be_bytes(), destination.to_be_bytes()].concat();
        bytes.extend(self.number_or("seq", 0u32)?.to_be_bytes());
        bytes.extend(self.number_or("ack", 0u32)?.to_be_bytes());
        bytes.extend([doff << 4, flags]);
        bytes.extend(self.number_or("win", 65_535u16)?.to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(self.number_or("urg", 0u16)?.to_be_bytes());
        bytes.extend(options);
        bytes.extend(payload);
        let sum = transport_sum(outer, 6, &bytes, bytes.len())?;
        let sum = self.sum(sum)?;
        bytes[16..18].copy_from_slice(&sum.to_be_bytes());
        Ok(bytes)
    }

    fn udp(&mut self, outer: &[Self], payload: &[u8]) -> Result<Vec<u8>, String> {
        let (source, destination) = self.ports()?;
        let len = self.number_or("ulen", (8 + payload.len()) as u16)?;
        let mut bytes = [source.to_be_bytes(), destination.to_be_bytes(), len.to_be_bytes(), [0, 0]].concat();
        bytes.extend(payload);
        let covered = if (8..=bytes.len()).contains(&usize::from(len)) { len.into() } else { bytes.len() };
        let sum = match transport_sum(outer, 17, &bytes[..covered], covered)? {
            0 => 0xffff,
            sum => sum,
        };
        let sum = self.sum(sum)?;
        bytes[6..8].copy_from_slice(&sum.to_be_bytes());
        Ok(bytes)
    }

    fn ports(&mut self) -> Result<(u16, u16), String> {
        let (a, b) = self.pair()?;
        let port = |text: &str| text.parse::<u16>().map_err(|_| format!("{text} is no port"));
        Ok((port(&a)?, port(&b)?))
    }

    fn icmp(&mut self, outer: &[Self], payload: &[u8]) -> Result<Vec<u8>, String> {
        let v6 = self.word == "icmp6";
        let (mut kind, code) = (self.number("type")?, self.number_or("code", 0u8)?);
        if self.flag("echo") {
            kind = Some(if v6 { 128 } else { 8 });
        }
        let rest = self.number_or("rest", 0x0001_0001u32)?;
        let mut bytes = vec![kind.ok_or("needs `echo` or `type=`")?, code, 0, 0];
        bytes.extend(rest.to_be_bytes());
        bytes.extend(payload);
        let sum = if v6 { transport_sum(outer, 58, &bytes, bytes.len())? } else { !ones_sum(&bytes) };
        let sum = self.sum(sum)?;
        bytes[2..4].copy_from_slice(&sum.to_be_bytes());
        Ok(bytes)
    }

    /// `arp who-has A tell B`.
    fn arp(&mut self, names: Names<'_>) -> Result<Vec<u8>, String> {
        let words: Vec<String> = std::iter::from_fn(|| self.take()).collect();
        let [who_has, target, tell, sender] = words.as_slice() else {
            return Err("expected `arp who-has A tell B`".into());
        };
        if who_has != "who-has" || tell != "tell" {
            return Err("expected `arp who-has A tell B`".into());
        }
        let address = |text: &str| text.parse::<Ipv4Addr>().map_err(|_| format!("{text} is no address"));
        let mut bytes = vec![0, 1, 8, 0, 6, 4, 0, 1];
        bytes.extend(names.default.0);
        bytes.extend(address(sender)?.octets());
        bytes.extend([0; 6]);
        bytes.extend(address(target)?.octets());
        Ok(bytes)
    }
}

/// The checksum over the pseudo-header of the nearest IP layer outside and these bytes, whose own field is zero.
fn transport_sum(outer: &[Layer], protocol: u8, bytes: &[u8], len: usize) -> Result<u16, String> {
    let ip = outer.iter().rev().find(|l| l.word == "ip4" || l.word == "ip6").ok_or("is not within IP")?;
    let (source, destination) = ip.addresses().ok_or("the IP layer has no addresses")?;
    Ok(!ones_sum(&[&pseudo_header(source, destination, protocol, len), bytes].concat()))
}

fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("{text} is no number"))
}

fn hex(text: &str) -> Result<Vec<u8>, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    if !digits.len().is_multiple_of(2) || !digits.is_ascii() {
        return Err(format!("{text} is not whole bytes in hexadecimal"));
    }
    (0..digits.len())
        .step_by(2)
        .map(|at| {
            u8::from_str_radix(&digits[at..at + 2], 16).map_err(|_| format!("{text} is not hexadecimal"))
        })
        .collect()
}

/// `02:00:00:00:00:01`.
pub fn parse_mac(text: &str) -> Option<Mac> {
    let bytes: Vec<u8> =
        text.split(':').map(|part| u8::from_str_radix(part, 16)).collect::<Result<_, _>>().ok()?;
    bytes.try_into().ok()
}

fn mac(text: &str, names: Names<'_>) -> Result<Mac, String> {
    names
        .macs
        .get(text)
        .copied()
        .or_else(|| parse_mac(text))
        .ok_or_else(|| format!("{text} is neither a name of the world nor a MAC address"))
}

/// What a frame is, for people: the notation as far as it goes, then every byte.
pub fn show(frame: &[u8]) -> String {
    let mut text = summary(frame);
    for (row, bytes) in frame.chunks(16).take(8).enumerate() {
        let hex: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
        text += &format!("\n      {:04x}  {}", row * 16, hex.join(" "));
    }
    if frame.len() > 128 {
        text += &format!("\n      ... {} bytes in all", frame.len());
    }
    text
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn summary(frame: &[u8]) -> String {
    let mac = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":");
    let (Some(macs), Some(ether_type)) = (frame.get(..12), be16(frame, 12)) else {
        return format!("{} bytes", frame.len());
    };
    let mut text = format!("eth {} > {}", mac(&macs[6..]), mac(&macs[..6]));
    let ip = &frame[14..];
    let rest = match ether_type {
        0x0800 => summary_ip4(ip),
        0x86dd => summary_ip6(ip),
        other => Some(format!(" type={other:#06x}")),
    };
    text += &rest.unwrap_or_else(|| " / cut short".into());
    text + &format!("  ({} bytes)", frame.len())
}

fn summary_ip4(ip: &[u8]) -> Option<String> {
    let address = |at: usize| Some(Ipv4Addr::from(be32(ip, at)?));
    let (source, destination) = (address(12)?, address(16)?);
    let header_len = usize::from(ip[0] & 0xf) * 4;
    let header = ip.get(..header_len).unwrap_or(ip);
    let wrong = if ones_sum(header) == 0xffff { "" } else { " (wrong)" };
    let text = format!(
        " / ip4 {source} > {destination} ttl={} len={} id={} proto={} sum={:#06x}{wrong}",
        ip[8],
        be16(ip, 2)?,
        be16(ip, 4)?,
        ip[9],
        be16(ip, 10)?
    );
    let segment = ip.get(header_len..usize::from(be16(ip, 2)?)).unwrap_or_default();
    Some(text + &summary_transport(source.into(), destination.into(), ip[9], segment))
}

fn summary_ip6(ip: &[u8]) -> Option<String> {
    let address = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(ip.get(at..at + 16)?).ok()?));
    let (source, destination) = (address(8)?, address(24)?);
    let text = format!(" / ip6 {source} > {destination} hlim={} len={} next={}", ip[7], be16(ip, 4)?, ip[6]);
    let segment = ip.get(40..40 + usize::from(be16(ip, 4)?)).unwrap_or_default();
    Some(text + &summary_transport(source.into(), destination.into(), ip[6], segment))
}

fn summary_transport(source: IpAddr, destination: IpAddr, protocol: u8, segment: &[u8]) -> String {
    let mut covered = pseudo_header(source, destination, protocol, segment.len());
    covered.extend(segment);
    let wrong = if ones_sum(&covered) == 0xffff { "" } else { " (wrong)" };
    let text = || {
        let ports = format!("{} > {}", be16(segment, 0)?, be16(segment, 2)?);
        Some(match protocol {
            6 => format!(
                " / tcp {ports} flags={:#04x} seq={} ack={} sum={:#06x}{wrong}",
                segment.get(13)?,
                be32(segment, 4)?,
                be32(segment, 8)?,
                be16(segment, 16)?
            ),
            17 => format!(" / udp {ports} ulen={} sum={:#06x}{wrong}", be16(segment, 4)?, be16(segment, 6)?),
            _ => String::new(),
        })
    };
    text().unwrap_or_default()
}
