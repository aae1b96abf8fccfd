//! Chat templates as transformers renders them: jinja2 with trim_blocks, lstrip_blocks, loop controls, tojson,
//! raise_exception, strftime_now and the generation tag.
//! Refuses to know: where a template came from. Thread: a handle is immutable and shared; a render owns its state.
//! Neighbours: pyfmt.rs and pymethods.rs make values print and behave as Python's; messages.rs prepares the input.

use std::io::Write;

use minijinja::value::{Kwargs, Rest, Value};
use minijinja::{Environment, Error, ErrorKind, State};
use serde_json::{Map, Value as Json};

use crate::abi::{drop_handle, fail, guard, invalid, Outcome, PhxBytes, PhxSlice, INVALID, LIMIT, NOT_FOUND};
use crate::messages::{self, ContentFormat};
use crate::pyfmt;
use crate::pymethods;
use crate::tokenizer::PhxTokenizer;

/// Instructions one render may run: some hundred times what a long conversation takes.
const FUEL: u64 = 20_000_000;
/// Bytes one render may write.
const MAX_OUTPUT: usize = 64 << 20;
const MAX_TEMPLATE: usize = 4 << 20;
const PLAIN: &str = "default";
const TOOLS: &str = "tool_use";
/// Names that chat_template_kwargs must leave alone.
const RESERVED: [&str; 9] = [
    "messages", "tools", "add_generation_prompt", "continue_final_message", "raise_exception", "strftime_now", "range", "namespace",
    "chat_template",
];

pub struct PhxTemplate {
    env: Environment<'static>,
    special_tokens: Map<String, Json>,
    format: ContentFormat,
    has_tool_template: bool,
}

/// What raise_exception said, kept apart from the engine's own errors.
#[derive(Debug)]
struct Raised(String);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for Raised {}

#[derive(Debug)]
struct OutputFull;

impl std::fmt::Display for OutputFull {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the rendered prompt is longer than {MAX_OUTPUT} bytes")
    }
}
impl std::error::Error for OutputFull {}

fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_fuel(Some(FUEL));
    env.set_unknown_method_callback(pymethods::method);
    env.set_formatter(|out, _state, value| {
        if value.is_undefined() {
            return Ok(());
        }
        let written = match value.as_str() {
            Some(text) => out.write_str(text),
            None => out.write_str(&pyfmt::py_str(value)?),
        };
        written.map_err(|_| Error::new(ErrorKind::WriteFailure, "output full").with_source(OutputFull))
    });
    env.add_filter("tojson", |value: Value, args: Rest<Value>, named: Kwargs| pyfmt::tojson(&value, args, named));
    env.add_filter("string", |value: Value| pyfmt::py_str(&value));
    env.add_filter("trim", trim);
    env.add_filter("join", join);
    env.add_function("raise_exception", |message: Value| -> Result<Value, Error> {
        let message = pyfmt::py_str(&message)?;
        Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
    });
    env.add_function("strftime_now", |state: &State, format: &str| -> Result<String, Error> {
        let now = state.lookup("__now__").and_then(|v| v.as_i64()).unwrap_or(0);
        strftime(format, now)
    });
    env
}

fn trim(value: Value, set: Option<String>) -> Result<String, Error> {
    Ok(pymethods::strip(&pyfmt::py_str(&value)?, set.as_deref(), true, true).to_string())
}

fn join(value: Value, glue: Option<Value>, named: Kwargs) -> Result<String, Error> {
    let glue = glue.map_or_else(|| named.get::<Option<Value>>("d"), |g| Ok(Some(g)))?;
    let attribute = named.get::<Option<Value>>("attribute")?;
    named.assert_all_used()?;
    let glue = glue.map(|g| pyfmt::py_str(&g)).transpose()?.unwrap_or_default();
    let mut out = String::new();
    for (i, item) in value.try_iter()?.enumerate() {
        out.push_str(if i > 0 { &glue } else { "" });
        let item = match &attribute {
            Some(attribute) => item.get_item(attribute)?,
            None => item,
        };
        out.push_str(&pyfmt::py_str(&item)?);
        if out.len() > MAX_OUTPUT {
            return Err(Error::new(ErrorKind::OutOfFuel, "join").with_source(OutputFull));
        }
    }
    Ok(out)
}

/// datetime.now().strftime(format): the C library's, in local time.
fn strftime(format: &str, unix_time: i64) -> Result<String, Error> {
    let bad = || Error::new(ErrorKind::InvalidOperation, "strftime_now: bad format");
    let terminated = std::ffi::CString::new(format).map_err(|_| bad())?;
    let mut out = vec![0u8; 256 + format.len() * 16];
    // SAFETY: tm is plain data that localtime_r fills; out is writable for its length; the format ends in NUL.
    let written = unsafe {
        let mut parts: libc::tm = std::mem::zeroed();
        if libc::localtime_r(&unix_time, &mut parts).is_null() {
            return Err(bad());
        }
        libc::strftime(out.as_mut_ptr().cast(), out.len(), terminated.as_ptr(), &parts)
    };
    out.truncate(written);
    String::from_utf8(out).map_err(|_| bad())
}

/// `{% generation %}` marks assistant text for training. It becomes a scope of its own, as jinja2's call block is, with its
/// white-space marks kept.
fn rewrite_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let Some(length) = rest[open..].find("%}") else { break };
        let (head, tag) = (&rest[..open], &rest[open + 2..open + length]);
        out.push_str(head);
        let word = tag.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        let replaced = match word {
            "generation" => tag.replacen("generation", "with", 1),
            "endgeneration" => tag.replacen("endgeneration", "endwith", 1),
            _ => tag.to_string(),
        };
        out.push_str("{%");
        out.push_str(&replaced);
        out.push_str("%}");
        rest = &rest[open + length + 2..];
    }
    out.push_str(rest);
    out
}

impl PhxTemplate {
    fn new(special_tokens: Map<String, Json>) -> Self {
        PhxTemplate { env: environment(), special_tokens, format: ContentFormat::default(), has_tool_template: false }
    }

    fn add(&mut self, name: &'static str, source: &str) -> Outcome<()> {
        if source.len() > MAX_TEMPLATE {
            return fail(LIMIT, format!("the template is longer than {MAX_TEMPLATE} bytes"));
        }
        match self.env.add_template_owned(name, rewrite_generation_tags(source)) {
            Ok(()) => Ok(()),
            Err(e) => invalid(format!("the template does not parse: {}", describe(&e))),
        }
    }

    /// `chat_template` of a configuration: one template, or a list of {name, template}.
    fn add_config(&mut self, config: &str) -> Outcome<()> {
        let json: Json = serde_json::from_str(config).or_else(|e| invalid(e.to_string()))?;
        let found = match &json["chat_template"] {
            Json::String(source) => {
                self.add(PLAIN, source)?;
                true
            }
            Json::Array(list) => {
                let source = |name: &str| list.iter().find(|e| e["name"] == name).and_then(|e| e["template"].as_str());
                if let Some(tools) = source(TOOLS) {
                    self.add(TOOLS, tools)?;
                    self.has_tool_template = true;
                }
                match source(PLAIN) {
                    Some(plain) => self.add(PLAIN, plain)?,
                    None => return invalid("chat_template has no entry named \"default\""),
                }
                true
            }
            Json::Null => false,
            _ => return invalid("chat_template is neither a string nor a list"),
        };
        if found {
            Ok(())
        } else {
            fail(NOT_FOUND, "no chat_template")
        }
    }

    fn run(&self, name: &str, context: Map<String, Json>, now: i64) -> Outcome<String> {
        let template = match self.env.get_template(name) {
            Ok(template) => template,
            Err(e) => return invalid(describe(&e)),
        };
        let mut context = context;
        context.insert("__now__".into(), now.into());
        let mut sink = Sink::default();
        let result = template.render_captured_to(Json::Object(context), &mut sink).map(|_| ());
        if sink.full {
            return fail(LIMIT, OutputFull.to_string());
        }
        match result {
            Ok(()) => String::from_utf8(sink.bytes).or_else(|_| invalid("the template made invalid UTF-8")),
            Err(e) => Err(failure(&e)),
        }
    }

    fn render(&self, input: &Input) -> Outcome<String> {
        if input.add_generation_prompt && input.continue_final_message {
            return invalid("add_generation_prompt and continue_final_message cannot both be true");
        }
        let messages = messages::prepare(input.messages, self.format)?;
        let tools = parse(input.tools, "tools")?;
        let kwargs = parse(input.kwargs, "chat_template_kwargs")?;
        let with_tools = tools.as_array().is_some_and(|list| !list.is_empty());
        let mut context = self.special_tokens.clone();
        context.insert("documents".into(), Json::Null);
        match kwargs {
            Json::Null => {}
            Json::Object(entries) => {
                for (key, value) in entries {
                    if RESERVED.contains(&key.as_str()) || self.special_tokens.contains_key(&key) || key.starts_with("__") {
                        return invalid(format!("chat_template_kwargs must not set \"{key}\""));
                    }
                    context.insert(key, value);
                }
            }
            _ => return invalid("chat_template_kwargs is not an object"),
        }
        let last = messages.as_array().and_then(|m| m.last()).cloned();
        context.insert("messages".into(), messages);
        context.insert("tools".into(), tools);
        context.insert("add_generation_prompt".into(), input.add_generation_prompt.into());
        let name = if with_tools && self.has_tool_template { TOOLS } else { PLAIN };
        let text = self.run(name, context, input.now)?;
        if input.continue_final_message {
            return messages::cut_after_final(text, last.as_ref());
        }
        Ok(text)
    }

    /// Finds out whether the template takes content as a string, as a list of parts, or as both.
    fn probe(&mut self) {
        let shows = |content: Json| {
            let mut context = self.special_tokens.clone();
            context.insert("messages".into(), serde_json::json!([{"role": "user", "content": content}]));
            context.insert("tools".into(), Json::Null);
            context.insert("documents".into(), Json::Null);
            context.insert("add_generation_prompt".into(), true.into());
            self.run(PLAIN, context, 0).is_ok_and(|text| text.contains("phxprobe") && !text.contains("'type'") && !text.contains("\"type\""))
        };
        self.format = ContentFormat {
            takes_parts: shows(serde_json::json!([{"type": "text", "text": "phxprobe"}])),
            takes_string: shows(Json::String("phxprobe".into())),
        };
    }
}

/// Collects output up to the cap.
#[derive(Default)]
struct Sink {
    bytes: Vec<u8>,
    full: bool,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_OUTPUT {
            self.full = true;
            return Err(std::io::Error::other("output full"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The cause of the given type anywhere below an error.
fn cause<T: std::error::Error + 'static>(e: &Error) -> Option<&T> {
    let mut at: Option<&(dyn std::error::Error + 'static)> = Some(e);
    while let Some(current) = at {
        if let Some(found) = current.downcast_ref::<T>() {
            return Some(found);
        }
        at = current.source();
    }
    None
}

fn describe(e: &Error) -> String {
    let detail = e.detail().map_or_else(|| e.kind().to_string(), |d| format!("{}: {d}", e.kind()));
    match e.line() {
        Some(line) => format!("{detail} (line {line})"),
        None => detail,
    }
}

fn failure(e: &Error) -> crate::abi::Failure {
    let mut at: Option<&(dyn std::error::Error + 'static)> = Some(e);
    while let Some(current) = at {
        if current.downcast_ref::<Error>().is_some_and(|e| e.kind() == ErrorKind::OutOfFuel) {
            return crate::abi::Failure { code: LIMIT, message: "the chat template runs for too long".into() };
        }
        at = current.source();
    }
    match cause::<Raised>(e) {
        Some(raised) => crate::abi::Failure { code: INVALID, message: raised.0.clone() },
        None => crate::abi::Failure { code: INVALID, message: format!("the chat template failed: {}", describe(e)) },
    }
}

pub fn parse(text: &str, what: &str) -> Outcome<Json> {
    if text.is_empty() {
        return Ok(Json::Null);
    }
    serde_json::from_str(text).or_else(|e| invalid(format!("{what}: {e}")))
}

/// One render's input.
struct Input<'a> {
    messages: &'a str,
    tools: &'a str,
    kwargs: &'a str,
    add_generation_prompt: bool,
    continue_final_message: bool,
    now: i64,
}

/// As text/abi.h declares it.
#[repr(C)]
pub struct PhxRenderInput {
    messages: PhxSlice,
    tools: PhxSlice,
    kwargs: PhxSlice,
    add_generation_prompt: i32,
    continue_final_message: i32,
    unix_time: i64,
}

/// # Safety
/// `tokenizer` must be a live handle, `source` readable, the outputs writable.
#[no_mangle]
pub unsafe extern "C" fn phx_template_load(
    tokenizer: *const PhxTokenizer,
    source: PhxSlice,
    is_config: i32,
    out: *mut *mut PhxTemplate,
    error: *mut PhxBytes,
) -> i32 {
    guard(error, || {
        let mut template = PhxTemplate::new((&*tokenizer).0.special_tokens.clone());
        let source = source.text("the chat template")?;
        if is_config != 0 {
            template.add_config(source)?;
        } else {
            template.add(PLAIN, source)?;
        }
        template.probe();
        *out = Box::into_raw(Box::new(template));
        Ok(())
    })
}

/// # Safety
/// `template` must be null or come from phx_template_load, once.
#[no_mangle]
pub unsafe extern "C" fn phx_template_free(template: *mut PhxTemplate) {
    drop_handle(template);
}

/// # Safety
/// `template` must be a live handle, `input` and its slices readable, the outputs writable.
#[no_mangle]
pub unsafe extern "C" fn phx_template_render(
    template: *const PhxTemplate,
    input: *const PhxRenderInput,
    out: *mut PhxBytes,
    error: *mut PhxBytes,
) -> i32 {
    guard(error, || {
        let raw = &*input;
        let text = (*template).render(&Input {
            messages: raw.messages.text("messages")?,
            tools: raw.tools.text("tools")?,
            kwargs: raw.kwargs.text("chat_template_kwargs")?,
            add_generation_prompt: raw.add_generation_prompt != 0,
            continue_final_message: raw.continue_final_message != 0,
            now: raw.unix_time,
        })?;
        *out = PhxBytes::from_vec(text.into_bytes());
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(source: &str) -> PhxTemplate {
        let mut out = PhxTemplate::new(serde_json::json!({"bos_token": "<s>"}).as_object().unwrap().clone());
        out.add(PLAIN, source).map_err(|f| f.message).unwrap();
        out.probe();
        out
    }
    fn input<'a>(messages: &'a str, tools: &'a str, kwargs: &'a str) -> Input<'a> {
        Input { messages, tools, kwargs, add_generation_prompt: true, continue_final_message: false, now: 0 }
    }
    const HI: &str = r#"[{"role":"user","content":"hi"}]"#;

    fn code(source: &str) -> i32 {
        template(source).render(&input(HI, "", "")).map_or_else(|f| f.code, |_| 0)
    }

    #[test]
    fn runaway_templates_are_stopped() {
        assert_eq!(code("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"), LIMIT);
        assert_eq!(code("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"), INVALID);
        assert_eq!(code("{% for i in range(100000) %}{{ 'x' * 1000 }}{% endfor %}"), LIMIT);
        assert_eq!(code("{{ range(100000) | map('string') | join('x' * 1000) }}"), LIMIT);
    }

    #[test]
    fn raise_exception_is_its_own_text() {
        let failure = template("{{ raise_exception('no ' ~ messages[0].role) }}").render(&input(HI, "", "")).err().unwrap();
        assert_eq!((failure.code, failure.message.as_str()), (INVALID, "no user"));
        let failure = template("{{ nothing.here.at.all }}").render(&input(HI, "", "")).err().unwrap();
        assert_eq!(failure.code, INVALID);
        assert!(failure.message.starts_with("the chat template failed: "), "{}", failure.message);
    }

    #[test]
    fn kwargs_leave_internal_names_alone() {
        let plain = template("{{ a }}{{ messages | length }}{{ bos_token }}");
        assert_eq!(plain.render(&input(HI, "", r#"{"a":"x"}"#)).ok().as_deref(), Some("x1<s>"));
        for name in ["messages", "tools", "add_generation_prompt", "bos_token", "raise_exception", "__now__", "namespace"] {
            let kwargs = format!(r#"{{"{name}":1}}"#);
            assert_eq!(plain.render(&input(HI, "", &kwargs)).err().map(|f| f.code), Some(INVALID), "{name}");
        }
        assert!(plain.render(&input(HI, "", "[]")).is_err());
    }

    #[test]
    fn tools_choose_their_own_template() {
        let mut both = PhxTemplate::new(Map::new());
        let config = r#"{"chat_template":[{"name":"default","template":"plain"},{"name":"tool_use","template":"tools {{ tools | length }}"}]}"#;
        both.add_config(config).map_err(|f| f.message).unwrap();
        assert_eq!(both.render(&input(HI, "", "")).ok().as_deref(), Some("plain"));
        assert_eq!(both.render(&input(HI, "[]", "")).ok().as_deref(), Some("plain"));
        assert_eq!(both.render(&input(HI, "[{}]", "")).ok().as_deref(), Some("tools 1"));
        let load = |config: &str| PhxTemplate::new(Map::new()).add_config(config).map_or_else(|f| f.code, |()| 0);
        assert_eq!(load("{}"), NOT_FOUND);
        assert_eq!(load(r#"{"chat_template":null}"#), NOT_FOUND);
        assert_eq!(load(r#"{"chat_template":5}"#), INVALID);
        assert_eq!(load(r#"{"chat_template":[{"name":"other","template":"x"}]}"#), INVALID);
        assert_eq!(load(r#"{"chat_template":"{% if %}"}"#), INVALID);
        assert_eq!(load("{"), INVALID);
    }

    #[test]
    fn generation_tags_are_scopes() {
        assert_eq!(rewrite_generation_tags("a{%- generation -%}b{% endgeneration %}c"), "a{%- with -%}b{% endwith %}c");
        assert_eq!(rewrite_generation_tags("{% set generation = 1 %}{{ generation }}{% open"), "{% set generation = 1 %}{{ generation }}{% open");
        let text = template("{% generation %}{{ messages[0].content }}{% endgeneration %}").render(&input(HI, "", ""));
        assert_eq!(text.ok().as_deref(), Some("hi"));
    }

    #[test]
    fn strftime_of_a_given_time() {
        assert_eq!(strftime("%Y", 86400 * 365).ok().as_deref(), Some("1971"));
        assert_eq!(strftime("", 0).ok().as_deref(), Some(""));
        assert!(strftime("a\0b", 0).is_err());
    }

    #[test]
    fn content_formats_are_found_by_rendering() {
        let format = |source: &str| {
            let found = template(source).format;
            (found.takes_string, found.takes_parts)
        };
        assert_eq!(format("{{ messages[0].content }}"), (true, false));
        assert_eq!(format("{% for p in messages[0].content %}{{ p.text }}{% endfor %}"), (false, true));
        assert_eq!(format("{% set c = messages[0].content %}{% if c is string %}{{ c }}{% else %}{{ c[0].text }}{% endif %}"), (true, true));
        assert_eq!(format("nothing"), (false, false));
    }
}
