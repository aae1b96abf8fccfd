#include "text/gguf_tokenizer.h"

#include <algorithm>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "text/impl.h"

namespace phalanx::text {
namespace {

// tokenizer.ggml.token_type
enum TokenType : int64_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

constexpr int64_t kMaxTokens = 1 << 20;

// How text is cut before BPE runs, by tokenizer.ggml.pre.
struct PreTokenizer {
  std::string_view name;
  std::string_view regex;      // of a Split; empty: single digits, then GPT-2's own pattern
  bool single_digits;
  bool nfc;
  bool ignore_merges;
  bool add_bos;                // when the file does not say
};

constexpr std::string_view kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

constexpr PreTokenizer kPreTokenizers[] = {
    {"gpt-2", "", false, false, false, false},   {"smollm", "", true, false, false, false},
    {"starcoder", "", true, false, false, false}, {"refact", "", true, false, false, false},
    {"qwen2", kQwen2, false, true, false, false}, {"llama-bpe", kLlama3, false, false, true, true},
    {"llama3", kLlama3, false, false, true, true}, {"llama-v3", kLlama3, false, false, true, true},
};

// A JSON string literal. GGUF strings are bytes: invalid UTF-8 is refused later, by the JSON reader.
void AppendJson(std::string_view text, std::string* out) {
  out->push_back('"');
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out->push_back('\\');
      out->push_back(c);
    } else if (static_cast<unsigned char>(c) < 0x20) {
      constexpr char kHex[] = "0123456789abcdef";
      out->append("\\u00");
      out->push_back(kHex[c >> 4]);
      out->push_back(kHex[c & 15]);
    } else {
      out->push_back(c);
    }
  }
  out->push_back('"');
}

class Builder {
 public:
  explicit Builder(const formats::GgufFile& file) : file_(file) {}

  absl::StatusOr<GgufTokenizer> Build() {
    PHX_ASSIGN_OR_RETURN(const std::string model, file_.GetString("tokenizer.ggml.model"));
    PHX_RETURN_IF_ERROR(ReadTokens());
    GgufTokenizer out;
    if (model == "gpt2") {
      PHX_RETURN_IF_ERROR(WriteBpe(&out.tokenizer_json));
    } else if (model == "llama") {
      PHX_RETURN_IF_ERROR(WriteSentencePiece(&out.tokenizer_json));
    } else {
      return absl::UnimplementedError(absl::StrCat(file_.path(), ": tokenizer.ggml.model \"", model, "\" is not supported"));
    }
    PHX_RETURN_IF_ERROR(WriteConfig(&out.config_json));
    return out;
  }

 private:
  absl::Status Bad(std::string_view key, std::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat(file_.path(), ": ", View(key), " ", View(what)));
  }

  // Null if absent; an error if it has another type.
  template <typename T>
  absl::StatusOr<const T*> Find(std::string_view key) const {
    const formats::GgufValue* value = file_.Find(key);
    if (value == nullptr) return nullptr;
    const T* typed = std::get_if<T>(value);
    if (typed == nullptr) return Bad(key, "has the wrong type");
    return typed;
  }

  absl::Status ReadTokens() {
    PHX_ASSIGN_OR_RETURN(tokens_, Find<std::vector<std::string>>("tokenizer.ggml.tokens"));
    PHX_ASSIGN_OR_RETURN(types_, Find<std::vector<int64_t>>("tokenizer.ggml.token_type"));
    if (tokens_ == nullptr || tokens_->empty()) return Bad("tokenizer.ggml.tokens", "is missing or empty");
    if (static_cast<int64_t>(tokens_->size()) > kMaxTokens) return Bad("tokenizer.ggml.tokens", "is too long");
    if (types_ != nullptr && types_->size() != tokens_->size()) return Bad("tokenizer.ggml.token_type", "has another length than the tokens");
    return absl::OkStatus();
  }

  int64_t Type(size_t id) const { return types_ == nullptr ? int64_t{kNormal} : (*types_)[id]; }

  void AppendAdded(std::string* out) const {
    absl::StrAppend(out, "\"added_tokens\":[");
    const char* comma = "";
    for (size_t id = 0; id < tokens_->size(); ++id) {
      const int64_t type = Type(id);
      if (type != kControl && type != kUserDefined && type != kUnknown) continue;
      if ((*tokens_)[id].empty()) continue;
      absl::StrAppend(out, comma, "{\"id\":", id, ",\"content\":");
      AppendJson((*tokens_)[id], out);
      absl::StrAppend(out, ",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":false,\"special\":",
                      type == kUserDefined ? "false" : "true", "}");
      comma = ",";
    }
    absl::StrAppend(out, "],");
  }

  void AppendVocab(std::string* out) const {
    absl::StrAppend(out, "\"vocab\":{");
    for (size_t id = 0; id < tokens_->size(); ++id) {
      if (id > 0) out->push_back(',');
      AppendJson((*tokens_)[id], out);
      absl::StrAppend(out, ":", id);
    }
    absl::StrAppend(out, "},");
  }

  absl::StatusOr<const PreTokenizer*> Pre() const {
    PHX_ASSIGN_OR_RETURN(const std::string* name, Find<std::string>("tokenizer.ggml.pre"));
    if (name == nullptr) return Bad("tokenizer.ggml.pre", "is missing: how text is cut before merging is not known");
    for (const PreTokenizer& row : kPreTokenizers) {
      if (row.name == *name) return &row;
    }
    return absl::UnimplementedError(absl::StrCat(file_.path(), ": tokenizer.ggml.pre \"", *name, "\" is not a known pre-tokenizer"));
  }

  absl::Status WriteBpe(std::string* out) {
    PHX_ASSIGN_OR_RETURN(const PreTokenizer* pre, Pre());
    PHX_ASSIGN_OR_RETURN(const auto* merges, Find<std::vector<std::string>>("tokenizer.ggml.merges"));
    if (merges == nullptr) return Bad("tokenizer.ggml.merges", "is missing");
    default_add_bos_ = pre->add_bos;
    out->reserve(tokens_->size() * 48);
    absl::StrAppend(out, "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,");
    AppendAdded(out);
    absl::StrAppend(out, "\"normalizer\":", pre->nfc ? "{\"type\":\"NFC\"}" : "null", ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[");
    if (pre->single_digits) absl::StrAppend(out, "{\"type\":\"Digits\",\"individual_digits\":true},");
    if (!pre->regex.empty()) {
      absl::StrAppend(out, "{\"type\":\"Split\",\"pattern\":{\"Regex\":");
      AppendJson(pre->regex, out);
      absl::StrAppend(out, "},\"behavior\":\"Isolated\",\"invert\":false},");
    }
    const char* byte_level = "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":";
    absl::StrAppend(out, byte_level, pre->regex.empty() ? "true" : "false", "}]},\"post_processor\":null,\"decoder\":", byte_level, "true},");
    absl::StrAppend(out, "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,\"continuing_subword_prefix\":null,"
                    "\"end_of_word_suffix\":null,\"fuse_unk\":false,\"byte_fallback\":false,\"ignore_merges\":",
                    pre->ignore_merges ? "true," : "false,");
    AppendVocab(out);
    absl::StrAppend(out, "\"merges\":[");
    for (size_t i = 0; i < merges->size(); ++i) {
      if (i > 0) out->push_back(',');
      AppendJson((*merges)[i], out);
    }
    absl::StrAppend(out, "]}}");
    return absl::OkStatus();
  }

  struct Merge {
    std::string_view left, right;
    double score;
    size_t left_chars, right_chars;
  };

  // SentencePiece joins the pair whose piece has the best score: the same order written as merges, as the published converter
  // writes them (score, then the longer left and right part; ties in vocabulary order).
  std::vector<Merge> MergesOfScores(const std::vector<double>& scores) const {
    std::unordered_map<std::string_view, size_t> ids;
    for (size_t id = 0; id < tokens_->size(); ++id) ids.emplace((*tokens_)[id], id);
    std::vector<Merge> merges;
    for (size_t id = 0; id < tokens_->size(); ++id) {
      const std::string_view piece = (*tokens_)[id];
      if (Type(id) == kControl || Type(id) == kUnknown || Type(id) == kByte || piece.size() > 512) continue;
      std::vector<std::pair<std::pair<size_t, size_t>, Merge>> local;
      size_t chars = 0;
      const size_t total = std::count_if(piece.begin(), piece.end(), [](char c) { return (c & 0xC0) != 0x80; });
      for (size_t cut = 1; cut < piece.size(); ++cut) {
        if ((piece[cut] & 0xC0) == 0x80) continue;
        ++chars;
        const auto left = ids.find(piece.substr(0, cut));
        const auto right = ids.find(piece.substr(cut));
        if (left == ids.end() || right == ids.end()) continue;
        local.push_back({{left->second, right->second}, {left->first, right->first, scores[id], chars, total - chars}});
      }
      std::sort(local.begin(), local.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
      for (auto& [order, merge] : local) merges.push_back(merge);
    }
    std::stable_sort(merges.begin(), merges.end(), [](const Merge& a, const Merge& b) {
      if (a.score != b.score) return a.score > b.score;
      if (a.left_chars != b.left_chars) return a.left_chars > b.left_chars;
      return a.right_chars > b.right_chars;
    });
    return merges;
  }

  absl::Status WriteSentencePiece(std::string* out) {
    PHX_ASSIGN_OR_RETURN(const auto* scores, Find<std::vector<double>>("tokenizer.ggml.scores"));
    if (scores == nullptr || scores->size() != tokens_->size()) return Bad("tokenizer.ggml.scores", "is missing or has another length than the tokens");
    for (const double score : *scores) {
      if (!(score == score)) return Bad("tokenizer.ggml.scores", "holds a NaN");
    }
    PHX_ASSIGN_OR_RETURN(const bool* prefix_flag, Find<bool>("tokenizer.ggml.add_space_prefix"));
    const bool prefix = prefix_flag == nullptr || *prefix_flag;
    default_add_bos_ = true;
    absl::StrAppend(out, "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,");
    AppendAdded(out);
    absl::StrAppend(out, "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[", prefix ? "{\"type\":\"Prepend\",\"prepend\":\"▁\"}," : "",
                    "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"▁\"}]},\"pre_tokenizer\":null,\"post_processor\":null,"
                    "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":\"▁\"},\"content\":\" \"},"
                    "{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"}",
                    prefix ? ",{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}" : "", "]},");
    absl::StrAppend(out, "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"continuing_subword_prefix\":null,\"end_of_word_suffix\":null,"
                    "\"fuse_unk\":true,\"byte_fallback\":true,\"ignore_merges\":false,\"unk_token\":");
    PHX_ASSIGN_OR_RETURN(const std::string* unknown, TokenAt("tokenizer.ggml.unknown_token_id"));
    if (unknown != nullptr) {
      AppendJson(*unknown, out);
    } else {
      absl::StrAppend(out, "null");
    }
    out->push_back(',');
    AppendVocab(out);
    absl::StrAppend(out, "\"merges\":[");
    const char* comma = "";
    for (const Merge& merge : MergesOfScores(*scores)) {
      absl::StrAppend(out, comma, "[");
      AppendJson(merge.left, out);
      out->push_back(',');
      AppendJson(merge.right, out);
      out->push_back(']');
      comma = ",";
    }
    absl::StrAppend(out, "]}}");
    return absl::OkStatus();
  }

  // The token that a key's id names; null if the key is absent.
  absl::StatusOr<const std::string*> TokenAt(std::string_view key) const {
    PHX_ASSIGN_OR_RETURN(const int64_t* id, Find<int64_t>(key));
    if (id == nullptr) return nullptr;
    if (*id < 0 || *id >= static_cast<int64_t>(tokens_->size())) return Bad(key, absl::StrCat("is ", *id, ", outside the vocabulary"));
    return &(*tokens_)[*id];
  }

  absl::Status WriteConfig(std::string* out) const {
    PHX_ASSIGN_OR_RETURN(const bool* add_bos, Find<bool>("tokenizer.ggml.add_bos_token"));
    PHX_ASSIGN_OR_RETURN(const bool* add_eos, Find<bool>("tokenizer.ggml.add_eos_token"));
    absl::StrAppend(out, "{\"add_bos_token\":", (add_bos == nullptr ? default_add_bos_ : *add_bos) ? "true" : "false",
                    ",\"add_eos_token\":", add_eos != nullptr && *add_eos ? "true" : "false");
    constexpr std::pair<std::string_view, std::string_view> kNames[] = {{"bos_token", "tokenizer.ggml.bos_token_id"},
                                                                        {"eos_token", "tokenizer.ggml.eos_token_id"},
                                                                        {"unk_token", "tokenizer.ggml.unknown_token_id"},
                                                                        {"pad_token", "tokenizer.ggml.padding_token_id"}};
    for (const auto& [name, key] : kNames) {
      PHX_ASSIGN_OR_RETURN(const std::string* token, TokenAt(key));
      if (token == nullptr) continue;
      absl::StrAppend(out, ",\"", View(name), "\":");
      AppendJson(*token, out);
    }
    out->push_back('}');
    return absl::OkStatus();
  }

  const formats::GgufFile& file_;
  const std::vector<std::string>* tokens_ = nullptr;
  const std::vector<int64_t>* types_ = nullptr;
  bool default_add_bos_ = false;
};

}  // namespace

absl::StatusOr<GgufTokenizer> TokenizerOfGguf(const formats::GgufFile& file) { return Builder(file).Build(); }

absl::StatusOr<GgufTokenizer> TokenizerOfGguf(const std::string& path) {
  PHX_ASSIGN_OR_RETURN(const auto file, formats::GgufFile::Open(path));
  return TokenizerOfGguf(*file);
}

absl::StatusOr<std::string> ChatTemplateOfGguf(const std::string& path) {
  PHX_ASSIGN_OR_RETURN(const auto file, formats::GgufFile::Open(path));
  if (file->Find("tokenizer.chat_template") == nullptr) return std::string();
  return file->GetString("tokenizer.chat_template");
}

}  // namespace phalanx::text
