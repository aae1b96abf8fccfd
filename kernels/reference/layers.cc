// The twin's matrix products, norms and pointwise operations.
#include <vector>

#include "kernels/reference/reference.h"

namespace phalanx::kernels::reference {

Code Embedding(Device*, const Weight* weight, const int32_t* ids, Tensor out, Stream) {
  if (!IsModelDType(out.dtype) || Columns(out) != weight->k) return kBadShape;
  for (int64_t r = 0; r < Rows(out); ++r) {
    bool known = ids[r] >= 0 && ids[r] < weight->n;
    for (int64_t c = 0; c < weight->k; ++c) {
      Store(out.data, out.dtype, RowOffset(out, r) + c, known ? Load(weight->data, weight->dtype, ids[r] * weight->k + c) : 0.0f);
    }
  }
  return kOk;
}

// One row: out = round(x / rms) * gamma.
static void NormRow(const void* x, DType dtype, int64_t x_at, const void* gamma, float epsilon, int64_t n, void* out, int64_t out_at) {
  double squares = 0;
  for (int64_t i = 0; i < n; ++i) {
    double v = Load(x, dtype, x_at + i);
    squares += v * v;
  }
  double scale = 1.0 / std::sqrt(squares / static_cast<double>(n) + epsilon);
  for (int64_t i = 0; i < n; ++i) {
    float normalised = RoundTo(dtype, static_cast<float>(Load(x, dtype, x_at + i) * scale));
    Store(out, dtype, out_at + i, normalised * Load(gamma, dtype, i));
  }
}

Code RmsNorm(Device*, Tensor x, const void* gamma, float epsilon, Tensor out, Stream) {
  if (!IsModelDType(x.dtype) || x.dtype != out.dtype || Rows(x) != Rows(out) || Columns(x) != Columns(out)) return kBadShape;
  for (int64_t r = 0; r < Rows(x); ++r) {
    NormRow(x.data, x.dtype, RowOffset(x, r), gamma, epsilon, Columns(x), out.data, RowOffset(out, r));
  }
  return kOk;
}

Code AddRmsNorm(Device* device, Tensor residual, Tensor x, const void* gamma, float epsilon, Tensor out, Stream stream) {
  if (!IsModelDType(x.dtype) || residual.dtype != x.dtype || Rows(residual) != Rows(x) || Columns(residual) != Columns(x)) return kBadShape;
  for (int64_t r = 0; r < Rows(x); ++r) {
    for (int64_t c = 0; c < Columns(x); ++c) {
      int64_t at = RowOffset(residual, r) + c;
      Store(residual.data, x.dtype, at, Load(residual.data, x.dtype, at) + Load(x.data, x.dtype, RowOffset(x, r) + c));
    }
  }
  return RmsNorm(device, residual, gamma, epsilon, out, stream);
}

Code Linear(Device* device, const LinearArgs* a, Stream stream) {
  const Weight& w = a->weight;
  if (a->norm_gamma != nullptr) {
    if (Columns(a->x) != w.k) return kBadShape;
    LinearArgs plain = *a;
    plain.norm_gamma = nullptr;
    std::vector<char> normed(static_cast<size_t>(Rows(a->x) * w.k) * DTypeBytes(a->x.dtype));
    plain.x = Dense(normed.data(), a->x.dtype, 2, Rows(a->x), w.k);
    const Code code = RmsNorm(device, a->x, a->norm_gamma, a->norm_epsilon, plain.x, stream);
    return code == kOk ? Linear(device, &plain, stream) : code;
  }
  const int64_t m = Rows(a->x), outputs = a->epilogue == kEpilogueSiluMul ? w.n / 2 : w.n;
  if (!IsModelDType(a->x.dtype) || !IsModelDType(a->out.dtype) || !IsModelDType(w.dtype) || Columns(a->x) != w.k ||
      Columns(a->out) != outputs || Rows(a->out) != m || (a->epilogue == kEpilogueSiluMul && w.n % 2 != 0)) {
    return kBadShape;
  }
  std::vector<double> row(w.n);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t n = 0; n < w.n; ++n) {
      double sum = 0;
      for (int64_t k = 0; k < w.k; ++k) {
        sum += static_cast<double>(Load(a->x.data, a->x.dtype, RowOffset(a->x, i) + k)) * Load(w.data, w.dtype, n * w.k + k);
      }
      row[n] = sum + (a->bias != nullptr ? static_cast<const float*>(a->bias)[n] : 0.0f);
    }
    for (int64_t n = 0; n < outputs; ++n) {
      int64_t at = RowOffset(a->out, i) + n;
      double value = row[n];
      if (a->epilogue == kEpilogueSiluMul) value = Silu(row[2 * n]) * row[2 * n + 1];
      if (a->epilogue == kEpilogueAdd) value += Load(a->out.data, a->out.dtype, at);
      Store(a->out.data, a->out.dtype, at, static_cast<float>(value));
    }
  }
  return kOk;
}

Code SiluMul(Device*, Tensor gate_up, Tensor out, Stream) {
  const int64_t n = Columns(out);
  if (!IsModelDType(out.dtype) || gate_up.dtype != out.dtype || Columns(gate_up) != 2 * n || Rows(gate_up) != Rows(out)) return kBadShape;
  for (int64_t r = 0; r < Rows(out); ++r) {
    for (int64_t c = 0; c < n; ++c) {
      double gate = Load(gate_up.data, out.dtype, RowOffset(gate_up, r) + c);
      double up = Load(gate_up.data, out.dtype, RowOffset(gate_up, r) + n + c);
      Store(out.data, out.dtype, RowOffset(out, r) + c, static_cast<float>(Silu(gate) * up));
    }
  }
  return kOk;
}

Code GatherRows(Device*, Tensor x, const int32_t* rows, Tensor out, Stream) {
  if (x.dtype != out.dtype || Columns(x) != Columns(out)) return kBadShape;
  const int64_t bytes = static_cast<int64_t>(DTypeBytes(x.dtype));
  for (int64_t r = 0; r < Rows(out); ++r) {
    if (rows[r] < 0 || rows[r] >= Rows(x)) return kBadShape;
    std::memcpy(static_cast<char*>(out.data) + RowOffset(out, r) * bytes,
                static_cast<const char*>(x.data) + RowOffset(x, rows[r]) * bytes, Columns(x) * bytes);
  }
  return kOk;
}

Code TakeIds(Device*, int32_t* ids, const int32_t* from, const int32_t* taken, int32_t count, Stream) {
  for (int32_t i = 0; i < count; ++i) {
    if (from[i] >= 0) ids[i] = taken[from[i]];
  }
  return kOk;
}

Code RopeAppend(Device*, const RopeAppendArgs* a, const StepLayout* layout, Stream) {
  const KvLayer& kv = a->cache;
  const DType dtype = a->qkv.dtype;
  const int64_t hd = kv.head_dim;
  if (!IsModelDType(dtype) || a->q.dtype != dtype || !IsModelDType(kv.dtype) || a->rotary_dim > hd || a->rotary_dim % 2 != 0 ||
      Columns(a->qkv) != (a->heads + 2 * kv.kv_heads) * hd) {
    return kBadShape;
  }
  const int half = a->rotary_dim / 2;
  std::vector<float> head(hd), turned(hd);
  for (int64_t t = 0; t < layout->num_tokens; ++t) {
    const float* angles = a->cos_sin + static_cast<int64_t>(layout->positions[t]) * a->rotary_dim;
    const int32_t slot = layout->slots[t];
    for (int h = 0; h < a->heads + 2 * kv.kv_heads; ++h) {
      const bool is_q = h < a->heads, is_v = h >= a->heads + kv.kv_heads;
      const void* gamma = is_q ? a->q_norm : is_v ? nullptr : a->k_norm;
      for (int64_t i = 0; i < hd; ++i) head[i] = Load(a->qkv.data, dtype, RowOffset(a->qkv, t) + h * hd + i);
      if (gamma != nullptr) {
        double squares = 0;
        for (float v : head) squares += static_cast<double>(v) * v;
        double scale = 1.0 / std::sqrt(squares / static_cast<double>(hd) + a->norm_epsilon);
        for (int64_t i = 0; i < hd; ++i) {
          head[i] = RoundTo(dtype, RoundTo(dtype, static_cast<float>(head[i] * scale)) * Load(gamma, dtype, i));
        }
      }
      turned = head;
      if (!is_v) {
        for (int i = 0; i < half; ++i) {
          double c = angles[i], s = angles[half + i];
          turned[i] = static_cast<float>(head[i] * c - head[i + half] * s);
          turned[i + half] = static_cast<float>(head[i + half] * c + head[i] * s);
        }
      }
      if (is_q) {
        for (int64_t i = 0; i < hd; ++i) Store(a->q.data, dtype, t * a->q.stride[0] + h * a->q.stride[1] + i, turned[i]);
      } else if (slot >= 0) {
        const int kv_head = is_v ? h - a->heads - kv.kv_heads : h - a->heads;
        const int64_t at = ((slot / kv.block_size * static_cast<int64_t>(kv.kv_heads) + kv_head) * kv.block_size + slot % kv.block_size) * hd;
        for (int64_t i = 0; i < hd; ++i) Store(is_v ? kv.v : kv.k, kv.dtype, at + i, RoundTo(dtype, turned[i]));
      }
    }
  }
  return kOk;
}

}  // namespace phalanx::kernels::reference
