#include "worker/model/dummy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "worker/model/checkpoint.h"
#include "worker/model/convert.h"
#include "worker/model/device.h"
#include "worker/model/model_test_util.h"
#include "worker/model/weights.h"

namespace phalanx::worker::model {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

std::vector<float> Values(const DummyValues& values, const std::string& tensor, uint64_t at, uint64_t count) {
  std::vector<float> out(count);
  values.Copy(DummyValues::PlaceOf(tensor), at, count, kernels::kF32, out.data());
  return out;
}

TEST(DummyValuesTest, AreSmallAndCentredAndTheSameEveryTime) {
  const DummyValues one, other;
  const std::vector<float> values = Values(one, "a.weight", 0, 300000);
  EXPECT_EQ(values, Values(other, "a.weight", 0, 300000));
  double sum = 0, squares = 0;
  for (const float value : values) {
    ASSERT_LE(std::abs(value), 0.0201f);
    sum += value;
    squares += double{value} * value;
  }
  EXPECT_NEAR(sum / 300000, 0, 1e-4);
  EXPECT_NEAR(std::sqrt(squares / 300000), 0.02 / std::sqrt(3), 1e-4);
}

TEST(DummyValuesTest, AreTheSameInBothTypes) {
  const DummyValues values;
  std::vector<uint16_t> narrow(1000);
  values.Copy(DummyValues::PlaceOf("a.weight"), 262000, 1000, kernels::kBF16, narrow.data());   // over the end of the block
  const std::vector<float> wide = Values(values, "a.weight", 262000, 1000);
  for (size_t i = 0; i < wide.size(); ++i) ASSERT_EQ(FromBf16(narrow[i]), wide[i]);
}

TEST(DummyValuesTest, RowsAndTensorsDiffer) {
  const DummyValues values;
  std::set<std::vector<float>> rows;
  for (const uint64_t columns : {512, 1536, 4096}) {
    for (uint64_t row = 0; row < 2000; ++row) rows.insert(Values(values, "a.weight", row * columns, 16));
    EXPECT_EQ(rows.size(), 2000u) << columns;
    rows.clear();
  }
  EXPECT_NE(Values(values, "a.weight", 0, 16), Values(values, "b.weight", 0, 16));
}

TEST(DummyValuesTest, NormsAreOne) {
  const DummyValues values;
  EXPECT_THAT(Values(values, "model.layers.3.input_layernorm.weight", 5, 100), Each(1.0f));
  EXPECT_THAT(Values(values, "model.layers.3.self_attn.q_norm.weight", 5, 100), Each(1.0f));
}

class DummyModelTest : public ::testing::Test {
 protected:
  // Nothing but the configuration of a fixture.
  std::string ConfigOnly(const std::string& fixture) {
    std::filesystem::copy_file(FixtureFolder(fixture) + "/config.json", folder_ / "config.json",
                               std::filesystem::copy_options::overwrite_existing);
    return folder_.path();
  }
  ScratchFolder folder_;
};

TEST_F(DummyModelTest, EveryFamilyLoadsFromItsConfigurationAlone) {
  const TestDevice cpu(*kernels::CpuTable());
  for (const std::string& name : FixtureNames()) {
    const std::string path = name.starts_with("gguf_") ? FixtureModel(name) : ConfigOnly(name);
    double progress = 0;
    LoadOptions options{path, kernels::kBF16, 64, 64, 64, [&](double share) { progress = share; }, LoadFormat::kDummy};
    const auto model = LoadModel(cpu.table(), cpu.get(), options);
    ASSERT_TRUE(model.ok()) << name << ": " << model.status();
    EXPECT_EQ(progress, 1.0);
    options.format = LoadFormat::kAuto;
    EXPECT_EQ(LoadModel(cpu.table(), cpu.get(), options).ok(), name.starts_with("gguf_"));
  }
}

TEST_F(DummyModelTest, AMatrixHoldsTheValuesOfItsName) {
  const TestDevice twin(*kernels::ReferenceTable());   // keeps rows as they are
  const LoadOptions options{ConfigOnly("llama_mha"), kernels::kF32, 64, 64, 64, nullptr, LoadFormat::kDummy};
  const ModelConfig config = *ReadModelConfig(options.path);
  const auto weights = LoadWeights(twin.table(), twin.get(), config, *MakeShard(config, 0, 1), options);
  ASSERT_TRUE(weights.ok()) << weights.status();
  const kernels::Weight& down = weights->layers[1].down;
  const DummyValues values;
  const std::vector<float> expected = Values(values, "model.layers.1.mlp.down_proj.weight", 0, down.n * down.k);
  EXPECT_EQ(std::memcmp(down.data, expected.data(), expected.size() * sizeof(float)), 0);
}

TEST(LoadFormatTest, ANamedContainerRefusesTheOther) {
  const TestDevice cpu(*kernels::CpuTable());
  const auto error = [&](const std::string& fixture, LoadFormat format) {
    return std::string(
        LoadModel(cpu.table(), cpu.get(), {FixtureModel(fixture), kernels::kBF16, 64, 64, 64, nullptr, format}).status().message());
  };
  EXPECT_EQ(error("llama_mha", LoadFormat::kSafetensors), "");
  EXPECT_EQ(error("gguf_llama", LoadFormat::kGguf), "");
  EXPECT_THAT(error("llama_mha", LoadFormat::kGguf), HasSubstr("--load-format gguf: '"));
  EXPECT_THAT(error("gguf_llama", LoadFormat::kSafetensors), HasSubstr("is a .gguf file"));
}

}  // namespace
}  // namespace phalanx::worker::model
