#include "worker/plan/sequence.h"

#include <span>

namespace phalanx::worker::plan {

void ExtendKeys(Sequence& sequence, int32_t count, int32_t block_size, const BlockHasher& hasher) {
  while (static_cast<int32_t>(sequence.keys.size()) < count) {
    const size_t done = sequence.keys.size();
    const BlockKey parent = done == 0 ? hasher.Root(sequence.request.cache_salt) : sequence.keys.back();
    sequence.keys.push_back(hasher.Next(parent, std::span(sequence.ids).subspan(done * block_size, block_size)));
  }
}

}  // namespace phalanx::worker::plan
