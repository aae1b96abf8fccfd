//! Values as Python prints them: str(), repr() and json.dumps, which templates were written against.
//! Refuses to know: template syntax. Neighbours: template.rs and pymethods.rs.

use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// Nesting that no honest message has; deeper values are refused, not recursed into.
const MAX_DEPTH: usize = 200;

fn error<T>(message: impl Into<std::borrow::Cow<'static, str>>) -> Result<T, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// str(value), as `{{ value }}` prints it.
pub fn py_str(value: &Value) -> Result<String, Error> {
    match value.as_str() {
        Some(text) => Ok(text.to_string()),
        None => {
            let mut out = String::new();
            repr(value, &mut out, 0)?;
            Ok(out)
        }
    }
}

fn repr(value: &Value, out: &mut String, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return error("value is nested too deeply");
    }
    match value.kind() {
        ValueKind::String => repr_string(value.as_str().unwrap_or(""), out),
        ValueKind::Number if !value.is_integer() => out.push_str(&float_repr(f64::try_from(value.clone())?)),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (i, item) in value.try_iter()?.enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(&item, out, depth + 1)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter()?.enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(&key, out, depth + 1)?;
                out.push_str(": ");
                repr(&value.get_item(&key)?, out, depth + 1)?;
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

fn repr_string(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if is_printable(c) => out.push(c),
            c if (c as u32) < 0x100 => out.push_str(&format!("\\x{:02x}", c as u32)),
            c if (c as u32) < 0x10000 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push_str(&format!("\\U{:08x}", c as u32)),
        }
    }
    out.push(quote);
}

/// str.isprintable without the Unicode tables: controls, formats, separators and private use are not.
fn is_printable(c: char) -> bool {
    let format = matches!(c as u32, 0xAD | 0x200B..=0x200F | 0x202A..=0x202E | 0x2060..=0x206F | 0xFEFF | 0xFFF9..=0xFFFB);
    let private = matches!(c as u32, 0xE000..=0xF8FF | 0xE0000..=0xE00FF | 0xF0000..);
    !(c.is_control() || format || private || (c.is_whitespace() && c != ' '))
}

/// repr(float): the shortest digits, in exponent form outside 1e-4 <= |x| < 1e16.
pub fn float_repr(x: f64) -> String {
    if x.is_nan() {
        return "nan".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if x != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = format!("{x}");
    if plain.contains('.') {
        plain
    } else {
        format!("{plain}.0")
    }
}

/// json.dumps with the arguments that chat templates may give.
pub struct JsonStyle {
    ensure_ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
}

/// The filter `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub fn tojson(value: &Value, positional: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    if positional.len() > names.len() {
        return error("tojson takes at most 4 arguments");
    }
    let get = |i: usize| -> Result<Value, Error> {
        match positional.get(i) {
            Some(given) => Ok(given.clone()),
            None => Ok(named.get::<Option<Value>>(names[i])?.unwrap_or(Value::from(()))),
        }
    };
    let indent = get(1)?;
    let indent = match indent.kind() {
        ValueKind::None | ValueKind::Undefined => None,
        ValueKind::String => Some(indent.as_str().unwrap_or("").to_string()),
        ValueKind::Bool => Some(" ".repeat(indent.is_true() as usize)),
        _ => match indent.as_i64() {
            Some(n) if n <= 100 => Some(" ".repeat(n.max(0) as usize)),
            _ => return error("tojson: indent is not a small number or a string"),
        },
    };
    let separators = get(2)?;
    let (item, key) = if separators.is_none() || separators.is_undefined() {
        ((if indent.is_some() { "," } else { ", " }).to_string(), ": ".to_string())
    } else {
        let item = separators.get_item_by_index(0)?;
        let key = separators.get_item_by_index(1)?;
        match (item.as_str(), key.as_str()) {
            (Some(item), Some(key)) => (item.to_string(), key.to_string()),
            _ => return error("tojson: separators is not a pair of strings"),
        }
    };
    let style = JsonStyle { ensure_ascii: get(0)?.is_true(), indent, item, key, sort_keys: get(3)?.is_true() };
    named.assert_all_used()?;
    let mut out = String::new();
    dump(value, &style, 0, &mut out)?;
    Ok(Value::from(out))
}

fn newline(style: &JsonStyle, depth: usize, out: &mut String) {
    if let Some(indent) = &style.indent {
        out.push('\n');
        for _ in 0..depth {
            out.push_str(indent);
        }
    }
}

fn dump(value: &Value, style: &JsonStyle, depth: usize, out: &mut String) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return error("tojson: value is nested too deeply");
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number if value.is_integer() => out.push_str(&value.to_string()),
        ValueKind::Number => out.push_str(&float_json(f64::try_from(value.clone())?)),
        ValueKind::String => json_string(value.as_str().unwrap_or(""), style.ensure_ascii, out),
        ValueKind::Seq | ValueKind::Iterable => {
            let mut count = 0;
            out.push('[');
            for item in value.try_iter()? {
                out.push_str(if count > 0 { &style.item } else { "" });
                newline(style, depth + 1, out);
                dump(&item, style, depth + 1, out)?;
                count += 1;
            }
            if count > 0 {
                newline(style, depth, out);
            }
            out.push(']');
        }
        ValueKind::Map => dump_map(value, style, depth, out)?,
        _ => return error(format!("Object of type {} is not JSON serializable", value.kind())),
    }
    Ok(())
}

fn dump_map(value: &Value, style: &JsonStyle, depth: usize, out: &mut String) -> Result<(), Error> {
    let mut entries = Vec::new();
    for key in value.try_iter()? {
        let item = value.get_item(&key)?;
        entries.push((json_key(&key)?, item));
    }
    if style.sort_keys {
        entries.sort_by(|a, b| a.0.cmp(&b.0));
    }
    out.push('{');
    for (i, (key, item)) in entries.iter().enumerate() {
        out.push_str(if i > 0 { &style.item } else { "" });
        newline(style, depth + 1, out);
        json_string(key, style.ensure_ascii, out);
        out.push_str(&style.key);
        dump(item, style, depth + 1, out)?;
    }
    if !entries.is_empty() {
        newline(style, depth, out);
    }
    out.push('}');
    Ok(())
}

fn json_key(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or("").to_string()),
        ValueKind::None => Ok("null".into()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.into()),
        ValueKind::Number if key.is_integer() => Ok(key.to_string()),
        ValueKind::Number => Ok(float_json(f64::try_from(key.clone())?)),
        kind => error(format!("keys must be str, int, float, bool or None, not {kind}")),
    }
}

fn float_json(x: f64) -> String {
    if x.is_nan() {
        "NaN".into()
    } else if x.is_infinite() {
        if x > 0.0 { "Infinity".into() } else { "-Infinity".into() }
    } else {
        float_repr(x)
    }
}

fn json_string(text: &str, ensure_ascii: bool, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c if ensure_ascii && (c as u32) > 0x7e => {
                let mut units = [0u16; 2];
                for unit in c.encode_utf16(&mut units) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn value(json: serde_json::Value) -> Value {
        Value::from_serialize(json)
    }
    fn no_names() -> Kwargs {
        std::iter::empty::<(&str, Value)>().collect()
    }
    fn dumps(json: serde_json::Value, named: &[(&str, Value)]) -> String {
        match tojson(&value(json), Rest(Vec::new()), named.iter().cloned().collect()) {
            Ok(text) => text.to_string(),
            Err(e) => format!("!{}", e.detail().unwrap_or("")),
        }
    }

    // Every expectation here is what CPython 3.11 prints.
    #[test]
    fn str_and_repr() {
        let text = |json| py_str(&value(json)).unwrap();
        assert_eq!(text(json!("it's")), "it's");
        assert_eq!(text(json!(["it's", "say \"x\"", "'\"", "a\n\t\\\r"])), r#"["it's", 'say "x"', '\'"', 'a\n\t\\\r']"#);
        assert_eq!(text(json!(["\u{0}\u{7f}\u{a0}\u{200b}é日👍\u{e000}"])), r"['\x00\x7f\xa0\u200bé日👍\ue000']");
        assert_eq!(text(json!({"b": null, "a": [true, false, {}, []], "1": 1.0})), "{'b': None, 'a': [True, False, {}, []], '1': 1.0}");
        assert_eq!(text(json!([0, -7, 18446744073709551615u64])), "[0, -7, 18446744073709551615]");
        assert_eq!(py_str(&Value::from(())).unwrap(), "None");
    }

    #[test]
    fn floats() {
        for (x, text) in [
            (0.0, "0.0"), (-0.0, "-0.0"), (1.0, "1.0"), (0.1, "0.1"), (1e15, "1000000000000000.0"), (1e16, "1e+16"), (123456789012345680.0, "1.2345678901234568e+17"),
            (0.0001, "0.0001"), (0.00001, "1e-05"), (1.5e-7, "1.5e-07"), (1e100, "1e+100"), (5e-324, "5e-324"), (2.5, "2.5"), (f64::INFINITY, "inf"), (f64::NAN, "nan"),
        ] {
            assert_eq!(float_repr(x), text);
        }
    }

    #[test]
    fn json_dumps() {
        let nested = json!({"b": [1, 2.0, null], "a": {"x": true, "y": {}, "z": []}});
        assert_eq!(dumps(nested.clone(), &[]), r#"{"b": [1, 2.0, null], "a": {"x": true, "y": {}, "z": []}}"#);
        assert_eq!(dumps(nested.clone(), &[("sort_keys", true.into()), ("separators", Value::from(vec![",", ":"]))]), r#"{"a":{"x":true,"y":{},"z":[]},"b":[1,2.0,null]}"#);
        assert_eq!(dumps(json!({"a": [1, {}], "b": 2}), &[("indent", 2.into())]), "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": 2\n}");
        assert_eq!(dumps(json!([1]), &[("indent", 0.into())]), "[\n1\n]");
        assert_eq!(dumps(json!([1]), &[("indent", "->".into())]), "[\n->1\n]");
        assert_eq!(dumps(json!("<a href='x'>&\u{7f}é\u{2028}\u{1}\n👍"), &[]), "\"<a href='x'>&\u{7f}é\u{2028}\\u0001\\n👍\"");
        assert_eq!(dumps(json!("é👍\u{7f}"), &[("ensure_ascii", true.into())]), r#""\u00e9\ud83d\udc4d\u007f""#);
        assert_eq!(dumps(json!("é"), &[("ensure_ascii", Value::from(()))]), "\"é\"");
    }

    #[test]
    fn what_json_has_no_word_for() {
        assert_eq!(tojson(&Value::from(f64::NAN), Rest(vec![]), no_names()).unwrap().to_string(), "NaN");
        assert_eq!(tojson(&Value::from(f64::NEG_INFINITY), Rest(vec![]), no_names()).unwrap().to_string(), "-Infinity");
        assert!(tojson(&Value::UNDEFINED, Rest(vec![]), no_names()).is_err());
        assert!(dumps(json!(1), &[("indent", 1000.into())]).starts_with('!'));
        assert!(dumps(json!(1), &[("default", 1.into())]).starts_with('!'));
        assert!(dumps(json!(1), &[("separators", 5.into())]).starts_with('!'));
    }

    #[test]
    fn depth_is_bounded() {
        let mut deep = Value::from(1);
        for _ in 0..5000 {
            deep = Value::from(vec![deep]);
        }
        assert!(py_str(&deep).is_err());
        assert!(tojson(&deep, Rest(vec![]), no_names()).is_err());
        std::mem::forget(deep);  // its own destructor recurses
    }
}
