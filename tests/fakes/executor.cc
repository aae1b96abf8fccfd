#include "tests/fakes/executor.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "absl/strings/str_cat.h"

namespace phalanx::fakes {
namespace {

using worker::core::AddedSequence;
using worker::core::SamplingOptions;
using worker::core::Slice;
using worker::core::SliceResult;
using worker::core::StepPlan;
using worker::core::StepResult;
using worker::core::TokenInfo;

constexpr uint64_t kRoot = 0x9e3779b97f4a7c15ULL;

uint64_t Mix(uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9ULL;
  x ^= x >> 27;
  x *= 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

uint64_t Extend(uint64_t hash, int32_t token) { return Mix(hash ^ (static_cast<uint64_t>(token) + kRoot)); }

// With bad words a draw needs all outputs on the host.
uint64_t LookBack(uint64_t hash, uint64_t collected) { return Mix(hash ^ Mix(collected + 1)); }

// The draw: a function of everything before, and for a random request of its seed and stream. End ids are masked before min_tokens.
int32_t Draw(const FakeExecutorOptions& options, uint64_t hash, const SamplingOptions& sampling, const std::vector<int32_t>& end_ids,
             bool mask_end) {
  if (sampling.temperature >= 1e-5f) hash = Mix(hash ^ Mix(sampling.seed + sampling.stream * 0x100000001b3ULL));
  const auto span = static_cast<uint64_t>(options.info.vocab_size - options.first_id);
  for (int attempt = 0;; ++attempt) {
    const auto id = static_cast<int32_t>(options.first_id + hash % span);
    if (!mask_end || attempt == 64 || std::find(end_ids.begin(), end_ids.end(), id) == end_ids.end()) return id;
    hash = Mix(hash + 1);
  }
}

TokenInfo Info(int32_t id, uint64_t hash, int32_t num_logprobs, int32_t vocab) {
  TokenInfo info;
  info.id = id;
  if (num_logprobs < 0) return info;
  info.logprob = -static_cast<float>(hash % 1000) / 1000.0f;
  info.rank = 1;
  for (int32_t i = 0; i < num_logprobs; ++i) info.top.push_back({(id + i) % vocab, info.logprob - static_cast<float>(i)});
  return info;
}

}  // namespace

FakeExecutor::FakeExecutor(const FakeExecutorOptions& options)
    : options_(options), rows_(options.info.max_rows), slots_(size_t{1} * options.info.num_blocks * options.info.block_size) {}

void FakeExecutor::Violate(const std::string& what) {
  if (violation_.empty()) violation_ = what;
}

FakeExecutor::Slot& FakeExecutor::SlotAt(const Row& row, int32_t position) {
  static Slot nowhere;
  const size_t index = position / options_.info.block_size;
  if (index >= row.blocks.size()) {
    Violate("a position has no block");
    return nowhere = Slot{};
  }
  return slots_[size_t{1} * row.blocks[index] * options_.info.block_size + position % options_.info.block_size];
}

uint64_t FakeExecutor::HashBefore(const Row& row, int32_t position) {
  if (!options_.check_context) return position == 0 ? kRoot : SlotAt(row, position - 1).hash;
  uint64_t hash = kRoot;
  for (int32_t p = 0; p < position; ++p) {
    const Slot& slot = SlotAt(row, p);
    hash = Extend(hash, slot.token);
    if (hash != slot.hash) Violate(absl::StrCat("stale content at position ", p));
  }
  return hash;
}

void FakeExecutor::RunSlice(const StepPlan& plan, const Slice& slice, StepResult& result) {
  Row& row = rows_[slice.row];
  if (!row.used) Violate("a slice of a row that was not added");
  uint64_t hash = HashBefore(row, slice.start);
  SliceResult out;
  out.row = slice.row;
  for (int32_t i = 0; i < slice.count; ++i) {
    const int32_t token = slice.token_offset < 0 ? row.last_token : plan.tokens[slice.token_offset + i];
    if (token == kNone) Violate("a decode slice of a row without a last token");
    hash = Extend(hash, token);
    SlotAt(row, slice.start + i) = Slot{token, hash};
    const int32_t next = slice.start + i + 1;
    if (slice.prompt_logprobs && next < row.prompt_length) {
      if (next >= static_cast<int32_t>(row.prompt_ids.size())) Violate("prompt logprobs without prompt ids");
      out.prompt.push_back(Info(row.prompt_ids[next], hash, row.sampling.prompt_logprobs, options_.info.vocab_size));
    }
  }
  if (slice.sample) {
    out.sampled = true;
    const bool poisoned = SlotAt(row, 0).token == options_.poison_id;
    const uint64_t seen = row.sampling.bad_words.empty() ? hash : LookBack(hash, row.collected);
    const int32_t id = poisoned ? -1 : Draw(options_, seen, row.sampling, row.end_ids, row.outputs < row.min_tokens);
    out.token = Info(id, hash, row.sampling.num_logprobs, options_.info.vocab_size);
    row.last_token = id;
    ++row.outputs;
  }
  if (out.sampled || slice.prompt_logprobs) result.slices.push_back(std::move(out));
}

void FakeExecutor::Apply(const StepPlan& plan) {
  for (int32_t row : plan.removed) rows_[row] = Row{};
  for (const AddedSequence& added : plan.added) {
    Row& row = rows_[added.row];
    if (row.used) Violate("a row was added twice");
    row = Row{};
    row.used = true;
    row.owner = ++owners_;
    row.sampling = added.sampling;
    row.end_ids = added.end_ids;
    row.min_tokens = added.min_tokens;
    row.prompt_ids = added.prompt_ids;
    row.prompt_length = added.prompt_length;
    row.outputs = static_cast<int32_t>(added.output_ids.size());
    for (int32_t id : added.output_ids) row.collected = Extend(row.collected, id);
  }
  for (const auto& grown : plan.new_blocks) {
    auto& blocks = rows_[grown.row].blocks;
    blocks.insert(blocks.end(), grown.blocks.begin(), grown.blocks.end());
  }
}

absl::Status FakeExecutor::Launch(const StepPlan& plan) {
  if (static_cast<int32_t>(flights_.size()) > options_.info.steps_ahead) Violate("too many steps in flight");
  if (++steps_ == static_cast<uint64_t>(options_.fail_at_step)) return absl::InternalError("fake device error");
  auto started = std::chrono::steady_clock::now();
  if (!flights_.empty()) started = std::max(started, flights_.back().ready);
  Apply(plan);
  Flight& flight = flights_.emplace_back();
  flight.ready = started + std::chrono::microseconds(options_.step_delay_us + options_.token_delay_us * plan.num_tokens);
  flight.result.step = plan.step;
  flight.result.slices.reserve(plan.slices.size());
  for (const Slice& slice : plan.slices) {
    const size_t before = flight.result.slices.size();
    RunSlice(plan, slice, flight.result);
    if (flight.result.slices.size() > before) flight.owners.push_back(rows_[slice.row].owner);
  }
  return absl::OkStatus();
}

absl::StatusOr<StepResult> FakeExecutor::Collect() {
  if (++collects_ == static_cast<uint64_t>(options_.fail_in_collect)) return absl::InternalError("fake device error");
  if (flights_.empty()) {
    Violate("nothing to collect");
    return absl::InternalError(violation_);
  }
  Flight flight = std::move(flights_.front());
  flights_.pop_front();
  std::this_thread::sleep_until(flight.ready);
  for (size_t i = 0; i < flight.result.slices.size(); ++i) {
    const SliceResult& slice = flight.result.slices[i];
    Row& row = rows_[slice.row];
    if (slice.sampled && row.owner == flight.owners[i]) row.collected = Extend(row.collected, slice.token.id);
  }
  return std::move(flight.result);
}

std::vector<int32_t> ExpectedTokens(const FakeExecutorOptions& options, const worker::core::Request& request) {
  uint64_t hash = kRoot;
  for (int32_t token : request.prompt_ids) hash = Extend(hash, token);
  for (int32_t token : request.resume_output_ids) hash = Extend(hash, token);
  std::vector<int32_t> out;
  uint64_t collected = 0;
  for (int32_t token : request.resume_output_ids) collected = Extend(collected, token);
  auto outputs = static_cast<int32_t>(request.resume_output_ids.size());
  auto known = static_cast<int32_t>(request.prompt_ids.size()) + outputs;
  while (outputs < request.max_tokens && known < options.info.max_model_len) {
    const uint64_t seen = request.sampling.bad_words.empty() ? hash : LookBack(hash, collected);
    const int32_t id = Draw(options, seen, request.sampling, request.stop_ids, outputs < request.min_tokens);
    out.push_back(id);
    hash = Extend(hash, id);
    collected = Extend(collected, id);
    ++outputs;
    ++known;
    const bool end = std::find(request.stop_ids.begin(), request.stop_ids.end(), id) != request.stop_ids.end();
    if (end && outputs > request.min_tokens) break;
  }
  return out;
}

}  // namespace phalanx::fakes
