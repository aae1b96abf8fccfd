//! Constrained output: compile a schema, regex, list of choices or Lark grammar; masks of allowed tokens.
//! Refuses to know: sampling, batches. Thread: a GrammarEnv is shared, a matcher belongs to one sequence.
//! Neighbours: tokenizer.rs lends the vocabulary.

use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};
use llguidance::{Matcher, ParserFactory};
use serde_json::Value as Json;

use crate::abi::{drop_handle, fail, guard, invalid, Outcome, PhxBytes, PhxSlice, INTERNAL};
use crate::schema_limits;
use crate::tokenizer::{encode, Inner, PhxTokenizer};

const JSON_SCHEMA: i32 = 0;
const JSON_OBJECT: i32 = 1;
const REGEX: i32 = 2;
const CHOICE: i32 = 3;
const LARK: i32 = 4;
/// Bytes of a grammar's source; larger ones are refused before any work.
const MAX_SOURCE: usize = 256 << 10;
/// About 2 kB each: what one hostile grammar may hold.
const MAX_LEXER_STATES: usize = 20_000;
const MAX_VOCAB: usize = 8 << 20;
/// Bytes of a reason: the library's own quote the whole grammar.
const MAX_REASON: usize = 500;

struct Vocabulary {
    trie: TokTrie,
    tokenizer: Arc<Inner>,
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| encode(&self.tokenizer, text, false).unwrap_or_default())
    }
}

pub struct PhxGrammarEnv {
    factory: ParserFactory,
    words: usize,
    ends: Arc<[u32]>,
}

pub struct PhxMatcher {
    matcher: Matcher,
    words: usize,
    ends: Arc<[u32]>,
}

fn environment(tokenizer: &PhxTokenizer, width: usize, ends: &[u32]) -> Outcome<PhxGrammarEnv> {
    let inner = &tokenizer.0;
    if width < inner.size() || width > MAX_VOCAB {
        return invalid(format!("logits are {width} wide for a vocabulary of {}", inner.size()));
    }
    let Some(end) = ends.first() else { return invalid("a grammar needs at least one end token") };
    if let Some(bad) = ends.iter().find(|id| **id as usize >= width) {
        return invalid(format!("end token {bad} is outside the vocabulary"));
    }
    let words: Vec<Vec<u8>> = (0..width)
        .map(|id| match id {
            id if id >= inner.size() => Vec::new(),
            id if inner.is_special(id) => [&[TokTrie::SPECIAL_TOKEN_MARKER], inner.pieces.get(id)].concat(),
            id => inner.pieces.get(id).to_vec(),
        })
        .collect();
    let trie = TokTrie::from(&TokRxInfo::new(width as u32, *end), &words).with_eos_tokens(ends);
    let tok_env: TokEnv = Arc::new(Vocabulary { trie, tokenizer: inner.clone() });
    let mut factory = ParserFactory::new_simple(&tok_env).or_else(|e| fail(INTERNAL, e.to_string()))?;
    factory.quiet();
    let limits = factory.limits_mut();
    limits.max_lexer_states = MAX_LEXER_STATES;
    limits.verbose_errors = false;
    Ok(PhxGrammarEnv { factory, words: width.div_ceil(32), ends: ends.into() })
}

fn refused<T>(reason: &str) -> Outcome<T> {
    let end = reason.char_indices().map(|(at, _)| at).take_while(|at| *at <= MAX_REASON).last().unwrap_or(0);
    invalid(if reason.len() > MAX_REASON { &reason[..end] } else { reason })
}

fn schema(text: &str) -> Outcome<Json> {
    let mut schema: Json = serde_json::from_str(text).or_else(|e| invalid(format!("schema: {e}")))?;
    schema_limits::check(&schema)?;
    // Without this, models loop on white space for ever.
    if let Some(fields) = schema.as_object_mut() {
        fields.insert("x-guidance".into(), serde_json::json!({"whitespace_flexible": false, "key_separator": ": ", "item_separator": ", "}));
    }
    Ok(schema)
}

fn grammar(kind: i32, text: &str) -> Outcome<TopLevelGrammar> {
    if text.len() > MAX_SOURCE {
        return invalid(format!("the grammar is longer than {MAX_SOURCE} bytes"));
    }
    match kind {
        JSON_SCHEMA => Ok(TopLevelGrammar::from_json_schema(schema(text)?)),
        JSON_OBJECT => Ok(TopLevelGrammar::from_json_schema(schema("{\"type\": \"object\"}")?)),
        // The library would drop the backslash without a word.
        REGEX if text.chars().rev().take_while(|c| *c == '\\').count() % 2 == 1 => invalid("regex: it ends with a lone backslash"),
        REGEX => Ok(TopLevelGrammar::from_regex(text)),
        CHOICE => {
            let list: Vec<String> = serde_json::from_str(text).or_else(|e| invalid(format!("choice: {e}")))?;
            if list.is_empty() {
                return invalid("choice: the list is empty");
            }
            let quoted: Vec<String> = list.iter().map(|c| Json::String(c.clone()).to_string()).collect();
            Ok(TopLevelGrammar::from_lark(format!("start: {}", quoted.join(" | "))))
        }
        LARK => {
            schema_limits::check_lark(text)?;
            Ok(TopLevelGrammar::from_lark(text.to_string()))
        }
        other => fail(INTERNAL, format!("unknown grammar kind {other}")),
    }
}

/// # Safety
/// `tokenizer` must be a live handle, `end_ids` readable for `end_count`, the outputs writable.
#[no_mangle]
pub unsafe extern "C" fn phx_grammar_env_new(
    tokenizer: *const PhxTokenizer,
    logits_width: usize,
    end_ids: *const u32,
    end_count: usize,
    out: *mut *mut PhxGrammarEnv,
    error: *mut PhxBytes,
) -> i32 {
    guard(error, || {
        let ends = if end_count == 0 { &[] } else { std::slice::from_raw_parts(end_ids, end_count) };
        *out = Box::into_raw(Box::new(environment(&*tokenizer, logits_width, ends)?));
        Ok(())
    })
}

/// # Safety
/// `env` must be null or come from phx_grammar_env_new, once. Matchers may outlive it.
#[no_mangle]
pub unsafe extern "C" fn phx_grammar_env_free(env: *mut PhxGrammarEnv) {
    drop_handle(env);
}

/// # Safety
/// `env` must be a live handle, `source` readable, the outputs writable.
#[no_mangle]
pub unsafe extern "C" fn phx_matcher_new(
    env: *const PhxGrammarEnv,
    kind: i32,
    source: PhxSlice,
    out: *mut *mut PhxMatcher,
    error: *mut PhxBytes,
) -> i32 {
    guard(error, || {
        let env = &*env;
        let matcher = Matcher::new(env.factory.create_parser(grammar(kind, source.text("the grammar")?)?));
        if let Some(error) = matcher.get_error() {
            return refused(&error);
        }
        *out = Box::into_raw(Box::new(PhxMatcher { matcher, words: env.words, ends: env.ends.clone() }));
        Ok(())
    })
}

/// # Safety
/// `matcher` must be null or come from phx_matcher_new, once.
#[no_mangle]
pub unsafe extern "C" fn phx_matcher_free(matcher: *mut PhxMatcher) {
    drop_handle(matcher);
}

/// # Safety
/// `matcher` must be a live handle used by one thread, `mask` writable for `words` words.
#[no_mangle]
pub unsafe extern "C" fn phx_matcher_mask(matcher: *mut PhxMatcher, mask: *mut u32, words: usize, error: *mut PhxBytes) -> i32 {
    guard(error, || {
        let own = &mut *matcher;
        if words != own.words {
            return fail(INTERNAL, format!("the mask has {words} words, not {}", own.words));
        }
        let allowed = own.matcher.compute_mask_or_eos().or_else(|e| refused(&e.to_string()))?;
        let out = std::slice::from_raw_parts_mut(mask, words);
        out.fill(0);
        for (to, from) in out.iter_mut().zip(allowed.as_slice()) {
            *to = *from;
        }
        Ok(())
    })
}

/// # Safety
/// `matcher` must be a live handle used by one thread; `error` writable.
#[no_mangle]
pub unsafe extern "C" fn phx_matcher_accept(matcher: *mut PhxMatcher, id: u32, error: *mut PhxBytes) -> i32 {
    guard(error, || {
        let own = &mut *matcher;
        // The library stops by itself where nothing can follow; the end token that the mask then shows is still to come.
        if !own.matcher.is_error() && own.matcher.is_stopped() && own.ends.contains(&id) {
            return Ok(());
        }
        match own.matcher.try_consume_tokens(&[id]) {
            Ok(1) => Ok(()),
            Ok(_) => invalid(format!("token {id} is not allowed here")),
            Err(e) => refused(&e.to_string()),
        }
    })
}

/// 1 when the output may end here, 2 when nothing but an end token can follow, 0 otherwise, -1 after an error.
/// # Safety
/// `matcher` must be a live handle used by one thread.
#[no_mangle]
pub unsafe extern "C" fn phx_matcher_state(matcher: *mut PhxMatcher) -> i32 {
    let mut state = -1;
    guard(std::ptr::null_mut(), || {
        let own = &mut (*matcher).matcher;
        state = match () {
            _ if own.is_error() => -1,
            _ if own.is_stopped() => 2,
            _ if own.is_accepting().unwrap_or(false) => 1,
            _ => 0,
        };
        Ok(())
    });
    state
}
