//! Timeline history files: those that PostgreSQL wrote, and our placeholders.
//!
//! A promotion takes the first timeline id that has no history file. With a placeholder for every
//! id up to the term's predecessor, the new timeline's id is the term. Two promotions from one
//! timeline would otherwise get the same id, and pg_rewind would then see no difference.
//!
//! PostgreSQL looks for a timeline by counting up until a file is missing: the newest one, when a
//! standby starts, and each one up to its upstream's, when a standby links. So below the newest
//! real timeline no id may be without a file: a log that goes on behind a gap is not read at all,
//! rows that were acknowledged included, and whoever asks for the gap's file is refused for ever.
//! Beyond it no placeholder may stay: nobody wrote that timeline.

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

/// The timelines that files of PostgreSQL tell of, with the ancestors that each one names.
pub fn read_timelines(layout: &Layout) -> Result<Timelines, Error> {
    let mut timelines = Timelines::new();
    for (id, path) in files(&layout.wal())? {
        let forks = forks(&read(&path)?);
        let children = forks.iter().skip(1).map(|fork| fork.parent).chain([id]);
        timelines.extend(children.zip(forks.iter().copied()));
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

/// A file's entries, oldest ancestor first: `parent <tab> switch point <tab> reason`. A placeholder,
/// or what a crash left of one, has none.
fn forks(text: &str) -> Vec<Fork> {
    let entry = |line: &str| {
        let mut words = line.split_whitespace();
        Some(Fork {
            parent: words.next()?.parse().ok()?,
            at: words.next()?.parse().ok()?,
        })
    };
    text.lines().filter_map(entry).collect()
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(Error::file("read", path))
}

/// Makes sure that every id from 2 to `term − 1` has a history file, so that a promotion now
/// gets the id `term`, and that standbys find every file that they ask for. The last thing before
/// a promotion.
pub fn placeholders(layout: &Layout, account: Option<Account>, term: u32) -> Result<(), Error> {
    let wal = layout.wal();
    let found = files(&wal)?;
    let present: Vec<u32> = found.iter().map(|(id, _)| *id).collect();
    let newest = match newest(found)? {
        Some((_, path)) => read(&path)?,
        None => String::new(),
    };
    for id in (2..term).filter(|id| !present.contains(id)) {
        let text = as_ancestor(&newest, id).unwrap_or_else(|| format!("{MARK}\n"));
        write(&wal, id, &text, account)?;
    }
    Ok(())
}

/// The newest timeline that somebody wrote.
fn newest(found: Vec<(u32, PathBuf)>) -> Result<Option<(u32, PathBuf)>, Error> {
    let mut newest = None;
    for (id, path) in found {
        if newest.as_ref().is_none_or(|(newest, _)| id > *newest)
            && !forks(&read(&path)?).is_empty()
        {
            newest = Some((id, path));
        }
    }
    Ok(newest)
}

/// The file of `ancestor`, as a descendant's file tells it: all entries before the one that leaves it.
/// A clone brings its own timeline's file only.
fn as_ancestor(descendant: &str, ancestor: u32) -> Option<String> {
    let lines: Vec<&str> = descendant.lines().collect();
    let leaves = |line: &&str| {
        forks(line)
            .first()
            .is_some_and(|fork| fork.parent == ancestor)
    };
    let before = lines.iter().position(leaves)?;
    let text: String = lines[..before]
        .iter()
        .map(|line| format!("{line}\n"))
        .collect();
    (!forks(&text).is_empty()).then_some(text)
}

/// A crash leaves the whole file or none: PostgreSQL, too, would count an empty one.
fn write(wal: &Path, id: u32, text: &str, account: Option<Account>) -> Result<(), Error> {
    let whole = path(wal, id);
    let part = whole.with_extension("placeholder");
    let mut file = fs::File::create(&part).map_err(Error::file("create", &part))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(Error::file("write", &part))?;
    if let Some(account) = account {
        account.give(&part)?;
    }
    fs::rename(&part, &whole).map_err(Error::file("rename", &part))
}

/// Brings the files in order before the member starts as a standby: none that says nothing beyond the
/// newest real timeline, for a standby would take it for one that somebody wrote; no gap below it.
pub fn settle_histories(layout: &Layout, account: Option<Account>) -> Result<(), Error> {
    let wal = layout.wal();
    let newest = newest(files(&wal)?)?.map_or(1, |(id, _)| id);
    for (_, path) in files(&wal)?.into_iter().filter(|(id, _)| *id > newest) {
        fs::remove_file(&path).map_err(Error::file("remove", &path))?;
    }
    placeholders(layout, account, newest)
}

/// Deletes what PostgreSQL fetched about timelines beyond `timeline` that a log which ends at
/// `end` has not reached.
pub fn forget_unreached(layout: &Layout, timeline: u32, end: Lsn) -> Result<(), Error> {
    for (id, path) in files(&layout.wal())? {
        let unreached = |fork: &Fork| fork.at >= end;
        if id > timeline && forks(&read(&path)?).last().is_some_and(unreached) {
            fs::remove_file(&path).map_err(Error::file("remove", &path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_names_all_ancestors_and_a_placeholder_none() {
        let text = "1\t0/15D5F78\tno recovery target specified\n\n2\t0/2000060\tno recovery\n";
        let forks = forks(text).into_iter().map(|fork| (fork.parent, fork.at));
        assert!(forks.eq([(1, Lsn(0x015D_5F78)), (2, Lsn(0x0200_0060))]));
        assert_eq!(super::forks(MARK), []);
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

    struct Wal {
        layout: Layout,
        _root: tempfile::TempDir,
    }

    impl Wal {
        fn with(files: &[(u32, &str)]) -> Self {
            let root = tempfile::tempdir().unwrap();
            let layout = Layout::prepare(root.path(), None).unwrap();
            fs::create_dir_all(layout.wal()).unwrap();
            for (id, text) in files {
                fs::write(path(&layout.wal(), *id), text).unwrap();
            }
            Self {
                layout,
                _root: root,
            }
        }

        fn ids(&self) -> Vec<u32> {
            let mut ids: Vec<u32> = files(&self.layout.wal())
                .unwrap()
                .into_iter()
                .map(|f| f.0)
                .collect();
            ids.sort_unstable();
            ids
        }
    }

    #[test]
    fn before_a_promotion_no_id_is_free_and_beyond_the_newest_real_one_none_stays() {
        let wal = Wal::with(&[(3, "1\t0/30\tx\n")]);
        placeholders(&wal.layout, None, 6).unwrap();
        assert_eq!(wal.ids(), [2, 3, 4, 5]);
        let real: Vec<u32> = read_timelines(&wal.layout).unwrap().into_keys().collect();
        assert_eq!(real, [3]);
        // What a crash left of a file is not one either.
        fs::write(path(&wal.layout.wal(), 6), "").unwrap();
        settle_histories(&wal.layout, None).unwrap();
        assert_eq!(wal.ids(), [2, 3]);
    }

    #[test]
    fn a_clone_has_no_gap_below_its_timeline_and_its_ancestors_are_told_as_they_were() {
        let seven = "1\t0/30\tx\n\n4\t0/50\tx\n\n5\t0/60\tx\n";
        let wal = Wal::with(&[(7, seven)]);
        settle_histories(&wal.layout, None).unwrap();
        assert_eq!(wal.ids(), [2, 3, 4, 5, 6, 7]);
        let text = |id| fs::read_to_string(path(&wal.layout.wal(), id)).unwrap();
        assert_eq!(forks(&text(5)), forks(seven)[..2]);
        assert_eq!(forks(&text(4)), forks(seven)[..1]);
        assert_eq!(forks(&text(6)), []);
        let real: Vec<u32> = read_timelines(&wal.layout).unwrap().into_keys().collect();
        assert_eq!(real, [4, 5, 7]);
    }
}
