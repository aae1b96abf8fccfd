// gemm_bench [FILE.csv]: times of matrix products at the shapes of two models: the library's first choice, its best choice, ours.
//
// Weights rotate over memory larger than the cache, values are random, calls are replayed from a graph. The file, if given, gets every
// way to cut each product: what TileCost was fitted to. Roofs: 790 TFLOP/s, 3.0 TB/s (an H100's measured product and copy rates).
#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/gemm_tiles.h"

extern "C" const phalanx::kernels::Table* PhalanxKernelTable(uint32_t version);

namespace phalanx::kernels::cuda {
namespace {

constexpr double kRoofFlops = 790e12, kRoofBytes = 3.0e12;
constexpr size_t kPoolBytes = size_t{1400} << 20;

void Must(bool ok, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(cudaGetLastError()));
  std::exit(1);
}
#define MUST(call) Must((call) == 0, #call)

struct Layer {
  const char* name;
  int64_t n, k;
  Epilogue epilogue;
  bool bias;
  DType out;
};
constexpr Layer kLayers[] = {
    {"1.5B qkv", 2048, 1536, kEpilogueNone, true, kBF16},          {"1.5B o", 1536, 1536, kEpilogueAdd, false, kBF16},
    {"1.5B gate+up", 17920, 1536, kEpilogueSiluMul, false, kBF16}, {"1.5B down", 1536, 8960, kEpilogueAdd, false, kBF16},
    {"1.5B head", 151936, 1536, kEpilogueNone, false, kF32},       {"7B qkv", 4608, 3584, kEpilogueNone, true, kBF16},
    {"7B o", 3584, 3584, kEpilogueAdd, false, kBF16},              {"7B gate+up", 37888, 3584, kEpilogueSiluMul, false, kBF16},
    {"7B down", 3584, 18944, kEpilogueAdd, false, kBF16},          {"7B head", 152064, 3584, kEpilogueNone, false, kF32},
};

struct Bench {
  Device* device = nullptr;
  char* pool = nullptr;   // weights, random bf16
  void* x = nullptr;      // random bf16
  void* out = nullptr;
  float* bias = nullptr;
  void* workspace = nullptr;
  cublasLtHandle_t library = nullptr;
  cudaEvent_t begin = nullptr, end = nullptr;
};
constexpr size_t kLibraryWorkspace = size_t{32} << 20;

void Fill(void* to, size_t bytes, float scale) {
  constexpr size_t kValues = size_t{8} << 20;
  static std::vector<uint16_t> values(kValues);
  std::mt19937 rng(1);
  std::normal_distribution<float> normal(0, scale);
  for (uint16_t& v : values) {
    const float f = normal(rng);
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    v = static_cast<uint16_t>(bits >> 16);
  }
  for (size_t at = 0; at < bytes; at += kValues * 2) {
    MUST(cudaMemcpy(static_cast<char*>(to) + at, values.data(), std::min(kValues * 2, bytes - at), cudaMemcpyHostToDevice));
  }
}

ProductArgs ArgsOf(const Bench& b, const Layer& l, int64_t m) {
  ProductArgs a{};
  a.x = b.x, a.weight = b.pool, a.bias = l.bias ? b.bias : nullptr, a.out = b.out;
  a.m = m, a.n = l.n, a.k = l.k;
  a.x_stride = l.k, a.out_stride = l.epilogue == kEpilogueSiluMul ? l.n / 2 : l.n;
  a.x_dtype = a.weight_dtype = kBF16, a.out_dtype = l.out, a.epilogue = l.epilogue;
  return a;
}

// Microseconds a call: the better of two replays of a graph of calls, each with the next weights. Negative: the call failed.
double Time(const Bench& b, const ProductArgs& args, const std::function<bool(const ProductArgs&)>& call) {
  const double flops = 2.0 * static_cast<double>(args.m * args.n * args.k), bytes = 2.0 * static_cast<double>(args.n * args.k);
  const double floor_us = std::max(flops / kRoofFlops, bytes / kRoofBytes) * 1e6;
  const int calls = std::clamp(static_cast<int>(1000 / floor_us), 4, 60);
  const size_t step = (static_cast<size_t>(bytes) + 4095) / 4096 * 4096, places = std::max<size_t>(1, kPoolBytes / step);
  const cudaStream_t stream = b.device->stream;
  if (!call(args)) return -1;  // loads the kernel outside the capture
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < calls; ++i) {
    ProductArgs a = args;
    a.weight = b.pool + static_cast<size_t>(i) % places * step;
    Must(call(a), "a call that had worked");
  }
  MUST(cudaStreamEndCapture(stream, &graph));
  MUST(cudaGraphInstantiate(&exec, graph, 0));
  double best = 1e30;
  for (int i = 0; i < 3; ++i) {
    MUST(cudaEventRecord(b.begin, stream));
    MUST(cudaGraphLaunch(exec, stream));
    MUST(cudaEventRecord(b.end, stream));
    MUST(cudaEventSynchronize(b.end));
    float ms = 0;
    MUST(cudaEventElapsedTime(&ms, b.begin, b.end));
    if (i > 0) best = std::min(best, ms * 1e3 / calls);
  }
  MUST(cudaGraphExecDestroy(exec));
  MUST(cudaGraphDestroy(graph));
  return best;
}

// The product alone (bf16 or f32 out, residual as beta, no bias, no silu): the first of the library's choices and the best of 16.
struct LibraryTimes {
  double first_us = -1, best_us = -1;
};
LibraryTimes TimeLibrary(const Bench& b, const ProductArgs& args) {
  cublasLtMatmulDesc_t operation;
  cublasLtMatrixLayout_t weight, x, out;
  cublasLtMatmulPreference_t preference;
  const cudaDataType_t type = args.out_dtype == kF32 ? CUDA_R_32F : CUDA_R_16BF;
  const cublasOperation_t transposed = CUBLAS_OP_T;
  MUST(cublasLtMatmulDescCreate(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  MUST(cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)));
  const uint64_t m = static_cast<uint64_t>(args.m), n = static_cast<uint64_t>(args.n), k = static_cast<uint64_t>(args.k);
  MUST(cublasLtMatrixLayoutCreate(&weight, CUDA_R_16BF, k, n, args.k));
  MUST(cublasLtMatrixLayoutCreate(&x, CUDA_R_16BF, k, m, args.k));
  MUST(cublasLtMatrixLayoutCreate(&out, type, n, m, args.n));
  MUST(cublasLtMatmulPreferenceCreate(&preference));
  const uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  MUST(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &kLibraryWorkspace, 8));
  MUST(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions, 4));
  cublasLtMatmulHeuristicResult_t found[16];
  int count = 0;
  MUST(cublasLtMatmulAlgoGetHeuristic(b.library, operation, weight, x, out, out, preference, 16, found, &count));
  LibraryTimes times;
  for (int i = 0; i < count; ++i) {
    const double us = Time(b, args, [&](const ProductArgs& a) {
      const float alpha = 1, beta = args.epilogue == kEpilogueAdd ? 1 : 0;
      return cublasLtMatmul(b.library, operation, &alpha, a.weight, weight, a.x, x, &beta, a.out, out, a.out, out, &found[i].algo,
                            b.workspace, kLibraryWorkspace, b.device->stream) == CUBLAS_STATUS_SUCCESS;
    });
    if (us > 0 && (times.best_us < 0 || us < times.best_us)) times.best_us = us;
    if (i == 0) times.first_us = us;
  }
  cublasLtMatmulPreferenceDestroy(preference);
  for (cublasLtMatrixLayout_t layout : {weight, x, out}) cublasLtMatrixLayoutDestroy(layout);
  cublasLtMatmulDescDestroy(operation);
  return times;
}

const char* KindOf(const TileConfig& c) {
  if (c.kind == TileCluster::kSplit) return "s";
  return c.kind == TileCluster::kPair ? "p" : c.shared_blocks > 0 ? "k" : " ";
}

void Row(const Bench& b, const Layer& l, int64_t m, FILE* csv) {
  const ProductArgs args = ArgsOf(b, l, m);
  const cudaStream_t stream = b.device->stream;
  const LibraryTimes library = TimeLibrary(b, args);
  const double today = Time(b, args, [&](const ProductArgs& a) {
    return (a.epilogue == kEpilogueSiluMul ? LibrarySiluMul(b.device, a, stream) : LibraryProduct(b.device, a, stream)) == kOk;
  });
  const auto tiles = [&](const TileConfig& c) {
    return Time(b, args, [&](const ProductArgs& a) { return LaunchTiles(b.device, a, c, stream) == kOk; });
  };
  const TileConfig chosen = ChooseTiles(m, l.n, l.k, l.epilogue == kEpilogueSiluMul, b.device->sm_count);
  const double ours = tiles(chosen);
  TileConfig best = chosen;
  double best_us = ours;
  if (csv != nullptr) {
    for (const TileConfig& c : TileChoices(m, l.n, l.k, b.device->sm_count)) {
      if (c.tokens < 64 && m >= 128) continue;
      if (c.tokens < 128 && m >= 512) continue;
      const double us = tiles(c);
      std::fprintf(csv, "%s,%lld,%lld,%lld,%d,%s,%d,%d,%d,%d,%.2f,%.2f\n", l.name, static_cast<long long>(m), static_cast<long long>(l.n),
                   static_cast<long long>(l.k), c.tokens, KindOf(c), c.cluster, c.units, c.whole_tiles, c.shared_blocks, us,
                   TileCost(c, m, l.n, l.k, l.epilogue == kEpilogueSiluMul));
      if (us > 0 && us < best_us) best = c, best_us = us;
    }
    std::fflush(csv);
  }
  const double flops = 2.0 * static_cast<double>(m * l.n * l.k), bytes = 2.0 * static_cast<double>(l.n * l.k);
  const double floor_us = std::max(flops / kRoofFlops, bytes / kRoofBytes) * 1e6;
  std::printf("%-13s %5lld %8.1f %8.1f %8.1f | %8.1f (%3d%s/%d) %8.1f (%3d%s/%d) | %5.0f %5.2f %4.0f%% %5.2fx\n", l.name,
              static_cast<long long>(m), library.first_us, library.best_us, today, ours, chosen.tokens, KindOf(chosen),
              chosen.ctas(), best_us, best.tokens, KindOf(best), best.ctas(), flops / ours * 1e-6, bytes / ours * 1e-6,
              100 * floor_us / ours, today / ours);
  std::fflush(stdout);
}

int Main(const char* csv_path) {
  Bench b;
  const DeviceOptions options{};
  char error[256] = "";
  Must(PhalanxKernelTable(kTableVersion)->create(&options, &b.device, error, sizeof(error)) == kOk, error);
  Must(TilesSupported(b.device), "no tile kernels for this card");
  const auto take = [](auto** to, size_t bytes) { MUST(cudaMalloc(reinterpret_cast<void**>(to), bytes)); };
  take(&b.pool, kPoolBytes);
  take(&b.x, size_t{2048} * 18944 * 2);
  take(&b.out, size_t{2048} * 152064 * 4);
  take(&b.bias, 152064 * 4);
  take(&b.workspace, kLibraryWorkspace);
  Fill(b.pool, kPoolBytes, 0.02f);
  Fill(b.x, size_t{2048} * 18944 * 2, 1);
  MUST(cudaMemset(b.out, 0, size_t{2048} * 152064 * 4));
  MUST(cudaMemset(b.bias, 0, 152064 * 4));
  MUST(cublasLtCreate(&b.library));
  MUST(cudaEventCreate(&b.begin));
  MUST(cudaEventCreate(&b.end));
  FILE* csv = csv_path == nullptr ? nullptr : std::fopen(csv_path, "w");
  std::printf("us a call: the library's product alone, first choice and best of 16; library + pass; ours, and the best cut of ours\n");
  std::printf("%-13s %5s %8s %8s %8s | %8s %11s %8s %11s | %5s %5s %5s\n", "layer", "m", "first", "best", "+pass", "ours", "", "best", "",
              "TF/s", "TB/s", "roof");
  for (const Layer& l : kLayers) {
    for (const int64_t m : {32, 64, 128, 256, 512, 1024, 2048}) {
      if (l.out == kF32 && m > 256) continue;  // only sampled rows reach the head
      Row(b, l, m, csv);
    }
  }
  if (csv != nullptr) std::fclose(csv);
  return 0;
}

}  // namespace
}  // namespace phalanx::kernels::cuda

int main(int argc, char** argv) { return phalanx::kernels::cuda::Main(argc > 1 ? argv[1] : nullptr); }
