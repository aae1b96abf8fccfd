// worker/model/cut.h: which part of a matrix's rows or columns somebody wants.
// Refuses to know: whose part it is. Thread: any. Neighbours: shard.h decides, checkpoint.h reads.
#pragma once

#include <cstdint>

namespace phalanx::worker::model {

// Elements [first, first + count) of a dimension, and zeros behind them up to `width` in all.
struct Cut {
  int64_t first = 0;
  int64_t count = 0;
  int64_t width = 0;   // >= count
};

inline Cut Whole(int64_t size) { return {0, size, size}; }

}  // namespace phalanx::worker::model
