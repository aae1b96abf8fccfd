// Signals as something that can be waited for. One program, one set of handlers: the tests run in order.
#include "services/signals.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <thread>

namespace phalanx::services {
namespace {

bool Readable(int fd) {
  struct pollfd item = {fd, POLLIN, 0};
  return poll(&item, 1, 0) == 1;
}

TEST(StopSignal, NothingThenOneThenMore) {
  StopSignal& stop = StopSignal::Install();
  EXPECT_EQ(&StopSignal::Install(), &stop);
  EXPECT_EQ(stop.count(), 0);
  EXPECT_FALSE(stop.WaitFor(std::chrono::milliseconds(1)));
  EXPECT_FALSE(Readable(stop.fd()));
  std::thread waiter([&] { stop.Wait(); });
  kill(getpid(), SIGTERM);
  waiter.join();
  EXPECT_EQ(stop.count(), 1);
  EXPECT_TRUE(Readable(stop.fd()));
  EXPECT_TRUE(stop.WaitFor(std::chrono::milliseconds(0)) || stop.count() == 1);
  raise(SIGINT);
  EXPECT_EQ(stop.count(), 2);
  EXPECT_TRUE(Readable(stop.fd()));  // for good
  stop.Wait();
}

TEST(StopSignal, ManySignalsDoNotBlock) {
  StopSignal& stop = StopSignal::Install();
  const int before = stop.count();
  for (int i = 0; i < 70000; ++i) raise(SIGINT);  // more than a pipe holds
  EXPECT_EQ(stop.count(), before + 70000);
}

TEST(StopSignal, AClosedPipeIsAnErrorNotADeath) {
  StopSignal::Install();
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  close(ends[0]);
  EXPECT_EQ(write(ends[1], "x", 1), -1);
  EXPECT_EQ(errno, EPIPE);
  close(ends[1]);
}

}  // namespace
}  // namespace phalanx::services
