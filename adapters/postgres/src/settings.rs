//! postgresql.conf and pg_hba.conf of a member, the same from its first start to its last.

use std::fs;

use atoll_topology::MemberId;

use crate::layout::mode;
use crate::sql::{REPLICATOR, literal, name};
use crate::{Error, Layout};

/// What a member's configuration depends on.
#[derive(Debug, Clone)]
pub struct MemberSettings {
    /// Who it is; the name under which its acknowledgements count.
    pub member: MemberId,
    /// All others of its group.
    pub others: Vec<MemberId>,
    /// How many of them a commit waits for.
    pub k: u8,
    /// `shared_buffers`, in MiB.
    pub shared_buffers_mb: u32,
    /// Sessions, those of the agent included.
    pub connections_max: u32,
}

impl MemberSettings {
    /// Writes both files.
    pub fn write(&self, layout: &Layout) -> Result<(), Error> {
        for (path, text) in [
            (layout.settings(), self.conf(layout)),
            (layout.hba(), hba()),
        ] {
            fs::write(&path, text).map_err(Error::file("write", &path))?;
            mode(&path, 0o644)?;
        }
        Ok(())
    }

    /// `ANY k ("g-2", "g-3")`: explicit names, so that no other stream can count.
    fn quorum(&self) -> String {
        let names: Vec<String> = self.others.iter().map(|id| name(id.as_str())).collect();
        if names.is_empty() || self.k == 0 {
            return String::new();
        }
        format!("ANY {} ({})", self.k, names.join(", "))
    }

    fn conf(&self, layout: &Layout) -> String {
        let upstream = format!(
            "host={} port=5432 user={REPLICATOR} dbname=replication application_name={} \
             sslmode=disable gssencmode=disable",
            layout.link().display(),
            self.member
        );
        let lines: Vec<(&str, String)> = vec![
            ("cluster_name", literal(self.member.as_str())),
            ("listen_addresses", "''".into()),
            ("port", "5432".into()),
            (
                "unix_socket_directories",
                literal(&layout.run().display().to_string()),
            ),
            ("hba_file", literal(&layout.hba().display().to_string())),
            ("max_connections", self.connections_max.to_string()),
            ("shared_buffers", format!("'{}MB'", self.shared_buffers_mb)),
            // For the agent, when every other place is taken by commits that wait.
            ("superuser_reserved_connections", "8".into()),
            // Nobody but the agent reads a standby; replay must not wait for readers.
            ("max_standby_streaming_delay", "'1s'".into()),
            ("jit", "off".into()),
            // Never lose what was acknowledged.
            ("fsync", "on".into()),
            ("full_page_writes", "on".into()),
            ("synchronous_commit", "on".into()),
            ("synchronous_standby_names", literal(&self.quorum())),
            ("max_prepared_transactions", "0".into()),
            ("restart_after_crash", "off".into()),
            // The log and who takes it.
            ("wal_level", "logical".into()),
            ("max_wal_senders", "12".into()),
            ("max_replication_slots", "12".into()),
            ("wal_keep_size", "'256MB'".into()),
            ("min_wal_size", "'16MB'".into()),
            ("max_wal_size", "'256MB'".into()),
            ("primary_conninfo", literal(&upstream)),
            ("hot_standby", "on".into()),
            ("wal_retrieve_retry_interval", "'5ms'".into()),
            ("wal_receiver_status_interval", "'1s'".into()),
            ("wal_sender_timeout", "'4s'".into()),
            ("wal_receiver_timeout", "'4s'".into()),
            ("recovery_target_timeline", "'latest'".into()),
            ("idle_in_transaction_session_timeout", "'10s'".into()),
            ("log_destination", "'stderr'".into()),
            ("logging_collector", "off".into()),
            ("log_line_prefix", "'%m [%p] %a '".into()),
            ("log_checkpoints", "off".into()),
        ];
        let mut text = String::from("# Written by the agent at each start; changes are lost.\n");
        for (key, value) in lines {
            text.push_str(&format!("{key} = {value}\n"));
        }
        text
    }
}

/// Trust on the socket: its folder lets in nobody but PostgreSQL's account and the agent.
fn hba() -> String {
    "local all all trust\nlocal replication all trust\n".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_carries_the_quorum_that_it_needs_as_a_primary() {
        let settings = MemberSettings {
            member: MemberId::parse("g-1").unwrap(),
            others: vec![
                MemberId::parse("g-2").unwrap(),
                MemberId::parse("g-3").unwrap(),
            ],
            k: 1,
            shared_buffers_mb: 16,
            connections_max: 50,
        };
        assert_eq!(settings.quorum(), r#"ANY 1 ("g-2", "g-3")"#);
    }
}
