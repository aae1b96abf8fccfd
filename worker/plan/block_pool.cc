#include "worker/plan/block_pool.h"

#include "services/check.h"

namespace phalanx::worker::plan {

BlockPool::BlockPool(int32_t num_blocks) : blocks_(num_blocks) {
  index_.Reserve(num_blocks);
  for (int32_t i = 0; i < num_blocks; ++i) Link(i, /*at_front=*/false);
}

int32_t BlockPool::Take() {
  PHX_CHECK(head_ >= 0);
  const int32_t block = head_;
  Unlink(block);
  DropKey(blocks_[block]);
  blocks_[block].references = 1;
  return block;
}

void BlockPool::Hold(int32_t block) {
  Block& b = blocks_[block];
  if (b.references++ == 0) Unlink(block);
}

void BlockPool::Release(int32_t block) {
  Block& b = blocks_[block];
  PHX_CHECK(b.references > 0);
  if (--b.references == 0) Link(block, /*at_front=*/!b.has_key);
}

void BlockPool::SetKey(int32_t block, const BlockKey& key) {
  Block& b = blocks_[block];
  PHX_CHECK(b.references > 0);
  if (b.has_key || !index_.Insert(key, block)) return;
  b.has_key = true;
  b.key = key;
}

void BlockPool::ClearKeys() {
  for (Block& b : blocks_) DropKey(b);
}

std::vector<int32_t> BlockPool::FreeList() const {
  std::vector<int32_t> out;
  for (int32_t i = head_; i >= 0; i = blocks_[i].next) out.push_back(i);
  return out;
}

void BlockPool::Link(int32_t block, bool at_front) {
  Block& b = blocks_[block];
  b.previous = at_front ? -1 : tail_;
  b.next = at_front ? head_ : -1;
  (b.previous >= 0 ? blocks_[b.previous].next : head_) = block;
  (b.next >= 0 ? blocks_[b.next].previous : tail_) = block;
  ++free_count_;
}

void BlockPool::Unlink(int32_t block) {
  Block& b = blocks_[block];
  (b.previous >= 0 ? blocks_[b.previous].next : head_) = b.next;
  (b.next >= 0 ? blocks_[b.next].previous : tail_) = b.previous;
  b.previous = b.next = -1;
  --free_count_;
}

void BlockPool::DropKey(Block& block) {
  if (!block.has_key) return;
  index_.Erase(block.key);
  block.has_key = false;
}

}  // namespace phalanx::worker::plan
