//! A forest of decision trees: its file, its checks, its scoring.
//!
//! Scores equal scikit-learn's `predict_proba` (of class 1) or `predict` bit for bit: leaf values are
//! added in tree order in `f64` and divided by the number of trees. A threshold is kept as the largest
//! `f32` that is not above it, which sends every `f32` feature the same way as the `f64` did.
//!
//! File, all little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `HBFOREST` |
//! | 4 | format version, 1 |
//! | 4 | length of the header, a multiple of 8 |
//! | header | JSON ([`ForestHeader`]), padded with spaces |
//! | 8 x leaves | `f64` leaf values |
//! | 4 x trees | `u32` first node of each tree |
//! | 4 x nodes | `u32` feature of each node; `0xffffffff` at a leaf |
//! | 4 x nodes | `f32` threshold: a feature not above it goes left |
//! | 4 x nodes | `u32` right child; at a leaf, the index of its value |
//! | 8 | xxh3-64 of everything before |
//!
//! Nodes stand in preorder, so a left child is the next node and a right child comes later: a file
//! whose indices pass the checks has no cycles.

use std::path::Path;

use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use crate::corpus::{Part, write_whole};
use crate::{Error, Result};

const MAGIC: &[u8; 8] = b"HBFOREST";
const VERSION: u32 = 1;
const LEAF: u32 = u32::MAX;
/// Rows that one tree is walked for while it is in the cache.
const BLOCK: usize = 64;
/// Rows that are walked side by side: each waits for memory while the others go on.
const LANES: usize = 8;

/// What a forest says of itself.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ForestHeader {
    /// The embedding its features come from.
    pub embedder: String,
    /// Hashed dimensions of that embedding.
    pub dimensions: usize,
    /// Columns of a feature row.
    pub features: usize,
    /// `classifier` (scores are probabilities) or `regressor`.
    pub kind: String,
    /// Documents with at least this score are kept.
    pub threshold: f64,
    /// Hash of the labels and settings it was trained with.
    pub training: String,
    /// How to make the embedding again, truncation included, as JSON; empty for `hash`.
    #[serde(default)]
    pub settings: String,
    /// Trees.
    #[serde(default)]
    pub trees: usize,
    /// Nodes of all trees.
    #[serde(default)]
    pub nodes: usize,
    /// Leaves of all trees.
    #[serde(default)]
    pub leaves: usize,
}

/// Trees as scikit-learn holds them, laid end to end; `left < 0` marks a leaf.
pub struct SourceTrees<'a> {
    /// Number of nodes of each tree.
    pub sizes: &'a [usize],
    /// Left child inside the tree.
    pub left: &'a [i64],
    /// Right child inside the tree.
    pub right: &'a [i64],
    /// Feature that is compared.
    pub feature: &'a [i64],
    /// Feature values not above it go left.
    pub threshold: &'a [f64],
    /// A leaf's output.
    pub value: &'a [f64],
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Split {
    feature: u32,
    threshold: f32,
    /// Right child, or at a leaf the index of its value. The left child is the next node.
    right: u32,
}

/// A node as it is walked. The children of one stand side by side, and a leaf is its own left child
/// with a threshold that nothing passes: a step is the same few instructions wherever it ends.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Node {
    feature: u32,
    threshold: f32,
    left: u32,
}

/// A forest ready to score.
#[derive(Debug, Clone, PartialEq)]
pub struct Forest {
    header: ForestHeader,
    roots: Vec<u32>,
    splits: Vec<Split>,
    values: Vec<f64>,
    /// The same trees for walking: nodes, and each node's value (0 at a split).
    nodes: Vec<Node>,
    outputs: Vec<f64>,
}

/// The largest `f32` that is not above `value`.
fn floor_to_f32(value: f64) -> f32 {
    let near = value as f32;
    if f64::from(near) <= value {
        return near;
    }
    // One step down; `near` is above `value`, so it is neither NaN nor minus infinity.
    let bits = near.to_bits();
    f32::from_bits(match near {
        0.0 => 0x8000_0001,
        n if n > 0.0 => bits - 1,
        _ => bits + 1,
    })
}

impl Forest {
    /// Takes over trained trees; counts in the header are filled in.
    ///
    /// Fails when the arrays do not describe trees over `header.features` features.
    pub fn from_trees(trees: &SourceTrees<'_>, header: ForestHeader) -> Result<Self> {
        let nodes: usize = trees.sizes.iter().sum();
        let lengths = [
            trees.left.len(),
            trees.right.len(),
            trees.feature.len(),
            trees.threshold.len(),
            trees.value.len(),
        ];
        if trees.sizes.is_empty() || trees.sizes.contains(&0) || lengths != [nodes; 5] {
            return Err(Error::config(
                "forest: the arrays of its trees differ in length or are empty",
            ));
        }
        if nodes >= LEAF as usize {
            return Err(Error::config(format!(
                "forest: {nodes} nodes are too many; train smaller trees"
            )));
        }
        let mut forest = Self {
            header,
            roots: Vec::new(),
            splits: Vec::with_capacity(nodes),
            values: Vec::new(),
            nodes: Vec::new(),
            outputs: Vec::new(),
        };
        let mut start = 0;
        for (tree, &size) in trees.sizes.iter().enumerate() {
            forest.roots.push(forest.splits.len() as u32);
            forest.add_tree(trees, start, size).ok_or_else(|| {
                Error::config(format!(
                    "forest: tree {tree} is not a tree: an index is out of range"
                ))
            })?;
            start += size;
        }
        forest.header.trees = forest.roots.len();
        forest.header.nodes = forest.splits.len();
        forest.header.leaves = forest.values.len();
        forest.check().map_err(Error::config)?;
        forest.lay_out();
        Ok(forest)
    }

    /// Lays the checked trees out for walking.
    fn lay_out(&mut self) {
        let leaf = |at| Node { feature: 0, threshold: f32::INFINITY, left: at };
        self.nodes = Vec::with_capacity(self.splits.len());
        self.outputs = vec![0.0; self.splits.len()];
        for &root in &self.roots {
            // A split, and where its node is to stand.
            let mut pending = vec![(root, self.nodes.len() as u32)];
            self.nodes.push(leaf(self.nodes.len() as u32));
            while let Some((from, to)) = pending.pop() {
                let split = self.splits[from as usize];
                if split.feature == LEAF {
                    self.outputs[to as usize] = self.values[split.right as usize];
                    continue;
                }
                let left = self.nodes.len() as u32;
                self.nodes[to as usize] =
                    Node { feature: split.feature, threshold: split.threshold, left };
                self.nodes.extend([leaf(left), leaf(left + 1)]);
                pending.extend([(split.right, left + 1), (from + 1, left)]);
            }
        }
    }

    /// Appends one tree in preorder.
    fn add_tree(&mut self, trees: &SourceTrees<'_>, start: usize, size: usize) -> Option<()> {
        // A node, and the split whose right child it is.
        let mut pending: Vec<(usize, Option<usize>)> = vec![(0, None)];
        let mut seen = 0;
        while let Some((node, parent)) = pending.pop() {
            seen += 1;
            if seen > size || node >= size {
                return None;
            }
            let at = self.splits.len();
            if let Some(parent) = parent {
                self.splits[parent].right = at as u32;
            }
            let from = start + node;
            if trees.left[from] < 0 {
                let value = self.values.len() as u32;
                self.splits.push(Split { feature: LEAF, threshold: 0.0, right: value });
                self.values.push(trees.value[from]);
            } else {
                let threshold = floor_to_f32(trees.threshold[from]);
                let feature = u32::try_from(trees.feature[from]).ok()?;
                self.splits.push(Split { feature, threshold, right: 0 });
                pending.push((usize::try_from(trees.right[from]).ok()?, Some(at)));
                pending.push((usize::try_from(trees.left[from]).ok()?, None));
            }
        }
        Some(())
    }

    /// Whether every index is in range and every child stands behind its parent, in the same tree.
    fn check(&self) -> Result<(), String> {
        let nodes = self.splits.len();
        if self.header.features == 0 {
            return Err("forest: it has no features".to_owned());
        }
        if self.values.iter().any(|value| !value.is_finite()) {
            return Err("forest: a leaf value is not finite".to_owned());
        }
        if self.roots.is_empty() || self.roots[0] != 0 {
            return Err("forest: the first tree does not start at node 0".to_owned());
        }
        for (tree, &root) in self.roots.iter().enumerate() {
            let end = self.roots.get(tree + 1).map_or(nodes, |&next| next as usize);
            if root as usize >= end || end > nodes {
                return Err(format!("forest: tree {tree} has no nodes or ends outside the forest"));
            }
            for at in root as usize..end {
                let Split { feature, threshold, right } = self.splits[at];
                let right = right as usize;
                if feature == LEAF {
                    if right >= self.values.len() {
                        return Err(format!(
                            "forest: node {at} names leaf value {right}, which is not there"
                        ));
                    }
                } else if feature as usize >= self.header.features {
                    return Err(format!(
                        "forest: node {at} asks for feature {feature} of {}",
                        self.header.features
                    ));
                } else if threshold.is_nan() {
                    return Err(format!("forest: node {at} has no threshold"));
                } else if right <= at + 1 || right >= end {
                    return Err(format!(
                        "forest: node {at} of tree {tree} has a child out of range"
                    ));
                }
            }
        }
        Ok(())
    }

    /// What it says of itself.
    pub fn header(&self) -> &ForestHeader {
        &self.header
    }

    /// The same trees with another threshold.
    #[must_use]
    pub fn with_threshold(mut self, threshold: f64) -> Self {
        self.header.threshold = threshold;
        self
    }

    /// The forest as the bytes of its file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec(&self.header).expect("a header has a JSON form");
        json.resize(json.len().next_multiple_of(8), b' ');
        let mut bytes = Vec::with_capacity(64 + json.len() + 12 * self.splits.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(json.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&json);
        bytes.extend(self.values.iter().flat_map(|value| value.to_le_bytes()));
        bytes.extend(self.roots.iter().flat_map(|root| root.to_le_bytes()));
        bytes.extend(self.splits.iter().flat_map(|split| split.feature.to_le_bytes()));
        bytes.extend(self.splits.iter().flat_map(|split| split.threshold.to_le_bytes()));
        bytes.extend(self.splits.iter().flat_map(|split| split.right.to_le_bytes()));
        let sum = xxh3_64(&bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads [`Forest::to_bytes`] back, checking everything that scoring relies on.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let Some(rest) = bytes.strip_prefix(MAGIC) else {
            return Err("not a forest file: it does not begin with HBFOREST".to_owned());
        };
        let short = || format!("truncated: it has only {} bytes", bytes.len());
        let (version, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
        if u32::from_le_bytes(*version) != VERSION {
            return Err(format!(
                "forest format {}, but this version reads {VERSION}: train it again",
                u32::from_le_bytes(*version)
            ));
        }
        let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
        let (json, rest) =
            rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or_else(short)?;
        let header: ForestHeader =
            serde_json::from_slice(json).map_err(|e| format!("its header is damaged: {e}"))?;
        let wanted = (header.leaves.checked_mul(8))
            .zip(header.trees.checked_mul(4))
            .zip(header.nodes.checked_mul(12))
            .and_then(|((leaves, trees), nodes)| leaves.checked_add(trees)?.checked_add(nodes))
            .and_then(|arrays| arrays.checked_add(8));
        if wanted != Some(rest.len()) {
            return Err(format!(
                "truncated or damaged: {} trees with {} nodes do not fit its {} bytes",
                header.trees,
                header.nodes,
                bytes.len()
            ));
        }
        let (body, sum) = bytes.split_last_chunk::<8>().ok_or_else(short)?;
        if xxh3_64(body) != u64::from_le_bytes(*sum) {
            return Err("damaged: its checksum does not fit".to_owned());
        }
        let (values, rest) = rest.split_at(8 * header.leaves);
        let (roots, rest) = rest.split_at(4 * header.trees);
        let (features, rest) = rest.split_at(4 * header.nodes);
        let (thresholds, rest) = rest.split_at(4 * header.nodes);
        let rights = &rest[..4 * header.nodes];
        let splits = words(features).zip(words(thresholds)).zip(words(rights)).map(
            |((feature, threshold), right)| Split {
                feature,
                threshold: f32::from_bits(threshold),
                right,
            },
        );
        let mut forest = Self {
            roots: words(roots).collect(),
            splits: splits.collect(),
            values: values
                .chunks_exact(8)
                .map(|value| f64::from_le_bytes(value.try_into().expect("eight bytes")))
                .collect(),
            header,
            nodes: Vec::new(),
            outputs: Vec::new(),
        };
        forest.check()?;
        forest.lay_out();
        Ok(forest)
    }

    /// Writes the file, whole or not at all.
    pub fn save(&self, path: &Path) -> Result<Part> {
        write_whole(path, &self.to_bytes())
    }

    /// Reads a file; fails when it is missing, damaged, or of another format version.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        Self::from_bytes(&bytes).map_err(|message| Error::input(path, message))
    }

    /// One score for each row of `features` (row-major, `header.features` columns).
    ///
    /// `parallel`: on all threads; the result is the same. Fails when the length is no whole number of
    /// rows, or a value is not finite.
    pub fn score(&self, features: &[f32], parallel: bool) -> Result<Vec<f64>> {
        let width = self.header.features;
        if !features.len().is_multiple_of(width) {
            return Err(Error::config(format!(
                "{} feature values are no whole number of rows of {width}",
                features.len()
            )));
        }
        if let Some(at) = features.iter().position(|value| !value.is_finite()) {
            return Err(Error::config(format!("row {}: a feature is not finite", at / width)));
        }
        let mut scores = vec![0.0; features.len() / width];
        let score = |(scores, rows): (&mut [f64], &[f32])| self.score_block(rows, scores);
        if parallel {
            scores.par_chunks_mut(BLOCK).zip(features.par_chunks(BLOCK * width)).for_each(score);
        } else {
            scores.chunks_mut(BLOCK).zip(features.chunks(BLOCK * width)).for_each(score);
        }
        Ok(scores)
    }

    /// For each feature, how many times the trees compare it on their way for one row.
    ///
    /// Fails as [`Forest::score`] does.
    pub fn asked(&self, row: &[f32]) -> Result<Vec<u32>> {
        self.score(row, false)?;
        let mut asked = vec![0; self.header.features];
        for &root in &self.roots {
            let mut at = root as usize;
            while self.splits[at].feature != LEAF {
                let Split { feature, threshold, right } = self.splits[at];
                asked[feature as usize] += 1;
                at = if row[feature as usize] <= threshold { at + 1 } else { right as usize };
            }
        }
        Ok(asked)
    }

    fn score_block(&self, rows: &[f32], scores: &mut [f64]) {
        let width = self.header.features;
        let mut root = 0;
        for tree in 0..self.roots.len() {
            let lanes = scores.chunks_mut(LANES).zip(rows.chunks(LANES * width));
            for (scores, rows) in lanes {
                let at = self.walk(root, rows, scores.len());
                for (score, at) in scores.iter_mut().zip(at) {
                    *score += self.outputs[at as usize];
                }
            }
            // Trees are laid out one after the other, node for node.
            let end = self.roots.get(tree + 1).map_or(self.splits.len(), |&next| next as usize);
            root = end as u32;
        }
        let trees = self.roots.len() as f64;
        for score in scores {
            *score /= trees;
        }
    }

    /// The leaves that up to eight rows of one tree end in.
    #[inline]
    fn walk(&self, root: u32, rows: &[f32], count: usize) -> [u32; LANES] {
        let width = self.header.features;
        let mut at = [root; LANES];
        // A missing row stands in for the last one.
        let rows: [&[f32]; LANES] = std::array::from_fn(|lane| {
            let row = lane.min(count - 1);
            &rows[row * width..(row + 1) * width]
        });
        loop {
            let mut moved = 0;
            for (at, row) in at.iter_mut().zip(rows) {
                let node = self.nodes[*at as usize];
                let next = node.left + u32::from(row[node.feature as usize] > node.threshold);
                moved |= next ^ *at;
                *at = next;
            }
            if moved == 0 {
                return at;
            }
        }
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().expect("four bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> ForestHeader {
        ForestHeader {
            embedder: "test".into(),
            dimensions: 1,
            features: 2,
            kind: "classifier".into(),
            threshold: 0.5,
            training: "none".into(),
            settings: String::new(),
            trees: 0,
            nodes: 0,
            leaves: 0,
        }
    }

    fn forest() -> Forest {
        // Right children before left ones, so that the order has to be changed.
        let trees = SourceTrees {
            sizes: &[5, 1],
            left: &[2, -1, 4, -1, -1, -1],
            right: &[1, -1, 3, -1, -1, -1],
            feature: &[0, -2, 1, -2, -2, -2],
            threshold: &[0.1, 0.0, -1.0, 0.0, 0.0, 0.0],
            value: &[0.5, 1.0, 0.5, 0.25, 0.0, 0.5],
        };
        Forest::from_trees(&trees, header()).unwrap()
    }

    #[test]
    fn walks_its_trees() {
        let scores = forest().score(&[0.2, 0.0, 0.0, 0.0, 0.0, -1.0], false).unwrap();
        assert_eq!(scores, [0.75, 0.375, 0.25]);
        assert!(forest().score(&[0.0], false).is_err());
        assert!(forest().score(&[f32::NAN, 0.0], false).is_err());
        assert!(forest().score(&[], false).unwrap().is_empty());
    }

    #[test]
    fn a_file_comes_back_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("forest.bin");
        let part = forest().save(&path).unwrap();
        assert_eq!(part.bytes, std::fs::metadata(&path).unwrap().len());
        assert_eq!(Forest::load(&path).unwrap(), forest());
        assert!(matches!(Forest::load(&folder.path().join("none")), Err(Error::Io { .. })));
    }

    #[test]
    fn damage_is_found() {
        let bytes = forest().to_bytes();
        for cut in 0..bytes.len() {
            assert!(Forest::from_bytes(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(Forest::from_bytes(&changed).is_err(), "changed at {at}");
        }
    }

    #[test]
    fn bad_indices_with_a_right_checksum_are_found() {
        let good = forest();
        let broken = |change: &dyn Fn(&mut Forest)| {
            let mut bad = good.clone();
            change(&mut bad);
            Forest::from_bytes(&bad.to_bytes()).unwrap_err()
        };
        assert!(broken(&|f| f.splits[0].right = 0).contains("child out of range"));
        assert!(broken(&|f| f.splits[0].right = 5).contains("child out of range"));
        assert!(broken(&|f| f.splits[0].feature = 2).contains("feature 2 of 2"));
        assert!(broken(&|f| f.splits[5].right = 9).contains("leaf value 9"));
        assert!(broken(&|f| f.roots[1] = 6).contains("no nodes"));
        assert!(broken(&|f| f.roots[1] = 0).contains("no nodes"));
        assert!(broken(&|f| f.splits[0].threshold = f32::NAN).contains("no threshold"));
        assert!(broken(&|f| f.values[0] = f64::INFINITY).contains("not finite"));
    }

    #[test]
    fn cycles_in_trained_trees_are_refused() {
        let trees = SourceTrees {
            sizes: &[2],
            left: &[1, 0],
            right: &[1, 0],
            feature: &[0, 0],
            threshold: &[0.0, 0.0],
            value: &[0.0, 0.0],
        };
        assert!(Forest::from_trees(&trees, header()).is_err());
    }

    proptest! {
        #[test]
        fn rounding_down_keeps_every_comparison(threshold: f64, feature: f32, steps in -2i32..=2) {
            prop_assume!(!threshold.is_nan() && feature.is_finite());
            let near = (threshold as f32).to_bits().wrapping_add_signed(steps);
            for value in [feature, f32::from_bits(near), 0.0, -0.0] {
                if value.is_finite() {
                    prop_assert_eq!(
                        f64::from(value) <= threshold,
                        value <= floor_to_f32(threshold)
                    );
                }
            }
        }
    }
}
