//! Turns a tokenizer's decoder into one table of bytes a token, so that decoding needs no call per token.
//! Refuses to know: UTF-8 borders and invalid bytes; text.cc joins the bytes. Neighbours: tokenizer.rs fills the table.

use serde_json::Value;
use tokenizers::{Decoder, DecoderWrapper};

use crate::abi::{fail, invalid, Outcome, UNIMPLEMENTED};

/// One stage before tokens are joined.
enum Stage {
    /// Depends on the token's text only.
    Local(DecoderWrapper),
    /// Differs at the first token of a text.
    Metaspace(DecoderWrapper),
    /// `<0xNN>` stands for one byte.
    ByteFallback,
}

/// How a whole tokenizer decodes.
#[derive(Default)]
pub struct Plan {
    stages: Vec<Stage>,
    /// Tokens are spelled in the byte-level alphabet.
    byte_level: bool,
    /// No decoder: tokens are joined with one space.
    pub join_with_space: bool,
    /// How many leading `strip_char` the joined text loses.
    pub strip_count: u32,
    pub strip_char: u32,
    fused: bool,
}

/// One token's contribution to the text.
pub struct Piece {
    pub bytes: Vec<u8>,
    /// Given only where the first token of a text differs.
    pub first: Option<Vec<u8>>,
    /// A byte-fallback token: an unfinished character becomes one U+FFFD a byte.
    pub is_byte: bool,
}

impl Plan {
    /// `decoder` is the tokenizer's decoder as JSON, or None.
    pub fn new(decoder: Option<&DecoderWrapper>) -> Outcome<Plan> {
        let mut plan = Plan::default();
        let Some(decoder) = decoder else {
            plan.join_with_space = true;
            return Ok(plan);
        };
        match serde_json::to_value(decoder) {
            Ok(json) => plan.add(&json)?,
            Err(e) => return invalid(format!("decoder: {e}")),
        }
        Ok(plan)
    }

    fn add(&mut self, json: &Value) -> Outcome<()> {
        let kind = json["type"].as_str().unwrap_or("").to_string();
        match kind.as_str() {
            "Sequence" => {
                for part in json["decoders"].as_array().into_iter().flatten() {
                    self.add(part)?;
                }
                Ok(())
            }
            "Fuse" => {
                self.fused = true;
                Ok(())
            }
            "ByteLevel" if !self.fused => {
                self.byte_level = true;
                self.fused = true;
                Ok(())
            }
            "Strip" if self.fused => self.strip(json),
            "ByteFallback" if !self.fused => {
                self.stages.push(Stage::ByteFallback);
                Ok(())
            }
            "Metaspace" if !self.fused => {
                self.stages.push(Stage::Metaspace(parse(json)?));
                Ok(())
            }
            "Replace" | "Strip" if !self.fused => {
                self.stages.push(Stage::Local(parse(json)?));
                Ok(())
            }
            _ => fail(UNIMPLEMENTED, format!("decoder \"{kind}\" is not supported in this position")),
        }
    }

    /// A Strip after the tokens were joined: only leading characters can be cut while streaming.
    fn strip(&mut self, json: &Value) -> Outcome<()> {
        let start = json["start"].as_u64().unwrap_or(0);
        let content = json["content"].as_str().and_then(|s| s.chars().next());
        if json["stop"].as_u64().unwrap_or(0) != 0 || self.strip_count != 0 {
            return fail(UNIMPLEMENTED, "decoder \"Strip\" of trailing text is not supported");
        }
        self.strip_count = u32::try_from(start).unwrap_or(u32::MAX);
        self.strip_char = content.map_or(' ' as u32, |c| c as u32);
        Ok(())
    }

    pub fn piece(&self, token: &str) -> Outcome<Piece> {
        let mut text = token.to_string();
        let mut first: Option<String> = None;
        for stage in &self.stages {
            match stage {
                Stage::ByteFallback => {
                    if let Some(byte) = fallback_byte(&text) {
                        return Ok(Piece { bytes: vec![byte], first: None, is_byte: true });
                    }
                }
                Stage::Local(decoder) => {
                    text = at(decoder, vec![text], 0)?;
                    first = first.map(|f| at(decoder, vec![f], 0)).transpose()?;
                }
                Stage::Metaspace(decoder) => {
                    first = Some(at(decoder, vec![first.unwrap_or_else(|| text.clone())], 0)?);
                    text = at(decoder, vec![String::new(), text], 1)?;
                }
            }
        }
        let first = first.filter(|f| *f != text).map(|f| self.spell(&f));
        Ok(Piece { bytes: self.spell(&text), first, is_byte: false })
    }

    fn spell(&self, text: &str) -> Vec<u8> {
        if self.byte_level {
            if let Some(bytes) = text.chars().map(byte_of).collect::<Option<Vec<u8>>>() {
                return bytes;
            }
        }
        text.as_bytes().to_vec()
    }
}

fn parse(json: &Value) -> Outcome<DecoderWrapper> {
    serde_json::from_value(json.clone()).or_else(|e| invalid(format!("decoder: {e}")))
}

/// The `index`th token after one decoder ran over `tokens`.
fn at(decoder: &DecoderWrapper, tokens: Vec<String>, index: usize) -> Outcome<String> {
    match decoder.decode_chain(tokens) {
        Ok(mut out) if index < out.len() => Ok(out.swap_remove(index)),
        Ok(_) => Ok(String::new()),
        Err(e) => invalid(format!("decoder: {e}")),
    }
}

fn fallback_byte(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() != 2 {
        return None;
    }
    u8::from_str_radix(hex, 16).ok()
}

/// The byte that a character of the byte-level alphabet stands for (GPT-2's table).
fn byte_of(c: char) -> Option<u8> {
    let code = c as u32;
    match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => Some(code as u8),
        0x100..=0x120 => Some((code - 0x100) as u8),
        0x121..=0x142 => Some((code - 0x121 + 0x7F) as u8),
        0x143 => Some(0xAD),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn plan(decoder: Value) -> Outcome<Plan> {
        Plan::new(Some(&serde_json::from_value(decoder).unwrap()))
    }
    fn replace() -> Value {
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "})
    }

    #[test]
    fn byte_level_undoes_the_alphabet() {
        let plan = plan(json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true})).ok().unwrap();
        let bytes = |token: &str| plan.piece(token).ok().unwrap().bytes;
        assert_eq!(bytes("Ġa"), b" a");
        assert_eq!(bytes("æĹ¥"), "日".as_bytes());
        assert_eq!(bytes("æĹ"), b"\xe6\x97");
        assert_eq!(bytes("日 literal"), "日 literal".as_bytes()); // an added token: not in the alphabet
        // The alphabet is one to one over all bytes.
        let mut seen: Vec<u8> = (0x21..0x144).filter_map(|c| byte_of(char::from_u32(c).unwrap())).collect();
        seen.sort();
        assert_eq!(seen, (0..=255).collect::<Vec<u8>>());
    }

    #[test]
    fn sentencepiece_stages() {
        let plan = plan(json!({"type": "Sequence", "decoders": [replace(), {"type": "ByteFallback"}, {"type": "Fuse"},
                                                                {"type": "Strip", "content": " ", "start": 1, "stop": 0}]})).ok().unwrap();
        let piece = plan.piece("<0xE6>").ok().unwrap();
        assert!(piece.is_byte && piece.bytes == [0xE6]);
        assert_eq!(plan.piece("▁a").ok().unwrap().bytes, b" a");
        assert!(!plan.piece("<0xG1>").ok().unwrap().is_byte);
        assert!(!plan.piece("<0x1>").ok().unwrap().is_byte);
        assert_eq!((plan.strip_count, plan.strip_char), (1, ' ' as u32));
    }

    #[test]
    fn metaspace_differs_at_the_start() {
        let plan = plan(json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true})).ok().unwrap();
        let piece = plan.piece("▁a").ok().unwrap();
        assert_eq!((piece.bytes.as_slice(), piece.first.as_deref()), (b" a".as_slice(), Some(b"a".as_slice())));
        assert!(plan.piece("a").ok().unwrap().first.is_none());
    }

    #[test]
    fn what_a_stream_cannot_do_is_refused() {
        for decoder in [
            json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
            json!({"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": true}),
            json!({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 0, "stop": 1}]}),
            json!({"type": "Sequence", "decoders": [{"type": "Fuse"}, replace()]}),
        ] {
            assert_eq!(plan(decoder.clone()).err().map(|f| f.code), Some(UNIMPLEMENTED), "{decoder}");
        }
        assert!(Plan::new(None).ok().unwrap().join_with_space);
    }
}
