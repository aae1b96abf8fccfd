#include "worker/model/pack_queue.h"

#include <algorithm>
#include <deque>
#include <functional>
#include <thread>

#include "absl/strings/str_cat.h"
#include "services/check.h"

namespace phalanx::worker::model {
namespace {

using kernels::DType;

constexpr uint64_t kHeapBudget = uint64_t{192} << 20;
constexpr uint64_t kAlignment = 256;   // of a weight within the memory of all

// What one Run works on.
struct Context {
  const kernels::Table& table;
  kernels::Device* device;
  const Checkpoint& checkpoint;
  const std::vector<PackJob>& jobs;
  DType dtype;
  DeviceMemory* memory;
  const std::function<void(double)>& progress;
  PackLimits limits;

  absl::Status Check(kernels::Code code, const char* operation) const { return ToStatus(table, device, code, operation); }
  uint64_t RowBytes(size_t job) const { return uint64_t(jobs[job].k) * kernels::DTypeBytes(dtype); }
};

unsigned ReadingThreads(const Context& context) { return std::clamp(std::thread::hardware_concurrency(), 1u, context.limits.threads); }

// Tells the share of the bytes that are through.
class Progress {
 public:
  Progress(const Context& context, const Stage& stage) : context_(context), stage_(stage) {
    for (const StageUnit& unit : stage.units()) total_ += stage.BytesOf(unit);
  }
  void Add(const StageUnit& unit) {
    done_ += stage_.BytesOf(unit);
    if (context_.progress) context_.progress(static_cast<double>(done_) / static_cast<double>(total_));
  }

 private:
  const Context& context_;
  const Stage& stage_;
  uint64_t total_ = 0;
  uint64_t done_ = 0;
};

// Refuses weights that cannot fit before anything is read.
absl::Status CheckRoom(const Context& context) {
  if (IsHost(context.table)) return absl::OkStatus();
  uint64_t needed = 0;
  for (const PackJob& job : context.jobs) needed += context.table.packed_bytes(context.device, job.n, job.k, context.dtype);
  kernels::DeviceInfo info{};
  PHX_RETURN_IF_ERROR(context.Check(context.table.info(context.device, &info), "info"));
  if (needed <= info.memory_free) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      "too little memory for the weights: ", HumanBytes(needed), " are needed, ", HumanBytes(info.memory_free), " of ",
      HumanBytes(info.memory_total), " are free; no flag makes them smaller, and each of --num-workers has its own: take a smaller "
      "model, or end other programs on the device"));
}

// ---- whole matrices -------------------------------------------------------------------------------------------------

absl::Status PackWhole(const Context& context, const PackJob& job, const void* rows) {
  const uint64_t bytes = context.table.packed_bytes(context.device, job.n, job.k, context.dtype);
  PHX_ASSIGN_OR_RETURN(void* to, context.memory->Take(bytes, "a weight"));
  kernels::Weight weight{nullptr, job.n, job.k, context.dtype, 0, bytes};
  PHX_RETURN_IF_ERROR(context.Check(context.table.pack_weight(context.device, &weight, rows, to, nullptr), "pack_weight"));
  PHX_RETURN_IF_ERROR(context.Check(context.table.stream_synchronize(context.device, nullptr), "stream_synchronize"));
  *job.weight = weight;
  return absl::OkStatus();
}

absl::Status RunWhole(const Context& context) {
  std::vector<StageUnit> units;
  for (size_t j = 0; j < context.jobs.size(); ++j) units.push_back({j, 0, context.jobs[j].n});
  Stage stage(context.checkpoint, context.jobs, context.dtype, std::move(units));
  Progress progress(context, stage);
  stage.UseHeap(kHeapBudget);
  stage.Start(ReadingThreads(context));
  for (size_t u = 0; u < stage.units().size(); ++u) {
    PHX_ASSIGN_OR_RETURN(const void* rows, stage.WaitFor(u));
    PHX_RETURN_IF_ERROR(PackWhole(context, context.jobs[u], rows));
    stage.Release(u);
    progress.Add(stage.units()[u]);
  }
  return absl::OkStatus();
}

// ---- slices ---------------------------------------------------------------------------------------------------------

// Slices on their way to the device. Each holds its slot until its event has happened.
class Copies {
 public:
  Copies(const Context& context, Stage* stage) : context_(context), stage_(stage) {}
  ~Copies() {
    // After an error too: the device may still be reading from the slots.
    context_.table.stream_synchronize(context_.device, nullptr);
    for (const kernels::Event event : events_) context_.table.event_destroy(context_.device, event);
  }
  Copies(const Copies&) = delete;
  Copies& operator=(const Copies&) = delete;

  absl::Status AddEvent() {
    kernels::Event event = nullptr;
    PHX_RETURN_IF_ERROR(context_.Check(context_.table.event_create(context_.device, &event), "event_create"));
    events_.push_back(event);
    return absl::OkStatus();
  }
  // Starts copying a unit to `to`.
  absl::Status Begin(size_t index, const void* rows, char* to) {
    const StageUnit& unit = stage_->units()[index];
    kernels::Weight slice{nullptr, unit.rows, context_.jobs[unit.job].k, context_.dtype, 0, stage_->BytesOf(unit)};
    PHX_RETURN_IF_ERROR(context_.Check(context_.table.pack_weight(context_.device, &slice, rows, to, nullptr), "pack_weight"));
    if (slice.layout != 0) return absl::InternalError(absl::StrCat("pack_weight of ", context_.table.name, " packs some shapes only"));
    PHX_RETURN_IF_ERROR(context_.Check(context_.table.event_record(context_.device, EventOf(index), nullptr), "event_record"));
    under_way_.push_back(index);
    return absl::OkStatus();
  }
  bool empty() const { return under_way_.empty(); }
  // Waits for the oldest copy and frees its slot.
  absl::Status FinishOldest() {
    const size_t index = under_way_.front();
    PHX_RETURN_IF_ERROR(context_.Check(context_.table.event_wait(context_.device, EventOf(index)), "event_wait"));
    under_way_.pop_front();
    stage_->Release(index);
    return absl::OkStatus();
  }

 private:
  // No more units are under way than there are slots, and each slot has its event.
  kernels::Event EventOf(size_t index) const { return events_[index % events_.size()]; }

  const Context& context_;
  Stage* const stage_;
  std::vector<kernels::Event> events_;
  std::deque<size_t> under_way_;
};

// All weights in one piece of device memory, each at its offset.
absl::StatusOr<std::vector<char*>> TakeAll(const Context& context) {
  uint64_t total = 0;
  std::vector<uint64_t> offsets;
  for (const PackJob& job : context.jobs) {
    const uint64_t bytes = context.table.packed_bytes(context.device, job.n, job.k, context.dtype);
    *job.weight = {nullptr, job.n, job.k, context.dtype, 0, bytes};
    offsets.push_back(total);
    total += (bytes + kAlignment - 1) / kAlignment * kAlignment;
  }
  PHX_ASSIGN_OR_RETURN(void* memory, context.memory->Take(total, "the weights"));
  std::vector<char*> out;
  for (size_t j = 0; j < offsets.size(); ++j) {
    out.push_back(static_cast<char*>(memory) + offsets[j]);
    context.jobs[j].weight->data = out.back();
  }
  return out;
}

std::vector<StageUnit> CutIntoSlices(const Context& context) {
  std::vector<StageUnit> units;
  for (size_t j = 0; j < context.jobs.size(); ++j) {
    const auto most = static_cast<int64_t>(std::max<uint64_t>(1, context.limits.slot_bytes / context.RowBytes(j)));
    for (int64_t row = 0; row < context.jobs[j].n; row += most) units.push_back({j, row, std::min(most, context.jobs[j].n - row)});
  }
  return units;
}

absl::Status RunInSlices(const Context& context) {
  PHX_ASSIGN_OR_RETURN(const std::vector<char*> weights, TakeAll(context));
  DeviceMemory slots(context.table, context.device);
  Stage stage(context.checkpoint, context.jobs, context.dtype, CutIntoSlices(context));
  Copies copies(context, &stage);
  Progress progress(context, stage);
  stage.Start(ReadingThreads(context));
  const std::vector<StageUnit>& units = stage.units();
  uint64_t slot_bytes = 0;
  for (const StageUnit& unit : units) slot_bytes = std::max(slot_bytes, stage.BytesOf(unit));
  // Reading begins with the first slot: taking fast memory is slow.
  for (size_t i = 0; i < std::min<size_t>(context.limits.slots, units.size()); ++i) {
    PHX_RETURN_IF_ERROR(copies.AddEvent());
    PHX_ASSIGN_OR_RETURN(void* slot, slots.TakeHost(slot_bytes, "loading weights"));
    stage.AddSlot(slot);
  }
  for (size_t u = 0; u < units.size(); ++u) {
    // A unit that is not there yet may be waiting for the slot of a copy.
    while (!copies.empty() && !stage.Ready(u)) {
      PHX_RETURN_IF_ERROR(copies.FinishOldest());
    }
    PHX_ASSIGN_OR_RETURN(const void* rows, stage.WaitFor(u));
    PHX_RETURN_IF_ERROR(copies.Begin(u, rows, weights[units[u].job] + units[u].first_row * context.RowBytes(units[u].job)));
    progress.Add(units[u]);
  }
  return context.Check(context.table.stream_synchronize(context.device, nullptr), "stream_synchronize");
}

}  // namespace

absl::StatusOr<bool> KeepsRows(const kernels::Table& table, kernels::Device* device, DType dtype) {
  constexpr int64_t kColumns = 64;
  const std::vector<char> row(kColumns * kernels::DTypeBytes(dtype));
  kernels::Weight weight{nullptr, 1, kColumns, dtype, 0, table.packed_bytes(device, 1, kColumns, dtype)};
  DeviceMemory memory(table, device);
  PHX_ASSIGN_OR_RETURN(void* to, memory.Take(weight.bytes, "a weight"));
  PHX_RETURN_IF_ERROR(ToStatus(table, device, table.pack_weight(device, &weight, row.data(), to, nullptr), "pack_weight"));
  PHX_RETURN_IF_ERROR(ToStatus(table, device, table.stream_synchronize(device, nullptr), "stream_synchronize"));
  return weight.layout == 0;
}

absl::Status PackQueue::Run(const kernels::Table& table, kernels::Device* device, const Checkpoint& checkpoint, DType dtype,
                            DeviceMemory* memory, const std::function<void(double)>& progress) {
  std::stable_sort(jobs_.begin(), jobs_.end(), [](const PackJob& a, const PackJob& b) {
    return std::less<>()(a.parts[0].tensor.place(), b.parts[0].tensor.place());
  });
  const Context context{table, device, checkpoint, jobs_, dtype, memory, progress, limits_};
  PHX_RETURN_IF_ERROR(CheckRoom(context));
  PHX_ASSIGN_OR_RETURN(const bool keeps_rows, KeepsRows(table, device, dtype));
  return keeps_rows ? RunInSlices(context) : RunWhole(context);
}

}  // namespace phalanx::worker::model
