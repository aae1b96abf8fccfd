#include "router/rpc/parse.h"

#include <array>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "router/core/validate.h"
#include "services/json.h"

namespace phalanx::router::rpc {
namespace {

using services::Json;

constexpr std::array<std::string_view, 5> kRoles = {"system", "developer", "user", "assistant", "tool"};

core::SamplingDraft ParseSampling(const v1::Sampling& in) {
  core::SamplingDraft out;
  if (in.has_max_tokens()) out.max_tokens = in.max_tokens();
  if (in.has_min_tokens()) out.min_tokens = in.min_tokens();
  if (in.has_temperature()) out.temperature = in.temperature();
  if (in.has_top_p()) out.top_p = in.top_p();
  if (in.has_top_k()) out.top_k = in.top_k();
  if (in.has_min_p()) out.min_p = in.min_p();
  if (in.has_repetition_penalty()) out.repetition_penalty = in.repetition_penalty();
  if (in.has_frequency_penalty()) out.frequency_penalty = in.frequency_penalty();
  if (in.has_presence_penalty()) out.presence_penalty = in.presence_penalty();
  if (in.has_seed()) out.seed = in.seed();
  if (in.has_n()) out.n = in.n();
  if (in.has_logprobs()) out.logprobs = in.logprobs();
  out.stop.assign(in.stop().begin(), in.stop().end());
  out.stop_token_ids.assign(in.stop_token_ids().begin(), in.stop_token_ids().end());
  for (const auto& [id, bias] : in.logit_bias()) out.logit_bias.emplace_back(id, bias);
  out.allowed_token_ids.assign(in.allowed_token_ids().begin(), in.allowed_token_ids().end());
  out.bad_words.assign(in.bad_words().begin(), in.bad_words().end());
  out.ignore_eos = in.ignore_eos();
  out.include_stop_in_output = in.include_stop_in_output();
  if (in.has_skip_special_tokens()) out.skip_special_tokens = in.skip_special_tokens();
  return out;
}

bool KnownRole(std::string_view role) {
  for (std::string_view known : kRoles) {
    if (role == known) return true;
  }
  return false;
}

// The list as a template sees it: the same keys that the OpenAI door writes.
absl::StatusOr<std::string> MessagesJson(const v1::ChatRequest& request) {
  Json list = Json::array();
  for (int i = 0; i < request.messages_size(); ++i) {
    const v1::Message& message = request.messages(i);
    if (!KnownRole(message.role())) {
      const std::string field = absl::StrCat("messages[", i, "].role");
      return core::FieldError(field, absl::StrCat(field, " must be one of system, developer, user, assistant, tool."));
    }
    Json one = Json::object();
    one["role"] = message.role();
    one["content"] = message.content();
    if (!message.name().empty()) one["name"] = message.name();
    if (!message.tool_call_id().empty()) one["tool_call_id"] = message.tool_call_id();
    if (!message.reasoning_content().empty()) one["reasoning_content"] = message.reasoning_content();
    list.push_back(std::move(one));
  }
  return services::WriteJson(list);
}

absl::StatusOr<std::string> TemplateKwargs(const std::string& text) {
  if (text.empty()) return std::string();
  absl::StatusOr<Json> json = services::ParseJson(text);
  if (!json.ok()) {
    return core::FieldError("template_kwargs_json", absl::StrCat("template_kwargs_json is not JSON: ", json.status().message()));
  }
  if (!json->is_object()) return core::FieldError("template_kwargs_json", "template_kwargs_json must be a JSON object.");
  return json->empty() ? std::string() : services::WriteJson(*json);
}

}  // namespace

absl::StatusOr<core::Draft> ParseChat(const v1::ChatRequest& request) {
  core::Draft draft;
  draft.kind = core::Kind::kChat;
  draft.model = request.model();
  PHX_ASSIGN_OR_RETURN(draft.messages_json, MessagesJson(request));
  PHX_ASSIGN_OR_RETURN(draft.template_kwargs_json, TemplateKwargs(request.template_kwargs_json()));
  if (request.has_add_generation_prompt()) draft.add_generation_prompt = request.add_generation_prompt();
  draft.continue_final_message = request.continue_final_message();
  draft.cache_salt = request.cache_salt();
  draft.stream = true;
  draft.sampling = ParseSampling(request.sampling());
  return draft;
}

absl::StatusOr<core::Draft> ParseComplete(const v1::CompleteRequest& request) {
  core::Draft draft;
  draft.kind = core::Kind::kCompletion;
  draft.model = request.model();
  switch (request.prompt_case()) {
    case v1::CompleteRequest::kText: draft.prompts.emplace_back(request.text()); break;
    case v1::CompleteRequest::kTokens:
      draft.prompts.emplace_back(std::vector<int64_t>(request.tokens().ids().begin(), request.tokens().ids().end()));
      break;
    case v1::CompleteRequest::PROMPT_NOT_SET: return core::FieldError("prompt", "prompt is required: set text or tokens.");
  }
  draft.echo = request.echo();
  if (request.has_add_special_tokens()) draft.add_special_tokens = request.add_special_tokens();
  draft.cache_salt = request.cache_salt();
  draft.stream = true;
  draft.sampling = ParseSampling(request.sampling());
  return draft;
}

core::Draft ParseTokenize(const v1::TokenizeRequest& request) {
  core::Draft draft;
  draft.kind = core::Kind::kCompletion;
  draft.model = request.model();
  draft.prompts.emplace_back(request.text());
  if (request.has_add_special_tokens()) draft.add_special_tokens = request.add_special_tokens();
  return draft;
}

}  // namespace phalanx::router::rpc
