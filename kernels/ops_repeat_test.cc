// The same product twice gives the same bits: no float is summed in an order that a scheduler decides. A few shapes of every kernel that a
// back end may have for rows, small enough for a race detector, which is too slow for the grid of ops_test.cc.
#include <gtest/gtest.h>

#include <random>

#include "kernels/ops_bed.h"

namespace phalanx::kernels::testing {
namespace {

struct Product {
  int64_t m, n, k;
  DType dtype;
  Epilogue epilogue;
  bool norm;
};

std::vector<char> Multiply(Bed* bed, const Product& p, const LinearArgs& args, const Values& before) {
  LinearArgs a = args;
  a.out = Dense(bed->Put(before), p.dtype, 2, p.m, a.out.shape[1]);
  EXPECT_EQ((*bed)->linear(bed->device(), &a, nullptr), kOk) << bed->error();
  return bed->Get(a.out.data, p.dtype, before.size()).bytes;
}

TEST(Repeat, ProductsGiveTheSameBits) {
  std::vector<Product> products;
  for (int64_t m : {1, 2, 5, 16, 17, 48, 100, 200}) {
    products.push_back({m, 320, 576, kBF16, kEpilogueNone, true});
    products.push_back({m, 192, 1024, kBF16, kEpilogueAdd, false});
    products.push_back({m, 512, 256, kBF16, kEpilogueSiluMul, true});
    products.push_back({m, 96, 200, kF32, kEpilogueNone, true});
  }
  std::mt19937 rng(17);
  for (const Subject& s : Subjects()) {
    Bed bed(s.table, s.options);
    for (const Product& p : products) {
      const int64_t columns = p.epilogue == kEpilogueSiluMul ? p.n / 2 : p.n;
      LinearArgs args{};
      args.x = Dense(bed.Put(Random(&rng, p.dtype, p.m * p.k)), p.dtype, 2, p.m, p.k);
      args.weight = bed.Pack(Random(&rng, p.dtype, p.n * p.k, 0.05f), p.n, p.k);
      args.bias = bed.Put(Random(&rng, kF32, p.n));
      args.out.shape[1] = columns;
      args.epilogue = p.epilogue;
      if (p.norm) {
        args.norm_gamma = bed.Put(Random(&rng, p.dtype, p.k));
        args.norm_epsilon = 1e-5f;
        args.norm_scratch = bed.Put(Filled(p.dtype, p.m * p.k, NAN));
      }
      const Values before = Random(&rng, p.dtype, p.m * columns);
      const std::vector<char> first = Multiply(&bed, p, args, before);
      EXPECT_NE(first, before.bytes);
      for (int again = 0; again < 3; ++again) {
        EXPECT_EQ(Multiply(&bed, p, args, before), first)
            << s.name << " m " << p.m << " n " << p.n << " k " << p.k << " epilogue " << p.epilogue;
      }
      if (::testing::Test::HasFailure()) return;
    }
  }
}

}  // namespace
}  // namespace phalanx::kernels::testing
