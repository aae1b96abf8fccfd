// router/rpc/testing/fake_handler.h: a core::Handler that does what a test says, and remembers what the doors did with it.
// Refuses to know: gRPC. Thread: any. Neighbours: the doors' tests.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "router/core/handler.h"

namespace phalanx::router::rpc::testing {

constexpr std::chrono::seconds kSoon{20};  // for what must happen; a failing test waits that long, a passing one does not

// A request that a door has started.
class FakeCall : public core::Call {
 public:
  FakeCall(core::ValidRequest request, std::shared_ptr<core::ReplySink> sink) : request(std::move(request)), sink(std::move(sink)) {}

  void Cancel() override {
    std::lock_guard lock(mutex_);
    ++cancels_;
    changed_.notify_all();
  }
  void Consumed(int tokens) override {
    std::lock_guard lock(mutex_);
    consumed_ += tokens;
    changed_.notify_all();
  }

  // One step: `tokens` more output tokens over all choices.
  void Parts(std::vector<core::ReplyPart> parts, int tokens) {
    usage.completion_tokens += tokens;
    sink->OnParts(std::move(parts), usage);
  }
  void End(const absl::Status& status = absl::OkStatus()) { sink->OnEnd(status, usage); }

  bool AwaitCancel() {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, kSoon, [this] { return cancels_ > 0; });
  }
  bool AwaitConsumed(int tokens) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, kSoon, [&] { return consumed_ >= tokens; });
  }
  int consumed() const {
    std::lock_guard lock(mutex_);
    return consumed_;
  }
  int cancels() const {
    std::lock_guard lock(mutex_);
    return cancels_;
  }

  const core::ValidRequest request;
  std::shared_ptr<core::ReplySink> sink;
  core::Usage usage;

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  int cancels_ = 0;
  int consumed_ = 0;
};

class FakeHandler : public core::Handler {
 public:
  FakeHandler() {
    limits_.served_names = {"demo", "org/other"};
    limits_.vocab_size = 1000;
    limits_.max_model_len = 4096;
  }

  core::Limits limits() const override { return limits_; }
  std::shared_ptr<core::Call> Start(core::ValidRequest request, std::shared_ptr<core::ReplySink> sink) override {
    auto call = std::make_shared<FakeCall>(std::move(request), std::move(sink));
    {
      std::lock_guard lock(mutex_);
      calls_.push_back(call);
      changed_.notify_all();
    }
    if (on_start) on_start(call);
    return call;
  }
  absl::StatusOr<core::TokenizeResult> Tokenize(const core::Draft& draft) override { return on_tokenize(draft); }
  absl::StatusOr<std::string> Detokenize(const std::vector<int64_t>& ids) override {
    return std::to_string(ids.size()) + " ids";
  }
  std::string Metrics() override { return "# TYPE up gauge\nup 1\n"; }
  bool Ready() const override { return true; }

  // The `number`-th started call, from 0; null if it does not come.
  std::shared_ptr<FakeCall> AwaitCall(size_t number = 0) {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, kSoon, [&] { return calls_.size() > number; })) return nullptr;
    return calls_[number];
  }
  size_t started() const {
    std::lock_guard lock(mutex_);
    return calls_.size();
  }
  void Forget() {
    std::lock_guard lock(mutex_);
    calls_.clear();
  }

  // Inside Start, before it returns.
  std::function<void(const std::shared_ptr<FakeCall>&)> on_start;
  std::function<absl::StatusOr<core::TokenizeResult>(const core::Draft&)> on_tokenize = [](const core::Draft&) {
    return core::TokenizeResult{{1, 2, 3}, {"a", "b", "c"}, 4096};
  };

 private:
  core::Limits limits_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::shared_ptr<FakeCall>> calls_;
};

inline core::ReplyPart Part(int index, std::string text, core::Finish finish = core::Finish::kNone) {
  core::ReplyPart part;
  part.index = index;
  part.text = std::move(text);
  part.finish = finish;
  return part;
}

}  // namespace phalanx::router::rpc::testing
