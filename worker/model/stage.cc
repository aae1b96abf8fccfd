#include "worker/model/stage.h"

#include <algorithm>
#include <utility>

namespace phalanx::worker::model {
namespace {

constexpr int64_t kChunkElements = 1 << 19;

// Of a part's rows i, those with first <= first_row + i * row_step < last: [begin, end).
std::pair<int64_t, int64_t> PartRows(const PackPart& part, int64_t first, int64_t last) {
  const auto from = [&](int64_t row) {
    const int64_t i = (std::max<int64_t>(row - part.first_row, 0) + part.row_step - 1) / part.row_step;
    return std::min(i, part.tensor.rows);
  };
  return {from(first), from(last)};
}

}  // namespace

Stage::Stage(const Checkpoint& checkpoint, const std::vector<PackJob>& jobs, kernels::DType dtype, std::vector<StageUnit> units)
    : checkpoint_(checkpoint), jobs_(jobs), dtype_(dtype), units_(std::move(units)), buffers_(units_.size()) {
  for (size_t u = 0; u < units_.size(); ++u) AddChunks(u);
}

Stage::~Stage() {
  Stop();
  threads_.clear();
  for (size_t u = 0; u < units_.size() && heap_budget_ > 0; ++u) delete[] buffers_[u].rows;
}

void Stage::AddChunks(size_t index) {
  const StageUnit& unit = units_[index];
  const PackJob& job = jobs_[unit.job];
  const int64_t most = std::max<int64_t>(1, kChunkElements / job.k);
  for (const PackPart& part : job.parts) {
    const auto [begin, end] = PartRows(part, unit.first_row, unit.first_row + unit.rows);
    for (int64_t row = begin; row < end; row += most) {
      chunks_.push_back({index, &part, row, std::min(most, end - row)});
      ++buffers_[index].open_chunks;
    }
  }
}

void Stage::UseHeap(uint64_t budget) { heap_budget_ = budget; }

void Stage::AddSlot(void* slot) {
  std::lock_guard lock(mutex_);
  slots_.push_back(static_cast<char*>(slot));
  changed_.notify_all();
}

void Stage::Start(unsigned threads) {
  for (unsigned i = 0; i < threads; ++i) threads_.emplace_back([this] { Work(); });
}

// A reading thread: until nothing is left, a read fails or Stop was called.
void Stage::Work() {
  ReadScratch scratch;
  while (const Chunk* chunk = Take()) {
    absl::Status status = Read(*chunk, &scratch);
    std::lock_guard lock(mutex_);
    if (!status.ok()) {
      if (status_.ok()) status_ = std::move(status);
      stopped_ = true;
    } else if (--buffers_[chunk->unit].open_chunks > 0) {
      continue;
    }
    changed_.notify_all();
  }
}

absl::Status Stage::Read(const Chunk& chunk, ReadScratch* scratch) {
  const StageUnit& unit = units_[chunk.unit];
  const int64_t k = jobs_[unit.job].k;
  const int64_t first = chunk.part->first_row + chunk.begin * chunk.part->row_step - unit.first_row;
  char* rows;
  {
    std::lock_guard lock(mutex_);
    rows = buffers_[chunk.unit].rows;
  }
  return checkpoint_.ReadRows(chunk.part->tensor, chunk.begin, chunk.count, dtype_, rows + first * k * kernels::DTypeBytes(dtype_),
                              k * chunk.part->row_step, scratch);
}

bool Stage::TakeBuffer(size_t unit) {
  const uint64_t bytes = BytesOf(units_[unit]);
  if (heap_budget_ > 0) {
    if (heap_bytes_ != 0 && heap_bytes_ + bytes > heap_budget_) return false;
    buffers_[unit].rows = new char[bytes];
    heap_bytes_ += bytes;
    return true;
  }
  if (slots_.empty()) return false;
  buffers_[unit].rows = slots_.back();
  slots_.pop_back();
  return true;
}

const Stage::Chunk* Stage::Take() {
  std::unique_lock lock(mutex_);
  while (!stopped_ && next_ < chunks_.size()) {
    const Chunk& chunk = chunks_[next_];
    if (buffers_[chunk.unit].rows == nullptr && !TakeBuffer(chunk.unit)) {
      changed_.wait(lock);
      continue;
    }
    ++next_;
    return &chunk;
  }
  return nullptr;
}

bool Stage::Ready(size_t unit) const {
  std::lock_guard lock(mutex_);
  return buffers_[unit].open_chunks == 0 || !status_.ok();
}

absl::StatusOr<const void*> Stage::WaitFor(size_t unit) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return buffers_[unit].open_chunks == 0 || !status_.ok(); });
  PHX_RETURN_IF_ERROR(status_);
  return buffers_[unit].rows;
}

void Stage::Release(size_t unit) {
  std::lock_guard lock(mutex_);
  char* rows = std::exchange(buffers_[unit].rows, nullptr);
  if (heap_budget_ > 0) {
    delete[] rows;
    heap_bytes_ -= BytesOf(units_[unit]);
  } else {
    slots_.push_back(rows);
  }
  changed_.notify_all();
}

void Stage::Stop() {
  std::lock_guard lock(mutex_);
  stopped_ = true;
  changed_.notify_all();
}

}  // namespace phalanx::worker::model
