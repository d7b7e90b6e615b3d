//! Sealing and verifying.

use std::collections::BTreeMap;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::canonical::canonical;
use crate::document::Sections;

/// What a proof of this version says that it is.
pub const FORMAT: &str = "atoll.dev/proof/v1";

/// Signs proofs.
pub struct Key(SigningKey);

impl Key {
    /// From its 32 secret bytes.
    pub fn from_secret(secret: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(secret))
    }

    /// The public half, in hexadecimal: what proofs are verified with.
    pub fn public(&self) -> String {
        hex::encode(self.0.verifying_key().as_bytes())
    }
}

/// The object on paper.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    format: String,
    sections: BTreeMap<String, Value>,
    digests: BTreeMap<String, String>,
    key: String,
    signature: String,
}

/// What is signed.
#[derive(Serialize)]
struct Signed<'a> {
    format: &'a str,
    digests: &'a BTreeMap<String, String>,
    key: &'a str,
}

/// Why a document is not a proof, or not this one's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Flaw {
    /// It cannot be read.
    #[error("it is not a proof: {reason}")]
    Unreadable {
        /// Why.
        reason: String,
    },
    /// Another format, or a newer one.
    #[error("its format is {found:?}, not {FORMAT}")]
    Format {
        /// What it says.
        found: String,
    },
    /// A section was changed.
    #[error("section {section} was changed: its digest is {is}, and the proof says {said}")]
    Digest {
        /// Which.
        section: String,
        /// What the document says.
        said: String,
        /// What it is.
        is: String,
    },
    /// A section without a digest, or a digest without its section.
    #[error("section {section} has no {lacks}")]
    Lacks {
        /// Which.
        section: String,
        /// `digest`, or `content`.
        lacks: &'static str,
    },
    /// The digests are not what was signed, or the key is not the one that signed.
    #[error("the signature does not fit the digests and the key {key}")]
    Signature {
        /// The key that it names.
        key: String,
    },
    /// Signed, but by somebody else.
    #[error("it was signed with the key {found}, not with {wanted}")]
    OtherKey {
        /// Its key.
        found: String,
        /// The one that was asked for.
        wanted: String,
    },
    /// The same content in another text.
    #[error(
        "its text is not the canonical one from byte {at} on, though nothing it says was changed"
    )]
    Text {
        /// The first byte that differs.
        at: usize,
    },
}

/// A proof that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// What it says.
    pub sections: Sections,
    /// The key that signed it, in hexadecimal.
    pub key: String,
}

fn unreadable(error: impl ToString) -> Flaw {
    Flaw::Unreadable {
        reason: error.to_string(),
    }
}

fn digest(value: &Value) -> Result<String, Flaw> {
    let text = canonical(value).map_err(unreadable)?;
    Ok(hex::encode(Sha256::digest(text.as_bytes())))
}

fn signed(sealed: &Sealed) -> Result<String, Flaw> {
    let signed = Signed {
        format: &sealed.format,
        digests: &sealed.digests,
        key: &sealed.key,
    };
    let value = serde_json::to_value(signed).map_err(unreadable)?;
    canonical(&value).map_err(unreadable)
}

/// The proof as one line of text.
pub fn seal(sections: &Sections, key: &Key) -> Result<String, Flaw> {
    let sections = serde_json::to_value(sections).map_err(unreadable)?;
    let sections: BTreeMap<String, Value> = serde_json::from_value(sections).map_err(unreadable)?;
    let digests = sections
        .iter()
        .map(|(name, section)| Ok((name.clone(), digest(section)?)));
    let mut sealed = Sealed {
        format: FORMAT.to_owned(),
        digests: digests.collect::<Result<_, Flaw>>()?,
        sections,
        key: key.public(),
        signature: String::new(),
    };
    let signature = key.0.sign(signed(&sealed)?.as_bytes());
    sealed.signature = hex::encode(signature.to_bytes());
    let value = serde_json::to_value(&sealed).map_err(unreadable)?;
    canonical(&value).map_err(unreadable)
}

/// Whether a text is a proof, and signed with `key` if one is named. The line's end does not count.
pub fn verify(text: &str, key: Option<&str>) -> Result<Verified, Flaw> {
    let text = text.strip_suffix('\n').unwrap_or(text);
    let sealed: Sealed = serde_json::from_str(text).map_err(unreadable)?;
    if sealed.format != FORMAT {
        return Err(Flaw::Format {
            found: sealed.format,
        });
    }
    for (section, value) in &sealed.sections {
        let (section, lacks) = (section.clone(), "digest");
        let Some(said) = sealed.digests.get(&section).cloned() else {
            return Err(Flaw::Lacks { section, lacks });
        };
        let is = digest(value)?;
        if is != said {
            return Err(Flaw::Digest { section, said, is });
        }
    }
    let lacking = |section: &&String| !sealed.sections.contains_key(*section);
    if let Some(section) = sealed.digests.keys().find(lacking).cloned() {
        let lacks = "content";
        return Err(Flaw::Lacks { section, lacks });
    }
    let fits = || {
        let key: [u8; 32] = hex::decode(&sealed.key).ok()?.try_into().ok()?;
        let signature = Signature::from_slice(&hex::decode(&sealed.signature).ok()?).ok()?;
        // One signature has one text, too.
        if hex::encode(signature.to_bytes()) != sealed.signature {
            return None;
        }
        let message = signed(&sealed).ok()?;
        let key = VerifyingKey::from_bytes(&key).ok()?;
        key.verify_strict(message.as_bytes(), &signature).ok()
    };
    if fits().is_none() {
        let key = sealed.key.clone();
        return Err(Flaw::Signature { key });
    }
    if let Some(wanted) = key.filter(|wanted| !wanted.eq_ignore_ascii_case(&sealed.key)) {
        let (found, wanted) = (sealed.key, wanted.to_owned());
        return Err(Flaw::OtherKey { found, wanted });
    }
    let whole = serde_json::to_value(&sealed).map_err(unreadable)?;
    let whole = canonical(&whole).map_err(unreadable)?;
    if whole != text {
        let same = |(a, b): &(u8, u8)| a == b;
        let at = whole.bytes().zip(text.bytes()).take_while(same).count();
        return Err(Flaw::Text { at });
    }
    let sections = serde_json::to_value(&sealed.sections).map_err(unreadable)?;
    Ok(Verified {
        sections: serde_json::from_value(sections).map_err(unreadable)?,
        key: sealed.key,
    })
}
