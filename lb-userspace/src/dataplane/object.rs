//! The XDP program this binary carries.

/// The BPF object, aligned as its ELF headers want it.
#[repr(C, align(8))]
struct Aligned<Bytes: ?Sized>(Bytes);

static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/matapa-xdp.o")));

/// The binary was built before its XDP program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this binary was built without the XDP program; build it with `cargo xtask build`")]
pub struct ObjectMissing;

/// The BPF object embedded in this binary, 8-byte aligned.
///
/// # Errors
///
/// There is none when the crate was built by cargo alone, before `cargo xtask build`.
pub fn embedded() -> Result<&'static [u8], ObjectMissing> {
    present(&OBJECT.0)
}

fn present(object: &[u8]) -> Result<&[u8], ObjectMissing> {
    if object.is_empty() { Err(ObjectMissing) } else { Ok(object) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_object_says_how_to_get_it() {
        let message = present(&[]).map_err(|error| error.to_string());
        let expected = "this binary was built without the XDP program; build it with `cargo xtask build`";
        assert_eq!(message, Err(expected.to_owned()));
    }

    #[test]
    fn embedded_object_is_aligned_elf() {
        if let Ok(object) = embedded() {
            assert!(object.as_ptr().cast::<u64>().is_aligned());
            assert!(object.starts_with(b"\x7fELF"));
        }
    }
}
