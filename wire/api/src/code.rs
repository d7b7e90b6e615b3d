//! Every error code that a person or a program may meet: stable, with one meaning for ever.
//!
//! | range | who says it |
//! |---|---|
//! | A01xx | the checks of a topology file |
//! | A04xx | control's API |
//! | A06xx | the command line |
//! | A20xx | the gateway, to users' programs |

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How the command line ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// It failed, or there are differences.
    Failed = 1,
    /// The command was not understood.
    Usage = 2,
    /// There is no such thing.
    NotFound = 3,
    /// The world has moved since.
    Stale = 4,
    /// Not allowed.
    Denied = 5,
    /// A guard says no.
    Refused = 6,
    /// A second person has to approve.
    WaitsForApproval = 7,
    /// It did not happen in time; it may still.
    TimedOut = 8,
    /// No server answers.
    NoEndpoint = 9,
    /// Done, with warnings.
    Warnings = 10,
    /// The watcher went away; the work goes on.
    Detached = 130,
}

/// Who says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Area {
    /// The checks of a topology file.
    Topology,
    /// Control's API.
    Control,
    /// The command line.
    CommandLine,
    /// The gateway.
    Gateway,
}

struct Row {
    code: &'static str,
    /// HTTP status; 0 where none is involved.
    status: u16,
    exit: Exit,
    title: &'static str,
    meaning: &'static str,
    remedy: &'static str,
}

/// A stable code: `A0404`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Code(u16);

macro_rules! codes {
    ($($name:ident = $number:literal $text:literal, $status:literal, $exit:ident: $title:literal,
        $meaning:literal, $remedy:literal;)*) => {
        impl Code {
            $(#[doc = $title] pub const $name: Self = Self($number);)*

            /// Every code, ascending.
            pub const ALL: &[Self] = &[$(Self::$name),*];
        }

        fn row(code: Code) -> &'static Row {
            match code.0 {
                $($number => &Row {
                    code: $text, status: $status, exit: Exit::$exit,
                    title: $title, meaning: $meaning, remedy: $remedy,
                },)*
                _ => &NO_ROW,
            }
        }
    };
}

/// Where a newer server's code leads that this program does not know.
static NO_ROW: Row = Row {
    code: "A0000",
    status: 500,
    exit: Exit::Failed,
    title: "Unknown code",
    meaning: "A newer server used a code that this program does not know.",
    remedy: "Read the page of the code in a newer version of the documents.",
};

codes! {
    TOPOLOGY_SYNTAX = 100 "A0100", 422, Failed: "Not YAML", "The text is not YAML, or it uses anchors, aliases or tags, which resources do not need.", "Correct the line that is named.";
    TOPOLOGY_TYPE = 101 "A0101", 422, Failed: "Wrong type", "A value has another type than its key asks for.", "Correct the value that is named.";
    TOPOLOGY_UNKNOWN_KEY = 102 "A0102", 422, Failed: "Unknown key", "This kind of resource has no such key.", "Look for a slip of the pen; keys are case-sensitive.";
    TOPOLOGY_MISSING_KEY = 103 "A0103", 422, Failed: "Missing key", "A key that this kind of resource needs is absent.", "Add the key.";
    TOPOLOGY_UNKNOWN_KIND = 104 "A0104", 422, Failed: "Unknown kind", "The document's kind or API version is not one of a topology.", "Use `apiVersion: atoll.dev/v1` and one of the kinds that the message lists.";
    TOPOLOGY_BAD_ID = 105 "A0105", 422, Failed: "Bad name", "A name breaks the rule of identifiers: 1 to 40 of a-z, 0-9 and '-', starting with a letter.", "Choose another name.";
    TOPOLOGY_DUPLICATE_NAME = 106 "A0106", 422, Failed: "Name used twice", "Two resources of one kind have one name.", "Rename or remove one of them.";
    TOPOLOGY_DUPLICATE_KEY = 107 "A0107", 422, Failed: "Key used twice", "The same key stands twice in one mapping.", "Remove one of them.";
    TOPOLOGY_BAD_VALUE = 108 "A0108", 422, Failed: "Bad value", "A value is outside its range or list.", "Choose one of the values that the message names.";
    TOPOLOGY_UNKNOWN_REGION = 110 "A0110", 422, Failed: "Unknown region", "A region is named that the topology does not have.", "Add the region or correct the name.";
    TOPOLOGY_UNKNOWN_ZONE = 111 "A0111", 422, Failed: "Unknown zone", "A zone is named that the topology does not have.", "Add the zone or correct the name.";
    TOPOLOGY_UNKNOWN_CELL = 112 "A0112", 422, Failed: "Unknown cell", "A cell is named that the topology does not have.", "Add the cell or correct the name.";
    TOPOLOGY_ROUND_TRIP = 113 "A0113", 422, Failed: "Contradicting round trips", "Two regions disagree about the round trip between them, or a region names itself.", "Give the same number on both sides, or on one side only.";
    TOPOLOGY_WEIGHTS = 120 "A0120", 422, Failed: "Weights do not sum to 100", "The weights of a cell's slots must sum to 100.", "Correct the weights.";
    TOPOLOGY_SLOT_REGION = 121 "A0121", 422, Failed: "Slot in another region", "A cell's slot stands in a zone of another region than the cell.", "Choose a zone of the cell's region.";
    TOPOLOGY_CELL_COUNT = 122 "A0122", 422, Failed: "Too many cells of a kind", "There is more than one global cell, or more than one city cell in a region.", "Keep one of them.";
    TOPOLOGY_BAD_SHARDS = 130 "A0130", 422, Failed: "Not a list of shards", "The text is not a list of shards such as `0-24,30`, or names a shard that does not exist.", "Correct the list.";
    TOPOLOGY_OWNED_TWICE = 131 "A0131", 422, Failed: "Shard with two owners", "A shard is owned by two cells: two could write the same user's data.", "Give it to one of them.";
    TOPOLOGY_NEVER_OWNED = 132 "A0132", 422, Failed: "Shard without owner", "No cell owns a shard: its users could not be served.", "Give it to a cell.";
    TOPOLOGY_STORED_TWICE = 133 "A0133", 422, Failed: "Shard in two data groups", "A shard is stored in two data groups.", "Keep it in one of them.";
    TOPOLOGY_NEVER_STORED = 134 "A0134", 422, Failed: "Shard in no data group", "No data group stores a shard.", "Add it to a group.";
    TOPOLOGY_OWNER_KIND = 135 "A0135", 422, Failed: "Owner is not sharded", "A shard is owned by a cell of another kind than `sharded`.", "Choose a sharded cell.";
    TOPOLOGY_SHARD_MAP_COUNT = 136 "A0136", 422, Failed: "Not exactly one shard map", "A topology has exactly one shard map.", "Add one, or remove the others.";
    TOPOLOGY_SHARD_COUNT = 137 "A0137", 422, Failed: "Wrong number of shards", "The scheme does not have this number of shards: `digits` has 100, `hash` 1 to 16,384.", "Correct the number.";
    TOPOLOGY_MEMBERS_SHARE_ZONE = 140 "A0140", 422, Failed: "Members share a zone", "Two members of a data group stand in one zone: one loss would take both.", "Put them in different zones.";
    TOPOLOGY_K_TOO_LARGE = 141 "A0141", 422, Failed: "k too large", "A commit cannot wait for more standbys than the group has.", "Choose a k smaller than the number of members.";
    TOPOLOGY_CANNOT_SURVIVE = 142 "A0142", 422, Failed: "Group cannot keep its promise", "After the loss that the group promises to survive, too few members would be left: max(F, 1 + k) are needed, with F = max(majority, N - k).", "Spread the members over more zones or regions, add members, or promise less.";
    TOPOLOGY_ROUTE_PATH = 150 "A0150", 422, Failed: "Bad path prefix", "A path prefix is not a path, or stands in two routes.", "Correct the prefix.";
    TOPOLOGY_ROUTE_USER = 151 "A0151", 422, Failed: "Route does not say who the user is", "A sharded route must say where the user id stands.", "Add a header, cookie or query parameter under `user`.";
    TOPOLOGY_ROUTE_GLOBAL = 152 "A0152", 422, Failed: "No global cell", "A global route needs a global cell.", "Add the cell or change the route's kind.";

    BAD_REQUEST = 400 "A0400", 400, Usage: "The request was not understood", "A field is missing, unknown or malformed. Fields are checked strictly so that a slip of the pen does not become an order.", "Correct the field that is named.";
    DENIED = 403 "A0403", 403, Denied: "Not allowed", "The caller may not do this.", "Ask someone who may.";
    NOT_FOUND = 404 "A0404", 404, NotFound: "There is no such thing", "No resource of this kind has this name.", "List the names with `atoll get KIND`.";
    METHOD = 405 "A0405", 405, Usage: "Not possible with this kind", "This kind of resource cannot be changed in this way: the topology of a running world is fixed in this version, and a plan never changes.", "Make a new plan, or a new world.";
    EXISTS = 409 "A0409", 409, Failed: "The name is taken by something else", "A resource of this name exists with another content. A name is an idempotency key: the same request again is fine, another one is not.", "Choose another name.";
    CONFLICT = 410 "A0410", 409, Stale: "Changed by someone else meanwhile", "The resource is not the one that was read: its version differs.", "Read it again and decide again.";
    STALE_PLAN = 411 "A0411", 409, Stale: "The world has moved since the plan was made", "A plan holds for the terms and epochs that it was made for. At least one of them is another now; the reasons list which.", "Make the plan again and read it.";
    GUARD = 412 "A0412", 422, Refused: "A guard says no", "A safety rule does not hold: too much lag, too few members, too little room, or another change is running. Nothing was done.", "See to the reason that is named, then plan again.";
    BUSY = 413 "A0413", 409, Refused: "Another change is running", "A data group goes through one change at a time.", "Watch the running one with `atoll switch watch NAME`, then try again.";
    NO_QUORUM = 414 "A0414", 503, Failed: "Too few members answer", "Fewer members than a recruit set needs can be reached. The change waits or does not begin; it never goes on with less, because an acknowledged write could be missing.", "Bring a member back: see `atoll status`.";
    STORE = 415 "A0415", 503, Failed: "The store does not answer", "Control could not read or write its records. Data planes go on; no change begins or continues.", "Look at control's log and its disk.";
    STORE_UNKNOWN = 416 "A0416", 503, Failed: "Outcome unknown", "Control could not find out whether its record was written. It will look and go on or not; nothing is half done.", "Ask again under the same name.";
    NOT_BORN = 417 "A0417", 503, Failed: "The world is not up yet", "A data group has no primary yet.", "Wait for `atoll status` to show one.";
    SCHEMA = 418 "A0418", 422, Failed: "The schema was not applied everywhere", "At least one group refused the SQL or was not reachable; the reasons list which. Where it was applied it stays; applying it again is safe.", "Correct the file, or wait for the group, then apply again.";
    WATCH_GONE = 419 "A0419", 410, Stale: "Too old to watch from", "The history after this resource version is no longer kept.", "List again and watch from there.";
    INTERNAL = 450 "A0450", 500, Failed: "A fault of control's own", "Something happened that should not. Nothing was done that its log does not show.", "Look at control's log and report it.";

    USAGE = 600 "A0600", 0, Usage: "The command was not understood", "An argument is missing, unknown or malformed.", "See `atoll help` or the command's `--help`.";
    NO_ENDPOINT = 601 "A0601", 0, NoEndpoint: "No server answers", "Every known address of control was tried for two seconds each.", "Check the addresses (`--server`, ATOLL_SERVER, `--world`) and whether control runs.";
    UNREADABLE_ANSWER = 602 "A0602", 0, Failed: "The answer was not understood", "What answered is not control, or is of another version.", "Check the address and the versions.";
    LOST_ANSWER = 603 "A0603", 0, Failed: "The answer was lost", "The request was sent and the connection broke: it may or may not have been taken.", "Ask again under the same name; that is safe.";
    FILE = 604 "A0604", 0, Failed: "A file cannot be read", "The file is missing, not readable or not what it should be.", "Check the path.";
    NO_WORLD = 605 "A0605", 0, NoEndpoint: "No world is known", "Neither a server nor a world's directory was given.", "Give `--server IP:7600`, set ATOLL_SERVER, or give `--world DIR`.";
    EXECUTION_FAILED = 606 "A0606", 0, Failed: "The execution failed", "It ended without reaching its end. Its steps say how far it came; what is done is done.", "See `atoll get execution NAME -o yaml`.";
    WAIT_TIMED_OUT = 607 "A0607", 0, TimedOut: "It did not happen in time", "The wait is over, the work is not: it goes on without the watcher.", "`atoll switch watch NAME` watches on.";
    PROOF = 608 "A0608", 0, Failed: "The proof does not hold", "The document is not what control sealed: a section, its digest, the key or the signature was changed, or it was signed with another key. The message says which.", "Ask for the proof again with `atoll switch proof NAME -o json`, and compare.";

    GATEWAY_HTTP = 2000 "A2000", 400, Failed: "The request breaks a rule of HTTP", "Two programs could read this request differently, so it is refused and the connection closed.", "Send conforming HTTP/1.1.";
    GATEWAY_BODY = 2001 "A2001", 400, Failed: "The body did not arrive", "The client broke off the body, or sent it too slowly or malformed.", "Send it again.";
    GATEWAY_USER = 2002 "A2002", 400, Failed: "Not a user id", "A place where the user id stands holds something else. The message names the place.", "Send 1 to 64 of 0-9, A-Z, a-z, '_', '.', ':', '@' and '-'.";
    GATEWAY_NO_SHARD = 2003 "A2003", 400, Failed: "The user has no shard", "The shard scheme finds no shard in this user id.", "Use an id with digits, as the scheme `digits` asks for.";
    GATEWAY_NO_ROUTE = 2004 "A2004", 404, Failed: "No route", "No route of the topology has this path.", "Correct the path or add a route.";
    GATEWAY_UNROUTABLE = 2005 "A2005", 503, Failed: "Cannot be routed now", "The gateway's table does not hold together for this request. Nothing was sent.", "Repeat it later.";
    GATEWAY_NOT_A_PEER = 2010 "A2010", 403, Denied: "The peer port is for gateways", "The peer port takes requests of this world's gateways only.", "Use the edge port.";
    GATEWAY_NOT_OWNER = 2011 "A2011", 421, Stale: "This cell does not own the shard", "A gateway forwarded a request to a cell that does not own the shard by its table. Gateways settle this between themselves.", "Nothing to do.";
    GATEWAY_TABLE_BEHIND = 2012 "A2012", 503, Stale: "The table did not arrive in time", "The owner's gateway had an older table than the sender and waited in vain. Nothing was executed.", "Repeat it.";
    GATEWAY_OWNER_UNCLEAR = 2013 "A2013", 503, Stale: "The owner is not agreed on yet", "Two gateways disagreed about the owner twice. Nothing was executed.", "Repeat it.";
    GATEWAY_BODY_NOT_KEPT = 2014 "A2014", 503, Failed: "Body too large to be sent again", "The request was not taken by the cell that it was sent to, and its body is larger than what a gateway keeps. Nothing was executed.", "Repeat it.";
    GATEWAY_HOLD_SHARD_FULL = 2020 "A2020", 503, Failed: "Too many requests wait for this shard", "The shard is changing hands, and as many requests wait for it as may. Nothing was sent.", "Repeat it after `Retry-After`.";
    GATEWAY_HOLD_FULL = 2021 "A2021", 503, Failed: "Too many requests wait", "As many requests wait in this gateway as may. Nothing was sent.", "Repeat it after `Retry-After`.";
    GATEWAY_HOLD_LONG = 2022 "A2022", 503, TimedOut: "Waited too long", "The shard was changing hands for longer than a request may wait. Nothing was sent.", "Repeat it.";
    GATEWAY_HOLD_ENDING = 2023 "A2023", 503, Failed: "The gateway is ending", "The gateway was told to end while the request waited. Nothing was sent.", "Repeat it; another gateway will take it.";
    GATEWAY_UNREACHABLE = 2030 "A2030", 503, Failed: "No cell can answer", "No cell that could answer is reachable. Nothing was sent.", "Repeat it later.";
    GATEWAY_BUSY = 2031 "A2031", 503, Failed: "Too many requests on their way", "The cell has as many connections from this gateway as it may. Nothing was sent.", "Repeat it later.";
    GATEWAY_BROKE = 2040 "A2040", 502, Failed: "Connection broke after sending", "The request was sent and no answer came: it may have been executed.", "Find out before repeating it, or repeat it with the same idempotency key.";
    GATEWAY_SILENT = 2041 "A2041", 504, Failed: "No answer in time", "The request was sent and no answer came in time: it may have been executed.", "Find out before repeating it, or repeat it with the same idempotency key.";
    GATEWAY_LOST = 2042 "A2042", 504, Failed: "Cell lost after sending", "The cell was lost after the request was sent: it may have been executed.", "Find out before repeating it, or repeat it with the same idempotency key.";
}

impl Code {
    /// `A0404`.
    pub fn text(self) -> &'static str {
        row(self).code
    }

    /// HTTP status; 0 where none is involved.
    pub fn status(self) -> u16 {
        row(self).status
    }

    /// How the command line ends with it.
    pub fn exit(self) -> Exit {
        row(self).exit
    }

    /// A few words.
    pub fn title(self) -> &'static str {
        row(self).title
    }

    /// A sentence or two.
    pub fn meaning(self) -> &'static str {
        row(self).meaning
    }

    /// What to do.
    pub fn remedy(self) -> &'static str {
        row(self).remedy
    }

    /// Who says it.
    pub fn area(self) -> Area {
        match self.0 {
            100..=199 => Area::Topology,
            600..=699 => Area::CommandLine,
            2000..=2099 => Area::Gateway,
            _ => Area::Control,
        }
    }

    /// Kubernetes' word for its HTTP status.
    pub fn reason(self) -> &'static str {
        match self.status() {
            400 => "BadRequest",
            403 => "Forbidden",
            404 => "NotFound",
            405 => "MethodNotAllowed",
            409 if self == Self::EXISTS => "AlreadyExists",
            409 => "Conflict",
            410 => "Expired",
            422 => "Invalid",
            503 => "ServiceUnavailable",
            504 => "Timeout",
            _ => "InternalError",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "A{:04}", self.0)
    }
}

impl FromStr for Code {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_prefix('A').filter(|digits| digits.len() == 4);
        let number = number.and_then(|digits| digits.parse().ok());
        number
            .map(Self)
            .ok_or_else(|| format!("{text:?} is not a code (as in A0404)"))
    }
}

impl TryFrom<String> for Code {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Code> for String {
    fn from(code: Code) -> String {
        code.to_string()
    }
}

impl From<atoll_topology::Rule> for Code {
    fn from(rule: atoll_topology::Rule) -> Self {
        rule.code().parse().unwrap_or(Self::TOPOLOGY_BAD_VALUE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_ascend_and_say_their_own_number() {
        for pair in Code::ALL.windows(2) {
            assert!(pair[0] < pair[1], "{} before {}", pair[0], pair[1]);
        }
        for code in Code::ALL {
            assert_eq!(code.text(), code.to_string());
            assert_eq!(code.text().parse(), Ok(*code));
        }
    }

    #[test]
    fn every_rule_of_a_topology_has_its_code() {
        for rule in atoll_topology::Rule::ALL {
            let code = Code::from(*rule);
            assert!(Code::ALL.contains(&code), "{rule:?} {}", rule.code());
            assert_eq!(code.text(), rule.code());
        }
    }

    #[test]
    fn a_code_of_a_newer_server_is_shown_as_it_is() {
        let newer: Code = "A0999".parse().unwrap();
        assert_eq!(
            (newer.to_string().as_str(), newer.exit()),
            ("A0999", Exit::Failed)
        );
    }
}
