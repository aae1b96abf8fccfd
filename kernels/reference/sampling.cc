// The twin's sampling: a row is copied, sorted and walked in the contract's order.
#include <algorithm>
#include <vector>

#include "kernels/reference/reference.h"

namespace phalanx::kernels::reference {
namespace {

// Philox4x32-10, first output word. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
uint32_t Philox(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c0, p1 = uint64_t{0xCD9E8D57} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c0;
}

float Gumbel(const SamplingRow& o, int32_t id) {
  const uint32_t word = Philox(o.seed, static_cast<uint32_t>(o.position), static_cast<uint32_t>(id), o.stream, 0);
  const float u = std::min(std::fma(static_cast<float>(word), 0x1p-32f, 0x1p-33f), 0x1.fffffep-1f);
  return -std::log(-std::log1p(-u));
}

bool Bit(const uint32_t* bits, int64_t i) { return (bits[i / 32] >> (i % 32)) & 1; }

// Mask, bias and penalties; x is the row's copy.
void Shape(const SampleArgs& a, const SamplingRow& o, std::vector<float>& x) {
  const int64_t width = a.logits.shape[1], words = (width + 31) / 32;
  if (o.mask >= 0) {
    for (int32_t i = 0; i < a.vocab; ++i) {
      if (!Bit(a.masks + o.mask * words, i)) x[i] = -INFINITY;
    }
  }
  for (int32_t b = o.bias_begin; b < o.bias_end; ++b) {
    if (a.bias_ids[b] >= 0 && a.bias_ids[b] < a.vocab) x[a.bias_ids[b]] += a.bias_values[b];
  }
  if (o.state < 0) return;
  for (int32_t i = 0; i < a.vocab; ++i) {
    const int32_t count = a.output_counts[o.state * width + i];
    if (o.repetition_penalty != 1.0f && (count > 0 || Bit(a.prompt_seen + o.state * words, i))) {
      x[i] = x[i] > 0 ? x[i] / o.repetition_penalty : x[i] * o.repetition_penalty;
    }
    if (count > 0) {
      x[i] -= o.frequency_penalty * static_cast<float>(count);
      x[i] -= o.presence_penalty;
    }
  }
}

// The smallest value that min-p, top-k and top-p leave. `x` is divided by the temperature already.
float Cut(const SamplingRow& o, const std::vector<float>& x) {
  std::vector<float> sorted;
  for (float v : x) {
    if (v > -INFINITY) sorted.push_back(v);
  }
  std::sort(sorted.begin(), sorted.end(), [](float a, float b) { return a > b; });
  const float top = sorted[0];
  float cut = -INFINITY;
  if (o.min_p > 0) cut = top + std::log(std::min(o.min_p, 1.0f));
  if (o.top_k > 0 && o.top_k < static_cast<int64_t>(sorted.size())) cut = std::max(cut, sorted[o.top_k - 1]);
  if (o.top_p >= 1.0f) return cut;
  double total = 0, before = 0, larger = 0;
  for (float v : sorted) total += v >= cut ? std::exp(static_cast<double>(v) - top) : 0.0;
  float kept = top;
  for (size_t i = 0; i < sorted.size() && sorted[i] >= cut; ++i) {
    if (i > 0 && sorted[i] < sorted[i - 1]) larger = before;  // mass of the strictly larger ones
    if (i > 0 && larger >= o.top_p * total) break;
    kept = sorted[i];
    before += std::exp(static_cast<double>(sorted[i]) - top);
  }
  return std::max(cut, kept);
}

int32_t ArgMax(const std::vector<float>& x) {
  int32_t best = -1;
  for (size_t i = 0; i < x.size(); ++i) {
    if (x[i] > -INFINITY && (best < 0 || x[i] > x[best])) best = static_cast<int32_t>(i);
  }
  return best;
}

int32_t Draw(const SampleArgs& a, const SamplingRow& o, std::vector<float> x) {
  for (float v : x) {
    if (std::isnan(v) || v == INFINITY) return -1;
  }
  Shape(a, o, x);
  const int32_t best = ArgMax(x);
  if (best < 0 || o.temperature < 1e-5f) return best;
  for (float& v : x) v /= o.temperature;
  const float cut = Cut(o, x);
  int32_t chosen = -1;
  float top = -INFINITY;
  for (size_t i = 0; i < x.size(); ++i) {
    if (x[i] < cut || x[i] == -INFINITY) continue;
    const float noisy = x[i] + Gumbel(o, static_cast<int32_t>(i));
    if (chosen < 0 || noisy > top) chosen = static_cast<int32_t>(i), top = noisy;
  }
  return chosen;
}

// Log-softmax, rank and top entries of a raw row; `id` < 0 means that there was no choice.
void Report(const std::vector<float>& raw, int32_t id, int32_t num_top, float* logprob, int32_t* rank, int32_t* top_ids, float* top_logprobs) {
  double top = -INFINITY, sum = 0;
  bool softmax = true;  // NaN, +infinity or nothing but -infinity: there is none
  for (float v : raw) {
    softmax = softmax && v < INFINITY;
    top = std::max(top, static_cast<double>(v));
  }
  softmax = softmax && top > -INFINITY;
  for (float v : raw) sum += std::exp(v - top);
  const double normaliser = top + std::log(sum);
  const bool known = softmax && id >= 0 && id < static_cast<int32_t>(raw.size());
  if (logprob != nullptr) *logprob = known ? static_cast<float>(raw[id] - normaliser) : -INFINITY;
  if (rank != nullptr) {
    *rank = 0;
    if (known) *rank = 1 + static_cast<int32_t>(std::count_if(raw.begin(), raw.end(), [&](float v) { return v > raw[id]; }));
  }
  if (top_ids == nullptr || num_top <= 0) return;
  std::vector<int32_t> order(raw.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
  if (softmax) std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return raw[a] > raw[b]; });
  for (int32_t i = 0; i < num_top; ++i) {
    const bool there = softmax && i < static_cast<int32_t>(order.size());
    top_ids[i] = there ? order[i] : -1;
    top_logprobs[i] = there ? static_cast<float>(raw[order[i]] - normaliser) : -INFINITY;
  }
}

std::vector<float> CopyRow(const Tensor& logits, int64_t row, int32_t vocab) {
  const float* data = static_cast<const float*>(logits.data) + row * logits.stride[0];
  return std::vector<float>(data, data + vocab);
}

}  // namespace

Code SamplingStateSet(Device*, int32_t width, uint32_t* prompt_seen, int32_t* output_counts, int32_t state, const int32_t* prompt_ids,
                      int32_t num_prompt, const int32_t* output_ids, int32_t num_output, Stream) {
  const int64_t words = (static_cast<int64_t>(width) + 31) / 32;
  uint32_t* seen = prompt_seen + state * words;
  int32_t* counts = output_counts + static_cast<int64_t>(state) * width;
  std::fill(seen, seen + words, 0u);
  std::fill(counts, counts + width, 0);
  for (int32_t i = 0; i < num_prompt; ++i) {
    if (prompt_ids[i] >= 0 && prompt_ids[i] < width) seen[prompt_ids[i] / 32] |= 1u << (prompt_ids[i] % 32);
  }
  for (int32_t i = 0; i < num_output; ++i) {
    if (output_ids[i] >= 0 && output_ids[i] < width) ++counts[output_ids[i]];
  }
  return kOk;
}

Code Sample(Device*, const SampleArgs* a, Stream) {
  if (a->logits.rank != 2 || a->logits.dtype != kF32 || a->vocab < 1 || a->vocab > a->logits.shape[1]) return kBadShape;
  for (int64_t r = 0; r < a->logits.shape[0]; ++r) {
    const SamplingRow& o = a->options[r];
    const std::vector<float> raw = CopyRow(a->logits, r, a->vocab);
    const int32_t id = Draw(*a, o, raw);
    a->out_ids[r] = id;
    if (id >= 0 && o.state >= 0) ++a->output_counts[o.state * a->logits.shape[1] + id];
    if (o.num_logprobs < 0) continue;
    const bool top = a->out_top_ids != nullptr;
    Report(raw, id, std::min(o.num_logprobs, kMaxTopLogprobs), a->out_logprobs + r, a->out_ranks == nullptr ? nullptr : a->out_ranks + r,
           top ? a->out_top_ids + r * kMaxTopLogprobs : nullptr, top ? a->out_top_logprobs + r * kMaxTopLogprobs : nullptr);
  }
  return kOk;
}

Code Logprobs(Device*, const LogprobArgs* a, Stream) {
  if (a->logits.rank != 2 || a->logits.dtype != kF32 || a->vocab < 1 || a->vocab > a->logits.shape[1]) return kBadShape;
  for (int64_t r = 0; r < a->logits.shape[0]; ++r) {
    Report(CopyRow(a->logits, r, a->vocab), a->ids[r], std::min(a->num_logprobs[r], kMaxTopLogprobs), a->out_logprobs + r, a->out_ranks + r,
           a->out_top_ids + r * kMaxTopLogprobs, a->out_top_logprobs + r * kMaxTopLogprobs);
  }
  return kOk;
}

}  // namespace phalanx::kernels::reference
