// Operations that treat each row alone: embedding, norms, silu * up, gather.
#include <algorithm>
#include <cstring>

#include "kernels/cpu/device.h"
#include "kernels/cpu/pack.h"

namespace phalanx::kernels::cpu {
namespace {

// Rows of few elements are not worth waking a thread for: tasks have at least this many elements.
constexpr int64_t kTaskElements = 32768;

template <class Fn>
void ForRows(Device* device, int64_t rows, int64_t columns, Fn fn) {
  const int64_t per_task = std::max<int64_t>(1, kTaskElements / std::max<int64_t>(columns, 1));
  const int64_t tasks = (rows + per_task - 1) / per_task;
  device->pool.For(static_cast<int>(tasks), [&](int task, int thread) {
    const int64_t end = std::min(rows, (task + 1) * per_task);
    for (int64_t row = task * per_task; row < end; ++row) fn(row, thread);
  });
}

// Checks that tensors have the same rows and columns and a model dtype.
bool Alike(const Tensor& a, int64_t* a_stride, const Tensor& b, int64_t* b_stride) {
  return IsModelDType(a.dtype) && a.dtype == b.dtype && RowStride(a, a_stride) && RowStride(b, b_stride) && Rows(a) == Rows(b) &&
         Columns(a) == Columns(b) && Columns(a) > 0;
}

}  // namespace

Code Embedding(Device* device, const Weight* weight, const int32_t* ids, Tensor out, Stream) {
  int64_t stride;
  if (!IsModelDType(out.dtype) || !RowStride(out, &stride) || Columns(out) != weight->k || weight->layout == 0) {
    return device->Fail(kBadShape, "embedding: out has %lld columns, the weight %lld", static_cast<long long>(Columns(out)), static_cast<long long>(weight->k));
  }
  if (!device->ReserveThreads(static_cast<size_t>(weight->k) * 4)) return device->Fail(kOutOfMemory, "embedding: no memory");
  ForRows(device, Rows(out), weight->k, [&](int64_t row, int thread) {
    float* values = device->thread_scratch[thread].Get<float>(0);
    if (ids[row] >= 0 && ids[row] < weight->n) {
      UnpackRow(*weight, ids[row], values);
    } else {
      std::fill(values, values + weight->k, 0.0f);
    }
    device->level->from_f32(values, weight->k, out.dtype, At(out, row * stride));
  });
  return kOk;
}

Code RmsNorm(Device* device, Tensor x, const void* gamma, float epsilon, Tensor out, Stream) {
  int64_t from, to;
  if (!Alike(x, &from, out, &to)) return device->Fail(kBadShape, "rms_norm: x and out differ");
  ForRows(device, Rows(x), Columns(x), [&](int64_t row, int) {
    device->level->rms_norm(At(x, row * from), x.dtype, gamma, epsilon, Columns(x), At(out, row * to));
  });
  return kOk;
}

Code AddRmsNorm(Device* device, Tensor residual, Tensor x, const void* gamma, float epsilon, Tensor out, Stream) {
  int64_t sum, from, to;
  if (!Alike(x, &from, out, &to) || !Alike(residual, &sum, x, &from)) return device->Fail(kBadShape, "add_rms_norm: operands differ");
  ForRows(device, Rows(x), Columns(x), [&](int64_t row, int) {
    device->level->add(At(residual, row * sum), At(x, row * from), x.dtype, Columns(x));
    device->level->rms_norm(At(residual, row * sum), x.dtype, gamma, epsilon, Columns(x), At(out, row * to));
  });
  return kOk;
}

Code SiluMul(Device* device, Tensor gate_up, Tensor out, Stream) {
  int64_t from, to;
  const int64_t n = Columns(out);
  if (!IsModelDType(out.dtype) || gate_up.dtype != out.dtype || !RowStride(gate_up, &from) || !RowStride(out, &to) ||
      Columns(gate_up) != 2 * n || Rows(gate_up) != Rows(out)) {
    return device->Fail(kBadShape, "silu_mul: gate_up must be twice as wide as out");
  }
  ForRows(device, Rows(out), n, [&](int64_t row, int) {
    device->level->silu_mul(At(gate_up, row * from), At(gate_up, row * from + n), out.dtype, n, At(out, row * to));
  });
  return kOk;
}

Code GatherRows(Device* device, Tensor x, const int32_t* rows, Tensor out, Stream) {
  int64_t from, to;
  if (x.dtype != out.dtype || !RowStride(x, &from) || !RowStride(out, &to) || Columns(x) != Columns(out)) {
    return device->Fail(kBadShape, "gather_rows: x and out differ");
  }
  for (int64_t r = 0; r < Rows(out); ++r) {
    if (rows[r] < 0 || rows[r] >= Rows(x)) return device->Fail(kBadShape, "gather_rows: row %d of %lld", rows[r], static_cast<long long>(Rows(x)));
    std::memcpy(At(out, r * to), At(x, rows[r] * from), static_cast<size_t>(Columns(x)) * DTypeBytes(x.dtype));
  }
  return kOk;
}

Code TakeIds(Device*, int32_t* ids, const int32_t* from, const int32_t* taken, int32_t count, Stream) {
  for (int32_t i = 0; i < count; ++i) {
    if (from[i] >= 0) ids[i] = taken[from[i]];
  }
  return kOk;
}

}  // namespace phalanx::kernels::cpu
