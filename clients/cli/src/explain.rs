//! `atoll explain user ID` and `atoll shard locate`

use atoll_api::{EXPLAIN, Exit, Explain, LOCATE, Located};
use atoll_topology::UserId;

use crate::client::Client;
use crate::table::{Table, or_dash};
use crate::{Failure, Format, Screen, output};

pub(crate) async fn user(
    client: &Client,
    user: &UserId,
    format: Format,
    screen: &mut Screen<'_>,
) -> Result<Exit, Failure> {
    let explain: Explain = client
        .get(&format!("{EXPLAIN}?user={}", quoted(user)))
        .await?;
    match (output::whole(&explain, format)?, format) {
        (Some(whole), _) => screen.data(&whole),
        (None, Format::Name) => screen.data(&format!("cell/{}", explain.cell)),
        (None, _) => screen.data(&explain.text),
    }
    Ok(Exit::Ok)
}

/// A user id in a query: all but `:` and `@` may stand there as they are.
fn quoted(user: &UserId) -> String {
    user.as_str().replace(':', "%3A").replace('@', "%40")
}

pub(crate) async fn locate(
    client: &Client,
    user: Option<&UserId>,
    shard: Option<u16>,
    format: Format,
    screen: &mut Screen<'_>,
) -> Result<Exit, Failure> {
    let what = match (user, shard) {
        (Some(user), _) => format!("user={}", quoted(user)),
        (None, shard) => format!("shard={}", shard.unwrap_or_default()),
    };
    let located: Located = client.get(&format!("{LOCATE}?{what}")).await?;
    match (output::whole(&located, format)?, format) {
        (Some(whole), _) => screen.data(&whole),
        (None, Format::Name) => screen.data(&located.shard.to_string()),
        (None, _) => {
            let heads = [
                "SHARD", "CELL", "REGION", "EPOCH", "STATE", "GROUP", "TERM", "PRIMARY", "SCHEMA",
            ];
            let mut table = Table::new(&heads);
            table.row(vec![
                located.shard.to_string(),
                located.cell,
                located.region,
                located.epoch.to_string(),
                if located.switching {
                    "switching"
                } else {
                    "active"
                }
                .to_owned(),
                located.group,
                or_dash(located.term),
                or_dash(located.primary),
                located.schema,
            ]);
            table.lines().iter().for_each(|line| screen.data(line));
        }
    }
    Ok(Exit::Ok)
}
