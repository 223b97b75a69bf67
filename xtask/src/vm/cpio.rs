//! The archive format of an initramfs ("newc", Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An archive that is being written.
#[derive(Debug)]
pub struct Archive<W> {
    out: W,
    number: u32,
    directories: BTreeSet<String>,
}

struct Header<'a> {
    name: &'a str,
    mode: u32,
    size: u32,
    device: (u32, u32),
}

impl<W: Write> Archive<W> {
    pub fn new(out: W) -> Self {
        Self { out, number: 0, directories: BTreeSet::new() }
    }

    /// A directory and those above it.
    pub fn directory(&mut self, path: &str) -> io::Result<()> {
        let path = path.trim_matches('/');
        let ends = path.match_indices('/').map(|(end, _)| end).chain([path.len()]);
        for name in ends.map(|end| &path[..end]).filter(|name| !name.is_empty()) {
            if self.directories.insert(name.to_owned()) {
                self.header(&Header { name, mode: DIRECTORY, size: 0, device: (0, 0) })?;
            }
        }
        Ok(())
    }

    /// A file and the directories above it.
    pub fn file(&mut self, path: &str, permissions: u32, bytes: &[u8]) -> io::Result<()> {
        let name = self.place(path)?;
        let size = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        self.header(&Header { name, mode: FILE | permissions, size, device: (0, 0) })?;
        self.out.write_all(bytes)?;
        self.pad(bytes.len())
    }

    /// A character device and the directories above it.
    pub fn device(&mut self, path: &str, major: u32, minor: u32) -> io::Result<()> {
        let name = self.place(path)?;
        self.header(&Header { name, mode: CHARACTER_DEVICE, size: 0, device: (major, minor) })
    }

    /// The archive's end.
    pub fn finish(mut self) -> io::Result<W> {
        self.header(&Header { name: "TRAILER!!!", mode: 0, size: 0, device: (0, 0) })?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn place<'p>(&mut self, path: &'p str) -> io::Result<&'p str> {
        let name = path.trim_start_matches('/');
        if let Some((above, _)) = name.rsplit_once('/') {
            self.directory(above)?;
        }
        Ok(name)
    }

    fn header(&mut self, Header { name, mode, size, device: (major, minor) }: &Header<'_>) -> io::Result<()> {
        self.number += 1;
        let (number, name_size) = (self.number, name.len() + 1);
        // Inode, mode, user, group, links, time, size, device's numbers, own numbers, name's size, checksum.
        write!(
            self.out,
            "070701{number:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{size:08x}{0:08x}{0:08x}{major:08x}\
             {minor:08x}{name_size:08x}{0:08x}{name}\0",
            0, 1
        )?;
        self.pad(110 + name_size)
    }

    /// Everything starts at a multiple of four.
    fn pad(&mut self, length: usize) -> io::Result<()> {
        self.out.write_all(&[0; 3][..length.next_multiple_of(4) - length])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_directories_come_once() {
        let mut archive = Archive::new(Vec::new());
        archive.file("/a/b/one", 0o644, b"12345").unwrap();
        archive.file("/a/b/two", 0o755, b"").unwrap();
        archive.device("/dev/console", 5, 1).unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let starts: Vec<usize> =
            bytes.windows(6).enumerate().filter(|(_, word)| *word == b"070701").map(|(at, _)| at).collect();
        assert_eq!(starts.len(), 7);
        assert!(starts.iter().all(|at| at % 4 == 0), "{starts:?}");
        let names: Vec<&[u8]> =
            starts.iter().filter_map(|at| bytes[at + 110..].split(|byte| *byte == 0).next()).collect();
        let expected = ["a", "a/b", "a/b/one", "a/b/two", "dev", "dev/console", "TRAILER!!!"];
        assert_eq!(names, expected.map(str::as_bytes));
    }
}
