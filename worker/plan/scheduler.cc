#include "worker/plan/scheduler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/check.h"

namespace phalanx::worker::plan {
namespace {

// A draw that came back without an id. One sentence for the client; the others in the batch go on.
constexpr char kNoTokenError[] = "the model produced no valid next token (NaN logits, or every token was masked)";

bool Contains(const std::vector<int32_t>& ids, int32_t id) { return std::find(ids.begin(), ids.end(), id) != ids.end(); }

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options)
    : options_(options), block_size_(options.limits.block_size), pool_(options.limits.num_blocks) {
  PHX_CHECK(block_size_ > 0 && options.limits.max_rows > 0 && options.limits.max_step_tokens > 0);
  PHX_CHECK(options.chunked_prefill || options.limits.max_step_tokens >= options.limits.max_model_len);
  row_owner_.assign(options.limits.max_rows, nullptr);
  for (int32_t row = options.limits.max_rows - 1; row >= 0; --row) free_rows_.push_back(row);
  running_.reserve(options.limits.max_rows);
}

absl::Status Scheduler::CanRun(const core::Request& request) const {
  const auto& limits = options_.limits;
  const int64_t prompt = static_cast<int64_t>(request.prompt_ids.size());
  const int64_t resumed = static_cast<int64_t>(request.resume_output_ids.size());
  if (prompt < 1) return absl::InvalidArgumentError("prompt_ids is empty");
  if (request.max_tokens < 1 || resumed >= request.max_tokens) {
    return absl::InvalidArgumentError("resume_output_ids must be shorter than max_tokens");
  }
  if (prompt + resumed >= limits.max_model_len) {
    return absl::InvalidArgumentError(absl::StrCat("the prompt has ", prompt + resumed, " tokens, and the model's context is ",
                                                   limits.max_model_len, " tokens with at least one for the output"));
  }
  // The last token is drawn but never computed, so it needs no room.
  const int64_t most = std::min<int64_t>(prompt + request.max_tokens, limits.max_model_len) - 1;
  if (BlocksFor(static_cast<int32_t>(most), block_size_) > pool_.num_blocks()) {
    return absl::InvalidArgumentError(absl::StrCat("the request may grow to ", most, " tokens, and the KV cache holds ",
                                                   int64_t{pool_.num_blocks()} * block_size_));
  }
  return absl::OkStatus();
}

absl::Status Scheduler::Submit(core::Request request, double now) {
  absl::Status fits = CanRun(request);
  if (fits.ok() && sequences_.contains(request.id)) fits = absl::InvalidArgumentError("the sequence id is in use");
  if (fits.ok() && static_cast<int32_t>(waiting_.size()) >= options_.max_waiting) {
    fits = absl::ResourceExhaustedError(absl::StrCat("the worker's queue is full (", options_.max_waiting, " waiting)"));
  }
  if (!fits.ok()) {
    ++counters_.rejected;
    return fits;
  }
  auto owned = std::make_unique<Sequence>();
  Sequence& s = *owned;
  s.prompt_length = static_cast<int32_t>(request.prompt_ids.size());
  s.ids = std::move(request.prompt_ids);
  s.ids.insert(s.ids.end(), request.resume_output_ids.begin(), request.resume_output_ids.end());
  request.prompt_ids.clear();
  request.resume_output_ids.clear();
  s.limited = request.credit != UINT32_MAX;
  s.credit = request.credit;
  s.submitted = now;
  s.request = std::move(request);
  const int64_t hits = int64_t{FindPrefix(s)} * block_size_;
  SetWaitingTokens(s, s.known() - hits);
  waiting_.push_back(&s);
  sequences_.emplace(s.request.id, std::move(owned));
  return absl::OkStatus();
}

bool Scheduler::Abort(core::SequenceId id, double now, StepOutcome& outcome) {
  auto it = sequences_.find(id);
  if (it == sequences_.end()) return false;
  Finish(*it->second, core::FinishReason::kAbort, now, outcome);
  CompactRunning();
  return true;
}

void Scheduler::AddCredit(core::SequenceId id, uint32_t tokens) {
  auto it = sequences_.find(id);
  if (it != sequences_.end()) it->second->credit += tokens;
}

core::StepPlan Scheduler::Plan(double now) {
  PHX_CHECK(steps_in_flight() <= options_.limits.steps_ahead);
  core::StepPlan plan;
  planning_ = counters_.steps + 1;
  budget_ = options_.limits.max_step_tokens;
  preempted_ = false;
  plan.slices.reserve(running_.size() + 8);
  PlanRunning(plan, /*decodes=*/true);
  PlanRunning(plan, /*decodes=*/false);
  CompactRunning();
  if (!preempted_) PlanWaiting(plan, now);
  CompactRunning();
  if (plan.slices.empty()) return plan;
  plan.step = ++counters_.steps;
  plan.removed = std::exchange(removed_rows_, {});
  FlyingStep& flying = in_flight_.emplace_back();
  flying.step = plan.step;
  flying.slices.reserve(plan.slices.size());
  for (const core::Slice& slice : plan.slices) {
    Sequence* s = row_owner_[slice.row];
    flying.slices.push_back({slice, s, true});
    ++s->slices_in_flight;
  }
  last_step_tokens_ = plan.num_tokens;
  return plan;
}

// Tokens of `s` to compute in this step, before blocks are looked at. Without credit the last known token is withheld, because its
// logits would draw one more.
int32_t Scheduler::ChunkFor(const Sequence& s) const {
  const int32_t wanted = s.expected() - s.planned - (s.can_emit() ? 0 : 1);
  if (!options_.chunked_prefill && wanted > budget_) return 0;
  return std::min(wanted, budget_);
}

bool Scheduler::CanPlan(const Sequence& s) const {
  return s.running() && s.last_step != planning_ && !s.ending(options_.limits.max_model_len) && !(s.pending > 0 && s.looks_back());
}

void Scheduler::PlanRunning(core::StepPlan& plan, bool decodes) {
  for (size_t i = 0; i < running_.size() && budget_ > 0; ++i) {
    Sequence& s = *running_[i];
    if (!CanPlan(s) || s.decoding() != decodes) continue;
    int32_t count = ChunkFor(s);
    if (count <= 0) continue;
    const int32_t room = (static_cast<int32_t>(s.blocks.size()) + pool_.free_count()) * block_size_ - s.planned;
    // A prefill takes the blocks there are, and waits while others go on; only a step that would stand still preempts for it.
    if (room < count && !decodes && options_.chunked_prefill && room > 0) count = room;
    if (room < count && !decodes && !(plan.slices.empty() && in_flight_.empty())) continue;
    if (room < count && AnyEnding()) continue;  // the next Commit gives blocks back
    if (room < count && !MakeRoom(s, s.planned + count)) continue;
    AddSlice(s, count, plan);
  }
}

bool Scheduler::AnyEnding() const {
  return std::any_of(running_.begin(), running_.end(),
                     [&](const Sequence* s) { return s->running() && s->ending(options_.limits.max_model_len); });
}

// Frees blocks until `s` can hold `tokens`. False if `s` itself had to go.
bool Scheduler::MakeRoom(Sequence& s, int32_t tokens) {
  while (BlocksFor(tokens, block_size_) - static_cast<int32_t>(s.blocks.size()) > pool_.free_count()) {
    Sequence* victim = PickVictim(/*stalled_only=*/true);
    if (victim == nullptr || victim == &s) {
      victim = PickVictim(/*stalled_only=*/false);
      preempted_ = true;
    }
    PHX_CHECK(victim != nullptr);
    Preempt(*victim);
    if (victim == &s) return false;
  }
  return true;
}

// The latest running sequence without a slice in this step.
Sequence* Scheduler::PickVictim(bool stalled_only) {
  for (size_t i = running_.size(); i-- > 0;) {
    Sequence* s = running_[i];
    if (s->running() && s->last_step != planning_ && (!stalled_only || s->stalled())) return s;
  }
  return nullptr;
}

// Takes row and blocks away. Full blocks stay in the prefix cache, so the recompute is usually a hit.
void Scheduler::Preempt(Sequence& s) {
  ForFlying(s, [](Flying& flying) { flying.on_device = false; });
  ReleaseDevice(s);
  SetWaitingTokens(s, s.known());
  waiting_.push_front(&s);
  ++counters_.preemptions;
}

void Scheduler::ReleaseDevice(Sequence& s) {
  // The last block first: it is evicted first, and shared prefixes live longest.
  for (size_t i = s.blocks.size(); i-- > 0;) pool_.Release(s.blocks[i]);
  s.blocks.clear();
  s.keyed_blocks = 0;
  s.computed = s.planned = 0;
  s.device_has_last = false;
  if (s.row < 0) return;
  row_owner_[s.row] = nullptr;
  free_rows_.push_back(s.row);
  removed_rows_.push_back(s.row);
  s.row = -1;
}

// The slices of `s` in flight.
template <typename Change>
void Scheduler::ForFlying(Sequence& s, Change change) {
  if (s.slices_in_flight == 0) return;
  for (FlyingStep& step : in_flight_) {
    for (Flying& flying : step.slices) {
      if (flying.sequence == &s) change(flying);
    }
  }
}

void Scheduler::CompactRunning() {
  std::erase_if(running_, [](const Sequence* s) { return s == nullptr || !s->running(); });
}

// Blocks that running prefills were promised at admission but do not hold yet.
int32_t Scheduler::Reserved() const {
  int32_t reserved = 0;
  for (const Sequence* s : running_) {
    reserved += std::max(0, BlocksFor(s->expected(), block_size_) - static_cast<int32_t>(s->blocks.size()));
  }
  return reserved;
}

void Scheduler::PlanWaiting(core::StepPlan& plan, double now) {
  for (auto it = waiting_.begin(); it != waiting_.end() && budget_ > 0;) {
    Sequence& s = **it;
    if (!s.can_emit()) {  // skipped, not waited for: its reader has stalled
      ++it;
      continue;
    }
    PHX_CHECK(s.slices_in_flight == 0);  // its last step was committed since it was preempted
    auto next = std::next(it);
    if (!Admit(s, plan, now)) return;
    waiting_.erase(it);
    it = next;
  }
}

// Leading full blocks of `s` that are in the prefix cache. The last known token is always computed, to get its logits.
int32_t Scheduler::FindPrefix(Sequence& s) {
  if (!options_.prefix_caching || s.wants_prompt_logprobs()) return 0;
  const int32_t most = (s.known() - 1) / block_size_;
  int32_t found = 0;
  while (found < most) {
    ExtendKeys(s, found + 1, block_size_, hasher_);
    if (pool_.Find(s.keys[found]) < 0) break;
    ++found;
  }
  return found;
}

bool Scheduler::Admit(Sequence& s, core::StepPlan& plan, double now) {
  if (!options_.chunked_prefill && s.known() > budget_) return false;
  while (true) {
    const int32_t hits = FindPrefix(s);
    int32_t free_hits = 0;  // on the free list: using them takes them away from everybody else
    for (int32_t i = 0; i < hits; ++i) free_hits += pool_.references(pool_.Find(s.keys[i])) == 0;
    // Room for all known tokens, so that a prompt never starts only to be preempted half way.
    const int32_t needed = BlocksFor(s.known(), block_size_) - hits;
    if (!free_rows_.empty() && needed + Reserved() <= pool_.free_count() - free_hits) break;
    Sequence* stalled = PickVictim(/*stalled_only=*/true);
    if (stalled == nullptr) return false;
    // A stalled reader's sequence makes way. It goes to the front of the list, behind the iterator of the caller, and is not
    // admitted again before it has credit.
    Preempt(*stalled);
    CompactRunning();
  }
  const int32_t hits = FindPrefix(s);
  s.row = free_rows_.back();
  free_rows_.pop_back();
  row_owner_[s.row] = &s;
  running_.push_back(&s);
  SetWaitingTokens(s, 0);

  core::AddedSequence added;
  added.row = s.row;
  added.sampling = s.request.sampling;
  if (s.request.sampling.NeedsPenaltyState() || s.request.sampling.prompt_logprobs >= 0) {
    added.prompt_ids.assign(s.ids.begin(), s.ids.begin() + s.prompt_length);
  }
  added.output_ids.assign(s.ids.begin() + s.prompt_length, s.ids.end());
  added.end_ids = s.request.stop_ids;
  added.min_tokens = s.request.min_tokens;
  added.prompt_length = s.prompt_length;
  plan.added.push_back(std::move(added));

  if (hits > 0) {
    core::NewBlocks blocks{s.row, {}};
    for (int32_t i = 0; i < hits; ++i) {
      const int32_t block = pool_.Find(s.keys[i]);
      pool_.Hold(block);
      s.blocks.push_back(block);
      blocks.blocks.push_back(block);
    }
    plan.new_blocks.push_back(std::move(blocks));
    s.keyed_blocks = hits;
    s.computed = s.planned = hits * block_size_;
  }
  if (!s.started) {
    s.started = true;
    s.first_scheduled = now;
    s.cached_tokens = std::min(s.computed, s.prompt_length);
    counters_.prompt_tokens += s.prompt_length;
    if (options_.prefix_caching) {
      counters_.prefix_queries += s.known();
      counters_.prefix_hits += s.computed;
    }
  }
  AddSlice(s, ChunkFor(s), plan);
  return true;
}

void Scheduler::GiveBlocks(Sequence& s, int32_t tokens, core::StepPlan& plan) {
  const int32_t missing = BlocksFor(tokens, block_size_) - static_cast<int32_t>(s.blocks.size());
  if (missing <= 0) return;
  core::NewBlocks blocks{s.row, {}};
  blocks.blocks.reserve(missing);
  for (int32_t i = 0; i < missing; ++i) blocks.blocks.push_back(pool_.Take());
  s.blocks.insert(s.blocks.end(), blocks.blocks.begin(), blocks.blocks.end());
  plan.new_blocks.push_back(std::move(blocks));
}

void Scheduler::AddSlice(Sequence& s, int32_t count, core::StepPlan& plan) {
  PHX_CHECK(count > 0 && count <= budget_);
  GiveBlocks(s, s.planned + count, plan);
  core::Slice slice;
  slice.row = s.row;
  slice.start = s.planned;
  slice.count = count;
  slice.sample = s.planned + count == s.expected();
  slice.prompt_logprobs = s.wants_prompt_logprobs() && s.planned < s.prompt_length - 1;
  if (!(count == 1 && slice.sample && s.device_has_last)) {
    PHX_CHECK(s.planned + count <= s.known());
    slice.token_offset = static_cast<int32_t>(plan.tokens.size());
    plan.tokens.insert(plan.tokens.end(), s.ids.begin() + s.planned, s.ids.begin() + s.planned + count);
  }
  plan.slices.push_back(slice);
  plan.num_tokens += count;
  budget_ -= count;
  s.planned += count;
  s.pending += slice.sample;
  s.device_has_last |= slice.sample;
  s.last_step = planning_;
}

core::LoadReport Scheduler::load() const {
  core::LoadReport load;
  load.running = static_cast<int32_t>(running_.size());
  load.waiting = static_cast<int32_t>(waiting_.size());
  load.waiting_tokens = waiting_tokens_;
  load.blocks_total = pool_.num_blocks();
  load.blocks_free = pool_.free_count();
  load.steps = counters_.steps;
  return load;
}

std::vector<core::SequenceId> Scheduler::ids() const {
  std::vector<core::SequenceId> out;
  out.reserve(sequences_.size());
  for (const auto& [id, s] : sequences_) out.push_back(id);
  return out;
}

void Scheduler::SetWaitingTokens(Sequence& s, int64_t tokens) {
  waiting_tokens_ += tokens - s.waiting_tokens;
  s.waiting_tokens = tokens;
}

StepOutcome Scheduler::Commit(const core::StepResult& result, double now) {
  PHX_CHECK(!in_flight_.empty() && result.step == in_flight_.front().step);
  const FlyingStep step = std::move(in_flight_.front());
  in_flight_.erase(in_flight_.begin());
  StepOutcome outcome;
  outcome.events.reserve(step.slices.size());
  size_t next = 0;
  for (const Flying& flying : step.slices) {
    const bool reported = next < result.slices.size() && result.slices[next].row == flying.slice.row;
    CommitSlice(flying, reported ? &result.slices[next] : nullptr, now, outcome);
    next += reported;
  }
  PHX_CHECK(next == result.slices.size());
  CompactRunning();
  return outcome;
}

void Scheduler::CommitSlice(const Flying& flying, const core::SliceResult* result, double now, StepOutcome& outcome) {
  const core::Slice& slice = flying.slice;
  PHX_CHECK(slice.sample == (result != nullptr && result->sampled));
  if (flying.sequence == nullptr) return;
  Sequence& s = *flying.sequence;
  --s.slices_in_flight;
  s.pending -= slice.sample;
  if (flying.on_device) {
    s.computed += slice.count;
    KeepFullBlocks(s);
  }
  if (result == nullptr && s.announced) return;
  core::SequenceEvent event = StartEvent(s);
  bool ended = false;
  if (result != nullptr && slice.prompt_logprobs) TakePromptLogprobs(s, slice, *result, event);
  if (slice.sample) ended = TakeToken(s, *result, event, now);
  if (event.started || !event.tokens.empty() || !event.prompt.empty()) outcome.events.push_back(std::move(event));
  if (!ended) return;
  const int32_t last = s.ids.back();
  if (result->token.id < 0) {
    Finish(s, core::FinishReason::kError, now, outcome);
  } else if (Contains(s.request.stop_ids, last) && s.outputs() > s.request.min_tokens) {
    Finish(s, core::FinishReason::kStop, now, outcome);
  } else {
    Finish(s, core::FinishReason::kLength, now, outcome);
  }
}

// A block may be shared once it is full and computed.
void Scheduler::KeepFullBlocks(Sequence& s) {
  if (!options_.prefix_caching) return;
  const int32_t full = s.computed / block_size_;
  if (full == s.keyed_blocks) return;
  ExtendKeys(s, full, block_size_, hasher_);
  for (int32_t i = s.keyed_blocks; i < full; ++i) pool_.SetKey(s.blocks[i], s.keys[i]);
  s.keyed_blocks = full;
}

core::SequenceEvent Scheduler::StartEvent(Sequence& s) {
  core::SequenceEvent event;
  event.id = s.request.id;
  if (s.announced || !s.started) return event;
  s.announced = true;
  event.started = true;
  event.cached_tokens = s.cached_tokens;
  event.queue_seconds = s.first_scheduled - s.submitted;
  return event;
}

// Adds the drawn token; true if the sequence has ended with it.
bool Scheduler::TakeToken(Sequence& s, const core::SliceResult& result, core::SequenceEvent& event, double now) {
  if (result.token.id < 0) return true;
  s.ids.push_back(result.token.id);
  if (s.limited) --s.credit;
  if (s.first_token == 0) s.first_token = now;
  ++counters_.generation_tokens;
  event.tokens.push_back(result.token);
  const bool stop = Contains(s.request.stop_ids, result.token.id) && s.outputs() > s.request.min_tokens;
  return stop || s.outputs() >= s.request.max_tokens || s.known() >= options_.limits.max_model_len;
}

// After a preemption rows are computed again; what was reported once is not reported twice.
void Scheduler::TakePromptLogprobs(Sequence& s, const core::Slice& slice, const core::SliceResult& result,
                                   core::SequenceEvent& event) {
  const int32_t rows = std::min(slice.count, s.prompt_length - 1 - slice.start);
  PHX_CHECK(static_cast<int32_t>(result.prompt.size()) == rows);
  for (int32_t i = 0; i < rows; ++i) {
    if (slice.start + i < s.prompt_logprobs_sent) continue;
    event.prompt.push_back(result.prompt[i]);
    ++s.prompt_logprobs_sent;
  }
}

// Joins the event of this step if there is one, so that a sequence has one event a step.
void Scheduler::Finish(Sequence& s, core::FinishReason reason, double now, StepOutcome& outcome) {
  if (outcome.events.empty() || outcome.events.back().id != s.request.id) outcome.events.push_back(StartEvent(s));
  core::SequenceEvent& event = outcome.events.back();
  event.finished = true;
  event.reason = reason;
  if (reason == core::FinishReason::kStop) event.stop_id = s.ids.back();
  if (reason == core::FinishReason::kError) event.error = kNoTokenError;

  FinishedSequence times;
  times.reason = reason;
  times.prompt_tokens = s.prompt_length;
  times.output_tokens = s.outputs();
  times.produced = s.first_token != 0;
  if (s.started) times.queue_seconds = s.first_scheduled - s.submitted;
  if (times.produced) {
    times.prefill_seconds = s.first_token - s.first_scheduled;
    times.decode_seconds = now - s.first_token;
    times.inference_seconds = now - s.first_scheduled;
  }
  outcome.finished.push_back(times);

  if (!s.running()) waiting_.remove(&s);
  SetWaitingTokens(s, 0);
  ForFlying(s, [](Flying& flying) { flying.sequence = nullptr; });
  ReleaseDevice(s);
  // running_ may still point here until CompactRunning: forget it first.
  std::replace(running_.begin(), running_.end(), &s, static_cast<Sequence*>(nullptr));
  sequences_.erase(s.request.id);
}

}  // namespace phalanx::worker::plan
