//! Python syntax trees, by tree-sitter: error-tolerant, linear time, no Python interpreter needed.

use std::cell::RefCell;

use tree_sitter::{Parser, Tree};

thread_local! {
    static PARSER: RefCell<Parser> = RefCell::new({
        let mut parser = Parser::new();
        parser
            .set_language(&tree_sitter_python::LANGUAGE.into())
            .expect("the grammar fits the tree-sitter version it is built with");
        parser
    });
}

/// The syntax tree of Python source; broken code gives a tree with error nodes.
pub fn parse(source: &str) -> Tree {
    PARSER.with_borrow_mut(|parser| {
        parser.reset();
        parser.parse(source, None).expect("no timeout and no cancellation is set")
    })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn parses_whole_and_broken_code() {
        assert!(!parse("def f(x):\n    return x + 1\n").root_node().has_error());
        assert!(parse("def f(x:\n  retur").root_node().has_error());
        assert_eq!(parse("").root_node().child_count(), 0);
    }
}
