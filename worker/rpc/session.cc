#include "worker/rpc/session.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "worker/rpc/translate.h"

namespace phalanx::worker::rpc {

Session::Session(Wiring wiring) : wiring_(std::move(wiring)) {}

bool Session::Translate(const core::SequenceEvent& event, v1::WorkerMessage& message) {
  std::lock_guard lock(mutex_);
  auto it = live_.find(event.id);
  if (it == live_.end()) return false;
  Live& claim = it->second;
  v1::SequenceEvent* out = message.add_events();
  ToProto(event, claim.want_logprobs, out);
  claim.output_tokens += static_cast<uint32_t>(event.tokens.size());
  out->set_request_id(claim.request_id);
  out->set_epoch(claim.epoch);
  out->set_output_tokens(claim.output_tokens);
  if (event.finished) {
    by_request_.erase(claim.request_id);
    live_.erase(it);
  }
  return true;
}

void Session::Send(v1::WorkerMessage message) {
  const size_t bytes = message.ByteSizeLong();
  bool overflow = false;
  {
    std::lock_guard lock(mutex_);
    if (closing_) return;
    overflow = outbox_.size() >= wiring_.outbox.max_outbox_messages || outbox_bytes_ + bytes > wiring_.outbox.max_outbox_bytes;
    if (!overflow) {
      outbox_bytes_ += bytes;
      outbox_.push_back(std::move(message));
    }
  }
  if (!overflow) return Pump();
  Abandon();
  Close({grpc::StatusCode::RESOURCE_EXHAUSTED, "the router does not read its events"}, Rest::kDrop);
}

void Session::Close(grpc::Status status, Rest rest) {
  {
    std::lock_guard lock(mutex_);
    if (rest == Rest::kDrop) {
      outbox_.clear();
      outbox_bytes_ = 0;
    }
    if (!closing_) status_ = std::move(status);
    closing_ = true;
  }
  Pump();
}

// Starts the next write, or finishes when there is nothing left to write. Decides under the lock, acts outside of it: `writing_` and
// `finished_` keep anybody else from acting in between.
void Session::Pump() {
  bool write = false;
  {
    std::lock_guard lock(mutex_);
    if (writing_ || finished_) return;
    if (!outbox_.empty()) {
      outgoing_ = std::move(outbox_.front());
      outbox_.pop_front();
      outbox_bytes_ -= std::min(outbox_bytes_, outgoing_.ByteSizeLong());
      write = writing_ = true;
    } else if (closing_) {
      finished_ = true;
    } else {
      return;
    }
  }
  if (write) {
    StartWrite(&outgoing_);
  } else {
    Finish(status_);
  }
}

void Session::OnWriteDone(bool ok) {
  {
    std::lock_guard lock(mutex_);
    writing_ = false;
  }
  if (ok) return Pump();
  Abandon();
  Close(grpc::Status::CANCELLED, Rest::kDrop);
}

void Session::OnCancel() {
  Abandon();
  Close(grpc::Status::CANCELLED, Rest::kDrop);
}

void Session::OnDone() {
  Abandon();
  wiring_.on_done(wiring_.number);  // may destroy this
}

void Session::OnReadDone(bool ok) {
  if (!ok) {  // the router has closed its side or is gone: nobody will read the rest
    Abandon();
    return Close(grpc::Status::OK, Rest::kDrop);
  }
  absl::Status handled = Handle(incoming_);
  if (!handled.ok()) {
    Abandon();
    return Close({grpc::StatusCode::INVALID_ARGUMENT, std::string(handled.message())}, Rest::kDrop);
  }
  incoming_.Clear();
  StartRead(&incoming_);
}

absl::Status Session::Handle(const v1::RouterMessage& message) {
  v1::WorkerMessage refusals;
  for (const v1::Submit& submit : message.submits()) PHX_RETURN_IF_ERROR(HandleSubmit(submit, refusals));
  std::vector<std::pair<core::SequenceId, uint32_t>> credits;
  std::vector<core::SequenceId> cancels;
  {
    std::lock_guard lock(mutex_);
    for (const v1::Credit& credit : message.credits()) {
      auto it = by_request_.find(credit.request_id());
      if (it != by_request_.end()) credits.emplace_back(it->second, credit.tokens());
    }
    for (uint64_t request : message.cancels()) {
      auto it = by_request_.find(request);
      if (it != by_request_.end()) cancels.push_back(it->second);
    }
  }
  for (const auto& [id, tokens] : credits) wiring_.mailbox->AddCredit(id, tokens);
  for (core::SequenceId id : cancels) wiring_.mailbox->Cancel(id);
  if (refusals.events_size() > 0) Send(std::move(refusals));
  return absl::OkStatus();
}

// A refused submission is answered by an event. An error is the router's own bug and ends the stream.
absl::Status Session::HandleSubmit(const v1::Submit& submit, v1::WorkerMessage& refusals) {
  if (submit.request_id() == 0) return absl::InvalidArgumentError("request_id: must not be 0");
  core::SequenceId id = 0;
  {
    std::lock_guard lock(mutex_);
    if (closing_) return absl::OkStatus();
    if (by_request_.contains(submit.request_id())) {
      return absl::InvalidArgumentError(absl::StrCat("request_id: ", submit.request_id(), " is in use"));
    }
    id = (wiring_.number << kSessionShift) | next_sequence_++;
  }
  absl::StatusOr<core::Request> request = wiring_.draining() ? absl::UnavailableError("the worker is draining")
                                                             : Admit(submit, *wiring_.limits, id);
  absl::Status accepted = request.status();
  if (accepted.ok()) {
    {
      std::lock_guard lock(mutex_);  // known before the first event can come
      by_request_[submit.request_id()] = id;
      live_[id] = Live{submit.request_id(), submit.epoch(), static_cast<uint32_t>(submit.resume_output_ids_size()),
                       submit.sampling().has_logprobs()};
    }
    accepted = wiring_.mailbox->Submit(*std::move(request));
    std::unique_lock lock(mutex_);
    if (accepted.ok()) {
      // The stream may have been abandoned meanwhile, with a cancel that came too early to hit.
      const bool abandoned = !live_.contains(id);  // or finished already, which makes the cancel harmless
      lock.unlock();
      if (abandoned) wiring_.mailbox->Cancel(id);
      return absl::OkStatus();
    }
    by_request_.erase(submit.request_id());
    live_.erase(id);
  }
  v1::SequenceEvent* event = refusals.add_events();
  event->set_request_id(submit.request_id());
  event->set_epoch(submit.epoch());
  event->set_finish(v1::FINISH_REASON_REJECTED);
  event->set_error(std::string(accepted.message()));
  event->set_reject_code(static_cast<int32_t>(accepted.code()));
  return absl::OkStatus();
}

// Nobody will read the events of these sequences: free what they hold.
void Session::Abandon() {
  std::vector<core::SequenceId> ids;
  {
    std::lock_guard lock(mutex_);
    for (const auto& [id, claim] : live_) ids.push_back(id);
    live_.clear();
    by_request_.clear();
  }
  for (core::SequenceId id : ids) wiring_.mailbox->Cancel(id);
}

size_t Session::CancelAll() {
  std::vector<core::SequenceId> ids;
  {
    std::lock_guard lock(mutex_);
    for (const auto& [id, claim] : live_) ids.push_back(id);
  }
  for (core::SequenceId id : ids) wiring_.mailbox->Cancel(id);
  return ids.size();
}

size_t Session::live() const {
  std::lock_guard lock(mutex_);
  return live_.size();
}

bool Session::idle() const {
  std::lock_guard lock(mutex_);
  return finished_ || (outbox_.empty() && !writing_);
}

}  // namespace phalanx::worker::rpc
