// worker/model/rope.h: the rotary position table: cosines and sines for every position.
// Refuses to know: heads, devices. Thread: any (pure). Neighbours: config gives the numbers, weights.cc uploads the table.
// Source: transformers' modeling_rope_utils (default, linear, llama3); GGUF's rope_freqs divisors.
#pragma once

#include <vector>

#include "worker/model/model.h"

namespace phalanx::worker::model {

// [head_dim / 2] angle per position, in fp32 and rounded where transformers rounds.
std::vector<float> InverseFrequencies(const ModelConfig& config);

// Row `position` of the table: head_dim / 2 cosines, then as many sines, rounded to `dtype` (kBF16 or kF32), kept as fp32.
void FillRopeRow(const std::vector<float>& inverse_frequencies, int32_t position, kernels::DType dtype, float* out);

}  // namespace phalanx::worker::model
