//! Turns GPT-2's merge list into a table of id pairs: 50,000 times `u16 left, u16 right`, 200 kB.

use std::collections::HashMap;
use std::path::PathBuf;

/// GPT-2's order of the 256 bytes: those with a visible Latin-1 character first.
fn byte_order() -> Vec<u8> {
    let visible = |b: &u8| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let mut order: Vec<u8> = (0..=255).filter(visible).collect();
    order.extend((0..=255).filter(|b| !visible(b)));
    order
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
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
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("set by cargo"));
    std::fs::write(out.join("gpt2_merges.bin"), table).expect("the build folder is writable");
}
