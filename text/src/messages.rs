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
