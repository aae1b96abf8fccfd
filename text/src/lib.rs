//! The Rust half of text/: encoding, chat templates and grammars behind the C ABI of text/abi.h.
//! Refuses to know: requests, batches, HTTP. Thread: handles are immutable and shared; a matcher belongs to one sequence.
//! Neighbours: text.cc and grammar.cc call it; nothing else does.

mod abi;
mod decoder;
mod grammar;
mod messages;
mod pyfmt;
mod pymethods;
mod schema_limits;
mod template;
mod tokenizer;
