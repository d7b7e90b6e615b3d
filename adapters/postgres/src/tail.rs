//! A torn tail: the log ends in the first part of a record whose rest was never received.
//!
//! When its primary is lost, a standby can hold the beginning of a record that goes on in the next
//! segment. It has read all up to there, and asks whoever it follows for that next segment; a
//! successor whose log ends before it refuses ("ahead of the WAL flush position"), for as long as
//! nothing is written there, which may be for ever: its opening transaction may wait for this very
//! standby. Cut off at its beginning, the record is simply asked for again, with its segment.
//!
//! Nothing that was acknowledged is cut: what is acknowledged is flushed whole, and here a page of
//! the record is missing.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use atoll_topology::Lsn;

use crate::{Error, Layout};

const PAGE_BYTES: u64 = 8192;

/// Header of a page; the first of a segment has a longer one.
const PAGE_HEAD_BYTES: u64 = 24;
const SEGMENT_HEAD_BYTES: u64 = 40;

/// Header of a record: length, transaction, start of the record before it, and more.
const RECORD_HEAD_BYTES: u64 = 24;

/// PostgreSQL writes no longer one.
const RECORD_BYTES_MAX: u64 = 1 << 30;

/// The record before it began at most so far back; what a recycled segment still holds is older.
const BEFORE_BYTES_MAX: u64 = 1 << 24;

/// The file in which a log ends, and what follows it there.
struct Tail<'a> {
    layout: &'a Layout,
    timeline: u32,
    segment_bytes: u64,
    /// Where the next record begins.
    next: u64,
}

impl Tail<'_> {
    fn path(&self, at: u64) -> PathBuf {
        let (segment, per_log) = (at / self.segment_bytes, (1 << 32) / self.segment_bytes);
        let (log, segment) = (segment / per_log, segment % per_log);
        let name = format!("{:08X}{log:08X}{segment:08X}", self.timeline);
        self.layout.wal().join(name)
    }

    /// Reads at an LSN; none where there is no such file.
    fn read<const N: usize>(&self, at: u64) -> Result<Option<[u8; N]>, Error> {
        let path = self.path(at);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::file("open", &path)(error)),
        };
        let mut bytes = [0; N];
        match file.read_exact_at(&mut bytes, at % self.segment_bytes) {
            Ok(()) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(Error::file("read", &path)(error)),
        }
    }

    /// Whether this page is here, and is not what an older segment left.
    fn has_page(&self, at: u64) -> Result<bool, Error> {
        let address = self.read::<8>(at + 8)?.map(u64::from_le_bytes);
        Ok(address == Some(at))
    }

    /// Whether a record begins at `next` that needs a page of a later segment which is not here.
    fn is_torn(&self) -> Result<bool, Error> {
        let Some(length) = self.read::<4>(self.next)? else {
            return Ok(false);
        };
        let length = u64::from(u32::from_le_bytes(length));
        if !(RECORD_HEAD_BYTES..RECORD_BYTES_MAX).contains(&length) {
            return Ok(false);
        }
        let in_page = PAGE_BYTES - self.next % PAGE_BYTES;
        if in_page >= 16 {
            let before = self.read::<8>(self.next + 8)?.map(u64::from_le_bytes);
            let near = |before: u64| before < self.next && self.next - before < BEFORE_BYTES_MAX;
            if !before.is_some_and(near) {
                return Ok(false);
            }
        }
        let (mut left, mut page) = (length.saturating_sub(in_page), self.next + in_page);
        while left > 0 {
            if !self.has_page(page)? {
                return Ok(page / self.segment_bytes > self.next / self.segment_bytes);
            }
            let head = if page.is_multiple_of(self.segment_bytes) {
                SEGMENT_HEAD_BYTES
            } else {
                PAGE_HEAD_BYTES
            };
            left = left.saturating_sub(PAGE_BYTES - head);
            page += PAGE_BYTES;
        }
        Ok(false)
    }

    /// Zeros from `next` to the end of its segment, and no segment after it.
    fn cut(&self) -> Result<(), Error> {
        let last = self.path(self.next);
        for entry in fs::read_dir(self.layout.wal()).map_err(Error::file("list", &last))? {
            let path = entry.map_err(Error::file("list", &last))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let ours = name.len() == 24 && name.starts_with(&format!("{:08X}", self.timeline));
            if ours && path > last {
                fs::remove_file(&path).map_err(Error::file("remove", &path))?;
            }
        }
        let mut file = OpenOptions::new()
            .write(true)
            .open(&last)
            .map_err(Error::file("open", &last))?;
        let from = self.next % self.segment_bytes;
        let zeros = usize::try_from(self.segment_bytes - from).unwrap_or(0);
        file.write_all_at(&vec![0; zeros], from)
            .and_then(|()| file.flush())
            .and_then(|()| file.sync_all())
            .map_err(Error::file("cut", &last))
    }
}

/// `end`: all up to there was replayed, on `timeline`. None where no record can follow there.
fn tail(layout: &Layout, timeline: u32, end: Lsn) -> Result<Option<Tail<'_>>, Error> {
    let Ok(one) = fs::read_dir(layout.wal()).map(|mut entries| {
        entries.find_map(|entry| {
            let entry = entry.ok()?;
            (entry.file_name().len() == 24).then(|| entry.metadata().ok())?
        })
    }) else {
        return Ok(None);
    };
    let segment_bytes = one.map_or(0, |meta| meta.len());
    if !segment_bytes.is_power_of_two() || segment_bytes < PAGE_BYTES {
        return Ok(None);
    }
    // Between two segments there is nothing to tear.
    if end.0.is_multiple_of(segment_bytes) {
        return Ok(None);
    }
    let next = if end.0.is_multiple_of(PAGE_BYTES) {
        end.0 + PAGE_HEAD_BYTES
    } else {
        end.0
    };
    Ok(Some(Tail {
        layout,
        timeline,
        segment_bytes,
        next,
    }))
}

/// Whether the log, all of which was replayed up to `end` on `timeline`, has a torn tail.
pub fn has_torn_tail(layout: &Layout, timeline: u32, end: Lsn) -> Result<bool, Error> {
    tail(layout, timeline, end)?.map_or(Ok(false), |tail| tail.is_torn())
}

/// Cuts a torn tail off, if there still is one. PostgreSQL must not run.
pub fn cut_torn_tail(layout: &Layout, timeline: u32, end: Lsn) -> Result<bool, Error> {
    match tail(layout, timeline, end)? {
        Some(tail) if tail.is_torn()? => tail.cut().map(|()| true),
        _ => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 1 << 20;
    const END: u64 = 5 * SEGMENT - 100;

    /// Segment 4 of timeline 2 with a record of `length` bytes at `END`, whose predecessor began
    /// at `before`.
    fn log(length: u32, before: u64) -> (tempfile::TempDir, Layout) {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::prepare(root.path(), None).unwrap();
        fs::create_dir_all(layout.wal()).unwrap();
        let mut segment = vec![7; usize::try_from(SEGMENT).unwrap()];
        let at = usize::try_from(END % SEGMENT).unwrap();
        segment[at..at + 4].copy_from_slice(&length.to_le_bytes());
        segment[at + 8..at + 16].copy_from_slice(&before.to_le_bytes());
        fs::write(layout.wal().join("000000020000000000000004"), segment).unwrap();
        (root, layout)
    }

    fn next_segment(layout: &Layout, address: u64) {
        let mut segment = vec![0; usize::try_from(SEGMENT).unwrap()];
        segment[8..16].copy_from_slice(&address.to_le_bytes());
        fs::write(layout.wal().join("000000020000000000000005"), segment).unwrap();
    }

    #[test]
    fn a_record_whose_next_segment_is_missing_is_cut_off_at_its_beginning() {
        let (_root, layout) = log(500, END - 60);
        assert!(has_torn_tail(&layout, 2, Lsn(END)).unwrap());
        // What a recycled segment holds is not the rest of it.
        next_segment(&layout, 2 * SEGMENT);
        assert!(cut_torn_tail(&layout, 2, Lsn(END)).unwrap());
        assert!(!has_torn_tail(&layout, 2, Lsn(END)).unwrap());
        let left = fs::read(layout.wal().join("000000020000000000000004")).unwrap();
        let at = usize::try_from(END % SEGMENT).unwrap();
        assert!(left[..at].iter().all(|byte| *byte == 7));
        assert!(left[at..].iter().all(|byte| *byte == 0));
        assert!(
            !layout
                .wal()
                .join("000000020000000000000005")
                .try_exists()
                .unwrap()
        );
    }

    #[test]
    fn a_whole_record_is_not_torn_replayed_or_not() {
        let (_root, layout) = log(500, END - 60);
        next_segment(&layout, 5 * SEGMENT);
        assert!(!cut_torn_tail(&layout, 2, Lsn(END)).unwrap());
        // One that ends in its own segment neither, whatever follows.
        let (_root, layout) = log(90, END - 60);
        assert!(!cut_torn_tail(&layout, 2, Lsn(END)).unwrap());
    }

    #[test]
    fn what_a_recycled_segment_still_holds_is_no_record() {
        for (length, before) in [(0, END - 60), (7, END - 60), (500, END + 60)] {
            let (_root, layout) = log(length, before);
            assert!(
                !has_torn_tail(&layout, 2, Lsn(END)).unwrap(),
                "{length} {before}"
            );
        }
    }
}
