// Ranks without processes: where a rank stands, and plans over a group whose ranks are threads with a hash for a model.
#include "worker/ranks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <fstream>
#include <future>
#include <map>
#include <numeric>

#include "tests/fakes/executor.h"
#include "worker/follower.h"
#include "worker/leader.h"
#include "worker/plan/scheduler.h"
#include "worker/ranks_terms.h"
#include "worker/tp/tp_test_util.h"

namespace phalanx::worker {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

using Variables = std::map<std::string, std::string>;

absl::StatusOr<RankPlace> Place(const WorkerOptions& options, const Variables& variables = {}) {
  return PlaceRank(options, [&](const char* name) {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

std::string ErrorOf(const WorkerOptions& options, const Variables& variables = {}) {
  const auto place = Place(options, variables);
  return place.ok() ? "" : std::string(place.status().message());
}

TEST(PlaceRank, AWorkerAloneNeedsNothing) {
  const auto place = Place({});
  ASSERT_TRUE(place.ok()) << place.status();
  EXPECT_TRUE(place->alone());
  EXPECT_EQ(place->ProcessName(), "worker");
  EXPECT_EQ(ThreadsOfRank(*place, 0), 0);
}

TEST(PlaceRank, RanksOfOneHostMeetOnLoopbackWithASecretOfTheirOwn) {
  WorkerOptions options;
  options.tensor_parallel_size = 3;
  const auto first = Place(options);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(first->rank(), 0);
  EXPECT_EQ(first->host.count, 3);
  EXPECT_EQ(first->meet.master_address, "127.0.0.1");
  EXPECT_EQ(first->meet.master_port, 0);
  EXPECT_GE(first->meet.secret.size(), 32u);
  EXPECT_NE(first->meet.secret, Place(options)->meet.secret);
  options.tp_rank = 2;
  setenv("PHALANX_TP_SECRET", first->meet.secret.c_str(), 1);
  const auto started = Place(options, {{"PHALANX_TP_PORT", "7001"}});
  unsetenv("PHALANX_TP_SECRET");
  ASSERT_TRUE(started.ok()) << started.status();
  EXPECT_EQ(started->rank(), 2);
  EXPECT_FALSE(started->first_of_host());
  EXPECT_EQ(started->meet.master_port, 7001);
  EXPECT_EQ(started->meet.secret, first->meet.secret);
  EXPECT_EQ(started->ProcessName(), "worker rank 2");
  EXPECT_EQ(ThreadsOfRank(*first, 8), 3);
  EXPECT_EQ(ThreadsOfRank(*started, 8), 2);
  EXPECT_EQ(ThreadsOfRank(*started, 1), 1);
  EXPECT_THAT(ErrorOf(options), HasSubstr("PHALANX_TP_PORT"));
}

TEST(PlaceRank, SeveralHostsByFlagsOrByLeaderWorkerSet) {
  WorkerOptions options;
  options.tensor_parallel_size = 8;
  options.nnodes = 2;
  options.node_rank = 1;
  options.master_addr = "10.0.0.1";
  const auto flags = Place(options);
  ASSERT_TRUE(flags.ok()) << flags.status();
  EXPECT_EQ(flags->rank(), 4);
  EXPECT_EQ(flags->host.count, 4);
  EXPECT_TRUE(flags->first_of_host());
  EXPECT_EQ(flags->meet.master_port, 29501);
  EXPECT_EQ(flags->meet.master_address, "10.0.0.1");
  options.nnodes = 1;
  options.node_rank = 0;
  const auto set = Place(options, {{"LWS_LEADER_ADDRESS", "lws-0"}, {"LWS_GROUP_SIZE", "4"}, {"LWS_WORKER_INDEX", "3"}});
  ASSERT_TRUE(set.ok()) << set.status();
  EXPECT_EQ(set->rank(), 6);
  EXPECT_EQ(set->meet.master_address, "lws-0");
}

TEST(PlaceRank, WrongWordsNameTheirFlag) {
  WorkerOptions options;
  options.tensor_parallel_size = 3;
  options.nnodes = 2;
  EXPECT_THAT(ErrorOf(options), HasSubstr("--tensor-parallel-size 3 cannot be shared out to 2 hosts"));
  options.node_rank = 2;
  EXPECT_EQ(ErrorOf(options), "--node-rank 2 is not one of --nnodes 2 (they count from 0)");
  options = {};
  options.tensor_parallel_size = 2;
  setenv("PHALANX_TP_SECRET", "short", 1);
  EXPECT_THAT(ErrorOf(options), HasSubstr("16"));
  unsetenv("PHALANX_TP_SECRET");
  options.tp_secret_file = "/no/such";
  EXPECT_THAT(ErrorOf(options), HasSubstr("/no/such"));
  EXPECT_THAT(ErrorOf({}, {{"LWS_GROUP_SIZE", "2"}}), HasSubstr("LWS_LEADER_ADDRESS"));
}

TEST(WeightsDigest, TellsFilesApart) {
  const std::string path = ::testing::TempDir() + "ranks_test.gguf";
  std::string bytes(3 << 20, 'x');
  std::ofstream(path, std::ios::binary) << bytes;
  const std::string first = *WeightsDigest(path);
  EXPECT_EQ(*WeightsDigest(path), first);
  bytes.back() = 'y';
  std::ofstream(path, std::ios::binary) << bytes;
  EXPECT_NE(*WeightsDigest(path), first);
  EXPECT_FALSE(WeightsDigest("/no/such.gguf").ok());
}

core::StepResult Drew(uint64_t step, std::vector<std::pair<int32_t, int32_t>> rows) {
  core::StepResult out;
  out.step = step;
  for (const auto& [row, id] : rows) out.slices.push_back({.row = row, .sampled = true, .token = {.id = id}});
  return out;
}

TEST(PlanMessage, ComesBackAndNothingElseDoes) {
  core::StepPlan plan;
  plan.step = 9;
  plan.slices = {{.row = 1, .start = 4, .count = 1, .token_offset = -1, .sample = true}};
  plan.num_tokens = 1;
  const std::string bytes = PlanMessage({8, 77}, plan);
  const auto back = ParsePlanMessage(bytes);
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->drawn.step, 8u);
  EXPECT_EQ(back->drawn.hash, 77u);
  EXPECT_EQ(core::Serialize(back->plan), core::Serialize(plan));
  for (size_t size = 0; size < bytes.size(); ++size) EXPECT_FALSE(ParsePlanMessage(bytes.substr(0, size)).ok()) << size;
}

TEST(HashDrawn, ChangesWithEveryIdRowAndOrder) {
  const uint64_t hash = HashDrawn(Drew(1, {{0, 5}, {1, 6}})).hash;
  EXPECT_EQ(HashDrawn(Drew(2, {{0, 5}, {1, 6}})).hash, hash);
  EXPECT_NE(HashDrawn(Drew(1, {{0, 6}, {1, 5}})).hash, hash);
  EXPECT_NE(HashDrawn(Drew(1, {{1, 6}, {0, 5}})).hash, hash);
  EXPECT_NE(HashDrawn(Drew(1, {{0, 5}})).hash, hash);
  EXPECT_NE(HashDrawn(Drew(1, {{0, 5}, {1, -1}})).hash, hash);
}

// Draws one other token in one step.
class Astray : public core::Executor {
 public:
  Astray(const fakes::FakeExecutorOptions& options, uint64_t step) : fake_(options), step_(step) {}
  const core::ExecutorInfo& info() const override { return fake_.info(); }
  absl::Status Launch(const core::StepPlan& plan) override { return fake_.Launch(plan); }
  absl::StatusOr<core::StepResult> Collect() override {
    absl::StatusOr<core::StepResult> result = fake_.Collect();
    if (result.ok() && result->step == step_ && !result->slices.empty()) result->slices[0].token.id ^= 1;
    return result;
  }

 private:
  fakes::FakeExecutor fake_;
  const uint64_t step_;
};

// Rank 0 with a scheduler, driven by the test, and followers on threads.
class GroupTest : public ::testing::Test {
 protected:
  GroupTest() {
    fake_.info = {.num_blocks = 64, .block_size = 4, .max_rows = 8, .max_step_tokens = 32, .max_model_len = 128, .vocab_size = 500};
    fake_.check_context = true;
  }
  void Start(std::vector<std::unique_ptr<core::Executor>> followers) {
    controls_ = tp::MakeControls(static_cast<int>(followers.size()) + 1);
    followers_ = std::move(followers);
    for (size_t i = 0; i < followers_.size(); ++i) {
      loops_.push_back(std::async(std::launch::async, [this, i] {
        const absl::Status status = Follow(*controls_[i + 1], *followers_[i], [this] { return stay_.load(); });
        if (!status.ok()) controls_[i + 1].reset();  // as a process that ends
        return status;
      }));
    }
    leader_ = std::make_unique<LeaderExecutor>(controls_[0].get(), std::make_unique<fakes::FakeExecutor>(fake_));
    plan::SchedulerOptions options;
    options.limits = leader_->info();
    scheduler_ = std::make_unique<plan::Scheduler>(options);
  }
  core::Request Make(core::SequenceId id, int32_t prompt, int32_t max_tokens) const {
    core::Request request;
    request.id = id;
    request.prompt_ids.resize(static_cast<size_t>(prompt));
    std::iota(request.prompt_ids.begin(), request.prompt_ids.end(), static_cast<int32_t>(id) * 3);
    request.max_tokens = max_tokens;
    request.sampling.seed = id;
    return request;
  }
  // Plans and runs until nothing is left; the first error otherwise.
  absl::Status RunAll() {
    for (double now = 0;; now += 1) {
      const core::StepPlan plan = scheduler_->Plan(now);
      if (plan.slices.empty()) return absl::OkStatus();
      last_step_ = plan.step;
      PHX_ASSIGN_OR_RETURN(const core::StepResult result, leader_->Run(plan));
      for (const core::SequenceEvent& event : scheduler_->Commit(result, now).events) {
        for (const core::TokenInfo& token : event.tokens) tokens_[event.id].push_back(token.id);
      }
    }
  }
  absl::Status EndOf(size_t follower) { return loops_[follower].get(); }

  fakes::FakeExecutorOptions fake_;
  std::atomic<bool> stay_{true};
  std::vector<std::unique_ptr<tp::Control>> controls_;
  std::vector<std::unique_ptr<core::Executor>> followers_;
  std::vector<std::future<absl::Status>> loops_;
  std::unique_ptr<LeaderExecutor> leader_;
  std::unique_ptr<plan::Scheduler> scheduler_;
  std::map<core::SequenceId, std::vector<int32_t>> tokens_;
  uint64_t last_step_ = 0;
};

TEST_F(GroupTest, FollowersRunWhatTheLeaderRuns) {
  std::vector<std::unique_ptr<core::Executor>> followers;
  for (int i = 0; i < 2; ++i) followers.push_back(std::make_unique<fakes::FakeExecutor>(fake_));
  Start(std::move(followers));
  EXPECT_FALSE(*leader_->Prepare());
  std::vector<core::Request> requests;
  for (core::SequenceId id = 1; id <= 20; ++id) {
    requests.push_back(Make(id, 1 + static_cast<int32_t>(id * 7 % 60), 1 + static_cast<int32_t>(id * 5 % 40)));
    ASSERT_TRUE(scheduler_->Submit(requests.back(), 0).ok());
  }
  ASSERT_TRUE(RunAll().ok());
  for (const core::Request& request : requests) EXPECT_EQ(tokens_[request.id], fakes::ExpectedTokens(fake_, request)) << request.id;
  // Without sums between them the followers may be behind. They take a plan, run it, and look for the next.
  for (int rank = 1; rank <= 2; ++rank) {
    while (controls_[0]->step_of(rank) < last_step_) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }
  controls_[0].reset();
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(EndOf(i), absl::OkStatus());
    const auto& fake = static_cast<const fakes::FakeExecutor&>(*followers_[i]);
    EXPECT_EQ(fake.steps(), last_step_);
    EXPECT_THAT(fake.violation(), IsEmpty());
  }
}

TEST_F(GroupTest, ADeviceErrorOfAFollowerIsTheReasonEverywhere) {
  std::vector<std::unique_ptr<core::Executor>> followers;
  followers.push_back(std::make_unique<fakes::FakeExecutor>(fake_));
  fakes::FakeExecutorOptions broken = fake_;
  broken.fail_at_step = 5;
  followers.push_back(std::make_unique<fakes::FakeExecutor>(broken));
  Start(std::move(followers));
  ASSERT_TRUE(scheduler_->Submit(Make(1, 10, 100), 0).ok());
  absl::Status status = RunAll();
  const std::string why(EndOf(1).message());
  EXPECT_THAT(why, HasSubstr("rank 2: "));
  while (status.ok()) status = controls_[0]->status();
  EXPECT_EQ(std::string(status.message()), why);
  EXPECT_EQ(std::string(EndOf(0).message()), why);
}

TEST_F(GroupTest, OtherTokensOnAFollowerAreFoundInTheNextStep) {
  std::vector<std::unique_ptr<core::Executor>> followers;
  followers.push_back(std::make_unique<Astray>(fake_, 7));
  Start(std::move(followers));
  ASSERT_TRUE(scheduler_->Submit(Make(1, 10, 100), 0).ok());
  absl::Status status = RunAll();
  const std::string expected = "rank 1: drew other tokens than rank 0 in step 7";
  EXPECT_EQ(std::string(EndOf(0).message()), expected);
  // The leader may have run a step or two before it heard.
  while (status.ok()) status = controls_[0]->status();
  EXPECT_EQ(std::string(status.message()), expected);
}

TEST_F(GroupTest, ADeviceErrorOfTheLeaderIsToldToTheFollowers) {
  fakes::FakeExecutorOptions good = fake_;
  fake_.fail_in_collect = 3;
  std::vector<std::unique_ptr<core::Executor>> followers;
  followers.push_back(std::make_unique<fakes::FakeExecutor>(good));
  Start(std::move(followers));
  ASSERT_TRUE(scheduler_->Submit(Make(1, 10, 100), 0).ok());
  const absl::Status status = RunAll();
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 0: "));
  EXPECT_EQ(std::string(EndOf(0).message()), std::string(status.message()));
}

TEST_F(GroupTest, AFollowerThatIsToldToEndSaysSo) {
  std::vector<std::unique_ptr<core::Executor>> followers;
  followers.push_back(std::make_unique<fakes::FakeExecutor>(fake_));
  Start(std::move(followers));
  stay_ = false;
  EXPECT_EQ(EndOf(0).code(), absl::StatusCode::kAborted);
}

TEST(BreakGroup, NeverLooksLikeAnEndInGoodOrder) {
  auto controls = tp::MakeControls(2);
  const absl::Status verdict = BreakGroup(*controls[1], absl::CancelledError("a library was cancelled"));
  EXPECT_EQ(verdict.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(std::string(verdict.message()), "rank 1: a library was cancelled");
  EXPECT_EQ(std::string(BreakGroup(*controls[1], absl::InternalError("later")).message()), "rank 1: a library was cancelled");
}

}  // namespace
}  // namespace phalanx::worker
