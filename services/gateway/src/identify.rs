//! Who is the user: the route's extractors in order; the first that answers wins.

use std::borrow::Cow;

use atoll_topology::{Extractor, Route, UserId};
use http::request::Parts;
use http::{HeaderMap, header};

use crate::error::Problem;

/// The user of a request, where the route's extractors find one.
pub(crate) fn identify(route: &Route, request: &Parts) -> Result<Option<UserId>, Problem> {
    for extractor in &route.user {
        let found = match extractor {
            Extractor::Header(name) => header(&request.headers, name),
            Extractor::Cookie(name) => cookie(&request.headers, name),
            Extractor::Query(name) => query(request.uri.query().unwrap_or_default(), name),
        };
        let invalid = |reason: String| Problem::User {
            extractor: name_of(extractor),
            reason,
        };
        match found.map_err(|reason| invalid(reason.to_owned()))? {
            None => {}
            Some(text) => {
                let user = UserId::parse(text).map_err(|wrong| invalid(wrong.rule.to_owned()))?;
                return Ok(Some(user));
            }
        }
    }
    Ok(None)
}

/// The user of any request, by a route that looks everywhere.
#[cfg(fuzzing)]
pub fn fuzz(request: &Parts) -> Option<UserId> {
    use std::sync::LazyLock;

    static ROUTE: LazyLock<Route> = LazyLock::new(|| Route {
        name: "fuzz".into(),
        path_prefix: "/".into(),
        kind: atoll_topology::RouteKind::Sharded,
        user: vec![
            Extractor::Header("x-user-id".into()),
            Extractor::Cookie("uid".into()),
            Extractor::Query("uid".into()),
        ],
    });
    identify(&ROUTE, request).ok().flatten()
}

fn name_of(extractor: &Extractor) -> String {
    match extractor {
        Extractor::Header(name) => format!("header {name}"),
        Extractor::Cookie(name) => format!("cookie {name}"),
        Extractor::Query(name) => format!("query parameter {name}"),
    }
}

/// A value that stands twice names nobody: two readers might take different ones.
const TWICE: &str = "it stands there more than once";

fn header<'r>(headers: &'r HeaderMap, name: &str) -> Result<Option<Cow<'r, str>>, &'static str> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(TWICE);
    }
    value
        .to_str()
        .map(|text| Some(text.into()))
        .map_err(|_| "it is not ASCII text")
}

fn cookie<'r>(headers: &'r HeaderMap, name: &str) -> Result<Option<Cow<'r, str>>, &'static str> {
    let mut found = None;
    for line in headers.get_all(header::COOKIE) {
        // A cookie that is not text is somebody else's.
        for pair in line.to_str().unwrap_or_default().split(';') {
            match pair.split_once('=') {
                Some((key, value)) if key.trim() == name => {
                    if found.is_some() {
                        return Err(TWICE);
                    }
                    found = Some(value.trim().trim_matches('"').into());
                }
                _ => {}
            }
        }
    }
    Ok(found)
}

fn query<'r>(query: &'r str, name: &str) -> Result<Option<Cow<'r, str>>, &'static str> {
    let mut found = None;
    for pair in query.split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if decode(key)? == name {
            if found.is_some() {
                return Err(TWICE);
            }
            found = Some(decode(value)?);
        }
    }
    Ok(found)
}

/// Percent-decoding; `+` is not a user id's character, so a blank will be refused later.
fn decode(text: &str) -> Result<Cow<'_, str>, &'static str> {
    const WRONG: &str = "its percent-encoding is not valid";
    if !text.contains(['%', '+']) {
        return Ok(text.into());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        bytes.push(match first {
            b'+' => b' ',
            b'%' => {
                let mut byte = [0];
                let digits = rest.get(..2).ok_or(WRONG)?;
                hex::decode_to_slice(digits, &mut byte).map_err(|_| WRONG)?;
                rest = &rest[2..];
                byte[0]
            }
            plain => *plain,
        });
    }
    String::from_utf8(bytes).map(Into::into).map_err(|_| WRONG)
}

#[cfg(test)]
mod tests {
    use atoll_topology::RouteKind;

    use super::*;

    fn parts(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn user(uri: &str, headers: &[(&str, &str)]) -> Result<Option<String>, String> {
        let route = Route {
            name: "all".into(),
            path_prefix: "/".into(),
            kind: RouteKind::Sharded,
            user: vec![
                Extractor::Header("x-user".into()),
                Extractor::Cookie("uid".into()),
                Extractor::Query("user".into()),
            ],
        };
        identify(&route, &parts(uri, headers))
            .map(|user| user.map(|user| user.to_string()))
            .map_err(|problem| problem.to_string())
    }

    #[test]
    fn the_first_place_that_answers_wins() {
        let all = [("x-user", "1"), ("cookie", "a=b; uid=2")];
        assert_eq!(user("/?user=3", &all), Ok(Some("1".into())));
        assert_eq!(user("/?user=3", &all[1..]), Ok(Some("2".into())));
        assert_eq!(user("/?x=1&user=a%40b", &[]), Ok(Some("a@b".into())));
        assert_eq!(user("/?users=3", &[("cookie", "uid2=2")]), Ok(None));
    }

    #[test]
    fn what_is_no_user_id_is_refused_with_the_place_that_held_it() {
        let wrong = [
            ("/", vec![("x-user", "a b")], "header x-user"),
            ("/", vec![("x-user", "")], "header x-user"),
            ("/", vec![("x-user", "1"), ("x-user", "2")], "header x-user"),
            ("/", vec![("cookie", "uid=1; uid=2")], "cookie uid"),
            ("/?user=1&user=2", vec![], "query parameter user"),
            ("/?user=%4", vec![], "query parameter user"),
            ("/?user=1+2", vec![], "query parameter user"),
            ("/?%75ser=%00", vec![], "query parameter user"),
        ];
        for (uri, headers, place) in wrong {
            let error = user(uri, &headers).unwrap_err();
            assert!(error.starts_with(place), "{uri} {headers:?}: {error}");
        }
    }
}
