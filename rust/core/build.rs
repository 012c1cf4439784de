//! Makes the tokenizer's two tables: GPT-2's merge list as id pairs (50,000 times `u16 left, u16
//! right`, 200 kB), and the classes of Unicode 16's characters (28 kB).

use std::collections::HashMap;
use std::path::PathBuf;

use regex_syntax::hir::{Class, HirKind};

/// GPT-2's order of the 256 bytes: those with a visible Latin-1 character first.
fn byte_order() -> Vec<u8> {
    let visible = |b: &u8| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let mut order: Vec<u8> = (0..=255).filter(visible).collect();
    order.extend((0..=255).filter(|b| !visible(b)));
    order
}

/// The class of every character (1 letter, 2 number, 3 white space, 0 none of them) in two levels: for
/// each 256 characters the number of their page, then the pages, each distinct one once.
fn classes() -> Vec<u8> {
    let mut flat = vec![0; 0x11_0000];
    for (pattern, class) in [(r"\p{L}", 1), (r"\p{N}", 2), (r"\s", 3)] {
        let hir = regex_syntax::parse(pattern).expect("a valid class");
        let HirKind::Class(Class::Unicode(ranges)) = hir.kind() else {
            unreachable!("a Unicode class")
        };
        for range in ranges.iter() {
            flat[range.start() as usize..=range.end() as usize].fill(class);
        }
    }
    let mut pages: Vec<&[u8]> = Vec::new();
    let mut table = Vec::new();
    for page in flat.chunks_exact(256) {
        let known = pages.iter().position(|known| *known == page).unwrap_or_else(|| {
            pages.push(page);
            pages.len() - 1
        });
        table.push(u8::try_from(known).expect("well under 256 distinct pages"));
    }
    table.extend(pages.concat());
    table
}

fn merges() -> Vec<u8> {
    let visible = 188;
    let mut ids: HashMap<String, u16> = HashMap::new();
    for (id, byte) in byte_order().into_iter().enumerate() {
        let code = if id < visible { u32::from(byte) } else { 256 + (id - visible) as u32 };
        let letter = char::from_u32(code).expect("below the surrogates");
        ids.insert(letter.to_string(), id as u16);
    }
    let mut table = Vec::with_capacity(200_000);
    for line in gpt_tokenizer::VOCAB_BPE.lines().skip(1) {
        let Some((left, right)) = line.split_once(' ') else { continue };
        table.extend(ids[left].to_le_bytes());
        table.extend(ids[right].to_le_bytes());
        let id = ids.len() as u16;
        ids.insert(format!("{left}{right}"), id);
    }
    assert_eq!(table.len(), 200_000, "GPT-2 has 50,000 merges");
    table
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("set by cargo"));
    for (name, table) in [("gpt2_merges.bin", merges()), ("classes.bin", classes())] {
        std::fs::write(out.join(name), table).expect("the build folder is writable");
    }
}
