// The tile kernels against the plain one, on a card: every way to cut a product, every epilogue, sizes that fill no tile.
#include "kernels/cuda/gemm_tiles.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/device.h"

extern "C" const phalanx::kernels::Table* PhalanxKernelTable(uint32_t version);

namespace phalanx::kernels::cuda {
namespace {

uint16_t ToBf16(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
float FromBf16(uint16_t h) {
  const uint32_t bits = static_cast<uint32_t>(h) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

struct Case {
  int64_t m, n, k;
  DType out;
  Epilogue epilogue;
  bool bias;
  int64_t spare = 0;  // columns of x and of out after the row's end
  std::string Name() const {
    return "m " + std::to_string(m) + " n " + std::to_string(n) + " k " + std::to_string(k) + " epilogue " + std::to_string(epilogue);
  }
};

std::string NameOf(const TileConfig& c) {
  return " tokens " + std::to_string(c.tokens) + " kind " + std::to_string(static_cast<int>(c.kind)) + " cluster " +
         std::to_string(c.cluster) + " units " + std::to_string(c.units) + " whole " + std::to_string(c.whole_tiles) + " shared " +
         std::to_string(c.shared_blocks);
}

class GemmTiles : public ::testing::Test {
 protected:
  void SetUp() override {
    const Table* table = PhalanxKernelTable(kTableVersion);
    const DeviceOptions options{};
    char error[256] = "";
    if (table->create(&options, &device_, error, sizeof(error)) != kOk) GTEST_SKIP() << error;
    if (!TilesSupported(device_)) GTEST_SKIP() << "no tile kernels for this card";
  }
  void TearDown() override {
    for (void* memory : owned_) cudaFree(memory);
    if (device_ != nullptr) PhalanxKernelTable(kTableVersion)->destroy(device_);
  }

  void* Put(const void* host, size_t bytes) {
    void* memory = nullptr;
    EXPECT_EQ(cudaMalloc(&memory, bytes), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(memory, host, bytes, cudaMemcpyHostToDevice), cudaSuccess);
    owned_.push_back(memory);
    return memory;
  }
  std::vector<uint16_t> Normal(int64_t count, float scale) {
    std::normal_distribution<float> normal(0, scale);
    std::vector<uint16_t> v(static_cast<size_t>(count));
    constexpr size_t kDrawn = 3000017;  // repeats after that many
    for (size_t i = 0; i < v.size(); ++i) v[i] = i < kDrawn ? ToBf16(normal(rng_)) : v[i - kDrawn];
    return v;
  }
  // Operands of `c` on the card; out is not set.
  ProductArgs Operands(const Case& c, const std::vector<uint16_t>& x) {
    const std::vector<uint16_t> weight = Normal(c.n * c.k, 1 / std::sqrt(static_cast<float>(c.k)));
    std::vector<float> bias(static_cast<size_t>(c.n));
    for (float& b : bias) b = std::normal_distribution<float>(0, 1)(rng_);
    ProductArgs a{};
    a.x = Put(x.data(), x.size() * 2), a.weight = Put(weight.data(), weight.size() * 2);
    a.bias = c.bias ? static_cast<const float*>(Put(bias.data(), bias.size() * 4)) : nullptr;
    a.m = c.m, a.n = c.n, a.k = c.k;
    a.x_stride = c.k + c.spare, a.out_stride = (c.epilogue == kEpilogueSiluMul ? c.n / 2 : c.n) + c.spare;
    a.x_dtype = a.weight_dtype = kBF16, a.out_dtype = c.out, a.epilogue = c.epilogue;
    return a;
  }
  // What a launch leaves in an out that held `before`.
  template <class Launch>
  std::vector<char> Run(ProductArgs a, const std::vector<char>& before, const Launch& launch) {
    if (out_.size() < before.size()) {
      out_.resize(before.size());
      out_memory_ = Put(before.data(), before.size());
    }
    EXPECT_EQ(cudaMemcpy(out_memory_, before.data(), before.size(), cudaMemcpyHostToDevice), cudaSuccess);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);  // a copy from pageable memory may end after the call
    a.out = out_memory_;
    launch(a);
    std::vector<char> got(before.size());
    EXPECT_EQ(cudaStreamSynchronize(device_->stream), cudaSuccess) << cudaGetErrorString(cudaGetLastError());
    EXPECT_EQ(cudaMemcpy(got.data(), out_memory_, got.size(), cudaMemcpyDeviceToHost), cudaSuccess);
    return got;
  }
  std::vector<char> RunTiles(const ProductArgs& a, const std::vector<char>& before, const TileConfig& config) {
    return Run(a, before, [&](const ProductArgs& p) {
      EXPECT_EQ(LaunchTiles(device_, p, config, device_->stream), kOk) << device_->error;
    });
  }
  bool CountersAreZero() {
    std::vector<uint32_t> counters(1024);
    EXPECT_EQ(cudaMemcpy(counters.data(), Counters(device_), counters.size() * 4, cudaMemcpyDeviceToHost), cudaSuccess);
    for (uint32_t c : counters) {
      if (c != 0) return false;
    }
    return true;
  }

  Device* device_ = nullptr;
  std::mt19937 rng_{7};
  std::vector<void*> owned_;
  std::vector<char> out_;
  void* out_memory_ = nullptr;
};

float At(const std::vector<char>& values, DType dtype, int64_t i) {
  if (dtype == kF32) return reinterpret_cast<const float*>(values.data())[i];
  return FromBf16(reinterpret_cast<const uint16_t*>(values.data())[i]);
}

// ||got - want|| / ||want|| over the rows; spare columns must be as before.
double Distance(const std::vector<char>& got, const std::vector<char>& want, const Case& c, int64_t columns, int64_t stride,
                int64_t skip_row = -1) {
  double distance = 0, norm = 0;
  const size_t bytes = DTypeBytes(c.out);
  for (int64_t row = 0; row < c.m; ++row) {
    if (row == skip_row) continue;
    for (int64_t i = row * stride; i < row * stride + columns; ++i) {
      const double w = At(want, c.out, i), d = At(got, c.out, i) - w;
      distance += d * d, norm += w * w;
    }
    const size_t end = static_cast<size_t>(row * stride + columns) * bytes, spare = static_cast<size_t>(stride - columns) * bytes;
    if (std::memcmp(got.data() + end, want.data() + end, spare) != 0) return INFINITY;
  }
  return std::sqrt(distance / norm);
}

TEST_F(GemmTiles, EveryCutEqualsThePlainKernel) {
  std::vector<Case> cases;
  for (const Epilogue e : {kEpilogueNone, kEpilogueAdd, kEpilogueSiluMul}) {
    cases.push_back({300, 1154, 328, kBF16, e, true, 8});
    cases.push_back({64, 384, 1536, kBF16, e, false});
    cases.push_back({577, 2048, 192, kBF16, e, false});
  }
  cases.push_back({20, 130, 8, kBF16, kEpilogueNone, true});
  cases.push_back({17, 1537, 72, kBF16, kEpilogueNone, true});    // rows of out are not aligned
  cases.push_back({33, 1537, 72, kBF16, kEpilogueAdd, false, 3 + 8 * 4 - 3});
  cases.push_back({129, 5003, 136, kF32, kEpilogueNone, true});
  cases.push_back({40, 700, 1000, kF32, kEpilogueAdd, false, 4 * 8});
  cases.push_back({256, 9000, 256, kBF16, kEpilogueSiluMul, true});
  cases.push_back({1500, 640, 640, kBF16, kEpilogueAdd, true});
  for (const Case& c : cases) {
    const ProductArgs a = Operands(c, Normal(c.m * (c.k + c.spare), 1));
    const int64_t columns = c.epilogue == kEpilogueSiluMul ? c.n / 2 : c.n;
    std::vector<char> before(static_cast<size_t>(c.m * a.out_stride) * DTypeBytes(c.out), '\xff');  // NaN
    if (c.epilogue == kEpilogueAdd) {
      for (int64_t i = 0; i < c.m * a.out_stride; ++i) {
        const float value = std::normal_distribution<float>(0, 1)(rng_);
        if (c.out == kF32) reinterpret_cast<float*>(before.data())[i] = value;
        else reinterpret_cast<uint16_t*>(before.data())[i] = ToBf16(value);
      }
    }
    const std::vector<char> want = Run(a, before, [&](const ProductArgs& p) { LaunchPlainTiles(p, device_->stream); });
    for (const TileConfig& config : TileChoices(c.m, c.n, c.k, device_->sm_count)) {

      const std::vector<char> got = RunTiles(a, before, config);
      const double distance = Distance(got, want, c, columns, a.out_stride);
      EXPECT_LT(distance, c.out == kF32 ? 1e-5 : 2e-3) << c.Name() << NameOf(config);
      ASSERT_TRUE(CountersAreZero()) << c.Name() << NameOf(config);
      if (config.shared_blocks > 0) ASSERT_EQ(RunTiles(a, before, config), got) << c.Name() << NameOf(config);
    }
  }
}

TEST_F(GemmTiles, TheChosenCutsOfTheLayersEqualThePlainKernel) {
  for (const int64_t m : {48, 64, 256, 2047}) {
    for (const Case& c : {Case{m, 2048, 1536, kBF16, kEpilogueNone, true}, Case{m, 1536, 1536, kBF16, kEpilogueAdd, false},
                          Case{m, 17920, 1536, kBF16, kEpilogueSiluMul, false}, Case{m, 1536, 8960, kBF16, kEpilogueAdd, false},
                          Case{m, 3584, 18944, kBF16, kEpilogueAdd, false}, Case{m, 20000, 1536, kF32, kEpilogueNone, false}}) {
      const bool silu = c.epilogue == kEpilogueSiluMul;
      const ProductArgs a = Operands(c, Normal(c.m * c.k, 1));
      const std::vector<uint16_t> filled = Normal(c.m * a.out_stride * 2, 1);
      std::vector<char> before(static_cast<size_t>(c.m * a.out_stride) * DTypeBytes(c.out), '\xff');
      if (c.epilogue == kEpilogueAdd) std::memcpy(before.data(), filled.data(), before.size());
      const std::vector<char> want = Run(a, before, [&](const ProductArgs& p) { LaunchPlainTiles(p, device_->stream); });
      const TileConfig config = ChooseTiles(c.m, c.n, c.k, silu, device_->sm_count);
      const double distance = Distance(RunTiles(a, before, config), want, c, a.out_stride, a.out_stride);
      EXPECT_LT(distance, c.out == kF32 ? 1e-5 : 2e-3) << c.Name() << NameOf(config);
    }
  }
}

TEST_F(GemmTiles, ANanStaysInItsRow) {
  const Case c{200, 300, 520, kBF16, kEpilogueSiluMul, false};
  std::vector<uint16_t> x = Normal(c.m * c.k, 1);
  const ProductArgs clean = Operands(c, x);
  for (int64_t i = 0; i < c.k; ++i) x[static_cast<size_t>(77 * c.k + i)] = 0x7fc0;
  ProductArgs dirty = clean;
  dirty.x = Put(x.data(), x.size() * 2);
  const std::vector<char> before(static_cast<size_t>(c.m * c.n / 2) * 2, '\xff');
  for (const TileConfig& config : TileChoices(c.m, c.n, c.k, device_->sm_count)) {
    const std::vector<char> want = RunTiles(clean, before, config), got = RunTiles(dirty, before, config);
    ASSERT_EQ(Distance(got, want, c, c.n / 2, c.n / 2, 77), 0) << NameOf(config);
    for (int64_t i = 0; i < c.n / 2; ++i) ASSERT_TRUE(std::isnan(At(got, kBF16, 77 * c.n / 2 + i))) << NameOf(config);
  }
}

}  // namespace
}  // namespace phalanx::kernels::cuda
