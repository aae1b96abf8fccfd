#include "worker/tp/nccl_group.h"

#include "absl/strings/str_cat.h"

namespace phalanx::worker::tp {
namespace {

constexpr char kUniqueIdKey[] = "nccl/unique_id";
constexpr milliseconds kUniqueIdWait(30000);  // ranks load a CUDA context before they come here, some later than others

class NcclGroup final : public Group {
 public:
  NcclGroup(const kernels::Table& table, kernels::Device* device, const Control& control)
      : Group(control.rank(), control.size()), table_(table), device_(device), fault_(control.fault()) {}

  absl::Status AllReduce(kernels::Tensor buffer, kernels::Stream stream) override {
    PHX_RETURN_IF_ERROR(CheckReduce(buffer));
    if (fault_->broken()) return fault_->status();
    return Judge(table_.all_reduce(device_, buffer, stream), "all_reduce");
  }

  absl::Status AllGather(kernels::Tensor shard, kernels::Tensor out, kernels::Stream stream) override {
    PHX_RETURN_IF_ERROR(CheckGather(shard, out, rank(), size()));
    if (fault_->broken()) return fault_->status();
    return Judge(table_.all_gather(device_, shard, out, stream), "all_gather");
  }

  absl::Status Judge(kernels::Code code, const char* operation) {
    if (code == kernels::kOk) return absl::OkStatus();
    const absl::Status own = absl::InternalError(
        absl::StrCat(operation, " on rank ", rank(), " failed with code ", static_cast<int>(code), ": ", table_.last_error(device_)));
    return fault_->BreakUnlessKnown(own);
  }

 private:
  const kernels::Table& table_;
  kernels::Device* const device_;
  const std::shared_ptr<Fault> fault_;
};

absl::StatusOr<std::string> ShareUniqueId(Control& control, const UniqueIdMaker& make_unique_id) {
  if (control.rank() == 0) {
    PHX_ASSIGN_OR_RETURN(const std::string id, make_unique_id());
    if (id.size() != kUniqueIdBytes) return absl::InternalError(absl::StrCat("an identity of ", id.size(), " bytes, not ", kUniqueIdBytes));
    PHX_RETURN_IF_ERROR(control.store().Set(kUniqueIdKey, id));
    return id;
  }
  PHX_ASSIGN_OR_RETURN(const std::string id, control.store().Get(kUniqueIdKey, Now() + kUniqueIdWait));
  if (id.size() != kUniqueIdBytes) return absl::InternalError(absl::StrCat("an identity of ", id.size(), " bytes, not ", kUniqueIdBytes));
  return id;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Group>> MakeNcclGroup(const kernels::Table& table, kernels::Device* device, Control& control,
                                                     const GroupOptions& options, const UniqueIdMaker& make_unique_id) {
  if (table.group_create == nullptr || table.all_reduce == nullptr || table.all_gather == nullptr) {
    return absl::UnimplementedError(
        absl::StrCat("the ", table.name, " back end has no collectives (group_create, all_reduce, all_gather), so it serves one rank, not ",
                     control.size()));
  }
  if (!make_unique_id) return absl::UnimplementedError(absl::StrCat("the ", table.name, " back end gives no identity for a group"));
  absl::StatusOr<std::string> id = ShareUniqueId(control, make_unique_id);
  if (!id.ok()) {
    control.fault()->Break(id.status());
    return control.status();
  }
  auto group = std::make_unique<NcclGroup>(table, device, control);
  PHX_RETURN_IF_ERROR(group->Judge(table.group_create(device, id->data(), control.rank(), control.size()), "group_create"));
  return group;
}

}  // namespace phalanx::worker::tp
