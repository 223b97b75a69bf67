//! The packet corpus: what the files in testdata say, and what runs them. The notation is described in docs/corpus.md.

pub mod cases;
pub mod checksums;
pub mod frame;
pub mod machine;
pub mod show;
pub mod world;
