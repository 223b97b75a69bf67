//! The digest of an advertisement: HMAC-SHA1 (RFC 2104) over what the members of a group must agree on.
//!
//! In this order: version and type as two bytes, the vhid, every IPv4 address in ascending order, every IPv6 address in
//! ascending order, the counter. Intervals and demotion are *not* covered: CARP version 2 cannot protect them.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha1::Sha1;
use subtle::ConstantTimeEq as _;

/// Bytes of a password. The key field has 20, but `ifconfig` cuts at 19 and ucarp refuses more.
pub const LONGEST_PASSWORD: usize = 19;

/// Makes and checks the digests of one vhid.
#[derive(Clone)]
pub struct Authenticator {
    /// After everything but the counter.
    state: Hmac<Sha1>,
    /// The same without IPv6 link-local addresses, if there are any: OpenBSD leaves them out of what it sends.
    without_link_local: Option<Hmac<Sha1>>,
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The state is as good as the password.
        f.debug_struct("Authenticator").finish_non_exhaustive()
    }
}

impl Authenticator {
    /// `None` if the password is longer than [`LONGEST_PASSWORD`].
    #[must_use]
    pub fn new(password: &[u8], vhid: u8, addresses: &[IpAddr]) -> Option<Self> {
        if password.len() > LONGEST_PASSWORD {
            return None;
        }
        let has_link_local = addresses.iter().any(is_link_local);
        Some(Self {
            state: begin(password, vhid, addresses.iter().copied())?,
            without_link_local: if has_link_local {
                Some(begin(password, vhid, addresses.iter().copied().filter(|a| !is_link_local(a)))?)
            } else {
                None
            },
        })
    }

    /// The digest to send with `counter`.
    #[must_use]
    pub fn digest(&self, counter: u64) -> [u8; 20] {
        finish(&self.state, counter)
    }

    /// Whether a received digest is right, in a time that does not tell how much of it is.
    #[must_use]
    pub fn verify(&self, counter: u64, digest: &[u8; 20]) -> bool {
        let matches = |state: &Hmac<Sha1>| finish(state, counter).ct_eq(digest);
        let right = matches(&self.state);
        self.without_link_local.as_ref().map_or(right, |state| right | matches(state)).into()
    }
}

fn begin(password: &[u8], vhid: u8, addresses: impl Iterator<Item = IpAddr>) -> Option<Hmac<Sha1>> {
    let mut mac = Hmac::<Sha1>::new_from_slice(password).ok()?;
    let (mut v4, mut v6) = (BTreeSet::new(), BTreeSet::new());
    for address in addresses {
        match address {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED | Ipv4Addr::BROADCAST) => {}
            IpAddr::V4(address) => {
                v4.insert(address.octets());
            }
            IpAddr::V6(address) => {
                v6.insert(address.octets());
            }
        }
    }
    mac.update(&[2, 1, vhid]);
    v4.iter().for_each(|address| mac.update(address));
    v6.iter().for_each(|address| mac.update(address));
    Some(mac)
}

fn finish(state: &Hmac<Sha1>, counter: u64) -> [u8; 20] {
    let mut mac = state.clone();
    mac.update(&counter.to_be_bytes());
    mac.finalize().into_bytes().into()
}

fn is_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if Ipv6Addr::is_unicast_link_local(v6))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authenticator(password: &str, vhid: u8, addresses: &[&str]) -> Authenticator {
        let addresses: Vec<IpAddr> = addresses.iter().map(|a| a.parse().unwrap()).collect();
        Authenticator::new(password.as_bytes(), vhid, &addresses).unwrap()
    }

    /// The plain definition (RFC 2104) over a message written out by hand, for comparison.
    fn hmac_by_hand(key: &[u8], message: &[u8]) -> [u8; 20] {
        use sha1::Digest as _;
        let mut block = [0_u8; 64];
        block[..key.len()].copy_from_slice(key);
        let pad = |with: u8| block.map(|byte| byte ^ with);
        let inner = Sha1::new().chain_update(pad(0x36)).chain_update(message).finalize();
        Sha1::new().chain_update(pad(0x5c)).chain_update(inner).finalize().into()
    }

    #[test]
    fn the_vector() {
        let digest = authenticator("love", 42, &["10.1.1.252"]).digest(1);
        let text: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(text, "bed06b842dc2fcede38f5139bf18d984f1276796");
    }

    #[test]
    fn addresses_are_sorted_and_counted_once() {
        let one = authenticator("k", 1, &["2001:db8::2", "192.0.2.9", "10.0.0.1", "2001:db8::1", "10.0.0.1"]);
        let other =
            authenticator("k", 1, &["10.0.0.1", "192.0.2.9", "2001:db8::1", "2001:db8::2", "0.0.0.0"]);
        assert_eq!(one.digest(7), other.digest(7));
        let mut message = vec![2, 1, 1, 10, 0, 0, 1, 192, 0, 2, 9];
        for last in [1_u16, 2] {
            message.extend(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last).octets());
        }
        message.extend(7_u64.to_be_bytes());
        assert_eq!(one.digest(7), hmac_by_hand(b"k", &message));
    }

    #[test]
    fn ascending_means_numerically_in_network_order() {
        // In little-endian integers 10.0.0.2 would come after 192.0.2.1.
        let one = authenticator("k", 1, &["192.0.2.1", "10.0.0.2"]);
        let message = [2, 1, 1, 10, 0, 0, 2, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(one.digest(0), hmac_by_hand(b"k", &message));
    }

    #[test]
    fn whatever_differs_is_noticed() {
        let ours = authenticator("love", 42, &["10.1.1.252", "2001:db8::1"]);
        assert!(ours.verify(5, &ours.digest(5)));
        assert!(!ours.verify(6, &ours.digest(5)));
        for other in [
            authenticator("hate", 42, &["10.1.1.252", "2001:db8::1"]),
            authenticator("", 42, &["10.1.1.252", "2001:db8::1"]),
            authenticator("love", 43, &["10.1.1.252", "2001:db8::1"]),
            authenticator("love", 42, &["10.1.1.252"]),
            authenticator("love", 42, &["10.1.1.252", "10.1.1.253", "2001:db8::1"]),
        ] {
            assert!(!ours.verify(5, &other.digest(5)));
        }
        let mut digest = ours.digest(5);
        digest[19] ^= 1;
        assert!(!ours.verify(5, &digest));
    }

    #[test]
    fn openbsd_may_leave_link_locals_out() {
        let ours = authenticator("k", 1, &["fe80::1", "2001:db8::1"]);
        let openbsd = authenticator("k", 1, &["2001:db8::1"]);
        assert!(ours.verify(3, &openbsd.digest(3)));
        assert!(ours.verify(3, &ours.digest(3)));
        assert!(!openbsd.verify(3, &ours.digest(3)));
    }

    #[test]
    fn passwords_have_a_limit() {
        assert!(Authenticator::new(&[b'x'; 19], 1, &[]).is_some());
        assert!(Authenticator::new(&[b'x'; 20], 1, &[]).is_none());
        assert!(Authenticator::new(b"", 1, &[]).is_some(), "OpenBSD allows none");
    }
}
