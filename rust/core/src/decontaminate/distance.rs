//! Edit distance with a limit: Levenshtein over a band of the table, given up as soon as no path
//! within the limit is left. Time O(limit * length), memory one row.

/// The Levenshtein distance (insert, delete, replace: 1 each) if it is at most `limit`.
pub fn distance_within(a: &[u16], b: &[u16], limit: usize) -> Option<usize> {
    let (a, b) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    // A common start or end costs nothing and changes nothing.
    let start = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    let (a, b) = (&a[start..], &b[start..]);
    let end = a.iter().rev().zip(b.iter().rev()).take_while(|(x, y)| x == y).count();
    let (a, b) = (&a[..a.len() - end], &b[..b.len() - end]);
    if b.len() - a.len() > limit {
        return None;
    }
    let far = limit.saturating_add(1);
    // row[j]: the distance of a[..i] to b[..j], cut off at `far`; outside the band it is `far`.
    let mut row: Vec<usize> = (0..=b.len()).map(|j| j.min(far)).collect();
    for (i, symbol) in (1usize..).zip(a) {
        let low = i.saturating_sub(limit).max(1);
        let high = i.saturating_add(limit).min(b.len());
        let mut diagonal = row[low - 1];
        row[low - 1] = if low == 1 { i.min(far) } else { far };
        let mut least = row[low - 1];
        for j in low..=high {
            let replaced = diagonal + usize::from(*symbol != b[j - 1]);
            diagonal = row[j];
            row[j] = replaced.min(row[j] + 1).min(row[j - 1] + 1).min(far);
            least = least.min(row[j]);
        }
        if least == far {
            return None;
        }
    }
    Some(row[b.len()]).filter(|distance| *distance <= limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn plain(a: &[u16], b: &[u16]) -> usize {
        let mut table = vec![vec![0; b.len() + 1]; a.len() + 1];
        for i in 0..=a.len() {
            for j in 0..=b.len() {
                table[i][j] = if i == 0 || j == 0 {
                    i + j
                } else {
                    (table[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]))
                        .min(table[i - 1][j] + 1)
                        .min(table[i][j - 1] + 1)
                };
            }
        }
        table[a.len()][b.len()]
    }

    #[test]
    fn small_cases() {
        assert_eq!(distance_within(&[], &[], 0), Some(0));
        assert_eq!(distance_within(&[1, 2, 3], &[], 2), None);
        assert_eq!(distance_within(&[1, 2, 3], &[], 3), Some(3));
        assert_eq!(distance_within(&[1, 2, 3], &[2, 3, 4], usize::MAX), Some(2));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn agrees_with_the_whole_table(
            a in vec(0u16..4, 0..24), b in vec(0u16..4, 0..24), limit in 0usize..30
        ) {
            let truth = plain(&a, &b);
            prop_assert_eq!(distance_within(&a, &b, limit), Some(truth).filter(|d| *d <= limit));
        }
    }
}
