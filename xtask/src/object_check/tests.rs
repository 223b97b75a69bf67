use object::write::{Object, Relocation, SectionId, Symbol, SymbolId, SymbolSection};
use object::{Architecture, BinaryFormat, Endianness, RelocationFlags, SymbolFlags, SymbolScope};

use super::*;
use crate::btf_lines::tests::one_line;

const RETURN_ZERO: [[u8; 8]; 2] = [[0xb4, 0, 0, 0, 0, 0, 0, 0], [EXIT, 0, 0, 0, 0, 0, 0, 0]];
const LOOP: [u8; 8] = [JUMP, 0, 0xff, 0xff, 0, 0, 0, 0];
/// The relocation of a call.
const CALL_RELOCATION: RelocationFlags = RelocationFlags::Elf { r_type: object::elf::R_BPF_64_32 };
const BOUNDS_CHECK: &str = "_ZN4core9panicking18panic_bounds_check17h0123456789abcdefE";

fn call(distance: i32) -> [u8; 8] {
    let [a, b, c, d] = distance.to_le_bytes();
    [CALL, CALL_FUNCTION << 4, 0, 0, a, b, c, d]
}

struct Builder {
    object: Object<'static>,
    sections: BTreeMap<String, SectionId>,
}

impl Builder {
    fn empty() -> Self {
        let object = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
        Self { object, sections: BTreeMap::new() }
    }

    /// An object with everything but programs.
    fn new() -> Self {
        let mut new = Self::empty();
        let (btf, ext) = one_line("xdp", 8, "lb-ebpf/src/main.rs", "table[index]", 42);
        for (name, data) in [(".BTF", btf), (".BTF.ext", ext), ("license", b"Dual MIT/GPL\0".to_vec())] {
            let section = new.object.add_section(vec![], name.into(), SectionKind::Data);
            new.object.set_section_data(section, data, 1);
        }
        new
    }

    fn function(&mut self, section: &str, name: &str, code: &[[u8; 8]]) -> SymbolId {
        let section = *self
            .sections
            .entry(section.to_owned())
            .or_insert_with(|| self.object.add_section(vec![], section.into(), SectionKind::Text));
        let symbol = self.object.add_symbol(Symbol {
            name: name.into(),
            value: 0,
            size: 0,
            kind: SymbolKind::Text,
            scope: SymbolScope::Linkage,
            weak: false,
            section: SymbolSection::Undefined,
            flags: SymbolFlags::None,
        });
        self.object.add_symbol_data(symbol, section, &code.concat(), 8);
        symbol
    }

    fn undefined(&mut self, name: &str) -> SymbolId {
        self.object.add_symbol(Symbol {
            name: name.into(),
            value: 0,
            size: 0,
            kind: SymbolKind::Text,
            scope: SymbolScope::Dynamic,
            weak: false,
            section: SymbolSection::Undefined,
            flags: SymbolFlags::None,
        })
    }

    fn relocate(&mut self, section: &str, offset: u64, symbol: SymbolId) {
        let section = self.sections[section];
        let relocation = Relocation { offset, symbol, addend: 0, flags: CALL_RELOCATION };
        self.object.add_relocation(section, relocation).expect("a relocation of a call");
    }

    fn check(&self) -> Result<Summary, Problems> {
        check(&self.object.write().expect("a valid object"))
    }

    fn problems(&self) -> Vec<Problem> {
        self.check().expect_err("the object must be refused").0
    }
}

#[test]
fn sound_object_passes_with_its_numbers() {
    let mut object = Builder::new();
    object.function("xdp", "matapa", &RETURN_ZERO);
    object.function(".text", "helper", &RETURN_ZERO);
    let summary = object.check().expect("nothing is wrong");
    assert_eq!(summary.programs, [("matapa".to_owned(), 2)]);
    assert_eq!((summary.functions, summary.instructions), (2, 4));
    assert_eq!(summary.license, "Dual MIT/GPL");
}

#[test]
fn panic_names_function_callee_and_line() {
    let mut object = Builder::new();
    let [zero, exit] = RETURN_ZERO;
    object.function("xdp", "matapa", &[zero, exit, call(-1)]);
    let handler = object.function(".text", "__rustc::rust_begin_unwind", &[LOOP]);
    let panics = object.function(".text.unlikely.", BOUNDS_CHECK, &[call(-1)]);
    object.relocate("xdp", 16, panics);
    object.relocate(".text.unlikely.", 0, handler);
    let line = Line { file: "lb-ebpf/src/main.rs".into(), number: 42, text: "table[index]".into() };
    let callee = "core::panicking::panic_bounds_check".to_owned();
    let expected = Problem::Panics { function: "`matapa`".into(), callee, line: Some(line) };
    assert_eq!(object.problems(), [expected]);
}

#[test]
fn call_within_a_section_is_followed_without_relocation() {
    let mut object = Builder::new();
    object.function("xdp", "matapa", &RETURN_ZERO);
    let [zero, exit] = RETURN_ZERO;
    object.function(".text", BOUNDS_CHECK, &[LOOP]);
    object.function(".text", "pick", &[zero, exit, call(-4)]);
    assert!(
        matches!(&object.problems()[..], [Problem::Panics { function, .. }] if function == "`pick`"),
        "{:?}",
        object.problems()
    );
}

#[test]
fn inlined_panic_handler_is_an_endless_loop() {
    let mut object = Builder::new();
    object.function("xdp", "matapa", &[RETURN_ZERO[0], LOOP, RETURN_ZERO[1]]);
    assert!(matches!(&object.problems()[..], [Problem::Endless { .. }]), "{:?}", object.problems());
}

#[test]
fn panic_code_nobody_calls_is_refused_too() {
    let mut object = Builder::new();
    object.function("xdp", "matapa", &RETURN_ZERO);
    object.function(".text", BOUNDS_CHECK, &[LOOP]);
    assert_eq!(object.problems(), [Problem::PanicCode("core::panicking::panic_bounds_check".into())]);
}

#[test]
fn function_must_end() {
    let mut object = Builder::new();
    let [zero, exit] = RETURN_ZERO;
    object.function("xdp", "matapa", &[zero, exit, zero]);
    assert_eq!(object.problems(), [Problem::RunsOff("`matapa`".into())]);
}

#[test]
fn second_half_of_a_wide_load_is_no_instruction() {
    let mut object = Builder::new();
    let wide = [WIDE_LOAD, 0, 0, 0, 0, 0, 0, 0];
    // The second half looks like a jump to itself.
    object.function("xdp", "matapa", &[wide, LOOP, RETURN_ZERO[1]]);
    assert!(object.check().is_ok());
}

#[test]
fn length_is_bounded() {
    let mut object = Builder::new();
    let mut code = vec![RETURN_ZERO[0]; MOST_INSTRUCTIONS];
    code.push(RETURN_ZERO[1]);
    object.function("xdp.frags", "matapa", &code);
    let expected = Problem::TooLong { function: "`matapa`".into(), count: MOST_INSTRUCTIONS + 1 };
    assert_eq!(object.problems(), [expected]);
}

#[test]
fn call_of_something_undefined_is_refused() {
    let mut object = Builder::new();
    object.function("xdp", "matapa", &[call(-1), RETURN_ZERO[1]]);
    let symbol = object.undefined("__multi3");
    object.relocate("xdp", 0, symbol);
    let expected = Problem::Undefined { function: "`matapa`".into(), symbol: "__multi3".into() };
    assert_eq!(object.problems(), [expected]);
}

#[test]
fn each_missing_section_is_named() {
    let mut object = Builder::empty();
    object.function(".text", "matapa", &RETURN_ZERO);
    let problems = object.problems();
    for name in [".BTF", ".BTF.ext", "license"] {
        let named =
            |problem: &Problem| matches!(problem, Problem::SectionMissing(found, _) if *found == name);
        assert!(problems.iter().any(named), "{name}: {problems:?}");
    }
    assert!(problems.contains(&Problem::NoProgram));
}

#[test]
fn any_bytes_give_an_answer() {
    assert!(matches!(check(b"not an object"), Err(Problems(problems)) if problems.len() == 1));
    let mut object = Builder::new();
    object.function("xdp", "matapa", &RETURN_ZERO);
    let bytes = object.object.write().expect("a valid object");
    for length in 0..bytes.len() {
        let _ = check(&bytes[..length]);
    }
}
