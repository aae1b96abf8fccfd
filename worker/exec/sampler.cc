#include "worker/exec/sampler.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/check.h"

namespace phalanx::worker::exec {
namespace {

using kernels::kMaxTopLogprobs;
using kernels::SamplingRow;

constexpr size_t kFirstBiasCapacity = 65536;
constexpr float kBanned = -std::numeric_limits<float>::infinity();

SamplingRow MakeOptions(const core::SamplingOptions& options, int32_t row, int32_t position) {
  SamplingRow out{};
  out.temperature = options.temperature;
  out.top_p = options.top_p;
  out.min_p = options.min_p;
  out.repetition_penalty = options.repetition_penalty;
  out.frequency_penalty = options.frequency_penalty;
  out.presence_penalty = options.presence_penalty;
  out.top_k = options.top_k;
  out.num_logprobs = std::min(options.num_logprobs, kMaxTopLogprobs);
  out.seed = options.seed;
  out.position = position;
  out.state = options.NeedsPenaltyState() ? row : -1;
  out.stream = options.stream;
  out.mask = options.allowed_ids.empty() ? -1 : row;
  return out;
}

// True if the outputs end in all but the last id of `word`.
bool EndsBefore(const std::vector<int32_t>& outputs, const std::vector<int32_t>& word) {
  const size_t head = word.size() - 1;
  return outputs.size() >= head && std::equal(word.begin(), word.end() - 1, outputs.end() - static_cast<std::ptrdiff_t>(head));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Sampler>> Sampler::Create(const kernels::Table& table, kernels::Device* device, const SamplerShape& shape) {
  if (table.sample == nullptr || table.logprobs == nullptr || table.sampling_state_set == nullptr || table.copy_to_host == nullptr) {
    return absl::UnimplementedError(absl::StrCat("the back end ", table.name, " lacks an operation for sampling"));
  }
  std::unique_ptr<Sampler> sampler(new Sampler(table, device, shape));
  PHX_RETURN_IF_ERROR(sampler->TakeMemory());
  return sampler;
}

absl::Status Sampler::TakeMemory() {
  const auto take = [&](uint64_t bytes, auto** out) -> absl::Status {
    PHX_ASSIGN_OR_RETURN(void* memory, memory_.Take(bytes, "sampling"));
    *out = static_cast<std::remove_reference_t<decltype(*out)>>(memory);
    return absl::OkStatus();
  };
  const uint64_t rows = shape_.max_rows;
  PHX_RETURN_IF_ERROR(take(rows * mask_words() * 4, &masks_));
  PHX_RETURN_IF_ERROR(take(rows * mask_words() * 4, &prompt_seen_));
  PHX_RETURN_IF_ERROR(take(rows * shape_.vocab * 4, &output_counts_));
  const uint64_t out_bytes = uint64_t{4} * shape_.max_wanted * (3 + 2 * kMaxTopLogprobs);
  PHX_ASSIGN_OR_RETURN(void* out, memory_.Take(out_bytes, "sampling"));
  out_ = Carve(out);
  for (Turn& turn : turns_) {
    PHX_ASSIGN_OR_RETURN(void* host_out, memory_.TakeHost(out_bytes, "sampling"));
    turn.out = Carve(host_out);
  }
  return TakeBiases(kFirstBiasCapacity);
}

uint64_t Sampler::StagingBytes(const SamplerShape& shape) {
  return uint64_t(shape.max_rows) * sizeof(SamplingRow) + uint64_t{8} * shape.max_wanted + 3 * Staging::kAlignment;
}

Sampler::Outputs Sampler::Carve(void* memory) const {
  const int64_t rows = shape_.max_wanted;
  auto* ints = static_cast<int32_t*>(memory);
  auto* floats = static_cast<float*>(memory);
  return {ints, floats + rows, ints + 2 * rows, ints + 3 * rows, floats + (3 + kMaxTopLogprobs) * rows};
}

absl::Status Sampler::Copy(void* to, const void* from, uint64_t bytes) {
  return model::ToStatus(table_, device_, table_.copy_to_device(device_, to, from, bytes, nullptr), "copy_to_device");
}

absl::Status Sampler::Add(const core::AddedSequence& sequence) {
  const core::SamplingOptions& options = sequence.sampling;
  if (options.NeedsPenaltyState()) {
    PHX_RETURN_IF_ERROR(model::ToStatus(
        table_, device_,
        table_.sampling_state_set(device_, shape_.vocab, prompt_seen_, output_counts_, sequence.row, sequence.prompt_ids.data(),
                                  static_cast<int32_t>(sequence.prompt_ids.size()), sequence.output_ids.data(),
                                  static_cast<int32_t>(sequence.output_ids.size()), nullptr),
        "sampling_state_set"));
  }
  if (options.allowed_ids.empty()) return absl::OkStatus();
  std::vector<uint32_t> mask(mask_words(), 0);
  for (const int32_t id : options.allowed_ids) {
    PHX_CHECK(id >= 0 && id < shape_.vocab);
    mask[id / 32] |= 1u << (id % 32);
  }
  return Copy(masks_ + sequence.row * mask_words(), mask.data(), mask.size() * 4);
}

// Everything that is added to a row's logits: the request's biases, end ids that come too early, bad words about to be completed.
void Sampler::AddBiases(const Row& row, int32_t num_outputs) {
  const auto add = [&](int32_t id, float value) {
    host_bias_ids_.push_back(id);
    host_bias_values_.push_back(value);
  };
  for (const auto& [id, bias] : row.sequence.sampling.logit_bias) add(id, bias);
  if (num_outputs < row.sequence.min_tokens) {
    for (const int32_t id : row.sequence.end_ids) add(id, kBanned);
  }
  for (const std::vector<int32_t>& word : row.sequence.sampling.bad_words) {
    if (!word.empty() && EndsBefore(row.sequence.output_ids, word)) add(word.back(), kBanned);
  }
}

absl::Status Sampler::TakeBiases(size_t capacity) {
  PHX_ASSIGN_OR_RETURN(void* memory, memory_.Take(capacity * 8, "logit biases"));
  bias_capacity_ = capacity;
  bias_ids_ = static_cast<int32_t*>(memory);
  bias_values_ = static_cast<float*>(memory) + capacity;
  return absl::OkStatus();
}

absl::Status Sampler::UploadBiases() {
  const size_t count = host_bias_ids_.size();
  if (count == 0) return absl::OkStatus();
  if (count > bias_capacity_) PHX_RETURN_IF_ERROR(TakeBiases(std::max(2 * bias_capacity_, count)));
  PHX_RETURN_IF_ERROR(Copy(bias_ids_, host_bias_ids_.data(), count * 4));
  return Copy(bias_values_, host_bias_values_.data(), count * 4);
}

absl::Status Sampler::Prepare(const core::StepPlan& plan, const RowTable& rows, std::span<const WantedRow> wanted, int32_t num_sampled,
                              int32_t padded_rows, Staging* staging) {
  turn_ = staging->turn();
  Turn& turn = turns_[turn_];
  turn.num_sampled = num_sampled;
  turn.num_logprobs.clear();
  turn.prompt.clear();
  host_bias_ids_.clear();
  host_bias_values_.clear();
  const int32_t draws = std::max(num_sampled, padded_rows);
  const auto options = staging->Place<SamplingRow>(draws);
  options_ = options.device;
  for (int32_t i = 0; i < num_sampled; ++i) {
    const WantedRow& want = wanted[i];
    const int32_t index = plan.slices[want.slice].row;
    const Row& row = rows.at(index);
    SamplingRow& out = options.host[i] = MakeOptions(row.sequence.sampling, index, want.position);
    out.bias_begin = static_cast<int32_t>(host_bias_ids_.size());
    AddBiases(row, want.position - row.sequence.prompt_length);
    out.bias_end = static_cast<int32_t>(host_bias_ids_.size());
    turn.num_logprobs.push_back(out.num_logprobs);
  }
  static const SamplingRow nobody = MakeOptions({.temperature = 0}, 0, 0);
  std::fill(options.host + num_sampled, options.host + draws, nobody);

  const auto num_prompt = static_cast<int32_t>(wanted.size()) - num_sampled;
  const auto ids = staging->Place<int32_t>(num_prompt), tops = staging->Place<int32_t>(num_prompt);
  prompt_ids_ = ids.device;
  prompt_tops_ = tops.device;
  for (int32_t i = 0; i < num_prompt; ++i) {
    const WantedRow& want = wanted[num_sampled + i];
    ids.host[i] = want.prompt_id;
    tops.host[i] = std::clamp(rows.at(plan.slices[want.slice].row).sequence.sampling.prompt_logprobs, 0, kMaxTopLogprobs);
    turn.prompt.push_back(want.prompt_id);
    turn.num_logprobs.push_back(tops.host[i]);
  }
  most_logprobs_ = turn.num_logprobs.empty() ? -1 : *std::max_element(turn.num_logprobs.begin(), turn.num_logprobs.end());
  return UploadBiases();
}

absl::Status Sampler::Enqueue(int32_t begin, int32_t count, kernels::Tensor logits) {
  // A chunk may hold sampled rows, prompt rows, or the border between them.
  const Turn& turn = turns_[turn_];
  const int32_t draws = std::clamp(turn.num_sampled - begin, 0, count);
  if (draws > 0) {
    logits.shape[0] = draws;
    const auto first = turn.num_logprobs.begin() + begin;
    PHX_RETURN_IF_ERROR(Sample(begin, *std::max_element(first, first + draws), logits));
    logits.data = static_cast<float*>(logits.data) + draws * logits.stride[0];
  }
  if (draws == count) return absl::OkStatus();
  logits.shape[0] = count - draws;
  return LookUp(begin + draws, logits);
}

absl::Status Sampler::EnqueuePadded(int32_t rows, kernels::Tensor logits) {
  logits.shape[0] = rows;
  return Sample(0, /*most_logprobs=*/-1, logits);
}

absl::Status Sampler::Sample(int32_t begin, int32_t most_logprobs, kernels::Tensor logits) {
  kernels::SampleArgs args{};
  args.logits = logits;
  args.vocab = shape_.vocab;
  args.options = options_ + begin;
  args.masks = masks_;
  args.bias_ids = bias_ids_;
  args.bias_values = bias_values_;
  args.prompt_seen = prompt_seen_;
  args.output_counts = output_counts_;
  args.out_ids = out_.ids + begin;
  args.out_logprobs = most_logprobs >= 0 ? out_.logprobs + begin : nullptr;
  args.out_ranks = most_logprobs >= 0 ? out_.ranks + begin : nullptr;
  args.out_top_ids = most_logprobs > 0 ? out_.top_ids + int64_t{begin} * kMaxTopLogprobs : nullptr;
  args.out_top_logprobs = most_logprobs > 0 ? out_.top_logprobs + int64_t{begin} * kMaxTopLogprobs : nullptr;
  return model::ToStatus(table_, device_, table_.sample(device_, &args, nullptr), "sample");
}

absl::Status Sampler::LookUp(int32_t begin, kernels::Tensor logits) {
  const int32_t first = begin - turns_[turn_].num_sampled;
  const kernels::LogprobArgs args{logits,
                                  shape_.vocab,
                                  prompt_ids_ + first,
                                  prompt_tops_ + first,
                                  out_.logprobs + begin,
                                  out_.ranks + begin,
                                  out_.top_ids + int64_t{begin} * kMaxTopLogprobs,
                                  out_.top_logprobs + int64_t{begin} * kMaxTopLogprobs};
  return model::ToStatus(table_, device_, table_.logprobs(device_, &args, nullptr), "logprobs");
}

// Ids always, figures where a row wants them, top entries where one wants those.
absl::Status Sampler::Download() {
  const Turn& turn = turns_[turn_];
  const auto wanted = static_cast<uint64_t>(turn.num_logprobs.size());
  const auto fetch = [&](void* to, const void* from, uint64_t bytes) {
    return model::ToStatus(table_, device_, table_.copy_to_host(device_, to, from, bytes, nullptr), "copy_to_host");
  };
  if (turn.num_sampled > 0) PHX_RETURN_IF_ERROR(fetch(turn.out.ids, out_.ids, uint64_t{4} * turn.num_sampled));
  if (most_logprobs_ >= 0) {
    PHX_RETURN_IF_ERROR(fetch(turn.out.logprobs, out_.logprobs, 4 * wanted));
    PHX_RETURN_IF_ERROR(fetch(turn.out.ranks, out_.ranks, 4 * wanted));
  }
  if (most_logprobs_ > 0) {
    PHX_RETURN_IF_ERROR(fetch(turn.out.top_ids, out_.top_ids, 4 * wanted * kMaxTopLogprobs));
    PHX_RETURN_IF_ERROR(fetch(turn.out.top_logprobs, out_.top_logprobs, 4 * wanted * kMaxTopLogprobs));
  }
  return absl::OkStatus();
}

core::TokenInfo Sampler::Result(int32_t index, int32_t i) const {
  const Turn& turn = turns_[index];
  core::TokenInfo info;
  info.id = i < turn.num_sampled ? turn.out.ids[i] : turn.prompt[i - turn.num_sampled];
  const int32_t top = turn.num_logprobs[i];
  if (top < 0 || info.id < 0) return info;
  info.logprob = turn.out.logprobs[i];
  info.rank = turn.out.ranks[i];
  const int64_t first = int64_t{i} * kMaxTopLogprobs;
  for (int64_t j = first; j < first + std::min(top, shape_.vocab); ++j) {
    info.top.push_back({turn.out.top_ids[j], turn.out.top_logprobs[j]});
  }
  return info;
}

}  // namespace phalanx::worker::exec
