// Linear layers: cuts m x n into tasks and k into cache blocks, and lets the level's tile do the arithmetic.
//
// One tile of rows (decode): a task is a run of panels, read once from memory: 32 k bytes a panel, 2 k flops a weight.
// More rows (prefill): a task is 16 row tiles x 16 panels. For each block of k a panel (16 KB of bf16) stays in L1 while the
// task's rows (in L2) pass it. Sums rest in a task-local f32 block between the blocks of k, then the epilogue writes them out.
#include <algorithm>

#include "kernels/cpu/device.h"
#include "kernels/cpu/pack.h"

namespace phalanx::kernels::cpu {
namespace {

constexpr int64_t kKBlock = 640;       // most k of one pass: a bf16 panel block of 20 KB
constexpr int64_t kRowTiles = 16;      // row tiles of a task
constexpr int64_t kTaskPanels = 16;    // panels of a task with several row tiles
constexpr int64_t kSumFloats = 32768;  // most floats of a task's sums

struct Product {
  const LinearArgs* args;
  const GemmKernel* kernel;
  const Level* level;
  int64_t m, k, padded_k, x_stride, out_stride;
  int64_t panels, panel_bytes;
  int64_t task_rows, task_panels, row_tasks, panel_tasks;
  char* x;  // packed, row tiles one after another
};

int64_t XTileBytes(const Product& p) { return p.kernel->tile_rows * p.padded_k * p.kernel->x_element_bytes; }

void PackRows(const Product& p, int64_t tile) {
  const int64_t row = tile * p.kernel->tile_rows, rows = std::min<int64_t>(p.kernel->tile_rows, p.m - row);
  p.kernel->pack_x(At(p.args->x, row * p.x_stride), p.args->x.dtype, p.x_stride, static_cast<int>(rows), p.k, p.padded_k,
                   p.x + tile * XTileBytes(p));
}

void Finish(const Product& p, int64_t row, int64_t rows, int64_t panel, int64_t panels, float* sums) {
  const LinearArgs& a = *p.args;
  const int64_t column = panel * kPanel, columns = std::min(panels * kPanel, a.weight.n - column);
  FinishArgs f{};
  f.columns = columns;
  f.bias = a.bias == nullptr ? nullptr : static_cast<const float*>(a.bias) + column;
  f.epilogue = a.epilogue;
  f.dtype = a.out.dtype;
  for (int64_t r = 0; r < rows; ++r) {
    f.sums = sums + r * panels * kPanel;
    f.out = At(a.out, (row + r) * p.out_stride + (a.epilogue == kEpilogueSiluMul ? column / 2 : column));
    p.level->finish(f);
  }
}

// What a row tile fetches while it computes: the tiles of a group of panels share the fetching of the `panels` next ones, so that
// memory and arithmetic overlap. `weight` is the first of those.
void Fetch(TileArgs* t, const char* weight, int64_t panels, int64_t tile, int64_t tiles, int64_t k_bytes) {
  const int64_t share = std::max<int64_t>(1, tiles / std::max<int64_t>(1, panels)), panel = tile / share, step = 2 * k_bytes / share;
  t->next = tiles > 1 && panel < panels ? weight + panel * t->panel_bytes + tile % share * step * (t->k / 2) : nullptr;
  t->next_step = static_cast<int>(step);
}

void RunTask(const Product& p, int64_t task, float* sums) {
  const int64_t row = task % p.row_tasks * p.task_rows, rows = std::min(p.task_rows, p.m - row);
  const int64_t panel = task / p.row_tasks * p.task_panels, panels = std::min(p.task_panels, p.panels - panel);
  const int tile_rows = p.kernel->tile_rows;
  const bool one_tile = rows <= tile_rows;
  const int64_t tiles = (rows + tile_rows - 1) / tile_rows;
  const int64_t passes = one_tile ? 1 : (p.padded_k + kKBlock - 1) / kKBlock;
  const int64_t k_block = RoundUp((p.padded_k + passes - 1) / passes, kKAlign);
  const int64_t group = one_tile ? panels : p.kernel->tile_panels;
  const int64_t k_bytes = kPanel * static_cast<int64_t>(DTypeBytes(p.args->weight.dtype));
  TileArgs t{};
  t.panel_bytes = p.panel_bytes;
  t.c_stride = panels * kPanel;
  for (int64_t k = 0; k < p.padded_k; k += k_block) {
    t.k = std::min(k_block, p.padded_k - k);
    t.first = k == 0;
    for (int64_t g = 0; g < panels; g += group) {
      t.panels = static_cast<int>(std::min(group, panels - g));
      t.weight = static_cast<const char*>(p.args->weight.data) + (panel + g) * p.panel_bytes + k * k_bytes;
      for (int64_t r = 0; r < rows; r += tile_rows) {
        t.rows = static_cast<int>(std::min<int64_t>(tile_rows, rows - r));
        t.x = p.x + (row + r) / tile_rows * XTileBytes(p) + k * t.rows * p.kernel->x_element_bytes;
        t.c = sums + r * t.c_stride + g * kPanel;
        Fetch(&t, t.weight + group * p.panel_bytes, std::clamp<int64_t>(panels - g - group, 0, group), r / tile_rows, tiles, k_bytes);
        p.kernel->tile(t);
      }
    }
  }
  Finish(p, row, rows, panel, panels, sums);
}

// Tasks: as large as the caches like, but at least a few for each thread.
void Cut(Product* p, int threads) {
  const int64_t tile_rows = p->kernel->tile_rows;
  p->task_rows = p->m <= tile_rows ? p->m : std::min(RoundUp(p->m, tile_rows), kRowTiles * tile_rows);
  p->row_tasks = (p->m + p->task_rows - 1) / p->task_rows;
  const int64_t most = p->m <= tile_rows ? kSumFloats / (kPanel * p->m) : kTaskPanels;
  const int64_t wanted = threads == 1 ? p->panels : p->panels * p->row_tasks / (4 * threads);
  p->task_panels = std::max<int64_t>(std::min({most, wanted, p->panels}), std::min<int64_t>(4, p->panels));
  if (p->m <= tile_rows) p->task_panels = std::min(RoundUp(p->task_panels, 4), most / 4 * 4);  // whole tiles of four panels
  p->panel_tasks = (p->panels + p->task_panels - 1) / p->task_panels;
}

// The rows are normalised once, not by every thread: that is cheaper than it is to fuse.
Code LinearAfterNorm(Device* device, LinearArgs args, Stream stream) {
  if (args.norm_scratch == nullptr) return device->Fail(kBadShape, "linear: norm_scratch is missing");
  const Tensor normed = Dense(args.norm_scratch, args.x.dtype, 2, Rows(args.x), Columns(args.x));
  if (const Code code = RmsNorm(device, args.x, args.norm_gamma, args.norm_epsilon, normed, stream); code != kOk) return code;
  args.x = normed;
  args.norm_gamma = nullptr;
  return Linear(device, &args, stream);
}

}  // namespace

Code Linear(Device* device, const LinearArgs* args, Stream stream) {
  if (args->norm_gamma != nullptr) return LinearAfterNorm(device, *args, stream);
  const Weight& w = args->weight;
  Product p{};
  const bool silu = args->epilogue == kEpilogueSiluMul;
  if (!IsModelDType(args->x.dtype) || !IsModelDType(args->out.dtype) || !RowStride(args->x, &p.x_stride) ||
      !RowStride(args->out, &p.out_stride) || Rows(args->x) != Rows(args->out) || Columns(args->x) != w.k ||
      Columns(args->out) != (silu ? w.n / 2 : w.n) || (silu && w.n % 2 != 0) || w.k < 1 || w.n < 1) {
    return device->Fail(kBadShape, "linear: x [%lld, %lld], weight [%lld, %lld], out [%lld, %lld]", static_cast<long long>(Rows(args->x)),
                        static_cast<long long>(Columns(args->x)), static_cast<long long>(w.n), static_cast<long long>(w.k),
                        static_cast<long long>(Rows(args->out)), static_cast<long long>(Columns(args->out)));
  }
  if (w.layout != (w.dtype == kBF16 ? kLayoutBf16 : kLayoutF32)) {
    return device->Fail(kBadShape, "linear: weight layout %d is not packed here", w.layout);
  }
  p.args = args;
  p.level = device->level;
  p.kernel = w.dtype == kF32 ? &p.level->f32 : args->x.dtype == kF32 ? &p.level->bf16_f32x : &p.level->bf16;
  p.m = Rows(args->x);
  p.k = w.k;
  p.padded_k = PaddedK(w.k, w.dtype);
  p.panels = Panels(w.n);
  p.panel_bytes = PanelBytes(w.k, w.dtype);
  if (p.m == 0) return kOk;
  Cut(&p, device->pool.threads());
  const int64_t tiles = (p.m + p.kernel->tile_rows - 1) / p.kernel->tile_rows;
  p.x = device->shared.Get(static_cast<size_t>(tiles * XTileBytes(p)));
  if (p.x == nullptr || !device->ReserveThreads(static_cast<size_t>(p.task_rows * p.task_panels * kPanel * 4))) {
    return device->Fail(kOutOfMemory, "linear: no memory for %lld rows", static_cast<long long>(p.m));
  }
  if (tiles < 8) {
    for (int64_t i = 0; i < tiles; ++i) PackRows(p, i);
  } else {
    device->pool.For(static_cast<int>(tiles), [&](int tile, int) { PackRows(p, tile); });
  }
  device->pool.For(static_cast<int>(p.row_tasks * p.panel_tasks),
                   [&](int task, int thread) { RunTask(p, task, device->thread_scratch[thread].Get<float>(0)); });
  return kOk;
}

}  // namespace phalanx::kernels::cpu
