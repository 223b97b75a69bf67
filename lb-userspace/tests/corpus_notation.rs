//! The notation of frames, and what tells whether checksums are right: what the cases rest on.

#[path = "corpus/checksums.rs"]
mod checksums;
#[path = "corpus/frame.rs"]
mod frame;
#[path = "corpus/show.rs"]
mod show;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use frame::{Ends, Names, Tunnel};

/// A hash that can be followed by eye: the client's port in its upper half, the VIP's port in its lower half.
const TUNNEL: Tunnel = Tunnel {
    source4: (Ipv4Addr::new(172, 16, 0, 0), 16),
    source6: (Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0), 64),
    hash: |ends: &Ends| u64::from(ends.client_port) << 32 | u64::from(ends.vip_port),
};

fn try_build(text: &str) -> Result<Vec<u8>, String> {
    let macs = BTreeMap::new();
    frame::build(text, Names { macs: &macs, default: ([2; 6], [4; 6]), tunnel: TUNNEL })
}

fn build(text: &str) -> Vec<u8> {
    try_build(text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The IP packet in a frame without tags.
fn packet(text: &str) -> String {
    hex(&build(text)[14..])
}

#[test]
fn a_known_packet_has_the_known_checksums() {
    // The IPv4 header of RFC 1071's usual example, as on Wikipedia: checksum b861.
    let header = packet("eth / ip4 192.168.0.1 > 192.168.0.199 id=0 df ttl=64 proto=17 len=115");
    assert_eq!(header, "450000730000400040 11b861c0a80001c0a800c7".replace(' ', ""));
    // By hand: c0 00 02 01 + c0 00 02 02 + 0011 + 0009 + 0001 + 0002 + 0009 + 6100, and the complement.
    let datagram = packet("eth / ip4 192.0.2.1 > 192.0.2.2 / udp 1 > 2 / \"a\"");
    let sum = 0xc000u32 + 0x0201 + 0xc000 + 0x0202 + 0x11 + 9 + 1 + 2 + 9 + 0x6100;
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    assert_eq!(datagram[40..], format!("000100020009{sum:04x}61"));
}

#[test]
fn tunnels_have_the_source_that_their_flow_gives() {
    let inner = "ip4 192.0.2.1 > 203.0.113.10 tos=8 / tcp 40000 > 25 S";
    let text = format!("eth / ip4 * > 198.51.100.9 id=0 df / {inner}");
    assert_eq!(build(&text), build(&text.replace('*', "172.16.156.64")));
    let text = format!("eth / ip6 * > 2001:db8::9 flow=* / {inner}");
    let plain = format!("eth / ip6 100::9c40:0:19 > 2001:db8::9 flow=25 / {inner}");
    assert_eq!(build(&text), build(&plain));
    let text = format!("eth / ip4 * > 198.51.100.9 / udp * > 6080 / {inner}");
    let plain = format!("eth / ip4 172.16.156.64 > 198.51.100.9 / udp 49177 > 6080 / {inner}");
    assert_eq!(build(&text), build(&plain));
    // Not a port: protocol 47 has none, and neither has a later fragment.
    let text = "eth / ip4 * > 198.51.100.9 / ip4 192.0.2.1 > 203.0.113.10 proto=47 / hex 00000800";
    assert_eq!(build(text), build(&text.replace('*', "172.16.0.0")));
    let text =
        "eth / ip4 * > 198.51.100.9 / ip4 192.0.2.1 > 203.0.113.10 part=8.. / udp 5000 > 53 / bytes 20";
    assert_eq!(build(text), build(&text.replace('*', "172.16.0.0")));
    assert!(try_build("eth / ip4 * > 198.51.100.9 / \"nothing\"").is_err());
}

#[test]
fn an_error_into_a_tunnel_belongs_to_the_flow_that_it_quotes() {
    let inner = "ip4 192.0.2.77 > 203.0.113.10 / icmp type=3 code=4 mtu=1400 / ip4 203.0.113.10 > 192.0.2.1 quote=8 / tcp 25 > 40000 A";
    let text = format!("eth / ip4 * > 198.51.100.9 / {inner}");
    assert_eq!(build(&text), build(&text.replace('*', "172.16.156.64")));
}

#[test]
fn fragments_are_parts_of_a_whole_datagram() {
    let whole = build("eth / ip4 192.0.2.1 > 203.0.113.53 id=7 / udp 5000 > 53 / bytes 40");
    let part = |range: &str| {
        build(&format!("eth / ip4 192.0.2.1 > 203.0.113.53 id=7 part={range} / udp 5000 > 53 / bytes 40"))
    };
    let (first, second, last) = (part("0..16"), part("16..32"), part("32.."));
    assert_eq!([&first[34..], &second[34..], &last[34..]].concat(), whole[34..]);
    let fields = |frame: &[u8]| (hex(&frame[16..18]), hex(&frame[20..22]));
    assert_eq!(fields(&first), ("0024".into(), "2000".into()));
    assert_eq!(fields(&second), ("0024".into(), "2002".into()));
    assert_eq!(fields(&last), ("0024".into(), "0004".into()));

    let whole = build("eth / ip6 2001:db8::1 > 2001:db8::2 / udp 5000 > 53 / bytes 40");
    let part = |range: &str| {
        build(&format!(
            "eth / ip6 2001:db8::1 > 2001:db8::2 / ext fragment part={range} id=0x01020304 / udp 5000 > 53 / bytes 40"
        ))
    };
    let (first, last) = (part("0..24"), part("24.."));
    assert_eq!([&first[62..], &last[62..]].concat(), whole[54..]);
    assert_eq!((hex(&first[18..21]), hex(&first[54..62])), ("00202c".into(), "1100000101020304".into()));
    assert_eq!((hex(&last[18..21]), hex(&last[54..62])), ("00202c".into(), "1100001801020304".into()));
    for wrong in ["part=0..15", "part=4..", "part=8..100", "part=8"] {
        let text = format!("eth / ip4 192.0.2.1 > 203.0.113.53 {wrong} / udp 5000 > 53 / bytes 40");
        assert!(try_build(&text).is_err(), "{wrong}");
    }
}

#[test]
fn a_quote_has_the_lengths_and_checksums_of_the_whole() {
    let inner = "ip4 203.0.113.10 > 192.0.2.1 / tcp 25 > 40000 PA / bytes 100";
    let whole = build(&format!("eth / {inner}"));
    let quoting = |quote: &str| {
        build(&format!(
            "eth / ip4 203.0.113.1 > 203.0.113.10 / icmp type=3 code=4 mtu=1400 / {}",
            inner.replacen(" / ", &format!(" {quote} / "), 1)
        ))
    };
    let error = quoting("quote=8");
    assert_eq!(error.len(), 14 + 20 + 8 + 28);
    assert_eq!(error[42..], whole[14..42]);
    assert_eq!(hex(&error[38..42]), "00000578");
    assert_eq!(checksums::wrong(&error), Vec::<String>::new());
    let places = |frame: &[u8]| checksums::sums(frame).into_iter().map(|s| s.place).collect::<Vec<_>>();
    assert_eq!(places(&error), ["ip4", "ip4/icmp", "ip4/icmp/ip4"]);
    assert_eq!(places(&quoting("quote=119")), ["ip4", "ip4/icmp", "ip4/icmp/ip4"]);
    assert_eq!(places(&quoting("quote=120")), ["ip4", "ip4/icmp", "ip4/icmp/ip4", "ip4/icmp/ip4/tcp"]);
    assert_eq!(quoting("quote=120"), quoting(""));
    assert!(try_build("eth / ip4 192.0.2.1 > 192.0.2.2 quote=9 / udp 1 > 2").is_err());
}

#[test]
fn extension_headers_have_the_length_they_say() {
    let ip = "eth / ip6 2001:db8::1 > 2001:db8::2";
    let chain = build(&format!(
        "{ip} / ext hop-by-hop / ext destination len=24 / ext routing / ext fragment id=9 / tcp 1 > 2 S"
    ));
    assert_eq!(chain.len(), 14 + 40 + 8 + 24 + 8 + 8 + 20);
    assert_eq!(hex(&chain[54..62]), "3c00010400000000");
    assert_eq!(hex(&chain[62..86]), format!("2b020114{}", "00".repeat(20)));
    assert_eq!(hex(&chain[86..94]), "2c00fd0000000000");
    assert_eq!(hex(&chain[94..102]), "0600000000000009");
    assert_eq!(checksums::sums(&chain).len(), 1);
    assert_eq!(checksums::wrong(&chain), Vec::<String>::new());
    // Padding has a length of one byte, so long headers have more than one.
    let long = build(&format!("{ip} / ext hop-by-hop len=2048 / tcp 1 > 2 S"));
    assert_eq!(hex(&long[54..58]), "06ff01fe");
    assert_eq!(long.len(), 14 + 40 + 2048 + 20);
    assert_eq!(hex(&build(&format!("{ip} / ext auth / tcp 1 > 2 S"))[54..56]), "0601");
    assert_eq!(hex(&build(&format!("{ip} / ext destination units=9 / tcp 1 > 2 S"))[54..56]), "0609");
    assert!(try_build(&format!("{ip} / ext hop-by-hop len=12 / tcp 1 > 2 S")).is_err());
    assert!(try_build(&format!("{ip} / ext pony / tcp 1 > 2 S")).is_err());
}

#[test]
fn echo_has_its_numbers() {
    let request = packet("eth / ip4 192.0.2.1 > 203.0.113.10 / icmp echo id=0x1234 seq=5 / \"ping\"");
    assert_eq!((&request[40..44], &request[48..56]), ("0800", "12340005"));
    let reply = packet("eth / ip6 2001:db8::1 > 2001:db8::2 / icmp6 reply id=0x1234 seq=5 / \"ping\"");
    assert_eq!((&reply[80..84], &reply[88..96]), ("8100", "12340005"));
}

#[test]
fn wrong_checksums_are_found_wherever_they_are() {
    for (text, place) in [
        ("eth / ip4 192.0.2.1 > 192.0.2.2 sum=+1 / tcp 1 > 2 S", "ip4"),
        ("eth / qinq 5 / vlan 6 / ip4 192.0.2.1 > 192.0.2.2 / tcp 1 > 2 S sum=+1", "ip4/tcp"),
        ("eth / ip6 2001:db8::1 > 2001:db8::2 / ext hop-by-hop / udp 1 > 2 sum=+1", "ip6/udp"),
        ("eth / ip4 192.0.2.1 > 192.0.2.2 / ip6 2001:db8::1 > 2001:db8::2 / udp 1 > 2 sum=+1", "ip4/ip6/udp"),
        (
            "eth / ip4 192.0.2.1 > 192.0.2.2 / udp 1 > 6080 sum=0 / ip4 192.0.2.1 > 192.0.2.2 sum=+9 / udp 1 > 2",
            "ip4/udp/ip4",
        ),
        (
            "eth / ip4 192.0.2.1 > 192.0.2.2 / udp 1 > 6080 sum=+1 / ip4 192.0.2.1 > 192.0.2.2 / udp 1 > 2",
            "ip4/udp",
        ),
        ("eth / ip4 192.0.2.1 > 192.0.2.2 / icmp echo sum=+1", "ip4/icmp"),
        (
            "eth / ip6 2001:db8::1 > 2001:db8::2 / icmp6 type=2 mtu=1280 / ip6 2001:db8::2 > 2001:db8::1 / tcp 1 > 2 S sum=+1",
            "ip6/icmp6/ip6/tcp",
        ),
        (
            "eth / ip4 192.0.2.1 > 192.0.2.2 / icmp type=11 / ip4 192.0.2.1 > 192.0.2.2 sum=+1 quote=8 / udp 1 > 2 / bytes 5",
            "ip4/icmp/ip4",
        ),
    ] {
        assert_eq!(checksums::wrong(&build(text)), [place], "{text}");
        let right = text.replace("sum=+1", "").replace("sum=+9", "");
        assert_eq!(checksums::wrong(&build(&right)), Vec::<String>::new(), "{right}");
        assert!(
            show::show(&build(text)).contains(&format!("wrong: {place}")),
            "{}",
            show::show(&build(text))
        );
    }
    // Nobody can tell.
    for text in [
        "eth / ip4 192.0.2.1 > 192.0.2.2 / udp 1 > 2 sum=0",
        "eth / ip4 192.0.2.1 > 192.0.2.2 part=0..8 / udp 1 > 2 sum=+1 / bytes 20",
        "eth / ip6 2001:db8::1 > 2001:db8::2 / ext fragment part=8.. / udp 1 > 2 sum=+1 / bytes 20",
    ] {
        assert_eq!(checksums::wrong(&build(text)), Vec::<String>::new(), "{text}");
    }
}
