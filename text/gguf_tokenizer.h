// text/gguf_tokenizer.h: a GGUF file's tokenizer, written as the tokenizer.json that Hugging Face would ship for it.
// Refuses to know: how a tokenizer.json is run. Thread: any; functions without state. Neighbours: text.cc, template.cc, formats.
// Sources: the GGUF specification; the published tokenizer.json of each pre-tokenizer's model family.
#pragma once

#include <string>

#include "formats/gguf.h"
#include "services/status.h"

namespace phalanx::text {

struct GgufTokenizer {
  std::string tokenizer_json;
  std::string config_json;      // what tokenizer_config.json would say: bos, eos, unk, pad; add_bos, add_eos
};

// Errors: kNotFound; kInvalidArgument naming the file and the key; kUnimplemented naming the tokenizer's kind or pre-tokenizer.
absl::StatusOr<GgufTokenizer> TokenizerOfGguf(const std::string& path);
absl::StatusOr<GgufTokenizer> TokenizerOfGguf(const formats::GgufFile& file);

// The file's chat template; empty if it has none. Errors: as above.
absl::StatusOr<std::string> ChatTemplateOfGguf(const std::string& path);

}  // namespace phalanx::text
