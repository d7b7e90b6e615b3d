//! `bank serve`, `bank load`, `bank analyse`, `bank page`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use bank::{load, page, report, serve, talk};
use clap::Parser;

/// A small bank on Atoll.
#[derive(Parser)]
#[command(name = "bank", version)]
enum Command {
    /// Serve one cell's instance of the bank
    Serve(serve::Options),
    /// Be many users, and check afterwards that nothing acknowledged was lost or doubled
    Load(load::Options),
    /// Draw a report as one self-contained page
    Page {
        /// The report, as `bank load` wrote it
        report: PathBuf,
        /// Where to write the page
        #[arg(short, long)]
        output: PathBuf,
    },
    /// Print latency and outcomes of a window of a run
    Analyse {
        /// The report, as `bank load` wrote it
        report: PathBuf,
        /// Begin of the window, in ms since 1970
        #[arg(long)]
        from: u64,
        /// End of the window, in ms since 1970
        #[arg(long)]
        to: u64,
        /// Only these shards; all when absent
        #[arg(long, value_delimiter = ',')]
        shards: Vec<u16>,
    },
}

fn main() -> ExitCode {
    let done = match Command::parse() {
        Command::Serve(options) => run(serve::run(options)).map(|()| ExitCode::SUCCESS),
        Command::Load(options) => run(load::run(options)).map(|report| {
            talk::data(&report.summary());
            ExitCode::from(u8::from(!report.sound()))
        }),
        Command::Page { report, output } => draw(&report, &output).map(|()| ExitCode::SUCCESS),
        Command::Analyse {
            report,
            from,
            to,
            shards,
        } => analyse(&report, from, to, &shards).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        talk::say(&format!("bank: {error:#}"));
        ExitCode::FAILURE
    })
}

fn run<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?
        .block_on(work)
}

fn draw(report: &std::path::Path, output: &std::path::Path) -> anyhow::Result<()> {
    let text =
        std::fs::read_to_string(report).with_context(|| format!("reading {}", report.display()))?;
    let value: serde_json::Value = serde_json::from_str(&text)?;
    std::fs::write(output, page::render(&value))
        .with_context(|| format!("writing {}", output.display()))
}

fn analyse(report: &std::path::Path, from: u64, to: u64, shards: &[u16]) -> anyhow::Result<()> {
    let run = report::Run::read(report)?;
    let window = bank::analyse::Window {
        from_unix_ms: from,
        to_unix_ms: to,
        shards: (!shards.is_empty()).then(|| shards.iter().copied().collect()),
    };
    let found = bank::analyse::figures(&run, &window);
    talk::data(&serde_json::to_string_pretty(&found)?);
    Ok(())
}
