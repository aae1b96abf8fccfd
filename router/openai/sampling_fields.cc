#include "router/openai/sampling_fields.h"

#include <charconv>
#include <cstdint>
#include <string>
#include <system_error>

#include "absl/strings/str_cat.h"

namespace phalanx::router::openai {
namespace {

using services::Json;

constexpr char kNotServed[] = "is not served by this server.";

void ReadLogitBias(FieldReader* fields, core::SamplingDraft* sampling) {
  const Json* biases = fields->Object("logit_bias");
  if (biases == nullptr) return;
  for (const auto& [key, value] : biases->items()) {
    int64_t id = 0;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size()) {
      return fields->Fail("logit_bias", absl::StrCat("must have token ids as keys, got \"", key.substr(0, 40), "\"."));
    }
    if (!value.is_number()) return fields->Fail("logit_bias", absl::StrCat("must have numbers as values; that of token ", id, " is none."));
    sampling->logit_bias.emplace_back(id, value.get<double>());
  }
}

void ReadStream(FieldReader* fields, ParsedRequest* out) {
  fields->Bool("stream", &out->form.stream);
  out->draft.stream = out->form.stream;
  const Json* options = fields->Object("stream_options");
  if (options == nullptr) return;
  if (!out->form.stream) return fields->Fail("stream_options", "can only be set when stream is true.");
  FieldReader nested(*options, "stream_options.");
  nested.Bool("include_usage", &out->form.include_usage);
  nested.Bool("continuous_usage_stats", &out->form.continuous_usage);
  fields->Adopt(nested.status());
  // Usage in every chunk comes with the usage chunk, as in vLLM.
  out->form.continuous_usage = out->form.continuous_usage && out->form.include_usage;
}

void RefuseUnserved(FieldReader* fields) {
  for (const char* name : {"structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_json_object",
                           "structural_tag", "logits_processors", "use_beam_search", "prompt_embeds", "kv_transfer_params", "vllm_xargs",
                           "logprob_token_ids"}) {
    fields->Refuse(name, kNotServed);
  }
  if (const Json* format = fields->Object("response_format")) {
    FieldReader nested(*format, "response_format.");
    std::string type;
    nested.String("type", &type);
    if (!nested.status().ok() || type.empty()) return fields->Fail("response_format", "must have a type that is a string.");
    if (type != "text") fields->Fail("response_format", absl::StrCat("of type \"", type.substr(0, 40), "\" is not served by this server; only \"text\" is."));
  }
  std::optional<int64_t> budget;
  fields->Int("thinking_token_budget", &budget);
  if (budget && *budget != -1) fields->Fail("thinking_token_budget", kNotServed);
  std::string side;
  fields->String("truncation_side", &side);
  if (!side.empty() && side != "left") fields->Fail("truncation_side", "must be \"left\": the end of the prompt is what is kept.");
}

}  // namespace

void ReadSharedFields(FieldReader* fields, ParsedRequest* out) {
  core::Draft& draft = out->draft;
  core::SamplingDraft& sampling = draft.sampling;
  fields->String("model", &draft.model);
  fields->String("request_id", &draft.request_id);
  fields->Number("temperature", &sampling.temperature);
  fields->Number("top_p", &sampling.top_p);
  fields->Number("min_p", &sampling.min_p);
  fields->Number("repetition_penalty", &sampling.repetition_penalty);
  fields->Number("frequency_penalty", &sampling.frequency_penalty);
  fields->Number("presence_penalty", &sampling.presence_penalty);
  fields->Int("top_k", &sampling.top_k);
  fields->Int("seed", &sampling.seed);
  fields->Int("n", &sampling.n);
  fields->Int("max_tokens", &sampling.max_tokens);
  fields->Int("min_tokens", &sampling.min_tokens);
  fields->Int("prompt_logprobs", &sampling.prompt_logprobs);
  ReadLogitBias(fields, &sampling);
  if (const Json* allowed = fields->Find("allowed_token_ids"); allowed != nullptr && allowed->is_array() && allowed->empty()) {
    fields->Fail("allowed_token_ids", "must not be an empty list.");
  }
  fields->IntList("allowed_token_ids", &sampling.allowed_token_ids);
  fields->IntList("stop_token_ids", &sampling.stop_token_ids);
  fields->StringList("bad_words", &sampling.bad_words);
  fields->StringOrList("stop", &sampling.stop);
  fields->Bool("ignore_eos", &sampling.ignore_eos);
  fields->Bool("include_stop_str_in_output", &sampling.include_stop_in_output);
  fields->Bool("skip_special_tokens", &sampling.skip_special_tokens);
  bool spaces = true;  // has no effect on the tokenizers served here, as on fast tokenizers in vLLM
  fields->Bool("spaces_between_special_tokens", &spaces);
  fields->Bool("add_special_tokens", &draft.add_special_tokens);
  fields->Int("truncate_prompt_tokens", &draft.truncate_prompt_tokens);
  if (const Json* salt = fields->Find("cache_salt"); salt != nullptr && salt->is_string() && salt->get_ref<const std::string&>().empty()) {
    fields->Fail("cache_salt", "must not be an empty string.");
  }
  fields->String("cache_salt", &draft.cache_salt);
  std::optional<int64_t> priority;
  fields->Int("priority", &priority);
  draft.priority = priority.value_or(0);
  fields->Bool("return_token_ids", &draft.return_token_ids);
  fields->Bool("return_tokens_as_token_ids", &out->form.tokens_as_ids);
  fields->Bool("echo", &draft.echo);
  out->form.return_token_ids = draft.return_token_ids;
  out->form.prompt_logprobs = sampling.prompt_logprobs.has_value();
  ReadStream(fields, out);
  RefuseUnserved(fields);
}

}  // namespace phalanx::router::openai
