// A model over several ranks against the same model on one: what each rank loads, what all of them compute. Ranks are threads, sums go
// over loopback.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "worker/model/run_test_util.h"
#include "worker/model/team_test_util.h"
#include "worker/model/weights.h"

namespace phalanx::worker::model {
namespace {

using ::testing::HasSubstr;

// ---- what a rank loads ----------------------------------------------------------------------------------------------

// Rows and columns of a matrix that is kept as it is, fp32.
std::vector<float> CutOut(const kernels::Weight& whole, const Cut& rows, const Cut& columns) {
  std::vector<float> out(rows.width * columns.width, 0.0f);
  const auto* data = static_cast<const float*>(whole.data);
  for (int64_t i = 0; i < rows.count; ++i) {
    std::copy_n(data + (rows.first + i) * whole.k + columns.first, columns.count, out.begin() + i * columns.width);
  }
  return out;
}

std::vector<float> Values(const kernels::Weight& weight) { return CutOut(weight, Whole(weight.n), Whole(weight.k)); }

void Append(std::vector<float>* to, const std::vector<float>& more) { to->insert(to->end(), more.begin(), more.end()); }

// The reference keeps rows as they are, so a part can be compared with the whole.
class LoadingTest : public ::testing::Test {
 protected:
  DecoderWeights Load(const std::string& path, int rank, int size, LoadFormat format = LoadFormat::kAuto) {
    config_ = *ReadModelConfig(path);
    const LoadOptions options{path, kernels::kF32, 64, 64, 64, nullptr, format};
    auto weights = LoadWeights(twin_.table(), twin_.get(), config_, *MakeShard(config_, rank, size), options);
    EXPECT_TRUE(weights.ok()) << weights.status();
    return *std::move(weights);
  }
  void ExpectPart(const DecoderWeights& part, const DecoderWeights& whole, const Shard& shard) {
    const Cut hidden = Whole(config_.hidden_size);
    const int64_t q = int64_t{config_.num_heads} * config_.head_dim, kv = int64_t{config_.num_kv_heads} * config_.head_dim;
    EXPECT_EQ(Values(part.embedding), Values(whole.embedding));
    EXPECT_EQ(Values(part.head), CutOut(whole.head, shard.vocab, hidden));
    for (size_t i = 0; i < whole.layers.size(); ++i) {
      const LayerWeights& own = part.layers[i];
      const LayerWeights& all = whole.layers[i];
      std::vector<float> qkv = CutOut(all.qkv, shard.q, hidden);
      for (const int64_t first : {q, q + kv}) {
        Append(&qkv, CutOut(all.qkv, {first + shard.kv.first, shard.kv.count, shard.kv.width}, hidden));
      }
      EXPECT_EQ(Values(own.qkv), qkv);
      EXPECT_EQ(Values(own.o), CutOut(all.o, hidden, shard.q));
      EXPECT_EQ(Values(own.gate_up), CutOut(all.gate_up, {2 * shard.inner.first, 2 * shard.inner.count, 2 * shard.inner.width}, hidden));
      EXPECT_EQ(Values(own.down), CutOut(all.down, hidden, shard.inner));
      EXPECT_EQ(own.qkv_bias != nullptr, config_.qkv_bias);
      EXPECT_EQ(own.gate_up_bias != nullptr, config_.mlp_bias);
      EXPECT_EQ(own.o_bias != nullptr, config_.o_bias && shard.rank == 0);
      EXPECT_EQ(own.down_bias != nullptr, config_.mlp_bias && shard.rank == 0);
    }
  }
  static uint64_t MatrixBytes(const DecoderWeights& weights) {
    uint64_t bytes = weights.head.bytes;
    for (const LayerWeights& layer : weights.layers) bytes += layer.qkv.bytes + layer.o.bytes + layer.gate_up.bytes + layer.down.bytes;
    return bytes;
  }

  const TestDevice twin_{*kernels::ReferenceTable()};
  ModelConfig config_;
};

TEST_F(LoadingTest, EachRankHasItsPartOfTheWhole) {
  for (const std::string& name : FixtureNames()) {
    for (const LoadFormat format : {LoadFormat::kAuto, LoadFormat::kDummy}) {
      const DecoderWeights whole = Load(FixtureModel(name), 0, 1, format);
      for (const int size : {2, 4}) {
        for (int rank = 0; rank < size; ++rank) {
          SCOPED_TRACE(name + ", rank " + std::to_string(rank) + " of " + std::to_string(size));
          ExpectPart(Load(FixtureModel(name), rank, size, format), whole, *MakeShard(config_, rank, size));
          if (HasFailure()) return;
        }
      }
    }
  }
}

TEST_F(LoadingTest, ATiedHeadLiesInTheEmbedding) {
  for (int rank = 0; rank < 4; ++rank) {
    const DecoderWeights part = Load(FixtureModel("llama3_rope"), rank, 4);
    EXPECT_EQ(part.head.data, static_cast<const char*>(part.embedding.data) + rank * part.head.bytes);
    EXPECT_EQ(part.head.n, 24);
  }
}

TEST_F(LoadingTest, MatricesAreSharedOut) {
  const uint64_t whole = MatrixBytes(Load(FixtureModel("llama_mha"), 0, 1));
  for (const int size : {2, 4}) {
    for (int rank = 0; rank < size; ++rank) EXPECT_EQ(MatrixBytes(Load(FixtureModel("llama_mha"), rank, size)), whole / size);
  }
}

// Bytes that this process has read by system calls.
uint64_t BytesRead() {
  std::ifstream io("/proc/self/io");
  std::string name;
  uint64_t value = 0;
  io >> name >> value;
  EXPECT_EQ(name, "rchar:");
  return value;
}

TEST_F(LoadingTest, ARankReadsItsOwnBytes) {
  for (const std::string name : {"llama_mha", "gguf_llama"}) {
    const auto read = [&](int rank, int size, uint64_t* embedding) {
      const uint64_t before = BytesRead();
      const DecoderWeights weights = Load(FixtureModel(name), rank, size);
      *embedding = name == "llama_mha" ? weights.embedding.bytes : weights.embedding.bytes * 34 / 128;   // Q8_0
      return BytesRead() - before;
    };
    uint64_t embedding = 0;
    const uint64_t whole = read(0, 1, &embedding);
    for (int rank = 0; rank < 2; ++rank) {
      const uint64_t part = read(rank, 2, &embedding);
      // Norms and the configuration are read whole, and of quantised columns the blocks that are cut through.
      EXPECT_GE(part, embedding + (whole - embedding) / 2) << name;
      EXPECT_LT(part, embedding + (whole - embedding) * 60 / 100) << name;
      std::printf("%s: rank %d of 2 reads %lu of %lu bytes\n", name.c_str(), rank, part, whole);
    }
  }
}

// ---- what ranks compute ---------------------------------------------------------------------------------------------

struct Answer {
  std::vector<int32_t> greedy;
  std::vector<float> logits;   // behind every token
};

Answer Ask(const TestDevice& device, const std::string& path, kernels::DType dtype, tp::Group* group, LoadFormat format) {
  LoneRun run(device, path, dtype, group, format);
  Answer answer;
  if (!run.ok()) return answer;
  std::vector<int32_t> prompt(20);
  for (size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<int32_t>(7 * i % 90);
  answer.greedy = run.Greedy(prompt, 24, &answer.logits);
  return answer;
}

// Every rank must say the same bits, and what one rank says, but for the order of sums.
void ExpectAsAlone(const kernels::Table& table, const std::string& path, int size, LoadFormat format) {
  const TestDevice device(table);
  const Answer alone = Ask(device, path, kernels::kF32, nullptr, format);
  const Team team(size, table);
  std::vector<Answer> answers(size);
  team.OnAll([&](int rank) { answers[rank] = Ask(team.device(rank), path, kernels::kF32, team.group(rank), format); });
  float largest = 0;
  for (const float logit : alone.logits) largest = std::max(largest, std::abs(logit));
  ASSERT_GT(largest, 0);
  for (int rank = 0; rank < size; ++rank) {
    EXPECT_EQ(answers[rank].greedy, alone.greedy) << "rank " << rank;
    EXPECT_LT(Compare(answers[rank].logits, alone.logits).max, 1e-5 * largest) << "rank " << rank;
    EXPECT_TRUE(answers[rank].logits == answers[0].logits) << "rank " << rank;
  }
}

struct RanksCase {
  std::string model;
  int size;
  const kernels::Table* table;
  std::string name;
};

class RanksTest : public ::testing::TestWithParam<RanksCase> {};

TEST_P(RanksTest, Fp32IsThatOfOneRank) {
  ExpectAsAlone(*GetParam().table, FixtureModel(GetParam().model), GetParam().size, LoadFormat::kAuto);
}

TEST_P(RanksTest, Fp32IsThatOfTransformers) {
  const Golden golden = ReadGolden(GetParam().model);
  const Team team(GetParam().size, *GetParam().table);
  team.OnAll([&](int rank) {
    LoneRun run(team.device(rank), FixtureModel(GetParam().model), kernels::kF32, team.group(rank));
    ASSERT_TRUE(run.ok());
    std::vector<float> logits;
    EXPECT_EQ(run.Greedy(golden.input_ids, golden.greedy.size(), &logits), golden.greedy);
    logits.resize(golden.logits.size());
    EXPECT_LT(Compare(logits, golden.logits).max, 1e-4);
  });
}

// Parts are rounded before they are summed, so the measure is the distance from fp32 as in parity_test.cc.
TEST_P(RanksTest, Bf16IsAsCloseToFp32AsTransformersIs) {
  const Golden golden = ReadGolden(GetParam().model);
  const Difference theirs = Compare(golden.logits_bf16, golden.logits);
  const Team team(GetParam().size, *GetParam().table);
  std::vector<std::vector<float>> logits(GetParam().size);
  team.OnAll([&](int rank) {
    LoneRun run(team.device(rank), FixtureModel(GetParam().model), kernels::kBF16, team.group(rank));
    ASSERT_TRUE(run.ok());
    logits[rank] = run.Append(golden.input_ids);
  });
  const Difference ours = Compare(logits[0], golden.logits);
  std::printf("%s: from fp32 %.4f (mean %.5f), transformers' bf16 from fp32 %.4f (%.5f)\n", GetParam().name.c_str(), ours.max, ours.mean,
              theirs.max, theirs.mean);
  EXPECT_LT(ours.mean, 1.1 * theirs.mean);
  EXPECT_LT(ours.max, 1.75 * theirs.max);   // one logit of thousands, and one more rounding than there
  for (const auto& other : logits) EXPECT_TRUE(other == logits[0]);
}

std::vector<RanksCase> Cases() {
  std::vector<RanksCase> cases;
  for (const std::string& name : FixtureNames()) {
    for (const int size : {2, 4}) {
      cases.push_back({name, size, kernels::CpuTable(), name + "_cpu_" + std::to_string(size)});
      cases.push_back({name, size, kernels::ReferenceTable(), name + "_reference_" + std::to_string(size)});
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Fixtures, RanksTest, ::testing::ValuesIn(Cases()), [](const auto& info) { return info.param.name; });

// Nothing divides: 9 heads, 3 KV heads, 90 elements in the MLP, 97 ids; with every bias there is.
TEST(UnevenRanksTest, PaddingChangesNothing) {
  for (const bool tied : {true, false}) {
    for (const int kv_heads : {3, 1}) {
      ScratchFolder folder;
      WriteFile(folder / "config.json",
                R"({"architectures": ["LlamaForCausalLM"], "hidden_size": 72, "num_attention_heads": 9, "head_dim": 8, )"
                R"("intermediate_size": 90, "vocab_size": 97, "num_hidden_layers": 3, "max_position_embeddings": 256, )"
                R"("rms_norm_eps": 1e-5, "hidden_act": "silu", "attention_bias": true, "mlp_bias": true, "torch_dtype": "float32", )"
                R"("num_key_value_heads": )" + std::to_string(kv_heads) + R"(, "tie_word_embeddings": )" + (tied ? "true}" : "false}"));
      for (const int size : {2, 3, 4}) {
        if (kv_heads == 3 && size == 4) continue;   // a rank would have no head
        for (const kernels::Table* table : {kernels::CpuTable(), kernels::ReferenceTable()}) {
          SCOPED_TRACE(std::string(table->name) + ", " + std::to_string(kv_heads) + " KV heads over " + std::to_string(size));
          ExpectAsAlone(*table, folder.path(), size, LoadFormat::kDummy);
        }
      }
    }
  }
}

// ---- refusals -------------------------------------------------------------------------------------------------------

// A group that nobody talks over.
class SilentGroup : public tp::Group {
 public:
  explicit SilentGroup(int size) : Group(0, size) {}
  absl::Status AllReduce(kernels::Tensor, kernels::Stream) override { return absl::UnavailableError("rank 1 is gone"); }
  absl::Status AllGather(kernels::Tensor, kernels::Tensor, kernels::Stream) override { return absl::UnavailableError("rank 1 is gone"); }
};

TEST(RanksLoadTest, TooManyRanksAreRefused) {
  const TestDevice device(*kernels::CpuTable());
  SilentGroup group(8);
  const LoadOptions options{FixtureModel("qwen2_g7"), kernels::kF32, 64, 64, 64, nullptr, LoadFormat::kAuto, &group};
  const absl::Status status = LoadModel(device.table(), device.get(), options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("num_attention_heads 7 and num_key_value_heads 1 cannot be spread over 8 ranks"));
}

TEST(RanksLoadTest, OnlyCpuTablesTakeRanks) {
  kernels::Table other_memory = *kernels::CpuTable();
  other_memory.name = "cuda";
  kernels::Table queues = *kernels::CpuTable();
  queues.graph_begin = [](kernels::Device*, kernels::Stream) { return kernels::kOk; };
  for (const kernels::Table& table : {other_memory, queues}) {
    const TestDevice device(table);
    SilentGroup group(2);
    const LoadOptions options{FixtureModel("llama_mha"), kernels::kF32, 64, 64, 64, nullptr, LoadFormat::kAuto, &group};
    const absl::Status status = LoadModel(table, device.get(), options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
    EXPECT_THAT(std::string(status.message()), HasSubstr("over several ranks runs on CPUs only so far"));
  }
}

TEST(RanksLoadTest, ALostRankEndsThePass) {
  const TestDevice device(*kernels::CpuTable());
  SilentGroup group(2);
  const auto model = LoadModel(device.table(), device.get(),
                               {FixtureModel("llama_mha"), kernels::kF32, 64, 64, 64, nullptr, LoadFormat::kAuto, &group});
  ASSERT_TRUE(model.ok()) << model.status();
  int32_t id = 0, position = 0, slot = -1, context = 1, block = 0;
  const int32_t starts[] = {0, 1};
  std::vector<float> cache(2 * 16);   // [KV heads, head_dim]
  const std::vector<kernels::KvLayer> kv(2, {cache.data(), cache.data(), kernels::kF32, 1, (*model)->kv_heads(), 1, 16});
  ForwardInput input{};
  input.token_ids = &id;
  input.layout = {1, 1, starts, &context, &block, 1, &position, &slot, 1, 1};
  input.kv = kv.data();
  EXPECT_EQ((*model)->Forward(input, nullptr), absl::UnavailableError("rank 1 is gone"));
}

TEST(RanksLoadTest, AGroupOfOneIsNoGroup) {
  const TestDevice device(*kernels::CpuTable());
  SilentGroup group(1);
  const Answer with = Ask(device, FixtureModel("llama_linear"), kernels::kF32, &group, LoadFormat::kAuto);
  EXPECT_EQ(with.logits, Ask(device, FixtureModel("llama_linear"), kernels::kF32, nullptr, LoadFormat::kAuto).logits);
}

}  // namespace
}  // namespace phalanx::worker::model
