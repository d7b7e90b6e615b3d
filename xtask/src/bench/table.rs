//! Percentiles over the rounds of a bench, as text.

/// The smallest, the median, the 90th percentile and the largest; nothing of nothing.
pub(crate) fn spread(values: &[f64]) -> String {
    let mut sorted: Vec<f64> = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |share: usize| sorted.get((sorted.len() * share).div_ceil(100).max(1) - 1);
    match (sorted.first(), at(50), at(90), sorted.last()) {
        (Some(least), Some(half), Some(most), Some(last)) => {
            format!("{least:.0} / {half:.0} / {most:.0} / {last:.0}")
        }
        _ => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn a_spread_names_the_least_the_median_the_ninetieth_and_the_last() {
        assert_eq!(spread(&[]), "-");
        assert_eq!(spread(&[7.0]), "7 / 7 / 7 / 7");
        let ten: Vec<f64> = (1..=10).rev().map(f64::from).collect();
        assert_eq!(spread(&ten), "1 / 5 / 9 / 10");
    }
}
