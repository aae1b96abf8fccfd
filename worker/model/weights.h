// worker/model/weights.h: a decoder's weights on a device, packed the way its kernels want them.
// Refuses to know: the forward pass. Thread: loading runs its own threads inside; the device is called from the caller's thread alone.
// Neighbours: checkpoint.h gives rows, decoder.cc multiplies by what is here.
#pragma once

#include <memory>
#include <vector>

#include "kernels/kernels.h"
#include "services/status.h"
#include "worker/model/device.h"
#include "worker/model/model.h"
#include "worker/model/shard.h"

namespace phalanx::worker::model {

// heads, kv_heads and intermediate are this rank's part of the model, as its Shard says.
struct LayerWeights {
  const void* attention_norm = nullptr;   // [hidden] model dtype
  const void* mlp_norm = nullptr;         // [hidden] model dtype
  const void* q_norm = nullptr;           // [head_dim] model dtype or null
  const void* k_norm = nullptr;
  const float* qkv_bias = nullptr;        // [(heads + 2 kv_heads) head_dim] or null
  const float* o_bias = nullptr;          // [hidden] or null; on rank 0 alone, as it is added once
  const float* gate_up_bias = nullptr;    // [2 intermediate], interleaved as the rows, or null
  const float* down_bias = nullptr;       // [hidden] or null; on rank 0 alone
  kernels::Weight qkv{};                  // [(heads + 2 kv_heads) head_dim, hidden]: q, k, v
  kernels::Weight o{};                    // [hidden, heads head_dim]
  kernels::Weight gate_up{};              // [2 intermediate, hidden]: row 2i = gate i, row 2i + 1 = up i
  kernels::Weight down{};                 // [hidden, intermediate]
};

struct DecoderWeights {
  kernels::Weight embedding{};            // [vocab, hidden]
  kernels::Weight head{};                 // [this rank's part of vocab, hidden]; lies within the embedding when tied, where it can
  const void* final_norm = nullptr;       // [hidden] model dtype
  const float* cos_sin = nullptr;         // [max positions, head_dim]
  std::vector<LayerWeights> layers;
  std::unique_ptr<DeviceMemory> memory;   // owns all of the above
};

// Reads this shard, converts, packs. Of other parts nothing is read but biases. Decoding runs on all cores beside packing. Errors name the
// file and the tensor.
absl::StatusOr<DecoderWeights> LoadWeights(const kernels::Table& table, kernels::Device* device, const ModelConfig& config,
                                           const Shard& shard, const LoadOptions& options);

}  // namespace phalanx::worker::model
