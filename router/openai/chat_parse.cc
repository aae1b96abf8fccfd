#include <string>

#include "absl/strings/str_cat.h"
#include "router/openai/chat.h"
#include "router/openai/fields.h"
#include "router/openai/messages.h"
#include "router/openai/sampling_fields.h"

namespace phalanx::router::openai {
namespace {

using services::Json;

// Tools are not served yet. What asks for none is accepted: no tools, an empty list, or tool_choice "none" (tools are then not rendered).
void CheckTools(FieldReader* fields) {
  const Json* choice = fields->Find("tool_choice");
  const bool none = choice != nullptr && choice->is_string() && choice->get_ref<const std::string&>() == "none";
  if (!none) {
    fields->Refuse("tools", "are not served by this server; leave it out or set tool_choice to \"none\".");
    if (choice != nullptr) fields->Fail("tool_choice", "must be \"none\": tools are not served by this server.");
  }
  const Json* call = fields->Find("function_call");
  const bool no_call = call != nullptr && call->is_string() && call->get_ref<const std::string&>() == "none";
  if (!no_call) {
    fields->Refuse("functions", "are not served by this server.");
    fields->Refuse("function_call", "is not served by this server.");
  }
}

void CheckModalities(FieldReader* fields) {
  std::vector<std::string> modalities;
  fields->StringList("modalities", &modalities);
  for (const std::string& one : modalities) {
    if (one != "text") return fields->Fail("modalities", "may hold only \"text\".");
  }
  fields->Refuse("audio", "is not served by this server.");
}

// Wins over max_tokens. Too small is refused here, under its own name; too large is a matter of the context, as with max_tokens.
void ReadMaxCompletionTokens(FieldReader* fields, std::optional<int64_t>* max_tokens) {
  std::optional<int64_t> given;
  fields->Int("max_completion_tokens", &given);
  if (!given) return;
  if (*given < 1) fields->Fail("max_completion_tokens", absl::StrCat("must be at least 1, got ", *given, "."));
  *max_tokens = given;
}

void ReadLogprobs(FieldReader* fields, ParsedRequest* out) {
  fields->Bool("logprobs", &out->form.logprobs);
  std::optional<int64_t> top;
  fields->Int("top_logprobs", &top);
  if (top && *top != 0 && !out->form.logprobs) return fields->Fail("top_logprobs", "can only be set when logprobs is true.");
  if (out->form.logprobs) out->draft.sampling.logprobs = top.value_or(0);
}

}  // namespace

absl::StatusOr<ParsedRequest> ParseChat(std::string_view body) {
  PHX_ASSIGN_OR_RETURN(const Json json, ParseObject(body));
  FieldReader fields(json);
  ParsedRequest out;
  core::Draft& draft = out.draft;
  std::string last_assistant;
  ReadMessages(&fields, &draft.messages_json, &last_assistant);
  ReadSharedFields(&fields, &out);
  ReadMaxCompletionTokens(&fields, &draft.sampling.max_tokens);
  ReadLogprobs(&fields, &out);
  fields.Bool("add_generation_prompt", &draft.add_generation_prompt);
  fields.Bool("continue_final_message", &draft.continue_final_message);
  fields.Bool("include_reasoning", &draft.include_reasoning);
  out.form.include_reasoning = draft.include_reasoning;
  ReadTemplateFields(&fields, &draft.template_kwargs_json);
  if (draft.echo) out.form.echo_message = std::move(last_assistant);
  draft.echo = false;  // the prompt itself is never echoed by a chat
  CheckTools(&fields);
  CheckModalities(&fields);
  PHX_RETURN_IF_ERROR(fields.status());
  return out;
}

}  // namespace phalanx::router::openai
