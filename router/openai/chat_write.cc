#include <string>
#include <string_view>
#include <vector>

#include "router/openai/chat.h"
#include "router/openai/json_text.h"
#include "router/openai/parts_json.h"
#include "router/openai/sse.h"

namespace phalanx::router::openai {
namespace {

using core::ReplyPart;
using core::Usage;

// {"id":..,"object":..,"created":..,"model":..  (open)
std::string HeadText(const ReplyHead& head, const char* object) {
  std::string text = "{\"id\":";
  AppendJsonString(head.id, &text);
  text.append(",\"object\":\"").append(object).append("\",\"created\":");
  AppendInt(head.created, &text);
  text.append(",\"model\":");
  AppendJsonString(head.model, &text);
  return text;
}

// The reasoning field under the names the server uses, with a comma after each: "reasoning_content":"..",
void AppendReasoning(std::string_view reasoning, ReasoningField field, std::string* out) {
  const auto one = [&](const char* name) {
    out->append(name);
    reasoning.data() == nullptr ? static_cast<void>(out->append("null")) : AppendJsonString(reasoning, out);
    out->push_back(',');
  };
  if (field != ReasoningField::kReasoning) one("\"reasoning_content\":");
  if (field != ReasoningField::kReasoningContent) one("\"reasoning\":");
}

// Stream: role chunks of all choices first, then a chunk per part, a chunk per finish, the usage chunk, [DONE].
class ChatStream final : public ReplyWriter {
 public:
  ChatStream(const ReplyForm& form, const ReplyHead& head, const WriteOptions& options)
      : form_(form), options_(options), choices_(head.choices), usage_chunk_(form.include_usage || options.force_include_usage) {
    head_ = kEventStart + HeadText(head, "chat.completion.chunk");
    if (!options.system_fingerprint.empty()) {
      head_.append(",\"system_fingerprint\":");
      AppendJsonString(options.system_fingerprint, &head_);
    }
    open_ = head_ + ",\"choices\":[{\"index\":";
  }

  const char* content_type() const override { return kEventStream; }

  void Write(const std::vector<ReplyPart>& parts, const Usage& so_far, std::string* out) override {
    if (parts.empty()) return;
    if (!started_) Start(parts, so_far, out);
    for (const ReplyPart& part : parts) {
      if (HasDelta(part)) Delta(part, so_far, out);
      if (part.finish != core::Finish::kNone) End(part, so_far, out);
    }
  }

  FinishedReply Finish(const absl::Status& status, const Usage& usage, std::string* out) override {
    if (!status.ok()) return Fail(status, out);
    if (!started_) Start({}, usage, out);
    if (usage_chunk_) {
      out->append(head_).append(",\"choices\":[],\"usage\":");
      AppendUsage(usage, options_, out);
      out->append("}\n\n");
    }
    out->append(kDone);
    return {.content_type = kEventStream};
  }

 private:
  FinishedReply Fail(const absl::Status& status, std::string* out) {
    if (started_) {
      AppendErrorEvent(status, out);
      return {.content_type = kEventStream};
    }
    ErrorReply error = ToErrorReply(status);
    out->append(error.body);
    return error.head;
  }

  bool HasDelta(const ReplyPart& part) const {
    return !part.text.empty() || (form_.include_reasoning && !part.reasoning.empty()) || (form_.logprobs && !part.logprobs.empty()) ||
           (form_.return_token_ids && !part.ids.empty());
  }

  void Open(int32_t index, std::string* out) {
    out->append(open_);
    AppendInt(index, out);
    out->append(",\"delta\":{");
  }

  // After the choice: usage, and the end of the event. `prompt_ids` go before the usage.
  void Close(const Usage& so_far, std::string* out, const std::vector<int32_t>* prompt_ids = nullptr) {
    out->push_back(']');
    if (prompt_ids != nullptr) {
      out->append(",\"prompt_token_ids\":");
      AppendIds(*prompt_ids, out);
    }
    if (form_.continuous_usage) {
      out->append(",\"usage\":");
      AppendUsage(so_far, options_, out);
    } else if (usage_chunk_) {
      out->append(",\"usage\":null");
    }
    out->append("}\n\n");
  }

  void Start(const std::vector<ReplyPart>& parts, const Usage& so_far, std::string* out) {
    started_ = true;
    for (int32_t index = 0; index < choices_; ++index) {
      Open(index, out);
      out->append("\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}");
      const bool with_prompt = index == 0 && form_.return_token_ids && !parts.empty();
      Close(so_far, out, with_prompt ? &parts.front().prompt_ids : nullptr);
    }
    if (form_.echo_message.empty()) return;
    for (int32_t index = 0; index < choices_; ++index) {
      Open(index, out);
      out->append("\"content\":");
      AppendJsonString(form_.echo_message, out);
      out->append("},\"logprobs\":null,\"finish_reason\":null}");
      Close(so_far, out);
    }
  }

  void Delta(const ReplyPart& part, const Usage& so_far, std::string* out) {
    out->reserve(out->size() + open_.size() + part.text.size() + part.reasoning.size() + 160);
    Open(part.index, out);
    const bool reasoning = form_.include_reasoning && !part.reasoning.empty();
    if (reasoning) AppendReasoning(part.reasoning, options_.reasoning_field, out);
    if (!reasoning || !part.text.empty()) {
      out->append("\"content\":");
      AppendJsonString(part.text, out);
    } else {
      out->pop_back();  // the comma after the reasoning
    }
    if (form_.logprobs && !part.logprobs.empty()) {
      out->append("},\"logprobs\":{\"content\":[");
      AppendChatLogprobs(part.logprobs, form_.tokens_as_ids, out);
      out->append("],\"refusal\":null},\"finish_reason\":null");
    } else {
      out->append("},\"logprobs\":null,\"finish_reason\":null");
    }
    if (form_.return_token_ids) {
      out->append(",\"token_ids\":");
      AppendIds(part.ids, out);
    }
    out->push_back('}');
    Close(so_far, out);
  }

  void End(const ReplyPart& part, const Usage& so_far, std::string* out) {
    Open(part.index, out);
    out->append("},\"logprobs\":null,\"finish_reason\":");
    AppendFinish(part.finish, out);
    out->append(",\"stop_reason\":");
    AppendStopReason(part.stop_string, part.stop_token, out);
    out->push_back('}');
    Close(so_far, out);
  }

  ReplyForm form_;
  WriteOptions options_;
  int32_t choices_;
  bool usage_chunk_;
  bool started_ = false;
  std::string head_;  // data: {"id":..,"model":..          for every chunk
  std::string open_;  // head_ ,"choices":[{"index":        for chunks with a choice
};

// Plain reply: parts are kept as text of JSON, written out at the end.
class ChatBody final : public ReplyWriter {
 public:
  ChatBody(const ReplyForm& form, const ReplyHead& head, const WriteOptions& options)
      : form_(form), head_(head), options_(options), choices_(head.choices) {
    for (Choice& choice : choices_) choice.text = form.echo_message;
  }

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
    out->append(HeadText(head_, "chat.completion")).append(",\"choices\":[");
    for (size_t i = 0; i < choices_.size(); ++i) {
      if (i > 0) out->push_back(',');
      WriteChoice(i, out);
    }
    out->append("],\"service_tier\":null,\"system_fingerprint\":");
    options_.system_fingerprint.empty() ? static_cast<void>(out->append("null")) : AppendJsonString(options_.system_fingerprint, out);
    out->append(",\"usage\":");
    AppendUsage(usage, options_, out);
    out->append(",\"prompt_logprobs\":").append(prompt_logprobs_.empty() ? "null" : prompt_logprobs_);
    out->append(",\"prompt_token_ids\":").append(prompt_ids_.empty() ? "null" : prompt_ids_);
    out->push_back('}');
    return {};
  }

 private:
  struct Choice {
    std::string text, reasoning, logprobs, stop_string;
    std::vector<int32_t> ids;
    core::Finish finish = core::Finish::kStop;
    int32_t stop_token = -1;
  };

  void Keep(const ReplyPart& part, Choice* choice) {
    choice->text += part.text;
    if (form_.include_reasoning) choice->reasoning += part.reasoning;
    if (form_.logprobs) AppendChatLogprobs(part.logprobs, form_.tokens_as_ids, &choice->logprobs);
    if (form_.return_token_ids) {
      choice->ids.insert(choice->ids.end(), part.ids.begin(), part.ids.end());
      if (prompt_ids_.empty() && !part.prompt_ids.empty()) AppendIds(part.prompt_ids, &prompt_ids_);
    }
    if (form_.prompt_logprobs && prompt_logprobs_.empty() && !part.prompt_logprobs.empty()) {
      AppendPromptLogprobs(part.prompt_logprobs, &prompt_logprobs_);
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
    out->append(",\"message\":{\"role\":\"assistant\",");
    // Present even when there is none: clients read it as an attribute.
    AppendReasoning(choice.reasoning.empty() ? std::string_view() : std::string_view(choice.reasoning), options_.reasoning_field, out);
    out->append("\"content\":");
    choice.text.empty() && !choice.reasoning.empty() ? static_cast<void>(out->append("null")) : AppendJsonString(choice.text, out);
    out->append(",\"refusal\":null},\"logprobs\":");
    form_.logprobs ? out->append("{\"content\":[").append(choice.logprobs).append("],\"refusal\":null}") : out->append("null");
    out->append(",\"finish_reason\":");
    AppendFinish(choice.finish, out);
    out->append(",\"stop_reason\":");
    AppendStopReason(choice.stop_string, choice.stop_token, out);
    out->append(",\"token_ids\":");
    form_.return_token_ids ? AppendIds(choice.ids, out) : static_cast<void>(out->append("null"));
    out->push_back('}');
  }

  ReplyForm form_;
  ReplyHead head_;
  WriteOptions options_;
  std::vector<Choice> choices_;
  std::string prompt_logprobs_, prompt_ids_;
};

}  // namespace

std::unique_ptr<ReplyWriter> MakeChatWriter(const ReplyForm& form, const ReplyHead& head, const WriteOptions& options) {
  if (form.stream) return std::make_unique<ChatStream>(form, head, options);
  return std::make_unique<ChatBody>(form, head, options);
}

}  // namespace phalanx::router::openai
