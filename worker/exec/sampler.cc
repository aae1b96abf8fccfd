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

constexpr size_t kFirstBiasCapacity = 4096;
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
  PHX_RETURN_IF_ERROR(take(rows * sizeof(SamplingRow), &options_));
  PHX_RETURN_IF_ERROR(take(uint64_t{8} * shape_.max_wanted, &prompt_ids_));
  const uint64_t out_bytes = uint64_t{4} * shape_.max_chunk * (3 + 2 * kMaxTopLogprobs);
  PHX_ASSIGN_OR_RETURN(void* out, memory_.Take(out_bytes, "sampling"));
  PHX_ASSIGN_OR_RETURN(void* host_out, memory_.TakeHost(out_bytes, "sampling"));
  out_ = Carve(out);
  host_out_ = Carve(host_out);
  host_options_.reserve(rows);
  return absl::OkStatus();
}

Sampler::Outputs Sampler::Carve(void* memory) const {
  const int64_t rows = shape_.max_chunk;
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

absl::Status Sampler::UploadBiases() {
  const size_t count = host_bias_ids_.size();
  if (count == 0) return absl::OkStatus();
  if (count > bias_capacity_) {
    bias_capacity_ = std::max({kFirstBiasCapacity, 2 * bias_capacity_, count});
    PHX_ASSIGN_OR_RETURN(void* memory, memory_.Take(bias_capacity_ * 8, "logit biases"));
    bias_ids_ = static_cast<int32_t*>(memory);
    bias_values_ = static_cast<float*>(memory) + bias_capacity_;
  }
  PHX_RETURN_IF_ERROR(Copy(bias_ids_, host_bias_ids_.data(), count * 4));
  return Copy(bias_values_, host_bias_values_.data(), count * 4);
}

absl::Status Sampler::Prepare(const core::StepPlan& plan, const RowTable& rows, std::span<const WantedRow> wanted, int32_t num_sampled) {
  host_options_.clear();
  host_bias_ids_.clear();
  host_bias_values_.clear();
  host_prompt_.clear();
  num_logprobs_.clear();
  num_sampled_ = num_sampled;
  any_mask_ = any_state_ = false;
  for (const WantedRow& want : wanted.first(num_sampled)) {
    const int32_t index = plan.slices[want.slice].row;
    const Row& row = rows.at(index);
    SamplingRow options = MakeOptions(row.sequence.sampling, index, want.position);
    options.bias_begin = static_cast<int32_t>(host_bias_ids_.size());
    AddBiases(row, want.position - row.sequence.prompt_length);
    options.bias_end = static_cast<int32_t>(host_bias_ids_.size());
    any_mask_ |= options.mask >= 0;
    any_state_ |= options.state >= 0;
    host_options_.push_back(options);
    num_logprobs_.push_back(options.num_logprobs);
  }
  for (const WantedRow& want : wanted.subspan(num_sampled)) host_prompt_.push_back(want.prompt_id);
  for (const WantedRow& want : wanted.subspan(num_sampled)) {
    const int32_t asked = rows.at(plan.slices[want.slice].row).sequence.sampling.prompt_logprobs;
    num_logprobs_.push_back(std::clamp(asked, 0, kMaxTopLogprobs));
    host_prompt_.push_back(num_logprobs_.back());
  }
  PHX_RETURN_IF_ERROR(Copy(options_, host_options_.data(), host_options_.size() * sizeof(SamplingRow)));
  if (!host_prompt_.empty()) PHX_RETURN_IF_ERROR(Copy(prompt_ids_, host_prompt_.data(), host_prompt_.size() * 4));
  return UploadBiases();
}

absl::Status Sampler::Sample(int32_t begin, int32_t count, kernels::Tensor logits) {
  kernels::SampleArgs args{};
  const int32_t most = *std::max_element(num_logprobs_.begin() + begin, num_logprobs_.begin() + begin + count);
  args.logits = logits;
  args.vocab = shape_.vocab;
  args.options = options_ + begin;
  args.masks = any_mask_ ? masks_ : nullptr;
  args.bias_ids = bias_ids_;
  args.bias_values = bias_values_;
  args.prompt_seen = any_state_ ? prompt_seen_ : nullptr;
  args.output_counts = any_state_ ? output_counts_ : nullptr;
  args.out_ids = out_.ids;
  args.out_logprobs = out_.logprobs;
  args.out_ranks = most >= 0 ? out_.ranks : nullptr;
  args.out_top_ids = most > 0 ? out_.top_ids : nullptr;
  args.out_top_logprobs = most > 0 ? out_.top_logprobs : nullptr;
  PHX_RETURN_IF_ERROR(model::ToStatus(table_, device_, table_.sample(device_, &args, nullptr), "sample"));
  return Download(count, most);
}

absl::Status Sampler::LookUp(int32_t begin, int32_t count, kernels::Tensor logits) {
  const int32_t first = begin - num_sampled_;
  const auto num_prompt = static_cast<int32_t>(host_prompt_.size() / 2);
  const kernels::LogprobArgs args{logits, shape_.vocab, prompt_ids_ + first, prompt_ids_ + num_prompt + first, out_.logprobs,
                                  out_.ranks, out_.top_ids, out_.top_logprobs};
  PHX_RETURN_IF_ERROR(model::ToStatus(table_, device_, table_.logprobs(device_, &args, nullptr), "logprobs"));
  PHX_RETURN_IF_ERROR(Download(count, *std::max_element(num_logprobs_.begin() + begin, num_logprobs_.begin() + begin + count)));
  std::copy_n(host_prompt_.begin() + first, count, host_out_.ids);
  return absl::OkStatus();
}

// Brings `count` results to the host: ids always, figures when `max_top` >= 0, top entries when it is above 0.
absl::Status Sampler::Download(int32_t count, int32_t max_top) {
  const auto fetch = [&](void* to, const void* from, uint64_t bytes) {
    return model::ToStatus(table_, device_, table_.copy_to_host(device_, to, from, bytes, nullptr), "copy_to_host");
  };
  PHX_RETURN_IF_ERROR(fetch(host_out_.ids, out_.ids, uint64_t{4} * count));
  if (max_top >= 0) {
    PHX_RETURN_IF_ERROR(fetch(host_out_.logprobs, out_.logprobs, uint64_t{4} * count));
    PHX_RETURN_IF_ERROR(fetch(host_out_.ranks, out_.ranks, uint64_t{4} * count));
  }
  if (max_top > 0) {
    PHX_RETURN_IF_ERROR(fetch(host_out_.top_ids, out_.top_ids, uint64_t{4} * count * kMaxTopLogprobs));
    PHX_RETURN_IF_ERROR(fetch(host_out_.top_logprobs, out_.top_logprobs, uint64_t{4} * count * kMaxTopLogprobs));
  }
  return model::ToStatus(table_, device_, table_.stream_synchronize(device_, nullptr), "stream_synchronize");
}

absl::Status Sampler::RunChunk(int32_t begin, int32_t count, kernels::Tensor logits, std::vector<core::TokenInfo>* out) {
  // A chunk may hold sampled rows, prompt rows, or the border between them.
  while (count > 0) {
    const bool sampling = begin < num_sampled_;
    const int32_t part = sampling ? std::min(count, num_sampled_ - begin) : count;
    kernels::Tensor rows = logits;
    rows.shape[0] = part;
    PHX_RETURN_IF_ERROR(sampling ? Sample(begin, part, rows) : LookUp(begin, part, rows));
    for (int32_t i = 0; i < part; ++i) {
      core::TokenInfo info;
      info.id = host_out_.ids[i];
      const int32_t top = num_logprobs_[begin + i];
      if (top >= 0 && info.id >= 0) {
        info.logprob = host_out_.logprobs[i];
        info.rank = host_out_.ranks[i];
        const int64_t first = int64_t{i} * kMaxTopLogprobs;
        for (int64_t j = first; j < first + std::min(top, shape_.vocab); ++j) {
          info.top.push_back({host_out_.top_ids[j], host_out_.top_logprobs[j]});
        }
      }
      out->push_back(std::move(info));
    }
    logits.data = static_cast<float*>(logits.data) + part * logits.stride[0];
    begin += part;
    count -= part;
  }
  return absl::OkStatus();
}

}  // namespace phalanx::worker::exec
