//! The pages of docs/errors, made from the table of codes so that neither can be without the other.

use std::fmt::Write as _;

use crate::code::{Area, Code};

/// The page of a code, as Markdown.
pub fn page(code: Code) -> String {
    let who = match code.area() {
        Area::Topology => "the checks of a topology file",
        Area::Control => "control's API",
        Area::CommandLine => "the command line",
        Area::Gateway => "the gateway",
    };
    let mut text = format!("# {code}: {}\n\n{}\n\n", code.title(), code.meaning());
    // Writing to a String cannot fail.
    writeln!(text, "**What to do.** {}\n", code.remedy()).ok();
    writeln!(text, "| | |\n|---|---|\n| said by | {who} |").ok();
    if code.status() != 0 {
        writeln!(text, "| HTTP status | {} |", code.status()).ok();
    }
    match code.area() {
        Area::Gateway => {
            let outcome = match code.status() {
                502 | 504 => "`unknown`: it may have been executed",
                503 => "`not-sent`: it was not executed and may be repeated",
                _ => "none: the request itself is at fault",
            };
            writeln!(text, "| `atoll-outcome` | {outcome} |").ok();
        }
        _ => {
            writeln!(text, "| exit code of `atoll` | {} |", code.exit() as u8).ok();
        }
    }
    text
}

/// The list of all pages.
pub fn index() -> String {
    let mut text = String::from(
        "# Errors\n\nEvery error of Atoll has a stable code; a code never changes its meaning. \
         These pages are made from the table in `wire/api/src/code.rs`.\n\n| code | what |\n|---|---|\n",
    );
    for code in Code::ALL {
        writeln!(text, "| [{code}]({code}.md) | {} |", code.title()).ok();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    fn pages() -> Vec<(PathBuf, String)> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors");
        let page_of = |code: &Code| (folder.join(format!("{code}.md")), page(*code));
        let mut all: Vec<_> = Code::ALL.iter().map(page_of).collect();
        all.push((folder.join("README.md"), index()));
        all
    }

    #[test]
    fn every_code_has_its_page() {
        for (path, text) in pages() {
            let found = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(
                found == text,
                "{} is not what the table says; cargo test -p atoll-api -- --ignored write_pages",
                path.display()
            );
        }
    }

    #[test]
    #[ignore = "writes docs/errors; run it after a change of the table"]
    fn write_pages() {
        for (path, text) in pages() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
    }
}
