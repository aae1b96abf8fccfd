// Every fixture model against transformers, on the CPU table and on the twin; on a plug-in instead where PHALANX_OPS_PLUGIN names one
// (`make test-gpu`). The goldens are fp32 and bfloat16 runs of the published transformers package on the same stored weights
// (tests/tools/make_goldens.py).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "kernels/load.h"
#include "worker/model/run_test_util.h"

namespace phalanx::worker::model {
namespace {

using kernels::DType;

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
  std::vector<float> logits;
  EXPECT_EQ(run.Greedy(golden.input_ids, golden.greedy.size(), &logits), golden.greedy);
  logits.resize(golden.logits.size());
  EXPECT_LT(Compare(logits, golden.logits).max, 1e-4);
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
