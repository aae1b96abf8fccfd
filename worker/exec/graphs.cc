#include "worker/exec/graphs.h"

#include <algorithm>
#include <bit>

#include "worker/model/device.h"

namespace phalanx::worker::exec {

int32_t PaddedRows(int32_t rows) {
  if (rows <= 4) return static_cast<int32_t>(std::bit_ceil(static_cast<uint32_t>(rows)));
  const int32_t step = rows <= 256 ? 8 : 16;
  return (rows + step - 1) / step * step;
}

int32_t PaddedContext(int32_t context) { return std::max(512, static_cast<int32_t>(std::bit_ceil(static_cast<uint32_t>(context)))); }

DecodeGraphs::~DecodeGraphs() {
  for (auto& [shape, entry] : entries_) {
    if (entry.graph != nullptr) table_.graph_destroy(device_, entry.graph);
  }
}

std::optional<Padding> DecodeGraphs::ShapeOf(const core::StepPlan& plan) const {
  int32_t context = 1;
  for (const core::Slice& slice : plan.slices) {
    if (slice.count != 1 || !slice.sample || slice.prompt_logprobs) return std::nullopt;
    context = std::max(context, slice.start + 1);
  }
  const auto rows = static_cast<int32_t>(plan.slices.size());
  if (rows == 0 || rows > max_rows_) return std::nullopt;
  return Padding{std::min(PaddedRows(rows), max_rows_), std::min(PaddedContext(context), max_context_)};
}

absl::Status DecodeGraphs::Run(const Padding& shape, const std::function<absl::Status()>& pass) {
  Entry& entry = entries_[{shape.rows, shape.context}];
  if (!entry.warm) {
    entry.warm = true;
    return pass();
  }
  if (entry.graph == nullptr) PHX_RETURN_IF_ERROR(Record(&entry, pass));
  return model::ToStatus(table_, device_, table_.graph_launch(device_, entry.graph, nullptr), "graph_launch");
}

absl::Status DecodeGraphs::Record(Entry* entry, const std::function<absl::Status()>& pass) {
  PHX_RETURN_IF_ERROR(model::ToStatus(table_, device_, table_.graph_begin(device_, nullptr), "graph_begin"));
  const absl::Status recorded = pass();
  // The recording is ended in any case, or the stream could not be used again.
  const kernels::Code ended = table_.graph_end(device_, nullptr, &entry->graph);
  PHX_RETURN_IF_ERROR(recorded);
  return model::ToStatus(table_, device_, ended, "graph_end");
}

}  // namespace phalanx::worker::exec
