//! The API as types: resources in Kubernetes' envelope, plans and their executions, the state of a
//! world, and every error with its stable code. No behaviour: control serves it, clients ask it.
//!
//! | path | what |
//! |---|---|
//! | `GET /apis/atoll.dev/v1/<plural>` | a `List`; with `?watch=true`, lines of `WatchEvent` |
//! | `GET /apis/atoll.dev/v1/<plural>/NAME` | one `Object` |
//! | `POST /apis/atoll.dev/v1/plans` | `Object` with a `PlanSpec` → the `Plan`, complete |
//! | `POST /apis/atoll.dev/v1/executions` | `Object` with an `ExecutionSpec` → the `Execution` |
//! | `PATCH /apis/atoll.dev/v1/executions/NAME` | merge patch of `spec.control` |
//! | `GET /apis/atoll.dev/v1/executions/NAME/proof` | its proof, as it was sealed (`atoll-proof`) |
//! | `GET /key` | the `PublicKey` of proofs |
//! | `GET /status` | a `WorldStatus` |
//! | `GET /explain?user=ID` | an `Explain` |
//! | `GET /locate?user=ID` or `?shard=N` | a `Located` |
//! | `GET /automatic` | an `AutomaticStatus` |
//! | `POST /automatic` | an `AutomaticOrder` → the `AutomaticStatus` after it |
//! | `POST /schema` | a `SchemaOrder` → a `SchemaResult` |
//! | `GET /rows` | a `RowHashes`: whether all members of each group hold the same rows |
//!
//! Everything that fails answers with a `Problem`.
#![warn(missing_docs)]

mod automatic;
mod code;
mod envelope;
mod execution;
mod explain;
mod kind;
mod page;
mod plan;
mod problem;
mod schema;
mod status;
mod timestamp;

pub use automatic::{AutomaticAct, AutomaticEntry, AutomaticOrder, AutomaticStatus, AutomaticVerb};
pub use code::{Area, Code, Exit};
pub use envelope::{AnyObject, List, ListMetadata, Metadata, Object, WatchEvent, WatchKind};
pub use execution::{
    Control, Execution, ExecutionSpec, ExecutionStatus, Figures, GroupOutcome, Phase, PublicKey,
    Step, StepState,
};
pub use explain::{Explain, Located};
pub use kind::Kind;
pub use page::{index, page};
pub use plan::{Check, CheckState, MadeFor, Plan, PlanSpec, PlanStatus};
pub use problem::{Details, Problem, Told};
pub use schema::{GroupRows, MemberRows, RowHashes, SchemaGroup, SchemaOrder, SchemaResult};
pub use status::{
    CellStatus, GroupStatus, MemberStatus, OpStatus, OpenStatus, PlaneStatus, WorldStatus,
};
pub use timestamp::Timestamp;

/// Version of all resources.
pub const API_VERSION: &str = atoll_topology::API_VERSION;
/// Where all resources are.
pub const RESOURCES: &str = "/apis/atoll.dev/v1";
/// Where the state of the world is.
pub const STATUS: &str = "/status";
/// Where a user is explained.
pub const EXPLAIN: &str = "/explain";
/// Where a user or a shard is found.
pub const LOCATE: &str = "/locate";
/// Where the public key of proofs is.
pub const KEY: &str = "/key";
/// Where automation is seen and told.
pub const AUTOMATIC: &str = "/automatic";
/// Where a schema file is applied.
pub const SCHEMA: &str = "/schema";
/// Where all members' rows are compared.
pub const ROWS: &str = "/rows";

/// The path of all resources of a kind: `/apis/atoll.dev/v1/cells`.
pub fn collection(kind: Kind) -> String {
    format!("{RESOURCES}/{}", kind.plural())
}

/// The path of one resource.
pub fn item(kind: Kind, name: &str) -> String {
    format!("{RESOURCES}/{}/{name}", kind.plural())
}

/// Where the proof of an execution is.
pub fn proof(execution: &str) -> String {
    format!("{}/proof", item(Kind::Execution, execution))
}
