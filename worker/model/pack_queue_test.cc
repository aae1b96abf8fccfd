// Weights on their way to a device whose copies run later: nothing may be overwritten, freed or forgotten before they happened.
#include "worker/model/pack_queue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <set>
#include <string>
#include <vector>

#include "worker/model/model_test_util.h"

namespace phalanx::worker::model {
namespace {

using kernels::Code;
using kernels::DType;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// A GPU in small: the twin's table under another name, whose copies happen when somebody waits for them, and whose fast memory is counted.
struct LateCopy {
  void* to;
  const void* from;
  size_t bytes;
};
struct Late {
  std::deque<LateCopy> copies;
  uint64_t done = 0;                 // copies so far
  uint64_t begun = 0;
  size_t most_waiting = 0;
  std::set<void*> slots;
  size_t most_slots = 0;
  size_t slot_bytes = 0;
  int events = 0;
  uint64_t memory_free = UINT64_MAX;
  int64_t fail_at = -1;              // the copy that fails
};
Late late;

void RunCopies(uint64_t until) {
  for (; late.done < until; ++late.done) {
    const LateCopy& copy = late.copies.front();
    std::memcpy(copy.to, copy.from, copy.bytes);
    late.copies.pop_front();
  }
}

Code LatePack(kernels::Device*, kernels::Weight* weight, const void* rows, void* to, kernels::Stream) {
  if (late.fail_at == static_cast<int64_t>(late.begun)) return kernels::kDeviceError;
  weight->bytes = uint64_t(weight->n) * weight->k * kernels::DTypeBytes(weight->dtype);
  weight->layout = 0;
  weight->data = to;
  late.copies.push_back({to, rows, weight->bytes});
  ++late.begun;
  late.most_waiting = std::max(late.most_waiting, late.copies.size());
  return kernels::kOk;
}
Code LateSynchronize(kernels::Device*, kernels::Stream) {
  RunCopies(late.begun);
  return kernels::kOk;
}
// An event is the number of copies begun before it.
struct LateEvent {
  uint64_t after = 0;
};
Code LateEventCreate(kernels::Device*, kernels::Event* out) {
  ++late.events;
  *out = reinterpret_cast<kernels::Event>(new LateEvent);
  return kernels::kOk;
}
void LateEventDestroy(kernels::Device*, kernels::Event event) {
  --late.events;
  delete reinterpret_cast<LateEvent*>(event);
}
Code LateEventRecord(kernels::Device*, kernels::Event event, kernels::Stream) {
  reinterpret_cast<LateEvent*>(event)->after = late.begun;
  return kernels::kOk;
}
Code LateEventWait(kernels::Device*, kernels::Event event) {
  RunCopies(reinterpret_cast<LateEvent*>(event)->after);
  return kernels::kOk;
}
Code LateHostAlloc(kernels::Device* device, size_t bytes, void** out) {
  const Code code = kernels::ReferenceTable()->host_alloc(device, bytes, out);
  late.slots.insert(*out);
  late.most_slots = std::max(late.most_slots, late.slots.size());
  late.slot_bytes = bytes;
  return code;
}
void LateHostFree(kernels::Device* device, void* memory) {
  EXPECT_THAT(late.copies, IsEmpty()) << "freed under a copy";
  late.slots.erase(memory);
  kernels::ReferenceTable()->host_free(device, memory);
}
Code LateInfo(kernels::Device*, kernels::DeviceInfo* out) {
  *out = {};
  out->memory_total = 1 << 20;
  out->memory_free = late.memory_free;
  return kernels::kOk;
}

kernels::Table LateTable() {
  late = {};
  kernels::Table table = *kernels::ReferenceTable();
  table.name = "cuda";
  table.info = LateInfo;
  table.pack_weight = LatePack;
  table.stream_synchronize = LateSynchronize;
  table.event_create = LateEventCreate;
  table.event_destroy = LateEventDestroy;
  table.event_record = LateEventRecord;
  table.event_wait = LateEventWait;
  table.host_alloc = LateHostAlloc;
  table.host_free = LateHostFree;
  return table;
}

// The matrices of a fixture's first layer, put together the way a decoder does, the last of them first.
class LateTest : public ::testing::Test {
 protected:
  void Open(const std::string& path) {
    config_ = *ReadModelConfig(path);
    auto checkpoint = Checkpoint::Open(path, config_);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    checkpoint_ = *std::move(checkpoint);
    const int64_t hidden = config_.hidden_size, inner = config_.intermediate_size;
    const int64_t q = int64_t{config_.num_heads} * config_.head_dim, kv = int64_t{config_.num_kv_heads} * config_.head_dim;
    const std::string layer = "model.layers.1.";
    jobs_.clear();
    Add(inner * 2, hidden, {{Tensor(layer + "mlp.gate_proj.weight", inner, hidden), 0, 2},
                            {Tensor(layer + "mlp.up_proj.weight", inner, hidden), 1, 2}});
    Add(q + 2 * kv, hidden, {{Tensor(layer + "self_attn.q_proj.weight", q, hidden), 0, 1},
                             {Tensor(layer + "self_attn.k_proj.weight", kv, hidden), q, 1},
                             {Tensor(layer + "self_attn.v_proj.weight", kv, hidden), q + kv, 1}});
    Add(hidden, inner, {{Tensor(layer + "mlp.down_proj.weight", hidden, inner), 0, 1}});
    Add(config_.vocab_size, hidden, {{Tensor("model.embed_tokens.weight", config_.vocab_size, hidden), 0, 1}});
  }
  SourceTensor Tensor(const std::string& name, int64_t rows, int64_t columns) {
    const auto tensor = checkpoint_->Expect(name, {rows, columns});
    EXPECT_TRUE(tensor.ok()) << tensor.status();
    return tensor.ok() ? *tensor : SourceTensor{};
  }
  void Add(int64_t n, int64_t k, std::vector<PackPart> parts) { jobs_.push_back({nullptr, n, k, std::move(parts)}); }

  absl::Status Run(DType dtype, PackLimits limits) {
    weights_.assign(jobs_.size(), {});
    memory_ = std::make_unique<DeviceMemory>(table_, device_.get());
    PackQueue queue(limits);
    for (size_t j = 0; j < jobs_.size(); ++j) {
      PackJob job = jobs_[j];
      job.weight = &weights_[j];
      queue.Add(std::move(job));
    }
    const absl::Status status = queue.Run(table_, device_.get(), *checkpoint_, dtype, memory_.get(), nullptr);
    EXPECT_THAT(late.copies, IsEmpty());
    EXPECT_THAT(late.slots, IsEmpty());
    EXPECT_EQ(late.events, 0);
    return status;
  }

  // Row by row, without any of the machinery.
  std::string Expected(const PackJob& job, DType dtype) const {
    const size_t row = job.k * kernels::DTypeBytes(dtype);
    std::string out(job.n * row, '\0');
    ReadScratch scratch;
    for (const PackPart& part : job.parts) {
      for (int64_t i = 0; i < part.tensor.rows; ++i) {
        char* to = out.data() + (part.first_row + i * part.row_step) * row;
        EXPECT_TRUE(checkpoint_->ReadRows(part.tensor, i, 1, dtype, to, job.k, &scratch).ok());
      }
    }
    return out;
  }

  const kernels::Table table_ = LateTable();
  const TestDevice device_{table_};
  ModelConfig config_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::vector<PackJob> jobs_;
  std::vector<kernels::Weight> weights_;
  std::unique_ptr<DeviceMemory> memory_;
};

TEST_F(LateTest, EveryByteArrivesWhateverTheSlots) {
  for (const std::string& name : FixtureNames()) {
    Open(FixtureModel(name));
    for (const DType dtype : {kernels::kBF16, kernels::kF32}) {
      for (const PackLimits limits : {PackLimits{}, PackLimits{2000, 3}, PackLimits{700, 1}, PackLimits{1, 2}}) {
        late = {};
        ASSERT_TRUE(Run(dtype, limits).ok());
        for (size_t j = 0; j < jobs_.size(); ++j) {
          const std::string expected = Expected(jobs_[j], dtype);
          ASSERT_EQ(weights_[j].bytes, expected.size());
          EXPECT_EQ(std::string(static_cast<const char*>(weights_[j].data), expected.size()), expected)
              << name << ", matrix " << j << ", slots of " << limits.slot_bytes;
          EXPECT_EQ(reinterpret_cast<uintptr_t>(weights_[j].data) % 64, 0u);
        }
        EXPECT_LE(late.most_slots, static_cast<size_t>(limits.slots));
        EXPECT_LE(late.most_waiting, static_cast<size_t>(limits.slots));
      }
    }
  }
}

TEST_F(LateTest, SlotsAreNoLargerThanWhatIsToBeRead) {
  Open(FixtureModel("llama_mha"));
  ASSERT_TRUE(Run(kernels::kBF16, {}).ok());
  EXPECT_EQ(late.slot_bytes, 2u * 2 * config_.intermediate_size * config_.hidden_size) << "the largest matrix";
}

TEST_F(LateTest, FilesAreReadFromTheirBeginningOn) {
  Open(FixtureModel("llama_mha"));
  ASSERT_TRUE(Run(kernels::kBF16, {}).ok());
  std::vector<std::pair<const char*, const void*>> places;
  for (size_t j = 0; j < jobs_.size(); ++j) places.emplace_back(jobs_[j].parts[0].tensor.place(), weights_[j].data);
  std::sort(places.begin(), places.end());
  EXPECT_TRUE(std::is_sorted(places.begin(), places.end(), [](const auto& a, const auto& b) { return a.second < b.second; }));
}

TEST_F(LateTest, AFileThatIsCutWhileItIsReadIsNamed) {
  ScratchFolder folder;
  std::filesystem::copy(FixtureFolder("llama_mha"), folder.path(), std::filesystem::copy_options::recursive);
  Open(folder.path());
  const std::string file = folder / "model.safetensors";
  const size_t size = std::filesystem::file_size(file);
  for (const size_t cut : {size / 2, size_t{1}}) {
    std::filesystem::resize_file(file, cut);
    const absl::Status status = Run(kernels::kF32, {2000, 3});
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(status.message()), HasSubstr(file));
  }
}

TEST_F(LateTest, AFailedCopyEndsTheRunWithItsNameAndLeavesNothingUnderWay) {
  Open(FixtureModel("qwen3"));
  ASSERT_TRUE(Run(kernels::kBF16, {700, 2}).ok());
  const auto copies = static_cast<int64_t>(late.begun);
  ASSERT_GT(copies, 20);
  for (int64_t fail_at = 0; fail_at < copies; ++fail_at) {
    late = {};
    late.fail_at = fail_at;
    EXPECT_THAT(std::string(Run(kernels::kBF16, {700, 2}).message()), HasSubstr("pack_weight failed on cuda with code 4"));
  }
}

TEST_F(LateTest, WeightsThatDoNotFitAreRefusedBeforeAnythingIsRead) {
  Open(FixtureModel("llama_mha"));
  late.memory_free = 10000;
  const absl::Status status = Run(kernels::kBF16, {});
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("too little memory for the weights: 0."), HasSubstr("MiB are needed, 0.01 MiB of 1.00 MiB are free")));
  EXPECT_EQ(memory_->bytes(), 0u);
  EXPECT_EQ(late.begun, 0u);
}

}  // namespace
}  // namespace phalanx::worker::model
