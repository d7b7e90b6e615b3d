//! What every error looks like on the wire: Kubernetes' `Status`, with ours in `details.atoll`.

use serde::{Deserialize, Serialize};

use crate::Code;

/// What ours says beyond Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Stable code with a page in docs/errors.
    pub code: Code,
    /// Why, each with value and limit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub why: Vec<String>,
    /// Where, and when it was seen.
    #[serde(default, rename = "where", skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// What has been done so far, and what users notice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<String>,
    /// The next command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Kubernetes' place for more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Details {
    /// Which resource.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Of which kind.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub atoll: Option<Told>,
}

/// An error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// `Status`
    pub kind: String,
    /// `v1`, as Kubernetes' own.
    pub api_version: String,
    /// `Failure`
    pub status: String,
    /// What.
    pub message: String,
    /// Kubernetes' word for it: `NotFound`, `Conflict`, …
    pub reason: String,
    /// HTTP status.
    pub code: u16,
    /// More.
    #[serde(default)]
    pub details: Details,
}

impl Problem {
    /// An error that says what.
    pub fn new(code: Code, what: impl Into<String>) -> Self {
        let told = Told {
            code,
            why: vec![],
            place: None,
            effect: None,
            next: None,
        };
        Self {
            kind: "Status".into(),
            api_version: "v1".into(),
            status: "Failure".into(),
            message: what.into(),
            reason: code.reason().into(),
            code: code.status(),
            details: Details {
                atoll: Some(told),
                ..Details::default()
            },
        }
    }

    /// What is no answer of ours.
    pub fn unreadable(error: &dyn std::error::Error) -> Self {
        Self::new(
            Code::UNREADABLE_ANSWER,
            "the server's answer could not be understood",
        )
        .why(error.to_string())
    }

    fn told(mut self, change: impl FnOnce(&mut Told)) -> Self {
        if let Some(told) = &mut self.details.atoll {
            change(told);
        }
        self
    }

    /// Says why, with value and limit; may be said several times.
    pub fn why(self, why: impl Into<String>) -> Self {
        self.told(|told| told.why.push(why.into()))
    }

    /// Says where, and when it was seen.
    pub fn place(self, place: impl Into<String>) -> Self {
        self.told(|told| told.place = Some(place.into()))
    }

    /// Says what has been done so far.
    pub fn effect(self, effect: impl Into<String>) -> Self {
        self.told(|told| told.effect = Some(effect.into()))
    }

    /// Says what to do next.
    pub fn next(self, next: impl Into<String>) -> Self {
        self.told(|told| told.next = Some(next.into()))
    }

    /// Says which resource.
    pub fn about(mut self, kind: crate::Kind, name: impl Into<String>) -> Self {
        self.details.kind = kind.plural().to_owned();
        self.details.name = name.into();
        self
    }

    /// Its stable code; what comes without one is an unreadable answer.
    pub fn stable_code(&self) -> Code {
        self.details
            .atoll
            .as_ref()
            .map_or(Code::UNREADABLE_ANSWER, |told| told.code)
    }
}

/// For people, on several lines:
/// ```text
/// error[A0412] shard 71 cannot be promoted in hangzhou
///   why     replication lag 41.2 s > limit 5 s
///   where   Execution/out-7f3a step promote, seen 14:02:11Z by agent hz-b
///   effect  31 of 32 shards are done; writes to shard 71 are held, then refused
///   next    atoll switch resume out-7f3a --skip 71
/// ```
impl Problem {
    /// The lines.
    pub fn in_lines(&self) -> String {
        let mut text = format!("error[{}] {}", self.stable_code(), self.message);
        if let Some(told) = &self.details.atoll {
            let mut line = |label: &str, value: &str| {
                for (n, part) in value.lines().enumerate() {
                    let label = if n == 0 { label } else { "" };
                    text.push_str(&format!("\n  {label:<7} {part}"));
                }
            };
            told.why.iter().for_each(|why| line("why", why));
            told.place.iter().for_each(|place| line("where", place));
            told.effect.iter().for_each(|effect| line("effect", effect));
            told.next.iter().for_each(|next| line("next", next));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_why_where_effect_and_next() {
        let problem = Problem::new(Code::STALE_PLAN, "plan 7f3a is for a world that has moved")
            .why("group g1: made for term 2, open is term 3")
            .why("group g2: made for term 2, open is term 4")
            .place("Plan/switch-hz-1, seen 14:02:11Z by control")
            .effect("nothing was done")
            .next("atoll switch plan cell hz-1 --to shanghai");
        insta::assert_snapshot!(problem.in_lines(), @r"
        error[A0411] plan 7f3a is for a world that has moved
          why     group g1: made for term 2, open is term 3
          why     group g2: made for term 2, open is term 4
          where   Plan/switch-hz-1, seen 14:02:11Z by control
          effect  nothing was done
          next    atoll switch plan cell hz-1 --to shanghai
        ");
    }

    #[test]
    fn an_error_survives_the_wire_and_looks_like_kubernetes_status() {
        let problem = Problem::new(Code::NOT_FOUND, "there is no cell hz-9")
            .about(crate::Kind::Cell, "hz-9")
            .next("atoll get cells");
        let text = serde_json::to_string(&problem).unwrap();
        insta::assert_snapshot!(text, @r#"{"kind":"Status","apiVersion":"v1","status":"Failure","message":"there is no cell hz-9","reason":"NotFound","code":404,"details":{"name":"hz-9","kind":"cells","atoll":{"code":"A0404","next":"atoll get cells"}}}"#);
        assert_eq!(serde_json::from_str::<Problem>(&text).unwrap(), problem);
    }
}
