//! Who stands around the simulated services: users of each city, the operator, and somebody who
//! looks which tables are in use.

use std::net::SocketAddr;
use std::time::Duration;

use atoll_control::{Place, PlaceRole as Role};
use atoll_runtime::Runtime;
use serde_json::Value;

use super::World;
use super::places::{address, at_region};
use crate::http;
use crate::oracle::Oracle;
use crate::users::User;

/// Users of each city.
const USERS_PER_REGION: u64 = 3;
/// Last number of the address of what only a simulation has.
pub(super) const USERS_NUMBER: u8 = 200;
pub(super) const OPERATOR_NUMBER: u8 = 201;
pub(super) const OBSERVER_NUMBER: u8 = 202;
/// How often tables are looked at, and how long an answer may take.
const OBSERVE_EVERY: Duration = Duration::from_millis(150);
const OBSERVE_LIMIT: Duration = Duration::from_secs(1);

impl World {
    pub(super) fn users_of(&mut self, sim: &mut turmoil::Sim<'_>, region: usize) {
        let mut gateways = self.addresses(Role::Gateway, "edge");
        let count = gateways.len();
        // The nearest first, where there is one.
        gateways.rotate_left((region - 1) % count);
        let names = (0..USERS_PER_REGION).map(|n| format!("u{region}-{n}"));
        let names: Vec<String> = names.collect();
        self.users.extend(names.clone());
        let (oracle, seed, quiet) = (self.oracle.clone(), self.seed, self.quiet.clone());
        let ip = at_region(region, USERS_NUMBER);
        self.host(sim, &format!("users-{region}"), ip, None, move |runtime| {
            let users = (0_u64..).zip(names.clone()).map(|(n, name)| User {
                seed: seed ^ (n + 100 * region as u64),
                name,
                gateways: gateways.clone(),
                runtime: runtime.clone(),
                oracle: oracle.clone(),
                quiet: quiet.clone(),
            });
            let users: Vec<User> = users.collect();
            async move {
                futures::future::join_all(users.into_iter().map(User::live)).await;
                Ok(())
            }
        });
    }

    /// Gives the orders that the faults hold.
    pub(super) fn operator_of(&mut self, sim: &mut turmoil::Sim<'_>) {
        let (api, operator) = (self.addresses(Role::Control, "api"), self.operator.clone());
        let ip = at_region(0, OPERATOR_NUMBER);
        self.host(sim, "operator", ip, None, move |runtime| {
            operator.clone().serve(runtime, api.clone())
        });
    }

    /// Looks which table each gateway and mesh uses, all the time.
    pub(super) fn observer(&mut self, sim: &mut turmoil::Sim<'_>) {
        let shown = |place: &&Place| matches!(place.role, Role::Gateway | Role::Mesh);
        let shown = self.places.iter().filter(shown);
        let shown = shown.map(|place| (place.process.to_string(), address(place, "admin")));
        let shown: Vec<_> = shown.collect();
        let oracle = self.oracle.clone();
        let ip = at_region(0, OBSERVER_NUMBER);
        self.host(sim, "observer", ip, None, move |runtime| {
            let (shown, oracle) = (shown.clone(), oracle.clone());
            async move {
                let looks = shown.into_iter().map(|(name, at)| {
                    let (runtime, oracle) = (runtime.clone(), oracle.clone());
                    async move { observe(&runtime, &name, at, &oracle).await }
                });
                futures::future::join_all(looks).await;
                Ok(())
            }
        });
    }
}

/// Asks a process again and again which table it uses.
async fn observe(runtime: &Runtime, name: &str, at: SocketAddr, oracle: &Oracle) {
    loop {
        tokio::time::sleep(OBSERVE_EVERY).await;
        let life = oracle.life(name);
        let head = "GET /debug/table HTTP/1.1";
        let Ok(answer) = http::ask(runtime, at, head, "", OBSERVE_LIMIT).await else {
            continue;
        };
        let shown: Value = serde_json::from_str(&answer.body).unwrap_or_default();
        let version = shown["version"].as_str().and_then(|text| {
            let (world, number) = text.rsplit_once('.')?;
            Some((world, number.parse().ok()?))
        });
        if let Some((world, number)) = version {
            oracle.uses((name, life), world, number);
        }
    }
}
