//! Hands a request to an instance of this cell, or once to a gateway of the owner. A request is
//! never sent twice that may have been executed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use atoll_proxy::{Answer, Failure, Kept, Outgoing, Unsent};
use atoll_routing::{CellRow, Phase, Table, TableVersion};
use atoll_topology::CellId;
use http::request::Parts;
use http::{HeaderMap, Request, Response, StatusCode};
use tokio::time::Instant;

use crate::accept::Flow;
use crate::admit::hop_by_hop;
use crate::error::Problem;
use crate::peer::{self, Stamp};
use crate::record::Record;
use crate::route::Owned;

/// How an attempt ended, where it is not a problem for the client.
pub(crate) enum Tried {
    /// With an answer.
    Answered(Response<Answer>),
    /// The gate closed or the table changed before anything was sent.
    DecideAgain,
    /// Nobody of the cell was there; nothing was sent.
    Unreached(CellId),
    /// The cell's gateway does not own the shard, by this table of its.
    NotTaken(TableVersion),
}

/// How one sending ended without an answer.
enum Failed {
    Unsent(Unsent),
    Broke { reused: bool },
    Silent,
    Lost,
}

/// Everything that is the same for each attempt of one request.
struct Attempt<'a> {
    cell: &'a CellId,
    owned: Owned,
    request: &'a Parts,
    headers: HeaderMap,
    body: &'a Kept,
}

impl Flow {
    /// Hands a request to an instance of this cell.
    pub(crate) async fn to_instance(
        &self,
        table: &Arc<Table>,
        owned: Owned,
        request: &Parts,
        body: &Kept,
        record: &mut Record,
    ) -> Result<Tried, Problem> {
        let cell = &self.shared.cell;
        if let Some((shard, _)) = owned {
            // Counted until the answer has ended; the record carries it there.
            record.in_flight = self.shared.gates.enter(shard, table);
            if record.in_flight.is_none() {
                return Ok(Tried::DecideAgain);
            }
        }
        let attempt = self.attempt(table, cell, owned, request, body, record);
        let row = table.cells.get(cell);
        let instances = row.map(|row| self.instances(row)).unwrap_or_default();
        let answered = self.try_each(instances, &attempt, record).await;
        let Some(mut response) = answered? else {
            record.in_flight = None;
            return Ok(Tried::Unreached(cell.clone()));
        };
        peer::strip(response.headers_mut());
        hop_by_hop(response.headers_mut());
        Ok(Tried::Answered(response))
    }

    /// Forwards a request to a gateway of another cell.
    pub(crate) async fn to_gateway(
        &self,
        table: &Arc<Table>,
        cell: &CellId,
        owned: Owned,
        request: &Parts,
        body: &Kept,
        record: &mut Record,
    ) -> Result<Tried, Problem> {
        let forwards = |result: &str| self.shared.metrics.forwards.with_label_values(&[result]);
        let mut attempt = self.attempt(table, cell, owned, request, body, record);
        let shared = &self.shared;
        shared.key.sign(
            &shared.from,
            &request.method,
            &request.uri,
            &mut attempt.headers,
        );
        let mut gateways = table
            .cells
            .get(cell)
            .map(|row| row.gateways.clone())
            .unwrap_or_default();
        self.least_first(&mut gateways);
        loop {
            let answered = self.try_each(gateways.clone(), &attempt, record).await;
            let Some(mut response) = answered.inspect_err(|_| forwards("failed").inc())? else {
                forwards("unreached").inc();
                return Ok(Tried::Unreached(cell.clone()));
            };
            let headers = response.headers();
            let not_sent = headers
                .get(peer::OUTCOME)
                .is_some_and(|value| value == "not-sent");
            if not_sent && response.status() == StatusCode::MISDIRECTED_REQUEST {
                forwards("not-taken").inc();
                let theirs = headers
                    .get(peer::TABLE)
                    .and_then(|value| value.to_str().ok());
                let theirs = theirs
                    .and_then(peer::parse_version)
                    .ok_or(Problem::OwnerUnclear)?;
                return Ok(Tried::NotTaken(theirs));
            }
            let ending = Problem::Hold(atoll_proxy::HoldRefused::Ending).code();
            if not_sent && headers.get(peer::CODE).is_some_and(|code| code == ending) {
                // That gateway is going away and did nothing: another one, if there is.
                let asked = record.line().and_then(|line| line.upstream);
                gateways.retain(|gateway| Some(*gateway) != asked);
                continue;
            }
            forwards("answered").inc();
            let headers = response.headers_mut();
            let (outcome, code) = (headers.remove(peer::OUTCOME), headers.remove(peer::CODE));
            peer::strip(headers);
            hop_by_hop(headers);
            let ours = [(peer::OUTCOME, outcome), (peer::CODE, code)];
            for (name, value) in ours {
                value.and_then(|value| headers.insert(name, value));
            }
            return Ok(Tried::Answered(response));
        }
    }

    fn attempt<'a>(
        &self,
        table: &Table,
        cell: &'a CellId,
        owned: Owned,
        request: &'a Parts,
        body: &'a Kept,
        record: &mut Record,
    ) -> Attempt<'a> {
        record.cell = Some(self.stats(cell));
        let mut headers = request.headers.clone();
        let stamp = Stamp {
            shard: owned,
            table: table.version.clone(),
            trace: record.trace(),
        };
        peer::stamp(&mut headers, &stamp);
        Attempt {
            cell,
            owned,
            request,
            headers,
            body,
        }
    }

    /// Tries the addresses in turn, going on only after what was surely not executed. None when
    /// nobody was there.
    async fn try_each(
        &self,
        addresses: Vec<SocketAddr>,
        attempt: &Attempt<'_>,
        record: &mut Record,
    ) -> Result<Option<Response<Answer>>, Problem> {
        let retries = |reason: &str| {
            self.shared
                .metrics
                .retries
                .with_label_values(&[reason])
                .inc();
        };
        let mut busy = false;
        for to in addresses {
            if let Some(line) = record.line() {
                line.upstream = Some(to);
            }
            let mut repeated = false;
            loop {
                let body = attempt.body.outgoing().ok_or(Problem::BodyNotKept)?;
                match self.send_once(to, attempt, body).await {
                    Ok(response) => return Ok(Some(response)),
                    Err(Failed::Unsent(Unsent::Busy(..))) => busy = true,
                    Err(Failed::Unsent(reason)) => {
                        tracing::debug!(%to, reason = %reason, "not sent");
                        self.pool.forget(to);
                        retries("unsent");
                    }
                    Err(Failed::Broke { reused: true })
                        if !repeated
                            && attempt.request.method.is_idempotent()
                            && attempt.body.outgoing().is_some()
                            && self.may_repeat() =>
                    {
                        // A connection that was just being closed; once more, on a fresh one.
                        repeated = true;
                        self.pool.forget(to);
                        retries("idempotent");
                        continue;
                    }
                    Err(Failed::Broke { .. }) if attempt.body.client_failed() => {
                        return Err(Problem::Body("the client broke off".to_owned()));
                    }
                    Err(Failed::Broke { .. }) => return Err(Problem::Broke),
                    Err(Failed::Silent) => return Err(Problem::Silent),
                    Err(Failed::Lost) => return Err(Problem::Lost),
                }
                break;
            }
        }
        if busy { Err(Problem::Busy) } else { Ok(None) }
    }

    /// One sending, until its answer's head, its limit, or the loss of the cell.
    async fn send_once(
        &self,
        to: SocketAddr,
        attempt: &Attempt<'_>,
        body: Outgoing,
    ) -> Result<Response<Answer>, Failed> {
        let mut request = Request::new(body);
        *request.method_mut() = attempt.request.method.clone();
        *request.uri_mut() = attempt.request.uri.clone();
        *request.headers_mut() = attempt.headers.clone();
        let begun = Instant::now();
        let health = &self.shared.health;
        let send = self.pool.send(to, request);
        let mut send = std::pin::pin!(send);
        if let Ok(sent) = tokio::time::timeout(health.silence(), send.as_mut()).await {
            return sent.map_err(Failed::from);
        }
        if self.pool.heard(to).is_none_or(|heard| heard < begun) {
            health.doubt(attempt.cell);
        }
        let limit = begun + Duration::from_secs(self.shared.limits.answer_seconds);
        tokio::select! {
            sent = send => sent.map_err(Failed::from),
            () = tokio::time::sleep_until(limit) => Err(Failed::Silent),
            () = self.lost(attempt.cell, attempt.owned) => Err(Failed::Lost),
        }
    }

    /// Resolves when the cell is known not to answer and the table names another owner: whoever
    /// still waits there would wait in vain.
    async fn lost(&self, cell: &CellId, owned: Owned) {
        let Some((shard, epoch)) = owned else {
            return std::future::pending().await;
        };
        let mut changes = self.shared.gates.changes();
        loop {
            let table = self.shared.gates.table();
            let row = table.as_ref().and_then(|table| table.shard(shard));
            let moved = row.is_some_and(|row| {
                row.epoch.supersedes(epoch) && row.phase == Phase::Active && row.cell != *cell
            });
            if moved && self.shared.health.is_suspected(cell) {
                return;
            }
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// The cell's instances: first the slot that the weights choose, in it the one with the fewer
    /// requests of two; then the others.
    fn instances(&self, row: &CellRow) -> Vec<SocketAddr> {
        let sum: u64 = row.weights.values().map(|weight| u64::from(*weight)).sum();
        let mut at = if sum == 0 { 0 } else { self.random() % sum };
        let mut chosen = None;
        for (slot, weight) in &row.weights {
            let weight = u64::from(*weight);
            if at < weight {
                chosen = Some(*slot);
                break;
            }
            at -= weight;
        }
        let serves = |slot| row.weights.get(slot).is_none_or(|weight| *weight > 0);
        let (mut first, others): (Vec<_>, Vec<_>) = row
            .instances
            .iter()
            .filter(|instance| serves(&instance.slot))
            .partition(|instance| chosen.is_none_or(|slot| instance.slot == slot));
        let mut addresses: Vec<SocketAddr> = first.drain(..).map(|i| i.address).collect();
        self.least_first(&mut addresses);
        addresses.extend(others.into_iter().map(|instance| instance.address));
        addresses
    }

    /// Two at random, the one with fewer requests to the front.
    fn least_first(&self, addresses: &mut [SocketAddr]) {
        let Ok(count) = u64::try_from(addresses.len()) else {
            return;
        };
        if count < 2 {
            return;
        }
        let pick = |n: u64| usize::try_from(n).unwrap_or(0);
        let one = pick(self.random() % count);
        let other = (one + 1 + pick(self.random() % (count - 1))) % addresses.len();
        let better =
            self.pool.outstanding(addresses[other]) < self.pool.outstanding(addresses[one]);
        addresses.swap(0, if better { other } else { one });
    }
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unsent { reason, .. } => Self::Unsent(reason),
            Failure::Unknown { error, reused } => {
                tracing::debug!(%error, reused, "connection broke after a request was sent");
                Self::Broke { reused }
            }
        }
    }
}
