// Plans, replies, heartbeats, the store and the verdict, between ranks that are threads.
#include "worker/tp/control.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/uio.h>

#include <atomic>

#include "worker/tp/tp_test_util.h"

namespace phalanx::worker::tp {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;

// Heartbeats fast enough that silence shows within a test.
ControlOptions Quick() {
  ControlOptions options;
  options.monitor.heartbeat_ms = 20;
  options.monitor.silence_ms = 200;
  options.monitor.progress_ms = 300;
  return options;
}

TEST(Control, PlansAndRepliesInOrder) {
  for (const int size : {1, 2, 4}) {
    auto controls = MakeControls(size);
    OnAllRanks(size, [&](int rank) {
      Control& control = *controls[static_cast<size_t>(rank)];
      for (uint64_t step = 1; step <= 200; ++step) {
        const std::string plan(static_cast<size_t>(step * 977 % 60000), static_cast<char>('a' + step % 26));
        if (rank == 0) {
          ASSERT_TRUE(control.Broadcast(step, plan, In(5000)).ok());
          const auto replies = control.Collect(step, In(5000));
          ASSERT_TRUE(replies.ok()) << replies.status();
          ASSERT_EQ(static_cast<int>(replies->size()), size - 1);
          for (int peer = 1; peer < size; ++peer) EXPECT_EQ((*replies)[static_cast<size_t>(peer - 1)].bytes, std::to_string(peer + step));
        } else {
          const auto message = control.Receive(In(5000));
          ASSERT_TRUE(message.ok()) << message.status();
          EXPECT_EQ(message->step, step);
          EXPECT_EQ(message->bytes, plan);
          ASSERT_TRUE(control.Reply(step, std::to_string(static_cast<uint64_t>(rank) + step), In(5000)).ok());
        }
      }
    });
  }
}

TEST(Control, PlansMayRunAhead) {
  auto controls = MakeControls(2);
  for (uint64_t step = 1; step <= 50; ++step) ASSERT_TRUE(controls[0]->Broadcast(step, std::string(1000, 'p'), In(1000)).ok());
  for (uint64_t step = 1; step <= 50; ++step) EXPECT_EQ(controls[1]->Receive(In(1000))->step, step);
}

TEST(Control, APlanLargerThanTheSocketsTakes) {
  auto controls = MakeControls(3);
  const std::string plan(20 << 20, 'x');
  OnAllRanks(3, [&](int rank) {
    if (rank == 0) {
      EXPECT_TRUE(controls[0]->Broadcast(1, plan, In(5000)).ok());
    } else {
      EXPECT_EQ(controls[static_cast<size_t>(rank)]->Receive(In(5000))->bytes, plan);
    }
  });
  EXPECT_EQ(controls[0]->Broadcast(2, std::string((64 << 20) + 1, 'x'), In(1000)).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(controls[0]->status().ok());
}

TEST(Control, WaitingForAPlanIsNoFault) {
  auto controls = MakeControls(2, Quick());
  const Time begin = Now();
  EXPECT_EQ(controls[1]->Receive(In(400)).status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_GE(MillisSince(begin), 399);
  EXPECT_TRUE(controls[1]->status().ok());
  ASSERT_TRUE(controls[0]->Broadcast(1, "p", In(1000)).ok());
  EXPECT_TRUE(controls[1]->Receive(In(1000)).ok());
}

TEST(Control, AReplyThatDoesNotComeBreaksTheGroup) {
  auto controls = MakeControls(3);
  ASSERT_TRUE(controls[1]->Reply(7, "ok", In(1000)).ok());
  const absl::Status late = controls[0]->Collect(7, In(100)).status();
  EXPECT_EQ(late.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(Message(late), "rank 2 did not answer step 7 in time");
  EXPECT_EQ(controls[0]->Broadcast(8, "p", In(1000)), late);  // for good
  // The others hear why, with the same words.
  for (const size_t rank : {1, 2}) EXPECT_EQ(controls[rank]->Receive(In(2000)).status(), late);
}

TEST(Control, AReplyOfAnotherStepBreaksTheGroup) {
  auto controls = MakeControls(2);
  ASSERT_TRUE(controls[1]->Reply(6, "ok", In(1000)).ok());
  EXPECT_THAT(Message(controls[0]->Collect(7, In(1000)).status()), HasSubstr("rank 1 answered step 6 instead of 7"));
}

TEST(Control, AFollowerThatReadsNothingFailsTheBroadcast) {
  auto controls = MakeControls(2);
  const std::string plan(32 << 20, 'x');
  const absl::Status status = controls[0]->Broadcast(1, plan, In(200));
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(Message(status), "rank 1 does not read step 1 in time");
}

TEST(Control, LeavingEndsTheGroupAtOnce) {
  for (const int leaver : {0, 2}) {
    auto controls = MakeControls(4);
    const Time begin = Now();
    controls[static_cast<size_t>(leaver)].reset();
    for (int rank = 0; rank < 4; ++rank) {
      if (rank == leaver) continue;
      Control& control = *controls[static_cast<size_t>(rank)];
      while (control.status().ok() && MillisSince(begin) < 2000) std::this_thread::sleep_for(milliseconds(1));
      EXPECT_EQ(control.status().code(), absl::StatusCode::kCancelled);
      EXPECT_EQ(Message(control.status()), "rank " + std::to_string(leaver) + " left the group");
    }
    EXPECT_LT(MillisSince(begin), 1000);
  }
}

TEST(Control, TheOwnerIsToldAfterTheOthers) {
  std::atomic<int> told{0};
  ControlOptions options;
  options.monitor.on_broken = [&](const absl::Status& status) {
    EXPECT_EQ(Message(status), "stop");
    ++told;
  };
  auto controls = MakeControls(3, options);
  controls[1]->fault()->Break(absl::InternalError("stop"));
  const Time begin = Now();
  while (told < 3 && MillisSince(begin) < 2000) std::this_thread::sleep_for(milliseconds(1));
  EXPECT_EQ(told, 3);
}

TEST(Control, ASilentPeerIsNamed) {
  std::vector<Meeting> meetings = MeetAll(3);
  Control leader(std::move(meetings[0]), Quick());
  Control one(std::move(meetings[1]), Quick());
  // Rank 2 has its connections open and never says a word, as a stopped process.
  const Time begin = Now();
  EXPECT_THAT(Message(one.Receive(In(3000)).status()), HasSubstr("rank 2 has said nothing for"));
  EXPECT_GE(MillisSince(begin), 100);
  EXPECT_LT(MillisSince(begin), 2000);
  EXPECT_EQ(leader.status(), one.status());
}

TEST(Control, ALivePeerThatDoesNotTakeThePlanIsNamed) {
  auto controls = MakeControls(3, Quick());
  ASSERT_TRUE(controls[0]->Broadcast(1, "p", In(1000)).ok());
  ASSERT_TRUE(controls[1]->Receive(In(1000)).ok());
  const Time begin = Now();
  EXPECT_THAT(Message(controls[1]->Receive(In(3000)).status()), HasSubstr("rank 2 is alive but stands at step 0"));
  EXPECT_LT(MillisSince(begin), 2000);
}

TEST(Control, AGroupThatDoesNothingStaysWhole) {
  auto controls = MakeControls(2, Quick());
  std::this_thread::sleep_for(milliseconds(500));
  EXPECT_TRUE(controls[0]->status().ok());
  EXPECT_TRUE(controls[1]->status().ok());
  ASSERT_TRUE(controls[0]->Broadcast(41, "p", In(1000)).ok());
  ASSERT_TRUE(controls[1]->Receive(In(1000)).ok());
  std::this_thread::sleep_for(milliseconds(500));
  EXPECT_TRUE(controls[0]->status().ok());
  EXPECT_EQ(controls[0]->step_of(1), 41u);  // the heartbeat carried it
}

TEST(Control, GarbageOnAConnectionBreaksTheGroup) {
  for (const bool pulse : {false, true}) {
    std::vector<Meeting> meetings = MeetAll(2);
    Control leader(std::move(meetings[0]), Quick());
    const Socket& socket = pulse ? meetings[1].links[0].pulse : meetings[1].links[0].plan;
    const std::string noise(100, '\xee');
    const iovec piece = {const_cast<char*>(noise.data()), noise.size()};
    size_t count = 0;
    WriteSome(socket.fd(), {&piece, 1}, &count);
    EXPECT_THAT(Message(leader.Collect(1, In(1000)).status()), HasSubstr("rank 1 sent bytes that are no frame"));
  }
}

TEST(Control, Store) {
  auto controls = MakeControls(3);
  OnAllRanks(3, [&](int rank) {
    Store& store = controls[static_cast<size_t>(rank)]->store();
    const std::string value(static_cast<size_t>(rank) * 100000, static_cast<char>('a' + rank));
    ASSERT_TRUE(store.Set("key" + std::to_string(rank), value).ok());
    for (int peer = 0; peer < 3; ++peer) {
      const auto found = store.Get("key" + std::to_string(peer), In(2000));
      ASSERT_TRUE(found.ok()) << found.status();
      EXPECT_EQ(*found, std::string(static_cast<size_t>(peer) * 100000, static_cast<char>('a' + peer)));
    }
  });
  Store& store = controls[2]->store();
  const absl::Status absent = store.Get("nothing", In(50)).status();
  EXPECT_EQ(absent.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(Message(absent), HasSubstr("'nothing'"));
  ASSERT_TRUE(store.Set("key0", "second").ok());
  EXPECT_EQ(*controls[1]->store().Get("key0", In(1000)), "");
  EXPECT_FALSE(store.Set(std::string(kStoreKeyBytesMax + 1, 'k'), "").ok());
  EXPECT_FALSE(store.Set("k", std::string(kStoreValueBytesMax + 1, 'v')).ok());
  controls[1].reset();
  EXPECT_EQ(store.Get("nothing", In(2000)).status().code(), absl::StatusCode::kCancelled);
}

}  // namespace
}  // namespace phalanx::worker::tp
