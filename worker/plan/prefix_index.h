// worker/plan/prefix_index.h: names the content of full KV blocks by a hash chain, and finds the block that holds a content.
// Refuses to know: free lists, reference counts, sequences. Thread: the engine thread.
// Neighbours: plan/block_pool keeps the index in step with its blocks, plan/sequence makes the keys.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string_view>

#include "absl/container/flat_hash_map.h"

namespace phalanx::worker::plan {

// SHA-256 of (the parent's key, this block's token ids). Strong, because a collision would show one tenant's text to another.
struct BlockKey {
  std::array<uint8_t, 32> bytes{};
  bool operator==(const BlockKey&) const = default;
  template <typename H>
  friend H AbslHashValue(H h, const BlockKey& key) {
    uint64_t head;
    std::memcpy(&head, key.bytes.data(), sizeof head);  // uniform already
    return H::combine(std::move(h), head);
  }
};

class BlockHasher {
 public:
  BlockHasher();
  ~BlockHasher();
  // The parent of a sequence's first block. Different salts never share a block.
  BlockKey Root(std::string_view salt) const;
  // The key of a block that holds `ids` (block_size of them) after `parent`. About 0.3 us.
  BlockKey Next(const BlockKey& parent, std::span<const int32_t> ids) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

class PrefixIndex {
 public:
  // The block that holds this content, -1 if none.
  int32_t Find(const BlockKey& key) const {
    auto it = blocks_.find(key);
    return it == blocks_.end() ? -1 : it->second;
  }
  // False if the content already has a block.
  bool Insert(const BlockKey& key, int32_t block) { return blocks_.emplace(key, block).second; }
  void Erase(const BlockKey& key) { blocks_.erase(key); }
  size_t size() const { return blocks_.size(); }
  void Reserve(size_t n) { blocks_.reserve(n); }

 private:
  absl::flat_hash_map<BlockKey, int32_t> blocks_;
};

}  // namespace phalanx::worker::plan
