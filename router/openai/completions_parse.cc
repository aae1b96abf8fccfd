#include <utility>

#include "router/openai/completions.h"
#include "router/openai/fields.h"
#include "router/openai/sampling_fields.h"

namespace phalanx::router::openai {
namespace {

using services::Json;

constexpr char kPromptTypes[] = "must be a string, a list of strings, a list of token ids or a list of lists of token ids.";

// Reads one list of ids; false on an error.
bool ReadIds(FieldReader* fields, const Json& list, std::vector<core::Prompt>* prompts) {
  std::vector<int64_t> ids;
  ids.reserve(list.size());
  for (const Json& item : list) {
    int64_t id = 0;
    if (!item.is_number()) {
      fields->Fail("prompt", kPromptTypes);
      return false;
    }
    if (!fields->AsInt("prompt", item, &id)) return false;
    ids.push_back(id);
  }
  prompts->emplace_back(std::move(ids));
  return true;
}

void ReadPrompt(FieldReader* fields, std::vector<core::Prompt>* prompts) {
  const Json* prompt = fields->Find("prompt");
  if (prompt == nullptr) return fields->Fail("prompt", "is required.");
  if (prompt->is_string()) {
    prompts->emplace_back(prompt->get_ref<const std::string&>());
    return;
  }
  if (!prompt->is_array()) return fields->Fail("prompt", kPromptTypes);
  if (prompt->empty()) return fields->Fail("prompt", "must not be an empty list.");
  if (prompt->front().is_number()) {
    ReadIds(fields, *prompt, prompts);
    return;
  }
  const bool strings = prompt->front().is_string();
  for (const Json& item : *prompt) {
    if (strings ? !item.is_string() : !item.is_array()) return fields->Fail("prompt", kPromptTypes);
    if (strings) {
      prompts->emplace_back(item.get_ref<const std::string&>());
    } else if (!ReadIds(fields, item, prompts)) {
      return;
    }
  }
}

}  // namespace

absl::StatusOr<ParsedRequest> ParseCompletion(std::string_view body) {
  PHX_ASSIGN_OR_RETURN(const Json json, ParseObject(body));
  FieldReader fields(json);
  ParsedRequest out;
  out.draft.kind = out.form.kind = core::Kind::kCompletion;
  ReadPrompt(&fields, &out.draft.prompts);
  ReadSharedFields(&fields, &out);
  fields.Int("logprobs", &out.draft.sampling.logprobs);
  out.form.logprobs = out.draft.sampling.logprobs.has_value();
  out.form.echo = out.draft.echo;
  std::optional<int64_t> best_of;
  fields.Int("best_of", &best_of);
  if (best_of && *best_of != out.draft.sampling.n.value_or(1)) fields.Fail("best_of", "must be equal to n.");
  fields.Refuse("suffix", "is not served: text is only generated at the end of the prompt.");
  PHX_RETURN_IF_ERROR(fields.status());
  return out;
}

}  // namespace phalanx::router::openai
