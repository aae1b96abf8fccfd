// Conformance of sampling: the same ids as the twin for every mix of options, logprobs and ranks, and the laws of a draw.
#include <algorithm>

#include "kernels/ops_bed.h"

namespace phalanx::kernels::testing {
namespace {

SamplingRow Greedy() {
  SamplingRow o{};
  o.top_p = 1;
  o.repetition_penalty = 1;
  o.num_logprobs = -1;
  o.state = o.mask = -1;
  return o;
}

// Log-probabilities; infinities are equal to themselves.
bool Near(float a, float b) { return a == b || std::fabs(a - b) <= 2e-4f; }

struct Drawn {
  std::vector<int32_t> ids, ranks, top_ids, counts;
  std::vector<float> logprobs, top_logprobs;
};

struct Batch {
  int32_t rows = 0, vocab = 0, width = 0, states = 0;
  Values logits;
  std::vector<SamplingRow> options;
  std::vector<uint32_t> masks, seen;
  std::vector<int32_t> bias_ids, counts;
  std::vector<float> bias_values;

  Drawn Run(Bed* bed) const {
    SampleArgs a{};
    a.logits = Dense(bed->Put(logits), kF32, 2, rows, width);
    a.vocab = vocab;
    a.options = bed->PutAll(options);
    a.masks = bed->PutAll(masks);
    a.bias_ids = bed->PutAll(bias_ids);
    a.bias_values = bed->PutAll(bias_values);
    a.prompt_seen = bed->PutAll(seen);
    a.output_counts = bed->PutAll(counts);
    a.out_ids = bed->PutAll(std::vector<int32_t>(rows, -7));
    a.out_logprobs = bed->PutAll(std::vector<float>(rows, -7));
    a.out_top_ids = bed->PutAll(std::vector<int32_t>(rows * kMaxTopLogprobs, -7));
    a.out_top_logprobs = bed->PutAll(std::vector<float>(rows * kMaxTopLogprobs, -7));
    a.out_ranks = bed->PutAll(std::vector<int32_t>(rows, -7));
    EXPECT_EQ((*bed)->sample(bed->device(), &a, nullptr), kOk) << bed->error();
    return {bed->GetAll(a.out_ids, rows), bed->GetAll(a.out_ranks, rows), bed->GetAll(a.out_top_ids, rows * kMaxTopLogprobs),
            bed->GetAll(a.output_counts, static_cast<int64_t>(counts.size())), bed->GetAll(a.out_logprobs, rows),
            bed->GetAll(a.out_top_logprobs, rows * kMaxTopLogprobs)};
  }
};

Batch RandomBatch(std::mt19937* rng, int32_t rows, int32_t vocab, int32_t width, float spread) {
  Batch b;
  b.rows = b.states = rows;
  b.vocab = vocab;
  b.width = width;
  b.logits = Random(rng, kF32, static_cast<int64_t>(rows) * width, spread);
  const int32_t words = (width + 31) / 32;
  auto chance = [&](int of) { return (*rng)() % static_cast<unsigned>(of) == 0; };
  for (int32_t i = 0; i < rows * words; ++i) b.masks.push_back((*rng)() | (*rng)()), b.seen.push_back((*rng)() & (*rng)() & (*rng)());
  b.counts.assign(static_cast<size_t>(rows) * static_cast<size_t>(width), 0);
  for (int32_t& c : b.counts) c = chance(9) ? static_cast<int32_t>((*rng)() % 4) : 0;
  std::uniform_real_distribution<float> unit(0, 1);
  for (int32_t r = 0; r < rows; ++r) {
    SamplingRow o = Greedy();
    o.temperature = chance(4) ? 0.0f : 0.2f + 1.5f * unit(*rng);
    if (chance(2)) o.top_p = 0.05f + 0.94f * unit(*rng);
    if (chance(3)) o.min_p = 0.2f * unit(*rng);
    if (chance(2)) o.top_k = static_cast<int32_t>((*rng)() % static_cast<unsigned>(chance(2) ? 60 : 2 * vocab));
    if (chance(2)) o.repetition_penalty = 0.8f + 0.7f * unit(*rng);
    if (chance(3)) o.frequency_penalty = unit(*rng) - 0.5f;
    if (chance(3)) o.presence_penalty = unit(*rng) - 0.5f;
    o.num_logprobs = static_cast<int32_t>((*rng)() % 12) - 1;
    o.seed = (static_cast<uint64_t>((*rng)()) << 32) | (*rng)();
    o.position = static_cast<int32_t>((*rng)() % 5000);
    o.stream = (*rng)() % 4;
    o.state = chance(3) ? -1 : r;
    o.mask = chance(2) ? -1 : r;
    o.bias_begin = static_cast<int32_t>(b.bias_ids.size());
    for (int i = chance(2) ? 5 : 0; i > 0; --i) {
      b.bias_ids.push_back(static_cast<int32_t>((*rng)() % static_cast<unsigned>(vocab + 2)));
      b.bias_values.push_back(chance(3) ? -INFINITY : 8 * unit(*rng) - 4);
    }
    o.bias_end = static_cast<int32_t>(b.bias_ids.size());
    b.options.push_back(o);
  }
  b.bias_ids.push_back(0);  // never empty
  b.bias_values.push_back(0);
  return b;
}

void ExpectSame(const Batch& b, const Drawn& got, const Drawn& want, const std::string& what) {
  EXPECT_EQ(got.counts, want.counts) << what;
  for (int32_t r = 0; r < b.rows; ++r) {
    const SamplingRow& o = b.options[static_cast<size_t>(r)];
    const size_t row = static_cast<size_t>(r);
    ASSERT_EQ(got.ids[row], want.ids[row]) << what << " row " << r << " temperature " << o.temperature << " top_p " << o.top_p
                                           << " top_k " << o.top_k << " min_p " << o.min_p;
    if (o.num_logprobs < 0) continue;
    ASSERT_EQ(got.ranks[row], want.ranks[row]) << what << " row " << r;
    ASSERT_TRUE(Near(got.logprobs[row], want.logprobs[row])) << what << " row " << r;
    for (size_t i = 0; i < static_cast<size_t>(o.num_logprobs); ++i) {
      const size_t at = row * kMaxTopLogprobs + i;
      ASSERT_EQ(got.top_ids[at], want.top_ids[at]) << what << " row " << r << " top " << i;
      ASSERT_TRUE(Near(got.top_logprobs[at], want.top_logprobs[at])) << what;
    }
  }
}

TEST(Sampling, EqualsTheTwin) {
  std::mt19937 rng(20);
  struct Size {
    int32_t rows, vocab, width;
    float spread;
  };
  for (const Size& z : {Size{40, 5, 5, 2}, Size{40, 100, 112, 2}, Size{60, 592, 592, 4}, Size{24, 5000, 5024, 1}, Size{12, 49152, 49152, 3}, Size{4, 151936, 152064, 0.3f},
                        Size{8, 12000, 12000, 2}, Size{2, 500001, 500032, 2}}) {
    const Batch b = RandomBatch(&rng, z.rows, z.vocab, z.width, z.spread);
    Bed twin(ReferenceTable(), {});
    const Drawn want = b.Run(&twin);
    for (const Subject& s : Subjects()) {
      Bed bed(s.table, s.options);
      ExpectSame(b, b.Run(&bed), want, s.name + " vocab " + std::to_string(z.vocab));
    }
  }
}

// Every truncation on flat and on peaked rows, with and without equal values; twice, for the same bits.
TEST(Sampling, TruncationsOfFlatAndPeakedRowsEqualTheTwin) {
  std::mt19937 rng(24);
  struct Kind {
    float top_p, min_p;
    int32_t top_k;
  };
  const std::vector<Kind> kinds = {{0, 0, 0},        {0.1f, 0, 0},    {0.5f, 0, 0},      {0.95f, 0, 0},      {0.999f, 0, 0}, {1, 0.05f, 0}, {1, 1, 0},
                                   {0.9f, 0.02f, 0}, {1, 0, 50},      {0.95f, 0, 50},    {0.95f, 0, 700},    {1, 0, 9000},   {0.8f, 0, 9000},
                                   {1, 0, 20000},    {0.9f, 0, 1},    {0.9f, 0.5f, 300}};
  const auto rows = static_cast<int32_t>(kinds.size());
  for (float spread : {0.0f, 1e-6f, 0.3f, 1.0f, 3.0f, 10.0f}) {
    for (bool ties : {false, true}) {
      Batch b = RandomBatch(&rng, rows, 20000, 20000, spread);
      if (ties) {
        for (int64_t i = 0; i < b.logits.size(); ++i) b.logits.set(i, FromBf16(ToBf16(b.logits.at(i))));
      }
      for (size_t r = 0; r < kinds.size(); ++r) {
        SamplingRow& o = b.options[r] = Greedy();
        o.temperature = 0.8f, o.seed = 5, o.position = static_cast<int32_t>(r);
        o.top_p = kinds[r].top_p, o.min_p = kinds[r].min_p, o.top_k = kinds[r].top_k;
        o.num_logprobs = static_cast<int32_t>(r * 5 % (kMaxTopLogprobs + 1));
      }
      Bed twin(ReferenceTable(), {});
      const Drawn want = b.Run(&twin);
      for (const Subject& s : Subjects()) {
        Bed bed(s.table, s.options);
        const Drawn got = b.Run(&bed), again = b.Run(&bed);
        ExpectSame(b, got, want, s.name + " spread " + std::to_string(spread) + (ties ? " with ties" : ""));
        EXPECT_EQ(got.ids, again.ids) << s.name;
        EXPECT_EQ(got.logprobs, again.logprobs) << s.name;
        EXPECT_EQ(got.top_ids, again.top_ids) << s.name;
      }
    }
  }
}

TEST(Sampling, TiesNanInfinityAndDeadEnds) {
  std::mt19937 rng(21);
  Batch b = RandomBatch(&rng, 8, 3000, 3008, 1);
  b.options.assign(8, Greedy());
  for (SamplingRow& o : b.options) o.num_logprobs = 3;
  auto row = [&](int r) { return reinterpret_cast<float*>(b.logits.bytes.data()) + r * b.width; };
  std::fill(row(0), row(1), 2.0f);             // all equal: greedy takes id 0
  std::fill(row(1), row(2), 2.0f);             // all equal: a draw among all, top-k keeps ties
  b.options[1].temperature = 1;
  b.options[1].top_k = 3;
  b.options[1].top_p = 0.5f;
  row(2)[77] = NAN;
  row(3)[78] = INFINITY;
  std::fill(row(4), row(5), -INFINITY);
  std::fill(b.masks.begin(), b.masks.begin() + (b.width + 31) / 32, 0u);
  b.options[5].mask = 0;                       // nothing allowed
  row(6)[3001] = 100;                          // padding is never chosen
  row(7)[3005] = NAN;                          // nor looked at
  Bed twin(ReferenceTable(), {});
  const Drawn want = b.Run(&twin);
  EXPECT_EQ(want.ids[0], 0);
  EXPECT_EQ(want.ids[2], -1);
  EXPECT_EQ(want.ids[3], -1);
  EXPECT_EQ(want.ids[4], -1);
  EXPECT_EQ(want.ids[5], -1);
  EXPECT_LT(want.ids[6], 3000);
  EXPECT_GE(want.ids[7], 0);
  for (const Subject& s : Subjects()) {
    Bed bed(s.table, s.options);
    ExpectSame(b, b.Run(&bed), want, s.name);
  }
}

TEST(Sampling, PenaltyStateCountsAndIsUpdated) {
  for (const Subject& s : Subjects()) {
    Bed bed(s.table, s.options);
    const int32_t width = 70;
    uint32_t* seen = bed.PutAll(std::vector<uint32_t>(6, ~0u));
    int32_t* counts = bed.PutAll(std::vector<int32_t>(140, 9));
    const std::vector<int32_t> prompt = {0, 33, 69, 70, -1}, output = {5, 5, 69, 200};
    EXPECT_EQ(bed->sampling_state_set(bed.device(), width, seen, counts, 1, prompt.data(), 5, output.data(), 4, nullptr), kOk);
    const std::vector<uint32_t> got = bed.GetAll(seen, 6);
    EXPECT_EQ(got, (std::vector<uint32_t>{~0u, ~0u, ~0u, 1u, 2u, 32u})) << s.name;
    const std::vector<int32_t> numbers = bed.GetAll(counts, 140);
    EXPECT_EQ(numbers[69], 9);
    EXPECT_EQ(numbers[70 + 5], 2);
    EXPECT_EQ(numbers[70 + 69], 1);
    EXPECT_EQ(numbers[70 + 6], 0);
  }
}

TEST(Sampling, FrequenciesFollowTheSoftmax) {
  // 20000 draws at rising positions of one row: each share within five standard deviations.
  const std::vector<float> x = {0.0f, 1.0f, 2.0f, -1.0f, 0.5f};
  const int32_t rows = 20000;
  Batch b;
  b.rows = rows;
  b.vocab = b.width = 5;
  b.logits = Filled(kF32, rows * 5, 0);
  for (int32_t i = 0; i < rows * 5; ++i) b.logits.set(i, x[static_cast<size_t>(i % 5)]);
  b.options.assign(rows, Greedy());
  for (int32_t r = 0; r < rows; ++r) b.options[static_cast<size_t>(r)].temperature = 0.7f, b.options[static_cast<size_t>(r)].seed = 42, b.options[static_cast<size_t>(r)].position = r;
  b.masks = b.seen = {0};
  b.counts = b.bias_ids = {0};
  b.bias_values = {0};
  double total = 0;
  for (float v : x) total += std::exp(v / 0.7);
  for (const Subject& s : Subjects()) {
    Bed bed(s.table, s.options);
    const Drawn got = b.Run(&bed);
    for (int32_t id = 0; id < 5; ++id) {
      const double p = std::exp(x[static_cast<size_t>(id)] / 0.7) / total;
      const double share = static_cast<double>(std::count(got.ids.begin(), got.ids.end(), id)) / rows;
      EXPECT_NEAR(share, p, 5 * std::sqrt(p * (1 - p) / rows)) << s.name << " id " << id;
    }
  }
}

TEST(Sampling, ADrawDoesNotDependOnTheRestOfTheBatch) {
  std::mt19937 rng(22);
  const Batch b = RandomBatch(&rng, 16, 2500, 2528, 2);
  for (const Subject& s : Subjects()) {
    Bed bed(s.table, s.options);
    const Drawn all = b.Run(&bed);
    for (int32_t r = 0; r < b.rows; r += 3) {
      Batch one = b;
      one.rows = 1;
      one.options = {b.options[static_cast<size_t>(r)]};
      const size_t bytes = static_cast<size_t>(b.width) * 4;
      one.logits.bytes.assign(b.logits.bytes.begin() + static_cast<int64_t>(bytes) * r, b.logits.bytes.begin() + static_cast<int64_t>(bytes) * (r + 1));
      EXPECT_EQ(one.Run(&bed).ids[0], all.ids[static_cast<size_t>(r)]) << s.name << " row " << r;
    }
  }
}

TEST(Sampling, LogprobsEqualTheTwin) {
  std::mt19937 rng(23);
  for (int32_t vocab : {3, 592, 49152}) {
    const int32_t rows = 9, width = vocab + 5;
    Values logits = Random(&rng, kF32, static_cast<int64_t>(rows) * width, 3);
    logits.set(2 * width + 1, NAN);
    std::vector<int32_t> ids, tops;
    for (int32_t r = 0; r < rows; ++r) ids.push_back(r == 4 ? vocab : static_cast<int32_t>(rng() % static_cast<unsigned>(vocab))), tops.push_back(r * 8);
    auto run = [&](Bed* bed) {
      LogprobArgs a{Dense(bed->Put(logits), kF32, 2, rows, width), vocab, bed->PutAll(ids), bed->PutAll(tops),
                    bed->PutAll(std::vector<float>(rows, 0)), bed->PutAll(std::vector<int32_t>(rows, 0)),
                    bed->PutAll(std::vector<int32_t>(rows * kMaxTopLogprobs, -9)), bed->PutAll(std::vector<float>(rows * kMaxTopLogprobs, -9))};
      EXPECT_EQ((*bed)->logprobs(bed->device(), &a, nullptr), kOk) << bed->error();
      Drawn d;
      d.logprobs = bed->GetAll(a.out_logprobs, rows);
      d.ranks = bed->GetAll(a.out_ranks, rows);
      d.top_ids = bed->GetAll(a.out_top_ids, rows * kMaxTopLogprobs);
      d.top_logprobs = bed->GetAll(a.out_top_logprobs, rows * kMaxTopLogprobs);
      return d;
    };
    Bed twin(ReferenceTable(), {});
    const Drawn want = run(&twin);
    for (const Subject& s : Subjects()) {
      Bed bed(s.table, s.options);
      const Drawn got = run(&bed);
      EXPECT_EQ(got.ranks, want.ranks) << s.name;
      EXPECT_EQ(got.top_ids, want.top_ids) << s.name;
      for (size_t i = 0; i < want.logprobs.size(); ++i) {
        EXPECT_TRUE(Near(got.logprobs[i], want.logprobs[i]));
      }
      for (size_t i = 0; i < want.top_logprobs.size(); ++i) {
        EXPECT_TRUE(Near(got.top_logprobs[i], want.top_logprobs[i]));
      }
    }
  }
}

}  // namespace
}  // namespace phalanx::kernels::testing
