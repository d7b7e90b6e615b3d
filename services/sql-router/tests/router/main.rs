//! The router in front of real PostgreSQL servers, driven by psql, tokio-postgres and psycopg.
//!
//! One server a role: `plain` and `other` are two primaries between which a shard's table moves;
//! `alone` waits for a standby that does not exist, so that its commits can be caught in the act.
//! Tests share the servers and share nothing on them: each has its own cell and its own shards.

mod drivers;
mod faults;
mod keys;
mod moves;
mod rig;
mod server;
