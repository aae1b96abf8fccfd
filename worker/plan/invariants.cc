#include "worker/plan/invariants.h"

#include <algorithm>
#include <map>
#include <set>
#include <vector>

#include "absl/strings/str_cat.h"

namespace phalanx::worker::plan {
namespace {

struct Ahead {
  int32_t slices = 0, tokens = 0, draws = 0;
};

}  // namespace

std::string Invariants::Check(const Scheduler& sched) {
  const BlockPool& pool = sched.pool_;
  const int32_t bs = sched.block_size_;
  // Every block is accounted for exactly once: held by as many tables as it has references, or on the free list.
  std::vector<int32_t> held(pool.num_blocks(), 0), listed(pool.num_blocks(), 0);
  for (const auto& [id, s] : sched.sequences_) {
    if (s->running() != (std::find(sched.running_.begin(), sched.running_.end(), s.get()) != sched.running_.end())) {
      return absl::StrCat("sequence ", id, ": row and running list disagree");
    }
    const auto waits = std::count(sched.waiting_.begin(), sched.waiting_.end(), s.get());
    if (waits != (s->running() ? 0 : 1)) return absl::StrCat("sequence ", id, ": waits ", waits, " times");
    if (s->computed >= s->known()) return absl::StrCat("sequence ", id, ": computed has passed known");
    if (s->planned >= s->expected()) return absl::StrCat("sequence ", id, ": planned has passed what will be known");
    if (!s->running() && (!s->blocks.empty() || s->planned != 0)) return absl::StrCat("sequence ", id, ": waits with blocks");
    if (static_cast<int32_t>(s->blocks.size()) < BlocksFor(s->planned, bs)) return absl::StrCat("sequence ", id, ": too few blocks");
    if (static_cast<int32_t>(s->blocks.size()) > BlocksFor(s->expected(), bs)) return absl::StrCat("sequence ", id, ": too many blocks");
    if (s->outputs() + s->pending > s->request.max_tokens) return absl::StrCat("sequence ", id, ": draws past its length");
    if (s->limited && static_cast<uint64_t>(s->pending) > s->credit) return absl::StrCat("sequence ", id, ": draws without credit");
    if (s->keyed_blocks > s->computed / bs) return absl::StrCat("sequence ", id, ": shares a block that is not computed");
    if (s->running() && sched.row_owner_[s->row] != s.get()) return absl::StrCat("sequence ", id, ": does not own its row");
    std::set<int32_t> own;
    for (size_t i = 0; i < s->blocks.size(); ++i) {
      ++held[s->blocks[i]];
      if (!own.insert(s->blocks[i]).second) return absl::StrCat("sequence ", id, ": has a block twice");
      // A shared block must be full: nobody may write to it any more.
      if (pool.references(s->blocks[i]) > 1 && static_cast<int32_t>(i) >= s->keyed_blocks) {
        return absl::StrCat("sequence ", id, ": writes into a shared block");
      }
    }
  }
  if (std::string broken = CheckFlying(sched); !broken.empty()) return broken;
  const std::vector<int32_t> free_list = pool.FreeList();
  if (static_cast<int32_t>(free_list.size()) != pool.free_count()) return "free count is not the length of the free list";
  for (int32_t block : free_list) ++listed[block];
  size_t keyed = 0;
  for (int32_t b = 0; b < pool.num_blocks(); ++b) {
    if (held[b] != pool.references(b)) return absl::StrCat("block ", b, ": ", pool.references(b), " references, ", held[b], " holders");
    if (listed[b] != (held[b] == 0 ? 1 : 0)) return absl::StrCat("block ", b, ": is on the free list ", listed[b], " times");
    keyed += pool.has_key(b);
  }
  if (keyed != pool.index_size()) return "prefix index and blocks disagree";
  // Every row has one owner or is free.
  std::vector<int32_t> rows(sched.row_owner_.size(), 0);
  for (int32_t row : sched.free_rows_) ++rows[row];
  for (size_t row = 0; row < rows.size(); ++row) rows[row] += sched.row_owner_[row] != nullptr;
  for (size_t row = 0; row < rows.size(); ++row) {
    if (rows[row] != 1) return absl::StrCat("row ", row, " is accounted for ", rows[row], " times");
  }
  int64_t waiting_tokens = 0;
  for (const Sequence* s : sched.waiting_) waiting_tokens += s->waiting_tokens;
  if (waiting_tokens != sched.waiting_tokens_) return "waiting_tokens has drifted";
  if (static_cast<int32_t>(sched.waiting_.size() + sched.running_.size()) != static_cast<int32_t>(sched.sequences_.size())) {
    return "a sequence is neither waiting nor running";
  }
  return "";
}

// What is ahead of the results is exactly what is in flight, and a step in flight writes for a live sequence only into blocks that it
// holds and that nobody can find by content.
std::string Invariants::CheckFlying(const Scheduler& sched) {
  if (sched.steps_in_flight() > 1 + sched.options_.limits.steps_ahead) return "too many steps in flight";
  std::map<const Sequence*, Ahead> ahead;
  for (const auto& step : sched.in_flight_) {
    for (const auto& flying : step.slices) {
      const core::Slice& slice = flying.slice;
      if (flying.sequence == nullptr) continue;
      const Sequence& s = *flying.sequence;
      if (!sched.sequences_.contains(s.request.id)) return absl::StrCat("step ", step.step, ": a slice of a sequence that is gone");
      Ahead& a = ahead[&s];
      ++a.slices;
      a.draws += slice.sample;
      if (!flying.on_device) continue;
      a.tokens += slice.count;
      if (s.row != slice.row) return absl::StrCat("row ", slice.row, ": changed hands under a step in flight");
      for (int32_t b = slice.start / sched.block_size_; b <= (slice.start + slice.count - 1) / sched.block_size_; ++b) {
        if (b >= static_cast<int32_t>(s.blocks.size())) return absl::StrCat("row ", slice.row, ": a block was freed under a step in flight");
        if (b < s.keyed_blocks) return absl::StrCat("row ", slice.row, ": a step in flight writes into a shared block");
      }
    }
  }
  for (const auto& [id, s] : sched.sequences_) {
    const Ahead a = ahead.contains(s.get()) ? ahead.at(s.get()) : Ahead{};
    if (s->slices_in_flight != a.slices || s->pending != a.draws || s->planned - s->computed != a.tokens) {
      return absl::StrCat("sequence ", id, ": ahead by ", s->planned - s->computed, " tokens and ", s->pending, " draws, in flight are ",
                          a.tokens, " and ", a.draws);
    }
  }
  return "";
}

// Right after Plan: the sequences already count the plan's slices as given out.
std::string Invariants::CheckPlan(const Scheduler& sched, const core::StepPlan& plan) {
  if (plan.num_tokens > sched.options_.limits.max_step_tokens) return "the plan passes the token budget";
  std::set<int32_t> rows, written;
  int32_t tokens = 0;
  for (const core::Slice& slice : plan.slices) {
    if (!rows.insert(slice.row).second) return absl::StrCat("row ", slice.row, " has two slices");
    const Sequence* s = sched.row_owner_[slice.row];
    if (s == nullptr) return absl::StrCat("row ", slice.row, " has no owner");
    const int32_t end = slice.start + slice.count;
    const int32_t expected = s->expected() - (slice.sample ? 1 : 0);  // before this draw
    if (end != s->planned || end > expected || s->last_step != plan.step) return absl::StrCat("row ", slice.row, ": wrong range");
    if (slice.sample != (end == expected)) return absl::StrCat("row ", slice.row, ": wrong sample flag");
    if (slice.token_offset >= 0 && end > s->known()) return absl::StrCat("row ", slice.row, ": gives ids that are not known");
    if (slice.sample && s->looks_back() && s->pending > 1) return absl::StrCat("row ", slice.row, ": draws before its outputs are known");
    for (int32_t b = slice.start / sched.block_size_; b <= (slice.start + slice.count - 1) / sched.block_size_; ++b) {
      if (b >= static_cast<int32_t>(s->blocks.size())) return absl::StrCat("row ", slice.row, ": computes without a block");
      if (!written.insert(s->blocks[b]).second) return absl::StrCat("block ", s->blocks[b], " is written by two rows");
    }
    tokens += slice.count;
  }
  return tokens == plan.num_tokens ? "" : "num_tokens is not the sum of the slices";
}

}  // namespace phalanx::worker::plan
