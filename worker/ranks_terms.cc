#include "worker/ranks_terms.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <vector>

#include <fmt/format.h>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/isa.h"

namespace phalanx::worker {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kPieceBytes = 64 << 10;
constexpr uint64_t kPieces = 16;

// FNV-1a, 64 bit.
class Hash {
 public:
  void Add(std::string_view bytes) {
    for (const char byte : bytes) value_ = (value_ ^ static_cast<unsigned char>(byte)) * 0x100000001b3;
  }
  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 0xcbf29ce484222325;
};

absl::StatusOr<std::vector<fs::path>> WeightFiles(const std::string& path) {
  std::error_code error;
  if (!fs::is_directory(path, error)) return std::vector<fs::path>{path};
  std::vector<fs::path> out;
  for (const fs::directory_entry& entry : fs::directory_iterator(path, error)) {
    if (entry.path().extension() == ".safetensors") out.push_back(entry.path());
  }
  if (error) return absl::NotFoundError(absl::StrCat("cannot list '", path, "': ", error.message()));
  std::sort(out.begin(), out.end());
  return out;
}

absl::Status AddFile(const fs::path& path, Hash& hash, uint64_t* total) {
  std::error_code error;
  const uint64_t size = fs::file_size(path, error);
  std::ifstream in(path, std::ios::binary);
  if (error || !in) return absl::NotFoundError(absl::StrCat("cannot read '", path.string(), "'"));
  hash.Add(absl::StrCat(size, ";"));
  *total += size;
  std::string piece(kPieceBytes, '\0');
  const uint64_t last = size > kPieceBytes ? size - kPieceBytes : 0;
  for (uint64_t i = 0; i < kPieces; ++i) {
    const uint64_t at = last * i / (kPieces - 1);
    in.clear();
    in.seekg(static_cast<std::streamoff>(at));
    in.read(piece.data(), static_cast<std::streamsize>(kPieceBytes));
    if (in.bad()) return absl::UnavailableError(absl::StrCat("cannot read '", path.string(), "'"));
    hash.Add(std::string_view(piece.data(), static_cast<size_t>(in.gcount())));
    if (last == 0) break;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> WeightsDigest(const std::string& path) {
  PHX_ASSIGN_OR_RETURN(const std::vector<fs::path> files, WeightFiles(path));
  Hash hash;
  uint64_t total = 0;
  for (const fs::path& file : files) PHX_RETURN_IF_ERROR(AddFile(file, hash, &total));
  return fmt::format("{} bytes, {:016x}", total, hash.value());
}

absl::StatusOr<tp::Terms> MakeTerms(const std::string& version, const model::ModelConfig& config, const exec::ExecutorOptions& executor,
                                    const BackEnd& back_end) {
  std::string weights = "made up";
  if (executor.load_format != model::LoadFormat::kDummy) {
    PHX_ASSIGN_OR_RETURN(weights, WeightsDigest(executor.model_path));
  }
  const std::string shape =
      fmt::format("{}, {} layers of {}, {} heads and {} KV heads of {}, MLP of {}, vocabulary of {}", config.architecture, config.num_layers,
                  config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim, config.intermediate_size, config.vocab_size);
  // Rounding differs between instruction sets, and every rank must draw the same tokens by itself.
  const std::string device =
      back_end.gpu ? back_end.info.name : kernels::cpu::IsaName(static_cast<kernels::CpuIsa>(back_end.info.isa));
  return tp::Terms{
      {"version", version},
      {"model", shape},
      {"weights", weights},
      {"dtype", executor.dtype == kernels::kBF16 ? "bfloat16" : "float32"},
      {"max_model_len", absl::StrCat(executor.max_model_len)},
      {"max_num_seqs", absl::StrCat(executor.max_num_seqs)},
      {"max_num_batched_tokens", absl::StrCat(executor.max_num_batched_tokens)},
      {"block_size", absl::StrCat(executor.block_size)},
      {back_end.gpu ? "device" : "cpu_isa", device},
  };
}

}  // namespace phalanx::worker
