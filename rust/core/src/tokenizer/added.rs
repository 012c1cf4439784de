//! Added tokens: strings that become one token wherever they stand, before anything else is split.

use memchr::memmem::Finder;

use super::Special;

/// A token that is matched as text, such as `<|endoftext|>` or a run of spaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Added {
    /// Its text.
    pub content: String,
    /// Its id.
    pub id: u32,
    /// Whether it is a control token, which `Special::Text` leaves alone.
    pub special: bool,
    /// HF's flag; without a normalizer it only decides which of two passes finds the token.
    pub normalized: bool,
}

/// Ids of the runs of spaces and of tabs among added tokens, from a run of two on without a gap, if
/// they are all the white space in them: then a text is cut into runs and pieces in one go.
pub fn runs(tokens: &[Added]) -> [Vec<u32>; 2] {
    let white = |token: &&Added| token.content.contains([' ', '\t']);
    let mut white: Vec<&Added> = tokens.iter().filter(white).collect();
    white.sort_unstable_by_key(|token| token.content.len());
    let mut runs = [Vec::new(), Vec::new()];
    for token in white {
        let run = &mut runs[usize::from(token.content.starts_with('\t'))];
        let unit = &token.content[..1];
        if token.special || token.content != unit.repeat(run.len() + 2) {
            return [Vec::new(), Vec::new()];
        }
        run.push(token.id);
    }
    runs
}

#[derive(Debug, Default)]
struct Node {
    children: Vec<(u8, u32)>,
    /// Position in the list of added tokens.
    token: Option<u32>,
}

/// Finds added tokens: leftmost first, longest of those that start there.
#[derive(Debug)]
pub struct Trie {
    /// The bytes that tokens start with.
    starts: Vec<u8>,
    /// What all tokens start with, if that is more than a byte: it is much rarer in text. Boxed, since
    /// it holds vectors of 32 bytes, for which Python's allocator has no place.
    prefix: Option<Box<Finder<'static>>>,
    nodes: Vec<Node>,
    only_special: bool,
}

impl Trie {
    /// A trie over the tokens for which `wanted` holds.
    pub fn new(tokens: &[Added], wanted: impl Fn(&Added) -> bool) -> Self {
        let mut trie = Self {
            starts: Vec::new(),
            prefix: None,
            nodes: vec![Node::default()],
            only_special: true,
        };
        for (index, token) in tokens.iter().enumerate().filter(|(_, token)| wanted(token)) {
            trie.starts.push(token.content.as_bytes()[0]);
            trie.only_special &= token.special;
            let mut node = 0;
            for &byte in token.content.as_bytes() {
                node = trie.child(node, byte).unwrap_or_else(|| {
                    let new = trie.nodes.len();
                    trie.nodes.push(Node::default());
                    trie.nodes[node].children.push((byte, new as u32));
                    new
                });
            }
            trie.nodes[node].token = Some(index as u32);
        }
        trie.starts.sort_unstable();
        trie.starts.dedup();
        let wanted =
            tokens.iter().filter(|token| wanted(token)).map(|token| token.content.as_bytes());
        let prefix = wanted.reduce(|a, b| {
            let same = a.iter().zip(b).take_while(|(a, b)| a == b).count();
            &a[..same]
        });
        let prefix = prefix.filter(|prefix| prefix.len() > 1);
        trie.prefix = prefix.map(|prefix| Box::new(Finder::new(prefix).into_owned()));
        trie
    }

    fn child(&self, node: usize, byte: u8) -> Option<usize> {
        let children = &self.nodes[node].children;
        children.iter().find(|(label, _)| *label == byte).map(|(_, child)| *child as usize)
    }

    /// Whether there is nothing to find, or nothing that would count.
    pub fn is_idle(&self, special: Special) -> bool {
        self.starts.is_empty() || self.only_special && special == Special::Text
    }

    /// Where the next token may start.
    #[inline]
    fn candidate(&self, text: &[u8]) -> Option<usize> {
        if let Some(prefix) = &self.prefix {
            return prefix.find(text);
        }
        match *self.starts {
            [] => None,
            [a] => memchr::memchr(a, text),
            [a, b] => memchr::memchr2(a, b, text),
            [a, b, c] => memchr::memchr3(a, b, c, text),
            _ => text.iter().position(|byte| self.starts.binary_search(byte).is_ok()),
        }
    }

    /// The first match at or after `from`: start, end, position in the list of added tokens.
    #[inline]
    pub fn find(&self, text: &[u8], from: usize) -> Option<(usize, usize, usize)> {
        let mut start = from;
        loop {
            start += self.candidate(&text[start..])?;
            let (mut node, mut found) = (0, None);
            for (offset, &byte) in text[start..].iter().enumerate() {
                let Some(child) = self.child(node, byte) else { break };
                node = child;
                if let Some(token) = self.nodes[node].token {
                    found = Some((start, start + offset + 1, token as usize));
                }
            }
            if found.is_some() {
                return found;
            }
            start += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Added, Special, Trie, runs};

    #[test]
    fn leftmost_then_longest() {
        let token = |content: &str| Added {
            content: content.to_owned(),
            id: 0,
            special: false,
            normalized: true,
        };
        let tokens = [token("  "), token("    "), token("<a>"), token("a>b")];
        let trie = Trie::new(&tokens, |_| true);
        assert_eq!(trie.find(b"x     y", 0), Some((1, 5, 1)));
        assert_eq!(trie.find(b"x   y", 0), Some((1, 3, 0)));
        assert_eq!(trie.find(b"<a>b", 0), Some((0, 3, 2)));
        assert_eq!(trie.find(b"<<a>b", 2), Some((2, 5, 3)));
        assert_eq!(trie.find(b"x y", 0), None);
        assert!(Trie::new(&tokens, |token| token.special).is_idle(Special::Token));
    }

    #[test]
    fn runs_are_whole_or_not_at_all() {
        let tokens = |contents: &[&str]| {
            contents
                .iter()
                .enumerate()
                .map(|(id, content)| Added {
                    content: (*content).to_owned(),
                    id: id as u32,
                    special: false,
                    normalized: true,
                })
                .collect::<Vec<_>>()
        };
        let none: [Vec<u32>; 2] = [vec![], vec![]];
        assert_eq!(runs(&tokens(&["   ", "x", "  ", "\t\t"])), [vec![2_u32, 0], vec![3]]);
        for other in [" ", "  x", "    ", "\t \t", "a b", "\t\t\t"] {
            assert_eq!(runs(&tokens(&["  ", other])), none, "{other:?}");
        }
        let mut special = tokens(&["  "]);
        special[0].special = true;
        assert_eq!(runs(&special), none);
    }
}
