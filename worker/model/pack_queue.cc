#include "worker/model/pack_queue.h"

#include <algorithm>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>

#include "services/check.h"

namespace phalanx::worker::model {
namespace {

constexpr uint64_t kMaxStagedBytes = uint64_t{192} << 20;
constexpr int64_t kChunkElements = 1 << 19;

// A run of rows of one part: the unit a decoding thread takes.
struct Chunk {
  size_t job;
  const PackPart* part;
  int64_t begin;
  int64_t count;
};

struct Staged {
  std::unique_ptr<char[]> rows;   // [n, k] row-major
  size_t open_chunks = 0;
};

// Decoding side of one Run. Chunks are taken in job order, so the oldest unfinished job is always being worked on.
class Stage {
 public:
  Stage(const std::vector<PackJob>& jobs, kernels::DType dtype) : jobs_(jobs), dtype_(dtype), staged_(jobs.size()) {
    for (size_t j = 0; j < jobs.size(); ++j) {
      const int64_t rows_per_chunk = std::max<int64_t>(1, kChunkElements / jobs[j].k);
      for (const PackPart& part : jobs[j].parts) {
        for (int64_t begin = 0; begin < part.tensor.rows; begin += rows_per_chunk) {
          chunks_.push_back({j, &part, begin, std::min(rows_per_chunk, part.tensor.rows - begin)});
          ++staged_[j].open_chunks;
        }
      }
    }
  }

  uint64_t BytesOf(size_t job) const { return uint64_t(jobs_[job].n) * jobs_[job].k * kernels::DTypeBytes(dtype_); }

  // A decoding thread: until nothing is left or Stop was called.
  void Work() {
    std::vector<float> scratch;
    while (const Chunk* chunk = Take()) {
      const PackJob& job = jobs_[chunk->job];
      const int64_t first = chunk->part->first_row + chunk->begin * chunk->part->row_step;
      char* out = staged_[chunk->job].rows.get() + first * job.k * kernels::DTypeBytes(dtype_);
      Checkpoint::ReadRows(chunk->part->tensor, chunk->begin, chunk->count, dtype_, out, job.k * chunk->part->row_step, &scratch);
      std::lock_guard lock(mutex_);
      if (--staged_[chunk->job].open_chunks == 0) changed_.notify_all();
    }
  }

  const char* WaitFor(size_t job) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return staged_[job].open_chunks == 0; });
    return staged_[job].rows.get();
  }
  void Release(size_t job) {
    std::lock_guard lock(mutex_);
    staged_[job].rows.reset();
    staged_bytes_ -= BytesOf(job);
    changed_.notify_all();
  }
  void Stop() {
    std::lock_guard lock(mutex_);
    stopped_ = true;
    changed_.notify_all();
  }

 private:
  const Chunk* Take() {
    std::unique_lock lock(mutex_);
    while (!stopped_ && next_ < chunks_.size()) {
      const Chunk& chunk = chunks_[next_];
      Staged& staged = staged_[chunk.job];
      const uint64_t bytes = BytesOf(chunk.job);
      if (staged.rows == nullptr && staged_bytes_ != 0 && staged_bytes_ + bytes > kMaxStagedBytes) {
        changed_.wait(lock);
        continue;
      }
      if (staged.rows == nullptr) {
        staged.rows.reset(new char[bytes]);
        staged_bytes_ += bytes;
      }
      ++next_;
      return &chunk;
    }
    return nullptr;
  }

  const std::vector<PackJob>& jobs_;
  const kernels::DType dtype_;
  std::vector<Chunk> chunks_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Staged> staged_;   // guarded by mutex_; `rows` of a taken chunk is stable until Release
  uint64_t staged_bytes_ = 0;
  size_t next_ = 0;
  bool stopped_ = false;
};

absl::Status PackOne(const kernels::Table& table, kernels::Device* device, kernels::DType dtype, const PackJob& job, const char* rows,
                     DeviceMemory* memory) {
  const uint64_t bytes = table.packed_bytes(device, job.n, job.k, dtype);
  PHX_ASSIGN_OR_RETURN(void* to, memory->Take(bytes, "a weight"));
  kernels::Weight weight{nullptr, job.n, job.k, dtype, 0, bytes};
  PHX_RETURN_IF_ERROR(ToStatus(table, device, table.pack_weight(device, &weight, rows, to, nullptr), "pack_weight"));
  PHX_RETURN_IF_ERROR(ToStatus(table, device, table.stream_synchronize(device, nullptr), "stream_synchronize"));
  *job.weight = weight;
  return absl::OkStatus();
}

}  // namespace

absl::Status PackQueue::Run(const kernels::Table& table, kernels::Device* device, kernels::DType dtype, DeviceMemory* memory,
                            const std::function<void(double)>& progress) {
  Stage stage(jobs_, dtype);
  uint64_t total = 0;
  for (size_t j = 0; j < jobs_.size(); ++j) total += stage.BytesOf(j);
  std::vector<std::jthread> threads;
  const unsigned count = std::clamp(std::thread::hardware_concurrency(), 1u, 16u);
  for (unsigned i = 0; i < count; ++i) threads.emplace_back([&stage] { stage.Work(); });
  absl::Status status;
  uint64_t done = 0;
  for (size_t j = 0; j < jobs_.size() && status.ok(); ++j) {
    status = PackOne(table, device, dtype, jobs_[j], stage.WaitFor(j), memory);
    stage.Release(j);
    done += stage.BytesOf(j);
    if (progress) progress(static_cast<double>(done) / static_cast<double>(total));
  }
  stage.Stop();
  return status;
}

}  // namespace phalanx::worker::model
