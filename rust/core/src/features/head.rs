//! The part of a text that is looked at.

use super::MAX_BYTES;

/// The part of a text that is looked at, cut between characters.
pub(crate) fn head(text: &str) -> &str {
    let mut end = text.len().min(MAX_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters() {
        let long = "é".repeat(MAX_BYTES);
        assert_eq!(head(&format!("x{long}")).len(), MAX_BYTES - 1);
        assert_eq!(head("short"), "short");
    }
}
