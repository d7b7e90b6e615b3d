//! Timeline history files: those that PostgreSQL wrote, and our placeholders.
//!
//! A promotion takes the first timeline id that has no history file. With a placeholder for every
//! id up to the term's predecessor, the new timeline's id is the term. Two promotions from one
//! timeline would otherwise get the same id, and pg_rewind would then see no difference.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use atoll_topology::Lsn;

use crate::{Account, Error, Layout};

/// First line of a file that we wrote; PostgreSQL ignores comments.
const MARK: &str = "# atoll: placeholder, this timeline was never written";

/// Where a timeline left its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fork {
    /// The parent.
    pub parent: u32,
    /// The end of the parent's part.
    pub at: Lsn,
}

/// The real timelines that a member knows, by id.
pub type Timelines = BTreeMap<u32, Fork>;

fn path(wal: &Path, timeline: u32) -> PathBuf {
    wal.join(format!("{timeline:08X}.history"))
}

fn files(wal: &Path) -> Result<Vec<(u32, PathBuf)>, Error> {
    let mut found = Vec::new();
    for entry in fs::read_dir(wal).map_err(Error::file("list", wal))? {
        let entry = entry.map_err(Error::file("list", wal))?;
        let name = entry.file_name();
        let id = name
            .to_str()
            .and_then(|name| name.strip_suffix(".history"))
            .filter(|stem| stem.len() == 8)
            .and_then(|stem| u32::from_str_radix(stem, 16).ok());
        if let Some(id) = id {
            found.push((id, entry.path()));
        }
    }
    Ok(found)
}

/// The history files that PostgreSQL wrote or fetched, placeholders apart.
pub fn read_timelines(layout: &Layout) -> Result<Timelines, Error> {
    let mut timelines = Timelines::new();
    for (id, path) in files(&layout.wal())? {
        let text = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
        if let Some(fork) = last_fork(&text) {
            timelines.insert(id, fork);
        }
    }
    Ok(timelines)
}

/// Where a log on timeline `on` left the timeline `from`, be it promotions ago, as far back as the
/// files tell; none for a timeline that has no file.
pub fn left_at(timelines: &Timelines, from: u32, on: u32) -> Option<Lsn> {
    let mut left = timelines.get(&on)?;
    // Ids ascend from parent to child, so this ends.
    while left.parent > from
        && let Some(parent) = timelines.get(&left.parent)
    {
        left = parent;
    }
    Some(left.at)
}

/// The last entry: `parent <tab> switch point <tab> reason`.
fn last_fork(text: &str) -> Option<Fork> {
    let line = text
        .lines()
        .rfind(|line| !line.starts_with('#') && !line.trim().is_empty())?;
    let mut words = line.split_whitespace();
    Some(Fork {
        parent: words.next()?.parse().ok()?,
        at: words.next()?.parse().ok()?,
    })
}

/// Makes sure that every id from 2 to `term − 1` has a history file, so that a promotion now
/// gets the id `term`, and that standbys find every file that they ask for. The last thing before
/// a promotion.
pub fn placeholders(layout: &Layout, account: Option<Account>, term: u32) -> Result<(), Error> {
    let wal = layout.wal();
    let present: Vec<u32> = files(&wal)?.into_iter().map(|(id, _)| id).collect();
    for id in (2..term).filter(|id| !present.contains(id)) {
        let path = path(&wal, id);
        let mut file = fs::File::create(&path).map_err(Error::file("create", &path))?;
        writeln!(file, "{MARK}").map_err(Error::file("write", &path))?;
        if let Some(account) = account {
            account.give(&path)?;
        }
    }
    Ok(())
}

/// Deletes our placeholders, before the member starts as a standby: a standby that looks for the
/// newest timeline must not find one that nobody wrote.
pub fn forget_placeholders(layout: &Layout) -> Result<(), Error> {
    for (_, path) in files(&layout.wal())? {
        let text = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
        if text.starts_with(MARK) {
            fs::remove_file(&path).map_err(Error::file("remove", &path))?;
        }
    }
    Ok(())
}

/// Deletes what PostgreSQL fetched about timelines beyond `timeline` that a log which ends at
/// `end` has not reached.
pub fn forget_unreached(layout: &Layout, timeline: u32, end: Lsn) -> Result<(), Error> {
    for (id, path) in files(&layout.wal())? {
        let text = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
        if id > timeline && last_fork(&text).is_some_and(|fork| fork.at > end) {
            fs::remove_file(&path).map_err(Error::file("remove", &path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fork_is_the_last_entry_and_a_placeholder_has_none() {
        let text = "1\t0/15D5F78\tno recovery target specified\n\n2\t0/2000060\tno recovery\n";
        let fork = last_fork(text).unwrap();
        assert_eq!((fork.parent, fork.at), (2, Lsn(0x0200_0060)));
        assert_eq!(last_fork(MARK), None);
    }

    #[test]
    fn where_a_timeline_was_left_is_found_also_behind_a_promotion_without_a_row() {
        let fork = |parent, at| Fork {
            parent,
            at: Lsn(at),
        };
        let timelines = Timelines::from([(2, fork(1, 10)), (3, fork(2, 55)), (5, fork(3, 60))]);
        assert_eq!(left_at(&timelines, 3, 5), Some(Lsn(60)));
        assert_eq!(left_at(&timelines, 2, 5), Some(Lsn(55)));
        assert_eq!(left_at(&timelines, 1, 5), Some(Lsn(10)));
        assert_eq!(left_at(&timelines, 2, 4), None);
    }

    #[test]
    fn placeholders_fill_the_gap_and_leave_real_files() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::prepare(root.path(), None).unwrap();
        fs::create_dir_all(layout.wal()).unwrap();
        fs::write(path(&layout.wal(), 3), "2\t0/30\tx\n").unwrap();
        placeholders(&layout, None, 6).unwrap();
        let mut ids: Vec<u32> = files(&layout.wal())
            .unwrap()
            .into_iter()
            .map(|f| f.0)
            .collect();
        ids.sort_unstable();
        assert_eq!(ids, [2, 3, 4, 5]);
        assert_eq!(
            read_timelines(&layout)
                .unwrap()
                .into_keys()
                .collect::<Vec<_>>(),
            [3]
        );
        forget_placeholders(&layout).unwrap();
        assert_eq!(files(&layout.wal()).unwrap().len(), 1);
    }
}
