// worker/model/stage.h: threads that read matrices into host buffers, ahead of the one who gives them to the device.
// Refuses to know: devices. Thread: one owner; the reading threads live inside.
// Neighbours: pack_queue.cc cuts matrices into units and takes them in order, checkpoint.h reads rows.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "services/status.h"
#include "worker/model/checkpoint.h"

namespace phalanx::worker::model {

// Row i of `tensor` becomes row `first_row` + i * `row_step` of the matrix.
struct PackPart {
  SourceTensor tensor;
  int64_t first_row = 0;
  int64_t row_step = 1;
};

struct PackJob {
  kernels::Weight* weight = nullptr;   // filled by PackQueue::Run
  int64_t n = 0;
  int64_t k = 0;
  std::vector<PackPart> parts;         // cover every row once
};

// Rows [first_row, first_row + rows) of a job's matrix, in one buffer [rows, k].
struct StageUnit {
  size_t job = 0;
  int64_t first_row = 0;
  int64_t rows = 0;
};

class Stage {
 public:
  // `checkpoint` and `jobs` must outlive the stage.
  Stage(const Checkpoint& checkpoint, const std::vector<PackJob>& jobs, kernels::DType dtype, std::vector<StageUnit> units);
  ~Stage();
  Stage(const Stage&) = delete;
  Stage& operator=(const Stage&) = delete;

  // Where units are read to. Either buffers of the heap, as many as fit into `budget` bytes (or one, if larger) ...
  void UseHeap(uint64_t budget);
  // ... or slots of the caller's, each large enough for any unit, that come back with Release. They must outlive the stage.
  void AddSlot(void* slot);
  void Start(unsigned threads);

  const std::vector<StageUnit>& units() const { return units_; }
  uint64_t BytesOf(const StageUnit& unit) const { return uint64_t(unit.rows) * jobs_[unit.job].k * kernels::DTypeBytes(dtype_); }
  // True if WaitFor returns at once.
  bool Ready(size_t unit) const;
  // The rows of a unit, which stay until Release. Units are read in order: take and release them in order. Errors: those of reading.
  absl::StatusOr<const void*> WaitFor(size_t unit);
  void Release(size_t unit);

 private:
  // A run of rows of one part within one unit: what a reading thread takes at a time.
  struct Chunk {
    size_t unit;
    const PackPart* part;
    int64_t begin;   // rows of the part
    int64_t count;
  };
  struct Buffer {
    char* rows = nullptr;
    size_t open_chunks = 0;
  };

  void AddChunks(size_t unit);
  void Work();
  const Chunk* Take();                 // the next chunk, with its buffer taken; null at the end
  bool TakeBuffer(size_t unit);        // false: none is free now
  absl::Status Read(const Chunk& chunk, ReadScratch* scratch);
  void Stop();

  const Checkpoint& checkpoint_;
  const std::vector<PackJob>& jobs_;
  const kernels::DType dtype_;
  const std::vector<StageUnit> units_;
  std::vector<Chunk> chunks_;          // in order of their units

  mutable std::mutex mutex_;           // guards what follows
  std::condition_variable changed_;
  std::vector<Buffer> buffers_;        // [units]; `rows` of a taken chunk is stable until Release
  std::vector<char*> slots_;           // free ones
  uint64_t heap_budget_ = 0;           // 0: slots are used
  uint64_t heap_bytes_ = 0;            // taken
  size_t next_ = 0;                    // chunk
  bool stopped_ = false;
  absl::Status status_;                // the first failed read
  std::vector<std::jthread> threads_;
};

}  // namespace phalanx::worker::model
