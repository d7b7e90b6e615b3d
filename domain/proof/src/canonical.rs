//! One text for one value.

use serde_json::Value;
use thiserror::Error;

/// Why a value has no canonical form here.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{number} is not a whole number")]
pub struct NotCanonical {
    number: String,
}

/// The canonical form of a value.
pub fn canonical(value: &Value) -> Result<String, NotCanonical> {
    let mut out = String::new();
    write(value, &mut out)?;
    Ok(out)
}

fn write(value: &Value, out: &mut String) -> Result<(), NotCanonical> {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(number) if number.is_f64() => {
            return Err(NotCanonical {
                number: number.to_string(),
            });
        }
        Value::Number(number) => out.push_str(&number.to_string()),
        Value::String(text) => string(text, out),
        Value::Array(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                write(item, out)?;
            }
            out.push(']');
        }
        Value::Object(members) => {
            // Whatever order the map has.
            let mut names: Vec<&String> = members.keys().collect();
            names.sort_unstable();
            out.push('{');
            for (at, name) in names.into_iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                string(name, out);
                out.push(':');
                write(&members[name], out)?;
            }
            out.push('}');
        }
    }
    Ok(())
}

/// As every JSON writer escapes: quotes, backslashes and control characters, nothing else.
fn string(text: &str, out: &mut String) {
    out.push_str(&Value::String(text.to_owned()).to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_has_one_text() {
        let text = "{ \"b\" : [1, true, null, \"\\u00e9\\n\\\"\"], \"a\": {\"z\": -1, \"y\": {}} }";
        let value: Value = serde_json::from_str(text).unwrap();
        let expected = "{\"a\":{\"y\":{},\"z\":-1},\"b\":[1,true,null,\"é\\n\\\"\"]}";
        assert_eq!(canonical(&value).unwrap(), expected);
        assert!(canonical(&serde_json::json!(1.5)).is_err());
    }
}
