//! Whose request it is, from whatever a client sends as path, header and cookie.
#![no_main]

use atoll_gateway::fuzzing::identify;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: (&[u8], &[u8], &[u8])| {
    let (uri, header, cookie) = data;
    let request = http::Request::builder()
        .uri(uri)
        .header("x-user-id", header)
        .header("cookie", cookie)
        .body(());
    if let Ok(request) = request
        && let Some(user) = identify(&request.into_parts().0)
    {
        // Whoever is found is named by the rule for user ids, and stays so.
        let text = user.to_string();
        assert!((1..=64).contains(&text.len()), "{text:?}");
        let again = atoll_topology::UserId::parse(text.as_str());
        assert_eq!(again.ok().map(|user| user.to_string()), Some(text));
    }
});
