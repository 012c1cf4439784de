//! Added tokens: strings that become one token wherever they stand, before anything else is split.

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

#[derive(Debug, Default)]
struct Node {
    children: Vec<(u8, u32)>,
    /// Position in the list of added tokens.
    token: Option<u32>,
}

/// Finds added tokens: leftmost first, longest of those that start there.
#[derive(Debug)]
pub struct Trie {
    starts: [bool; 256],
    nodes: Vec<Node>,
}

impl Trie {
    /// A trie over the tokens for which `wanted` holds.
    pub fn new(tokens: &[Added], wanted: impl Fn(&Added) -> bool) -> Self {
        let mut trie = Self { starts: [false; 256], nodes: vec![Node::default()] };
        for (index, token) in tokens.iter().enumerate().filter(|(_, token)| wanted(token)) {
            trie.starts[usize::from(token.content.as_bytes()[0])] = true;
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
        trie
    }

    fn child(&self, node: usize, byte: u8) -> Option<usize> {
        let children = &self.nodes[node].children;
        children.iter().find(|(label, _)| *label == byte).map(|(_, child)| *child as usize)
    }

    /// Whether there is nothing to find.
    pub fn is_empty(&self) -> bool {
        self.nodes.len() == 1
    }

    /// The first match at or after `from`: start, end, position in the list of added tokens.
    #[inline]
    pub fn find(&self, text: &[u8], from: usize) -> Option<(usize, usize, usize)> {
        let mut start = from;
        loop {
            start += text[start..].iter().position(|&byte| self.starts[usize::from(byte)])?;
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
    use super::{Added, Trie};

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
        assert!(Trie::new(&tokens, |token| token.special).is_empty());
    }
}
