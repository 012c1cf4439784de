//! Ratios that a text's tokens and lines give. Broken code has ratios too.

use super::keywords::{KINDS, Kind};
use super::syntax::{Counts, PLACES};

/// What the columns after the hashed ones hold, in order.
pub const RATIO_NAMES: [&str; 33] = [
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
    "named_first_share", // statements that begin with a name: what is called or assigned to
    "decorators_per_function",
    "call_share", // this and the next seven: of all tokens of code
    "attribute_share",
    "literal_share",
    "operator_share", // marks that are no brackets, dots, commas or colons; and, or, not, in, is
    "subscript_share",
    "keyword_share",
    "comma_share",
    "bracket_share",
    "mean_word_length",
    "distinct_word_share",
    "deepest_indent",  // as log(1 + blanks)
    "mean_indent",     // blanks before a statement
    "deepest_bracket", // brackets open at the end of a line, as log(1 + levels)
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
    let places = PLACES as f64;
    let keywords = |kind: Kind| c.keywords[kind as usize];
    let sum = |from: &[u32; KINDS], kinds: &[Kind]| -> u32 {
        kinds.iter().map(|&kind| from[kind as usize]).sum()
    };
    let lines = c.lines;
    let statements: u32 = c.openers.iter().sum();
    let code = c.words + c.marks + c.strings;
    let functions = keywords(Kind::Def);
    let classes = keywords(Kind::Class);
    let imports = sum(&c.openers, &[Kind::Import, Kind::From]);
    let top: u32 = c.top.iter().sum();
    let definitions = [Kind::Def, Kind::Class, Kind::Async, Kind::Import, Kind::From, Kind::At];
    let top_functions = sum(&c.top, &[Kind::Def, Kind::Async]);
    let literals = c.numbers + c.strings + keywords(Kind::Constant);
    let operators = c.marks - c.brackets - c.dots - c.commas - c.colons;
    // How many were put into so many places for so many to be taken.
    let empty = (places - f64::from(c.distinct)).max(1.0) / places;
    let distinct = -places * empty.ln();
    let values: [f64; RATIO_NAMES.len()] = [
        share(c.docstring_bytes, bytes),
        share(c.comment_bytes, bytes),
        share(c.string_bytes - c.docstring_bytes, bytes),
        of(imports, statements),
        of(c.relative, imports),
        of(functions, lines),
        of(classes, lines),
        of(functions.saturating_sub(top_functions), functions),
        of(c.documented, functions + classes),
        of(keywords(Kind::Return), functions),
        of(keywords(Kind::Loop), statements),
        of(keywords(Kind::Branch), statements),
        of(c.assignments, statements),
        of(top - sum(&c.top, &definitions), statements),
        of(sum(&c.openers, &[Kind::Name]), statements),
        of(sum(&c.openers, &[Kind::At]), functions),
        of(c.calls, code),
        of(c.dots, code),
        of(literals, code),
        of(operators + keywords(Kind::Logic), code),
        of(c.subscripts, code),
        of(keywords(Kind::Keyword), code),
        of(c.commas, code),
        of(c.brackets, code),
        of(c.word_bytes, c.words),
        distinct / f64::from(c.words.max(1)),
        (c.deepest_indent as f64).ln_1p(),
        c.indent_bytes as f64 / f64::from(statements.max(1)),
        f64::from(c.deepest_bracket).ln_1p(),
        of(c.broken, lines),
        share(bytes, lines as usize),
        of(lines - c.full_lines, lines),
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
        assert!(near(
            ratio("x == y <= z\nz = 1\nw += 2\n", "assignments_per_statement"),
            2.0 / 3.0
        ));
        assert!(near(ratio("# one\nx = 1  # two\n", "comment_share"), 10.0 / 19.0));
    }

    #[test]
    fn a_docstring_ends_where_a_comment_begins() {
        assert!(near(ratio("''# note\n", "docstring_share"), 2.0 / 9.0));
        assert!(near(ratio("''# note\n", "string_share"), 0.0));
        let blocks = format!("def f():\n    'a'#{}\n", " note".repeat(2000));
        assert!(near(ratio(&blocks, "docstring_share"), 3.0 / blocks.len() as f64));
        // Two strings in a row are one only in Python's eyes.
        assert!(near(ratio("'a''b'\n", "docstring_share"), 3.0 / 7.0));
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
        assert!(ratio(&"(\n".repeat(50_000), "deepest_bracket") > 10.0);
    }
}
