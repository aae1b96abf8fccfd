#include "router/dispatch.h"

#include <algorithm>
#include <iterator>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "router/policy/policy.h"
#include "services/check.h"

namespace phalanx::router {
namespace {

using services::Seconds;
using services::Time;
using Ended = core::WorkerEvent::End;

constexpr int kRetrySeconds = 1;

absl::Status Lost() {
  absl::Status status = absl::UnavailableError("The worker was lost while it ran this request. Please try again.");
  return core::WithRetryAfter(core::WithErrorCode(std::move(status), "unavailable"), kRetrySeconds);
}

absl::Status NoWorker() {
  absl::Status status = absl::UnavailableError("No worker is ready to serve the model.");
  return core::WithRetryAfter(core::WithErrorCode(std::move(status), "unavailable"), kRetrySeconds);
}

// A worker's refusal in the client's words.
absl::Status Rejected(const core::WorkerEvent& event) {
  if (event.reject_code == absl::StatusCode::kResourceExhausted) {
    absl::Status status = absl::ResourceExhaustedError("The server is full. Please try again later.");
    return core::WithRetryAfter(core::WithErrorCode(std::move(status), "queue_full"), kRetrySeconds);
  }
  const bool known = event.reject_code != absl::StatusCode::kOk && event.reject_code != absl::StatusCode::kUnknown;
  return {known ? event.reject_code : absl::StatusCode::kInternal, event.error};
}

// Refused only because it does not take anything any more.
bool IsDraining(const core::WorkerEvent& event) {
  return event.end == Ended::kRejected && event.reject_code == absl::StatusCode::kUnavailable;
}

core::Finish FinishOf(Ended end) {
  if (end == Ended::kStop) return core::Finish::kStop;
  return end == Ended::kLength ? core::Finish::kLength : core::Finish::kNone;
}

int32_t Outputs(const Choice& choice) { return static_cast<int32_t>(choice.ids.size()); }

}  // namespace

Dispatch::Dispatch(const DispatchOptions& options, std::vector<core::WorkerLink*> links, std::shared_ptr<const text::Tokenizer> tokenizer,
                   RouterMetrics* metrics, std::function<void(const Running&, const absl::Status&)> on_end)
    : options_(options),
      links_(std::move(links)),
      tokenizer_(std::move(tokenizer)),
      metrics_(metrics),
      on_end_(std::move(on_end)),
      fleet_(static_cast<int>(links_.size())) {
  PHX_CHECK(options_.credit_window >= 2);
}

void Dispatch::Begin(std::shared_ptr<Running> request, PreparedRequest prepared, Time now) {
  if (request->ended()) return;
  Running& r = *request;
  r.prompts = std::move(prepared.prompts);
  r.bad_words = std::move(prepared.bad_words);
  live_.emplace(&r, std::move(request));
  MakeChoices(r);
  for (size_t i = 0; i < r.choices.size(); ++i) {
    // All choices of a prompt go to one worker, which computes the prompt once.
    const bool same = i > 0 && r.choices[i].prompt == r.choices[i - 1].prompt;
    if (same) {
      Send(r, i, r.choices[i - 1].worker);
    } else if (!Place(r, i)) {
      return End(r, NoWorker(), now);
    }
  }
}

void Dispatch::MakeChoices(Running& r) {
  const int32_t n = r.request.sampling.n;
  r.wire = r.request.sampling;
  r.wire.stop.clear();
  r.wire.bad_words.clear();
  r.unfinished = r.prompts.size() * n;
  r.choices.reserve(r.unfinished);
  for (size_t p = 0; p < r.prompts.size(); ++p) {
    const PreparedPrompt& prompt = r.prompts[p];
    r.usage.prompt_tokens += static_cast<int32_t>(prompt.ids->size());
    for (int32_t i = 0; i < n; ++i) {
      const auto index = static_cast<int32_t>(r.choices.size());
      reply::ReplyOptions options = reply::OptionsFor(r.request, index);
      options.starts_in_reasoning = prompt.opens_reasoning;
      options.echo_text = prompt.echo_text;
      if (r.request.draft.return_token_ids) options.prompt_ids = *prompt.ids;
      Choice& choice = r.choices.emplace_back(reply::Reply(tokenizer_, std::move(options)));
      choice.prompt = static_cast<int32_t>(p);
      // The client's own seed gives a prompt the same output wherever it stands; a drawn one separates all choices.
      choice.draw = static_cast<uint32_t>(r.seed_is_own ? i : index);
    }
  }
}

bool Dispatch::Place(Running& r, size_t index) {
  const std::optional<int> worker = policy::PickLeastLoaded(fleet_.snapshot(), r.choices[index].worker, turn_++);
  if (!worker) return false;
  Send(r, index, *worker);
  return true;
}

void Dispatch::Send(Running& r, size_t index, int worker) {
  Choice& choice = r.choices[index];
  const PreparedPrompt& prompt = r.prompts[choice.prompt];
  const int32_t left = prompt.max_tokens - Outputs(choice);
  PHX_CHECK(choice.id == 0 && left > 0);
  choice.id = next_id_++;
  choice.worker = worker;
  choice.credit = static_cast<uint32_t>(left);  // a plain reply is read as a whole
  if (r.request.draft.stream) {
    const bool behind = r.usage.completion_tokens - r.consumed.load() > options_.credit_window / 2;
    choice.credit = static_cast<uint32_t>(behind ? 1 : std::min(left, options_.credit_window));
  }
  core::Submission out;
  out.id = choice.id;
  out.prompt_ids = prompt.ids;
  out.resume_output_ids = choice.ids;
  out.sampling = r.wire;
  if (choice.ids.empty()) {
    choice.prompt_scores.clear();               // a lost worker may have sent some of them
  } else {
    out.sampling.prompt_logprobs = -1;          // all of them came before the first token
  }
  out.bad_words = r.bad_words;
  out.seed = r.seed;
  out.choice = choice.draw;
  out.max_tokens = prompt.max_tokens;
  out.cache_salt = r.request.draft.cache_salt;
  out.priority = static_cast<int32_t>(r.request.draft.priority);
  out.credit = choice.credit;
  by_id_.emplace(choice.id, Address{&r, index});
  fleet_.Sent(worker, static_cast<int64_t>(prompt.ids->size()) + Outputs(choice));
  links_[worker]->Submit(fleet_.snapshot().workers[worker].epoch, std::move(out));
}

void Dispatch::Forget(Choice& choice) {
  by_id_.erase(choice.id);
  choice.id = 0;
  fleet_.Gone(choice.worker);
}

void Dispatch::CancelAt(Choice& choice) {
  links_[choice.worker]->Cancel(fleet_.snapshot().workers[choice.worker].epoch, choice.id);
  Forget(choice);
}

void Dispatch::Batch(int worker, uint64_t epoch, std::vector<core::WorkerEvent> events, const core::WorkerLoad& load, Time now) {
  const fleet::WorkerView& view = fleet_.snapshot().workers[worker];
  if (!view.ready || view.epoch != epoch) return;  // a worker that was given up wakes and talks
  fleet_.Report(worker, load);
  for (core::WorkerEvent& event : events) {
    const auto it = by_id_.find(event.id);
    if (it == by_id_.end()) continue;              // finished here or cancelled meanwhile
    const Address at = it->second;
    PHX_CHECK(at.request->choices[at.choice].worker == worker);
    Take(*at.request, at.choice, event, now);
  }
  Flush(now);
}

void Dispatch::Take(Running& r, size_t index, core::WorkerEvent& event, Time now) {
  Choice& choice = r.choices[index];
  Touch(r);
  if (event.started) Started(r, choice, event);
  if (!event.prompt_logprobs.empty()) {
    auto& scores = choice.prompt_scores;
    std::move(event.prompt_logprobs.begin(), event.prompt_logprobs.end(), std::back_inserter(scores));
  }
  const core::Finish finish = FinishOf(event.end);
  if (!event.ids.empty() || finish != core::Finish::kNone) Feed(r, choice, event, now);
  if (choice.id == 0) return;                      // a stop string ended it
  if (finish != core::Finish::kNone) return Forget(choice);
  if (event.end == Ended::kNone) return Grant(r, choice);
  Forget(choice);
  if (event.end == Ended::kAborted || IsDraining(event)) return Lose(r);
  if (!r.failure.ok()) return;
  r.failure = event.end == Ended::kRejected ? Rejected(event)
                                            : absl::InternalError(absl::StrCat("the worker failed the sequence: ", event.error));
}

void Dispatch::Started(Running& r, Choice& choice, const core::WorkerEvent& event) {
  if (std::exchange(choice.started, true)) return;  // resumed: the first start's figures stay
  const auto length = static_cast<int32_t>(r.prompts[choice.prompt].ids->size());
  metrics_->Started(choice.worker, length, std::min(event.cached_tokens, length));
  // The prompt counts once, so its cached part does too: as its first choice found it.
  const bool first_of_prompt = &choice == &r.choices.front() || (&choice - 1)->prompt != choice.prompt;
  if (first_of_prompt) r.usage.cached_tokens += std::min(event.cached_tokens, length);
}

void Dispatch::Feed(Running& r, Choice& choice, core::WorkerEvent& event, Time now) {
  reply::Reply& reply = choice.reply;
  if (choice.ids.empty() && !choice.prompt_scores.empty()) {
    reply.SetPromptScores(*r.prompts[choice.prompt].ids, choice.prompt_scores);
    choice.prompt_scores = {};
  }
  if (!event.ids.empty()) {
    if (choice.first_token == Time{}) {
      choice.first_token = now;
      metrics_->FirstToken(choice.worker, Seconds(now - r.arrived));
    } else {
      metrics_->NextTokens(choice.worker, Seconds(now - choice.last_token));
    }
    choice.last_token = now;
    metrics_->Generated(choice.worker, event.ids.size());
    choice.ids.insert(choice.ids.end(), event.ids.begin(), event.ids.end());
    choice.credit -= std::min(choice.credit, static_cast<uint32_t>(event.ids.size()));
  }
  const int32_t completion = reply.completion_tokens(), reasoning = reply.reasoning_tokens();
  core::ReplyPart part = reply.Feed({.ids = std::move(event.ids),
                                     .logprobs = std::move(event.logprobs),
                                     .finish = FinishOf(event.end),
                                     .stop_id = event.stop_id});
  r.usage.completion_tokens += reply.completion_tokens() - completion;
  r.usage.reasoning_tokens += reply.reasoning_tokens() - reasoning;
  choice.finish = part.finish;
  r.parts.push_back(std::move(part));
  if (!reply.finished()) return;
  --r.unfinished;
  RecordChoice(r, choice, choice.finish == core::Finish::kStop ? FinishedReason::kStop : FinishedReason::kLength, now);
  // Ended by the text, so the worker does not know.
  if (event.end == Ended::kNone) CancelAt(choice);
}

void Dispatch::Lose(Running& r) {
  Touch(r);
  if (std::exchange(r.lost, true)) return;         // one loss, however many of its choices it hit
  ++r.losses;
  metrics_->WorkerLost();
}

void Dispatch::Touch(Running& r) {
  if (std::exchange(r.touched, true)) return;
  touched_.push_back(&r);
}

void Dispatch::Flush(Time now) {
  for (Running* r : std::exchange(touched_, {})) {
    r->touched = false;
    if (!r->parts.empty()) r->sink->OnParts(std::exchange(r->parts, {}), r->usage);
    if (!r->failure.ok()) {
      End(*r, r->failure, now);
    } else if (r->unfinished == 0) {
      End(*r, absl::OkStatus(), now);
    } else if (std::exchange(r->lost, false)) {
      if (r->losses > options_.losses_max) {
        End(*r, Lost(), now);
      } else {
        homeless_[r] = now + options_.resume_wait;
        PlaceHomeless(*r);
      }
    }
  }
}

void Dispatch::PlaceHomeless(Running& r) {
  for (size_t i = 0; i < r.choices.size(); ++i) {
    const Choice& choice = r.choices[i];
    if (choice.id != 0 || choice.reply.finished()) continue;
    if (!Place(r, i)) return;
    metrics_->Resumed();
  }
  homeless_.erase(&r);
}

absl::Status Dispatch::Up(int worker, uint64_t epoch, const core::WorkerInfo& info) {
  PHX_RETURN_IF_ERROR(fleet_.Up(worker, epoch, info));
  std::vector<Running*> waiting;
  for (const auto& [request, until] : homeless_) waiting.push_back(request);
  for (Running* request : waiting) PlaceHomeless(*request);
  return absl::OkStatus();
}

void Dispatch::Down(int worker, uint64_t epoch, Time now) {
  const fleet::WorkerView& view = fleet_.snapshot().workers[worker];
  if (!view.ready || view.epoch != epoch) return;
  for (const auto& [request, owned] : live_) {
    for (Choice& choice : request->choices) {
      if (choice.id == 0 || choice.worker != worker) continue;
      Forget(choice);
      Lose(*request);
    }
  }
  fleet_.Down(worker);
  Flush(now);
}

void Dispatch::Expire(Time now) {
  std::vector<Running*> over;
  for (const auto& [request, until] : homeless_) {
    if (until <= now) over.push_back(request);
  }
  for (Running* request : over) End(*request, Lost(), now);
}

std::optional<Time> Dispatch::next_deadline() const {
  std::optional<Time> next;
  for (const auto& [request, until] : homeless_) {
    if (!next || until < *next) next = until;
  }
  return next;
}

void Dispatch::Consumed(Running& r) {
  for (Choice& choice : r.choices) {
    if (choice.id != 0) Grant(r, choice);
  }
}

void Dispatch::Grant(Running& r, Choice& choice) {
  const int32_t window = options_.credit_window;
  const int32_t most = std::min(window, r.prompts[choice.prompt].max_tokens - Outputs(choice));
  const auto credit = static_cast<int32_t>(choice.credit);
  if (credit >= most || credit > window / 2) return;
  if (r.usage.completion_tokens - r.consumed.load(std::memory_order_relaxed) > window / 2) return;  // the client does not keep up
  choice.credit = static_cast<uint32_t>(most);
  links_[choice.worker]->Credit(fleet_.snapshot().workers[choice.worker].epoch, choice.id, static_cast<uint32_t>(most - credit));
}

void Dispatch::End(Running& r, const absl::Status& status, Time now) {
  if (r.ended()) return;
  const auto reason = absl::IsCancelled(status) ? FinishedReason::kAbort : FinishedReason::kError;
  for (Choice& choice : r.choices) {
    if (choice.id != 0) CancelAt(choice);
    if (!choice.reply.finished() && choice.worker >= 0) RecordChoice(r, choice, reason, now);
  }
  if (status.ok()) RecordPrompts(r);
  const std::shared_ptr<core::ReplySink> sink = std::exchange(r.sink, nullptr);
  on_end_(r, status);                              // its place is free before the client can come back
  sink->OnEnd(status, r.usage);
  homeless_.erase(&r);
  live_.erase(&r);                                 // may destroy r
}

void Dispatch::EndAll(const absl::Status& status, Time now) {
  std::vector<std::shared_ptr<Running>> all;
  for (const auto& [request, owned] : live_) all.push_back(owned);
  for (const auto& request : all) End(*request, status, now);
}

void Dispatch::RecordChoice(const Running& r, const Choice& choice, FinishedReason reason, Time now) {
  FinishedChoice done;
  done.reason = reason;
  done.prompt_tokens = static_cast<int32_t>(r.prompts[choice.prompt].ids->size());
  done.generation_tokens = choice.reply.completion_tokens();
  done.max_tokens = r.request.sampling.max_tokens.value_or(0);
  done.e2e_seconds = Seconds(now - r.arrived);
  done.decode_seconds = Seconds(choice.last_token - choice.first_token);
  metrics_->Finished(choice.worker, done);
}

void Dispatch::RecordPrompts(const Running& r) {
  const auto n = static_cast<size_t>(r.request.sampling.n);
  for (size_t first = 0; first < r.choices.size(); first += n) {
    int32_t most = 0;
    for (size_t i = first; i < first + n; ++i) most = std::max(most, r.choices[i].reply.completion_tokens());
    metrics_->FinishedPrompt(r.choices[first].worker, static_cast<int32_t>(n), most);
  }
}

}  // namespace phalanx::router
