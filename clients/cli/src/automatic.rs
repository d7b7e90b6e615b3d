//! `atoll switch automatic status | off | on | freeze | thaw`

use atoll_api::{AUTOMATIC, AutomaticOrder, AutomaticStatus, AutomaticVerb, Exit, Timestamp};

use crate::client::Client;
use crate::{Failure, Format, Screen, output};

pub(crate) async fn status(
    client: &Client,
    format: Format,
    screen: &mut Screen<'_>,
) -> Result<Exit, Failure> {
    let status: AutomaticStatus = client.get(AUTOMATIC).await?;
    show(&status, format, screen)
}

pub(crate) async fn order(
    client: &Client,
    order: AutomaticVerb,
    by: String,
    reason: String,
    format: Format,
    screen: &mut Screen<'_>,
) -> Result<Exit, Failure> {
    let order = AutomaticOrder { order, by, reason };
    let status: AutomaticStatus = client.post(AUTOMATIC, &order).await?;
    show(&status, format, screen)?;
    // What was ordered is so: nothing to warn of.
    Ok(Exit::Ok)
}

fn show(
    status: &AutomaticStatus,
    format: Format,
    screen: &mut Screen<'_>,
) -> Result<Exit, Failure> {
    let word = word(status);
    match (output::whole(status, format)?, format) {
        (Some(whole), _) => screen.data(&whole),
        (None, Format::Name) => screen.data(word),
        (None, _) => {
            let reason = status.off.as_ref().or(status.frozen.as_ref());
            let reason = reason.map(|reason| format!(" ({reason})"));
            screen.data(&format!("automation {word}{}", reason.unwrap_or_default()));
            for act in &status.acts {
                let group = act.group.as_ref().map(|group| format!("{group} "));
                let at = Timestamp(act.unix_ms);
                let line = format!("did    {at} {}{}", group.unwrap_or_default(), act.what);
                screen.data(&line);
            }
            for entry in &status.orders {
                let (at, order) = (Timestamp(entry.unix_ms), &entry.order);
                let verb = format!("{:?}", order.order).to_lowercase();
                screen.data(&format!(
                    "order  {at} {verb} by {}: {}",
                    order.by, order.reason
                ));
            }
        }
    }
    Ok(if word == "on" {
        Exit::Ok
    } else {
        Exit::Warnings
    })
}

fn word(status: &AutomaticStatus) -> &'static str {
    match status {
        AutomaticStatus { off: Some(_), .. } => "off",
        AutomaticStatus {
            configured: false, ..
        } => "off by configuration",
        AutomaticStatus {
            frozen: Some(_), ..
        } => "frozen",
        _ => "on",
    }
}
