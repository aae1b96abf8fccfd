// worker/exec/graphs.h: recorded forward passes of decode steps, one for each padded shape: one launch replaces hundreds.
// Refuses to know: what a pass does, sampling. Thread: the engine thread. Neighbours: executor.cc runs its passes here, inputs.h pads.
//
// A shape that comes for the first time is run plainly (libraries choose their algorithms and load their code then) and recorded right
// behind, while the device is busy with it; from then on it is replayed. Whoever wants a shape recorded before it is needed runs it over
// padding alone.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <tuple>
#include <vector>

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
  // default stream, depend on nothing but device memory at fixed addresses, and bear to be called twice. `variant` tells passes apart
  // that do different things for one shape.
  absl::Status Run(const Padding& shape, int32_t variant, const std::function<absl::Status()>& pass);
  bool Has(const Padding& shape, int32_t variant) const { return graphs_.contains({shape.rows, shape.context, variant}); }
  // Every shape there can be, short contexts first and many rows first.
  std::vector<Padding> AllShapes() const;

 private:
  absl::StatusOr<kernels::Graph> Record(const std::function<absl::Status()>& pass);

  const kernels::Table& table_;
  kernels::Device* const device_;
  const int32_t max_rows_;
  const int32_t max_context_;
  std::map<std::tuple<int32_t, int32_t, int32_t>, kernels::Graph> graphs_;  // by rows, context and variant
};

// Rows are padded to 1, 2, 4, then multiples of 8 up to 256, then of 16; contexts to powers of two from 512 on.
int32_t PaddedRows(int32_t rows);
int32_t PaddedContext(int32_t context);

}  // namespace phalanx::worker::exec
