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
  for (auto& [shape, graph] : graphs_) table_.graph_destroy(device_, graph);
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

std::vector<Padding> DecodeGraphs::AllShapes() const {
  std::vector<int32_t> rows;
  for (int32_t r = 1; r <= max_rows_; ++r) {
    const int32_t padded = std::min(PaddedRows(r), max_rows_);
    if (rows.empty() || rows.back() != padded) rows.push_back(padded);
  }
  std::vector<Padding> shapes;
  for (int32_t context = 1; context <= max_context_; context = PaddedContext(context) + 1) {
    for (size_t i = rows.size(); i-- > 0;) shapes.push_back({rows[i], std::min(PaddedContext(context), max_context_)});
  }
  return shapes;
}

absl::Status DecodeGraphs::Run(const Padding& shape, int32_t variant, const std::function<absl::Status()>& pass) {
  const std::tuple key(shape.rows, shape.context, variant);
  if (const auto found = graphs_.find(key); found != graphs_.end()) {
    return model::ToStatus(table_, device_, table_.graph_launch(device_, found->second, nullptr), "graph_launch");
  }
  PHX_RETURN_IF_ERROR(pass());
  PHX_ASSIGN_OR_RETURN(const kernels::Graph graph, Record(pass));
  graphs_.emplace(key, graph);
  return absl::OkStatus();
}

absl::StatusOr<kernels::Graph> DecodeGraphs::Record(const std::function<absl::Status()>& pass) {
  kernels::Graph graph = nullptr;
  PHX_RETURN_IF_ERROR(model::ToStatus(table_, device_, table_.graph_begin(device_, nullptr), "graph_begin"));
  const absl::Status recorded = pass();
  // The recording is ended in any case, or the stream could not be used again.
  const kernels::Code ended = table_.graph_end(device_, nullptr, &graph);
  if (!recorded.ok() && ended == kernels::kOk) table_.graph_destroy(device_, graph);
  PHX_RETURN_IF_ERROR(recorded);
  PHX_RETURN_IF_ERROR(model::ToStatus(table_, device_, ended, "graph_end"));
  return graph;
}

}  // namespace phalanx::worker::exec
