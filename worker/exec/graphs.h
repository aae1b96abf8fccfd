// worker/exec/graphs.h: recorded forward passes of decode steps, one for each padded shape: one launch replaces hundreds.
// Refuses to know: what a pass does, sampling. Thread: the engine thread. Neighbours: executor.cc runs its passes here, inputs.h pads.
//
// A shape is run plainly the first time (libraries choose their algorithms then), recorded the second time, replayed from then on. So
// nothing is recorded before somebody needs it, and readiness does not wait.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <utility>

#include "kernels/kernels.h"
#include "services/status.h"
#include "worker/core/step.h"
#include "worker/exec/inputs.h"

namespace phalanx::worker::exec {

class DecodeGraphs {
 public:
  // `max_rows`: rows whose logits fit at once; larger steps run plainly. `max_context`: tokens of the longest sequence.
  DecodeGraphs(const kernels::Table& table, kernels::Device* device, int32_t max_rows, int32_t max_context)
      : table_(table), device_(device), max_rows_(max_rows), max_context_(max_context) {}
  ~DecodeGraphs();
  DecodeGraphs(const DecodeGraphs&) = delete;
  DecodeGraphs& operator=(const DecodeGraphs&) = delete;

  // The shape that a step is padded to; nullopt: it holds more than one row of a sequence, or too many rows.
  std::optional<Padding> ShapeOf(const core::StepPlan& plan) const;
  // Does what `pass` does for inputs of this shape: by calling it, or by replaying what it did. `pass` must put all its work on the
  // default stream and depend on nothing but device memory at fixed addresses.
  absl::Status Run(const Padding& shape, const std::function<absl::Status()>& pass);

 private:
  struct Entry {
    bool warm = false;
    kernels::Graph graph = nullptr;
  };
  absl::Status Record(Entry* entry, const std::function<absl::Status()>& pass);

  const kernels::Table& table_;
  kernels::Device* const device_;
  const int32_t max_rows_;
  const int32_t max_context_;
  std::map<std::pair<int32_t, int32_t>, Entry> entries_;  // by rows and context
};

// Rows are padded to 1, 2, 4, then multiples of 8 up to 256, then of 16; contexts to powers of two from 512 on.
int32_t PaddedRows(int32_t rows);
int32_t PaddedContext(int32_t context);

}  // namespace phalanx::worker::exec
