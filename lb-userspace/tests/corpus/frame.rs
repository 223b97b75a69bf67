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
    pub tunnel: Tunnel,
}

/// What stands for `*` in a tunnel's outer headers.
#[derive(Clone, Copy, Debug)]
pub struct Tunnel {
    /// Networks, with the bits of a host's number zero, and their lengths.
    pub source4: (Ipv4Addr, u8),
    pub source6: (Ipv6Addr, u8),
    /// A flow's hash.
    pub hash: fn(&Ends) -> u64,
}

/// The ends of a flow, as its hash takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    pub client: IpAddr,
    pub vip: IpAddr,
    pub client_port: u16,
    pub vip_port: u16,
    /// IANA's number; 255 for what is neither TCP nor UDP.
    pub protocol: u8,
}

impl Tunnel {
    /// The outer source over IPv4: the bits that vary come from the upper half of the hash.
    fn outer4(&self, hash: u64) -> Ipv4Addr {
        let (network, len) = self.source4;
        let vary = u32::MAX.checked_shr(len.into()).unwrap_or(0);
        Ipv4Addr::from_bits(network.to_bits() | (hash >> 32) as u32 & vary)
    }

    /// The outer source over IPv6: at most the last 64 bits vary.
    fn outer6(&self, hash: u64) -> Ipv6Addr {
        let (network, len) = self.source6;
        let vary = u128::MAX.checked_shr(len.into()).unwrap_or(0);
        Ipv6Addr::from_bits(network.to_bits() | u128::from(hash) & vary)
    }
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
    fill_in(&mut layers, &names.tunnel)?;
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

/// Replaces each `*` of a tunnel's outer headers with what the flow of the packet inside makes it.
fn fill_in(layers: &mut [Layer], tunnel: &Tunnel) -> Result<(), String> {
    for index in 0..layers.len() {
        let (_, rest) = layers.split_at_mut(index);
        let Some((layer, inner)) = rest.split_first_mut() else { break };
        let source = layer.plain.first().is_some_and(|p| p == "*");
        let label = layer.keys.get("flow").is_some_and(|v| v == "*");
        if !source && !label {
            continue;
        }
        let ends =
            ends(inner).ok_or_else(|| format!("`{}`: there is no packet of a flow inside", layer.text))?;
        let hash = (tunnel.hash)(&ends);
        if source {
            layer.plain[0] = match layer.word.as_str() {
                "ip4" => tunnel.outer4(hash).to_string(),
                "ip6" => tunnel.outer6(hash).to_string(),
                "udp" => (0xc000 | hash & 0x3fff).to_string(),
                _ => return Err(format!("`{}`: what does * stand for here?", layer.text)),
            };
        }
        if label {
            layer.keys.insert("flow".into(), (hash & 0xf_ffff).to_string());
        }
    }
    Ok(())
}

/// The ends of the flow that the outermost IP packet in these layers belongs to: a client's own, or one that an ICMP
/// error quotes on its way back to the backend. Only the first fragment of a datagram has ports.
fn ends(layers: &[Layer]) -> Option<Ends> {
    let at = layers.iter().position(|l| l.word == "ip4" || l.word == "ip6")?;
    let (client, vip) = layers[at].addresses()?;
    let extensions = layers[at + 1..].iter().take_while(|l| l.word == "ext").count();
    let (headers, inner) = layers[at..].split_at(1 + extensions);
    let begins = headers.iter().all(Layer::begins);
    match inner.first() {
        Some(l) if begins && (l.word == "tcp" || l.word == "udp") => {
            let port = |at: usize| l.plain.get(at).and_then(|p| p.parse().ok());
            let protocol = if l.word == "tcp" { 6 } else { 17 };
            Some(Ends { client, vip, client_port: port(0)?, vip_port: port(2)?, protocol })
        }
        Some(l) if l.word.starts_with("icmp") => {
            let Ends { client, vip, client_port, vip_port, protocol } = ends(&inner[1..])?;
            Some(Ends { client: vip, vip: client, client_port: vip_port, vip_port: client_port, protocol })
        }
        _ => Some(Ends { client, vip, client_port: 0, vip_port: 0, protocol: 255 }),
    }
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

/// Of a fragment: its offset in bytes, its payload, and whether more follow.
type Part<'p> = (u16, &'p [u8], bool);

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

    /// `part=A..B`: of the payload, bytes A to B are in this fragment; `part=A..` has all the rest.
    fn part<'p>(&mut self, payload: &'p [u8]) -> Result<Option<Part<'p>>, String> {
        let Some(text) = self.keys.remove("part") else { return Ok(None) };
        let (from, to) = text.split_once("..").ok_or("expected `part=A..B` or `part=A..`")?;
        let from = number(from)? as usize;
        let to = if to.is_empty() { payload.len() } else { number(to)? as usize };
        let bytes = payload.get(from..to).ok_or_else(|| format!("there are {} bytes", payload.len()))?;
        let more = to < payload.len();
        if !from.is_multiple_of(8) || more && !to.is_multiple_of(8) {
            return Err("fragments are cut at multiples of 8".into());
        }
        let offset = u16::try_from(from).map_err(|_| format!("{from} is too large"))?;
        Ok(Some((offset, bytes, more)))
    }

    /// `quote=N`: of a packet that an ICMP error quotes, the header, of `header_len` bytes, and N bytes after it are there.
    fn quoted(&mut self, mut bytes: Vec<u8>, header_len: usize) -> Result<Vec<u8>, String> {
        if let Some(more) = self.number::<usize>("quote")? {
            if header_len + more > bytes.len() {
                return Err(format!("there are {} bytes after the header", bytes.len() - header_len));
            }
            bytes.truncate(header_len + more);
        }
        Ok(bytes)
    }

    /// Whether a datagram begins in what follows this header: not after that of a later fragment.
    fn begins(&self) -> bool {
        let off = self.keys.get("off").is_none_or(|off| off == "0");
        off && self.keys.get("part").is_none_or(|part| part.starts_with("0.."))
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
        let part = self.part(payload)?;
        let payload = part.map_or(payload, |(_, bytes, _)| bytes);
        let len = self.number_or("len", (header_len + payload.len()) as u16)?;
        let id = self.number_or("id", 1u16)?;
        let mut fragment: u16 = match part {
            None => self.number_or("off", 0u16)?,
            Some((offset, _, more)) => (offset / 8) | (u16::from(more) << 13),
        };
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
        self.quoted(bytes, header_len)
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
        self.quoted(bytes, 40)
    }

    /// `ext KIND`: 8 bytes, or `len=` with what it takes to fill them up.
    fn extension(&mut self, inner: Option<&Self>, payload: &[u8]) -> Result<Vec<u8>, String> {
        let kind = self.take().ok_or("which header?")?;
        let next = self.next_header("next", inner)?;
        if kind == "fragment" {
            let (word, payload) = match self.part(payload)? {
                None => (self.number_or("off", 0u16)? << 3 | u16::from(self.flag("mf")), payload),
                Some((offset, bytes, more)) => (offset | u16::from(more), bytes),
            };
            let id = self.number_or("id", 1u32)?;
            return Ok([
                &[next, self.number_or("reserved", 0u8)?][..],
                &word.to_be_bytes(),
                &id.to_be_bytes(),
                payload,
            ]
            .concat());
        }
        // Length in units of 8 bytes without the first; the authentication header has its own (RFC 4302 section 2.2).
        let (least, unit, without): (usize, usize, usize) =
            if kind == "auth" { (12, 4, 2) } else { (8, 8, 1) };
        let len = self.number_or("len", least)?;
        if len < least || !len.is_multiple_of(unit) {
            return Err(format!("an extension header has {least} bytes, or more by a multiple of {unit}"));
        }
        let units = self.number_or("units", (len / unit - without) as u8)?;
        let mut header = vec![next, units];
        match kind.as_str() {
            // Filled up with PadN (RFC 8200 section 4.2), of which each has up to 255 bytes.
            "hop-by-hop" | "destination" => {
                while header.len() < len {
                    let pad = (len - header.len()).min(256);
                    header.extend([1, (pad - 2) as u8]);
                    header.resize(header.len() + pad - 2, 0);
                }
            }
            "routing" => header.extend([self.number_or("type", 253u8)?, self.number_or("left", 0u8)?]),
            _ if extension_number(&kind).is_some() => {}
            other => return Err(format!("no extension header is called {other}")),
        }
        header.resize(len, 0);
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
            ("ext", Some(kind)) => extension_number(kind),
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
        let (mut kind, code): (Option<u8>, u8) = (self.number("type")?, self.number_or("code", 0)?);
        for (name, number) in [("echo", if v6 { 128 } else { 8 }), ("reply", if v6 { 129 } else { 0 })] {
            if self.flag(name) {
                kind = Some(number);
            }
        }
        let echo = matches!(kind, Some(0 | 8 | 128 | 129));
        let usual = u16::from(echo);
        let pair: (u16, u16) = (self.number_or("id", usual)?, self.number_or("seq", usual)?);
        let default = u32::from(pair.0) << 16 | u32::from(pair.1);
        let rest = self.number("rest")?.or(self.number("mtu")?).unwrap_or(default);
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

/// IANA's number of an extension header.
fn extension_number(kind: &str) -> Option<u8> {
    Some(match kind {
        "hop-by-hop" => 0,
        "routing" => 43,
        "fragment" => 44,
        "auth" => 51,
        "destination" => 60,
        "mobility" => 135,
        "hip" => 139,
        "shim6" => 140,
        _ => return None,
    })
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
