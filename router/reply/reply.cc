#include "router/reply/reply.h"

#include <algorithm>
#include <string_view>

namespace phalanx::router::reply {
namespace {

constexpr char kOpen[] = "<think>";
constexpr char kClose[] = "</think>";

// UTF-8 characters that begin in `bytes`: sums right over tokens that split a character.
int64_t Characters(std::string_view bytes) {
  return std::count_if(bytes.begin(), bytes.end(), [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; });
}

ReasoningMachine::State FirstState(const text::Tokenizer& tokenizer, const ReplyOptions& options) {
  using State = ReasoningMachine::State;
  if (!options.reasoning) return State::kContent;
  if (options.starts_in_reasoning) return State::kReasoning;
  return tokenizer.IdOf(kOpen) && tokenizer.IdOf(kClose) ? State::kStart : State::kContent;
}

int32_t SkippedMarker(const text::Tokenizer& tokenizer, const ReplyOptions& options, const char* marker) {
  const std::optional<int32_t> id = tokenizer.IdOf(marker);
  return options.reasoning && options.skip_special_tokens && id && tokenizer.IsSpecial(*id) ? *id : -1;
}

}  // namespace

ReplyOptions OptionsFor(const core::ValidRequest& request, int32_t index) {
  const core::ValidSampling& sampling = request.sampling;
  ReplyOptions options;
  options.index = index;
  options.stop = sampling.stop;
  options.stop_token_ids = sampling.stop_token_ids;
  options.min_tokens = sampling.min_tokens;
  options.include_stop_in_output = sampling.include_stop_in_output;
  options.skip_special_tokens = sampling.skip_special_tokens;
  options.logprobs = sampling.logprobs >= 0;
  options.reasoning = request.draft.kind == core::Kind::kChat;
  options.include_reasoning = request.draft.include_reasoning;
  options.discard_output = sampling.max_tokens == 0;
  return options;
}

bool PromptOpensReasoning(std::string_view rendered) {
  const size_t last = rendered.find_last_not_of(" \t\r\n");
  if (last == std::string_view::npos) return false;
  const std::string_view trimmed = rendered.substr(0, last + 1);
  const std::string_view open = kOpen;
  return trimmed.size() >= open.size() && trimmed.substr(trimmed.size() - open.size()) == open;
}

Reply::Reply(std::shared_ptr<const text::Tokenizer> tokenizer, ReplyOptions options)
    : tokenizer_(std::move(tokenizer)),
      options_(std::move(options)),
      detokenizer_(tokenizer_, {.skip_special = options_.skip_special_tokens, .after_prompt = true}),
      stop_(options_.stop),
      reasoning_(FirstState(*tokenizer_, options_)),
      open_id_(SkippedMarker(*tokenizer_, options_, kOpen)),
      close_id_(SkippedMarker(*tokenizer_, options_, kClose)),
      score_offset_(Characters(options_.echo_text)) {}

core::TokenLogprob Reply::Score(const TokenScore& score, int64_t* offset) const {
  core::TokenLogprob out;
  out.id = score.id;
  out.bytes = std::string(tokenizer_->TokenBytes(score.id));
  out.logprob = score.logprob;
  out.rank = score.rank;
  out.text_offset = *offset;
  out.top.reserve(score.top.size());
  for (const auto& [id, logprob] : score.top) out.top.push_back({id, std::string(tokenizer_->TokenBytes(id)), logprob});
  if (!(options_.skip_special_tokens && tokenizer_->IsSpecial(score.id))) *offset += Characters(out.bytes);
  return out;
}

void Reply::SetPromptScores(const std::vector<int32_t>& ids, const std::vector<TokenScore>& scores) {
  if (ids.empty()) return;
  int64_t offset = 0;
  prompt_scores_.reserve(scores.size() + 1);
  prompt_scores_.push_back(Score({.id = ids.front()}, &offset));
  prompt_scores_.back().has_logprob = false;
  for (const TokenScore& score : scores) prompt_scores_.push_back(Score(score, &offset));
  if (!options_.echo_text.empty()) score_offset_ = offset;
}

core::ReplyPart Reply::Feed(StepOutput step) {
  core::ReplyPart part;
  part.index = options_.index;
  if (finished_) return part;
  if (first_) {
    first_ = false;
    part.echo_text = std::move(options_.echo_text);
    part.prompt_ids = std::move(options_.prompt_ids);
    part.prompt_logprobs = std::move(prompt_scores_);
  }
  if (options_.discard_output) {
    if (!step.ids.empty() || step.finish != core::Finish::kNone) {
      part.finish = core::Finish::kLength;
      finished_ = true;
    }
    return part;
  }
  for (size_t i = 0; i < step.ids.size() && !finished_; ++i) FeedId(step, i, &part);
  if (finished_ || step.finish == core::Finish::kNone) return part;
  Push(detokenizer_.Flush(), &part);
  if (finished_) return part;
  Emit(stop_.Flush(), &part);
  const auto& own = options_.stop_token_ids;
  if (step.finish == core::Finish::kStop && std::find(own.begin(), own.end(), step.stop_id) != own.end()) part.stop_token = step.stop_id;
  End(step.finish, &part);
  return part;
}

void Reply::FeedId(const StepOutput& step, size_t at, core::ReplyPart* part) {
  const int32_t id = step.ids[at];
  ++completion_tokens_;
  part->ids.push_back(id);
  if (options_.logprobs && at < step.logprobs.size()) part->logprobs.push_back(Score(step.logprobs[at], &score_offset_));
  // The token that ended the sequence is not text unless it was asked for, whether it is special or not.
  const bool is_end = step.finish == core::Finish::kStop && at + 1 == step.ids.size() && id == step.stop_id;
  if (is_end && !options_.include_stop_in_output) return;
  const bool thinking = reasoning_.state() == ReasoningMachine::State::kReasoning;
  Push(TextOf(id), part);
  // Both markers stay uncounted.
  if (thinking && reasoning_.state() == ReasoningMachine::State::kReasoning) ++reasoning_tokens_;
}

std::string Reply::TextOf(int32_t id) {
  if (id < 0 || (id != open_id_ && id != close_id_)) return detokenizer_.Append(id);
  // The detokenizer would skip the marker; a character that is not whole yet belongs before it.
  return detokenizer_.Flush() + (id == open_id_ ? kOpen : kClose);
}

void Reply::Push(std::string_view text, core::ReplyPart* part) {
  if (stop_.empty()) return Emit(text, part);
  const StopMachine::Result result = stop_.Append(text, completion_tokens_ > options_.min_tokens);
  Emit(result.text, part);
  if (result.stop < 0) return;
  part->stop_string = options_.stop[result.stop];
  if (options_.include_stop_in_output) Emit(part->stop_string, part);
  End(core::Finish::kStop, part);
}

void Reply::Emit(std::string_view text, core::ReplyPart* part) {
  std::string* reasoning = &part->reasoning;
  std::string dropped;
  if (!options_.include_reasoning) reasoning = &dropped;
  reasoning_.Append(text, reasoning, &part->text);
}

void Reply::End(core::Finish finish, core::ReplyPart* part) {
  std::string dropped;
  reasoning_.Flush(options_.include_reasoning ? &part->reasoning : &dropped, &part->text);
  part->finish = finish;
  finished_ = true;
}

}  // namespace phalanx::router::reply
