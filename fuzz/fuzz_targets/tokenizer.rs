//! Every way to encode against the definition: `cargo +nightly fuzz run tokenizer`.

#![no_main]

#[path = "../check.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check::tokenizer(&String::from_utf8_lossy(data)));
