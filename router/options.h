// router/options.h: the flags of phalanx-router as one struct, frozen once it is parsed.
// Refuses to know: how anything is served. Thread: main. Neighbours: main.cc builds the rooms from it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "services/log.h"
#include "services/options.h"
#include "services/status.h"

namespace phalanx::router {

struct RouterOptions {
  std::string model;                         // folder or .gguf file: tokenizer, chat template, generation config
  std::string tokenizer;                     // the same, but for the generation config; "" = model
  std::string chat_template;                 // file or text; "" = the model's own
  std::vector<std::string> served_names;     // empty = model as it was given
  std::string generation_config = "auto";    // auto, vllm, or a folder
  std::string listen = "127.0.0.1:0";        // unix:PATH or HOST:PORT
  std::string grpc_listen;                   // a second address, "" = none
  std::vector<std::string> workers;          // addresses, in the order of their `engine` labels
  int max_logprobs = 20;
  int64_t max_queued_requests = 0;           // waiting and running together; 0 = only the built-in cap
  std::optional<int64_t> seed;
  std::string reasoning_field = "reasoning_content";
  bool prompt_tokens_details = false;
  bool force_include_usage = false;
  double shutdown_timeout_s = 30;
  double resume_timeout_s = 5;
  int tokenizer_threads = 2;
  services::LogOptions log;
};

// Binds every field. `options` outlives `set`.
void BindOptions(services::OptionSet& set, RouterOptions& options);

// What no single flag can check; fills served_names and tokenizer in. Errors: kInvalidArgument that names the flag.
absl::Status Validate(RouterOptions& options);

}  // namespace phalanx::router
