// worker/exec/exec_test_util.h: runs requests through the real engine on the real executor and collects their streams.
// Refuses to know: what is being proved. Thread: the test's; the engine has its own inside RunAll.
// Neighbours: executor_test.cc, ranks_test.cc and sampling_test.cc.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "worker/engine.h"
#include "worker/exec/executor.h"
#include "worker/exec/memory.h"
#include "worker/model/model_test_util.h"

namespace phalanx::worker::exec {

// One worker: a fixture model, a device, and the sizes that decide how work is cut up.
struct WorkerSetup {
  std::string model = "llama_mha";
  std::string path;                   // another folder to load; empty = the fixture's own
  kernels::DType dtype = kernels::kF32;
  int32_t max_model_len = 96;
  int32_t max_num_seqs = 16;
  int32_t max_num_batched_tokens = 512;
  int32_t block_size = 4;
  int32_t num_blocks = 0;             // 0 = room for max_num_seqs sequences of max_model_len
  bool prefix_caching = true;
  int32_t steps_ahead = -1;           // as in ExecutorOptions
  bool graphs = true;
  const kernels::Table* table = kernels::CpuTable();
  kernels::DeviceOptions device{};
};

struct Output {
  std::vector<core::TokenInfo> tokens;
  std::vector<core::TokenInfo> prompt;
  int32_t cached_tokens = 0;
  bool finished = false;
  core::SequenceEvent end;

  std::vector<int32_t> ids() const {
    std::vector<int32_t> out;
    for (const core::TokenInfo& token : tokens) out.push_back(token.id);
    return out;
  }
};

struct Outputs {
  std::map<core::SequenceId, Output> of;
  plan::SchedulerCounters counters;
  std::string fatal;
};

inline std::string PathOf(const WorkerSetup& setup) { return setup.path.empty() ? model::FixtureModel(setup.model) : setup.path; }

inline ExecutorOptions OptionsOf(const WorkerSetup& setup, const model::ModelConfig& config) {
  ExecutorOptions options;
  options.model_path = PathOf(setup);
  options.dtype = options.kv_dtype = setup.dtype;
  options.max_model_len = setup.max_model_len;
  options.max_num_seqs = setup.max_num_seqs;
  options.max_num_batched_tokens = setup.max_num_batched_tokens;
  options.block_size = setup.block_size;
  options.steps_ahead = setup.steps_ahead;
  options.graphs = setup.graphs;
  const int32_t one = (setup.max_model_len + setup.block_size - 1) / setup.block_size;
  const int32_t blocks = setup.num_blocks > 0 ? setup.num_blocks : one * setup.max_num_seqs;
  options.kv_cache_bytes = blocks * BlockBytes(config, setup.dtype, setup.block_size);
  return options;
}

using OnEvent = std::function<void(Engine&, const core::SequenceEvent&, const Output&)>;

// Runs all requests at once on `executor`, submitted before the first step, until each has ended. `on_event` may steer: it is called in the
// engine's thread with every event of a sequence and what it has given so far.
inline Outputs RunAllOn(std::unique_ptr<core::Executor> executor, const WorkerSetup& setup, const std::vector<core::Request>& requests,
                        const OnEvent& on_event = nullptr) {
  Outputs outputs;
  std::mutex mutex;
  std::condition_variable ended;
  size_t open = requests.size();
  Engine* engine_pointer = nullptr;
  EngineOptions options;
  options.scheduler.prefix_caching = setup.prefix_caching;
  options.check_invariants = true;
  EngineCallbacks callbacks;
  callbacks.on_report = [&](core::StepReport&& report) {
    std::lock_guard lock(mutex);
    for (core::SequenceEvent& event : report.events) {
      Output& out = outputs.of[event.id];
      EXPECT_FALSE(out.finished);
      if (event.started) out.cached_tokens = event.cached_tokens;
      out.tokens.insert(out.tokens.end(), event.tokens.begin(), event.tokens.end());
      out.prompt.insert(out.prompt.end(), event.prompt.begin(), event.prompt.end());
      if (on_event) on_event(*engine_pointer, event, out);
      if (!event.finished) continue;
      out.finished = true;
      out.end = std::move(event);
      --open;
    }
    ended.notify_all();
  };
  callbacks.on_step = [&](const EngineStep& step) { outputs.counters = step.counters; };  // read after Stop
  callbacks.on_fatal = [&](const std::string& reason) {
    std::lock_guard lock(mutex);
    outputs.fatal = reason;
    ended.notify_all();
  };
  Engine engine(options, std::move(executor), std::move(callbacks));
  engine_pointer = &engine;
  for (const core::Request& request : requests) {
    const absl::Status submitted = engine.Submit(request);
    EXPECT_TRUE(submitted.ok()) << submitted;
    if (!submitted.ok()) return outputs;
  }
  engine.Start();
  {
    std::unique_lock lock(mutex);
    EXPECT_TRUE(ended.wait_for(lock, std::chrono::seconds(100), [&] { return open == 0 || !outputs.fatal.empty(); }));
  }
  engine.Stop();
  EXPECT_EQ(outputs.fatal, "");
  return outputs;
}

// The same on an executor of its own.
inline Outputs RunAll(const WorkerSetup& setup, const std::vector<core::Request>& requests, const OnEvent& on_event = nullptr) {
  const auto config = model::ReadModelConfig(PathOf(setup));
  EXPECT_TRUE(config.ok()) << config.status();
  const model::TestDevice device(*setup.table, setup.device);
  auto executor = MakeExecutor(device.table(), device.get(), OptionsOf(setup, *config));
  EXPECT_TRUE(executor.ok()) << executor.status();
  if (!executor.ok()) return {};
  return RunAllOn(*std::move(executor), setup, requests, on_event);
}

// A mixture: prompts that share beginnings, every kind of sampling, end ids, resumed output.
inline std::vector<core::Request> Mixture(const std::string& model) {
  const std::vector<int32_t> golden = model::ReadGolden(model).input_ids;
  std::vector<core::Request> requests;
  const auto add = [&](int32_t prompt, int32_t changed_from) -> core::Request& {
    core::Request& request = requests.emplace_back();
    request.id = requests.size();
    request.prompt_ids.assign(golden.begin(), golden.begin() + prompt);
    for (int32_t i = changed_from; i < prompt; ++i) request.prompt_ids[i] = (request.prompt_ids[i] + 17) % 90;
    request.max_tokens = 20 + static_cast<int32_t>(requests.size());
    request.sampling.seed = 1000 + requests.size();
    request.sampling.temperature = 0;
    return request;
  };
  add(40, 40);
  add(40, 22).sampling.temperature = 0.8f;
  add(1, 1).sampling.temperature = 1.5f;
  add(33, 9).sampling.num_logprobs = 3;
  core::Request& narrow = add(39, 30);
  narrow.sampling.temperature = 1.0f;
  narrow.sampling.top_k = 12;
  narrow.sampling.top_p = 0.9f;
  narrow.sampling.min_p = 0.02f;
  narrow.sampling.num_logprobs = 0;
  core::Request& penalties = add(17, 12);
  penalties.sampling.repetition_penalty = 1.3f;
  penalties.sampling.frequency_penalty = 0.4f;
  penalties.sampling.presence_penalty = 0.3f;
  core::Request& lists = add(25, 3);
  lists.sampling.temperature = 1.2f;
  lists.sampling.bad_words = {{4}, {7, 8}, {60, 61, 62}};
  lists.sampling.logit_bias = {{10, 3.0f}, {11, -50.0f}};
  core::Request& allowed = add(8, 8);
  allowed.sampling.temperature = 1.0f;
  for (int32_t id = 20; id < 60; ++id) allowed.sampling.allowed_ids.push_back(id);
  core::Request& ends = add(40, 40);
  ends.sampling.temperature = 1.0f;
  for (int32_t id = 0; id < 30; ++id) ends.stop_ids.push_back(id);
  ends.min_tokens = 4;
  core::Request& resumed = add(12, 6);
  resumed.resume_output_ids = {30, 31, 30, 32};
  resumed.sampling.temperature = 0.9f;
  resumed.sampling.presence_penalty = 0.8f;
  resumed.sampling.bad_words = {{31, 30}};
  core::Request& prompt_logprobs = add(40, 38);
  prompt_logprobs.sampling.prompt_logprobs = 2;
  prompt_logprobs.sampling.num_logprobs = 2;
  prompt_logprobs.sampling.temperature = 0.7f;
  return requests;
}

inline std::string Text(const std::vector<core::TokenInfo>& tokens) {
  std::string out;
  char number[48];
  for (const core::TokenInfo& token : tokens) {
    std::snprintf(number, sizeof number, " %d(%a #%d", token.id, static_cast<double>(token.logprob), token.rank);
    out += number;
    for (const core::TopLogprob& top : token.top) {
      std::snprintf(number, sizeof number, " %d:%a", top.id, static_cast<double>(top.logprob));
      out += number;
    }
    out += ")";
  }
  return out;
}

// One request alone.
inline Output RunOne(const WorkerSetup& setup, core::Request request) {
  const core::SequenceId id = request.id;
  return RunAll(setup, {std::move(request)}).of[id];
}

// A greedy request over the first `prompt` ids of the fixture's golden prompt.
inline core::Request Greedy(const std::string& model, int32_t prompt, int32_t max_tokens, core::SequenceId id = 1) {
  core::Request request;
  request.id = id;
  request.prompt_ids = model::ReadGolden(model).input_ids;
  request.prompt_ids.resize(prompt);
  request.sampling.temperature = 0;
  request.max_tokens = max_tokens;
  return request;
}

}  // namespace phalanx::worker::exec
