//! Secrets from files: the key of the datagrams, and the seed of the flows' hash.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use hmac::{Hmac, KeyInit as _, Mac as _};
use lb_common::hash::HashKey;
use log::warn;
use sha2::Sha256;

/// Bytes of a secret.
pub const BYTES: usize = 32;
/// Of a file. More is no secret.
const LARGEST_FILE: u64 = 4096;

/// The key of the datagrams.
pub type Key = [u8; BYTES];

/// Reads 32 bytes in hexadecimal. `setting` is the key of the configuration that names the file.
///
/// # Errors
/// When the file cannot be read or holds anything else; the text says how to make one.
pub fn read(setting: &str, path: &Path) -> Result<Key> {
    let shown = path.display();
    let about = || format!("cannot read {setting} {shown}");
    let file = fs::File::open(path).with_context(about)?;
    if file.metadata().is_ok_and(|metadata| metadata.mode() & 0o077 != 0) {
        warn!("others than its owner may read the secret in {shown}: chmod 600 {shown}");
    }
    let mut text = Vec::new();
    file.take(LARGEST_FILE).read_to_end(&mut text).with_context(about)?;
    let Some(key) = from_hex(text.trim_ascii()) else {
        bail!(
            "{setting} {shown} does not hold 64 hexadecimal digits; make one with: openssl rand -hex 32 > {shown}, and \
             copy it to the other gateway"
        );
    };
    if key == [0; BYTES] {
        bail!("{setting} {shown} holds nothing but zeros, which is no secret");
    }
    Ok(key)
}

fn from_hex(text: &[u8]) -> Option<Key> {
    let mut key = [0; BYTES];
    if text.len() != 2 * BYTES {
        return None;
    }
    for (byte, digits) in key.iter_mut().zip(text.chunks_exact(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        *byte = u8::try_from(digit(digits[0])? << 4 | digit(digits[1])?).ok()?;
    }
    Some(key)
}

/// The key of the flows' hash that all gateways with this seed have.
#[must_use]
pub fn hash_key(seed: &Key) -> HashKey {
    let mut bytes = [0u8; 2 * BYTES];
    for (number, part) in (0u8..).zip(bytes.chunks_exact_mut(BYTES)) {
        part.copy_from_slice(&digest(seed, &[b"matapa flow hash", &[number]]));
    }
    let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let words = std::array::from_fn(|index| word(index * 4));
    HashKey { words, seed: u64::from(word(40)) << 32 | u64::from(word(44)) }
}

/// HMAC-SHA256 (RFC 2104, FIPS 180-4) of all parts, one after the other.
pub(super) fn digest(key: &Key, parts: &[&[u8]]) -> [u8; 32] {
    // A key of any length is taken.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return [0; 32] };
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_hexadecimal() {
        let read_text = |text: &str| {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), text).unwrap();
            read("key_file", file.path())
        };
        let text = "0123456789abcdefABCDEF0123456789".repeat(2);
        assert_eq!(read_text(&format!("{text}\n")).unwrap()[..2], [0x01, 0x23]);
        for (wrong, expected) in [
            (String::new(), "64 hexadecimal digits"),
            (text[1..].to_owned(), "64 hexadecimal digits"),
            (text.replace('a', "g"), "64 hexadecimal digits"),
            ("0".repeat(64), "nothing but zeros"),
        ] {
            let error = format!("{:#}", read_text(&wrong).unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
        let error = format!("{:#}", read("seed_file", Path::new("/nonexistent/seed")).unwrap_err());
        assert!(error.contains("seed_file /nonexistent/seed"), "{error}");
    }

    /// RFC 4231 section 4.2, with its key of 20 bytes filled up with zeros, as HMAC does.
    #[test]
    fn the_digest_is_hmac_sha256() {
        let mut key = [0; BYTES];
        key[..20].fill(0x0b);
        assert_eq!(digest(&key, &[b"Hi ", b"There"])[..4], [0xb0, 0x34, 0x4c, 0x61]);
    }

    #[test]
    fn a_seed_gives_one_key() {
        assert_eq!(hash_key(&[1; BYTES]), hash_key(&[1; BYTES]));
        assert_ne!(hash_key(&[1; BYTES]), hash_key(&[2; BYTES]));
    }
}
