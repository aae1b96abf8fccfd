// The wire form of a StepPlan: little-endian fixed-width numbers, vectors as a 32-bit count and their items.
#include "worker/core/step.h"

#include <cstring>
#include <type_traits>

namespace phalanx::worker::core {
namespace {

constexpr uint32_t kMagic = 0x31504250;  // "PBP1": version in the last byte

class Writer {
 public:
  template <typename T>
  void Put(T value) {
    static_assert(std::is_arithmetic_v<T>);
    char raw[sizeof(T)];
    std::memcpy(raw, &value, sizeof(T));
    out_.append(raw, sizeof(T));
  }
  void PutIds(const std::vector<int32_t>& ids) {
    Put(static_cast<uint32_t>(ids.size()));
    if (!ids.empty()) out_.append(reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(int32_t));
  }
  std::string Take() { return std::move(out_); }

 private:
  std::string out_;
};

// Every read says whether it succeeded; a count is checked against the bytes that are left before anything is allocated.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}

  template <typename T>
  bool Get(T& value) {
    if (bytes_.size() < sizeof(T)) return false;
    std::memcpy(&value, bytes_.data(), sizeof(T));
    bytes_.remove_prefix(sizeof(T));
    return true;
  }
  bool Get(bool& value) {
    uint8_t byte = 0;
    if (!Get(byte) || byte > 1) return false;
    value = byte != 0;
    return true;
  }
  bool GetCount(uint32_t& count, size_t min_item_bytes) {
    return Get(count) && count <= bytes_.size() / min_item_bytes;
  }
  bool GetIds(std::vector<int32_t>& ids) {
    uint32_t count = 0;
    if (!GetCount(count, sizeof(int32_t))) return false;
    ids.resize(count);
    if (count > 0) std::memcpy(ids.data(), bytes_.data(), count * sizeof(int32_t));
    bytes_.remove_prefix(count * sizeof(int32_t));
    return true;
  }
  bool done() const { return bytes_.empty(); }

 private:
  std::string_view bytes_;
};

void Put(Writer& w, const SamplingOptions& s) {
  w.Put(s.temperature);
  w.Put(s.top_p);
  w.Put(s.top_k);
  w.Put(s.min_p);
  w.Put(s.repetition_penalty);
  w.Put(s.frequency_penalty);
  w.Put(s.presence_penalty);
  w.Put(s.seed);
  w.Put(s.stream);
  w.Put(static_cast<uint32_t>(s.logit_bias.size()));
  for (const auto& [id, bias] : s.logit_bias) {
    w.Put(id);
    w.Put(bias);
  }
  w.PutIds(s.allowed_ids);
  w.Put(static_cast<uint32_t>(s.bad_words.size()));
  for (const auto& word : s.bad_words) w.PutIds(word);
  w.Put(s.num_logprobs);
  w.Put(s.prompt_logprobs);
}

bool Get(Reader& r, SamplingOptions& s) {
  bool ok = r.Get(s.temperature) && r.Get(s.top_p) && r.Get(s.top_k) && r.Get(s.min_p) && r.Get(s.repetition_penalty) &&
            r.Get(s.frequency_penalty) && r.Get(s.presence_penalty) && r.Get(s.seed) && r.Get(s.stream);
  uint32_t count = 0;
  if (!ok || !r.GetCount(count, sizeof(int32_t) + sizeof(float))) return false;
  s.logit_bias.resize(count);
  for (auto& [id, bias] : s.logit_bias) {
    if (!r.Get(id) || !r.Get(bias)) return false;
  }
  if (!r.GetIds(s.allowed_ids) || !r.GetCount(count, sizeof(uint32_t))) return false;
  s.bad_words.resize(count);
  for (auto& word : s.bad_words) {
    if (!r.GetIds(word)) return false;
  }
  return r.Get(s.num_logprobs) && r.Get(s.prompt_logprobs);
}

void Put(Writer& w, const AddedSequence& a) {
  w.Put(a.row);
  Put(w, a.sampling);
  w.PutIds(a.prompt_ids);
  w.PutIds(a.output_ids);
  w.PutIds(a.end_ids);
  w.Put(a.min_tokens);
  w.Put(a.prompt_length);
}

bool Get(Reader& r, AddedSequence& a) {
  return r.Get(a.row) && Get(r, a.sampling) && r.GetIds(a.prompt_ids) && r.GetIds(a.output_ids) && r.GetIds(a.end_ids) &&
         r.Get(a.min_tokens) && r.Get(a.prompt_length);
}

void Put(Writer& w, const NewBlocks& b) {
  w.Put(b.row);
  w.PutIds(b.blocks);
}

bool Get(Reader& r, NewBlocks& b) { return r.Get(b.row) && r.GetIds(b.blocks); }

void Put(Writer& w, const Slice& s) {
  w.Put(s.row);
  w.Put(s.start);
  w.Put(s.count);
  w.Put(s.token_offset);
  w.Put(static_cast<uint8_t>(s.sample));
  w.Put(static_cast<uint8_t>(s.prompt_logprobs));
}

bool Get(Reader& r, Slice& s) {
  return r.Get(s.row) && r.Get(s.start) && r.Get(s.count) && r.Get(s.token_offset) && r.Get(s.sample) && r.Get(s.prompt_logprobs);
}

template <typename T>
void PutAll(Writer& w, const std::vector<T>& items) {
  w.Put(static_cast<uint32_t>(items.size()));
  for (const T& item : items) Put(w, item);
}

template <typename T>
bool GetAll(Reader& r, std::vector<T>& items, size_t min_item_bytes) {
  uint32_t count = 0;
  if (!r.GetCount(count, min_item_bytes)) return false;
  items.resize(count);
  for (T& item : items) {
    if (!Get(r, item)) return false;
  }
  return true;
}

// What a follower relies on: every slice lies inside `tokens`, and the counts add up.
absl::Status CheckPlan(const StepPlan& plan) {
  int64_t total = 0;
  for (const Slice& s : plan.slices) {
    if (s.row < 0 || s.start < 0 || s.count < 1) return absl::InvalidArgumentError("step plan: bad slice");
    if (s.token_offset == -1 ? s.count != 1
                             : s.token_offset < 0 || int64_t{s.token_offset} + s.count > static_cast<int64_t>(plan.tokens.size())) {
      return absl::InvalidArgumentError("step plan: slice outside the tokens");
    }
    total += s.count;
  }
  if (total != plan.num_tokens) return absl::InvalidArgumentError("step plan: num_tokens is not the sum of the slices");
  return absl::OkStatus();
}

}  // namespace

std::string Serialize(const StepPlan& plan) {
  Writer w;
  w.Put(kMagic);
  w.Put(plan.step);
  w.PutIds(plan.removed);
  PutAll(w, plan.added);
  PutAll(w, plan.new_blocks);
  PutAll(w, plan.slices);
  w.PutIds(plan.tokens);
  w.Put(plan.num_tokens);
  return w.Take();
}

absl::StatusOr<StepPlan> ParseStepPlan(std::string_view bytes) {
  constexpr size_t kMinAdded = 40, kMinBlocks = 8, kSliceBytes = 18;
  Reader r(bytes);
  StepPlan plan;
  uint32_t magic = 0;
  if (!r.Get(magic) || magic != kMagic) return absl::InvalidArgumentError("step plan: wrong magic or version");
  const bool ok = r.Get(plan.step) && r.GetIds(plan.removed) && GetAll(r, plan.added, kMinAdded) &&
                  GetAll(r, plan.new_blocks, kMinBlocks) && GetAll(r, plan.slices, kSliceBytes) && r.GetIds(plan.tokens) &&
                  r.Get(plan.num_tokens) && r.done();
  if (!ok) return absl::InvalidArgumentError("step plan: truncated or malformed");
  PHX_RETURN_IF_ERROR(CheckPlan(plan));
  return plan;
}

}  // namespace phalanx::worker::core
