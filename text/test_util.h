// text/test_util.h: what the room's tests share: fixtures, temporary folders, tokenizers by name.
// Refuses to know: what is tested. Thread: one. Neighbours: text/*_test.cc only.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "text/text.h"

namespace phalanx::text {

inline std::string FromEnv(const char* name, const std::string& fallback) {
  const char* value = getenv(name);
  return value != nullptr ? value : fallback;
}
inline std::string SourceDir() { return FromEnv("PHALANX_SOURCE_DIR", "."); }
inline std::string DepsDir() { return FromEnv("PHALANX_DEPS", SourceDir() + "/build/deps"); }
inline std::string FixtureDir() { return SourceDir() + "/tests/fixtures/text"; }
inline std::string SmolPath() { return DepsDir() + "/models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"; }

// Where a tokenizer of the goldens is; the real ones are fetched by scripts/fetch_fixtures.sh and scripts/fetch_models.sh.
inline std::string ModelPath(const std::string& name) {
  if (name == "demo") return SourceDir() + "/models/demo";
  if (name == "smollm2") return SmolPath();
  if (name == "spm" || name == "metaspace" || name == "words") return FixtureDir() + "/" + name;
  return DepsDir() + "/fixtures/text/" + name;
}

inline std::string Slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in.good()) << path << " is missing: run scripts/fetch_fixtures.sh and scripts/fetch_models.sh";
  return std::string(std::istreambuf_iterator<char>(in), {});
}

inline nlohmann::ordered_json Golden(const std::string& name) { return nlohmann::ordered_json::parse(Slurp(FixtureDir() + "/" + name)); }

// Loaded once for the whole program. A missing fixture is a failure that says how to fetch it.
inline std::shared_ptr<const Tokenizer> LoadTokenizer(const std::string& name) {
  static auto& cache = *new std::map<std::string, std::shared_ptr<const Tokenizer>>();
  auto& slot = cache[name];
  if (slot == nullptr) {
    auto loaded = Tokenizer::Load(ModelPath(name));
    EXPECT_TRUE(loaded.ok()) << loaded.status() << "; scripts/fetch_fixtures.sh and scripts/fetch_models.sh fetch real models";
    if (!loaded.ok()) return nullptr;
    slot = *std::move(loaded);
  }
  return slot;
}

class TempDir {
 public:
  TempDir() {
    std::string form = (std::filesystem::temp_directory_path() / "phalanx_text_XXXXXX").string();
    path_ = mkdtemp(form.data());
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }
  std::string Write(const std::string& name, const std::string& content) const {
    std::ofstream(path_ + "/" + name, std::ios::binary) << content;
    return path_ + "/" + name;
  }

 private:
  std::string path_;
};

}  // namespace phalanx::text
