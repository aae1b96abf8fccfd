//! Python's string methods where minijinja's own differ from Python or are missing.
//! Refuses to know: everything that pycompat already does right. Neighbours: template.rs registers it.

use minijinja::value::{from_args, Value};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat;

/// str.isspace of one character: Unicode white space and the four ASCII separators.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

pub fn method(state: &State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        if let Some(result) = string_method(text, name, args)? {
            return Ok(result);
        }
    }
    pycompat::unknown_method_callback(state, value, name, args)
}

fn string_method(s: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let out = match name {
        "strip" | "lstrip" | "rstrip" => {
            let (set,): (Option<&str>,) = from_args(args)?;
            Value::from(strip(s, set, name != "rstrip", name != "lstrip"))
        }
        "title" => {
            let () = from_args(args)?;
            Value::from(title(s))
        }
        "swapcase" => {
            let () = from_args(args)?;
            Value::from(s.chars().flat_map(swapcase).collect::<String>())
        }
        "find" | "rfind" | "index" | "rindex" => find(s, name, args)?,
        "count" => {
            let (what,): (&str,) = from_args(args)?;
            Value::from(if what.is_empty() { s.chars().count() + 1 } else { s.matches(what).count() })
        }
        "split" | "rsplit" => split(s, name, args)?,
        "partition" | "rpartition" => partition(s, name, args)?,
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(s.strip_prefix(prefix).unwrap_or(s))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(s.strip_suffix(suffix).unwrap_or(s))
        }
        "splitlines" => {
            let (keep,): (Option<bool>,) = from_args(args)?;
            Value::from(splitlines(s, keep.unwrap_or(false)))
        }
        "islower" | "isupper" => {
            let () = from_args(args)?;
            let (want, other): (fn(char) -> bool, fn(char) -> bool) = match name {
                "islower" => (char::is_lowercase, char::is_uppercase),
                _ => (char::is_uppercase, char::is_lowercase),
            };
            Value::from(s.chars().any(want) && !s.chars().any(other))
        }
        "isspace" => {
            let () = from_args(args)?;
            Value::from(!s.is_empty() && s.chars().all(is_space))
        }
        "isalpha" | "isalnum" | "isdigit" | "isnumeric" | "isdecimal" => {
            let () = from_args(args)?;
            let test: fn(char) -> bool = match name {
                "isalpha" => |c| c.is_alphabetic(),
                "isalnum" => |c| c.is_alphanumeric(),
                _ => |c| c.is_numeric(),
            };
            Value::from(!s.is_empty() && s.chars().all(test))
        }
        "ljust" | "rjust" | "center" | "zfill" => pad(s, name, args)?,
        _ => return Ok(None),
    };
    Ok(Some(out))
}

pub fn strip<'a>(s: &'a str, set: Option<&str>, left: bool, right: bool) -> &'a str {
    let member = |c: char| set.map_or_else(|| is_space(c), |set| set.contains(c));
    let s = if left { s.trim_start_matches(member) } else { s };
    if right {
        s.trim_end_matches(member)
    } else {
        s
    }
}

/// str.title: a letter is upper case after anything that is not a letter.
fn title(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    let mut inside = false;
    for c in s.chars() {
        let cased = c.is_lowercase() || c.is_uppercase();
        match (cased, inside) {
            (true, true) => out.extend(c.to_lowercase()),
            (true, false) => out.extend(c.to_uppercase()),
            _ => out.push(c),
        }
        inside = cased;
    }
    out
}

fn swapcase(c: char) -> Vec<char> {
    match (c.is_uppercase(), c.is_lowercase()) {
        (true, _) => c.to_lowercase().collect(),
        (_, true) => c.to_uppercase().collect(),
        _ => vec![c],
    }
}

/// Positions count characters, as slices do.
fn find(s: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (what, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
    let length = s.chars().count() as i64;
    let from_end = |i: i64| if i < 0 { i.saturating_add(length).max(0) } else { i };
    // A start behind the end finds nothing, not even the empty string.
    let (start, end) = (from_end(start.unwrap_or(0)), from_end(end.unwrap_or(length)).min(length));
    let byte = |i: i64| s.char_indices().nth(i as usize).map_or(s.len(), |(at, _)| at);
    let hit = if start > end {
        None
    } else {
        let window = &s[byte(start)..byte(end)];
        let at = if name.starts_with('r') { window.rfind(what) } else { window.find(what) };
        at.map(|at| start + window[..at].chars().count() as i64)
    };
    match hit {
        Some(at) => Ok(Value::from(at)),
        None if name.ends_with("index") => Err(Error::new(ErrorKind::InvalidOperation, "substring not found")),
        None => Ok(Value::from(-1)),
    }
}

fn split(s: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (separator, limit): (Option<&str>, Option<i64>) = from_args(args)?;
    let limit = limit.filter(|n| *n >= 0).map(|n| n as usize);
    let mut parts: Vec<&str> = match separator {
        Some("") => return Err(Error::new(ErrorKind::InvalidOperation, "empty separator")),
        Some(separator) if name == "split" => match limit {
            Some(n) => s.splitn(n.saturating_add(1), separator).collect(),
            None => s.split(separator).collect(),
        },
        Some(separator) => match limit {
            Some(n) => s.rsplitn(n.saturating_add(1), separator).collect(),
            None => s.rsplit(separator).collect(),
        },
        None => split_space(s, limit, name == "rsplit"),
    };
    if name == "rsplit" {
        parts.reverse();
    }
    Ok(Value::from(parts.into_iter().map(Value::from).collect::<Vec<_>>()))
}

/// Split at runs of white space; from the right, parts come last first. The last piece keeps the white space at its far end.
fn split_space(s: &str, limit: Option<usize>, from_right: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = strip(s, None, !from_right, from_right);
    while !rest.is_empty() {
        let cut = if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(cut) = cut.filter(|_| limit != Some(parts.len())) else {
            parts.push(rest);
            break;
        };
        let width = rest[cut..].chars().next().map_or(1, char::len_utf8);
        let (head, tail) = (&rest[..cut], &rest[cut + width..]);
        parts.push(if from_right { tail } else { head });
        rest = if from_right { strip(head, None, false, true) } else { strip(tail, None, true, false) };
    }
    parts
}

fn partition(s: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (separator,): (&str,) = from_args(args)?;
    if separator.is_empty() {
        return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
    }
    let cut = if name == "partition" { s.split_once(separator) } else { s.rsplit_once(separator) };
    let parts = match cut {
        Some((head, tail)) => [head, separator, tail],
        None if name == "partition" => [s, "", ""],
        None => ["", "", s],
    };
    Ok(Value::from(parts.map(Value::from).to_vec()))
}

fn splitlines(s: &str, keep: bool) -> Vec<Value> {
    let is_break = |c: char| matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut lines = Vec::new();
    let mut rest = s;
    while !rest.is_empty() {
        let Some(cut) = rest.find(is_break) else {
            lines.push(Value::from(rest));
            break;
        };
        let width = if rest[cut..].starts_with("\r\n") { 2 } else { rest[cut..].chars().next().map_or(1, char::len_utf8) };
        lines.push(Value::from(&rest[..if keep { cut + width } else { cut }]));
        rest = &rest[cut + width..];
    }
    lines
}

fn pad(s: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (width, fill): (i64, Option<&str>) = from_args(args)?;
    let fill = if name == "zfill" { "0" } else { fill.unwrap_or(" ") };
    if width > 1 << 20 || fill.chars().count() != 1 {
        return Err(Error::new(ErrorKind::InvalidOperation, "padding is too wide, or its character is not one"));
    }
    let missing = (width - s.chars().count() as i64).max(0) as usize;
    let (left, right) = match name {
        "ljust" => (0, missing),
        "rjust" | "zfill" => (missing, 0),
        _ => {
            let left = missing / 2 + (missing & (width as usize) & 1);
            (left, missing - left)
        }
    };
    let (sign, body) = match s.strip_prefix(['+', '-']) {
        Some(body) if name == "zfill" => (&s[..1], body),
        _ => ("", s),
    };
    Ok(Value::from(format!("{sign}{}{body}{}", fill.repeat(left), fill.repeat(right))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value as Python would print it, or "!" for an exception.
    fn call(s: &str, name: &str, args: &[Value]) -> String {
        match string_method(s, name, args) {
            Ok(Some(value)) => crate::pyfmt::py_str(&value).unwrap(),
            Ok(None) => "?".into(),
            Err(_) => "!".into(),
        }
    }
    fn none() -> Value {
        Value::from(())
    }

    // Every expectation here is what CPython 3.11 prints.
    #[test]
    fn strip_and_affixes() {
        assert_eq!(call("\u{1c} \u{3000}a b\u{85}\n", "strip", &[]), "a b");
        assert_eq!(call("xxaxx", "lstrip", &["x".into()]), "axx");
        assert_eq!(call("abcabd", "rstrip", &["bad".into()]), "abc");
        assert_eq!(call("  a ", "rstrip", &[none()]), "  a");
        assert_eq!(call("abab", "removeprefix", &["ab".into()]), "ab");
        assert_eq!(call("abab", "removesuffix", &["x".into()]), "abab");
        assert_eq!(call("a", "strip", &["x".into(), "y".into()]), "!");
    }

    #[test]
    fn positions_count_characters() {
        assert_eq!(call("日本日", "find", &["日".into(), 1.into()]), "2");
        assert_eq!(call("日本日", "rfind", &["日".into()]), "2");
        assert_eq!(call("日本日", "find", &["日".into(), 1.into(), 2.into()]), "-1");
        assert_eq!(call("日本日", "find", &["日".into(), Value::from(-1)]), "2");
        assert_eq!(call("abc", "find", &["".into(), 3.into()]), "3");
        assert_eq!(call("abc", "find", &["".into(), 5.into()]), "-1");
        assert_eq!(call("abc", "index", &["z".into()]), "!");
        assert_eq!(call("aaa", "count", &["aa".into()]), "1");
        assert_eq!(call("日本", "count", &["".into()]), "3");
    }

    #[test]
    fn splitting() {
        assert_eq!(call(" a  b c ", "split", &[]), "['a', 'b', 'c']");
        assert_eq!(call(" a  b c ", "split", &[none(), 1.into()]), "['a', 'b c ']");
        assert_eq!(call(" a  b c ", "rsplit", &[none(), 1.into()]), "[' a  b', 'c']");
        assert_eq!(call("a,b,,c", "split", &[",".into()]), "['a', 'b', '', 'c']");
        assert_eq!(call("a,b,,c", "split", &[",".into(), 2.into()]), "['a', 'b', ',c']");
        assert_eq!(call("a,b,,c", "rsplit", &[",".into(), 2.into()]), "['a,b', '', 'c']");
        assert_eq!(call("", "split", &[",".into()]), "['']");
        assert_eq!(call("", "split", &[]), "[]");
        assert_eq!(call("abc", "split", &["".into()]), "!");
        assert_eq!(call("a=b=c", "partition", &["=".into()]), "['a', '=', 'b=c']");
        assert_eq!(call("a=b=c", "rpartition", &["=".into()]), "['a=b', '=', 'c']");
        assert_eq!(call("abc", "rpartition", &["=".into()]), "['', '', 'abc']");
        assert_eq!(call("a\r\nb\u{2028}c\n", "splitlines", &[]), "['a', 'b', 'c']");
        assert_eq!(call("a\r\nb\n", "splitlines", &[true.into()]), r"['a\r\n', 'b\n']");
    }

    #[test]
    fn case_and_classes() {
        assert_eq!(call("they're BIG x2y", "title", &[]), "They'Re Big X2Y");
        assert_eq!(call("aBß", "swapcase", &[]), "AbSS");
        assert_eq!((call("a1", "islower", &[]), call("1", "islower", &[]), call("A1", "isupper", &[])), ("True".into(), "False".into(), "True".into()));
        assert_eq!((call(" \t\u{1f}", "isspace", &[]), call("", "isspace", &[])), ("True".into(), "False".into()));
        assert_eq!((call("日a", "isalpha", &[]), call("a1", "isalnum", &[]), call("١2", "isdigit", &[])), ("True".into(), "True".into(), "True".into()));
    }

    #[test]
    fn padding() {
        assert_eq!(call("ab", "center", &[5.into()]), "  ab ");
        assert_eq!(call("abc", "center", &[6.into(), "*".into()]), "*abc**");
        assert_eq!(call("-5", "zfill", &[5.into()]), "-0005");
        assert_eq!(call("日", "ljust", &[3.into(), ".".into()]), "日..");
        assert_eq!(call("a", "rjust", &[Value::from(-3)]), "a");
        assert_eq!(call("a", "rjust", &[Value::from(1_i64 << 40)]), "!");
        assert_eq!(call("a", "nonsense", &[]), "?");
    }
}
