// worker/tp/group.h: one rank's view of the sums and gathers that the ranks of a group do together.
// Refuses to know: what the tensors mean, who planned the step, how the ranks met. Thread: one, the engine's.
// Neighbours: solo_group, gloo_group and nccl_group implement it; worker/model and worker/exec call it between layers.
//
// Every rank makes the same calls in the same order with the same shapes. Sums are taken in f32, in the order of ranks
// ((x0 + x1) + x2) + ..., and rounded once to the tensor's type: all ranks hold the same bits, whatever came first and whichever
// algorithm the size chose. (NCCL keeps the equality among ranks, not the order: its header says which.)
// Any error breaks the group for good (fault.h): the next calls return the same reason at once, and the owner ends the process.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "kernels/kernels.h"
#include "services/status.h"
#include "worker/tp/control.h"

namespace phalanx::worker::tp {

class Group {
 public:
  virtual ~Group() = default;
  int rank() const { return rank_; }
  int size() const { return size_; }

  // Sums `buffer` over the ranks, in place.
  //   buffer  [any shape]  bf16 or f32, dense
  // On a GPU the sum is queued on `stream`; on a CPU `stream` is null and the sum is there on return.
  // Errors: kInvalidArgument (dtype, strides; nothing was sent), kDeadlineExceeded or kUnavailable naming a rank, kInternal naming the
  // operation: the back end failed.
  virtual absl::Status AllReduce(kernels::Tensor buffer, kernels::Stream stream) = 0;

  // Every rank's shard, in order of ranks.
  //   shard  [any shape]         any dtype, dense; at its own place inside `out`, or elsewhere if size() > 1
  //   out    [size x shard]      same dtype, dense
  // Errors: as AllReduce.
  virtual absl::Status AllGather(kernels::Tensor shard, kernels::Tensor out, kernels::Stream stream) = 0;

 protected:
  Group(int rank, int size) : rank_(rank), size_(size) {}

 private:
  const int rank_;
  const int size_;
};

struct GroupOptions {
  // How long a rank waits for another within a sum, [1, 60000]. Ranks whose work before it may differ by more (loading, for one) exchange a
  // plan and replies first.
  int collective_timeout_ms = 2000;
  bool busy_poll = false;            // CPU ranks: spin instead of sleeping in a sum; only if every rank has a core for itself
};

// Makes an identity for NCCL on rank 0, where the plug-in can.
using UniqueIdMaker = std::function<absl::StatusOr<std::string>()>;

// The group for this table: solo for one rank, the table's own collectives where it has them, else Gloo if the table works on host memory.
// All ranks must call it at the same time. `control` (null for one rank), `table` and `device` outlive the group.
// Errors: kUnimplemented (a table of device memory without collectives), and those of the group that was chosen.
absl::StatusOr<std::unique_ptr<Group>> MakeGroup(const kernels::Table& table, kernels::Device* device, Control* control,
                                                 const GroupOptions& options, const UniqueIdMaker& make_unique_id);

// kInvalidArgument unless the tensor is dense (and, for a sum, bf16 or f32).
absl::Status CheckReduce(const kernels::Tensor& buffer);
absl::Status CheckGather(const kernels::Tensor& shard, const kernels::Tensor& out, int rank, int size);
int64_t Elements(const kernels::Tensor& tensor);

}  // namespace phalanx::worker::tp
