//! Messages as a template sees them: arguments become objects, content parts text, absent content the empty string.
//! Refuses to know: templates' syntax. Neighbours: template.rs.

use serde_json::{json, Value as Json};

use crate::abi::{invalid, Outcome};
use crate::pymethods::strip;
use crate::template::parse;

/// Which shapes of `content` a template renders.
#[derive(Clone, Copy, Default)]
pub struct ContentFormat {
    pub takes_parts: bool,
    pub takes_string: bool,
}

pub fn prepare(text: &str, format: ContentFormat) -> Outcome<Json> {
    let mut messages = parse(text, "messages")?;
    let Some(list) = messages.as_array_mut() else { return invalid("messages is not an array") };
    for (i, message) in list.iter_mut().enumerate() {
        let Some(fields) = message.as_object_mut() else { return invalid(format!("messages[{i}] is not an object")) };
        // In place: the order of keys shows where a template prints a whole message.
        let content = fields.entry("content").or_insert(Json::Null);
        *content = shape(content.take(), format).or_else(|e| invalid(format!("messages[{i}].content{}", e.message)))?;
        if let Some(calls) = fields.get_mut("tool_calls") {
            arguments_to_objects(calls, i)?;
        }
    }
    Ok(messages)
}

fn shape(content: Json, format: ContentFormat) -> Outcome<Json> {
    match content {
        Json::Null => Ok(Json::String(String::new())),
        Json::String(text) if format.takes_parts && !format.takes_string => Ok(json!([{"type": "text", "text": text}])),
        Json::Array(parts) => {
            let texts = parts.iter().enumerate().map(|(i, part)| part_text(part, i)).collect::<Outcome<Vec<_>>>()?;
            if format.takes_parts {
                return Ok(texts.iter().map(|text| json!({"type": "text", "text": text})).collect());
            }
            Ok(Json::String(texts.join("\n")))
        }
        other => Ok(other),
    }
}

fn part_text(part: &Json, index: usize) -> Outcome<String> {
    if let Some(text) = part.as_str() {
        return Ok(text.to_string());
    }
    match (part["type"].as_str(), part["text"].as_str(), part["refusal"].as_str()) {
        (Some("text"), Some(text), _) | (Some("refusal"), _, Some(text)) => Ok(text.to_string()),
        (Some("text"), None, _) => invalid(format!("[{index}].text is not a string")),
        (Some(kind), _, _) => invalid(format!("[{index}]: content of type \"{kind}\" is not supported, only text")),
        (None, _, _) => invalid(format!("[{index}] has no type")),
    }
}

fn arguments_to_objects(calls: &mut Json, message: usize) -> Outcome<()> {
    for (i, call) in calls.as_array_mut().into_iter().flatten().enumerate() {
        let Some(arguments) = call.get_mut("function").and_then(|f| f.get_mut("arguments")) else { continue };
        let parsed = match arguments.as_str() {
            None => continue,
            Some(text) if text.trim().is_empty() => json!({}),
            Some(text) => serde_json::from_str(text)
                .or_else(|e| invalid(format!("messages[{message}].tool_calls[{i}].function.arguments is not JSON: {e}")))?,
        };
        *arguments = parsed;
    }
    Ok(())
}

/// continue_final_message: the prompt ends where the last message's own text ends, as transformers cuts it.
pub fn cut_after_final(mut text: String, last: Option<&Json>) -> Outcome<String> {
    let content = last.map_or(&Json::Null, |message| &message["content"]);
    let part = content.as_array().and_then(|parts| parts.iter().rev().find_map(|part| part["text"].as_str()));
    let Some(content) = content.as_str().or(part) else {
        return invalid("continue_final_message: the final message has no text");
    };
    let stripped = strip(content, None, true, true);
    let Some(at) = text.rfind(stripped) else {
        return invalid("continue_final_message: the final message does not appear in the rendered chat");
    };
    let left = strip(content, None, true, false);
    let kept = if text[at..].starts_with(left) && left == content { left.len() } else { stripped.len() };
    text.truncate(at + kept);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRINGS: ContentFormat = ContentFormat { takes_parts: false, takes_string: true };
    const PARTS: ContentFormat = ContentFormat { takes_parts: true, takes_string: false };
    const BOTH: ContentFormat = ContentFormat { takes_parts: true, takes_string: true };

    fn prepared(text: &str, format: ContentFormat) -> String {
        prepare(text, format).map_or_else(|f| format!("!{}", f.message), |json| json.to_string())
    }

    #[test]
    fn content_takes_the_shape_that_the_template_reads() {
        let string = r#"[{"role":"user","content":"a"}]"#;
        let parts = r#"[{"role":"user","content":[{"type":"text","text":"a"},"b",{"type":"refusal","refusal":"c"}]}]"#;
        assert_eq!(prepared(string, STRINGS), string);
        assert_eq!(prepared(string, BOTH), string);
        assert_eq!(prepared(string, PARTS), r#"[{"role":"user","content":[{"type":"text","text":"a"}]}]"#);
        assert_eq!(prepared(parts, STRINGS), r#"[{"role":"user","content":"a\nb\nc"}]"#);
        let listed = r#"[{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"},{"type":"text","text":"c"}]}]"#;
        assert_eq!(prepared(parts, PARTS), listed);
        assert_eq!(prepared(parts, BOTH), listed);
        assert_eq!(prepared(r#"[{"content":null,"role":"a"},{"role":"b"}]"#, PARTS), r#"[{"content":"","role":"a"},{"role":"b","content":""}]"#);
    }

    #[test]
    fn arguments_become_objects() {
        let call = |arguments: &str| format!(r#"[{{"role":"assistant","content":"","tool_calls":[{{"function":{{"name":"f","arguments":{arguments}}}}}]}}]"#);
        assert_eq!(prepared(&call(r#""{\"b\":1,\"a\":[]}""#), STRINGS), call(r#"{"b":1,"a":[]}"#));
        assert_eq!(prepared(&call(r#"" ""#), STRINGS), call("{}"));
        assert_eq!(prepared(&call(r#"{"a":1}"#), STRINGS), call(r#"{"a":1}"#));
        assert!(prepared(&call(r#""{""#), STRINGS).starts_with("!messages[0].tool_calls[0].function.arguments is not JSON"));
        let odd = r#"[{"role":"assistant","content":"","tool_calls":[{"x":1},7]},{"role":"assistant","content":"","tool_calls":5}]"#;
        assert_eq!(prepared(odd, STRINGS), odd);
    }

    #[test]
    fn what_is_no_message_is_named() {
        for (text, message) in [
            ("{}", "!messages is not an array"),
            ("[1]", "!messages[0] is not an object"),
            (r#"[{},{"content":[{"type":"image_url"}]}]"#, "!messages[1].content[0]: content of type \"image_url\" is not supported, only text"),
            (r#"[{"content":[{"type":"text","text":1}]}]"#, "!messages[0].content[0].text is not a string"),
            (r#"[{"content":[{}]}]"#, "!messages[0].content[0] has no type"),
        ] {
            assert_eq!(prepared(text, STRINGS), message);
        }
        assert!(prepared("[", STRINGS).starts_with("!messages: "));
        assert!(prepared(&"[".repeat(100_000), STRINGS).starts_with("!messages: recursion limit"));
    }

    #[test]
    fn the_final_message_is_left_open() {
        let cut = |text: &str, last: Json| cut_after_final(text.to_string(), Some(&last)).map_err(|f| f.message);
        assert_eq!(cut("<a>so far</a>", json!({"content": "so far"})).as_deref(), Ok("<a>so far"));
        assert_eq!(cut("<a>so far </a>", json!({"content": "so far "})).as_deref(), Ok("<a>so far "));
        assert_eq!(cut("<a>so far</a>", json!({"content": " so far "})).as_deref(), Ok("<a>so far"));
        assert_eq!(cut("x x</a>", json!({"content": "x"})).as_deref(), Ok("x x"));
        assert_eq!(cut("<a>p</a>", json!({"content": [{"type": "text", "text": "o"}, {"type": "text", "text": "p"}]})).as_deref(), Ok("<a>p"));
        assert!(cut("<a></a>", json!({"content": "gone"})).is_err());
        assert!(cut("<a></a>", json!({"content": null})).is_err());
        assert!(cut_after_final("x".into(), None).is_err());
    }
}
