// Every fixture model against transformers, on the CPU table and on the twin; on a plug-in instead where PHALANX_OPS_PLUGIN names one
// (`make test-gpu`). The goldens are fp32 and bfloat16 runs of the published transformers package on the same stored weights
// (tests/tools/make_goldens.py).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>

#include "kernels/load.h"
#include "worker/model/device.h"
#include "worker/model/model.h"
#include "worker/model/model_test_util.h"

namespace phalanx::worker::model {
namespace {

using kernels::DType;

constexpr int32_t kBlockSize = 8;
constexpr int32_t kMaxLength = 96;
constexpr int32_t kBlocks = kMaxLength / kBlockSize;

// A loaded model with a cache for one sequence.
class LoneRun {
 public:
  LoneRun(const TestDevice& device, const std::string& path, DType dtype)
      : table_(device.table()), device_(device.get()), memory_(table_, device_) {
    auto model = LoadModel(table_, device_, {path, dtype, kMaxLength, kMaxLength, kMaxLength, nullptr});
    EXPECT_TRUE(model.ok()) << model.status();
    if (!model.ok()) return;
    model_ = *std::move(model);
    const ModelConfig& config = model_->config();
    const size_t bytes = size_t{1} * kBlocks * kBlockSize * config.num_kv_heads * config.head_dim * kernels::DTypeBytes(dtype);
    for (int32_t i = 0; i < config.num_layers; ++i) {
      char* const k = Put(std::vector<char>(2 * bytes));
      kv_.push_back({k, k + bytes, dtype, kBlocks, config.num_kv_heads, kBlockSize, config.head_dim});
    }
    // Blocks from the last to the first: a kernel that ignores the table is found out.
    block_table_.resize(kBlocks);
    std::iota(block_table_.rbegin(), block_table_.rend(), 0);
  }

  bool ok() const { return model_ != nullptr; }
  int32_t vocab() const { return model_->config().vocab_size; }

  // Appends `ids` and returns the logits of each of them, [ids, vocab].
  std::vector<float> Append(const std::vector<int32_t>& ids) {
    const auto count = static_cast<int32_t>(ids.size());
    std::vector<int32_t> positions(count), slots(count), rows(count);
    for (int32_t i = 0; i < count; ++i) {
      const int32_t position = length_ + i;
      positions[i] = position;
      slots[i] = block_table_[position / kBlockSize] * kBlockSize + position % kBlockSize;
      rows[i] = i;
    }
    length_ += count;
    ForwardInput input{};
    input.token_ids = Put(ids);
    input.layout = {count, 1, Put(std::vector<int32_t>{0, count}), Put(std::vector<int32_t>{length_}), Put(block_table_), kBlocks,
                    Put(positions), Put(slots), count, length_};
    input.kv = kv_.data();
    input.logit_rows = Put(rows);
    input.num_logit_rows = count;
    EXPECT_TRUE(model_->Forward(input, nullptr).ok());
    std::vector<float> logits(size_t{1} * count * vocab(), NAN);
    float* const out = Put(logits);
    EXPECT_TRUE(model_->Logits(0, count, kernels::Dense(out, kernels::kF32, 2, count, vocab()), nullptr).ok());
    EXPECT_EQ(table_.copy_to_host(device_, logits.data(), out, logits.size() * sizeof(float), nullptr), kernels::kOk);
    EXPECT_EQ(table_.stream_synchronize(device_, nullptr), kernels::kOk);
    return logits;
  }

 private:
  // The values in device memory, which lives as long as this object.
  template <class T>
  T* Put(const std::vector<T>& values) {
    const size_t bytes = values.size() * sizeof(T);
    const absl::StatusOr<void*> memory = memory_.Take(bytes, "the test");
    EXPECT_TRUE(memory.ok()) << memory.status();
    EXPECT_EQ(table_.copy_to_device(device_, *memory, values.data(), bytes, nullptr), kernels::kOk);
    EXPECT_EQ(table_.stream_synchronize(device_, nullptr), kernels::kOk);
    return static_cast<T*>(*memory);
  }

  const kernels::Table& table_;
  kernels::Device* const device_;
  DeviceMemory memory_;
  std::unique_ptr<Model> model_;
  std::vector<kernels::KvLayer> kv_;
  std::vector<int32_t> block_table_;
  int32_t length_ = 0;
};

struct Difference {
  double max = 0;
  double mean = 0;
};

Difference Compare(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  Difference out;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const double difference = std::abs(double{a[i]} - double{b[i]});
    out.max = std::isnan(difference) ? INFINITY : std::max(out.max, difference);
    out.mean += difference / static_cast<double>(a.size());
  }
  return out;
}

struct ParityCase {
  std::string model;
  const kernels::Table* table;
  int32_t isa_cap;
  std::string name;
};

// Null unless PHALANX_OPS_PLUGIN is set; ends the program when what it names cannot be opened.
const kernels::Table* PluginTable() {
  const char* path = std::getenv("PHALANX_OPS_PLUGIN");
  if (path == nullptr) return nullptr;
  const absl::StatusOr<const kernels::Table*> table = kernels::OpenPlugin(path);
  if (table.ok()) return *table;
  std::fprintf(stderr, "%s\n", std::string(table.status().message()).c_str());
  std::exit(1);
}

std::vector<ParityCase> Cases() {
  std::vector<ParityCase> cases;
  const kernels::Table* const plugin = PluginTable();
  for (const std::string& name : FixtureNames()) {
    if (plugin != nullptr) {
      cases.push_back({name, plugin, kernels::kIsaAuto, name + "_" + plugin->name});
      continue;
    }
    cases.push_back({name, kernels::CpuTable(), kernels::kIsaAuto, name + "_cpu"});
    cases.push_back({name, kernels::CpuTable(), kernels::kIsaPortable, name + "_portable"});
    cases.push_back({name, kernels::ReferenceTable(), kernels::kIsaAuto, name + "_reference"});
  }
  return cases;
}

class ParityTest : public ::testing::TestWithParam<ParityCase> {};

TEST_P(ParityTest, Fp32LogitsAndGreedyTokensAreTransformers) {
  const Golden golden = ReadGolden(GetParam().model);
  const TestDevice device(*GetParam().table, {.isa_cap = GetParam().isa_cap});
  LoneRun run(device, FixtureModel(GetParam().model), kernels::kF32);
  ASSERT_TRUE(run.ok());
  ASSERT_EQ(golden.logits.size(), golden.input_ids.size() * run.vocab());
  std::vector<float> logits = run.Append(golden.input_ids);
  EXPECT_LT(Compare(logits, golden.logits).max, 1e-4);
  std::vector<int32_t> greedy;
  while (greedy.size() < golden.greedy.size()) {
    const auto row = logits.end() - run.vocab();
    greedy.push_back(static_cast<int32_t>(std::max_element(row, logits.end()) - row));
    logits = run.Append({greedy.back()});
  }
  EXPECT_EQ(greedy, golden.greedy);
}

// bfloat16 rounds after every operation, and transformers' own run is one of many right ones. So the measure is its distance from fp32:
// on average ours may be a tenth further away than that, and at the worst logit half as far again.
TEST_P(ParityTest, Bf16IsAsCloseToFp32AsTransformersIs) {
  const Golden golden = ReadGolden(GetParam().model);
  const TestDevice device(*GetParam().table, {.isa_cap = GetParam().isa_cap});
  LoneRun run(device, FixtureModel(GetParam().model), kernels::kBF16);
  ASSERT_TRUE(run.ok());
  const std::vector<float> logits = run.Append(golden.input_ids);
  const Difference theirs = Compare(golden.logits_bf16, golden.logits);
  const Difference ours = Compare(logits, golden.logits);
  const Difference between = Compare(logits, golden.logits_bf16);
  std::printf("%s: from fp32 %.4f (mean %.5f), transformers' bf16 from fp32 %.4f (%.5f), between %.4f (%.5f)\n", GetParam().name.c_str(),
              ours.max, ours.mean, theirs.max, theirs.mean, between.max, between.mean);
  EXPECT_LT(ours.mean, 1.1 * theirs.mean);
  EXPECT_LT(ours.max, 1.5 * theirs.max);
  EXPECT_LT(between.mean, 1.25 * theirs.mean);
}

INSTANTIATE_TEST_SUITE_P(Fixtures, ParityTest, ::testing::ValuesIn(Cases()),
                         [](const auto& info) { return info.param.name; });

// The list above and the folder must not drift apart.
TEST(ParityFixturesTest, EveryFixtureModelIsInTheList) {
  std::vector<std::string> found;
  for (const auto& entry : std::filesystem::directory_iterator(SourcePath("tests/fixtures/models"))) {
    if (entry.is_directory()) found.push_back(entry.path().filename());
  }
  EXPECT_THAT(found, ::testing::UnorderedElementsAreArray(FixtureNames()));
}

}  // namespace
}  // namespace phalanx::worker::model
