// worker/exec/exec_test_util.h: runs requests through the real engine on the real executor and collects their streams.
// Refuses to know: what is being proved. Thread: the test's; the engine has its own inside RunAll.
// Neighbours: executor_test.cc and sampling_test.cc.
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

// Runs all requests at once, submitted before the first step, until each has ended. `on_event` may steer: it is called in the engine's
// thread with every event of a sequence and what it has given so far.
inline Outputs RunAll(const WorkerSetup& setup, const std::vector<core::Request>& requests,
                   const std::function<void(Engine&, const core::SequenceEvent&, const Output&)>& on_event = nullptr) {
  const auto config = model::ReadModelConfig(PathOf(setup));
  EXPECT_TRUE(config.ok()) << config.status();
  const model::TestDevice device(*setup.table, setup.device);
  auto executor = MakeExecutor(device.table(), device.get(), OptionsOf(setup, *config));
  EXPECT_TRUE(executor.ok()) << executor.status();
  if (!executor.ok()) return {};

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
  Engine engine(options, *std::move(executor), std::move(callbacks));
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
