// router/relay_test_util.h: what the room's tests share: a scripted worker without gRPC, a sink that remembers, requests, a tokenizer.
// Refuses to know: what is tested. Thread: ScriptedWorker and RecordingSink from any. Neighbours: router/*_test.cc only.
//
// The scripted worker's next token hashes the prompt, the seed, the choice and all outputs before it, so one lost, doubled or swapped
// token changes every later one.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "router/core/handler.h"
#include "router/core/worker.h"
#include "text/text.h"

namespace phalanx::router {

constexpr int32_t kVocab = 592;              // models/demo
constexpr int32_t kContext = 4096;
constexpr std::chrono::seconds kPatience{20};  // a wait that ends here has failed

// Rings when anything changed, in a sink or at a worker, so that a test can wait for either.
class Bell {
 public:
  void Ring() {
    std::lock_guard lock(mutex_);
    ++rings_;
    rung_.notify_all();
  }
  uint64_t rings() const {
    std::lock_guard lock(mutex_);
    return rings_;
  }
  // False if it stayed silent.
  bool WaitPast(uint64_t rings) {
    std::unique_lock lock(mutex_);
    return rung_.wait_for(lock, kPatience, [&] { return rings_ > rings; });
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable rung_;
  uint64_t rings_ = 0;
};
inline Bell& TestBell() {
  static Bell bell;
  return bell;
}

inline std::string SourceDir() {
  const char* value = getenv("PHALANX_SOURCE_DIR");
  return value != nullptr ? value : ".";
}

inline std::shared_ptr<const text::Tokenizer> LoadTokenizer(const std::string& path) {
  auto loaded = text::Tokenizer::Load(SourceDir() + "/" + path);
  EXPECT_TRUE(loaded.ok()) << loaded.status();
  return loaded.ok() ? *loaded : nullptr;
}

inline std::shared_ptr<const text::Tokenizer> DemoTokenizer() {
  static auto& tokenizer = *new std::shared_ptr<const text::Tokenizer>(LoadTokenizer("models/demo"));
  return tokenizer;
}

inline std::shared_ptr<const text::ChatTemplate> DemoTemplate() {
  auto loaded = text::ChatTemplate::Load(SourceDir() + "/models/demo", *DemoTokenizer(), {});
  EXPECT_TRUE(loaded.ok()) << loaded.status();
  return loaded.ok() ? *loaded : nullptr;
}

inline core::Limits TestLimits() {
  core::Limits limits;
  limits.served_names = {"demo"};
  limits.vocab_size = kVocab;
  limits.max_model_len = kContext;
  return limits;
}

inline core::Draft Completion(std::vector<core::Prompt> prompts, int64_t max_tokens) {
  core::Draft draft;
  draft.kind = core::Kind::kCompletion;
  draft.request_id = "test";
  draft.prompts = std::move(prompts);
  draft.stream = true;
  draft.sampling.max_tokens = max_tokens;
  draft.sampling.seed = 11;
  return draft;
}

inline core::Draft Chat(const std::string& content) {
  core::Draft draft;
  draft.request_id = "test";
  draft.messages_json = R"([{"role":"user","content":")" + content + R"("}])";
  draft.stream = true;
  draft.sampling.seed = 11;
  return draft;
}

inline core::ValidRequest Valid(core::Draft draft, const core::Limits& limits = TestLimits()) {
  auto valid = core::Validate(std::move(draft), limits);
  EXPECT_TRUE(valid.ok()) << valid.status();
  return valid.ok() ? *std::move(valid) : core::ValidRequest{};
}

// Remembers what it was told and fails on anything after the end.
class RecordingSink : public core::ReplySink {
 public:
  void OnParts(std::vector<core::ReplyPart> parts, const core::Usage& so_far) override {
    std::lock_guard lock(mutex_);
    EXPECT_FALSE(status_) << "parts after the end";
    EXPECT_GE(so_far.completion_tokens, usage_.completion_tokens);
    usage_ = so_far;
    for (core::ReplyPart& part : parts) {
      Text& text = texts_[part.index];
      EXPECT_EQ(text.finish, core::Finish::kNone) << "a part after the finish part";
      text.text += part.echo_text + part.reasoning + part.text;
      text.ids.insert(text.ids.end(), part.ids.begin(), part.ids.end());
      text.finish = part.finish;
      text.stop_string += part.stop_string;
      text.logprobs += part.logprobs.size();
      text.prompt_logprobs += part.prompt_logprobs.size();
    }
    changed_.notify_all();
    TestBell().Ring();
  }
  void OnEnd(const absl::Status& status, const core::Usage& usage) override {
    std::lock_guard lock(mutex_);
    EXPECT_FALSE(status_) << "a second end";
    status_ = status;
    usage_ = usage;
    changed_.notify_all();
    TestBell().Ring();
  }

  struct Text {
    std::string text;
    std::vector<int32_t> ids;
    core::Finish finish = core::Finish::kNone;
    std::string stop_string;
    size_t logprobs = 0, prompt_logprobs = 0;
  };
  Text text(int32_t index = 0) const {
    std::lock_guard lock(mutex_);
    const auto it = texts_.find(index);
    return it == texts_.end() ? Text{} : it->second;
  }
  size_t choices() const {
    std::lock_guard lock(mutex_);
    return texts_.size();
  }
  bool ended() const {
    std::lock_guard lock(mutex_);
    return status_.has_value();
  }
  // kUnknown while it has not ended.
  absl::Status status() const {
    std::lock_guard lock(mutex_);
    return status_.value_or(absl::UnknownError("not ended"));
  }
  core::Usage usage() const {
    std::lock_guard lock(mutex_);
    return usage_;
  }
  absl::Status WaitEnd() {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, kPatience, [this] { return status_.has_value(); })) << "the request did not end";
    return status_.value_or(absl::UnknownError("not ended"));
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<int32_t, Text> texts_;
  std::optional<absl::Status> status_;
  core::Usage usage_;
};

// One life of a worker: takes submissions of its epoch, and makes one token for each sequence with credit at every Step.
class ScriptedWorker : public core::WorkerLink {
 public:
  struct Sequence {
    core::Submission submission;
    std::vector<int32_t> outputs;            // resumed ones included
    uint32_t credit = 0;
    bool started = false;
  };

  const std::string& address() const override { return address_; }
  void Submit(uint64_t epoch, core::Submission submission) override {
    std::lock_guard lock(mutex_);
    if (epoch != epoch_) return;
    EXPECT_FALSE(running_.contains(submission.id)) << "an id is used twice";
    EXPECT_GT(submission.credit, 0u) << "0 would mean unlimited on the wire";
    EXPECT_LT(submission.resume_output_ids.size(), static_cast<size_t>(submission.max_tokens));
    Sequence sequence{submission, submission.resume_output_ids, submission.credit};
    submissions_.push_back(submission);
    running_.emplace(submission.id, std::move(sequence));
    changed_.notify_all();
    TestBell().Ring();
  }
  void Cancel(uint64_t epoch, uint64_t id) override {
    std::lock_guard lock(mutex_);
    if (epoch != epoch_) return;
    cancels_.push_back(id);
    running_.erase(id);
    changed_.notify_all();
    TestBell().Ring();
  }
  void Credit(uint64_t epoch, uint64_t id, uint32_t tokens) override {
    std::lock_guard lock(mutex_);
    const auto it = running_.find(id);
    if (epoch == epoch_ && it != running_.end()) it->second.credit += tokens;
    changed_.notify_all();
    TestBell().Ring();
  }
  absl::StatusOr<std::string> Metrics(std::chrono::milliseconds) override { return metrics; }

  // A new life: nothing runs here any more.
  void Restart(uint64_t epoch) {
    std::lock_guard lock(mutex_);
    epoch_ = epoch;
    running_.clear();
  }

  // Events of one engine step.
  std::vector<core::WorkerEvent> Step() {
    std::lock_guard lock(mutex_);
    std::vector<core::WorkerEvent> events;
    std::vector<uint64_t> done;
    for (auto& [id, sequence] : running_) {
      if (sequence.credit == 0) continue;
      core::WorkerEvent event = Next(sequence);
      if (event.end != core::WorkerEvent::End::kNone) done.push_back(id);
      events.push_back(std::move(event));
    }
    for (const uint64_t id : done) running_.erase(id);
    return events;
  }

  std::vector<core::Submission> submissions() const {
    std::lock_guard lock(mutex_);
    return submissions_;
  }
  std::vector<uint64_t> cancels() const {
    std::lock_guard lock(mutex_);
    return cancels_;
  }
  size_t running() const {
    std::lock_guard lock(mutex_);
    return running_.size();
  }
  // Waits until `condition(*this's running count, submissions so far, cancels so far)`.
  template <typename Condition>
  void WaitUntil(Condition condition) {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, kPatience, [&] { return condition(running_.size(), submissions_.size(), cancels_.size()); }));
  }

  std::string metrics;                       // what Metrics says
  int32_t cached_tokens = 0;                 // what every start reports

  static int32_t Token(const core::Submission& submission, const std::vector<int32_t>& outputs) {
    uint64_t hash = submission.seed * 0x9e3779b97f4a7c15ULL + submission.choice;
    for (const auto* ids : {submission.prompt_ids.get(), &outputs}) {
      for (const int32_t id : *ids) hash = (hash ^ static_cast<uint64_t>(id + 1)) * 0x100000001b3ULL;
    }
    hash ^= hash >> 29;
    return static_cast<int32_t>(hash % 580);  // below the special tokens
  }

 private:
  core::WorkerEvent Next(Sequence& sequence) {
    const core::Submission& submission = sequence.submission;
    core::WorkerEvent event;
    event.id = submission.id;
    event.started = !std::exchange(sequence.started, true);
    if (event.started) event.cached_tokens = cached_tokens;
    const int32_t id = Token(submission, sequence.outputs);
    sequence.outputs.push_back(id);
    --sequence.credit;
    event.ids = {id};
    if (submission.sampling.logprobs >= 0) event.logprobs = {{.id = id, .logprob = -1.0f, .rank = 1}};
    if (event.started && submission.sampling.prompt_logprobs >= 0) {
      for (size_t i = 1; i < submission.prompt_ids->size(); ++i) {
        event.prompt_logprobs.push_back({.id = (*submission.prompt_ids)[i], .rank = 1});
      }
    }
    if (static_cast<int32_t>(sequence.outputs.size()) >= submission.max_tokens) event.end = core::WorkerEvent::End::kLength;
    return event;
  }

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  const std::string address_ = "scripted";
  uint64_t epoch_ = 1;
  std::map<uint64_t, Sequence> running_;
  std::vector<core::Submission> submissions_;
  std::vector<uint64_t> cancels_;
};

inline core::WorkerInfo TestInfo() {
  return {.model = "demo", .version = "1", .vocab_size = kVocab, .max_model_len = kContext, .max_logprobs = 20};
}

}  // namespace phalanx::router
