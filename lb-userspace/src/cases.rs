//! How many cases a property test tries that has a number of its own.

use proptest::test_runner::Config;

/// What `PROPTEST_CASES` is compared with: proptest's own default.
const USUAL: u32 = 256;

/// So many, times what `PROPTEST_CASES` asks for as a multiple of proptest's own number: `cargo xtask soak` sets it.
pub fn cases(own: u32) -> Config {
    let usual = Config::default();
    let cases = u64::from(own) * u64::from(usual.cases) / u64::from(USUAL);
    Config { cases: u32::try_from(cases).unwrap_or(u32::MAX).max(1), failure_persistence: None, ..usual }
}
