//! Python syntax trees, by tree-sitter: error-tolerant, linear time, no Python interpreter needed.

use std::borrow::Cow;
use std::cell::RefCell;

use tree_sitter::{Node, Parser, Tree};

thread_local! {
    static PARSER: RefCell<Parser> = RefCell::new({
        let mut parser = Parser::new();
        parser
            .set_language(&tree_sitter_python::LANGUAGE.into())
            .expect("the grammar fits the tree-sitter version it is built with");
        parser
    });
}

/// Comment or continuation lines in a row that the parser sees.
const IDLE_LINES: usize = 64;

/// The syntax tree of Python source; broken code gives a tree with error nodes.
///
/// Offsets are those of `source`, of which long runs of comment lines are not looked at ([`calm`]).
pub fn parse(source: &str) -> Tree {
    parse_calm(&calm(source).0)
}

/// As [`parse`], for text that [`calm`] has been over already.
pub(crate) fn parse_calm(calmed: &str) -> Tree {
    PARSER.with_borrow_mut(|parser| {
        parser.reset();
        parser.parse(calmed.as_bytes(), None).expect("no timeout and no cancellation is set")
    })
}

/// The docstring statement of a module, or of a function's or class's block.
pub(crate) fn docstring(block: Node<'_>) -> Option<Node<'_>> {
    let mut cursor = block.walk();
    let first = block.named_children(&mut cursor).find(|child| child.kind() != "comment")?;
    let is_string = first.kind() == "expression_statement"
        && first.named_child_count() == 1
        && matches!(first.named_child(0)?.kind(), "string" | "concatenated_string");
    is_string.then_some(first)
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
    use super::{IDLE_LINES, calm, parse};

    #[test]
    fn parses_whole_and_broken_code() {
        assert!(!parse("def f(x):\n    return x + 1\n").root_node().has_error());
        assert!(parse("def f(x:\n  retur").root_node().has_error());
        assert_eq!(parse("").root_node().child_count(), 0);
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

    #[test]
    fn long_comments_take_linear_time() {
        let text = format!("def f():\n{}    pass\n", "    # x = 1\n".repeat(8000));
        assert!(!parse(&text).root_node().has_error());
    }
}
