#include "router/options.h"

namespace phalanx::router {

void BindOptions(services::OptionSet& set, RouterOptions& o) {
  set.Group("Model");
  set.Add("model", &o.model, "folder or .gguf file with tokenizer, chat template and generation config");
  set.Add("tokenizer", &o.tokenizer, "folder, tokenizer.json or .gguf file to take the tokenizer from", {.shown_default = "the model"});
  set.Add("chat-template", &o.chat_template, "file with a chat template, or its text", {.shown_default = "the model's own"});
  set.Add("served-model-name", &o.served_names, "names that clients may ask for; the first is meant by requests without one",
          {.shown_default = "the model as given"});
  set.Add("generation-config", &o.generation_config, "where sampling defaults come from: auto = the model, vllm = none, or a folder");
  set.Add("max-logprobs", &o.max_logprobs, "log-probabilities a request may ask for; -1 = all that the workers give", {.min = -1});
  set.Add("seed", &o.seed, "requests without a seed draw theirs from this one, in order of arrival", {.shown_default = "random"});
  set.Group("Server");
  set.Add("listen", &o.listen, "where to listen: unix:PATH or HOST:PORT");
  set.Add("grpc-listen", &o.grpc_listen, "a second address for native clients: HOST:PORT");
  set.Add("workers", &o.workers, "addresses of the workers: unix:PATH or HOST:PORT");
  set.Add("max-num-queued-reqs", &o.max_queued_requests,
          "requests waiting and running together; more are refused with 429; 0 = only the built-in cap", {.min = 0});
  set.Add("tokenizer-threads", &o.tokenizer_threads, "threads that render and encode prompts", {.min = 1, .max = 256});
  set.Add("resume-timeout", &o.resume_timeout_s, "how long a sequence that lost its worker waits for another",
          {.unit = "s", .min = 0, .max = 3600});
  set.Add("shutdown-timeout", &o.shutdown_timeout_s, "running requests may finish for so long after SIGTERM", {.unit = "s", .min = 0});
  set.Group("Replies");
  set.Add("reasoning-field", &o.reasoning_field, "name of the reasoning text in chat replies",
          {.choices = {"reasoning_content", "reasoning", "both"}});
  set.Add("enable-prompt-tokens-details", &o.prompt_tokens_details, "usage says how many prompt tokens were cached");
  set.Add("enable-force-include-usage", &o.force_include_usage, "every stream ends with usage, asked for or not");
  set.Group("Log");
  set.Add("log-level", &o.log.level, "least level that is written", {.choices = {"debug", "info", "warning", "error"}});
  set.Add("log-format", &o.log.format, "form of the lines", {.choices = {"text", "json"}});
}

absl::Status Validate(RouterOptions& o) {
  if (o.model.empty()) return absl::InvalidArgumentError("--model is required");
  if (o.workers.empty()) return absl::InvalidArgumentError("--workers needs at least one address");
  if (o.tokenizer.empty()) o.tokenizer = o.model;
  if (o.served_names.empty()) o.served_names = {o.model};
  for (const std::string& name : o.served_names) {
    if (name.empty()) return absl::InvalidArgumentError("--served-model-name must not be empty");
  }
  return absl::OkStatus();
}

}  // namespace phalanx::router
