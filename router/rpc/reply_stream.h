// router/rpc/reply_stream.h: one streamed RPC as the sink of one request: a bounded outbox, back-pressure, cancel, and exactly one end.
// Refuses to know: what a message says (a door fills in Add, End and Take). Thread: sink calls come from the relay, reactions from gRPC,
// CheckStall from the watch; what they share is behind `mutex_`, which is never held while gRPC, the call or the handler is called.
// Neighbours: openai_service and inference_service derive from it, core/handler.h is the other side.
//
// Life: it holds itself from Open until OnDone, and the relay may hold it longer: whatever comes after the end is dropped. `pins_` keeps
// Finish away, and with it the end of the RPC's context: while the request is being started, and while the RPC is being cancelled.
// What arrives while a write is in flight goes out together in the next one. Tokens count as consumed when their write is done, or
// at once when they have given nothing to send (a plain reply is kept in memory; max_tokens bounds it).
#pragma once

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "router/core/handler.h"
#include "router/rpc/stall_watch.h"
#include "services/check.h"
#include "services/clock.h"

namespace phalanx::router::rpc {

struct StreamLimits {
  size_t outbox_bytes_max = size_t{8} << 20;   // waiting behind a write; one step's output may go over it once, then the stream ends
  std::chrono::milliseconds stall_max{60000};  // a write that the client does not take for so long ends the stream
};

template <typename Message>
class ReplyStream : public grpc::ServerWriteReactor<Message>,
                    public core::ReplySink,
                    public StallWatch::Stream,
                    public std::enable_shared_from_this<ReplyStream<Message>> {
 public:
  ReplyStream(grpc::CallbackServerContext* context, StallWatch* watch, const StreamLimits& limits)
      : context_(context), watch_(watch), limits_(limits) {}

  // Must be the first call.
  void Open() {
    const std::shared_ptr<ReplyStream> self = this->shared_from_this();
    {
      std::lock_guard lock(mutex_);
      self_ = self;
    }
    watch_->Add(self);
  }

  // Exactly one of Run and Refuse, once. Refuse: the request never reaches the handler.
  void Run(core::Handler& handler, core::ValidRequest request) { Begin(handler.Start(std::move(request), this->shared_from_this())); }
  void Refuse(const absl::Status& status) {
    OnEnd(status, {});
    Begin(nullptr);
  }
  // True when the client left before the request was started, so that the work can be spared.
  bool gone() const {
    std::lock_guard lock(mutex_);
    return gone_;
  }

  void OnParts(std::vector<core::ReplyPart> parts, const core::Usage& so_far) override {
    bool overflow = false;
    int spent = 0;
    std::shared_ptr<core::Call> call;
    {
      std::lock_guard lock(mutex_);
      if (gone_ || ended_) return;
      const int tokens = std::max(0, so_far.completion_tokens - seen_tokens_);
      seen_tokens_ += tokens;
      overflow = waiting_bytes() > limits_.outbox_bytes_max;
      if (!overflow) {
        Add(parts, so_far);
        waiting_tokens_ += tokens;
        if (waiting_bytes() == 0 && !writing_) spent = std::exchange(waiting_tokens_, 0);
        call = Spend(spent);
      }
    }
    if (call != nullptr) call->Consumed(spent);
    if (overflow) return Abort();
    Pump();
  }

  void OnEnd(const absl::Status& status, const core::Usage& usage) override {
    std::shared_ptr<core::Call> over;  // it may hold this sink; dropped after the lock is released
    {
      std::lock_guard lock(mutex_);
      PHX_CHECK(!ended_);
      ended_ = true;
      over = std::move(call_);
      if (!gone_) status_ = End(status, usage);
    }
    Pump();
  }

  void OnWriteDone(bool ok) override {
    int spent = 0;
    std::shared_ptr<core::Call> call;
    {
      std::lock_guard lock(mutex_);
      writing_ = false;
      spent = std::exchange(writing_tokens_, 0);
      if (waiting_bytes() == 0) spent += std::exchange(waiting_tokens_, 0);  // came meanwhile and gave nothing to send
      if (ok) call = Spend(spent);
    }
    if (!ok) return Leave();
    if (call != nullptr) call->Consumed(spent);
    Pump();
  }

  void OnCancel() override { Leave(); }

  void OnDone() override {
    watch_->Remove(this);
    Leave();  // a call that still runs has no reader any more
    std::shared_ptr<ReplyStream> self;  // may be the last; dropped after the lock is released
    std::lock_guard lock(mutex_);
    self = std::move(self_);
  }

  void CheckStall(services::Time now) override {
    {
      std::lock_guard lock(mutex_);
      if (!writing_ || now - write_started_ < limits_.stall_max) return;
    }
    Abort();
  }

 protected:
  // Called under the lock, one at a time. Add takes parts into the outbox. End takes the last word and returns how the RPC ends. Take
  // moves the next message into `out`, which still holds the last one, and says how many tokens left with it; false if there is none.
  virtual void Add(std::vector<core::ReplyPart>& parts, const core::Usage& so_far) = 0;
  virtual grpc::Status End(const absl::Status& status, const core::Usage& usage) = 0;
  virtual bool Take(bool ended, Message* out, int* tokens) = 0;
  virtual size_t waiting_bytes() const = 0;
  virtual void Drop() = 0;

  grpc::CallbackServerContext* context() const { return context_; }

 private:
  // The request has been started; `call` is null if it was refused.
  void Begin(std::shared_ptr<core::Call> call) {
    int spent = 0;
    bool cancel = false;
    {
      std::lock_guard lock(mutex_);
      if (!ended_) cancel = gone_;
      if (!ended_ && !gone_) call_ = call;
      spent = std::exchange(early_tokens_, 0);
      --pins_;
    }
    if (cancel && call != nullptr) call->Cancel();
    if (!cancel && call != nullptr && spent > 0) call->Consumed(spent);
    Pump();
  }

  // The call to tell that tokens were consumed; null if there is none (yet).
  std::shared_ptr<core::Call> Spend(int tokens) {
    if (tokens == 0) return nullptr;
    if (call_ == nullptr) early_tokens_ += tokens;
    return call_;
  }

  // Nobody reads any more: stop the work, drop what waits.
  void Leave() {
    std::shared_ptr<core::Call> call;
    {
      std::lock_guard lock(mutex_);
      if (!gone_) Drop();
      gone_ = true;
      call = std::move(call_);
    }
    if (call != nullptr) call->Cancel();
    Pump();
  }

  // Ends an RPC whose write is stuck: the write then fails, and the rest follows as if the client had left.
  void Abort() {
    {
      std::lock_guard lock(mutex_);
      if (finished_) return;
      ++pins_;
    }
    context_->TryCancel();
    {
      std::lock_guard lock(mutex_);
      --pins_;
    }
    Leave();
  }

  // Starts the next write, or finishes. Decides under the lock, acts outside of it: `writing_` and `finished_` keep others away.
  void Pump() {
    bool write = false;
    grpc::Status status = grpc::Status::CANCELLED;
    {
      std::lock_guard lock(mutex_);
      if (pins_ > 0 || writing_ || finished_) return;
      if (!gone_ && Take(ended_, &message_, &writing_tokens_)) {
        if (waiting_bytes() == 0) writing_tokens_ = waiting_tokens_;
        writing_tokens_ = std::min(writing_tokens_, waiting_tokens_);
        waiting_tokens_ -= writing_tokens_;
        write_started_ = std::chrono::steady_clock::now();
        write = writing_ = true;
      } else if (gone_ || ended_) {
        finished_ = true;
        if (!gone_) status = std::move(status_);
      } else {
        return;
      }
    }
    if (write) {
      this->StartWrite(&message_);
    } else {
      this->Finish(std::move(status));
    }
  }

  grpc::CallbackServerContext* const context_;  // lives until OnDone
  StallWatch* const watch_;
  const StreamLimits limits_;

  mutable std::mutex mutex_;
  std::shared_ptr<ReplyStream> self_;
  std::shared_ptr<core::Call> call_;            // from Begin until the end, or until the client leaves
  int pins_ = 1;                                // taken back by Begin
  int seen_tokens_ = 0;                         // output tokens of the reply so far
  int early_tokens_ = 0;                        // consumed before `call_` was known
  int waiting_tokens_ = 0;                      // behind what waits in the outbox
  int writing_tokens_ = 0;                      // behind the write in flight
  bool writing_ = false;
  bool ended_ = false;                          // OnEnd has come
  bool gone_ = false;                           // the client has left
  bool finished_ = false;                       // Finish was called
  services::Time write_started_;
  grpc::Status status_;
  Message message_;                             // owned by the write in flight
};

}  // namespace phalanx::router::rpc
