#include "worker/tp/group.h"

#include <string_view>

#include "absl/strings/str_cat.h"
#include "worker/tp/gloo_group.h"
#include "worker/tp/nccl_group.h"
#include "worker/tp/solo_group.h"

namespace phalanx::worker::tp {
namespace {

bool Dense(const kernels::Tensor& tensor) {
  int64_t stride = 1;
  for (int i = tensor.rank - 1; i >= 0; --i) {
    if (tensor.shape[i] < 0 || (tensor.shape[i] > 1 && tensor.stride[i] != stride)) return false;
    stride *= tensor.shape[i];
  }
  return tensor.rank >= 1 && tensor.rank <= kernels::kMaxRank && (tensor.data != nullptr || stride == 0);
}

bool OnHost(const kernels::Table& table) {
  const std::string_view name = table.name;
  return name == "cpu" || name == "reference";
}

}  // namespace

int64_t Elements(const kernels::Tensor& tensor) {
  int64_t out = 1;
  for (int i = 0; i < tensor.rank; ++i) out *= tensor.shape[i];
  return out;
}

absl::Status CheckReduce(const kernels::Tensor& buffer) {
  if (buffer.dtype != kernels::kF32 && buffer.dtype != kernels::kBF16) {
    return absl::InvalidArgumentError(absl::StrCat("sums over ranks take f32 and bf16, not dtype ", static_cast<int>(buffer.dtype)));
  }
  return Dense(buffer) ? absl::OkStatus() : absl::InvalidArgumentError("sums over ranks take dense tensors");
}

absl::Status CheckGather(const kernels::Tensor& shard, const kernels::Tensor& out, int rank, int size) {
  if (!Dense(shard) || !Dense(out) || shard.dtype != out.dtype || Elements(out) != size * Elements(shard)) {
    return absl::InvalidArgumentError(absl::StrCat("a gather over ", size, " ranks takes dense tensors of one dtype, the result ", size,
                                                   " times the shard"));
  }
  const size_t bytes = static_cast<size_t>(Elements(shard)) * kernels::DTypeBytes(shard.dtype);
  const auto from = reinterpret_cast<uintptr_t>(shard.data);
  const auto to = reinterpret_cast<uintptr_t>(out.data);
  const bool in_place = from == to + static_cast<size_t>(rank) * bytes;
  const bool apart = from + bytes <= to || to + static_cast<size_t>(size) * bytes <= from;
  if (in_place || bytes == 0 || (apart && size > 1)) return absl::OkStatus();
  return absl::InvalidArgumentError(size > 1 ? "the shard overlaps the result of the gather away from its own place"
                                             : "with one rank the shard must be the result of the gather itself");
}

absl::StatusOr<std::unique_ptr<Group>> MakeGroup(const kernels::Table& table, kernels::Device* device, Control* control,
                                                 const GroupOptions& options, const UniqueIdMaker& make_unique_id) {
  if (control == nullptr || control->size() == 1) return MakeSoloGroup();
  if (options.collective_timeout_ms < 1 || options.collective_timeout_ms > 60000) {
    return absl::InvalidArgumentError(absl::StrCat("a time limit of ", options.collective_timeout_ms, " ms for sums is not in [1, 60000]"));
  }
  if (table.group_create != nullptr || !OnHost(table)) return MakeNcclGroup(table, device, *control, options, make_unique_id);
  return MakeGlooGroup(*control, options);
}

}  // namespace phalanx::worker::tp
