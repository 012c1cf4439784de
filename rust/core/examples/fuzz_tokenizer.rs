//! The fuzz target's check on made-up texts, with any compiler:
//!
//! `cargo run --release -p hornbook-core --example fuzz_tokenizer -- 10000000 [seed]`

#[path = "../../../fuzz/check.rs"]
mod check;

/// Xorshift: the same texts for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }

    fn of<'a>(&mut self, items: &[&'a str]) -> &'a str {
        items[self.below(items.len() as u64) as usize]
    }

    fn word(&mut self, text: &mut String) {
        const WORDS: [&str; 14] = [
            "def",
            "self",
            "return",
            "Import",
            "x",
            "'s",
            "'re",
            "'ll",
            "''",
            "<|endoftext|>",
            "<|endof",
            "__init__",
            "été",
            "漢字",
        ];
        const SIGNS: [&str; 16] = [
            ".", "(", "):", "=", "'", "\"", "#", "<", "|>", "\u{85}", "\u{a0}", "\u{2028}",
            "\u{3000}", "\u{1c}", "\0", "\r\n",
        ];
        match self.below(9) {
            0 | 1 => text.push_str(self.of(&WORDS)),
            2 => text.push_str(self.of(&SIGNS)),
            3 | 4 => text.push(' '),
            5 => {
                let unit = self.of(&[" ", " ", "\t", "\n", "\u{3000}", "-", "a", " \t"]);
                let bound = if self.below(4) == 0 { 140 } else { 12 };
                let count = self.below(bound);
                (0..count).for_each(|_| text.push_str(unit));
            }
            6 => {
                let count = self.below(20);
                text.extend((0..count).map(|_| char::from(self.below(128) as u8)));
            }
            7 => {
                let count = self.below(9);
                text.extend((0..count).map(|_| (b'a' + self.below(26) as u8) as char));
            }
            _ => {
                let plane = [0x800, 0x3000, 0x1_0000, 0x11_0000][self.below(4) as usize];
                let count = self.below(6);
                text.extend((0..count).filter_map(|_| char::from_u32(self.below(plane) as u32)));
            }
        }
    }
}

fn main() {
    let number = |at: usize, default: u64| {
        std::env::args().nth(at).map_or(default, |text| text.parse().expect("a whole number"))
    };
    let (texts, seed) = (number(1, 100_000), number(2, 1));
    let mut random = Random(seed.max(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let mut text = String::new();
    for done in 1..=texts {
        text.clear();
        for _ in 0..random.below(14) {
            random.word(&mut text);
        }
        check::tokenizer(&text);
        if done % 1_000_000 == 0 {
            println!("{done} texts, no difference");
        }
    }
    println!("{texts} texts, no difference");
}
