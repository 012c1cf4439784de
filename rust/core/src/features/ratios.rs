//! Ratios that the syntax tree and the lines of a text give. Broken code has ratios too.

use std::sync::LazyLock;

use rustc_hash::FxHashSet;
use tree_sitter::Node;

use crate::syntax::{calm, parse_calm};

/// What the columns after the hashed ones hold, in order.
pub const RATIO_NAMES: [&str; 28] = [
    "docstring_share",         // bytes of docstrings over all bytes
    "comment_share",           // bytes of comments over all bytes
    "string_share",            // bytes of other strings over all bytes
    "imports_per_statement",   //
    "relative_import_share",   // of the imports
    "functions_per_line",      //
    "classes_per_line",        //
    "method_share",            // functions directly in a class, of all functions
    "documented_share",        // functions and classes with a docstring
    "parameters_per_function", //
    "returns_per_function",    //
    "loops_per_statement",     // for, while and comprehensions
    "branches_per_statement",  // if, elif, match, conditional expressions
    "assignments_per_statement",
    "top_level_share", // statements of the module itself that neither define nor import
    "bare_call_share", // statements that are nothing but a call
    "call_share",      // this and the next four: of all named nodes
    "attribute_share",
    "literal_share",
    "operator_share",
    "subscript_share",
    "mean_name_length",
    "distinct_name_share",
    "depth",       // of the tree, as log(1 + levels)
    "error_share", // bytes that do not parse
    "mean_line_length",
    "blank_line_share",
    "log_bytes",
];

/// Where [`RATIO_NAMES`] has `docstring_share`.
pub const DOCSTRING_SHARE: usize = 0;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Other,
    Error,
    Comment,
    Block,
    Decorated,
    Function,
    Class,
    Parameters,
    Import,
    RelativeImport,
    Loop,
    Branch,
    Return,
    Assignment,
    ExpressionStatement,
    Call,
    Attribute,
    Number,
    String,
    Operator,
    Subscript,
    Identifier,
}

fn kind_of(name: &str) -> Kind {
    match name {
        "comment" => Kind::Comment,
        "block" => Kind::Block,
        "decorated_definition" => Kind::Decorated,
        "function_definition" => Kind::Function,
        "class_definition" => Kind::Class,
        "parameters" => Kind::Parameters,
        "import_statement" | "import_from_statement" | "future_import_statement" => Kind::Import,
        "relative_import" => Kind::RelativeImport,
        "for_statement"
        | "while_statement"
        | "list_comprehension"
        | "set_comprehension"
        | "dictionary_comprehension"
        | "generator_expression" => Kind::Loop,
        "if_statement" | "elif_clause" | "conditional_expression" | "match_statement" => {
            Kind::Branch
        }
        "return_statement" | "yield" => Kind::Return,
        "assignment" => Kind::Assignment,
        "expression_statement" => Kind::ExpressionStatement,
        "call" => Kind::Call,
        "attribute" => Kind::Attribute,
        "integer" | "float" | "true" | "false" | "none" => Kind::Number,
        "string" => Kind::String,
        "binary_operator"
        | "comparison_operator"
        | "boolean_operator"
        | "unary_operator"
        | "not_operator"
        | "augmented_assignment" => Kind::Operator,
        "subscript" => Kind::Subscript,
        "identifier" => Kind::Identifier,
        _ => Kind::Other,
    }
}

/// Kind, and whether it is a statement, by the grammar's number of the node.
static KINDS: LazyLock<Vec<(Kind, bool)>> = LazyLock::new(|| {
    let language = tree_sitter::Language::from(tree_sitter_python::LANGUAGE);
    (0..language.node_kind_count())
        .map(|id| {
            let name = language.node_kind_for_id(id as u16).unwrap_or_default();
            let named = language.node_kind_is_named(id as u16);
            let statement = name.ends_with("_statement")
                || matches!(name, "function_definition" | "class_definition");
            if named { (kind_of(name), statement) } else { (Kind::Other, false) }
        })
        .collect()
});

/// The kind of a node, and whether it is a statement.
fn look_up(node: Node<'_>) -> (Kind, bool) {
    // The number of error nodes lies outside the grammar's table.
    KINDS.get(usize::from(node.kind_id())).copied().unwrap_or((Kind::Error, false))
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

#[derive(Default)]
struct Counts {
    named: u32,
    statements: u32,
    top_level: u32,
    bare_calls: u32,
    imports: u32,
    relative: u32,
    functions: u32,
    methods: u32,
    classes: u32,
    documented: u32,
    parameters: u32,
    returns: u32,
    loops: u32,
    branches: u32,
    assignments: u32,
    calls: u32,
    attributes: u32,
    literals: u32,
    operators: u32,
    subscripts: u32,
    names: u32,
    name_bytes: usize,
    docstring_bytes: usize,
    comment_bytes: usize,
    string_bytes: usize,
    error_bytes: usize,
    depth: u32,
}

impl Counts {
    /// Counts one node; `path` is the kinds of the nodes above it, outermost first.
    fn see<'t>(
        &mut self,
        node: Node<'_>,
        path: &[Kind],
        text: &'t str,
        names: &mut FxHashSet<&'t [u8]>,
    ) {
        let (kind, statement) = look_up(node);
        let bytes = node.byte_range().len();
        self.named += u32::from(node.is_named());
        self.statements += u32::from(statement);
        let defines = matches!(kind, Kind::Function | Kind::Class | Kind::Import);
        self.top_level += u32::from(statement && !defines && path.len() == 1);
        match kind {
            Kind::Other | Kind::Block | Kind::Decorated => {}
            // An error inside an error would count twice.
            Kind::Error if path.contains(&Kind::Error) => {}
            Kind::Error => self.error_bytes += bytes,
            Kind::Comment => self.comment_bytes += bytes,
            Kind::Function => {
                self.functions += 1;
                self.methods += u32::from(matches!(
                    path,
                    [.., Kind::Class, Kind::Block]
                        | [.., Kind::Class, Kind::Block, Kind::Decorated]
                ));
                self.document(node);
            }
            Kind::Class => {
                self.classes += 1;
                self.document(node);
            }
            Kind::Parameters => self.parameters += node.named_child_count() as u32,
            Kind::Import => self.imports += 1,
            Kind::RelativeImport => self.relative += 1,
            Kind::Loop => self.loops += 1,
            Kind::Branch => self.branches += 1,
            Kind::Return => self.returns += 1,
            Kind::Assignment => self.assignments += 1,
            Kind::ExpressionStatement => {
                let called = |child: Node<'_>| child.kind() == "call";
                self.bare_calls += u32::from(node.named_child(0).is_some_and(called));
            }
            Kind::Call => self.calls += 1,
            Kind::Attribute => self.attributes += 1,
            Kind::Number => self.literals += 1,
            Kind::String => {
                self.literals += 1;
                self.string_bytes += bytes;
            }
            Kind::Operator => self.operators += 1,
            Kind::Subscript => self.subscripts += 1,
            Kind::Identifier => {
                self.names += 1;
                self.name_bytes += bytes;
                names.insert(&text.as_bytes()[node.byte_range()]);
            }
        }
    }

    fn document(&mut self, definition: Node<'_>) {
        if let Some(doc) = definition.child_by_field_name("body").and_then(docstring) {
            self.documented += 1;
            self.docstring_bytes += doc.byte_range().len();
        }
    }
}

/// Fills `row` with the ratios named by [`RATIO_NAMES`].
pub(super) fn fill(text: &str, row: &mut [f32]) {
    let (calmed, blanked) = calm(text);
    let tree = parse_calm(&calmed);
    let root = tree.root_node();
    let mut counts = Counts { comment_bytes: blanked, ..Counts::default() };
    let mut names = FxHashSet::default();
    if let Some(doc) = docstring(root) {
        counts.docstring_bytes += doc.byte_range().len();
    }
    let mut cursor = root.walk();
    let mut path: Vec<Kind> = Vec::new();
    'walk: loop {
        let node = cursor.node();
        counts.see(node, &path, &calmed, &mut names);
        counts.depth = counts.depth.max(path.len() as u32);
        if cursor.goto_first_child() {
            path.push(look_up(node).0);
            continue;
        }
        while !cursor.goto_next_sibling() {
            if !cursor.goto_parent() {
                break 'walk;
            }
            path.pop();
        }
    }
    row.copy_from_slice(&ratios(&counts, text, names.len()).map(|value| value as f32));
}

fn ratios(c: &Counts, text: &str, distinct_names: usize) -> [f64; RATIO_NAMES.len()] {
    let share = |part: usize, whole: usize| part as f64 / whole.max(1) as f64;
    let of = |part: u32, whole: u32| f64::from(part) / f64::from(whole.max(1));
    let lines = text.lines().count();
    let blank = text.lines().filter(|line| line.trim().is_empty()).count();
    let definitions = c.functions + c.classes;
    [
        share(c.docstring_bytes, text.len()),
        share(c.comment_bytes, text.len()),
        share(c.string_bytes.saturating_sub(c.docstring_bytes), text.len()),
        of(c.imports, c.statements),
        of(c.relative, c.imports),
        share(c.functions as usize, lines),
        share(c.classes as usize, lines),
        of(c.methods, c.functions),
        of(c.documented, definitions),
        of(c.parameters, c.functions),
        of(c.returns, c.functions),
        of(c.loops, c.statements),
        of(c.branches, c.statements),
        of(c.assignments, c.statements),
        of(c.top_level, c.statements),
        of(c.bare_calls, c.statements),
        of(c.calls, c.named),
        of(c.attributes, c.named),
        of(c.literals, c.named),
        of(c.operators, c.named),
        of(c.subscripts, c.named),
        share(c.name_bytes, c.names as usize),
        share(distinct_names, c.names as usize),
        f64::from(c.depth).ln_1p(),
        share(c.error_bytes, text.len()),
        share(text.len(), lines),
        share(blank, lines),
        (text.len() as f64).ln_1p(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ratio(text: &str, name: &str) -> f64 {
        let mut row = [0.0f32; RATIO_NAMES.len()];
        fill(text, &mut row);
        let at = RATIO_NAMES.iter().position(|known| *known == name).expect("a known ratio");
        f64::from(row[at])
    }

    const CLASS: &str = "\"\"\"Module.\"\"\"\nimport os\nfrom . import x\n\n\nclass A:\n    @property\n    \
                         def f(self, n):\n        \"\"\"Doc.\"\"\"\n        return n if n else 'x'\n";

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-6
    }

    #[test]
    fn counts_what_its_name_says() {
        assert_eq!(RATIO_NAMES[DOCSTRING_SHARE], "docstring_share");
        assert!(near(ratio(CLASS, "docstring_share"), 23.0 / CLASS.len() as f64));
        assert!(near(ratio(CLASS, "string_share"), 3.0 / CLASS.len() as f64));
        assert!(near(ratio(CLASS, "relative_import_share"), 0.5));
        assert!(near(ratio(CLASS, "method_share"), 1.0));
        assert!(near(ratio(CLASS, "documented_share"), 0.5));
        assert!(near(ratio(CLASS, "parameters_per_function"), 2.0));
        assert!(near(ratio(CLASS, "returns_per_function"), 1.0));
        assert!(near(ratio(CLASS, "functions_per_line"), 0.1));
        assert!(near(ratio(CLASS, "error_share"), 0.0));
        assert!(ratio("def f(:\n  x = = 3\n", "error_share") > 0.0);
    }

    #[test]
    fn empty_and_deep_texts_are_fine() {
        assert!(near(ratio("", "log_bytes"), 0.0));
        let deep = "(".repeat(50_000);
        assert!(ratio(&deep, "depth").is_finite());
        let nested = format!("x = {}1{}", "(".repeat(3000), ")".repeat(3000));
        assert!(ratio(&nested, "depth") > 5.0);
    }
}
