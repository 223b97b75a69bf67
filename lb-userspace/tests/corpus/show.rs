//! Frames in words, for people who look at a failure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksums;

/// What a frame is: the notation as far as it goes, the checksums that are wrong, then the first bytes.
pub fn show(frame: &[u8]) -> String {
    let mut text = ethernet(frame).unwrap_or_default();
    text += &format!("  ({} bytes)", frame.len());
    let wrong = checksums::wrong(frame);
    if !wrong.is_empty() {
        text += &format!(" wrong: {}", wrong.join(", "));
    }
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

/// `None`: too short for its addresses and EtherType.
fn ethernet(frame: &[u8]) -> Option<String> {
    let mac = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":");
    let mut ether_type = be16(frame, 12)?;
    let mut text = format!("eth {} > {}", mac(&frame[6..12]), mac(&frame[..6]));
    let mut at = 14;
    while let 0x8100 | 0x88a8 = ether_type {
        let Some((control, inner)) = be16(frame, at).zip(be16(frame, at + 2)) else { break };
        text += &format!(" / {} {control:#x}", if ether_type == 0x8100 { "vlan" } else { "qinq" });
        ether_type = inner;
        at += 4;
    }
    Some(match ether_type {
        0x0800 | 0x86dd => text + &ip(&frame[at..]),
        other => text + &format!(" type={other:#06x}"),
    })
}

fn ip(packet: &[u8]) -> String {
    let text = match packet.first().map(|b| b >> 4) {
        Some(4) => ip4(packet),
        Some(6) => ip6(packet),
        _ => None,
    };
    text.unwrap_or_else(|| " / no whole IP header".into())
}

fn ip4(packet: &[u8]) -> Option<String> {
    let address = |at: usize| Some(IpAddr::from(Ipv4Addr::from(be32(packet, at)?)));
    let (source, destination) = (address(12)?, address(16)?);
    let (fragment, len) = (be16(packet, 6)?, be16(packet, 2)?);
    let (tos, id, ttl, protocol) = (packet[1], be16(packet, 4)?, packet[8], packet[9]);
    let mut text =
        format!(" / ip4 {source} > {destination} ttl={ttl} tos={tos} len={len} id={id} proto={protocol}");
    for (bit, name) in [(0x8000, "evil"), (0x4000, "df"), (0x2000, "mf")] {
        if fragment & bit != 0 {
            text += &format!(" {name}");
        }
    }
    text += &format!(" sum={:#06x}", be16(packet, 10)?);
    let header_len = usize::from(packet[0] & 0xf) * 4;
    if header_len > 20 {
        text += &format!(" and {} bytes of options", header_len - 20);
    }
    if fragment & 0x1fff != 0 {
        return Some(text + &format!(" off={}", fragment & 0x1fff));
    }
    Some(text + &transport(protocol, packet.get(header_len..).unwrap_or_default()))
}

fn ip6(packet: &[u8]) -> Option<String> {
    let address = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?));
    let (source, destination) = (address(8)?, address(24)?);
    let first = be32(packet, 0)?;
    let (class, flow) = (first >> 20 & 0xff, first & 0xf_ffff);
    let (len, mut next, hops) = (be16(packet, 4)?, packet[6], packet[7]);
    let mut text = format!(
        " / ip6 {source} > {destination} hlim={hops} class={class} flow={flow:#x} len={len} next={next}"
    );
    let mut rest = &packet[40..];
    while let (0 | 43 | 44 | 60, Some([inner, units, ..])) = (next, rest.first_chunk::<8>()) {
        let len = if next == 44 { 8 } else { 8 + usize::from(*units) * 8 };
        text += &format!(" / ext {next} len={len}");
        if next == 44 {
            let word = be16(rest, 2)?;
            text += &format!(" off={} mf={} id={}", word >> 3, word & 1, be32(rest, 4)?);
            if word >> 3 != 0 {
                return Some(text);
            }
        }
        next = *inner;
        rest = rest.get(len..).unwrap_or_default();
    }
    Some(text + &transport(next, rest))
}

fn transport(protocol: u8, segment: &[u8]) -> String {
    let text = || {
        let ports = format!("{} > {}", be16(segment, 0)?, be16(segment, 2)?);
        Some(match protocol {
            6 => {
                let rest = || {
                    let (flags, seq, ack) = (segment.get(13)?, be32(segment, 4)?, be32(segment, 8)?);
                    Some(format!(" flags={flags:#04x} seq={seq} ack={ack} sum={:#06x}", be16(segment, 16)?))
                };
                format!(" / tcp {ports}{}", rest().unwrap_or_else(|| " cut short".into()))
            }
            17 => {
                let text =
                    format!(" / udp {ports} ulen={} sum={:#06x}", be16(segment, 4)?, be16(segment, 6)?);
                let tunnel = be16(segment, 2)? == checksums::GUE_PORT;
                if tunnel { text + &ip(&segment[8..]) } else { text }
            }
            1 | 58 => {
                let (kind, code) = (*segment.first()?, *segment.get(1)?);
                let text = format!(
                    " / icmp{} type={kind} code={code} rest={:#x} sum={:#06x}",
                    if protocol == 1 { "" } else { "6" },
                    be32(segment, 4)?,
                    be16(segment, 2)?
                );
                if checksums::quotes(protocol, kind) { text + &ip(&segment[8..]) } else { text }
            }
            4 | 41 => ip(segment),
            _ => String::new(),
        })
    };
    text().unwrap_or_default()
}
