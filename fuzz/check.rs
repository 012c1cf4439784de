//! What must hold of any text; shared by the fuzz target and the driver that needs no nightly compiler.

use std::sync::LazyLock;

use hornbook_core::tokenizer::{Level, Special, Tokenizer};

static TOKENIZERS: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
    [Tokenizer::codegen, Tokenizer::gpt2]
        .into_iter()
        .flat_map(|new| Level::available().into_iter().map(move |level| new().with_level(level)))
        .collect()
});

/// Panics if some instructions give other ids than the definition, or the ids another text.
pub fn tokenizer(text: &str) {
    let mut known: Option<(usize, Vec<u32>)> = None;
    for tokenizer in &*TOKENIZERS {
        let size = tokenizer.vocab_size();
        let expected = match known.take() {
            Some((of, ids)) if of == size => ids,
            _ => {
                let mut ids = Vec::new();
                tokenizer.encode_by_definition(text, Special::Token, &mut ids);
                assert_eq!(tokenizer.decode(&ids), text.as_bytes());
                ids
            }
        };
        let mut ids: Vec<u32> = Vec::new();
        tokenizer.encode(text, Special::Token, &mut ids);
        assert_eq!(ids, expected, "{} of {size} tokens: {text:?}", tokenizer.level().name());
        known = Some((size, expected));
    }
}
