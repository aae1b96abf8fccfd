// Sums and gathers over Gloo between ranks that are threads, and over a kernel table that has collectives.
#include "worker/tp/group.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <random>

#include "worker/tp/gloo_group.h"
#include "worker/tp/nccl_group.h"
#include "worker/tp/reduce.h"
#include "worker/tp/tp_test_util.h"

namespace phalanx::worker::tp {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;

class Team {
 public:
  explicit Team(int size, const GroupOptions& options = {}) : controls(MakeControls(size)), groups(static_cast<size_t>(size)) {
    OnAllRanks(size, [&](int rank) {
      auto group = MakeGlooGroup(*controls[static_cast<size_t>(rank)], options);
      EXPECT_TRUE(group.ok()) << group.status();
      if (group.ok()) groups[static_cast<size_t>(rank)] = *std::move(group);
    });
  }
  std::vector<std::unique_ptr<Control>> controls;
  std::vector<std::unique_ptr<Group>> groups;
};

std::vector<char> RandomTensor(kernels::DType dtype, size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 100);
  std::vector<char> out(count * kernels::DTypeBytes(dtype));
  for (size_t i = 0; i < count; ++i) {
    const auto bits = std::bit_cast<uint32_t>(normal(random));
    if (dtype == kernels::kF32) {
      std::memcpy(out.data() + 4 * i, &bits, 4);
    } else {
      const auto high = static_cast<uint16_t>(bits >> 16);
      std::memcpy(out.data() + 2 * i, &high, 2);
    }
  }
  return out;
}

kernels::Tensor View(std::vector<char>& bytes, kernels::DType dtype) {
  return kernels::Dense(bytes.data(), dtype, 1, static_cast<int64_t>(bytes.size() / kernels::DTypeBytes(dtype)));
}

// Sizes around a piece, a share of a piece, and the switch to two hops.
TEST(Gloo, SumsInRankOrderOnEveryRank) {
  for (const int size : {2, 3, 4}) {
    Team team(size);
    for (const kernels::DType dtype : {kernels::kF32, kernels::kBF16}) {
      for (const size_t count : {0, 1, 3, 1023, 8192, 8193, 16384, 20001, 32768, 32769, 65537, 200003}) {
        std::vector<std::vector<char>> parts;
        std::vector<const void*> pointers;
        for (int rank = 0; rank < size; ++rank) parts.push_back(RandomTensor(dtype, count, static_cast<uint32_t>(rank) + 1));
        for (const auto& part : parts) pointers.push_back(part.data());
        std::vector<char> wanted(parts[0].size());
        SumInRankOrder(dtype, pointers, wanted.data(), static_cast<int64_t>(count));
        OnAllRanks(size, [&](int rank) {
          std::vector<char> data = parts[static_cast<size_t>(rank)];
          EXPECT_TRUE(team.groups[static_cast<size_t>(rank)]->AllReduce(View(data, dtype), nullptr).ok());
          EXPECT_TRUE(data == wanted) << "size " << size << " count " << count << " rank " << rank;
        });
      }
    }
  }
}

TEST(Gloo, ManySumsWithRanksOutOfStep) {
  constexpr int kSize = 4;
  Team team(kSize);
  OnAllRanks(kSize, [&](int rank) {
    std::mt19937 random(static_cast<uint32_t>(rank));
    std::mt19937 sizes(99);  // the same on every rank
    for (int round = 0; round < 300; ++round) {
      std::vector<float> data(1 + sizes() % (round % 10 == 0 ? 50000 : 2000), static_cast<float>(round + rank));
      if (random() % 8 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 500));
      const kernels::Tensor tensor = kernels::Dense(data.data(), kernels::kF32, 1, static_cast<int64_t>(data.size()));
      ASSERT_TRUE(team.groups[static_cast<size_t>(rank)]->AllReduce(tensor, nullptr).ok());
      for (const float x : data) ASSERT_EQ(x, static_cast<float>(4 * round + 6));
    }
  });
}

TEST(Gloo, Gathers) {
  for (const int size : {2, 4}) {
    Team team(size);
    for (const size_t count : {0, 1, 100, 8192, 8193, 100000}) {
      OnAllRanks(size, [&](int rank) {
        for (const bool in_place : {false, true}) {
          std::vector<int32_t> out(static_cast<size_t>(size) * count, -1);
          std::vector<int32_t> shard(count);
          int32_t* const from = in_place ? out.data() + static_cast<size_t>(rank) * count : shard.data();
          for (size_t i = 0; i < count; ++i) from[i] = static_cast<int32_t>(1000000 * rank + static_cast<int>(i));
          const auto elements = static_cast<int64_t>(count);
          const kernels::Tensor part = kernels::Dense(from, kernels::kI32, 1, elements);
          const kernels::Tensor whole = kernels::Dense(out.data(), kernels::kI32, 2, size, elements);
          EXPECT_TRUE(team.groups[static_cast<size_t>(rank)]->AllGather(part, whole, nullptr).ok());
          for (size_t i = 0; i < out.size(); ++i) {
            ASSERT_EQ(out[i], static_cast<int32_t>(1000000 * (i / count) + i % count)) << "rank " << rank << " element " << i;
          }
        }
      });
    }
  }
}

TEST(Gloo, BusyPolling) {
  Team team(2, {.busy_poll = true});
  OnAllRanks(2, [&](int rank) {
    float x = static_cast<float>(rank + 1);
    const kernels::Tensor tensor = kernels::Dense(&x, kernels::kF32, 1, 1);
    for (int i = 0; i < 3; ++i) EXPECT_TRUE(team.groups[static_cast<size_t>(rank)]->AllReduce(tensor, nullptr).ok());
    EXPECT_EQ(x, 12);
  });
}

TEST(Gloo, ARankThatStaysAwayIsNamedInTime) {
  Team team(3, {.collective_timeout_ms = 300});
  OnAllRanks(3, [&](int rank) {
    if (rank == 1) return;
    float x = 1;
    Group& group = *team.groups[static_cast<size_t>(rank)];
    const Time begin = Now();
    const absl::Status status = group.AllReduce(kernels::Dense(&x, kernels::kF32, 1, 1), nullptr);
    EXPECT_GE(MillisSince(begin), 299);
    EXPECT_LT(MillisSince(begin), 1500);
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
    EXPECT_THAT(Message(status), HasSubstr("with rank 1"));
    const Time again = Now();
    EXPECT_EQ(group.AllReduce(kernels::Dense(&x, kernels::kF32, 1, 1), nullptr), status);  // sticky, and at once
    EXPECT_LT(MillisSince(again), 50);
  });
  // Rank 1, which did nothing, has the verdict too.
  const Time begin = Now();
  while (team.controls[1]->status().ok() && MillisSince(begin) < 1000) std::this_thread::sleep_for(milliseconds(1));
  EXPECT_THAT(Message(team.controls[1]->status()), HasSubstr("with rank 1"));
}

TEST(Gloo, ARankThatLeavesEndsASumAtOnce) {
  Team team(3);
  const Time begin = Now();
  OnAllRanks(3, [&](int rank) {
    const auto i = static_cast<size_t>(rank);
    if (rank == 2) {
      std::this_thread::sleep_for(milliseconds(50));
      team.groups[i].reset();
      team.controls[i].reset();
      return;
    }
    float x = 1;
    EXPECT_FALSE(team.groups[i]->AllReduce(kernels::Dense(&x, kernels::kF32, 1, 1), nullptr).ok());
    EXPECT_THAT(Message(team.controls[i]->status()), HasSubstr("rank 2"));
  });
  EXPECT_LT(MillisSince(begin), 1500);
}

TEST(Gloo, AWrongTensorSendsNothing) {
  Team team(2);
  int32_t x = 1;
  EXPECT_EQ(team.groups[0]->AllReduce(kernels::Dense(&x, kernels::kI32, 1, 1), nullptr).code(), absl::StatusCode::kInvalidArgument);
  OnAllRanks(2, [&](int rank) {
    float y = 2;
    EXPECT_TRUE(team.groups[static_cast<size_t>(rank)]->AllReduce(kernels::Dense(&y, kernels::kF32, 1, 1), nullptr).ok());
    EXPECT_EQ(y, 4);
  });
}

TEST(Gloo, ConnectingWithoutAPeerEndsInTime) {
  auto controls = MakeControls(2);
  const Time begin = Now();
  const auto group = MakeGlooGroup(*controls[0], {.collective_timeout_ms = 100});
  EXPECT_FALSE(group.ok());
  EXPECT_LT(MillisSince(begin), 2000);
  EXPECT_FALSE(controls[0]->status().ok());
}

// ---- a table with collectives ---------------------------------------------------------------------------------------

struct Seen {
  std::string id;
  int rank = -1;
  int size = -1;
  int reduces = 0;
  kernels::Stream stream = nullptr;
  kernels::Code answer = kernels::kOk;
};

Seen& State(kernels::Device* device) { return *reinterpret_cast<Seen*>(device); }

kernels::Table FakeTable() {
  kernels::Table table = {};
  table.name = "fake";
  table.last_error = [](kernels::Device*) { return "unhandled system error"; };
  table.group_create = [](kernels::Device* device, const void* id, int32_t rank, int32_t size) {
    Seen& seen = State(device);
    seen.id.assign(static_cast<const char*>(id), kUniqueIdBytes);
    seen.rank = rank;
    seen.size = size;
    return kernels::kOk;
  };
  table.all_reduce = [](kernels::Device* device, kernels::Tensor, kernels::Stream stream) {
    State(device).reduces += 1;
    State(device).stream = stream;
    return State(device).answer;
  };
  table.all_gather = [](kernels::Device* device, kernels::Tensor, kernels::Tensor, kernels::Stream) { return State(device).answer; };
  return table;
}

TEST(Nccl, ForwardsAndSharesTheIdentity) {
  const kernels::Table table = FakeTable();
  auto controls = MakeControls(3);
  Seen seen[3];
  int stream = 0;
  OnAllRanks(3, [&](int rank) {
    auto* const device = reinterpret_cast<kernels::Device*>(&seen[rank]);
    const auto make = [] { return absl::StatusOr<std::string>(std::string(kUniqueIdBytes, 'u')); };
    auto group = MakeGroup(table, device, controls[static_cast<size_t>(rank)].get(), {}, make);
    ASSERT_TRUE(group.ok()) << group.status();
    float x = 1;
    EXPECT_TRUE((*group)->AllReduce(kernels::Dense(&x, kernels::kF32, 1, 1), reinterpret_cast<kernels::Stream>(&stream)).ok());
    EXPECT_EQ(seen[rank].id, std::string(kUniqueIdBytes, 'u'));
    EXPECT_EQ(seen[rank].rank, rank);
    EXPECT_EQ(seen[rank].size, 3);
    EXPECT_EQ(seen[rank].reduces, 1);
    EXPECT_EQ(static_cast<void*>(seen[rank].stream), &stream);
  });
}

TEST(Nccl, AFailureIsNamedAndSticky) {
  const kernels::Table table = FakeTable();
  auto controls = MakeControls(2);
  Seen seen[2];
  OnAllRanks(2, [&](int rank) {
    auto* const device = reinterpret_cast<kernels::Device*>(&seen[rank]);
    auto group = MakeGroup(table, device, controls[static_cast<size_t>(rank)].get(), {}, [] { return std::string(kUniqueIdBytes, 'u'); });
    ASSERT_TRUE(group.ok());
    if (rank == 1) return;
    float x = 1;
    seen[0].answer = kernels::kDeviceError;
    const absl::Status status = (*group)->AllReduce(kernels::Dense(&x, kernels::kF32, 1, 1), nullptr);
    EXPECT_THAT(Message(status), HasSubstr("all_reduce on rank 0 failed with code 4: unhandled system error"));
    seen[0].answer = kernels::kOk;
    EXPECT_EQ((*group)->AllReduce(kernels::Dense(&x, kernels::kF32, 1, 1), nullptr), status);
    EXPECT_EQ(seen[0].reduces, 1);
  });
}

TEST(Nccl, WhatIsMissingIsSaid) {
  kernels::Table table = FakeTable();
  auto controls = MakeControls(2);
  table.all_gather = nullptr;
  absl::Status status = MakeGroup(table, nullptr, controls[0].get(), {}, {}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(Message(status), HasSubstr("the fake back end has no collectives"));
  status = MakeGroup(FakeTable(), nullptr, controls[0].get(), {}, {}).status();
  EXPECT_THAT(Message(status), HasSubstr("gives no identity"));
  table = {};
  table.name = "cuda";
  EXPECT_EQ(MakeGroup(table, nullptr, controls[0].get(), {}, {}).status().code(), absl::StatusCode::kUnimplemented);
}

TEST(MakeGroup, ChoosesByTableAndSize) {
  kernels::Table table = {};
  table.name = "cpu";
  EXPECT_EQ((*MakeGroup(table, nullptr, nullptr, {}, {}))->size(), 1);
  auto controls = MakeControls(2);
  OnAllRanks(2, [&](int rank) {
    auto group = MakeGroup(table, nullptr, controls[static_cast<size_t>(rank)].get(), {}, {});
    ASSERT_TRUE(group.ok()) << group.status();
    EXPECT_EQ((*group)->size(), 2);
    EXPECT_EQ((*group)->rank(), rank);
  });
  const GroupOptions never = {.collective_timeout_ms = 0};
  EXPECT_EQ(MakeGroup(table, nullptr, controls[0].get(), never, {}).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace phalanx::worker::tp
