// worker/model/model_test_util.h: what tests of real models stand on: devices, fixture models and their goldens, scratch folders.
// Refuses to know: what is being proved. Thread: the test's.
// Neighbours: tests of worker/model and worker/exec; tests/tools/make_goldens.py made the fixtures.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "formats/safetensors.h"
#include "kernels/kernels.h"

namespace phalanx::worker::model {

inline std::string SourcePath(const std::string& path) {
  const char* root = std::getenv("PHALANX_SOURCE_DIR");
  return std::string(root != nullptr ? root : ".") + "/" + path;
}

inline std::string FixtureFolder(const std::string& name) { return SourcePath("tests/fixtures/models/" + name); }

// What a user would name on the command line: the folder, or the .gguf in it.
inline std::string FixtureModel(const std::string& name) {
  return FixtureFolder(name) + (name.starts_with("gguf_") ? "/model.gguf" : "");
}

// Every fixture model.
inline const std::vector<std::string>& FixtureNames() {
  static const std::vector<std::string> names = {"llama_mha", "llama3_rope", "llama_linear", "mistral_window", "qwen2_g7", "qwen2_window",
                                                 "qwen3",     "gguf_llama",  "gguf_qwen2",   "gguf_qwen3"};
  return names;
}

// What transformers made of a fixture model.
struct Golden {
  std::vector<int32_t> input_ids;     // [n]
  std::vector<float> logits;          // [n, vocab], fp32 arithmetic
  std::vector<float> logits_bf16;     // [n, vocab], bfloat16 arithmetic
  std::vector<int32_t> greedy;        // continuation of input_ids, fp32
};

inline Golden ReadGolden(const std::string& name) {
  Golden golden;
  const auto file = formats::SafetensorsCheckpoint::Open(FixtureFolder(name) + "/golden.safetensors");
  EXPECT_TRUE(file.ok()) << file.status();
  if (!file.ok()) return golden;
  const auto ids = [&](const char* tensor) {
    const std::string_view bytes = (*file)->tensors().at(tensor).bytes;
    std::vector<int64_t> wide(bytes.size() / sizeof(int64_t));
    std::memcpy(wide.data(), bytes.data(), bytes.size());
    return std::vector<int32_t>(wide.begin(), wide.end());
  };
  const auto floats = [&](const char* tensor) {
    const std::string_view bytes = (*file)->tensors().at(tensor).bytes;
    std::vector<float> values(bytes.size() / sizeof(float));
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  };
  golden.input_ids = ids("input_ids");
  golden.greedy = ids("greedy");
  golden.logits = floats("logits");
  golden.logits_bf16 = floats("logits_bf16");
  return golden;
}

// A device of a built-in table, destroyed at the end.
class TestDevice {
 public:
  explicit TestDevice(const kernels::Table& table, kernels::DeviceOptions options = {}) : table_(table) {
    char error[256] = "";
    EXPECT_EQ(table.create(&options, &device_, error, sizeof error), kernels::kOk) << error;
  }
  ~TestDevice() { table_.destroy(device_); }
  TestDevice(const TestDevice&) = delete;
  TestDevice& operator=(const TestDevice&) = delete;
  const kernels::Table& table() const { return table_; }
  kernels::Device* get() const { return device_; }

 private:
  const kernels::Table& table_;
  kernels::Device* device_ = nullptr;
};

// A folder of its own that goes away.
class ScratchFolder {
 public:
  ScratchFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "model.XXXXXX").string();
    EXPECT_NE(::mkdtemp(pattern.data()), nullptr);
    path_ = pattern;
  }
  ~ScratchFolder() { std::filesystem::remove_all(path_); }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

inline std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

inline void WriteFile(const std::string& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

}  // namespace phalanx::worker::model
