#include "router/openai/tokenize.h"

#include "router/openai/fields.h"
#include "router/openai/json_text.h"
#include "router/openai/messages.h"

namespace phalanx::router::openai {
namespace {

using services::Json;

void ReadChat(FieldReader* fields, core::Draft* draft) {
  draft->kind = core::Kind::kChat;
  ReadMessages(fields, &draft->messages_json, nullptr);
  fields->Bool("add_generation_prompt", &draft->add_generation_prompt);
  fields->Bool("continue_final_message", &draft->continue_final_message);
  if (draft->add_generation_prompt && draft->continue_final_message) {
    fields->Fail("continue_final_message", "and add_generation_prompt cannot both be true.");
  }
  ReadTemplateFields(fields, &draft->template_kwargs_json);
  fields->Refuse("tools", "are not served by this server.");
}

void ReadPrompt(FieldReader* fields, core::Draft* draft) {
  draft->kind = core::Kind::kCompletion;
  if (fields->Find("prompt") == nullptr) return fields->Fail("prompt", "or messages is required.");
  std::string prompt;
  fields->String("prompt", &prompt);
  draft->prompts.emplace_back(std::move(prompt));
}

}  // namespace

absl::StatusOr<TokenizeForm> ParseTokenize(std::string_view body) {
  PHX_ASSIGN_OR_RETURN(const Json json, ParseObject(body));
  FieldReader fields(json);
  TokenizeForm out;
  fields.Find("messages") != nullptr ? ReadChat(&fields, &out.draft) : ReadPrompt(&fields, &out.draft);
  fields.String("model", &out.draft.model);
  fields.Bool("add_special_tokens", &out.draft.add_special_tokens);
  fields.Bool("return_token_strs", &out.return_token_strs);
  PHX_RETURN_IF_ERROR(fields.status());
  return out;
}

absl::StatusOr<DetokenizeForm> ParseDetokenize(std::string_view body) {
  PHX_ASSIGN_OR_RETURN(const Json json, ParseObject(body));
  FieldReader fields(json);
  DetokenizeForm out;
  fields.String("model", &out.model);
  if (fields.Find("tokens") == nullptr) fields.Fail("tokens", "is required.");
  fields.IntList("tokens", &out.tokens);
  PHX_RETURN_IF_ERROR(fields.status());
  return out;
}

std::string WriteTokenize(const core::TokenizeResult& result, bool return_token_strs) {
  std::string out = "{\"count\":";
  AppendInt(static_cast<int64_t>(result.ids.size()), &out);
  out.append(",\"max_model_len\":");
  AppendInt(result.max_model_len, &out);
  out.append(",\"tokens\":[");
  for (size_t i = 0; i < result.ids.size(); ++i) {
    if (i > 0) out.push_back(',');
    AppendInt(result.ids[i], &out);
  }
  out.append("],\"token_strs\":");
  if (!return_token_strs) return out.append("null}");
  out.push_back('[');
  for (size_t i = 0; i < result.pieces.size(); ++i) {
    if (i > 0) out.push_back(',');
    AppendJsonString(result.pieces[i], &out);
  }
  return out.append("]}");
}

std::string WriteDetokenize(std::string_view text) {
  std::string out = "{\"prompt\":";
  AppendJsonString(text, &out);
  return out.append("}");
}

}  // namespace phalanx::router::openai
