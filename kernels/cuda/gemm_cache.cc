#include "kernels/cuda/gemm_cache.h"

#include <unistd.h>

#include <cctype>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <system_error>

namespace phalanx::kernels::cuda {
namespace {

struct Close {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, Close>;

// Not std::to_string: its table of digits would be a second symbol that the plug-in exports.
std::string Decimal(uint64_t value) {
  char digits[24];
  std::snprintf(digits, sizeof(digits), "%" PRIu64, value);
  return digits;
}

bool ParseLine(const char* line, LibraryKey* key, AlgorithmBits* bits) {
  int out = 0, bias = 0, add = 0, used = 0;
  const int fields = std::sscanf(line, "%" SCNd64 " %" SCNd64 " %" SCNd64 " %" SCNd64 " %" SCNd64 " %d %d %d %u %u %u%n", &key->m, &key->n,
                                 &key->k, &key->x_stride, &key->out_stride, &out, &bias, &add, &key->x_alignment,
                                 &key->weight_alignment, &key->out_alignment, &used);
  if (fields != 11) return false;
  key->out = static_cast<DType>(out), key->bias = bias != 0, key->add = add != 0;
  line += used;
  for (uint64_t& word : *bits) {
    if (std::sscanf(line, " %" SCNx64 "%n", &word, &used) != 1) return false;
    line += used;
  }
  return *line == '\n' && line[1] == 0;
}

}  // namespace

std::string CacheFolder() {
  const auto get = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value == nullptr ? "" : value);
  };
  if (const std::string own = get("PHALANX_CACHE_DIR"); !own.empty()) return own;
  if (const std::string user = get("XDG_CACHE_HOME"); !user.empty()) return user + "/phalanx";
  const std::string home = get("HOME");
  return home.empty() ? "" : home + "/.cache/phalanx";
}

std::string AlgorithmsTitle(uint64_t library_version, const std::string& gpu) {
  return "phalanx cublasLt algorithms 1, library " + Decimal(library_version) + ", " + gpu + "\n";
}

std::string AlgorithmsPath(uint64_t library_version, const std::string& gpu) {
  const std::string folder = CacheFolder();
  if (folder.empty()) return "";
  std::string name = gpu;
  for (char& c : name) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '-';
  }
  return folder + "/cublaslt-" + Decimal(library_version) + "-" + name + ".txt";
}

KnownAlgorithms ReadAlgorithms(const std::string& path, const std::string& title) {
  const File file(path.empty() ? nullptr : std::fopen(path.c_str(), "r"));
  char line[512];
  if (file == nullptr || std::fgets(line, sizeof(line), file.get()) == nullptr || title != line) return {};
  KnownAlgorithms algorithms;
  while (std::fgets(line, sizeof(line), file.get()) != nullptr) {
    LibraryKey key{};
    AlgorithmBits bits;
    if (!ParseLine(line, &key, &bits)) return {};
    algorithms[key] = bits;
  }
  return algorithms;
}

bool WriteAlgorithms(const std::string& path, const std::string& title, const KnownAlgorithms& algorithms) {
  if (path.empty()) return false;
  std::error_code error;
  std::filesystem::create_directories(std::filesystem::path(path).parent_path(), error);
  const std::string temporary = path + "." + Decimal(static_cast<uint64_t>(getpid()));
  File file(std::fopen(temporary.c_str(), "w"));
  if (file == nullptr) return false;
  bool good = std::fputs(title.c_str(), file.get()) >= 0;
  for (const auto& [key, bits] : algorithms) {
    good = good && std::fprintf(file.get(), "%" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %d %d %d %u %u %u", key.m, key.n,
                                key.k, key.x_stride, key.out_stride, key.out, key.bias, key.add, key.x_alignment,
                                key.weight_alignment, key.out_alignment) > 0;
    for (const uint64_t word : bits) good = good && std::fprintf(file.get(), " %" PRIx64, word) > 0;
    good = good && std::fputc('\n', file.get()) != EOF;
  }
  good = std::fclose(file.release()) == 0 && good;
  if (good) std::filesystem::rename(temporary, path, error);
  if (!good || error) std::filesystem::remove(temporary, error);
  return good && !error;
}

}  // namespace phalanx::kernels::cuda
