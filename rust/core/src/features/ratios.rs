//! Ratios that a text's tokens and lines give. Broken code has ratios too.

use super::scan::{Counts, Kind};

/// What the columns after the hashed ones hold, in order.
pub const RATIO_NAMES: [&str; 32] = [
    "docstring_share",        // bytes of docstrings over all bytes
    "comment_share",          // bytes of comments over all bytes
    "string_share",           // bytes of other strings over all bytes
    "imports_per_statement",  //
    "relative_import_share",  // of the imports
    "functions_per_line",     //
    "classes_per_line",       //
    "method_share",           // indented functions, of all functions
    "documented_share",       // functions and classes with a docstring
    "returns_per_function",   //
    "loops_per_statement",    // for and while, in comprehensions too
    "branches_per_statement", // if and elif, in expressions too
    "assignments_per_statement",
    "top_level_share", // statements that are not indented and neither define, import nor decorate
    "self_attribute_share", // attributes that are set or called first thing in a statement
    "decorators_per_function",
    "call_share", // this and the next six: of all tokens of code
    "attribute_share",
    "literal_share",
    "operator_share",
    "subscript_share",
    "keyword_share",
    "comma_share",
    "mean_name_length",
    "distinct_token_share",
    "deepest_indent",  // as log(1 + blanks)
    "mean_indent",     // blanks before a statement
    "deepest_bracket", // as log(1 + levels)
    "broken_share",    // brackets and strings that do not fit, over all lines
    "mean_line_length",
    "blank_line_share",
    "log_bytes",
];

/// Where [`RATIO_NAMES`] has `docstring_share`.
pub const DOCSTRING_SHARE: usize = 0;

/// Fills `row` with the ratios named by [`RATIO_NAMES`].
pub(super) fn fill(c: &Counts, bytes: usize, row: &mut [f32]) {
    let share = |part: usize, whole: usize| part as f64 / whole.max(1) as f64;
    let of = |part: u32, whole: u32| f64::from(part) / f64::from(whole.max(1));
    let lines = c.lines;
    let statements = c.statements();
    let code: u32 = c.pairs.iter().sum();
    let functions = c.of(Kind::Def);
    let classes = c.of(Kind::Class);
    let imports = c.pair(Kind::Line, Kind::Import) + c.pair(Kind::Line, Kind::From);
    let calls = c.pair(Kind::Name, Kind::Round) + c.pair(Kind::Close, Kind::Round);
    let subscripts = c.pair(Kind::Name, Kind::Square) + c.pair(Kind::Close, Kind::Square);
    // `a = b`, `a += b` and `f(x=1)`; `==` has its second sign behind the first.
    let assignments = [Kind::Name, Kind::Close, Kind::Operator]
        .iter()
        .map(|&before| c.pair(before, Kind::Equals))
        .sum::<u32>()
        .saturating_sub(c.pair(Kind::Equals, Kind::Equals));
    let top: u32 = c.top.iter().sum();
    let top_definitions: u32 =
        [Kind::Def, Kind::Class, Kind::Async, Kind::Import, Kind::From, Kind::At]
            .iter()
            .map(|&kind| c.top[kind as usize])
            .sum();
    let literals = c.of(Kind::Number) + c.of(Kind::Str) + c.of(Kind::Constant);
    let distinct: u32 = c.seen.iter().map(|word| word.count_ones()).sum();
    // How many were put into 4,096 places for so many to be taken.
    let empty = f64::from((4096 - distinct).max(1)) / 4096.0;
    let distinct = if code == 0 { 0.0 } else { -4096.0 * empty.ln() };
    let values: [f64; RATIO_NAMES.len()] = [
        share(c.docstring_bytes, bytes),
        share(c.comment_bytes, bytes),
        share(c.string_bytes - c.docstring_bytes, bytes),
        of(imports, statements),
        of(c.pair(Kind::From, Kind::Dot), imports),
        of(functions, lines),
        of(classes, lines),
        of(functions.saturating_sub(c.top[Kind::Def as usize]), functions),
        of(c.documented, functions + classes),
        of(c.of(Kind::Return), functions),
        of(c.of(Kind::Loop), statements),
        of(c.of(Kind::Branch), statements),
        of(assignments, statements),
        of(top - top_definitions, statements),
        of(c.pair(Kind::Line, Kind::Name), statements),
        of(c.pair(Kind::Line, Kind::At), functions),
        of(calls, code),
        of(c.of(Kind::Dot), code),
        of(literals, code),
        of(c.of(Kind::Operator) + c.of(Kind::Logic), code),
        of(subscripts, code),
        of(c.of(Kind::Keyword), code),
        of(c.of(Kind::Comma), code),
        c.name_bytes as f64 / f64::from(c.of(Kind::Name).max(1)),
        distinct / f64::from(code.max(1)),
        (c.deepest_indent as f64).ln_1p(),
        c.indent_bytes as f64 / f64::from(statements.max(1)),
        f64::from(c.deepest_bracket).ln_1p(),
        of(c.broken, lines),
        share(bytes, lines as usize),
        of(c.blank_lines, lines),
        (bytes as f64).ln_1p(),
    ];
    row.copy_from_slice(&values.map(|value| value as f32));
}

#[cfg(test)]
mod tests {
    use super::super::{embed, width};
    use super::*;

    fn ratio(text: &str, name: &str) -> f64 {
        let row = embed(&[text], 8, false).unwrap();
        assert_eq!(row.len(), width(8));
        let at = RATIO_NAMES.iter().position(|known| *known == name).expect("a known ratio");
        f64::from(row[8 + at])
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
        assert!(near(ratio(CLASS, "imports_per_statement"), 2.0 / 8.0));
        assert!(near(ratio(CLASS, "method_share"), 1.0));
        assert!(near(ratio(CLASS, "documented_share"), 0.5));
        assert!(near(ratio(CLASS, "returns_per_function"), 1.0));
        assert!(near(ratio(CLASS, "decorators_per_function"), 1.0));
        assert!(near(ratio(CLASS, "branches_per_statement"), 1.0 / 8.0));
        assert!(near(ratio(CLASS, "functions_per_line"), 0.1));
        assert!(near(ratio(CLASS, "blank_line_share"), 0.2));
        assert!(near(ratio(CLASS, "broken_share"), 0.0));
        assert!(near(ratio("x = )\n", "broken_share"), 1.0));
        assert!(near(ratio("x = 'abc\ny = 1\n", "broken_share"), 0.5));
        assert!(near(ratio("x == y\nz = 1\nw += 2\n", "assignments_per_statement"), 2.0 / 3.0));
        assert!(near(ratio("# one\nx = 1  # two\n", "comment_share"), 10.0 / 19.0));
    }

    #[test]
    fn data_in_strings_is_no_docstring() {
        assert!(near(ratio("x = 1\n\"\"\"not at the start\"\"\"\n", "docstring_share"), 0.0));
        assert!(near(ratio("f = {\n    'a': 1,\n    'b': 2}\n", "docstring_share"), 0.0));
        assert!(near(ratio("if x:\n    'no'\n", "docstring_share"), 0.0));
        assert!(
            ratio("async def f(\n    a,\n):\n    r'''A raw one.'''\n", "docstring_share") > 0.3
        );
    }

    #[test]
    fn empty_and_deep_texts_are_fine() {
        assert!(near(ratio("", "log_bytes"), 0.0));
        assert!(ratio(&"(".repeat(50_000), "deepest_bracket") > 10.0);
    }
}
