// A chain of operations, as a decoder calls them, with nothing but the stream between them: several steps of a small model whose rows all
// decode. Equals the twin, and gives the same bits when it is run again and when it is replayed as a graph. What a back end overlaps or
// reads ahead shows here, if it does so too early.
#include <algorithm>
#include <numeric>

#include "kernels/ops_bed.h"

namespace phalanx::kernels::testing {
namespace {

constexpr int kLayers = 3, kSteps = 5, kHidden = 256, kHeads = 6, kKvHeads = 2, kHeadDim = 64, kInner = 1000, kVocab = 333, kBlock = 16;
constexpr int kWidth = (kHeads + 2 * kKvHeads) * kHeadDim, kQWidth = kHeads * kHeadDim, kMaxContext = 400;

// Everything on a device: weights, a cache with a past in it, and the inputs of all steps.
class Chain {
 public:
  // pasts: tokens that each row has in the cache before the first step.
  Chain(Bed* bed, const std::vector<int>& pasts, unsigned seed) : bed_(*bed), rows_(static_cast<int>(pasts.size())) {
    std::mt19937 rng(seed);
    embedding_ = Random(&rng, kVocab, kHidden);
    for (Layer& layer : layers_) {
      layer.qkv = Random(&rng, kWidth, kHidden), layer.o = Random(&rng, kHidden, kQWidth);
      layer.gate_up = Random(&rng, 2 * kInner, kHidden), layer.down = Random(&rng, kHidden, kInner);
      layer.gamma = bed_.Put(testing::Random(&rng, kBF16, kHidden));
      const int64_t cache = int64_t{rows_} * kMaxContext * kKvHeads * kHeadDim;
      layer.cache = {bed_.Put(testing::Random(&rng, kBF16, cache)), bed_.Put(testing::Random(&rng, kBF16, cache)), kBF16,
                     rows_ * kMaxContext / kBlock, kKvHeads, kBlock, kHeadDim};
    }
    Values angles = Filled(kF32, kMaxContext * kHeadDim, 0);
    for (int p = 0; p < kMaxContext; ++p) {
      for (int i = 0; i < kHeadDim / 2; ++i) {
        const float angle = static_cast<float>(p) * std::pow(10000.0f, -2.0f * static_cast<float>(i) / kHeadDim);
        angles.set(p * kHeadDim + i, std::cos(angle)), angles.set(p * kHeadDim + kHeadDim / 2 + i, std::sin(angle));
      }
    }
    angles_ = static_cast<const float*>(bed_.Put(angles));
    for (int step = 0; step < kSteps; ++step) AddStep(pasts, step, &rng);
    for (auto [to, columns] : {std::pair{&residual_, kHidden}, {&normed_, kHidden}, {&qkv_, kWidth}, {&q_, kQWidth}, {&attention_, kQWidth},
                               {&inner_, kInner}}) {
      *to = bed_.Put(Filled(kBF16, int64_t{rows_} * columns, NAN));
    }
    logits_ = bed_.Put(Filled(kF32, int64_t{kSteps} * rows_ * kVocab, NAN));
  }

  // All steps, one after the other.
  void Run() {
    for (int step = 0; step < kSteps; ++step) {
      const StepLayout& layout = layouts_[static_cast<size_t>(step)];
      Check(bed_->embedding(bed_.device(), &embedding_, ids_[static_cast<size_t>(step)], Rows(residual_, kHidden), nullptr));
      for (const Layer& layer : layers_) {
        Linear(residual_, layer.qkv, Rows(qkv_, kWidth), kEpilogueNone, layer.gamma);
        Attend(layer, layout);
        Linear(attention_, layer.o, Rows(residual_, kHidden), kEpilogueAdd, nullptr);
        Linear(residual_, layer.gate_up, Rows(inner_, kInner), kEpilogueSiluMul, layer.gamma);
        Linear(inner_, layer.down, Rows(residual_, kHidden), kEpilogueAdd, nullptr);
      }
      float* logits = static_cast<float*>(logits_) + int64_t{step} * rows_ * kVocab;
      Linear(residual_, embedding_, Dense(logits, kF32, 2, rows_, kVocab), kEpilogueNone, layers_[0].gamma);
    }
  }
  // Logits of all steps; what is left behind is poisoned for the next run.
  Values Take() {
    Values out = bed_.Get(logits_, kF32, int64_t{kSteps} * rows_ * kVocab);
    const Values poison = Filled(kF32, out.size(), NAN);
    Check(bed_->copy_to_device(bed_.device(), logits_, poison.bytes.data(), poison.bytes.size(), nullptr));
    Check(bed_->stream_synchronize(bed_.device(), nullptr));
    return out;
  }

 private:
  struct Layer {
    Weight qkv, o, gate_up, down;
    void* gamma;
    KvLayer cache;
  };

  void Check(Code code) { ASSERT_EQ(code, kOk) << bed_.error(); }
  Tensor Rows(void* data, int64_t columns) const { return Dense(data, kBF16, 2, rows_, columns); }
  Weight Random(std::mt19937* rng, int64_t n, int64_t k) {
    return bed_.Pack(testing::Random(rng, kBF16, n * k, 1.0f / std::sqrt(static_cast<float>(k))), n, k);
  }
  // Row r has the blocks r, r + rows, ...: neighbours in the cache belong to others.
  void AddStep(const std::vector<int>& pasts, int step, std::mt19937* rng) {
    const int blocks = kMaxContext / kBlock;
    std::vector<int32_t> ids, context, positions, slots, start(static_cast<size_t>(rows_ + 1)), table;
    std::iota(start.begin(), start.end(), 0);
    for (int r = 0; r < rows_; ++r) {
      const int position = pasts[static_cast<size_t>(r)] + step;
      ids.push_back(static_cast<int32_t>((*rng)() % kVocab));
      positions.push_back(position), context.push_back(position + 1);
      for (int b = 0; b < blocks; ++b) table.push_back(b * rows_ + r);
      slots.push_back((position / kBlock * rows_ + r) * kBlock + position % kBlock);
    }
    ids_.push_back(bed_.PutAll(ids));
    layouts_.push_back({rows_, rows_, bed_.PutAll(start), bed_.PutAll(context), bed_.PutAll(table), blocks, bed_.PutAll(positions),
                        bed_.PutAll(slots), 1, *std::max_element(context.begin(), context.end())});
  }
  void Linear(void* x, const Weight& weight, Tensor out, Epilogue epilogue, const void* gamma) {
    const LinearArgs args{Rows(x, weight.k), weight, nullptr, out, epilogue, gamma, 1e-6f, normed_};
    Check(bed_->linear(bed_.device(), &args, nullptr));
  }
  void Attend(const Layer& layer, const StepLayout& layout) {
    const Tensor q = Dense(q_, kBF16, 3, rows_, kHeads, kHeadDim);
    const RopeAppendArgs rope{Rows(qkv_, kWidth), q, kHeads, nullptr, nullptr, 0, angles_, kHeadDim, layer.cache};
    const AttentionArgs attention{q, Rows(attention_, kQWidth), layer.cache, 0.125f, 0};
    if (bed_->rope_attention != nullptr) return Check(bed_->rope_attention(bed_.device(), &rope, &attention, &layout, nullptr));
    Check(bed_->rope_append(bed_.device(), &rope, &layout, nullptr));
    Check(bed_->attention(bed_.device(), &attention, &layout, nullptr));
  }

  Bed& bed_;
  const int rows_;
  Weight embedding_;
  Layer layers_[kLayers];
  const float* angles_;
  std::vector<int32_t*> ids_;
  std::vector<StepLayout> layouts_;
  void *residual_, *normed_, *qkv_, *q_, *attention_, *inner_, *logits_;
};

TEST(OpsChain, EqualsTheTwinAndItself) {
  for (const std::vector<int>& pasts : {std::vector<int>{300}, {0, 127, 63}, {1, 40, 200, 15, 16, 17, 390, 0, 128, 255, 3}}) {
    Bed twin(ReferenceTable(), {});
    Chain twins(&twin, pasts, 5);
    twins.Run();
    const Values want = twins.Take();
    for (const Subject& s : Subjects()) {
      Bed bed(s.table, s.options);
      Chain chain(&bed, pasts, 5);
      chain.Run();
      const Values got = chain.Take();
      // Each of some 40 roundings to bf16 on the way may go the other way; logits are about 1.
      ExpectClose(got, want, 0.1f, 0.02f, s.name + " rows " + std::to_string(pasts.size()));
      for (int i = 0; i < 3; ++i) {
        chain.Run();
        EXPECT_EQ(chain.Take().bytes, got.bytes) << s.name << ": other bits when run again";
      }
      if (s.table->graph_begin == nullptr) continue;
      Graph graph = nullptr;
      ASSERT_EQ(bed->graph_begin(bed.device(), nullptr), kOk) << bed.error();
      chain.Run();
      ASSERT_EQ(bed->graph_end(bed.device(), nullptr, &graph), kOk) << bed.error();
      for (int i = 0; i < 10; ++i) {
        EXPECT_EQ(bed->graph_launch(bed.device(), graph, nullptr), kOk) << bed.error();
        EXPECT_EQ(chain.Take().bytes, got.bytes) << s.name << ": other bits as a graph";
      }
      bed->graph_destroy(bed.device(), graph);
    }
  }
}

}  // namespace
}  // namespace phalanx::kernels::testing
