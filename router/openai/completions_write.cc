#include <string>
#include <utility>
#include <vector>

#include "router/openai/completions.h"
#include "router/openai/json_text.h"
#include "router/openai/parts_json.h"
#include "router/openai/sse.h"

namespace phalanx::router::openai {
namespace {

using core::ReplyPart;
using core::Usage;

// {"id":..,"object":"text_completion","created":..,"model":..  (open); the same object for plain and streamed replies
std::string HeadText(const ReplyHead& head) {
  std::string text = "{\"id\":";
  AppendJsonString(head.id, &text);
  text.append(",\"object\":\"text_completion\",\"created\":");
  AppendInt(head.created, &text);
  text.append(",\"model\":");
  AppendJsonString(head.model, &text);
  return text;
}

// Stream: a chunk per part; the finish reason is in the chunk of the last text, as in vLLM.
class CompletionStream final : public ReplyWriter {
 public:
  CompletionStream(const ReplyForm& form, const ReplyHead& head, const WriteOptions& options)
      : form_(form), options_(options), usage_chunk_(form.include_usage || options.force_include_usage) {
    head_ = kEventStart + HeadText(head);
    if (!options.system_fingerprint.empty()) {
      head_.append(",\"system_fingerprint\":");
      AppendJsonString(options.system_fingerprint, &head_);
    }
    open_ = head_ + ",\"choices\":[{\"index\":";
  }

  const char* content_type() const override { return kEventStream; }

  void Write(const std::vector<ReplyPart>& parts, const Usage& so_far, std::string* out) override {
    for (const ReplyPart& part : parts) {
      if (HasNews(part)) Chunk(part, so_far, out);
    }
  }

  FinishedReply Finish(const absl::Status& status, const Usage& usage, std::string* out) override {
    if (!status.ok() && !started_) {
      ErrorReply error = ToErrorReply(status);
      out->append(error.body);
      return error.head;
    }
    if (!status.ok()) {
      AppendErrorEvent(status, out);
      return {.content_type = kEventStream};
    }
    if (usage_chunk_) {
      out->append(head_).append(",\"choices\":[],\"usage\":");
      AppendUsage(usage, options_, out);
      out->append("}\n\n");
    }
    out->append(kDone);
    return {.content_type = kEventStream};
  }

 private:
  bool HasNews(const ReplyPart& part) const {
    return !part.text.empty() || part.finish != core::Finish::kNone || (form_.echo && !part.echo_text.empty()) ||
           (form_.logprobs && !part.logprobs.empty()) || (form_.return_token_ids && !part.ids.empty());
  }

  void Chunk(const ReplyPart& part, const Usage& so_far, std::string* out) {
    started_ = true;
    out->reserve(out->size() + open_.size() + part.text.size() + 160);
    out->append(open_);
    AppendInt(part.index, out);
    out->append(",\"text\":");
    form_.echo && !part.echo_text.empty() ? AppendJsonString(part.echo_text + part.text, out) : AppendJsonString(part.text, out);
    out->append(",\"logprobs\":");
    AppendLogprobs(part, out);
    out->append(",\"finish_reason\":");
    AppendFinish(part.finish, out);
    out->append(",\"stop_reason\":");
    AppendStopReason(part.stop_string, part.stop_token, out);
    if (form_.return_token_ids) {
      if (!part.prompt_ids.empty()) {
        out->append(",\"prompt_token_ids\":");
        AppendIds(part.prompt_ids, out);
      }
      out->append(",\"token_ids\":");
      AppendIds(part.ids, out);
    }
    out->append(form_.continuous_usage ? "}],\"usage\":" : usage_chunk_ ? "}],\"usage\":null" : "}]");
    if (form_.continuous_usage) AppendUsage(so_far, options_, out);
    out->append("}\n\n");
  }

  void AppendLogprobs(const ReplyPart& part, std::string* out) const {
    if (!form_.logprobs || (part.logprobs.empty() && part.prompt_logprobs.empty())) {
      out->append("null");
      return;
    }
    CompletionLogprobs logprobs;
    if (form_.echo) logprobs.Append(part.prompt_logprobs, form_.tokens_as_ids);
    logprobs.Append(part.logprobs, form_.tokens_as_ids);
    logprobs.WriteTo(out);
  }

  ReplyForm form_;
  WriteOptions options_;
  bool usage_chunk_;
  bool started_ = false;
  std::string head_, open_;
};

// Plain reply.
class CompletionBody final : public ReplyWriter {
 public:
  CompletionBody(const ReplyForm& form, const ReplyHead& head, const WriteOptions& options)
      : form_(form), head_(head), options_(options), choices_(head.choices) {}

  const char* content_type() const override { return "application/json"; }

  void Write(const std::vector<ReplyPart>& parts, const Usage&, std::string*) override {
    for (const ReplyPart& part : parts) Keep(part, &choices_.at(part.index));
  }

  FinishedReply Finish(const absl::Status& status, const Usage& usage, std::string* out) override {
    if (!status.ok()) {
      ErrorReply error = ToErrorReply(status);
      out->append(error.body);
      return error.head;
    }
    out->append(HeadText(head_)).append(",\"choices\":[");
    for (size_t i = 0; i < choices_.size(); ++i) {
      if (i > 0) out->push_back(',');
      WriteChoice(i, out);
    }
    out->append("],\"service_tier\":null,\"system_fingerprint\":");
    options_.system_fingerprint.empty() ? static_cast<void>(out->append("null")) : AppendJsonString(options_.system_fingerprint, out);
    out->append(",\"usage\":");
    AppendUsage(usage, options_, out);
    out->push_back('}');
    return {};
  }

 private:
  struct Choice {
    std::string text, stop_string, prompt_logprobs, prompt_ids;
    CompletionLogprobs logprobs;
    std::vector<int32_t> ids;
    core::Finish finish = core::Finish::kStop;
    int32_t stop_token = -1;
  };

  void Keep(const ReplyPart& part, Choice* choice) {
    if (form_.echo) choice->text += part.echo_text;
    choice->text += part.text;
    if (form_.logprobs) {
      if (form_.echo) choice->logprobs.Append(part.prompt_logprobs, form_.tokens_as_ids);
      choice->logprobs.Append(part.logprobs, form_.tokens_as_ids);
    }
    if (form_.prompt_logprobs && !part.prompt_logprobs.empty()) AppendPromptLogprobs(part.prompt_logprobs, &choice->prompt_logprobs);
    if (form_.return_token_ids) {
      choice->ids.insert(choice->ids.end(), part.ids.begin(), part.ids.end());
      if (!part.prompt_ids.empty()) AppendIds(part.prompt_ids, &choice->prompt_ids);
    }
    if (part.finish == core::Finish::kNone) return;
    choice->finish = part.finish;
    choice->stop_string = part.stop_string;
    choice->stop_token = part.stop_token;
  }

  void WriteChoice(size_t index, std::string* out) {
    const Choice& choice = choices_[index];
    out->append("{\"index\":");
    AppendInt(static_cast<int64_t>(index), out);
    out->append(",\"text\":");
    AppendJsonString(choice.text, out);
    out->append(",\"logprobs\":");
    form_.logprobs ? choice.logprobs.WriteTo(out) : static_cast<void>(out->append("null"));
    out->append(",\"finish_reason\":");
    AppendFinish(choice.finish, out);
    out->append(",\"stop_reason\":");
    AppendStopReason(choice.stop_string, choice.stop_token, out);
    out->append(",\"token_ids\":");
    form_.return_token_ids ? AppendIds(choice.ids, out) : static_cast<void>(out->append("null"));
    out->append(",\"prompt_logprobs\":").append(choice.prompt_logprobs.empty() ? "null" : choice.prompt_logprobs);
    out->append(",\"prompt_token_ids\":").append(choice.prompt_ids.empty() ? "null" : choice.prompt_ids);
    out->push_back('}');
  }

  ReplyForm form_;
  ReplyHead head_;
  WriteOptions options_;
  std::vector<Choice> choices_;
};

}  // namespace

std::unique_ptr<ReplyWriter> MakeCompletionWriter(const ReplyForm& form, const ReplyHead& head, const WriteOptions& options) {
  if (form.stream) return std::make_unique<CompletionStream>(form, head, options);
  return std::make_unique<CompletionBody>(form, head, options);
}

}  // namespace phalanx::router::openai
