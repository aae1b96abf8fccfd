#include "worker/exec/graphs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

namespace phalanx::worker::exec {
namespace {

using ::testing::ElementsAre;

// A table whose graphs only write down what is called.
std::vector<std::string> calls;
int graphs_made;

kernels::Table Recorder() {
  kernels::Table table{};
  table.name = "recorder";
  table.last_error = [](kernels::Device*) { return "refused"; };
  table.graph_begin = [](kernels::Device*, kernels::Stream) { return calls.push_back("begin"), kernels::kOk; };
  table.graph_end = [](kernels::Device*, kernels::Stream, kernels::Graph* out) {
    calls.push_back("end");
    *out = reinterpret_cast<kernels::Graph>(static_cast<intptr_t>(++graphs_made));
    return kernels::kOk;
  };
  table.graph_launch = [](kernels::Device*, kernels::Graph graph, kernels::Stream) {
    return calls.push_back("launch " + std::to_string(reinterpret_cast<intptr_t>(graph))), kernels::kOk;
  };
  table.graph_destroy = [](kernels::Device*, kernels::Graph graph) {
    calls.push_back("destroy " + std::to_string(reinterpret_cast<intptr_t>(graph)));
  };
  return table;
}

class DecodeGraphsTest : public ::testing::Test {
 protected:
  DecodeGraphsTest() { calls.clear(), graphs_made = 0; }
  const kernels::Table table_ = Recorder();
  const std::function<absl::Status()> pass_ = [] { return calls.push_back("pass"), absl::OkStatus(); };
};

core::StepPlan Decodes(std::vector<int32_t> starts) {
  core::StepPlan plan;
  for (const int32_t start : starts) plan.slices.push_back({0, start, 1, -1, true, false});
  return plan;
}

TEST_F(DecodeGraphsTest, AShapeIsRunAndRecordedThenReplayed) {
  {
    DecodeGraphs graphs(table_, nullptr, 64, 4096);
    EXPECT_FALSE(graphs.Has({8, 512}, 0));
    for (int i = 0; i < 3; ++i) EXPECT_TRUE(graphs.Run({8, 512}, 0, pass_).ok());
    EXPECT_THAT(calls, ElementsAre("pass", "begin", "pass", "end", "launch 1", "launch 1"));
    EXPECT_TRUE(graphs.Has({8, 512}, 0));
    calls.clear();
    for (int i = 0; i < 2; ++i) EXPECT_TRUE(graphs.Run({8, 1024}, 0, pass_).ok());
    EXPECT_TRUE(graphs.Run({8, 512}, 0, pass_).ok());
    EXPECT_THAT(calls, ElementsAre("pass", "begin", "pass", "end", "launch 2", "launch 1"));
    calls.clear();
    EXPECT_TRUE(graphs.Run({8, 512}, 1, pass_).ok());
    EXPECT_THAT(calls, ElementsAre("pass", "begin", "pass", "end")) << "another pass for the same shape";
    calls.clear();
  }
  EXPECT_THAT(calls, ElementsAre("destroy 1", "destroy 3", "destroy 2"));
}

TEST_F(DecodeGraphsTest, AFailedPassEndsItsRecordingAndIsTheError) {
  DecodeGraphs graphs(table_, nullptr, 64, 4096);
  int passes = 0;
  EXPECT_FALSE(graphs.Run({8, 512}, 0, [&] { return ++passes == 2 ? absl::InternalError("broken") : absl::OkStatus(); }).ok());
  EXPECT_THAT(calls, ElementsAre("begin", "end", "destroy 1"));
  EXPECT_FALSE(graphs.Has({8, 512}, 0));
}

TEST(DecodeGraphs, AllShapesAreThoseThatStepsGet) {
  const kernels::Table table = Recorder();
  std::vector<std::pair<int32_t, int32_t>> shapes;
  for (const Padding& shape : DecodeGraphs(table, nullptr, 20, 1500).AllShapes()) shapes.emplace_back(shape.rows, shape.context);
  using P = std::pair<int32_t, int32_t>;
  EXPECT_THAT(shapes, ElementsAre(P(20, 512), P(16, 512), P(8, 512), P(4, 512), P(2, 512), P(1, 512), P(20, 1024), P(16, 1024), P(8, 1024),
                                  P(4, 1024), P(2, 1024), P(1, 1024), P(20, 1500), P(16, 1500), P(8, 1500), P(4, 1500), P(2, 1500),
                                  P(1, 1500)));
}

TEST(DecodeGraphs, OnlyPlainDecodesThatFitHaveAShape) {
  const kernels::Table table = Recorder();
  const DecodeGraphs graphs(table, nullptr, 20, 3000);
  EXPECT_FALSE(graphs.ShapeOf({}));
  const auto three = graphs.ShapeOf(Decodes({5, 600, 7}));
  ASSERT_TRUE(three);
  EXPECT_EQ(three->rows, 4);
  EXPECT_EQ(three->context, 1024);
  const auto many = graphs.ShapeOf(Decodes(std::vector<int32_t>(18, 2500)));
  ASSERT_TRUE(many);
  EXPECT_EQ(many->rows, 20);
  EXPECT_EQ(many->context, 3000);
  EXPECT_FALSE(graphs.ShapeOf(Decodes(std::vector<int32_t>(21, 1))));
  core::StepPlan plan = Decodes({5, 6});
  plan.slices[1].count = 2;
  EXPECT_FALSE(graphs.ShapeOf(plan));
  plan = Decodes({5});
  plan.slices[0].sample = false;
  EXPECT_FALSE(graphs.ShapeOf(plan));
  plan = Decodes({5});
  plan.slices[0].prompt_logprobs = true;
  EXPECT_FALSE(graphs.ShapeOf(plan));
}

TEST(DecodeGraphs, Buckets) {
  std::vector<int32_t> rows;
  for (int32_t n : {1, 2, 3, 4, 5, 8, 9, 255, 256, 257, 300}) rows.push_back(PaddedRows(n));
  EXPECT_THAT(rows, ElementsAre(1, 2, 4, 4, 8, 8, 16, 256, 256, 272, 304));
  EXPECT_EQ(PaddedContext(1), 512);
  EXPECT_EQ(PaddedContext(512), 512);
  EXPECT_EQ(PaddedContext(513), 1024);
}

}  // namespace
}  // namespace phalanx::worker::exec
