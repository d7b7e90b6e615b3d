//! What the bank does with money, as transactions.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::outcome::{Failure, Refusal, Stage, judge};
use super::sql::{Connection, Lease, Sql};

/// Tries of a transaction that surely did nothing.
const ATTEMPTS_MAX: u32 = 6;
/// First pause between them; doubled each time.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(20);
/// Longest wait for the database, all statements of one try together. Longer than Atoll holds.
const SQL_LIMIT: Duration = Duration::from_secs(14);
/// Lines of a statement of account.
const STATEMENT_LINES_MAX: i64 = 100;

/// An order to pay.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Transfer {
    /// Idempotency key.
    pub(crate) id: String,
    pub(crate) to: String,
    pub(crate) amount: i64,
}

/// Whether this request did it, or an earlier one with the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    Now,
    Before,
}

// The comment says whose data is meant. It is all that this file knows of Atoll.
const OPEN: &str = "/*key=$1*/ INSERT INTO accounts (user_id, opened, balance) VALUES ($1, $2, $2) \
    ON CONFLICT (user_id) DO UPDATE SET opened = accounts.opened RETURNING opened, xmax = 0";
const CANARY: &str = "/*key=$1*/ INSERT INTO canary (id, n) VALUES ($1, 1) \
    ON CONFLICT (id) DO UPDATE SET n = canary.n + 1 RETURNING n";
const BALANCE: &str = "/*key=$1*/ SELECT balance FROM accounts WHERE user_id = $2";
const STATEMENT: &str = "/*key=$1*/ SELECT id, payer, payee, amount, \
    (extract(epoch FROM at) * 1000)::bigint FROM transfers \
    WHERE payer = $1 OR payee = $1 ORDER BY at DESC, id LIMIT $2";
const RECORD: &str = "INSERT INTO transfers (id, payer, payee, amount) VALUES ($1, $2, $3, $4) \
    ON CONFLICT (id) DO NOTHING";
// Locks both accounts in one order, so that two transfers between the same two never deadlock.
const MOVE: &str = "WITH both_locked AS (SELECT user_id FROM accounts WHERE user_id IN ($1, $2) \
    ORDER BY user_id FOR UPDATE) \
    UPDATE accounts SET balance = balance + CASE WHEN accounts.user_id = $1 THEN -$3::bigint ELSE $3::bigint END \
    FROM both_locked WHERE accounts.user_id = both_locked.user_id";
// A write, so that the answer to a repeated request waits for the same replicas as the first.
const REPEATED: &str = "UPDATE transfers SET at = at WHERE id = $1 RETURNING payer, payee, amount";

/// Everything of the user's shard in one snapshot: accounts, then transfers.
pub(crate) const LEDGER: &str = "SELECT 'account' AS kind, user_id AS a, opened::text AS b, \
    balance::text AS c, '' AS d FROM accounts \
    UNION ALL SELECT 'transfer', id, payer, payee, amount::text FROM transfers";

/// Whether the text may stand in a key comment: the rule for user ids.
pub(crate) fn is_user(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_.:@-".contains(&b))
}

/// Repeats what surely did nothing, a few times.
async fn again<T, F>(mut attempt: impl FnMut() -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    let mut pause = ATTEMPT_PAUSE;
    for _ in 1..ATTEMPTS_MAX {
        match attempt().await {
            Err(Failure::Again(_)) => tokio::time::sleep(pause).await,
            other => return other,
        }
        pause *= 2;
    }
    attempt().await
}

impl Sql {
    /// Opens an account with some money. An account that exists with the same opening is fine.
    pub(crate) async fn open(&self, user: &str, initial: i64) -> Result<Done, Failure> {
        again(|| async move {
            let rows = self
                .autocommit(OPEN, &[(&user, Type::TEXT), (&initial, Type::INT8)])
                .await?;
            match rows
                .first()
                .map(|row| (row.get::<_, i64>(0), row.get::<_, bool>(1)))
            {
                Some((_, true)) => Ok(Done::Now),
                Some((opened, false)) if opened == initial => Ok(Done::Before),
                _ => Err(Failure::Refused(Refusal::Conflict)),
            }
        })
        .await
    }

    /// One small write.
    pub(crate) async fn canary(&self, user: &str) -> Result<i64, Failure> {
        again(|| async move {
            let rows = self.autocommit(CANARY, &[(&user, Type::TEXT)]).await?;
            Ok(rows.first().map_or(0, |row| row.get(0)))
        })
        .await
    }

    /// The balance of `account`, which lives in the same shard as `user`.
    pub(crate) async fn balance(&self, user: &str, account: &str) -> Result<i64, Failure> {
        again(|| async move {
            let rows = self
                .autocommit(BALANCE, &[(&user, Type::TEXT), (&account, Type::TEXT)])
                .await?;
            rows.first()
                .map(|row| row.get(0))
                .ok_or(Failure::Refused(Refusal::NoAccount))
        })
        .await
    }

    /// The user's latest transfers: id, payer, payee, amount, time in ms.
    pub(crate) async fn statement(
        &self,
        user: &str,
    ) -> Result<Vec<(String, String, String, i64, i64)>, Failure> {
        again(|| async move {
            let limits = [
                (&user as _, Type::TEXT),
                (&STATEMENT_LINES_MAX as _, Type::INT8),
            ];
            let rows = self.autocommit(STATEMENT, &limits).await?;
            Ok(rows
                .iter()
                .map(|r| (r.get(0), r.get(1), r.get(2), r.get(3), r.get(4)))
                .collect())
        })
        .await
    }

    /// All accounts and transfers of the user's shard, as lines; see `LEDGER`.
    pub(crate) async fn ledger(&self, user: &str) -> Result<Vec<[String; 5]>, Failure> {
        let text = &format!("/*key={user}*/ {LEDGER}");
        again(|| async move {
            let rows = self.autocommit(text, &[]).await?;
            let line = |r: &tokio_postgres::Row| std::array::from_fn(|i| r.get::<_, String>(i));
            Ok(rows.iter().map(line).collect())
        })
        .await
    }

    /// Moves money from `user`.
    pub(crate) async fn transfer(&self, user: &str, order: &Transfer) -> Result<Done, Failure> {
        again(|| async move {
            let mut lease = self.lease().await?;
            let mut stage = Stage::BeforeCommit;
            let work = pay(&mut lease, user, order, &mut stage);
            let done = match tokio::time::timeout(SQL_LIMIT, work).await {
                Ok(done) => done,
                Err(_) => Err(late(stage)),
            };
            if let Ok(_) | Err(Failure::Refused(_)) = done {
                lease.give_back();
            }
            done
        })
        .await
    }

    /// One statement that commits by itself, in one round trip.
    async fn autocommit(
        &self,
        text: &str,
        values: &[(&(dyn tokio_postgres::types::ToSql + Sync), Type)],
    ) -> Result<Vec<tokio_postgres::Row>, Failure> {
        let mut lease = self.lease().await?;
        let client = &lease.connection()?.client;
        let asked = tokio::time::timeout(SQL_LIMIT, client.query_typed(text, values)).await;
        let rows = asked.map_err(|_| late(Stage::CommitSent))?;
        let rows = rows.map_err(|error| judge(&error, Stage::CommitSent))?;
        lease.give_back();
        Ok(rows)
    }
}

fn late(stage: Stage) -> Failure {
    let why = format!("the database did not answer in {SQL_LIMIT:?}");
    match stage {
        Stage::BeforeCommit => Failure::NotExecuted(why),
        Stage::CommitSent => Failure::Unknown(why),
    }
}

/// The transaction. Leaves the connection outside any transaction when it answers with `Done` or a
/// refusal, and only then.
async fn pay(
    lease: &mut Lease<'_>,
    user: &str,
    order: &Transfer,
    stage: &mut Stage,
) -> Result<Done, Failure> {
    let before = |error: tokio_postgres::Error| judge(&error, Stage::BeforeCommit);
    let connection = lease.connection()?;
    connection
        .client
        .batch_execute(&format!("/*key={user}*/ BEGIN"))
        .await
        .map_err(before)?;
    let moved = move_money(connection, user, order).await;
    match moved {
        Ok(done) => {
            *stage = Stage::CommitSent;
            let committed = connection.client.batch_execute("COMMIT").await;
            committed.map_err(|error| judge(&error, Stage::CommitSent))?;
            Ok(done)
        }
        Err(failure) => {
            if matches!(failure, Failure::Refused(_)) {
                connection
                    .client
                    .batch_execute("ROLLBACK")
                    .await
                    .map_err(before)?;
            }
            Err(failure)
        }
    }
}

async fn move_money(
    connection: &mut Connection,
    user: &str,
    order: &Transfer,
) -> Result<Done, Failure> {
    let before = |error: tokio_postgres::Error| judge(&error, Stage::BeforeCommit);
    let record = connection.prepared(RECORD).await.map_err(before)?;
    let recorded = connection
        .client
        .execute(&record, &[&order.id, &user, &order.to, &order.amount])
        .await
        .map_err(before)?;
    if recorded == 0 {
        let repeated = connection.prepared(REPEATED).await.map_err(before)?;
        let row = connection
            .client
            .query_one(&repeated, &[&order.id])
            .await
            .map_err(before)?;
        let same = row.get::<_, &str>(0) == user
            && row.get::<_, &str>(1) == order.to
            && row.get::<_, i64>(2) == order.amount;
        return if same {
            Ok(Done::Before)
        } else {
            Err(Failure::Refused(Refusal::Conflict))
        };
    }
    let both = connection.prepared(MOVE).await.map_err(before)?;
    let moved = connection
        .client
        .execute(&both, &[&user, &order.to, &order.amount])
        .await;
    match moved {
        Ok(2) => Ok(Done::Now),
        Ok(_) => Err(Failure::Refused(Refusal::NoAccount)),
        Err(error) if error.code() == Some(&tokio_postgres::error::SqlState::CHECK_VIOLATION) => {
            Err(Failure::Refused(Refusal::Insufficient))
        }
        Err(error) => Err(before(error)),
    }
}
