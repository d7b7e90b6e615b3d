//! Who may speak through the client port. A connection is opened for a term: the one that it names,
//! or the member's promise at that time. What its client sends goes no further until the member
//! serves that very term; it is cut when the member promises a later one, or serves that one no
//! longer.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use atoll_topology::Term;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;

/// Connections at once; more are refused. PostgreSQL has its own limit below this.
const CONNECTIONS_MAX: usize = 1_000;

/// Which term's clients are served.
#[derive(Debug, Clone, Copy)]
struct Terms {
    /// The member's promise: connections that name no later term are opened for it.
    promise: Term,
    /// The term that is open.
    open: Option<Term>,
}

struct Client {
    cut: CancellationToken,
    /// The term that it is opened for.
    term: Term,
    /// Whether what it sends reaches PostgreSQL.
    served: bool,
    /// Its backend and that one's secret.
    backend: Option<(u32, u32)>,
    /// Keeps its backend's socket open.
    socket: Option<OwnedFd>,
    /// Whether its opener has promised to keep cancels from commits; otherwise they are dropped.
    keeps_cancels: bool,
}

#[derive(Default)]
struct Clients {
    last: u64,
    all: BTreeMap<u64, Client>,
}

/// The gate of a client port.
pub struct Gate {
    terms: watch::Sender<Terms>,
    clients: Mutex<Clients>,
    /// Backends whose clients were cut off by a close: nothing is written to them any more.
    parked: Mutex<Vec<OwnedFd>>,
    /// Changes with each client whose sockets are closed.
    gone: watch::Sender<()>,
    /// Answers after this moment are not given: nobody confirmed our term lately.
    valid_until: Mutex<Instant>,
}

impl Gate {
    /// Closed, and without a promise.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            terms: watch::Sender::new(Terms {
                promise: Term::ZERO,
                open: None,
            }),
            clients: Mutex::default(),
            parked: Mutex::default(),
            gone: watch::Sender::new(()),
            valid_until: Mutex::new(Instant::now()),
        })
    }

    /// The term that is open.
    pub fn open_term(&self) -> Option<Term> {
        self.terms.borrow().open
    }

    /// Serves clients under this term.
    pub fn open(&self, term: Term) {
        self.terms.send_replace(Terms {
            promise: term,
            open: Some(term),
        });
        info!(%term, "port open");
    }

    /// A call-off keeps its clients under its new term.
    pub fn keep_open(&self, term: Term) {
        let mut clients = self.lock();
        for client in clients.all.values_mut() {
            client.term = client.term.newest(term);
        }
        self.terms.send_modify(|terms| {
            terms.promise = term;
            terms.open = terms.open.map(|_| term);
        });
    }

    /// Closes: returns when the socket is closed of every client that was served or is for an
    /// earlier term. No backend is told to end. Their sockets stay open until [`Gate::part`]: the
    /// end of so many at once takes time, and users wait for what comes next.
    pub async fn close(&self, promise: Term) {
        let cut: Vec<u64> = {
            let mut clients = self.lock();
            self.terms.send_replace(Terms {
                promise,
                open: None,
            });
            let past = |client: &Client| client.served || promise.supersedes(client.term);
            let cut = clients.all.iter_mut().filter(|(_, client)| past(client));
            let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
            cut.map(|(number, client)| {
                parked.extend(client.socket.take());
                client.cut.cancel();
                *number
            })
            .collect()
        };
        self.until_gone(&cut).await;
    }

    /// Closes the sockets of the backends whose clients were cut off, so that those end.
    pub(crate) fn part(&self) {
        let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        drop(std::mem::take(&mut *parked));
    }

    /// Answers may be given until `moment`.
    pub fn valid_until(&self, moment: Instant) {
        *self.validity() = moment;
    }

    /// Whether an answer may be given now.
    pub fn is_valid(&self) -> bool {
        Instant::now() < *self.validity()
    }

    /// A new client's place; none if there are too many.
    pub fn admit(self: &Arc<Self>) -> Option<Place> {
        let cut = CancellationToken::new();
        let mut clients = self.lock();
        if clients.all.len() >= CONNECTIONS_MAX {
            return None;
        }
        clients.last += 1;
        let number = clients.last;
        let client = Client {
            cut: cut.clone(),
            term: self.terms.borrow().promise,
            served: false,
            backend: None,
            socket: None,
            keeps_cancels: false,
        };
        clients.all.insert(number, client);
        let gate = self.clone();
        Some(Place { gate, number, cut })
    }

    /// Closes the sockets of these backends' clients.
    pub(crate) fn cut_clients_of(&self, backends: &[i32]) {
        for client in self.lock().all.values() {
            let of_one =
                |pid: &i32| client.backend.map(|(pid, _)| pid) == Some(pid.cast_unsigned());
            if backends.iter().any(of_one) {
                client.cut.cancel();
            }
        }
    }

    /// The client that a cancel request means, if cancels may reach it.
    pub(crate) fn cancelled_by(&self, key: (u32, u32)) -> Option<u64> {
        let clients = self.lock();
        let mut clients = clients.all.iter();
        let meant = clients.find(|(_, client)| {
            let reached = client.keeps_cancels && !client.cut.is_cancelled();
            reached && client.backend == Some(key)
        });
        meant.map(|(number, _)| *number)
    }

    /// Cuts one client: returns when its sockets are closed.
    pub(crate) async fn cut(&self, number: u64) {
        if let Some(client) = self.lock().all.get(&number) {
            client.cut.cancel();
        }
        self.until_gone(&[number]).await;
    }

    /// Returns when the sockets of these clients are closed.
    async fn until_gone(&self, cut: &[u64]) {
        let mut gone = self.gone.subscribe();
        loop {
            gone.borrow_and_update();
            let ended = {
                let clients = self.lock();
                !cut.iter().any(|number| clients.all.contains_key(number))
            };
            // We hold a sender, so the channel cannot close.
            if ended || gone.changed().await.is_err() {
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn validity(&self) -> MutexGuard<'_, Instant> {
        self.valid_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client's place at the gate: to be dropped, also by a cut, after its sockets.
pub struct Place {
    gate: Arc<Gate>,
    number: u64,
    /// The client is cut off.
    pub cut: CancellationToken,
}

impl Place {
    /// The client names the term that it is for. One that is behind is served under the promise, as
    /// one that names none.
    pub fn names(&self, term: Term) {
        self.change(|client| client.term = client.term.newest(term));
    }

    pub(crate) fn keeps_cancels_from_commits(&self) {
        self.change(|client| client.keeps_cancels = true);
    }

    /// The socket of its backend, which may outlive the client's.
    pub(crate) fn has_socket(&self, socket: OwnedFd) {
        self.change(|client| client.socket = Some(socket));
    }

    pub(crate) fn has_backend(&self, key: (u32, u32)) {
        self.change(|client| client.backend = Some(key));
    }

    /// Waits until the member serves the term of this client; false when that is past.
    pub async fn until_served(&self) -> bool {
        let mut changes = self.gate.terms.subscribe();
        loop {
            changes.borrow_and_update();
            {
                // Under the lock of whoever closes: it sees this client, or this one sees it.
                let mut clients = self.gate.lock();
                let terms = *self.gate.terms.borrow();
                let Some(client) = clients.all.get_mut(&self.number) else {
                    return false;
                };
                if terms.promise.supersedes(client.term) {
                    return false;
                }
                if terms.open == Some(client.term) {
                    client.served = true;
                    return true;
                }
            }
            // The gate holds a sender, so the channel cannot close.
            drop(changes.changed().await);
        }
    }

    fn change(&self, change: impl FnOnce(&mut Client)) {
        if let Some(client) = self.gate.lock().all.get_mut(&self.number) {
            change(client);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gate.lock().all.remove(&self.number);
        self.gate.gone.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read};
    use std::os::unix::net::UnixStream;

    use super::*;

    /// A client that was cut off by a close: a backend's end of its socket.
    async fn cut_off(gate: &Arc<Gate>, by: impl AsyncFnOnce(&Gate)) -> UnixStream {
        let (ours, backend) = UnixStream::pair().unwrap();
        backend.set_nonblocking(true).unwrap();
        let place = gate.admit().unwrap();
        place.has_socket(ours.into());
        assert!(place.until_served().await);
        let served = async {
            place.cut.cancelled().await;
            drop(place);
        };
        tokio::join!(by(gate), served);
        backend
    }

    fn has_ended(backend: &mut UnixStream) -> bool {
        match backend.read(&mut [0]) {
            Ok(0) => true,
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_closed_port_cuts_clients_at_once_and_parts_from_their_backends_later() {
        let gate = Gate::new();
        gate.open(Term::new(2));
        let mut backend = cut_off(&gate, async |gate: &Gate| gate.close(Term::new(3)).await).await;
        assert!(gate.lock().all.is_empty());
        assert!(!has_ended(&mut backend));
        gate.part();
        assert!(has_ended(&mut backend));
    }

    #[tokio::test]
    async fn a_client_that_is_cut_alone_takes_its_backend_along() {
        let gate = Gate::new();
        gate.open(Term::new(2));
        let mut backend = cut_off(&gate, async |gate: &Gate| gate.cut(1).await).await;
        assert!(has_ended(&mut backend));
    }
}
