//! `atoll schema apply -f FILE`

use std::path::Path;

use atoll_api::{Code, Exit, Problem, SCHEMA, SchemaOrder, SchemaResult};

use crate::client::Client;
use crate::table::{Table, or_dash};
use crate::{Failure, Format, Screen, output};

pub(crate) async fn apply(
    client: &Client,
    file: &Path,
    format: Format,
    screen: &mut Screen<'_>,
) -> Result<Exit, Failure> {
    let sql = std::fs::read_to_string(file).map_err(|error| {
        Problem::new(Code::FILE, format!("{} cannot be read", file.display()))
            .why(error.to_string())
    })?;
    let name = file
        .file_name()
        .map(|name| name.to_string_lossy().into_owned());
    let order = SchemaOrder {
        name: name.unwrap_or_default(),
        sql,
    };
    let result: SchemaResult = client.post(SCHEMA, &order).await?;
    match (output::whole(&result, format)?, format) {
        (Some(whole), _) => screen.data(&whole),
        (None, Format::Name) => {
            result
                .groups
                .iter()
                .for_each(|g| screen.data(&format!("datagroup/{}", g.group)));
        }
        (None, _) => {
            let mut table = Table::new(&["GROUP", "APPLIED TO SHARDS", "ERROR"]);
            for group in &result.groups {
                let text = |text: &str| or_dash((!text.is_empty()).then_some(text));
                table.row(vec![
                    group.group.to_string(),
                    text(&group.applied),
                    text(&group.error),
                ]);
            }
            table.lines().iter().for_each(|line| screen.data(line));
        }
    }
    if result.complete() {
        return Ok(Exit::Ok);
    }
    let failed = result.groups.iter().filter(|group| !group.error.is_empty());
    let problem = Problem::new(Code::SCHEMA, "the schema was not applied everywhere")
        .effect("where it was applied it stays; applying it again is safe if the file is")
        .next(format!("atoll schema apply -f {}", file.display()));
    let why = |problem: Problem, g: &atoll_api::SchemaGroup| {
        problem.why(format!("group {}: {}", g.group, g.error))
    };
    Err(Box::new(failed.fold(problem, why)))
}
