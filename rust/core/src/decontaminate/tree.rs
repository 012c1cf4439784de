//! Python source as sequences of symbols, one sequence a function.
//!
//! [`Unit::Node`]: the preorder walk of the tree, a symbol for the kind of each named node and each
//! operator (`+`, `<`, `and`, `+=`). [`Unit::Char`]: the same tree written as `kind(child child)`, a symbol
//! for each character. Left out are type annotations, parentheses that only group, and, unless a
//! [`Reading`] keeps them, names, comments, docstrings and the values of literals. Without values
//! `True` and `False` are one kind; tuples with and without parentheses always are. So renaming,
//! reformatting and commenting change nothing.

use std::ops::Range;
use std::sync::LazyLock;

use tree_sitter::{Language, Node};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::syntax::parse;

/// What one step of an edit changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Unit {
    /// A node of the tree.
    #[default]
    Node,
    /// A character of the tree as text.
    Char,
}

/// How a tree becomes a sequence; what is not kept is stripped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // four independent switches
pub struct Reading {
    /// Nodes or characters.
    pub unit: Unit,
    /// Keep what identifiers are called.
    pub names: bool,
    /// Keep comments, text and all.
    pub comments: bool,
    /// Keep docstrings, text and all.
    pub docstrings: bool,
    /// Keep the values of literals.
    pub literals: bool,
}

/// A function (or method, nested or not) of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Its name; empty where the source is broken there.
    pub name: String,
    /// The line it starts on, from 1.
    pub line: usize,
    /// Its symbols.
    pub range: Range<usize>,
}

/// The symbols of a whole source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sequence {
    /// A kind's number, a character, or (from `TEXT` on) the hash of a kind with a text.
    pub symbols: Vec<u64>,
    /// In the order in which they start.
    pub functions: Vec<Function>,
}

/// Symbols that stand for a text have this bit.
const TEXT: u64 = 1 << 63;

/// Numbers of the node kinds that are treated in a special way.
struct Kinds {
    function: u16,
    class: u16,
    module: u16,
    block: u16,
    statement: u16,
    string: u16,
    joined_string: u16,
    string_start: u16,
    string_content: u16,
    string_end: u16,
    comment: u16,
    continuation: u16,
    annotation: u16,
    parentheses: u16,
    typed_parameter: u16,
    identifier: u16,
    numbers: [u16; 2],
    truths: [u16; 2],
    /// `(kind, kind that it counts as)`: the same thing written in another way.
    same: [(u16, u16); 3],
    operators: [u16; 2],
    names: Vec<&'static str>,
}

static KINDS: LazyLock<Kinds> = LazyLock::new(|| {
    let language: Language = tree_sitter_python::LANGUAGE.into();
    let id = |name: &str| {
        let id = language.id_for_node_kind(name, true);
        assert_ne!(id, 0, "the grammar has no node kind `{name}`");
        id
    };
    let field = |name| language.field_id_for_name(name).expect("a field of the grammar").get();
    Kinds {
        function: id("function_definition"),
        class: id("class_definition"),
        module: id("module"),
        block: id("block"),
        statement: id("expression_statement"),
        string: id("string"),
        joined_string: id("concatenated_string"),
        string_start: id("string_start"),
        string_content: id("string_content"),
        string_end: id("string_end"),
        comment: id("comment"),
        continuation: id("line_continuation"),
        annotation: id("type"),
        parentheses: id("parenthesized_expression"),
        typed_parameter: id("typed_parameter"),
        identifier: id("identifier"),
        numbers: [id("integer"), id("float")],
        truths: [id("true"), id("false")],
        same: [
            (id("typed_default_parameter"), id("default_parameter")),
            (id("expression_list"), id("tuple")),
            (id("pattern_list"), id("tuple_pattern")),
        ],
        operators: [field("operator"), field("operators")],
        names: (0..language.node_kind_count() as u16)
            .map(|id| language.node_kind_for_id(id).unwrap_or("ERROR"))
            .collect(),
    }
});

/// What becomes of a node.
enum Fate<'a> {
    /// Not there, with all below it.
    Gone,
    /// Only what is below it is there.
    Through,
    /// There by its kind.
    Kind,
    /// There by its kind and text, without what is below it.
    Text(&'a str),
}

/// A node on the way from the root to where the walk is.
struct Level {
    kind: u16,
    /// It has a symbol.
    written: bool,
    /// Its place among the functions.
    function: Option<usize>,
    /// Its next statement may be a docstring.
    is_body: bool,
    /// It is a docstring that is kept, or stands in one.
    in_docstring: bool,
}

/// The symbols of a source; broken code is read as far as it parses.
pub fn read(source: &str, reading: Reading) -> Sequence {
    let special = &*KINDS;
    let tree = parse(source);
    let mut out = Writer { unit: reading.unit, symbols: Vec::new(), children: vec![1] };
    let mut functions: Vec<Function> = Vec::new();
    let mut levels: Vec<Level> = Vec::new();
    // One cursor over the whole tree: no call stack to overflow, and a walk for each function would
    // visit nested ones again and again. A function's symbols are a slice of its source's.
    let mut cursor = tree.walk();
    loop {
        let node = cursor.node();
        let kind = node.kind_id();
        let is_operator = cursor.field_id().is_some_and(|f| special.operators.contains(&f.get()));
        let (fate, in_docstring) = fate(node, source, reading, levels.last_mut(), is_operator);
        if let Fate::Text(text) = fate {
            out.open(kind, Some(text));
            out.close();
        }
        if matches!(fate, Fate::Kind | Fate::Through) {
            let written = matches!(fate, Fate::Kind);
            let mut function = None;
            if written {
                let start = out.open(if node.is_error() { 0 } else { kind }, None);
                if kind == special.function {
                    function = Some(functions.len());
                    let name = node.child_by_field_name("name");
                    let name = name.and_then(|name| source.get(name.byte_range()));
                    functions.push(Function {
                        name: name.unwrap_or_default().to_owned(),
                        line: node.start_position().row + 1,
                        range: start..start,
                    });
                }
            }
            let above = levels.last().map_or(0, |above| above.kind);
            let defined = above == special.function || above == special.class;
            let is_body = kind == special.module || (defined && kind == special.block);
            levels.push(Level { kind, written, function, is_body, in_docstring });
            if cursor.goto_first_child() {
                continue;
            }
            leave(&mut levels, &mut out, &mut functions);
        }
        while !cursor.goto_next_sibling() {
            if !cursor.goto_parent() {
                return Sequence { symbols: out.symbols, functions };
            }
            leave(&mut levels, &mut out, &mut functions);
        }
    }
}

/// What becomes of a node, and whether it belongs to a docstring that is kept.
fn fate<'a>(
    node: Node<'_>,
    source: &'a str,
    reading: Reading,
    above: Option<&mut Level>,
    is_operator: bool,
) -> (Fate<'a>, bool) {
    let special = &*KINDS;
    let kind = node.kind_id();
    let Some(above) = above else {
        return (if kind == special.module { Fate::Through } else { Fate::Kind }, false);
    };
    let mut in_docstring = above.in_docstring;
    let text = || source.get(node.byte_range()).unwrap_or_default();
    let keep = |kept: bool| if kept { Fate::Text(text()) } else { Fate::Gone };
    if node.is_named() && kind != special.comment && std::mem::take(&mut above.is_body) {
        let is_docstring = is_docstring(node);
        if is_docstring && !reading.docstrings {
            return (Fate::Gone, false);
        }
        in_docstring |= is_docstring;
    }
    let values = reading.literals || in_docstring;
    let fate = if !node.is_named() {
        if is_operator { Fate::Kind } else { Fate::Gone }
    } else if kind == special.comment {
        keep(reading.comments)
    } else if [special.continuation, special.annotation, special.string_end].contains(&kind) {
        Fate::Gone
    } else if kind == special.string_start {
        // What kind of string it is belongs to the value; which quotes it has does not.
        let prefix = text().trim_end_matches(['"', '\'']);
        if values && !prefix.is_empty() { Fate::Text(prefix) } else { Fate::Gone }
    } else if kind == special.string_content {
        keep(values)
    } else if [special.module, special.parentheses, special.typed_parameter].contains(&kind) {
        Fate::Through
    } else if (reading.names && kind == special.identifier)
        || (reading.literals && (special.numbers.contains(&kind) || special.truths.contains(&kind)))
    {
        Fate::Text(text())
    } else {
        Fate::Kind
    };
    (fate, in_docstring)
}

fn leave(levels: &mut Vec<Level>, out: &mut Writer, functions: &mut [Function]) {
    let level = levels.pop().expect("as many levels as nodes on the way");
    if level.written {
        out.close();
    }
    if let Some(function) = level.function {
        functions[function].range.end = out.symbols.len();
    }
}

/// Whether the first statement of a body is nothing but a string.
fn is_docstring(statement: Node<'_>) -> bool {
    let special = &*KINDS;
    statement.kind_id() == special.statement
        && statement.named_child_count() == 1
        && statement
            .named_child(0)
            .is_some_and(|value| [special.string, special.joined_string].contains(&value.kind_id()))
}

/// Writes a tree in preorder.
struct Writer {
    unit: Unit,
    symbols: Vec<u64>,
    /// Of each open node, how many children it has so far.
    children: Vec<usize>,
}

impl Writer {
    /// Begins a node; where its own symbols start.
    fn open(&mut self, kind: u16, text: Option<&str>) -> usize {
        let special = &*KINDS;
        let as_truth =
            if kind == special.truths[1] && text.is_none() { special.truths[0] } else { kind };
        let same = special.same.iter().find(|(from, _)| *from == as_truth);
        let kind = same.map_or(as_truth, |(_, to)| *to);
        if self.unit == Unit::Node {
            self.symbols.push(match text {
                None => u64::from(kind),
                Some(text) => TEXT | xxh3_64_with_seed(text.as_bytes(), u64::from(kind)),
            });
            return self.symbols.len() - 1;
        }
        let before = self.children.last_mut().expect("the root is never closed");
        *before += 1;
        if !self.symbols.is_empty() {
            self.symbols.push(u64::from(if *before == 1 { '(' } else { ' ' }));
        }
        let start = self.symbols.len();
        let name = special.names.get(usize::from(kind)).filter(|_| kind != 0).unwrap_or(&"ERROR");
        self.symbols.extend(name.chars().map(u64::from));
        if let Some(text) = text {
            self.symbols.push(u64::from('='));
            self.symbols.extend(text.chars().map(u64::from));
        }
        self.children.push(0);
        start
    }

    /// Ends the node that was begun last.
    fn close(&mut self) {
        if self.unit == Unit::Char && self.children.pop().is_some_and(|children| children > 0) {
            self.symbols.push(u64::from(')'));
        }
    }
}

/// The sequences to search in a document: its text, and each fenced block with its first line.
pub fn document(text: &str, reading: Reading) -> Vec<(usize, Sequence)> {
    let mut found = vec![(0, read(text, reading))];
    for block in fenced(text) {
        let line = memchr::memchr_iter(b'\n', &text.as_bytes()[..block.start]).count();
        found.push((line, read(&text[block], reading)));
    }
    found.retain(|(_, sequence)| !sequence.functions.is_empty());
    found
}

/// The contents of Markdown's fenced code blocks; an unclosed one ends with the text.
fn fenced(text: &str) -> Vec<Range<usize>> {
    let mut blocks = Vec::new();
    let mut start = None;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let next = at + line.len();
        if line.trim_start().starts_with("```") {
            start = match start {
                None => Some(next),
                Some(start) => {
                    blocks.push(start..at);
                    None
                }
            };
        }
        at = next;
    }
    blocks.extend(start.map(|start| start..text.len()));
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn symbols(source: &str) -> Vec<u64> {
        read(source, Reading::default()).symbols
    }

    fn written(source: &str, reading: Reading) -> String {
        let symbols = read(source, Reading { unit: Unit::Char, ..reading }).symbols;
        symbols.into_iter().map(|c| char::from_u32(c as u32).unwrap()).collect()
    }

    #[test]
    fn names_layout_comments_and_docstrings_do_not_count() {
        let a = "def add(first, second):\n    \"\"\"Adds.\"\"\"\n    return first + 2 * second\n";
        let b = "# note\ndef f(x: int, y: 'T') -> int:\n  # why\n  return (x +\n    3 * y)  # so\n";
        assert_eq!(symbols(a), symbols(b));
        assert_eq!(symbols("x = 'a'"), symbols("y = '''bc\\n'''"));
        let tuples = ["for a, b in c: return a, b", "for (a, b) in c: return (a, b)"];
        assert_eq!(symbols(tuples[0]), symbols(tuples[1]));
        let typed = "def f(x: int = 3, *a: int, k: str = 'x', **kw: dict[str, int]): return True";
        assert_eq!(symbols(typed), symbols("def f(x=3, *a, k='x', **kw): return False"));
    }

    #[test]
    fn operators_and_structure_count() {
        let differ = |a: &str, b: &str| assert_ne!(symbols(a), symbols(b), "{a} | {b}");
        differ("x = a + b", "x = a - b");
        differ("x = a < b", "x = a > b");
        differ("x = a and b", "x = a or b");
        differ("x += a", "x -= a");
        differ("for x in y: f(x)", "while x: f(x)");
        differ("s = f'{x}'", "s = f''");
        // Only the first string of a body is a docstring.
        differ("def f():\n  x = 1\n  'a'", "def f():\n  x = 1");
    }

    #[test]
    fn what_is_kept_counts() {
        let reading = Reading::default();
        let check = |reading: Reading, a: &str, b: &str| {
            assert_eq!(symbols(a), symbols(b), "{a} | {b}");
            for unit in [Unit::Node, Unit::Char] {
                let reading = Reading { unit, ..reading };
                assert_ne!(read(a, reading).symbols, read(b, reading).symbols, "{a} | {b}");
            }
        };
        check(Reading { names: true, ..reading }, "x = y.a", "x = y.b");
        check(Reading { comments: true, ..reading }, "x = 1", "x = 1  # one");
        let documented = "def f():\n    'Doc.'\n    return 1\n";
        check(Reading { docstrings: true, ..reading }, documented, "def f():\n    return 1\n");
        check(
            Reading { docstrings: true, ..reading },
            documented,
            &documented.replace("Doc", "Pod"),
        );
        for (a, b) in [
            ("x = 1", "x = 2"),
            ("x = 'a'", "x = 'b'"),
            ("x = True", "x = False"),
            ("x = b'a'", "x = 'a'"),
        ] {
            check(Reading { literals: true, ..reading }, a, b);
        }
        let literals = Reading { literals: true, ..reading };
        assert_eq!(read("x = 'a'", literals), read("x = \"a\"", literals), "quotes are layout");
    }

    #[test]
    fn the_tree_as_characters() {
        let source = "x = 1\n\ndef f(a: int, *b):\n    'Doc.'\n    return (a + 1, -2)\n";
        assert_eq!(
            written(source, Reading::default()),
            "expression_statement(assignment(identifier integer)) function_definition(identifier \
             parameters(identifier list_splat_pattern(identifier)) block(return_statement(tuple(\
             binary_operator(identifier + integer) unary_operator(- integer)))))"
        );
        assert_eq!(
            written("f(x) # é", Reading { names: true, comments: true, ..Reading::default() }),
            "expression_statement(call(identifier=f argument_list(identifier=x))) comment=# é"
        );
    }

    #[test]
    fn a_function_is_a_slice_of_its_source() {
        let source = "class A:\n  @p\n  def m(self):\n    def inner(): pass\n    return 1\n\
                      async def g(): pass\n";
        for unit in [Unit::Node, Unit::Char] {
            let reading = Reading { unit, ..Reading::default() };
            let all = read(source, reading);
            let found: Vec<_> = all.functions.iter().map(|f| (f.name.as_str(), f.line)).collect();
            assert_eq!(found, [("m", 3), ("inner", 4), ("g", 6)]);
            for (function, alone) in all.functions.iter().zip([
                "def m(self):\n    def inner(): pass\n    return 1\n",
                "def inner(): pass",
                "def g(): pass",
            ]) {
                assert_eq!(all.symbols[function.range.clone()], read(alone, reading).symbols);
            }
        }
        assert!(
            document("no code here, only prose: it has no function.", Reading::default())
                .is_empty()
        );
    }

    #[test]
    fn finds_functions_in_prose() {
        let code = "def f(x):\n    return [y + 1 for y in x if y > 2]\n";
        let text = format!("# Lists\n\nIt's a list (of 3:\n\n```python\n{code}```\nSo: done.\n");
        let found = document(&text, Reading::default());
        let (line, last) = found.last().unwrap();
        assert_eq!((*line, last), (5, &read(code, Reading::default())));
        let text = "a\n```\nb\n```\nc\n```\nd";
        let blocks: Vec<&str> = fenced(text).into_iter().map(|range| &text[range]).collect();
        assert_eq!(blocks, ["b\n", "d"]);
    }

    #[test]
    fn deep_and_broken_sources_are_walked() {
        let deep = "(".repeat(20_000) + &")".repeat(20_000);
        assert!(symbols(&deep).len() < 20_000);
        let nested = format!("x = {}1{}", "[".repeat(5_000), "]".repeat(5_000));
        assert!(symbols(&nested).len() >= 5_000);
        assert_eq!(read("def f(x):\n    return ((x\n", Reading::default()).functions.len(), 1);
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "\\PC{0,80}") {
            for unit in [Unit::Node, Unit::Char] {
                for (_, sequence) in document(&text, Reading { unit, ..Reading::default() }) {
                    prop_assert!(sequence.functions.iter().all(|f| !f.range.is_empty()));
                }
            }
        }
    }
}
