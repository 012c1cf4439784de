//! The part of a text that is looked at, and what is done so that parsing it takes linear time.

use std::borrow::Cow;

use super::MAX_BYTES;

/// Comment or continuation lines in a row that the parser sees.
const IDLE_LINES: usize = 64;

/// The part of a text that is looked at, cut between characters.
pub(crate) fn head(text: &str) -> &str {
    let mut end = text.len().min(MAX_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The text with the rest of any long run of comment lines made blank, byte for byte; and how many
/// bytes that were.
///
/// To find where a block ends, the grammar's scanner reads on to the next line of code, and does so
/// again for every comment line (and lone backslash) on the way: 8,000 lines of code commented out
/// inside a function would take a minute.
pub(crate) fn calm(text: &str) -> (Cow<'_, str>, usize) {
    let mut calmed: Option<Vec<u8>> = None;
    let mut blanked = 0;
    let mut run = 0;
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let content = line.trim_ascii();
        if content.starts_with('#') || content == "\\" {
            run += 1;
            if run > IDLE_LINES {
                let from = start + line.len() - line.trim_ascii_start().len();
                let bytes = calmed.get_or_insert_with(|| text.as_bytes().to_vec());
                bytes[from..from + content.len()].fill(b' ');
                blanked += content.len();
            }
        } else if !content.is_empty() {
            run = 0;
        }
        start += line.len();
    }
    let calmed = calmed.map(|bytes| String::from_utf8(bytes).expect("only whole lines change"));
    (calmed.map_or(Cow::Borrowed(text), Cow::Owned), blanked)
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

    #[test]
    fn only_long_runs_of_comments_are_blanked() {
        let run =
            |lines: usize| format!("def f():\n{}    pass  # é\n", "    # é\n\n".repeat(lines));
        assert_eq!(calm(&run(IDLE_LINES)), (run(IDLE_LINES).into(), 0));
        let long = run(IDLE_LINES + 3);
        let (calmed, blanked) = calm(&long);
        assert_eq!((calmed.len(), blanked), (long.len(), 3 * "# é".len()));
        assert_eq!(calmed.matches('#').count(), IDLE_LINES + 1);
        assert!(calm(&"x = 1\n# a\n".repeat(1000)).1 == 0);
    }
}
