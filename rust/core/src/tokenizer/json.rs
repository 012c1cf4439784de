//! HF's `tokenizer.json`: what of it we take, and what we refuse because ids would differ.

use std::collections::BTreeMap;

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Value, json};

use super::{Added, MAX_VOCAB, Vocabulary};

/// No id reaches this; a damaged file cannot ask for more memory than that.
const MAX_ID: u32 = MAX_VOCAB as u32;

#[derive(Deserialize)]
struct File {
    model: Model,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(default)]
    truncation: Value,
    #[serde(default)]
    padding: Value,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: Value,
    #[serde(default)]
    merges: Vec<Merge>,
    #[serde(default)]
    dropout: Option<f64>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Line(String),
}

#[derive(Deserialize, Serialize)]
#[expect(clippy::struct_excessive_bools)] // the file's form, not ours
struct AddedToken {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

/// Reads the text of a `tokenizer.json`; the error names what stands in the way.
pub fn read(text: &str) -> Result<Vocabulary, String> {
    let file: Value = serde_json::from_str(text).map_err(|e| format!("not JSON: {e}"))?;
    let kind = file["model"]["type"].as_str().unwrap_or("BPE");
    if kind != "BPE" {
        return Err(format!("its model is {kind}; only byte-level BPE is supported"));
    }
    let file: File =
        serde_json::from_value(file).map_err(|e| format!("not a tokenizer.json: {e}"))?;
    check_pipeline(&file)?;
    let model = file.model;
    let vocab: BTreeMap<String, u32> = serde_json::from_value(model.vocab)
        .map_err(|e| format!("`model.vocab` does not map tokens to ids: {e}"))?;
    let mut tokens: Vec<Option<String>> = Vec::new();
    for (token, &id) in &vocab {
        place(&mut tokens, id, token)?;
    }
    let id_of = |token: &str| {
        vocab.get(token).copied().ok_or_else(|| format!("a merge names `{token}`, no token"))
    };
    let mut merges = Vec::with_capacity(model.merges.len());
    for merge in &model.merges {
        let (left, right) = match merge {
            Merge::Pair(left, right) => (left.as_str(), right.as_str()),
            Merge::Line(line) => line
                .split_once(' ')
                .filter(|(_, right)| !right.contains(' '))
                .ok_or_else(|| format!("merge `{line}` is not two tokens with a space between"))?,
        };
        merges.push((id_of(left)?, id_of(right)?));
    }
    let mut added: Vec<Added> = Vec::with_capacity(file.added_tokens.len());
    for token in file.added_tokens {
        for (set, flag) in
            [(token.single_word, "single_word"), (token.lstrip, "lstrip"), (token.rstrip, "rstrip")]
        {
            if set {
                return Err(format!(
                    "added token `{}` has {flag} set, which is not supported",
                    token.content
                ));
            }
        }
        if token.content.is_empty() {
            return Err(format!("added token {} is empty", token.id));
        }
        // HF ignores the stored id and counts on from the vocabulary.
        let after = added.iter().map(|token| token.id + 1).max().unwrap_or(0);
        let id = vocab.get(&token.content).copied().unwrap_or(after.max(vocab.len() as u32));
        if id != token.id {
            return Err(format!(
                "added token `{}` has id {}, but HF would give it {id}",
                token.content, token.id
            ));
        }
        if added.iter().any(|known| known.content == token.content) {
            return Err(format!("added token `{}` stands twice", token.content));
        }
        added.push(Added {
            content: token.content,
            id,
            special: token.special,
            normalized: token.normalized,
        });
    }
    Ok(Vocabulary { tokens, merges, added })
}

fn place(tokens: &mut Vec<Option<String>>, id: u32, token: &str) -> Result<(), String> {
    if id >= MAX_ID {
        return Err(format!("token `{token}` has id {id}, beyond {MAX_ID}"));
    }
    if tokens.len() <= id as usize {
        tokens.resize(id as usize + 1, None);
    }
    match tokens[id as usize].replace(token.to_owned()) {
        None => Ok(()),
        Some(other) => Err(format!("tokens `{other}` and `{token}` share the id {id}")),
    }
}

fn check_pipeline(file: &File) -> Result<(), String> {
    let name = |part: &Value| {
        part.as_object()
            .map_or("none", |p| p.get("type").and_then(Value::as_str).unwrap_or("?"))
            .to_owned()
    };
    for (part, what) in [
        (&file.normalizer, "normalizer"),
        (&file.truncation, "truncation"),
        (&file.padding, "padding"),
    ] {
        if !part.is_null() {
            return Err(format!(
                "it has a {what} ({}); only tokenizers without are supported",
                name(part)
            ));
        }
    }
    let split = &file.pre_tokenizer;
    if split["type"] != "ByteLevel" {
        return Err(format!(
            "its pre-tokenizer is {}; only GPT-2's ByteLevel is supported",
            name(split)
        ));
    }
    if split["add_prefix_space"] != false {
        return Err("its pre-tokenizer has add_prefix_space set, which is not supported".to_owned());
    }
    if split["use_regex"] == false {
        return Err(
            "its pre-tokenizer has use_regex = false; only GPT-2's pattern is supported".to_owned()
        );
    }
    if file.decoder["type"] != "ByteLevel" {
        return Err(format!("its decoder is {}; only ByteLevel is supported", name(&file.decoder)));
    }
    if !file.post_processor.is_null() && file.post_processor["type"] != "ByteLevel" {
        return Err(format!(
            "its post-processor is {}, which may add tokens; only ByteLevel or none is supported",
            name(&file.post_processor)
        ));
    }
    let model = &file.model;
    let affix = |affix: &Option<String>| affix.as_deref().is_some_and(|text| !text.is_empty());
    for (set, what) in [
        (model.dropout.is_some_and(|rate| rate > 0.0), "dropout"),
        (affix(&model.continuing_subword_prefix), "continuing_subword_prefix"),
        (affix(&model.end_of_word_suffix), "end_of_word_suffix"),
        (model.byte_fallback, "byte_fallback"),
        (model.ignore_merges, "ignore_merges"),
    ] {
        if set {
            return Err(format!("its model has {what} set, which is not supported"));
        }
    }
    debug_assert!(model.kind.as_deref().is_none_or(|kind| kind == "BPE"));
    Ok(())
}

/// Tokens in order of id, where a JSON map of the usual kind would sort them by name.
struct ById<'a>(&'a [Option<String>]);

impl Serialize for ById<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (id, token) in self.0.iter().enumerate() {
            if let Some(token) = token {
                map.serialize_entry(token, &id)?;
            }
        }
        map.end()
    }
}

#[derive(Serialize)]
struct ModelOut<'a> {
    r#type: &'static str,
    dropout: Option<f64>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: ById<'a>,
    merges: Vec<[&'a str; 2]>,
}

#[derive(Serialize)]
struct FileOut<'a> {
    version: &'static str,
    truncation: Value,
    padding: Value,
    added_tokens: Vec<AddedToken>,
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
    model: ModelOut<'a>,
}

/// The text of a `tokenizer.json`; the same vocabulary gives the same text.
pub fn write(vocabulary: &Vocabulary) -> String {
    let token = |id: u32| vocabulary.tokens[id as usize].as_deref().unwrap_or_default();
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    let file = FileOut {
        version: "1.0",
        truncation: Value::Null,
        padding: Value::Null,
        added_tokens: vocabulary
            .added
            .iter()
            .map(|added| AddedToken {
                id: added.id,
                content: added.content.clone(),
                single_word: false,
                lstrip: false,
                rstrip: false,
                normalized: added.normalized,
                special: added.special,
            })
            .collect(),
        normalizer: Value::Null,
        pre_tokenizer: byte_level.clone(),
        post_processor: byte_level.clone(),
        decoder: byte_level,
        model: ModelOut {
            r#type: "BPE",
            dropout: None,
            unk_token: None,
            continuing_subword_prefix: None,
            end_of_word_suffix: None,
            fuse_unk: false,
            byte_fallback: false,
            ignore_merges: false,
            vocab: ById(&vocabulary.tokens),
            merges: vocabulary
                .merges
                .iter()
                .map(|&(left, right)| [token(left), token(right)])
                .collect(),
        },
    };
    serde_json::to_string_pretty(&file).expect("strings and numbers have a JSON form")
}
