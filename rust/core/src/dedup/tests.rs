use super::*;
use std::path::PathBuf;

fn corpus(folder: &Path, texts: &[&str]) -> Corpus {
    let path: PathBuf = folder.join("in.jsonl");
    let lines: String =
        texts.iter().map(|text| serde_json::json!({"text": text}).to_string() + "\n").collect();
    std::fs::write(&path, lines).unwrap();
    Corpus::open(&[path], &[]).unwrap()
}

fn near(keep: Keep) -> Options {
    Options {
        near: Some(Near::Bands { bands: 32, rows: 2, seed: 0 }),
        threshold: 0.6,
        ngram: 2,
        keep,
        normalize: false,
        source: None,
        components: false,
    }
}

fn dedup(corpus: &Corpus, out: &Path, options: &Options) -> Summary {
    let job = Job {
        corpus,
        inputs: &["in".to_owned()],
        out,
        against: &[],
        index: None,
        memory: None,
        progress: &|_, _, _| Ok(()),
    };
    run(&job, options).unwrap()
}

#[test]
fn keeps_the_longest_or_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let texts =
        ["a b c d e f g", "a b c d e f g h", "a b c d e f g", "other words here now", "a b"];
    let corpus = corpus(folder.path(), &texts);
    let longest = dedup(&corpus, &folder.path().join("longest"), &near(Keep::Longest));
    assert_eq!((longest.rows, longest.exact, longest.near, longest.short), (5, 1, 1, 0));
    let first = dedup(&corpus, &folder.path().join("first"), &near(Keep::First));
    assert_eq!((first.exact, first.near), (1, 1));
    let evidence = |name: &str| {
        let path = folder.path().join(name).join("evidence/removed.json");
        let text = std::fs::read_to_string(path).unwrap();
        let rows = text.lines().map(|line| serde_json::from_str(line).unwrap());
        rows.collect::<Vec<serde_json::Value>>()
    };
    // The copy of a removed document names the kept one, and the similarity to it.
    let kept: Vec<u64> =
        evidence("longest").iter().map(|row| row["kept_row"].as_u64().unwrap()).collect();
    assert_eq!(kept, [1, 1]);
    assert!((evidence("longest")[1]["jaccard"].as_f64().unwrap() - 6.0 / 7.0).abs() < 1e-12);
    assert_eq!(evidence("first")[0]["removed_row"], 1);
    assert_eq!(evidence("first")[1]["rule"], "exact");
}

#[test]
fn exact_looks_at_whole_texts_only() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = corpus(folder.path(), &["a b c", "a b c ", "a b c", ""]);
    let summary =
        dedup(&corpus, &folder.path().join("out"), &Options { near: None, ..near(Keep::First) });
    assert_eq!((summary.rows, summary.exact, summary.near, summary.compared), (4, 1, 0, 0));
    assert_eq!(summary.parts.iter().map(|part| part.rows).sum::<u64>(), 3);
}
