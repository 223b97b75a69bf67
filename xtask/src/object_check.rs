//! What the kernel would refuse, found in the object before anybody loads it.
//!
//! A panic that survives optimisation is a call to a function that never returns. The verifier reports it
//! as "last insn is not an exit or jmp" without saying where; here the function and the line are named.

use std::collections::BTreeMap;
use std::fmt;

use object::{Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget};
use object::{SectionIndex, SectionKind, SymbolKind};

use crate::btf_lines::{Line, Lines};

/// More than this in one function is a mistake: the whole program must fit the verifier's patience.
pub const MOST_INSTRUCTIONS: usize = 16_384;

const INSTRUCTION: usize = 8;
/// The section names of programs that aya attaches to XDP.
const PROGRAM_SECTIONS: [&str; 2] = ["xdp", "xdp.frags"];
const HANDLER: &str = "rust_begin_unwind";

/// An object that passed.
#[derive(Debug, PartialEq, Eq)]
pub struct Summary {
    /// Name and instructions of each XDP program.
    pub programs: Vec<(String, usize)>,
    /// Functions and their instructions in all, programs included.
    pub functions: usize,
    pub instructions: usize,
    pub license: String,
}

impl fmt::Display for Summary {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, instructions) in &self.programs {
            write!(out, "program {name} {instructions} instructions, ")?;
        }
        write!(
            out,
            "{} in all {} functions (limit {MOST_INSTRUCTIONS} each), licence {:?}",
            self.instructions, self.functions, self.license
        )
    }
}

/// Why an object is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("it is not a BPF object: {0}")]
    Unreadable(String),
    #[error("it has no section {0}; {1}")]
    SectionMissing(&'static str, &'static str),
    #[error("its license section is not a zero-terminated text")]
    License,
    #[error("it has no program in a section xdp or xdp.frags; mark the entry with #[xdp]")]
    NoProgram,
    #[error("{function} has {count} instructions, more than {MOST_INSTRUCTIONS}: split it")]
    TooLong { function: String, count: usize },
    #[error("{function} can panic: it calls {callee}{}", shown(.line.as_ref()))]
    Panics { function: String, callee: String, line: Option<Line> },
    #[error("{0} is left in the object though no call of it was found")]
    PanicCode(String),
    #[error("{function} contains an endless loop{}", shown(.line.as_ref()))]
    Endless { function: String, line: Option<Line> },
    #[error("{0} does not end with a return or a jump")]
    RunsOff(String),
    #[error("{function} needs {symbol}, which is nowhere defined")]
    Undefined { function: String, symbol: String },
}

fn shown(line: Option<&Line>) -> String {
    line.map(|Line { file, number, text }| format!("\n    at {file}:{number}: {text}")).unwrap_or_default()
}

/// Everything wrong with an object.
#[derive(Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.0 {
            writeln!(out, "  {problem}")?;
        }
        if self.0.iter().any(|problem| matches!(problem, Problem::Panics { .. })) {
            writeln!(out, "  Use .get() or a mask to index, checked_div and checked_rem to divide.")?;
        }
        Ok(())
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

/// Check an object as bpf-linker writes it.
pub fn check(bytes: &[u8]) -> Result<Summary, Problems> {
    let file = object::File::parse(bytes).map_err(|error| Problem::Unreadable(error.to_string()))?;
    let mut problems = Vec::new();
    for (name, advice) in [(".BTF", "link with --btf"), (".BTF.ext", "compile with debug = 2")] {
        if file.section_by_name(name).is_none() {
            problems.push(Problem::SectionMissing(name, advice));
        }
    }
    let license = license(&file).unwrap_or_else(|problem| {
        problems.push(problem);
        String::new()
    });
    let code = Code::read(&file)?;
    let programs: Vec<(String, usize)> = code
        .functions
        .iter()
        .filter(|function| PROGRAM_SECTIONS.contains(&function.section_name.as_str()))
        .map(|function| (function.name.clone(), function.instructions().count()))
        .collect();
    if programs.is_empty() {
        problems.push(Problem::NoProgram);
    }
    code.check(&mut problems);
    if !problems.is_empty() {
        return Err(Problems(problems));
    }
    Ok(Summary {
        programs,
        functions: code.functions.len(),
        instructions: code.functions.iter().map(|function| function.bytes.len() / INSTRUCTION).sum(),
        license,
    })
}

fn license(file: &object::File<'_>) -> Result<String, Problem> {
    let missing = Problem::SectionMissing("license", "the kernel wants to know whether it is GPL compatible");
    let data = file.section_by_name("license").and_then(|section| section.data().ok()).ok_or(missing)?;
    let text = std::ffi::CStr::from_bytes_with_nul(data).map_err(|_| Problem::License)?;
    text.to_str().ok().filter(|text| !text.is_empty()).map(str::to_owned).ok_or(Problem::License)
}

/// One instruction; the second half of a wide one is skipped.
#[derive(Clone, Copy, Debug)]
struct Instruction {
    /// Byte offset in the section.
    at: u64,
    code: u8,
    source: u8,
    offset: i16,
    immediate: i32,
}

const WIDE_LOAD: u8 = 0x18;
const JUMP: u8 = 0x05;
const LONG_JUMP: u8 = 0x06;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// The source register of a call to another BPF function.
const CALL_FUNCTION: u8 = 1;

impl Instruction {
    fn jumps_to_itself(self) -> bool {
        self.code == JUMP && self.offset == -1 || self.code == LONG_JUMP && self.immediate == -1
    }

    fn ends_a_function(self) -> bool {
        matches!(self.code, EXIT | JUMP | LONG_JUMP)
    }
}

#[derive(Debug)]
struct Function {
    name: String,
    section: SectionIndex,
    section_name: String,
    start: u64,
    bytes: Vec<u8>,
}

impl Function {
    fn instructions(&self) -> impl Iterator<Item = Instruction> {
        let mut second_half = false;
        self.bytes.chunks_exact(INSTRUCTION).zip(0u64..).filter_map(move |(word, index)| {
            if std::mem::take(&mut second_half) {
                return None;
            }
            second_half = word[0] == WIDE_LOAD;
            Some(Instruction {
                at: self.start + index * INSTRUCTION as u64,
                code: word[0],
                source: word[1] >> 4,
                offset: i16::from_le_bytes([word[2], word[3]]),
                immediate: i32::from_le_bytes([word[4], word[5], word[6], word[7]]),
            })
        })
    }

    fn never_returns(&self) -> bool {
        !self.instructions().any(|instruction| instruction.code == EXIT)
    }

    /// Is it part of the machinery of panics, rather than code that uses it?
    fn is_panic_code(&self) -> bool {
        let name = self.name.trim_start_matches('<');
        self.never_returns()
            && (name.starts_with("core::") || name.starts_with("alloc::") || name.contains(HANDLER))
    }
}

/// Where a relocation points.
#[derive(Debug)]
enum Target {
    Defined { section: SectionIndex, address: u64 },
    Undefined(String),
}

struct Code {
    functions: Vec<Function>,
    relocations: BTreeMap<(usize, u64), Target>,
    lines: Lines,
}

impl Code {
    fn read(file: &object::File<'_>) -> Result<Self, Problem> {
        let unreadable = |error: object::Error| Problem::Unreadable(error.to_string());
        let mut functions = Vec::new();
        let mut relocations = BTreeMap::new();
        for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
            let data = section.data().map_err(unreadable)?;
            let section_name = section.name().map_err(unreadable)?.to_owned();
            let mut symbols: Vec<(u64, u64, String)> = file
                .symbols()
                .filter(|symbol| symbol.kind() == SymbolKind::Text)
                .filter(|symbol| symbol.section_index() == Some(section.index()))
                .map(|symbol| {
                    let name = symbol.name().unwrap_or("(unnamed)");
                    (symbol.address(), symbol.size(), demangled(name))
                })
                .collect();
            symbols.sort();
            for (start, size, name) in symbols {
                let bytes = usize::try_from(start)
                    .ok()
                    .zip(usize::try_from(size).ok())
                    .and_then(|(start, size)| data.get(start..start.checked_add(size)?))
                    .ok_or_else(|| Problem::Unreadable(format!("{name} lies outside its section")))?;
                functions.push(Function {
                    name,
                    section: section.index(),
                    section_name: section_name.clone(),
                    start,
                    bytes: bytes.to_vec(),
                });
            }
            for (at, relocation) in section.relocations() {
                if let RelocationTarget::Symbol(index) = relocation.target() {
                    let symbol = file.symbol_by_index(index).map_err(unreadable)?;
                    let target = match symbol.section_index() {
                        Some(section) => Target::Defined { section, address: symbol.address() },
                        None => Target::Undefined(demangled(symbol.name().unwrap_or("(unnamed)"))),
                    };
                    relocations.insert((section.index().0, at), target);
                }
            }
        }
        let section = |name| file.section_by_name(name).and_then(|section| section.data().ok());
        let lines =
            Lines::parse(section(".BTF").unwrap_or_default(), section(".BTF.ext").unwrap_or_default());
        Ok(Self { functions, relocations, lines })
    }

    fn check(&self, problems: &mut Vec<Problem>) {
        let before = problems.len();
        for function in self.functions.iter().filter(|function| !function.is_panic_code()) {
            self.check_function(function, problems);
        }
        if problems.len() == before {
            let left = self.functions.iter().filter(|function| function.is_panic_code());
            problems.extend(left.map(|function| Problem::PanicCode(function.name.clone())));
        }
    }

    fn check_function(&self, function: &Function, problems: &mut Vec<Problem>) {
        let name = || format!("`{}`", function.name);
        let count = function.bytes.len() / INSTRUCTION;
        if count > MOST_INSTRUCTIONS {
            problems.push(Problem::TooLong { function: name(), count });
        }
        let before = problems.len();
        for instruction in function.instructions() {
            let line = || self.lines.at(&function.section_name, function.start, instruction.at).cloned();
            if instruction.jumps_to_itself() {
                problems.push(Problem::Endless { function: name(), line: line() });
            }
            if let Some(Target::Undefined(symbol)) = self.relocation(function, instruction) {
                problems.push(Problem::Undefined { function: name(), symbol: symbol.clone() });
            }
            if let Some(callee) = self.callee(function, instruction).filter(|callee| callee.never_returns()) {
                let callee = callee.name.clone();
                problems.push(Problem::Panics { function: name(), callee, line: line() });
            }
        }
        let ends = function.instructions().last().is_some_and(Instruction::ends_a_function);
        if !ends && problems.len() == before {
            problems.push(Problem::RunsOff(name()));
        }
    }

    fn relocation(&self, function: &Function, instruction: Instruction) -> Option<&Target> {
        self.relocations.get(&(function.section.0, instruction.at))
    }

    /// The function an instruction calls. The distance counts instructions from the next one; with a
    /// relocation, from the relocation's symbol.
    fn callee(&self, function: &Function, call: Instruction) -> Option<&Function> {
        if call.code != CALL || call.source != CALL_FUNCTION {
            return None;
        }
        let distance = (i64::from(call.immediate) + 1) * INSTRUCTION as i64;
        let (section, address) = match self.relocation(function, call) {
            Some(Target::Defined { section, address }) => (*section, address.checked_add_signed(distance)?),
            Some(Target::Undefined(_)) => return None,
            None => (function.section, call.at.checked_add_signed(distance)?),
        };
        self.functions.iter().find(|function| function.section == section && function.start == address)
    }
}

fn demangled(name: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(name))
}

#[cfg(test)]
mod tests;
