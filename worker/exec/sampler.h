// worker/exec/sampler.h: sampling options, penalty state, masks and biases of every row, and the draws of one step.
// Refuses to know: the forward pass, scheduling. Thread: the engine thread.
// Neighbours: rows.h keeps options, inputs.h says which rows are wanted, executor.cc calls in chunks of logits.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/kernels.h"
#include "services/status.h"
#include "worker/core/step.h"
#include "worker/exec/inputs.h"
#include "worker/exec/rows.h"
#include "worker/model/device.h"

namespace phalanx::worker::exec {

struct SamplerShape {
  int32_t vocab = 0;            // width of the logits
  int32_t max_rows = 0;         // sequences at once
  int32_t max_wanted = 0;       // wanted rows of one step
  int32_t max_chunk = 0;        // rows of one chunk of logits
};

class Sampler {
 public:
  // Takes its memory. Errors: the device's; kUnimplemented if the table lacks an operation.
  static absl::StatusOr<std::unique_ptr<Sampler>> Create(const kernels::Table& table, kernels::Device* device, const SamplerShape& shape);

  // Uploads what a sequence's options need between steps: penalty counts, the mask of allowed ids.
  absl::Status Add(const core::AddedSequence& sequence);
  // Uploads the options of the step's wanted rows. `wanted` lives until the last RunChunk.
  absl::Status Prepare(const core::StepPlan& plan, const RowTable& rows, std::span<const WantedRow> wanted, int32_t num_sampled);
  // Draws or looks up wanted rows [begin, begin + count), whose logits [count, vocab] are given; appends their results.
  absl::Status RunChunk(int32_t begin, int32_t count, kernels::Tensor logits, std::vector<core::TokenInfo>* out);

 private:
  struct Outputs {               // device and host arrays of the same shape, one after another
    int32_t* ids = nullptr;      // [chunk]
    float* logprobs = nullptr;   // [chunk]
    int32_t* ranks = nullptr;    // [chunk]
    int32_t* top_ids = nullptr;  // [chunk, kMaxTopLogprobs]
    float* top_logprobs = nullptr;
  };

  Sampler(const kernels::Table& table, kernels::Device* device, const SamplerShape& shape)
      : table_(table), device_(device), shape_(shape), memory_(table, device) {}
  absl::Status TakeMemory();
  Outputs Carve(void* memory) const;
  void AddBiases(const Row& row, int32_t num_outputs);
  absl::Status UploadBiases();
  absl::Status Sample(int32_t begin, int32_t count, kernels::Tensor logits);
  absl::Status LookUp(int32_t begin, int32_t count, kernels::Tensor logits);
  absl::Status Download(int32_t count, int32_t max_top);
  absl::Status Copy(void* to, const void* from, uint64_t bytes);
  int64_t mask_words() const { return (shape_.vocab + 31) / 32; }

  const kernels::Table& table_;
  kernels::Device* const device_;
  const SamplerShape shape_;
  model::DeviceMemory memory_;
  uint32_t* masks_ = nullptr;             // [max_rows, mask_words]
  uint32_t* prompt_seen_ = nullptr;       // [max_rows, mask_words]
  int32_t* output_counts_ = nullptr;      // [max_rows, vocab]
  kernels::SamplingRow* options_ = nullptr;   // [max_rows]
  int32_t* prompt_ids_ = nullptr;         // [max_wanted] ids to look up, then as many counts of top entries
  int32_t* bias_ids_ = nullptr;           // [bias_capacity_]
  float* bias_values_ = nullptr;
  size_t bias_capacity_ = 0;
  Outputs out_;
  Outputs host_out_;

  // Of the current step.
  int32_t num_sampled_ = 0;
  bool any_mask_ = false;
  bool any_state_ = false;
  std::vector<kernels::SamplingRow> host_options_;
  std::vector<int32_t> host_bias_ids_;
  std::vector<float> host_bias_values_;
  std::vector<int32_t> host_prompt_;      // as prompt_ids_
  std::vector<int32_t> num_logprobs_;     // of every wanted row
};

}  // namespace phalanx::worker::exec
