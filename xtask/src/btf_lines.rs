//! Source lines of BPF instructions, from `.BTF.ext`.
//!
//! Only what a message needs is read: anything malformed gives no line, never an error.

/// A source line that an instruction came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub file: String,
    pub number: u32,
    pub text: String,
}

#[derive(Debug)]
struct Record {
    section: String,
    /// Byte offset of the instruction in its section.
    offset: u64,
    line: Line,
}

/// All line records of an object.
#[derive(Debug, Default)]
pub struct Lines {
    records: Vec<Record>,
}

const MAGIC: u16 = 0xeb9f;
/// Bits of the column in a record's last word.
const COLUMN_BITS: u32 = 10;
const SMALLEST_RECORD: usize = 16;

impl Lines {
    /// Read the line records out of the two sections.
    pub fn parse(btf: &[u8], btf_ext: &[u8]) -> Self {
        Self { records: parse(btf, btf_ext).unwrap_or_default() }
    }

    /// The line of the last record at or before `offset`, but inside the function that starts at `start`.
    pub fn at(&self, section: &str, start: u64, offset: u64) -> Option<&Line> {
        let known = |record: &&Record| {
            record.section == section && (start..=offset).contains(&record.offset) && record.line.number > 0
        };
        self.records.iter().filter(known).max_by_key(|record| record.offset).map(|record| &record.line)
    }
}

fn parse(btf: &[u8], ext: &[u8]) -> Option<Vec<Record>> {
    if u16_at(btf, 0)? != MAGIC || u16_at(ext, 0)? != MAGIC {
        return None;
    }
    let strings_start = usize_at(btf, 4)?.checked_add(usize_at(btf, 16)?)?;
    let strings = btf.get(strings_start..)?;
    let lines_start = usize_at(ext, 4)?.checked_add(usize_at(ext, 16)?)?;
    let lines = ext.get(lines_start..)?.get(..usize_at(ext, 20)?)?;
    let record_size = usize_at(lines, 0)?;
    if record_size < SMALLEST_RECORD {
        return None;
    }
    let mut records = Vec::new();
    let mut rest = lines.get(4..)?;
    while rest.len() >= 8 {
        let section = string_at(strings, usize_at(rest, 0)?)?;
        let length = usize_at(rest, 4)?.checked_mul(record_size)?;
        let body = rest.get(8..)?.get(..length)?;
        for record in body.chunks_exact(record_size) {
            records.push(Record {
                section: section.clone(),
                offset: u32_at(record, 0)?.into(),
                line: Line {
                    file: string_at(strings, usize_at(record, 4)?)?,
                    text: string_at(strings, usize_at(record, 8)?)?.trim().to_owned(),
                    number: u32_at(record, 12)? >> COLUMN_BITS,
                },
            });
        }
        rest = rest.get(8 + length..)?;
    }
    Some(records)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

fn usize_at(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u32_at(bytes, at)?).ok()
}

fn string_at(strings: &[u8], at: usize) -> Option<String> {
    let bytes = strings.get(at..)?;
    let end = bytes.iter().position(|byte| *byte == 0)?;
    Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A `.BTF` without types, and a `.BTF.ext` with one line record for `section` at `offset`.
    pub fn one_line(section: &str, offset: u32, file: &str, text: &str, number: u32) -> (Vec<u8>, Vec<u8>) {
        let mut strings = vec![0];
        let mut add = |text: &str| {
            let at = strings.len() as u32;
            strings.extend(text.as_bytes());
            strings.push(0);
            at
        };
        let names = [add(section), add(file), add(text)];
        let words = |values: &[u32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
        let mut btf = vec![0x9f, 0xeb, 1, 0];
        btf.extend(words(&[24, 0, 0, 0, strings.len() as u32]));
        btf.extend(strings);
        let mut ext = vec![0x9f, 0xeb, 1, 0];
        ext.extend(words(&[24, 0, 0, 0, 28]));
        ext.extend(words(&[16, names[0], 1, offset, names[1], names[2], number << COLUMN_BITS]));
        (btf, ext)
    }

    #[test]
    fn line_before_an_instruction_is_found_within_its_function() {
        let (btf, ext) = one_line("xdp", 16, "src/main.rs", "  table[i]", 7);
        let lines = Lines::parse(&btf, &ext);
        let line = Line { file: "src/main.rs".into(), number: 7, text: "table[i]".into() };
        assert_eq!(lines.at("xdp", 0, 24), Some(&line));
        assert_eq!(lines.at("xdp", 0, 8), None);
        assert_eq!(lines.at("xdp", 24, 32), None);
        assert_eq!(lines.at(".text", 0, 24), None);
    }

    #[test]
    fn damaged_sections_give_no_lines() {
        let (btf, ext) = one_line("xdp", 16, "src/main.rs", "table[i]", 7);
        for length in 0..ext.len() {
            assert_eq!(Lines::parse(&btf, &ext[..length]).at("xdp", 0, 24), None, "cut at {length}");
        }
        for length in 0..btf.len() {
            let _ = Lines::parse(&btf[..length], &ext);
        }
    }
}
