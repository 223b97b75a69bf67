//! Blocks of docs/cli.md that show what is printed. Before each stands a mark with a name:
//!
//! ```text
//! <!-- printed: NAME -->
//! ```
//!
//! `MATAPA_UPDATE_DOCS=1` writes them anew instead of comparing.

use std::path::PathBuf;

/// A marked block, without its fences.
pub struct Block {
    pub name: String,
    pub text: String,
}

fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md")
}

pub fn page() -> String {
    std::fs::read_to_string(file()).expect("docs/cli.md")
}

const BEGIN: &str = "<!-- printed: ";

/// The blocks of the page, in order.
pub fn blocks(page: &str) -> Vec<Block> {
    let parts = page.split(BEGIN).skip(1);
    parts
        .map(|part| {
            let (name, rest) = part.split_once(" -->\n```\n").expect("a block follows its mark");
            let (text, _) = rest.split_once("```\n").expect("the block ends");
            Block { name: name.to_owned(), text: text.to_owned() }
        })
        .collect()
}

/// Demands that the block of this name is `real`.
pub fn check(name: &str, real: &str) {
    let page = page();
    let block = blocks(&page).into_iter().find(|block| block.name == name);
    let block = block.unwrap_or_else(|| panic!("docs/cli.md has no block `{BEGIN}{name} -->`"));
    if block.text == real {
        return;
    }
    if std::env::var_os("MATAPA_UPDATE_DOCS").is_some() {
        let old = format!("{BEGIN}{name} -->\n```\n{}```\n", block.text);
        let new = format!("{BEGIN}{name} -->\n```\n{real}```\n");
        std::fs::write(file(), page.replace(&old, &new)).expect("docs/cli.md is written");
        return;
    }
    panic!(
        "docs/cli.md shows in `{name}`:\n{}but what is printed is:\n{real}MATAPA_UPDATE_DOCS=1 cargo test -p lb-userspace \
         --test docs_cli --test cli_top writes it anew",
        block.text
    );
}
