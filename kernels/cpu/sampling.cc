// sample, logprobs and the penalty state: rows are tasks.
#include "kernels/cpu/sampling.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/device.h"

namespace phalanx::kernels::cpu {
namespace {

inline int64_t Words(int64_t width) { return (width + 31) / 32; }

RowBuffers Carve(char* memory, int64_t vocab) {
  const int64_t step = (vocab * 4 + 63) / 64 * 64;
  return {reinterpret_cast<float*>(memory), reinterpret_cast<float*>(memory + step), reinterpret_cast<float*>(memory + 2 * step),
          reinterpret_cast<int32_t*>(memory + 3 * step)};
}
size_t BufferBytes(int64_t vocab) { return static_cast<size_t>((vocab * 4 + 63) / 64 * 64) * 4; }

bool HasPenalty(const SamplingRow& o) {
  return o.state >= 0 && (o.repetition_penalty != 1.0f || o.frequency_penalty != 0.0f || o.presence_penalty != 0.0f);
}

// Mask, bias, penalties, on a copy of the row.
void ShapeRow(const SampleArgs& a, const SamplingRow& o, float* x) {
  const int64_t width = a.logits.shape[1];
  if (o.mask >= 0) {
    const uint32_t* mask = a.masks + o.mask * Words(width);
    for (int32_t i = 0; i < a.vocab; ++i) {
      if (!((mask[i / 32] >> (i % 32)) & 1)) x[i] = -INFINITY;
    }
  }
  for (int32_t b = o.bias_begin; b < o.bias_end; ++b) {
    if (a.bias_ids[b] >= 0 && a.bias_ids[b] < a.vocab) x[a.bias_ids[b]] += a.bias_values[b];
  }
  if (!HasPenalty(o)) return;
  const uint32_t* seen = a.prompt_seen + o.state * Words(width);
  const int32_t* counts = a.output_counts + o.state * width;
  for (int32_t base = 0; base < a.vocab; base += 32) {
    const int32_t end = std::min(base + 32, a.vocab);
    int32_t any = static_cast<int32_t>(seen[base / 32]);
    for (int32_t i = base; i < end; ++i) any |= counts[i];
    if (any == 0) continue;  // most words of a vocabulary were never used
    for (int32_t i = base; i < end; ++i) {
      if (o.repetition_penalty != 1.0f && (counts[i] > 0 || ((seen[base / 32] >> (i % 32)) & 1))) {
        x[i] = x[i] > 0 ? x[i] / o.repetition_penalty : x[i] * o.repetition_penalty;
      }
      if (counts[i] > 0) {
        x[i] -= o.frequency_penalty * static_cast<float>(counts[i]);
        x[i] -= o.presence_penalty;
      }
    }
  }
}

// The chosen id, or -1.
int32_t ChooseId(const Level& level, const SampleArgs& a, const SamplingRow& o, const float* raw, const RowBuffers& b) {
  bool bad;
  float top = level.row_max(raw, a.vocab, &bad);
  if (bad) return -1;
  const bool greedy = o.temperature < 1e-5f;
  const bool shaped = o.mask >= 0 || o.bias_end > o.bias_begin || HasPenalty(o);
  const bool divided = !greedy && o.temperature != 1.0f;
  const float* x = raw;
  if (shaped || divided) {
    std::copy(raw, raw + a.vocab, b.x);
    x = b.x;
  }
  if (shaped) {
    ShapeRow(a, o, b.x);
    top = level.row_max(x, a.vocab, &bad);
  }
  if (top == -INFINITY) return -1;
  if (divided) {
    level.divide(b.x, a.vocab, o.temperature);
    top /= o.temperature;
  }
  if (level.collect(x, a.vocab, top, b.ids) == 0) return -1;  // only NaN left: a bias of +infinity on a masked id
  const DrawRow row{x, a.vocab, top, b.ids[0], !bad};
  if (greedy) return row.best;
  return DrawGumbel(level, o, row, TruncationCut(level, o, row, b), b);
}

struct Report {
  float* logprob;
  int32_t* rank;
  int32_t* top_ids;
  float* top_logprobs;
};

// Log-softmax, rank and top entries of a raw row. id < 0: there is none. A row without a softmax (NaN, +infinity, all -infinity)
// reports -infinity, rank 0 and ids -1.
void ReportRow(const Level& level, const float* raw, int32_t vocab, int32_t id, int32_t num_top, const Report& out, int32_t* spare) {
  bool bad;
  const float top = level.row_max(raw, vocab, &bad);
  const bool softmax = !bad && top > -INFINITY;
  const double normaliser = softmax ? top + std::log(level.exp_sum(raw, vocab, top)) : 0.0;
  const bool known = softmax && id >= 0 && id < vocab;
  if (out.logprob != nullptr) *out.logprob = known ? static_cast<float>(raw[id] - normaliser) : -INFINITY;
  if (out.rank != nullptr) *out.rank = known ? 1 + static_cast<int32_t>(level.count_above(raw, vocab, raw[id])) : 0;
  if (out.top_ids == nullptr || out.top_logprobs == nullptr || num_top <= 0) return;
  num_top = std::min(num_top, kMaxTopLogprobs);
  const int32_t there = softmax ? std::min(num_top, vocab) : 0;
  if (there > 0) TopIds(level, raw, vocab, there, spare, out.top_ids);
  for (int32_t i = 0; i < there; ++i) out.top_logprobs[i] = static_cast<float>(raw[out.top_ids[i]] - normaliser);
  for (int32_t i = there; i < num_top; ++i) out.top_ids[i] = -1, out.top_logprobs[i] = -INFINITY;
}

Code CheckLogits(Device* device, const Tensor& logits, int32_t vocab) {
  if (logits.rank != 2 || logits.dtype != kF32 || logits.stride[1] != 1 || vocab < 1 || vocab > logits.shape[1]) {
    return device->Fail(kBadShape, "logits: vocabulary %d, dtype %d, rank %d", vocab, logits.dtype, logits.rank);
  }
  return device->ReserveThreads(BufferBytes(vocab)) ? kOk : device->Fail(kOutOfMemory, "sampling: no memory for a row of %d", vocab);
}

template <class T>
T* Offset(T* base, int64_t by) {
  return base == nullptr ? nullptr : base + by;
}

}  // namespace

Code SamplingStateSet(Device* device, int32_t width, uint32_t* prompt_seen, int32_t* output_counts, int32_t state,
                      const int32_t* prompt_ids, int32_t num_prompt, const int32_t* output_ids, int32_t num_output, Stream) {
  if (width < 1 || state < 0) return device->Fail(kBadShape, "sampling_state_set: width %d, state %d", width, state);
  uint32_t* seen = prompt_seen + state * Words(width);
  int32_t* counts = output_counts + static_cast<int64_t>(state) * width;
  std::fill(seen, seen + Words(width), 0u);
  std::fill(counts, counts + width, 0);
  for (int32_t i = 0; i < num_prompt; ++i) {
    if (prompt_ids[i] >= 0 && prompt_ids[i] < width) seen[prompt_ids[i] / 32] |= 1u << (prompt_ids[i] % 32);
  }
  for (int32_t i = 0; i < num_output; ++i) {
    if (output_ids[i] >= 0 && output_ids[i] < width) ++counts[output_ids[i]];
  }
  return kOk;
}

Code Sample(Device* device, const SampleArgs* args, Stream) {
  const SampleArgs& a = *args;
  if (Code code = CheckLogits(device, a.logits, a.vocab); code != kOk) return code;
  for (int64_t r = 0; r < a.logits.shape[0]; ++r) {
    const SamplingRow& o = a.options[r];
    if ((o.mask >= 0 && a.masks == nullptr) || (o.state >= 0 && (a.prompt_seen == nullptr || a.output_counts == nullptr)) ||
        (o.bias_end > o.bias_begin && (a.bias_ids == nullptr || a.bias_values == nullptr)) ||
        (o.num_logprobs >= 0 && a.out_logprobs == nullptr)) {
      return device->Fail(kBadShape, "sample: row %lld names a table that is null", static_cast<long long>(r));
    }
  }
  device->pool.For(static_cast<int>(a.logits.shape[0]), [&](int row, int thread) {
    const RowBuffers b = Carve(device->thread_scratch[thread].Get(0), a.vocab);
    const SamplingRow& o = a.options[row];
    const float* raw = static_cast<const float*>(a.logits.data) + row * a.logits.stride[0];
    const int32_t id = ChooseId(*device->level, a, o, raw, b);
    a.out_ids[row] = id;
    if (id >= 0 && o.state >= 0) ++a.output_counts[o.state * a.logits.shape[1] + id];
    if (o.num_logprobs < 0) return;
    const Report out{a.out_logprobs + row, Offset(a.out_ranks, row), Offset(a.out_top_ids, int64_t{row} * kMaxTopLogprobs),
                     Offset(a.out_top_logprobs, int64_t{row} * kMaxTopLogprobs)};
    ReportRow(*device->level, raw, a.vocab, id, o.num_logprobs, out, b.ids);
  });
  return kOk;
}

Code Logprobs(Device* device, const LogprobArgs* args, Stream) {
  const LogprobArgs& a = *args;
  if (Code code = CheckLogits(device, a.logits, a.vocab); code != kOk) return code;
  device->pool.For(static_cast<int>(a.logits.shape[0]), [&](int row, int thread) {
    const RowBuffers b = Carve(device->thread_scratch[thread].Get(0), a.vocab);
    const Report out{a.out_logprobs + row, Offset(a.out_ranks, row), Offset(a.out_top_ids, int64_t{row} * kMaxTopLogprobs),
                     Offset(a.out_top_logprobs, int64_t{row} * kMaxTopLogprobs)};
    ReportRow(*device->level, static_cast<const float*>(a.logits.data) + row * a.logits.stride[0], a.vocab, a.ids[row],
              a.num_logprobs[row], out, b.ids);
  });
  return kOk;
}

}  // namespace phalanx::kernels::cpu
