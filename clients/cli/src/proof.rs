//! `atoll switch proof`, `atoll switch key`, `atoll verify`

use std::path::Path;

use atoll_api::{Code, Exit, KEY, Problem, PublicKey};
use atoll_proof::{Flaw, Verified, verify};

use crate::client::Client;
use crate::{Failure, Format, Screen, output};

fn broken(flaw: &Flaw, place: String) -> Failure {
    let problem = Problem::new(Code::PROOF, "the proof does not hold");
    Box::new(problem.why(flaw.to_string()).place(place))
}

/// Shows an execution's proof, verified with the key that the server names. A person sees only what
/// holds; a program gets what was signed, and the exit code says whether it holds.
pub(crate) async fn show(
    client: &Client,
    name: &str,
    format: Format,
    screen: &mut Screen<'_>,
) -> Result<Exit, Failure> {
    let text = client.text(&atoll_api::proof(name)).await?;
    if format == Format::Json {
        // Byte for byte what was signed: what is kept in a file can be verified.
        screen.data(&text);
    }
    let key: PublicKey = client.get(KEY).await?;
    let verified = verify(&text, Some(&key.public_key));
    let verified = verified.map_err(|flaw| broken(&flaw, format!("Execution/{name}")))?;
    if format != Format::Json {
        print(&verified, name, format, screen)?;
    }
    Ok(judged(&verified, screen))
}

/// What a proof that holds says of the rows.
fn judged(verified: &Verified, screen: &mut Screen<'_>) -> Exit {
    let different = verified.sections.different();
    if different.is_empty() {
        return Exit::Ok;
    }
    for rows in different {
        let (group, shard, members) = (&rows.group, rows.shard, rows.different.join(", "));
        screen.say(&format!(
            "group {group}, shard {shard}: {members} held other rows than the primary; a person must look"
        ));
    }
    Exit::Warnings
}

pub(crate) async fn key(
    client: &Client,
    format: Format,
    screen: &mut Screen<'_>,
) -> Result<Exit, Failure> {
    let key: PublicKey = client.get(KEY).await?;
    match output::whole(&key, format)? {
        Some(whole) => screen.data(&whole),
        None => screen.data(&key.public_key),
    }
    Ok(Exit::Ok)
}

/// Verifies a file, and asks nobody.
pub(crate) fn file(
    path: &Path,
    key: Option<&str>,
    format: Format,
    screen: &mut Screen<'_>,
) -> Result<Exit, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let what = format!("{} cannot be read", path.display());
        Box::new(Problem::new(Code::FILE, what).why(error.to_string()))
    })?;
    let verified = verify(&text, key);
    let verified = verified.map_err(|flaw| broken(&flaw, path.display().to_string()))?;
    let name = verified.sections.execution.name.clone();
    print(&verified, &name, format, screen)?;
    let exit = judged(&verified, screen);
    if key.is_none() {
        let key = &verified.key;
        screen.say(&format!(
            "signed with {key}; give --key to say whose that must be (atoll switch key)"
        ));
    }
    Ok(exit)
}

fn print(
    verified: &Verified,
    name: &str,
    format: Format,
    screen: &mut Screen<'_>,
) -> Result<(), Failure> {
    match (output::whole(&verified.sections, format)?, format) {
        (Some(whole), _) => screen.data(&whole),
        (None, Format::Name) => screen.data(&format!("execution/{name}")),
        (None, _) => {
            screen.data(verified.sections.to_string().trim_end());
            screen.data(&format!("signed     by {}", verified.key));
        }
    }
    Ok(())
}
