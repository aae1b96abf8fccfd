#include "cli/commands.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cli/probe.h"

namespace phalanx::cli {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsSupersetOf;
using testing::Not;
using testing::Pair;
using Words = std::vector<std::string>;

ServePlan Plan(const Words& words, const std::string& tokenizer = "") {
  const auto options = ParseServe(words);
  EXPECT_TRUE(options.ok()) << options.status();
  return MakePlan(*options, {.worker = "/b/w", .router = "/b/r", .gateway = "/b/g", .socket_folder = "/s", .model_path = "/models/x",
                             .tokenizer_path = tokenizer, .cores = 7});
}

TEST(MakePlan, TheChildrenFindEachOther) {
  const ServePlan plan = Plan({"x", "--port", "0"});
  ASSERT_EQ(plan.children.size(), 3u);
  EXPECT_EQ(plan.router, 1u);
  EXPECT_EQ(plan.gateway, 2u);
  EXPECT_EQ(plan.children[0].process.program, "/b/w");
  EXPECT_THAT(plan.children[0].process.args, ElementsAre("--model=/models/x", "--listen=unix:/s/worker0", "--served-model-name=x",
                                                         "--gpu-memory-utilization=0.92", "--shutdown-timeout=30", "--log-level=info",
                                                         "--log-format=text"));
  EXPECT_THAT(plan.children[1].process.args, ElementsAre("--model=/models/x", "--served-model-name=x", "--workers=unix:/s/worker0",
                                                         "--listen=unix:/s/router", "--shutdown-timeout=30", "--log-level=info",
                                                         "--log-format=text"));
  EXPECT_THAT(plan.children[2].process.args,
              ElementsAre("--router=unix:/s/router", "--host=", "--port=0", "--shutdown-timeout=30", "--log-level=info",
                          "--log-format=text"));
}

TEST(MakePlan, AHostWhoseRanksFollowHasAWorkerOnly) {
  const ServePlan plan = Plan({"x", "-tp", "2", "--nnodes", "2", "--node-rank", "1", "--master-addr", "10.0.0.1", "--master-port", "7000"});
  ASSERT_EQ(plan.children.size(), 1u);
  EXPECT_FALSE(plan.gateway.has_value());
  EXPECT_THAT(plan.children[0].process.args, IsSupersetOf({"--tensor-parallel-size=2", "--nnodes=2", "--node-rank=1",
                                                           "--master-addr=10.0.0.1", "--master-port=7000"}));
}

TEST(MakePlan, EachFlagGoesToItsOwners) {
  const ServePlan plan = Plan({"x", "--max-model-len", "2k", "--seed", "3", "--max-logprobs", "5", "--allowed-origins", "a", "b",
                               "--host", "::1", "--grpc-port", "9", "--served-model-name", "n1", "n2", "--shutdown-timeout", "1.5"},
                              "/tok");
  EXPECT_THAT(plan.children[0].process.args,
              IsSupersetOf({"--max-model-len=2000", "--max-logprobs=5", "--served-model-name=n1", "--shutdown-timeout=1.5"}));
  EXPECT_THAT(plan.children[0].process.args, Not(Contains(HasSubstr("seed"))));
  EXPECT_THAT(plan.children[1].process.args,
              IsSupersetOf({"--seed=3", "--max-logprobs=5", "--served-model-name=n1", "--served-model-name=n2", "--tokenizer=/tok",
                            "--grpc-listen=127.0.0.1:9"}));
  EXPECT_THAT(plan.children[1].process.args, Not(Contains(HasSubstr("max-model-len"))));
  EXPECT_THAT(plan.children[2].process.args, IsSupersetOf({"--allowed-origins=a", "--allowed-origins=b", "--host=::1", "--port=8000"}));
  EXPECT_THAT(plan.children[2].process.args, Not(Contains(HasSubstr("seed"))));
}

TEST(MakePlan, KeysOnlyInTheGatewaysEnvironment) {
  const ServePlan plan = Plan({"x", "--api-key", "k1", "k2"});
  for (const auto& child : plan.children) {
    EXPECT_THAT(child.process.args, Not(Contains(HasSubstr("k1"))));
    EXPECT_THAT(child.process.unset_env, IsSupersetOf({"PHALANX_API_KEY", "VLLM_API_KEY"}));
  }
  EXPECT_THAT(plan.children[0].process.unset_env, Not(Contains("PHALANX_TP_SECRET")));  // the secret among ranks is for workers alone
  EXPECT_THAT(plan.children[1].process.unset_env, Contains("PHALANX_TP_SECRET"));
  EXPECT_THAT(plan.children[2].process.unset_env, Contains("PHALANX_TP_SECRET"));
  EXPECT_TRUE(plan.children[0].process.set_env.empty());
  EXPECT_TRUE(plan.children[1].process.set_env.empty());
  EXPECT_THAT(plan.children[2].process.set_env, ElementsAre(Pair("PHALANX_API_KEY", "k1,k2")));
}

TEST(MakePlan, WorkersShareCoresAndMemory) {
  const ServePlan plan = Plan({"x", "--num-workers", "2", "--gpu-memory-utilization", "0.5"});
  ASSERT_EQ(plan.children.size(), 4u);
  EXPECT_EQ(plan.children[1].process.name, "worker 1");
  EXPECT_THAT(plan.children[0].process.args, IsSupersetOf({"--threads=4", "--gpu-memory-utilization=0.25", "--listen=unix:/s/worker0"}));
  EXPECT_THAT(plan.children[1].process.args, IsSupersetOf({"--threads=3", "--gpu-memory-utilization=0.25", "--listen=unix:/s/worker1"}));
  EXPECT_THAT(plan.children[2].process.args, IsSupersetOf({"--workers=unix:/s/worker0", "--workers=unix:/s/worker1"}));
  EXPECT_NE(plan.children[0].policy.unit, plan.children[1].policy.unit);  // one that dies leaves the other alone
  EXPECT_THAT(Plan({"x", "--threads", "5"}).children[0].process.args, Contains("--threads=5"));
}

TEST(MakePlan, TheGatewayStopsFirstAndTheWorkersLast) {
  const ServePlan plan = Plan({"x"});
  EXPECT_LT(plan.children[2].policy.stage, plan.children[1].policy.stage);
  EXPECT_LT(plan.children[1].policy.stage, plan.children[0].policy.stage);
}

TEST(ShareThreads, AtLeastOneEach) {
  EXPECT_THAT(ShareThreads(8, 3), ElementsAre(3, 3, 2));
  EXPECT_THAT(ShareThreads(2, 2), ElementsAre(1, 1));
  EXPECT_THAT(ShareThreads(1, 3), ElementsAre(1, 1, 1));
}

TEST(WithPort, ReplacesOnlyTheFreePort) {
  EXPECT_EQ(WithPort({"--port=0", "--x=0"}, "81"), (Words{"--port=81", "--x=0"}));
  EXPECT_EQ(WithPort({"--port=8000"}, "8000"), (Words{"--port=8000"}));
}

TEST(Reachable, IsWhereThisHostCanConnect) {
  EXPECT_EQ(Reachable("0.0.0.0:80"), "127.0.0.1:80");
  EXPECT_EQ(Reachable("[::]:80"), "127.0.0.1:80");
  EXPECT_EQ(Reachable(":80"), "127.0.0.1:80");
  EXPECT_EQ(Reachable("[::1]:80"), "[::1]:80");
  EXPECT_EQ(Reachable("10.0.0.5:80"), "10.0.0.5:80");
}

}  // namespace
}  // namespace phalanx::cli
