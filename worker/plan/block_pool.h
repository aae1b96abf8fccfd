// worker/plan/block_pool.h: the ledger of KV blocks: who holds each one, which are free, and whose content may be reused.
// Refuses to know: bytes in the cache, sequences, requests. Thread: the engine thread.
// Neighbours: plan/scheduler takes and gives back, plan/invariants checks the laws.
//
// A block is held (references > 0) or lies on the free list. A free block with a key still holds reusable content: it can be taken
// back by a prefix hit until somebody else needs the room. The list is ordered: the front is taken first.
#pragma once

#include <cstdint>
#include <vector>

#include "worker/plan/prefix_index.h"

namespace phalanx::worker::plan {

class BlockPool {
 public:
  explicit BlockPool(int32_t num_blocks);

  int32_t num_blocks() const { return static_cast<int32_t>(blocks_.size()); }
  int32_t free_count() const { return free_count_; }  // free, with or without reusable content
  int32_t references(int32_t block) const { return blocks_[block].references; }
  bool has_key(int32_t block) const { return blocks_[block].has_key; }
  size_t index_size() const { return index_.size(); }

  // Takes the block at the front of the free list, with one reference; its old content is forgotten. There must be one.
  int32_t Take();
  // The block with this content, or -1. Does not hold it.
  int32_t Find(const BlockKey& key) const { return index_.Find(key); }
  // One more reference; a free block leaves the free list.
  void Hold(int32_t block);
  // One reference less. The last one frees the block: with a key to the back of the list, without one to the front.
  void Release(int32_t block);
  // Names the content of a held, full and computed block. No effect if another block has this content already.
  void SetKey(int32_t block, const BlockKey& key);
  // Forgets the content of every block.
  void ClearKeys();
  // The free list in order, for the invariants.
  std::vector<int32_t> FreeList() const;

 private:
  struct Block {
    int32_t references = 0;
    int32_t previous = -1;
    int32_t next = -1;
    bool has_key = false;
    BlockKey key;
  };
  void Link(int32_t block, bool at_front);
  void Unlink(int32_t block);
  void DropKey(Block& block);

  std::vector<Block> blocks_;
  PrefixIndex index_;
  int32_t head_ = -1;
  int32_t tail_ = -1;
  int32_t free_count_ = 0;
};

}  // namespace phalanx::worker::plan
