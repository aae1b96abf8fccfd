// worker/model/shard.h: which part of a decoder each rank of a group holds.
// Refuses to know: files, devices, how ranks talk. Thread: any (pure functions).
// Neighbours: weights.cc reads these parts, decoder.cc works with their widths.
//
// Source of the scheme: Shoeybi et al., "Megatron-LM", 2019. Matrices into a layer (q, k, v, gate, up) are cut by rows, those out of it (o,
// down) by columns, so that a layer needs one sum after attention and one after the MLP. The head is cut by rows of the vocabulary; the
// embedding and the norms are whole on every rank.
//
// All ranks have the same widths, so that they make the same calls. What does not divide is filled up with zeros, which add nothing to a
// sum: a padded query head meets zero columns of o, a padded element of the MLP is silu(0) * 0, a padded id's logit is dropped.
#pragma once

#include "services/status.h"
#include "worker/model/cut.h"
#include "worker/model/model.h"

namespace phalanx::worker::model {

struct Shard {
  int rank = 0;
  int size = 1;
  int32_t heads = 0;      // query heads of this rank, padding included
  int32_t kv_heads = 0;   // KV heads, likewise; with fewer than ranks, several ranks hold the same one
  Cut q;                  // rows of q_proj, columns of o_proj
  Cut kv;                 // rows of k_proj and v_proj
  Cut inner;              // rows of gate_proj and up_proj, columns of down_proj
  Cut vocab;              // rows of lm_head
};

// A rank's query heads are those of its KV heads. With fewer KV heads than ranks, `size` / num_kv_heads ranks share a KV head and its query
// heads. Errors: kInvalidArgument if any rank would have no head.
absl::StatusOr<Shard> MakeShard(const ModelConfig& config, int rank, int size);

// The part of `total` elements that rank `rank` holds: equal parts where they divide, else parts of a multiple of 16, the last ones
// shorter or empty.
Cut EvenCut(int64_t total, int rank, int size);

}  // namespace phalanx::worker::model
