//! Functions as sequences of syntax-node kinds, and how well two of them match.
//!
//! A sequence is the preorder walk of the tree: the kind of each named node, and each operator
//! (`+`, `<`, `and`, `+=`). Left out are comments, docstrings, type annotations, parentheses that only
//! group, and what is written inside names and literals. `True` and `False` are one kind, and so are
//! tuples with and without parentheses. So renaming, reformatting and commenting change nothing.
//!
//! The match rate of two sequences is 1 - Levenshtein(a, b) / max(|a|, |b|): from 0 to 1.

use std::sync::LazyLock;

use tree_sitter::{Language, Node, Tree};

use super::distance::distance_within;
use crate::syntax::parse;

/// A sequence of node kinds with its histogram.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Shape {
    kinds: Vec<u16>,
    /// Sorted `(kind, times)`.
    histogram: Vec<(u16, u32)>,
}

/// Numbers of the node kinds that are treated in a special way.
struct Kinds {
    function: u16,
    class: u16,
    module: u16,
    block: u16,
    statement: u16,
    string: u16,
    joined_string: u16,
    content: [u16; 3],
    comment: u16,
    continuation: u16,
    annotation: u16,
    parentheses: u16,
    typed_parameter: u16,
    /// `(kind, kind that it counts as)`: the same thing written in another way.
    same: [(u16, u16); 4],
}

static KINDS: LazyLock<Kinds> = LazyLock::new(|| {
    let language: Language = tree_sitter_python::LANGUAGE.into();
    let id = |name: &str| {
        let id = language.id_for_node_kind(name, true);
        assert_ne!(id, 0, "the grammar has no node kind `{name}`");
        id
    };
    Kinds {
        function: id("function_definition"),
        class: id("class_definition"),
        module: id("module"),
        block: id("block"),
        statement: id("expression_statement"),
        string: id("string"),
        joined_string: id("concatenated_string"),
        content: [id("string_start"), id("string_content"), id("string_end")],
        comment: id("comment"),
        continuation: id("line_continuation"),
        annotation: id("type"),
        parentheses: id("parenthesized_expression"),
        typed_parameter: id("typed_parameter"),
        same: [
            (id("typed_default_parameter"), id("default_parameter")),
            (id("false"), id("true")),
            (id("expression_list"), id("tuple")),
            (id("pattern_list"), id("tuple_pattern")),
        ],
    }
});

impl Shape {
    /// The shape of a node and everything below it.
    fn of(root: Node<'_>) -> Self {
        let special = &*KINDS;
        let mut kinds = Vec::new();
        // A stack of our own: trees can be deeper than the call stack allows.
        let mut pending = vec![(root, false)];
        while let Some((node, is_body)) = pending.pop() {
            let kind = node.kind_id();
            let passed_over = [special.module, special.parentheses, special.typed_parameter];
            if node.is_error() {
                kinds.push(0);
            } else if !passed_over.contains(&kind) {
                let same = special.same.iter().find(|(from, _)| *from == kind);
                kinds.push(same.map_or(kind, |(_, to)| *to));
            }
            let defines = kind == special.function || kind == special.class;
            let docstring = if is_body || kind == special.module { docstring(node) } else { None };
            let below = pending.len();
            let mut cursor = node.walk();
            if !cursor.goto_first_child() {
                continue;
            }
            loop {
                let child = cursor.node();
                let id = child.kind_id();
                let is_operator =
                    || cursor.field_name().is_some_and(|name| name.starts_with("operator"));
                let counts = if child.is_named() {
                    id != special.comment
                        && id != special.continuation
                        && id != special.annotation
                        && !special.content.contains(&id)
                        && Some(child.id()) != docstring
                } else {
                    is_operator()
                };
                if counts {
                    pending.push((child, defines && id == special.block));
                }
                if !cursor.goto_next_sibling() {
                    break;
                }
            }
            pending[below..].reverse();
        }
        Self::from_kinds(kinds)
    }

    fn from_kinds(kinds: Vec<u16>) -> Self {
        let mut sorted = kinds.clone();
        sorted.sort_unstable();
        let histogram =
            sorted.chunk_by(|a, b| a == b).map(|run| (run[0], run.len() as u32)).collect();
        Self { kinds, histogram }
    }

    /// Nodes in the sequence.
    pub fn nodes(&self) -> usize {
        self.kinds.len()
    }

    /// The match rate if it is at least `floor`.
    ///
    /// Cheap bounds first: the lengths, then the kinds that both have.
    pub fn match_at_least(&self, other: &Self, floor: f64) -> Option<f64> {
        let longest = self.nodes().max(other.nodes());
        if longest == 0 {
            return Some(1.0);
        }
        let rate = |distance: usize| 1.0 - distance as f64 / longest as f64;
        if rate(longest - self.nodes().min(other.nodes())) < floor
            || rate(longest - self.common(other)) < floor
        {
            return None;
        }
        // The largest distance that still has this rate, by the same arithmetic as the rate.
        let mut limit = (((1.0 - floor) * longest as f64) as usize + 1).min(longest);
        while limit > 0 && rate(limit) < floor {
            limit -= 1;
        }
        distance_within(&self.kinds, &other.kinds, limit).map(rate)
    }

    /// The size of the multiset that both hold: `longest - common` changes are needed at least.
    fn common(&self, other: &Self) -> usize {
        let (mut i, mut j, mut common) = (0, 0, 0);
        while let (Some((a, times_a)), Some((b, times_b))) =
            (self.histogram.get(i), other.histogram.get(j))
        {
            match a.cmp(b) {
                std::cmp::Ordering::Less => i += 1,
                std::cmp::Ordering::Greater => j += 1,
                std::cmp::Ordering::Equal => {
                    common += *times_a.min(times_b) as usize;
                    i += 1;
                    j += 1;
                }
            }
        }
        common
    }
}

/// The id of the statement that is a body's docstring.
fn docstring(body: Node<'_>) -> Option<usize> {
    let special = &*KINDS;
    let mut cursor = body.walk();
    let first =
        body.named_children(&mut cursor).find(|child| child.kind_id() != special.comment).filter(
            |child| child.kind_id() == special.statement && child.named_child_count() == 1,
        )?;
    let value = first.named_child(0)?.kind_id();
    (value == special.string || value == special.joined_string).then(|| first.id())
}

/// A source's whole shape.
pub fn source_shape(source: &str) -> Shape {
    Shape::of(parse(source).root_node())
}

fn functions_of(tree: &Tree) -> Vec<Node<'_>> {
    let special = &*KINDS;
    let mut found = Vec::new();
    let mut cursor = tree.walk();
    'walk: loop {
        let node = cursor.node();
        if node.kind_id() == special.function {
            found.push(node);
        }
        if cursor.goto_first_child() {
            continue;
        }
        while !cursor.goto_next_sibling() {
            if !cursor.goto_parent() {
                break 'walk;
            }
        }
    }
    found
}

/// The name and shape of every function of a source, methods and nested ones too.
pub fn function_shapes(source: &str) -> Vec<(String, Shape)> {
    let tree = parse(source);
    let name = |node: &Node<'_>| {
        let name = node.child_by_field_name("name")?;
        Some(source.get(name.byte_range())?.to_owned())
    };
    functions_of(&tree)
        .iter()
        .map(|node| (name(node).unwrap_or_default(), Shape::of(*node)))
        .collect()
}

/// The shapes of the functions in a document: in its text, and in each of its fenced blocks.
pub fn document_shapes(text: &str) -> Vec<Shape> {
    let mut found = function_shapes(text);
    for block in fenced(text) {
        found.extend(function_shapes(block));
    }
    found.into_iter().map(|(_, shape)| shape).collect()
}

/// The contents of Markdown's fenced code blocks; an unclosed one ends with the text.
fn fenced(text: &str) -> Vec<&str> {
    let mut blocks = Vec::new();
    let mut start = None;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let next = at + line.len();
        if line.trim_start().starts_with("```") {
            start = match start {
                None => Some(next),
                Some(start) => {
                    blocks.push(&text[start..at]);
                    None
                }
            };
        }
        at = next;
    }
    blocks.extend(start.map(|start| &text[start..]));
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn rate(a: &str, b: &str) -> f64 {
        source_shape(a).match_at_least(&source_shape(b), 0.0).unwrap()
    }

    #[test]
    fn names_layout_comments_and_docstrings_do_not_count() {
        let a = "def add(first, second):\n    \"\"\"Adds.\"\"\"\n    return first + 2 * second\n";
        let b = "# note\ndef f(x: int, y: 'T') -> int:\n  # why\n  return (x +\n    3 * y)  # so\n";
        assert!((rate(a, b) - 1.0).abs() < 1e-12);
        assert!((rate("x = 'a'", "y = '''bc\\n'''") - 1.0).abs() < 1e-12);
        assert!(
            (rate("for a, b in c: return a, b", "for (a, b) in c: return (a, b)") - 1.0).abs()
                < 1e-12
        );
        let typed = "def f(x: int = 3, *a: int, k: str = 'x', **kw: dict[str, int]): return True";
        let bare = "def f(x=3, *a, k='x', **kw): return False";
        assert!((rate(typed, bare) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn operators_and_structure_count() {
        assert!(rate("x = a + b", "x = a - b") < 1.0);
        assert!(rate("x = a < b", "x = a > b") < 1.0);
        assert!(rate("x = a and b", "x = a or b") < 1.0);
        assert!(rate("x += a", "x -= a") < 1.0);
        assert!(rate("for x in y: f(x)", "while x: f(x)") < 1.0);
        assert!(rate("s = f'{x}'", "s = f''") < 1.0);
        // Only the first string of a body is a docstring.
        assert!(rate("def f():\n  x = 1\n  'a'", "def f():\n  x = 1") < 1.0);
    }

    #[test]
    fn finds_every_function() {
        let source = "class A:\n  @p\n  def m(self):\n    def inner(): pass\n    return 1\n\
                      async def g(): pass\n";
        let names: Vec<String> =
            function_shapes(source).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["m", "inner", "g"]);
        assert!(function_shapes("no code here, only prose: it has no function.").is_empty());
    }

    #[test]
    fn finds_functions_in_prose() {
        let code = "def f(x):\n    return [y + 1 for y in x if y > 2]\n";
        let text = format!("# Lists\n\nIt's a list (of 3:\n\n```python\n{code}```\nSo: done.\n");
        let whole = &function_shapes(code)[0].1;
        assert!(document_shapes(&text).contains(whole));
        assert_eq!(fenced("a\n```\nb\n```\nc\n```\nd"), ["b\n", "d"]);
    }

    #[test]
    fn deep_and_broken_sources_are_walked() {
        let deep = "(".repeat(20_000) + &")".repeat(20_000);
        assert!(source_shape(&deep).nodes() < 20_000);
        let nested = format!("x = {}1{}", "[".repeat(5_000), "]".repeat(5_000));
        assert!(source_shape(&nested).nodes() >= 5_000);
        assert_eq!(function_shapes("def f(x):\n    return ((x\n").len(), 1);
    }

    proptest! {
        /// The bounds and the cut-off never change the answer.
        #[test]
        fn a_floor_only_filters(
            a in vec(1u16..9, 0..40), b in vec(1u16..9, 0..40), floor in 0.0f64..=1.0
        ) {
            let (a, b) = (Shape::from_kinds(a), Shape::from_kinds(b));
            let truth = a.match_at_least(&b, 0.0).unwrap();
            prop_assert_eq!(a.match_at_least(&b, floor), Some(truth).filter(|rate| *rate >= floor));
            prop_assert_eq!(a.match_at_least(&b, truth), Some(truth));
            prop_assert_eq!(b.match_at_least(&a, 0.0), Some(truth));
        }

        #[test]
        fn any_text_has_a_shape(text in "\\PC{0,80}") {
            let shapes = document_shapes(&text);
            prop_assert!(shapes.iter().all(|shape| shape.nodes() > 0));
        }
    }
}
