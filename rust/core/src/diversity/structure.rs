//! Structural signatures: two functions have the same one when they differ at most in names, literal
//! values, comments, docstrings, type annotations, layout and redundant parentheses.

use rustc_hash::FxHashMap;
use tree_sitter::Node;
use xxhash_rust::xxh3::xxh3_128;

use crate::features::head;
use crate::syntax::{docstring, parse};
use crate::{Error, Result};

/// A function definition found in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Where it begins.
    pub start: usize,
    /// Its name.
    pub name: String,
    /// Its signature; none when it does not parse.
    pub signature: Option<u128>,
}

/// What becomes of a node.
enum Role {
    /// It and everything in it is left out.
    Dropped,
    /// Its children stand for it.
    Transparent,
    /// It counts, under this name.
    Counts(&'static str),
}

fn role(node: Node<'_>, above: &str) -> Role {
    match node.kind() {
        "comment" | "line_continuation" | "type" | "type_parameter" | "string_start"
        | "string_content" | "string_end" | "(" | ")" | "[" | "]" | "{" | "}" | "," | ";" | "."
        | "=" | "->" => Role::Dropped,
        // Elsewhere a colon says nothing that the nodes around it do not.
        ":" if above != "slice" => Role::Dropped,
        "parenthesized_expression" | "typed_parameter" => Role::Transparent,
        "typed_default_parameter" => Role::Counts("default_parameter"),
        "integer" | "float" => Role::Counts("number"),
        "true" | "false" => Role::Counts("boolean"),
        kind => Role::Counts(kind),
    }
}

/// Every function definition of a text in order, those inside others too; linear time.
///
/// Only the first [`crate::features::MAX_BYTES`] of the text are looked at.
pub fn functions(text: &str) -> Vec<Function> {
    let text = head(text);
    let tree = parse(text);
    let mut found = Vec::new();
    let mut cursor = tree.walk();
    // Open nodes: their name, and where in `pending` the digests of their children begin; none for
    // a transparent node. A node's digest hashes its name and its children's digests.
    let mut open: Vec<(&'static str, Option<usize>)> = Vec::new();
    let mut pending: Vec<u8> = Vec::new();
    let mut docstring_id = None;
    'walk: loop {
        let node = cursor.node();
        let above =
            open.iter().rev().find(|(_, start)| start.is_some()).map_or("", |(kind, _)| kind);
        let role = if docstring_id == Some(node.id()) { Role::Dropped } else { role(node, above) };
        if !matches!(role, Role::Dropped) {
            if matches!(node.kind(), "function_definition" | "class_definition") {
                // Met before any other definition's docstring: one slot is enough.
                docstring_id =
                    node.child_by_field_name("body").and_then(docstring).map(|doc| doc.id());
            }
            open.push(match role {
                Role::Counts(kind) => (kind, Some(pending.len())),
                _ => ("", None),
            });
            if cursor.goto_first_child() {
                continue;
            }
            close(&mut open, &mut pending, node, text, &mut found);
        }
        while !cursor.goto_next_sibling() {
            if !cursor.goto_parent() {
                break 'walk;
            }
            close(&mut open, &mut pending, cursor.node(), text, &mut found);
        }
    }
    found.sort_by_key(|function: &Function| function.start);
    found
}

fn close(
    open: &mut Vec<(&'static str, Option<usize>)>,
    pending: &mut Vec<u8>,
    node: Node<'_>,
    text: &str,
    found: &mut Vec<Function>,
) {
    let Some((kind, Some(start))) = open.pop() else {
        return;
    };
    pending.extend_from_slice(kind.as_bytes());
    let digest = xxh3_128(&pending[start..]);
    pending.truncate(start);
    pending.extend_from_slice(&digest.to_le_bytes());
    if kind == "function_definition" && node.is_named() {
        let name = node.child_by_field_name("name").map(|name| &text[name.byte_range()]);
        found.push(Function {
            start: node.start_byte(),
            name: name.unwrap_or_default().to_owned(),
            signature: (!node.has_error()).then_some(digest),
        });
    }
}

/// The structural signature of the first function definition in a text, as 32 hexadecimal digits.
///
/// Fails when there is none, or it does not parse.
pub fn signature(text: &str) -> Result<String> {
    let first = functions(text).into_iter().next();
    let function =
        first.ok_or_else(|| Error::config("signature: no function definition in the text"))?;
    let digest = function.signature.ok_or_else(|| {
        Error::config(format!("signature: the function `{}` does not parse", function.name))
    })?;
    Ok(format!("{digest:032x}"))
}

/// Hill numbers of a distribution: the effective number of kinds, weighing rare ones less and less.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Hill {
    /// Kinds seen.
    pub richness: u64,
    /// exp of the Shannon entropy.
    pub exp_shannon: f64,
    /// Inverse Simpson concentration.
    pub inverse_simpson: f64,
    /// Good-Turing estimate of the chance that the next one is of a kind already seen.
    pub coverage: f64,
}

/// Hill numbers of counts, none of them 0; all zero for no counts.
pub fn hill(mut counts: Vec<u64>) -> Hill {
    // Sums of floating-point numbers depend on their order.
    counts.sort_unstable();
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return Hill { richness: 0, exp_shannon: 0.0, inverse_simpson: 0.0, coverage: 0.0 };
    }
    let shares = || counts.iter().map(|&count| count as f64 / total as f64);
    let singletons = counts.iter().take_while(|&&count| count == 1).count();
    Hill {
        richness: counts.len() as u64,
        exp_shannon: (-shares().map(|p| p * p.ln()).sum::<f64>()).exp(),
        inverse_simpson: 1.0 / shares().map(|p| p * p).sum::<f64>(),
        coverage: 1.0 - singletons as f64 / total as f64,
    }
}

/// Counts of structures.
#[derive(Debug, Default, Clone)]
pub struct Structures {
    counts: FxHashMap<u128, (u64, String)>,
    broken: u64,
}

/// One structure that occurs often.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Heavy {
    /// Its signature.
    pub signature: String,
    /// Functions that have it.
    pub count: u64,
    /// The name of the first of them.
    pub example: String,
}

/// The distribution of structures.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Summary {
    /// Functions counted.
    pub functions: u64,
    /// Functions left out because they do not parse.
    pub broken: u64,
    /// Distinct structures.
    pub richness: u64,
    /// Effective number of structures, by Shannon's entropy.
    pub exp_shannon: f64,
    /// Effective number of structures, by Simpson's concentration.
    pub inverse_simpson: f64,
    /// Good-Turing estimate of the chance that another function has a structure already seen.
    pub coverage: f64,
    /// The most frequent structures.
    pub top: Vec<Heavy>,
}

impl Structures {
    /// Adds the functions of a document.
    pub fn add(&mut self, functions: Vec<Function>) {
        for Function { name, signature, .. } in functions {
            match signature {
                Some(key) => self.counts.entry(key).or_insert((0, name)).0 += 1,
                None => self.broken += 1,
            }
        }
    }

    /// Hill numbers, and the `top` heaviest structures (ties by signature).
    pub fn summary(self, top: usize) -> Summary {
        let Hill { richness, exp_shannon, inverse_simpson, coverage } =
            hill(self.counts.values().map(|(count, _)| *count).collect());
        let mut all: Vec<(u128, (u64, String))> = self.counts.into_iter().collect();
        let functions = all.iter().map(|(_, (count, _))| count).sum();
        all.sort_unstable_by(|(a, (x, _)), (b, (y, _))| y.cmp(x).then(a.cmp(b)));
        all.truncate(top);
        let heavy =
            |(key, (count, example))| Heavy { signature: format!("{key:032x}"), count, example };
        Summary {
            functions,
            broken: self.broken,
            richness,
            exp_shannon,
            inverse_simpson,
            coverage,
            top: all.into_iter().map(heavy).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(a: &str, b: &str) -> bool {
        signature(a).unwrap() == signature(b).unwrap()
    }

    #[test]
    fn names_values_words_and_layout_do_not_matter() {
        let plain = "def f(a, b=1):\n    return [a + x for x in b if x > 2]\n";
        assert!(same(
            plain,
            "# c\ndef long_name(first, second=0x10) :\n    return [first+y\n   for y in second if y>99]"
        ));
        assert!(same(
            plain,
            "def g(c: int, d: list[int] = 7) -> list:\n    '''Doc.\n\n    More.'''\n    # why\n    \
             return ([(c + z) for z in d if (z > 3.5)])  # done\n"
        ));
        assert!(same("def f():\n    return 'a'\n", "def f():\n    return \"\"\"b\nc\"\"\"\n"));
        assert!(same("def f(): return True\n", "def f():\n    return False\n"));
    }

    #[test]
    fn structure_matters() {
        let plain = "def f(a, b):\n    return a + b\n";
        for other in [
            "def f(a, b):\n    return a * b\n",
            "def f(a):\n    return a + a\n",
            "def f(a, b):\n    a + b\n",
            "async def f(a, b):\n    return a + b\n",
            "def f(a, *b):\n    return a + b\n",
            "def f(a, b):\n    return a + b[1:]\n",
        ] {
            assert!(!same(plain, other), "{other}");
        }
        assert!(!same("def f(a):\n    return a[1:]", "def f(a):\n    return a[:1]"));
        assert!(!same("def f(a):\n    return f'{a}'", "def f(a):\n    return 'a'"));
        assert!(!same("def f(a):\n    g(h(a), a)", "def f(a):\n    g(h(a, a))"));
    }

    #[test]
    fn finds_every_function() {
        let text = "class A:\n    '''D.'''\n    def f(self):\n        '''D.'''\n        def g(): pass\n        \
                    return g\n\n@x\ndef h(: pass\n\ndef k(): pass\n";
        let found = functions(text);
        let names: Vec<&str> = found.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(names[..2], ["f", "g"]);
        assert_eq!(names.last(), Some(&"k"));
        assert_eq!(found[1].signature, found.last().unwrap().signature);
        assert!(functions("").is_empty());
    }

    #[test]
    fn no_signature_without_a_function() {
        assert!(signature("x = 1").is_err());
        assert!(signature("def f(:\n    return = =\n").is_err());
    }

    #[test]
    fn hill_numbers_of_even_and_uneven_counts() {
        let even = hill(vec![5; 8]);
        assert_eq!(even.richness, 8);
        assert!((even.exp_shannon - 8.0).abs() < 1e-9 && (even.inverse_simpson - 8.0).abs() < 1e-9);
        assert!((even.coverage - 1.0).abs() < 1e-12);
        let uneven = hill(vec![97, 1, 1, 1]);
        assert!(uneven.inverse_simpson < uneven.exp_shannon && uneven.exp_shannon < 4.0);
        assert!((uneven.coverage - 0.97).abs() < 1e-12);
        assert_eq!(hill(Vec::new()).richness, 0);
    }
}
