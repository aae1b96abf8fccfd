#include "text/text.h"

#include <sys/stat.h>

#include <cstdio>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "text/gguf_tokenizer.h"
#include "text/impl.h"

namespace phalanx::text {
namespace {

constexpr uint32_t kAbiVersion = 1;

bool IsFolder(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

// The texts that a tokenizer is made of, and the file to name in errors.
struct Sources {
  std::string where;
  std::string json;
  std::string config;
};

absl::StatusOr<Sources> ReadSources(const std::string& path) {
  Sources out;
  if (absl::EndsWithIgnoreCase(path, ".gguf")) {
    PHX_ASSIGN_OR_RETURN(GgufTokenizer built, TokenizerOfGguf(path));
    return Sources{path, std::move(built.tokenizer_json), std::move(built.config_json)};
  }
  const bool folder = IsFolder(path);
  out.where = folder ? absl::StrCat(path, "/tokenizer.json") : path;
  PHX_ASSIGN_OR_RETURN(out.json, ReadFile(out.where, kMaxTokenizerBytes));
  auto config = ReadFile(absl::StrCat(ParentOf(out.where), "/tokenizer_config.json"), kMaxTokenizerBytes);
  if (config.ok()) {
    out.config = *std::move(config);
  } else if (!absl::IsNotFound(config.status())) {
    return config.status();
  }
  return out;
}

}  // namespace

std::string ParentOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? std::string(1, '.') : path.substr(0, slash);
}

std::string TakeBytes(PhxBytes bytes) {
  std::string out(reinterpret_cast<const char*>(bytes.data), bytes.size);
  phx_text_free_bytes(bytes);
  return out;
}

absl::Status StatusOf(int32_t code, PhxBytes error, std::string_view where) {
  if (code == kPhxOk) return absl::OkStatus();
  std::string message = error.data == nullptr ? "unknown error" : TakeBytes(error);
  if (!where.empty()) message = absl::StrCat(View(where), ": ", message);
  switch (code) {
    case kPhxInvalid: return absl::InvalidArgumentError(message);
    case kPhxLimit: return absl::ResourceExhaustedError(message);
    case kPhxUnimplemented: return absl::UnimplementedError(message);
    case kPhxNotFound: return absl::NotFoundError(message);
    default: return absl::InternalError(message);
  }
}

absl::StatusOr<std::string> ReadFile(const std::string& path, size_t max_bytes) {
  std::unique_ptr<FILE, int (*)(FILE*)> file(IsFolder(path) ? nullptr : fopen(path.c_str(), "rb"), fclose);
  if (file == nullptr) return absl::NotFoundError(absl::StrCat(path, ": cannot be opened"));
  std::string out;
  char block[1 << 16];
  size_t got;
  while ((got = fread(block, 1, sizeof(block), file.get())) > 0) {
    if (out.size() + got > max_bytes) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": longer than ", max_bytes, " bytes"));
    }
    out.append(block, got);
  }
  if (ferror(file.get()) != 0) return absl::InvalidArgumentError(absl::StrCat(path, ": cannot be read"));
  return out;
}

Tokenizer::Tokenizer() : impl_(std::make_unique<Impl>()) {}
Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::shared_ptr<const Tokenizer>> Tokenizer::Load(const std::string& path) {
  if (phx_text_abi_version() != kAbiVersion) return absl::InternalError("text: the Rust library has another ABI version");
  PHX_ASSIGN_OR_RETURN(Sources sources, ReadSources(path));
  std::shared_ptr<Tokenizer> out(new Tokenizer());
  PhxBytes error = {};
  const int32_t code = phx_tokenizer_load(Slice(sources.json), Slice(sources.config), &out->impl_->handle, &error);
  PHX_RETURN_IF_ERROR(StatusOf(code, error, sources.where));
  PhxVocab& vocab = out->impl_->vocab;
  phx_tokenizer_vocab(out->impl_->handle, &vocab);
  for (size_t id = 0; id < vocab.size && !out->impl_->byte_fallback; ++id) {
    out->impl_->byte_fallback = (vocab.flags[id] & 4) != 0;
  }
  return std::shared_ptr<const Tokenizer>(std::move(out));
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(std::string_view utf8, SpecialTokens special) const {
  uint32_t* ids = nullptr;
  size_t count = 0;
  PhxBytes error = {};
  const int32_t code =
      phx_tokenizer_encode(impl_->handle, Slice(utf8), special == SpecialTokens::kAdd ? 1 : 0, &ids, &count, &error);
  PHX_RETURN_IF_ERROR(StatusOf(code, error, ""));
  std::vector<int32_t> out(ids, ids + count);
  phx_text_free_ids(ids, count);
  return out;
}

std::string Tokenizer::Decode(const std::vector<int32_t>& ids, bool skip_special) const {
  TokenJoiner joiner(impl_.get(), {.skip_special = skip_special});
  std::string out;
  for (int32_t id : ids) joiner.Append(id, &out);
  joiner.Flush(&out);
  return out;
}

int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(impl_->vocab.size); }

std::string_view Tokenizer::TokenBytes(int32_t id) const { return impl_->Known(id) ? impl_->Piece(id) : std::string_view(); }

std::string Tokenizer::TokenText(int32_t id) const {
  Utf8Joiner joiner(false);
  std::string out;
  joiner.Append(TokenBytes(id), &out);
  joiner.Flush(&out);
  return out;
}

bool Tokenizer::IsSpecial(int32_t id) const { return impl_->Special(id); }

std::optional<int32_t> Tokenizer::IdOf(std::string_view token) const {
  const int64_t id = phx_tokenizer_id(impl_->handle, Slice(token));
  return id < 0 ? std::nullopt : std::optional<int32_t>(static_cast<int32_t>(id));
}

std::optional<int32_t> Tokenizer::bos_id() const {
  return impl_->vocab.bos_id < 0 ? std::nullopt : std::optional<int32_t>(impl_->vocab.bos_id);
}

std::optional<int32_t> Tokenizer::eos_id() const {
  return impl_->vocab.eos_id < 0 ? std::nullopt : std::optional<int32_t>(impl_->vocab.eos_id);
}

std::string Tokenizer::bos_token() const { return bos_id() ? std::string(impl_->Name(*bos_id())) : ""; }
std::string Tokenizer::eos_token() const { return eos_id() ? std::string(impl_->Name(*eos_id())) : ""; }

}  // namespace phalanx::text
