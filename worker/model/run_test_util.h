// worker/model/run_test_util.h: one sequence through a loaded model.
// Refuses to know: what is being proved. Thread: the test's; with ranks, one a rank.
// Neighbours: parity_test.cc and ranks_test.cc; team_test_util.h lets ranks meet.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "worker/model/device.h"
#include "worker/model/model.h"
#include "worker/model/model_test_util.h"

namespace phalanx::worker::model {

constexpr int32_t kBlockSize = 8;
constexpr int32_t kMaxLength = 96;
constexpr int32_t kBlocks = kMaxLength / kBlockSize;

// A loaded model, or one rank's part of it, with a cache for one sequence.
class LoneRun {
 public:
  LoneRun(const TestDevice& device, const std::string& path, kernels::DType dtype, tp::Group* group = nullptr,
          LoadFormat format = LoadFormat::kAuto)
      : table_(device.table()), device_(device.get()), memory_(table_, device_) {
    auto model = LoadModel(table_, device_, {path, dtype, kMaxLength, kMaxLength, kMaxLength, nullptr, format, group});
    EXPECT_TRUE(model.ok()) << model.status();
    if (!model.ok()) return;
    model_ = *std::move(model);
    const ModelConfig& config = model_->config();
    const size_t bytes = size_t{1} * kBlocks * kBlockSize * model_->kv_heads() * config.head_dim * kernels::DTypeBytes(dtype);
    for (int32_t i = 0; i < config.num_layers; ++i) {
      char* const k = Put(std::vector<char>(2 * bytes));
      kv_.push_back({k, k + bytes, dtype, kBlocks, model_->kv_heads(), kBlockSize, config.head_dim});
    }
    // Blocks from the last to the first: a kernel that ignores the table is found out.
    block_table_.resize(kBlocks);
    std::iota(block_table_.rbegin(), block_table_.rend(), 0);
  }

  bool ok() const { return model_ != nullptr; }
  int32_t vocab() const { return model_->config().vocab_size; }
  const Model& model() const { return *model_; }

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
    const absl::Status forward = model_->Forward(input, nullptr);
    EXPECT_TRUE(forward.ok()) << forward;
    std::vector<float> logits(size_t{1} * count * vocab(), NAN);
    float* const out = Put(logits);
    EXPECT_TRUE(model_->Logits(0, count, kernels::Dense(out, kernels::kF32, 2, count, vocab()), nullptr).ok());
    EXPECT_EQ(table_.copy_to_host(device_, logits.data(), out, logits.size() * sizeof(float), nullptr), kernels::kOk);
    EXPECT_EQ(table_.stream_synchronize(device_, nullptr), kernels::kOk);
    return logits;
  }
  // Appends `ids`, then `count` tokens, each the largest logit behind those before. `all_logits`: those behind
  // every token, in order.
  std::vector<int32_t> Greedy(const std::vector<int32_t>& ids, size_t count, std::vector<float>* all_logits) {
    std::vector<float> logits = Append(ids);
    *all_logits = logits;
    std::vector<int32_t> out;
    while (out.size() < count) {
      const auto row = logits.end() - vocab();
      out.push_back(static_cast<int32_t>(std::max_element(row, logits.end()) - row));
      logits = Append({out.back()});
      all_logits->insert(all_logits->end(), logits.begin(), logits.end());
    }
    return out;
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

inline Difference Compare(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  Difference out;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const double difference = std::abs(double{a[i]} - double{b[i]});
    out.max = std::isnan(difference) ? INFINITY : std::max(out.max, difference);
    out.mean += difference / static_cast<double>(a.size());
  }
  return out;
}

}  // namespace phalanx::worker::model
