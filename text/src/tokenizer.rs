//! Encoding, and the table that C++ decodes with: load a tokenizer.json, encode text, lend the vocabulary.
//! Refuses to know: files and GGUF (text.cc writes a tokenizer.json for those). Thread: a handle is immutable after loading.
//! Neighbours: decoder.rs makes bytes of tokens; template.rs and grammar.rs read the handle.

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::{Map, Value};
use tokenizers::{AddedToken, Tokenizer};

use crate::abi::{drop_handle, guard, invalid, Outcome, PhxBytes, PhxSlice};
use crate::decoder::Plan;

const KNOWN: u8 = 1;
const SPECIAL: u8 = 2;
const BYTE: u8 = 4;
/// Largest id a tokenizer may name: tables are indexed by id.
const MAX_ID: u32 = 8 << 20;

/// Strings laid end to end; string i is bytes[ends[i - 1] .. ends[i]].
#[derive(Default)]
pub struct Table {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Table {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.ends.push(self.bytes.len() as u32);
    }

    pub fn get(&self, index: usize) -> &[u8] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        &self.bytes[start..self.ends[index] as usize]
    }
}

pub struct Inner {
    pub hf: Tokenizer,
    pub pieces: Table,
    first: Table,
    names: Table,
    pub flags: Vec<u8>,
    plan: Plan,
    /// bos_token, eos_token, unk_token ... of tokenizer_config.json, as templates see them.
    pub special_tokens: Map<String, Value>,
    bos: Option<u32>,
    eos: Option<u32>,
    /// Corrections of the post-processor by add_bos_token and add_eos_token: insert or remove.
    bos_fix: Fix,
    eos_fix: Fix,
}

#[derive(Clone, Copy, PartialEq)]
enum Fix {
    None,
    Insert,
    Remove,
}

pub struct PhxTokenizer(pub Arc<Inner>);

impl Inner {
    pub fn is_special(&self, id: usize) -> bool {
        self.flags[id] & SPECIAL != 0
    }

    pub fn size(&self) -> usize {
        self.flags.len()
    }
}

fn load(json: &[u8], config: &str) -> Outcome<Inner> {
    let mut hf = match Tokenizer::from_bytes(json) {
        Ok(hf) => hf,
        Err(e) => return invalid(e.to_string()),
    };
    hf.with_padding(None);
    if let Err(e) = hf.with_truncation(None) {
        return invalid(e.to_string());
    }
    let config: Value = match config {
        "" => Value::Null,
        text => serde_json::from_str(text).or_else(|e| invalid(format!("tokenizer_config.json: {e}")))?,
    };
    add_config_tokens(&mut hf, &config)?;
    let special_tokens = special_tokens(&config)?;
    let id_of = |name: &str| special_tokens.get(name).and_then(|t| t.as_str()).and_then(|t| hf.token_to_id(t));
    let (bos, eos) = (id_of("bos_token"), id_of("eos_token"));
    let plan = Plan::new(hf.get_decoder())?;
    let mut inner = Inner {
        hf,
        plan,
        pieces: Table::default(),
        first: Table::default(),
        names: Table::default(),
        flags: Vec::new(),
        special_tokens,
        bos,
        eos,
        bos_fix: Fix::None,
        eos_fix: Fix::None,
    };
    fill_tables(&mut inner)?;
    let empty = encode_plain(&inner, "", true)?;
    inner.bos_fix = fix(config["add_bos_token"].as_bool(), bos, empty.first());
    let tail = if empty.len() > 1 || inner.bos_fix != Fix::Remove { empty.last() } else { None };
    inner.eos_fix = fix(config["add_eos_token"].as_bool(), eos, tail);
    Ok(inner)
}

fn fix(wanted: Option<bool>, id: Option<u32>, present: Option<&u32>) -> Fix {
    let Some(id) = id else { return Fix::None };
    match (wanted, present == Some(&id)) {
        (Some(true), false) => Fix::Insert,
        (Some(false), true) => Fix::Remove,
        _ => Fix::None,
    }
}

/// Adds what only tokenizer_config.json knows (added_tokens_decoder), under the ids it gives.
fn add_config_tokens(hf: &mut Tokenizer, config: &Value) -> Outcome<()> {
    let Some(entries) = config["added_tokens_decoder"].as_object() else { return Ok(()) };
    let mut missing: Vec<(u32, AddedToken)> = Vec::new();
    for (key, entry) in entries {
        let (Ok(id), Some(content)) = (key.parse::<u32>(), entry["content"].as_str()) else {
            return invalid(format!("tokenizer_config.json: added_tokens_decoder \"{key}\" is not an id with a content"));
        };
        if hf.token_to_id(content).is_none() {
            let flag = |name: &str| entry[name].as_bool().unwrap_or(false);
            let token = AddedToken::from(content, flag("special"))
                .single_word(flag("single_word"))
                .lstrip(flag("lstrip"))
                .rstrip(flag("rstrip"))
                .normalized(flag("normalized"));
            missing.push((id, token));
        }
    }
    missing.sort_by_key(|(id, _)| *id);
    for (id, token) in missing {
        let content = token.content.clone();
        if let Err(e) = hf.add_tokens([token]) {
            return invalid(format!("tokenizer_config.json: added token \"{content}\": {e}"));
        }
        let got = hf.token_to_id(&content);
        if got != Some(id) {
            return invalid(format!("tokenizer_config.json: added token \"{content}\" has id {id}, but its place is {got:?}"));
        }
    }
    Ok(())
}

fn special_tokens(config: &Value) -> Outcome<Map<String, Value>> {
    let mut out = Map::new();
    for name in ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"] {
        let text = match &config[name] {
            Value::Null => continue,
            Value::String(text) => text.clone(),
            Value::Object(token) if token.get("content").is_some_and(Value::is_string) => {
                token["content"].as_str().unwrap_or("").to_string()
            }
            _ => return invalid(format!("tokenizer_config.json: {name} is not a token")),
        };
        out.insert(name.to_string(), Value::String(text));
    }
    if let Some(list @ Value::Array(_)) = config.get("additional_special_tokens") {
        out.insert("additional_special_tokens".to_string(), list.clone());
    }
    Ok(out)
}

fn fill_tables(inner: &mut Inner) -> Outcome<()> {
    let added = inner.hf.get_added_vocabulary();
    let special: HashSet<&str> =
        added.get_added_tokens_decoder().values().filter(|t| t.special).map(|t| t.content.as_str()).collect();
    let vocab = inner.hf.get_vocab(true);
    let largest = vocab.values().copied().max();
    if largest.is_some_and(|id| id > MAX_ID) {
        return invalid(format!("a token has id {}, above the limit of {MAX_ID}", largest.unwrap_or(0)));
    }
    let size = largest.map_or(0, |id| id as usize + 1);
    let mut names: Vec<Option<&str>> = vec![None; size];
    for (name, id) in &vocab {
        names[*id as usize] = Some(name);
    }
    for (id, name) in names.iter().enumerate() {
        // An added token decodes from its normalised form, as the library's own decode does.
        let spelled = added.simple_id_to_token(id as u32);
        let Some(name) = added.get_added_tokens_decoder().get(&(id as u32)).map(|t| t.content.as_str()).or(*name) else {
            inner.pieces.push(b"");
            inner.first.push(b"");
            inner.names.push(b"");
            inner.flags.push(0);
            continue;
        };
        let piece = inner.plan.piece(spelled.as_deref().unwrap_or(name))?;
        let mut flags = KNOWN;
        // The library filters by the decoded spelling, so that is what is looked up here.
        flags |= if special.contains(spelled.as_deref().unwrap_or(name)) { SPECIAL } else { 0 };
        flags |= if piece.is_byte { BYTE } else { 0 };
        inner.first.push(piece.first.as_deref().unwrap_or(&piece.bytes));
        inner.pieces.push(&piece.bytes);
        inner.names.push(name.as_bytes());
        inner.flags.push(flags);
    }
    Ok(())
}

fn encode_plain(inner: &Inner, text: &str, special: bool) -> Outcome<Vec<u32>> {
    match inner.hf.encode_fast(text, special) {
        Ok(encoding) => Ok(encoding.get_ids().to_vec()),
        Err(e) => invalid(format!("the text cannot be encoded: {e}")),
    }
}

pub fn encode(inner: &Inner, text: &str, special: bool) -> Outcome<Vec<u32>> {
    let mut ids = encode_plain(inner, text, special)?;
    if !special {
        return Ok(ids);
    }
    match (inner.bos_fix, inner.bos) {
        (Fix::Insert, Some(bos)) => ids.insert(0, bos),
        (Fix::Remove, _) if !ids.is_empty() => {
            ids.remove(0);
        }
        _ => {}
    }
    match (inner.eos_fix, inner.eos) {
        (Fix::Insert, Some(eos)) => ids.push(eos),
        (Fix::Remove, _) => {
            ids.pop();
        }
        _ => {}
    }
    Ok(ids)
}

/// The vocabulary, borrowed from the handle. Tables: string i ends at ends[i] and starts where i - 1 ends.
#[repr(C)]
pub struct PhxVocab {
    size: usize,
    bytes: *const u8,
    ends: *const u32,
    first_bytes: *const u8,
    first_ends: *const u32,
    name_bytes: *const u8,
    name_ends: *const u32,
    flags: *const u8,
    bos_id: i64,
    eos_id: i64,
    strip_count: u32,
    strip_char: u32,
    join_with_space: u32,
}

/// # Safety
/// Slices must be readable, `out` and `error` writable.
#[no_mangle]
pub unsafe extern "C" fn phx_tokenizer_load(
    json: PhxSlice,
    config: PhxSlice,
    out: *mut *mut PhxTokenizer,
    error: *mut PhxBytes,
) -> i32 {
    guard(error, || {
        let inner = load(json.bytes(), config.text("tokenizer_config.json")?)?;
        *out = Box::into_raw(Box::new(PhxTokenizer(Arc::new(inner))));
        Ok(())
    })
}

/// # Safety
/// `tokenizer` must be null or come from phx_tokenizer_load, once.
#[no_mangle]
pub unsafe extern "C" fn phx_tokenizer_free(tokenizer: *mut PhxTokenizer) {
    drop_handle(tokenizer);
}

/// # Safety
/// `tokenizer` must be a live handle, `text` readable, the outputs writable.
#[no_mangle]
pub unsafe extern "C" fn phx_tokenizer_encode(
    tokenizer: *const PhxTokenizer,
    text: PhxSlice,
    add_special: i32,
    ids: *mut *mut u32,
    count: *mut usize,
    error: *mut PhxBytes,
) -> i32 {
    guard(error, || {
        let encoded = encode(&(&*tokenizer).0, text.text("the text")?, add_special != 0)?.into_boxed_slice();
        *count = encoded.len();
        *ids = Box::into_raw(encoded) as *mut u32;
        Ok(())
    })
}

/// The id of a token's exact content, or -1.
/// # Safety
/// `tokenizer` must be a live handle, `token` readable.
#[no_mangle]
pub unsafe extern "C" fn phx_tokenizer_id(tokenizer: *const PhxTokenizer, token: PhxSlice) -> i64 {
    let mut id = -1;
    guard(std::ptr::null_mut(), || {
        let token = token.text("the token")?;
        id = (&*tokenizer).0.hf.token_to_id(token).map_or(-1, i64::from);
        Ok(())
    });
    id
}

/// # Safety
/// `tokenizer` must be a live handle, `out` writable; what it points to lives as long as the handle.
#[no_mangle]
pub unsafe extern "C" fn phx_tokenizer_vocab(tokenizer: *const PhxTokenizer, out: *mut PhxVocab) {
    let inner = &(&*tokenizer).0;
    *out = PhxVocab {
        size: inner.size(),
        bytes: inner.pieces.bytes.as_ptr(),
        ends: inner.pieces.ends.as_ptr(),
        first_bytes: inner.first.bytes.as_ptr(),
        first_ends: inner.first.ends.as_ptr(),
        name_bytes: inner.names.bytes.as_ptr(),
        name_ends: inner.names.ends.as_ptr(),
        flags: inner.flags.as_ptr(),
        bos_id: inner.bos.map_or(-1, i64::from),
        eos_id: inner.eos.map_or(-1, i64::from),
        strip_count: inner.plan.strip_count,
        strip_char: inner.plan.strip_char,
        join_with_space: inner.plan.join_with_space as u32,
    };
}
