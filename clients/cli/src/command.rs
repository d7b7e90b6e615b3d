//! The commands, as people type them.

use std::path::PathBuf;

use atoll_api::{AutomaticVerb, Control, Exit, Kind};
use atoll_runtime::Runtime;
use atoll_topology::{CellId, RegionId, UserId};
use clap::{Args, Subcommand};

use crate::client::Client;
use crate::{Failure, Format, Screen, automatic, explain, get, proof, schema, status, switch};

/// Which server to ask, and how to print.
#[derive(Debug, Clone, Default, Args)]
pub struct Common {
    /// Addresses of control, tried in turn for two seconds each
    #[arg(
        long,
        env = "ATOLL_SERVER",
        value_name = "IP:PORT",
        value_delimiter = ',',
        hide_env_values = true,
        help_heading = "Server"
    )]
    pub(crate) server: Vec<String>,
    /// Directory of a local world, whose control is asked
    #[arg(long, value_name = "DIR", help_heading = "Server")]
    pub(crate) world: Option<PathBuf>,
    /// How to print
    #[arg(
        short,
        long,
        value_enum,
        default_value_t,
        value_name = "FORMAT",
        help_heading = "Output"
    )]
    pub(crate) output: Format,
}

/// The commands that ask control.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Show what is open, who leads, what lags, and what a person should know
    #[command(
        after_help = "Exit code 10: it answers, and something needs a person.\n\n\
        Examples:\n  atoll status\n  atoll status -o json"
    )]
    Status {
        /// Which server, and how to print
        #[command(flatten)]
        common: Common,
    },
    /// Show resources
    #[command(
        after_help = "Kinds: regions zones clusters cells datagroups shardmaps routes plans executions\n\n\
        Examples:\n  atoll get cells\n  atoll get datagroup g1 -o yaml\n  atoll get executions -w"
    )]
    Get {
        /// Which kind
        #[arg(value_name = "KIND", value_parser = |text: &str| text.parse::<Kind>())]
        kind: Kind,
        /// Which one; all without it
        name: Option<String>,
        /// Go on, and print every change
        #[arg(short, long)]
        watch: bool,
        /// Which server, and how to print
        #[command(flatten)]
        common: Common,
    },
    /// Say where something is, and why
    #[command(subcommand)]
    Explain(Explain),
    /// Find shards
    #[command(subcommand)]
    Shard(Shard),
    /// Move ownership: plan it, read it, run exactly that
    #[command(subcommand)]
    Switch(Switch),
    /// Change the tables of all shards
    #[command(subcommand)]
    Schema(Schema),
    /// Verify the proof of a switch, asking nobody
    #[command(
        after_help = "Exit code 1: it does not hold, and the message says which section was changed, \
        or that the signature does not fit. Exit code 10: it holds, and says that a member held other \
        rows than the primary.\n\n\
        Example:\n  atoll verify run-7f3a.proof --key 8a88e3dd7409f195…"
    )]
    Verify {
        /// What `atoll switch proof NAME -o json` printed
        file: PathBuf,
        /// The key that it must be signed with, in hexadecimal
        #[arg(long, value_name = "PUBKEY")]
        key: Option<String>,
        /// How to print
        #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
        output: Format,
    },
}

/// `atoll explain`
#[derive(Debug, Clone, Subcommand)]
pub enum Explain {
    /// Shard, cell, epoch, group, term and primary of a user, and why
    #[command(after_help = "Example:\n  atoll explain user 42")]
    User {
        /// Whose
        #[arg(value_name = "ID", value_parser = |text: &str| UserId::parse(text))]
        user: UserId,
        /// Which server, and how to print
        #[command(flatten)]
        common: Common,
    },
}

/// `atoll shard`
#[derive(Debug, Clone, Subcommand)]
pub enum Shard {
    /// Where a user's shard is, or a shard by its number
    #[command(after_help = "Examples:\n  atoll shard locate 42\n  atoll shard locate --shard 71")]
    Locate {
        /// A user
        #[arg(value_parser = |text: &str| UserId::parse(text), required_unless_present = "shard", conflicts_with = "shard")]
        user: Option<UserId>,
        /// A shard's number
        #[arg(long, value_name = "N")]
        shard: Option<u16>,
        /// Which server, and how to print
        #[command(flatten)]
        common: Common,
    },
}

/// `atoll switch`
#[derive(Debug, Clone, Subcommand)]
pub enum Switch {
    /// Print what would happen, its checks, how long writes would wait, and a hash
    #[command(subcommand)]
    Plan(Target),
    /// Run exactly the plan of that hash; refused if the world has moved since
    #[command(
        after_help = "There is no --yes: read the plan, then name it. Ctrl-C detaches; the work goes on.\n\n\
        Example:\n  atoll switch run --plan 7f3a91c2"
    )]
    Run {
        /// The plan's hash
        #[arg(long, value_name = "HASH")]
        plan: String,
        /// The execution's name: the same name again is the same execution [default: made from the hash]
        #[arg(long)]
        name: Option<String>,
        /// Return as soon as it is taken
        #[arg(long)]
        detach: bool,
        /// Which server, and how to print
        #[command(flatten)]
        common: Common,
    },
    /// Watch an execution to its end
    Watch(Named),
    /// Let an execution begin no further group; what is begun goes on to its end
    Pause(Named),
    /// Let a paused execution go on
    Resume(Named),
    /// Let an execution begin nothing more; what is begun goes on to its end
    Abort(Named),
    /// Show what an execution did and found, signed by control
    #[command(
        after_help = "-o json is byte for byte what was signed; keep it, and verify it anywhere.\n\
        Exit code 10: a member held other rows than the primary.\n\n\
        Example:\n  atoll switch proof run-7f3a -o json > run-7f3a.proof\n  atoll verify run-7f3a.proof"
    )]
    Proof(Named),
    /// Show the public key that proofs are verified with
    Key {
        /// Which server, and how to print
        #[command(flatten)]
        common: Common,
    },
    /// Show what automation may do by itself, and switch it off or freeze it
    #[command(subcommand)]
    Automatic(Automatic),
}

/// An execution by its name.
#[derive(Debug, Clone, Args)]
pub struct Named {
    /// Its name
    name: String,
    /// Which server, and how to print
    #[command(flatten)]
    common: Common,
}

/// `atoll switch automatic`
#[derive(Debug, Clone, Subcommand)]
pub enum Automatic {
    /// Whether verdicts may begin anything, what they began lately, and who ordered what
    #[command(after_help = "Exit code 10: it is off or frozen.")]
    Status {
        /// Which server, and how to print
        #[command(flatten)]
        common: Common,
    },
    /// The kill switch: no verdict begins anything, also no failover of a data group
    #[command(
        after_help = "Example:\n  atoll switch automatic off --reason 'network works tonight'"
    )]
    Off(Said),
    /// Verdicts begin ops again
    On(Said),
    /// No verdict changes owners; data groups still fail over. Two suspect cities do this too
    Freeze(Said),
    /// Verdicts change owners again
    Thaw(Said),
}

/// Who says it, and why.
#[derive(Debug, Clone, Args)]
pub struct Said {
    /// Why; kept with the order
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Who gives the order; kept with it
    #[arg(long, value_name = "NAME", env = "USER", hide_env_values = true)]
    by: String,
    /// Which server, and how to print
    #[command(flatten)]
    common: Common,
}

impl Automatic {
    fn common(&self) -> &Common {
        match self {
            Self::Status { common } => common,
            Self::Off(said) | Self::On(said) | Self::Freeze(said) | Self::Thaw(said) => {
                &said.common
            }
        }
    }

    async fn execute(
        self,
        client: &Client,
        format: Format,
        screen: &mut Screen<'_>,
    ) -> Result<Exit, Failure> {
        let (verb, said) = match self {
            Self::Status { .. } => return automatic::status(client, format, screen).await,
            Self::Off(said) => (AutomaticVerb::Off, said),
            Self::On(said) => (AutomaticVerb::On, said),
            Self::Freeze(said) => (AutomaticVerb::Freeze, said),
            Self::Thaw(said) => (AutomaticVerb::Thaw, said),
        };
        automatic::order(client, verb, said.by, said.reason, format, screen).await
    }
}

/// What a plan is about.
#[derive(Debug, Clone, Subcommand)]
pub enum Target {
    /// Move all shards of a cell to another cell
    #[command(after_help = "Example:\n  atoll switch plan cell hz-1 --to shanghai")]
    Cell {
        /// The cell that gives
        #[arg(value_parser = |text: &str| CellId::parse(text))]
        cell: CellId,
        /// A cell, or a region
        #[arg(long, value_name = "REGION|CELL")]
        to: String,
        /// Which server, and how to print
        #[command(flatten)]
        common: Common,
    },
    /// Empty a region
    #[command(after_help = "Example:\n  atoll switch plan region hangzhou --evacuate")]
    Region {
        /// Which one
        #[arg(value_parser = |text: &str| RegionId::parse(text))]
        region: RegionId,
        /// Move everything away
        #[arg(long, required = true)]
        evacuate: bool,
        /// Which server, and how to print
        #[command(flatten)]
        common: Common,
    },
    /// Bring everything back to where the topology prefers it
    Failback {
        /// Which server, and how to print
        #[command(flatten)]
        common: Common,
    },
}

/// `atoll schema`
#[derive(Debug, Clone, Subcommand)]
pub enum Schema {
    /// Run a file of SQL in every shard's schema; running it again is safe if the file is
    #[command(after_help = "Example:\n  atoll schema apply -f examples/bank/schema.sql")]
    Apply {
        /// The file; names without a schema
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
        /// Which server, and how to print
        #[command(flatten)]
        common: Common,
    },
}

impl Command {
    /// Which server; none for what asks nobody.
    fn common(&self) -> Option<&Common> {
        Some(match self {
            Self::Verify { .. } => return None,
            Self::Status { common }
            | Self::Get { common, .. }
            | Self::Explain(Explain::User { common, .. })
            | Self::Shard(Shard::Locate { common, .. })
            | Self::Switch(
                Switch::Plan(
                    Target::Cell { common, .. }
                    | Target::Region { common, .. }
                    | Target::Failback { common },
                )
                | Switch::Run { common, .. }
                | Switch::Watch(Named { common, .. })
                | Switch::Pause(Named { common, .. })
                | Switch::Resume(Named { common, .. })
                | Switch::Abort(Named { common, .. })
                | Switch::Proof(Named { common, .. })
                | Switch::Key { common },
            )
            | Self::Schema(Schema::Apply { common, .. }) => common,
            Self::Switch(Switch::Automatic(automatic)) => automatic.common(),
        })
    }

    pub(crate) fn format(&self) -> Format {
        match self {
            Self::Verify { output, .. } => *output,
            other => other
                .common()
                .map(|common| common.output)
                .unwrap_or_default(),
        }
    }

    pub(crate) async fn execute(
        self,
        runtime: &Runtime,
        screen: &mut Screen<'_>,
    ) -> Result<Exit, Failure> {
        let format = self.format();
        if let Self::Verify { file, key, .. } = &self {
            return proof::file(file, key.as_deref(), format, screen);
        }
        let common = self.common().cloned().unwrap_or_default();
        let client = Client::new(runtime, &common)?;
        match self {
            Self::Verify { .. } => Ok(Exit::Usage),
            Self::Status { .. } => status::run(&client, format, screen).await,
            Self::Get {
                kind, name, watch, ..
            } => {
                let wanted = get::Wanted { kind, name };
                match watch {
                    false => get::once(&client, &wanted, format, screen).await,
                    true => get::watch(&client, &wanted, format, screen).await,
                }
            }
            Self::Explain(Explain::User { user, .. }) => {
                explain::user(&client, &user, format, screen).await
            }
            Self::Shard(Shard::Locate { user, shard, .. }) => {
                explain::locate(&client, user.as_ref(), shard, format, screen).await
            }
            Self::Switch(Switch::Plan(target)) => {
                switch::plan(&client, target.spec(), format, screen).await
            }
            Self::Switch(Switch::Run {
                plan, name, detach, ..
            }) => {
                let wanted = switch::Wanted { plan, name, detach };
                switch::run(&client, wanted, format, screen).await
            }
            Self::Switch(Switch::Watch(Named { name, .. })) => {
                switch::watch(&client, &name, format, screen).await
            }
            Self::Switch(Switch::Pause(Named { name, .. })) => {
                switch::want(&client, &name, Control::Pause, format, screen).await
            }
            Self::Switch(Switch::Resume(Named { name, .. })) => {
                switch::want(&client, &name, Control::Run, format, screen).await
            }
            Self::Switch(Switch::Abort(Named { name, .. })) => {
                switch::want(&client, &name, Control::Abort, format, screen).await
            }
            Self::Switch(Switch::Proof(Named { name, .. })) => {
                proof::show(&client, &name, format, screen).await
            }
            Self::Switch(Switch::Key { .. }) => proof::key(&client, format, screen).await,
            Self::Switch(Switch::Automatic(automatic)) => {
                automatic.execute(&client, format, screen).await
            }
            Self::Schema(Schema::Apply { file, .. }) => {
                schema::apply(&client, &file, format, screen).await
            }
        }
    }
}

impl Target {
    fn spec(self) -> atoll_api::PlanSpec {
        match self {
            Self::Cell { cell, to, .. } => atoll_api::PlanSpec::SwitchCell { cell, to },
            Self::Region { region, .. } => atoll_api::PlanSpec::EvacuateRegion { region },
            Self::Failback { .. } => atoll_api::PlanSpec::Failback {},
        }
    }
}
