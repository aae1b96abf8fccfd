// worker/exec/sampler.h: sampling options, penalty state, masks and biases of every row, and the draws of one step.
// Refuses to know: the forward pass, scheduling. Thread: the engine thread.
// Neighbours: rows.h keeps options, inputs.h says which rows are wanted, executor.cc calls in chunks of logits.
//
//   Prepare(plan, ...); for each chunk of logits: Enqueue(begin, count, logits); Download();   ...   Result(turn, i) of each wanted row
//
// Nothing here waits for the device: results are read once the step's event has happened. They lie on the host in as many turns as the
// staging has, and on the device once: a step's draws stay there until the next step samples, so that its inputs can take them.
#pragma once

#include <array>
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
};

class Sampler {
 public:
  // Takes its memory. Errors: the device's; kUnimplemented if the table lacks an operation.
  static absl::StatusOr<std::unique_ptr<Sampler>> Create(const kernels::Table& table, kernels::Device* device, const SamplerShape& shape);

  // Uploads what a sequence's options need between steps: penalty counts, the mask of allowed ids. This and long lists of biases are copied
  // from ordinary memory: a GPU's driver may wait for the step in flight when they are large.
  absl::Status Add(const core::AddedSequence& sequence);
  // What the options of the largest step take of a Staging.
  static uint64_t StagingBytes(const SamplerShape& shape);
  // Places the options of the step's wanted rows, to be uploaded by the caller. At least `padded_rows` rows can be drawn: those beyond the
  // sampled ones are drawn greedily and read by nobody.
  absl::Status Prepare(const core::StepPlan& plan, const RowTable& rows, std::span<const WantedRow> wanted, int32_t num_sampled,
                       int32_t padded_rows, Staging* staging);
  // True if the prepared draws need nothing whose place or size changes from step to step: a recorded graph may contain them.
  bool recordable() const { return most_logprobs_ < 0 && host_bias_ids_.empty() && turns_[turn_].prompt.empty(); }
  // Draws or looks up wanted rows [begin, begin + count), whose logits [count, vocab] are given.
  absl::Status Enqueue(int32_t begin, int32_t count, kernels::Tensor logits);
  // Draws the first `rows` rows, as many as were prepared with padding. For `recordable` steps.
  absl::Status EnqueuePadded(int32_t rows, kernels::Tensor logits);
  // Brings the step's results to the host, behind its draws.
  absl::Status Download();
  // [wanted] device memory: the ids that the last step drew.
  const int32_t* drawn() const { return out_.ids; }
  // What came for wanted row `i` of the step whose arrays were staged in `turn`.
  core::TokenInfo Result(int32_t turn, int32_t i) const;

 private:
  struct Outputs {               // device and host arrays of the same shape, one after another
    int32_t* ids = nullptr;      // [wanted]
    float* logprobs = nullptr;   // [wanted]
    int32_t* ranks = nullptr;    // [wanted]
    int32_t* top_ids = nullptr;  // [wanted, kMaxTopLogprobs]
    float* top_logprobs = nullptr;
  };
  struct Turn {                           // a step between Prepare and its last Result
    Outputs out;                          // host memory
    int32_t num_sampled = 0;
    std::vector<int32_t> num_logprobs;    // of every wanted row
    std::vector<int32_t> prompt;          // ids to look up, one for each wanted row that is not sampled
  };

  Sampler(const kernels::Table& table, kernels::Device* device, const SamplerShape& shape)
      : table_(table), device_(device), shape_(shape), memory_(table, device) {}
  absl::Status TakeMemory();
  Outputs Carve(void* memory) const;
  void AddBiases(const Row& row, int32_t num_outputs);
  absl::Status TakeBiases(size_t capacity);
  absl::Status UploadBiases();
  absl::Status Sample(int32_t begin, int32_t most_logprobs, kernels::Tensor logits);
  absl::Status LookUp(int32_t begin, kernels::Tensor logits);
  absl::Status Copy(void* to, const void* from, uint64_t bytes);
  int64_t mask_words() const { return (shape_.vocab + 31) / 32; }

  const kernels::Table& table_;
  kernels::Device* const device_;
  const SamplerShape shape_;
  model::DeviceMemory memory_;
  uint32_t* masks_ = nullptr;             // [max_rows, mask_words]
  uint32_t* prompt_seen_ = nullptr;       // [max_rows, mask_words]
  int32_t* output_counts_ = nullptr;      // [max_rows, vocab]
  int32_t* bias_ids_ = nullptr;           // [bias_capacity_]
  float* bias_values_ = nullptr;
  size_t bias_capacity_ = 0;
  Outputs out_;
  std::array<Turn, kTurns> turns_;

  // Of the current step.
  int32_t turn_ = 0;
  int32_t most_logprobs_ = -1;                      // of all wanted rows
  const kernels::SamplingRow* options_ = nullptr;   // [sampled or padded rows], device memory
  const int32_t* prompt_ids_ = nullptr;             // [prompt rows], device memory
  const int32_t* prompt_tops_ = nullptr;            // [prompt rows] top entries wanted, device memory
  std::vector<int32_t> host_bias_ids_;
  std::vector<float> host_bias_values_;
};

}  // namespace phalanx::worker::exec
