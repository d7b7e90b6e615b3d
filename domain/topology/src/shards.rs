//! Shards as people write them: `0-24,30`.

use std::ops::RangeInclusive;

use crate::id::ShardId;
use crate::spec::SHARDS_MAX;

/// Reads `0-24,30` into ranges, in the order of the text. Empty text is no shard at all.
pub fn parse_shards(text: &str) -> Result<Vec<RangeInclusive<u16>>, String> {
    let number = |text: &str| -> Result<u16, String> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let number = if digits { text.parse().ok() } else { None };
        number.ok_or_else(|| format!("{text:?} is not a shard number (as in \"0-24,30\")"))
    };
    let mut ranges = Vec::new();
    let mut named = 0;
    if text.trim().is_empty() {
        return Ok(ranges);
    }
    for part in text.split(',') {
        let part = part.trim();
        let range = match part.split_once('-') {
            None => number(part).map(|n| n..=n)?,
            Some((first, last)) => number(first.trim())?..=number(last.trim())?,
        };
        if range.is_empty() {
            return Err(format!("{part:?} runs backwards"));
        }
        named += range.len();
        if named > usize::from(SHARDS_MAX) {
            return Err(format!(
                "{part:?} goes beyond {SHARDS_MAX} shards, the most there can be"
            ));
        }
        ranges.push(range);
    }
    Ok(ranges)
}

/// Writes ascending shards as `0-24,30`.
pub fn format_shards(shards: &[ShardId]) -> String {
    let mut runs: Vec<(u16, u16)> = Vec::new();
    for ShardId(shard) in shards {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*shard) => *last = *shard,
            _ => runs.push((*shard, *shard)),
        }
    }
    let runs: Vec<_> = runs
        .into_iter()
        .map(|(first, last)| {
            if first == last {
                first.to_string()
            } else {
                format!("{first}-{last}")
            }
        })
        .collect();
    runs.join(",")
}
