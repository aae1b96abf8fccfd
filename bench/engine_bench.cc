// The engine alone under a closed load: what a worker could do if nothing stood before it. Real scheduler, executor and model; the
// clients are the engine's own callback, which answers the end of a sequence with the next request at once.
//   phalanx-bench-engine MODEL [--plugin FILE] [--concurrency N] [--requests N] [--input N] [--output N] [--ahead 0|1] [--eager]
//                        [--plan-late] [--dummy] [--max-num-batched-tokens N] [--seed N] [--debug]
// Prompts are random ids, all different; every sequence runs to its length. The first and the last `concurrency` requests fill and drain
// the batch, so the throughput is that of the time between: from the end of the first fill to the submission of the last request.
// --plan-late holds planning ahead back (EngineOptions); --dummy makes weights up (of MODEL only the configuration is read).
// --debug writes where each step's time goes (worker/step_times.h).
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/load.h"
#include "services/log.h"
#include "worker/engine.h"
#include "worker/exec/executor.h"

namespace phalanx::worker {
namespace {

struct Arguments {
  exec::ExecutorOptions options;
  std::string plugin;
  int concurrency = 1;
  int requests = 8;
  int input = 1024;
  int output = 128;
  uint64_t seed = 1;
  bool debug = false;
  bool plan_late = false;
};

double Seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

Arguments Parse(int argc, char** argv) {
  Arguments out;
  out.options.model_path = argc > 1 ? argv[1] : "";
  for (int i = 2; i < argc; ++i) {
    const std::string_view flag = argv[i];
    const auto next = [&] { return ++i < argc ? argv[i] : ""; };
    if (flag == "--eager") out.options.graphs = false;
    else if (flag == "--debug") out.debug = true;
    else if (flag == "--plan-late") out.plan_late = true;
    else if (flag == "--dummy") out.options.load_format = model::LoadFormat::kDummy;
    else if (flag == "--plugin") out.plugin = next();
    else if (flag == "--concurrency") out.concurrency = std::atoi(next());
    else if (flag == "--requests") out.requests = std::atoi(next());
    else if (flag == "--input") out.input = std::atoi(next());
    else if (flag == "--output") out.output = std::atoi(next());
    else if (flag == "--ahead") out.options.steps_ahead = std::atoi(next());
    else if (flag == "--max-num-batched-tokens") out.options.max_num_batched_tokens = std::atoi(next());
    else if (flag == "--seed") out.seed = std::strtoull(next(), nullptr, 10);
    else std::fprintf(stderr, "unknown flag %s\n", argv[i]), std::exit(2);
  }
  return out;
}

// The clients: keeps `concurrency` requests in the engine until `requests` have been sent.
class Load {
 public:
  Load(const Arguments& arguments, int32_t vocab) : arguments_(arguments), vocab_(vocab), random_(arguments.seed) {}

  void Start(Engine* engine) {
    engine_ = engine;
    for (int i = 0; i < arguments_.concurrency; ++i) Submit();
  }
  void Take(const core::StepReport& report) {  // engine thread
    const double now = Seconds();
    std::lock_guard lock(mutex_);
    for (const core::SequenceEvent& event : report.events) {
      Request& request = requests_[event.id];
      if (!event.tokens.empty() && request.first == 0) {
        request.first = now;
        if (++filled_ == arguments_.concurrency) steady_begin_ = now, steady_tokens_ = 0;
      }
      tokens_ += event.tokens.size();
      steady_tokens_ += event.tokens.size();
      if (!event.finished) continue;
      if (event.reason != core::FinishReason::kLength) std::fprintf(stderr, "%s\n", event.error.c_str()), std::exit(1);
      request.end = now;
      ++ended_;
      if (static_cast<int>(requests_.size()) < arguments_.requests) Submit();
    }
    if (ended_ == arguments_.requests) done_.notify_all();
  }
  void Wait() {
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return ended_ == arguments_.requests || failed_; });
  }
  void Fail(const std::string& reason) {
    std::fprintf(stderr, "%s\n", reason.c_str());
    std::lock_guard lock(mutex_);
    failed_ = true;
    done_.notify_all();
  }
  bool failed() const { return failed_; }
  void Print() const {
    std::vector<double> first, each;
    for (const auto& [id, request] : requests_) {
      first.push_back((request.first - request.begin) * 1e3);
      if (arguments_.output > 1) each.push_back((request.end - request.first) * 1e3 / (arguments_.output - 1));
    }
    const double span = steady_end_ - steady_begin_;
    std::printf("concurrency %d, %d/%d tokens, %d requests: %.0f output tokens/s (%.2f s); TTFT median %.2f ms; TPOT median %.3f ms\n",
                arguments_.concurrency, arguments_.input, arguments_.output, arguments_.requests,
                span > 0 ? static_cast<double>(steady_out_) / span : 0, span, Median(first), Median(each));
  }

 private:
  struct Request {
    double begin = 0, first = 0, end = 0;
  };

  static double Median(std::vector<double> values) {
    if (values.empty()) return 0;
    std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
    return values[values.size() / 2];
  }
  void Submit() {
    core::Request request;
    request.id = requests_.size() + 1;
    for (int i = 0; i < arguments_.input; ++i) request.prompt_ids.push_back(static_cast<int32_t>(random_() % vocab_));
    request.max_tokens = arguments_.output;
    request.sampling.seed = request.id;
    requests_[request.id].begin = Seconds();
    if (static_cast<int>(requests_.size()) == arguments_.requests) steady_end_ = Seconds(), steady_out_ = steady_tokens_;
    if (const absl::Status status = engine_->Submit(std::move(request)); !status.ok()) {
      std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
      std::exit(1);
    }
  }

  const Arguments arguments_;
  const int32_t vocab_;
  std::mt19937_64 random_;
  Engine* engine_ = nullptr;
  std::mutex mutex_;
  std::condition_variable done_;
  std::map<core::SequenceId, Request> requests_;
  int filled_ = 0;             // requests with a first token, up to the concurrency
  int ended_ = 0;
  uint64_t tokens_ = 0;
  uint64_t steady_tokens_ = 0;
  uint64_t steady_out_ = 0;
  double steady_begin_ = 0, steady_end_ = 0;
  bool failed_ = false;
};

int Main(const Arguments& arguments) {
  const kernels::Table* table = kernels::CpuTable();
  if (!arguments.plugin.empty()) {
    auto opened = kernels::OpenPlugin(arguments.plugin);
    if (!opened.ok()) return std::fprintf(stderr, "%s\n", std::string(opened.status().message()).c_str()), 1;
    table = *opened;
  }
  if (!services::InitLog({.level = arguments.debug ? "debug" : "info"}).ok()) return 1;
  const kernels::DeviceOptions device_options{};
  kernels::Device* device = nullptr;
  char error[256] = "";
  if (table->create(&device_options, &device, error, sizeof error) != kernels::kOk) return std::fprintf(stderr, "%s\n", error), 1;
  exec::ExecutorOptions options = arguments.options;
  options.max_model_len = arguments.input + arguments.output;
  options.max_num_seqs = std::max(arguments.concurrency, 1);
  auto executor = exec::MakeExecutor(*table, device, options);
  if (!executor.ok()) return std::fprintf(stderr, "%s\n", std::string(executor.status().message()).c_str()), 1;
  Load load(arguments, (*executor)->info().vocab_size);
  {
    EngineCallbacks callbacks;
    callbacks.on_report = [&](core::StepReport&& report) { load.Take(report); };
    callbacks.on_fatal = [&](const std::string& reason) { load.Fail(reason); };
    EngineOptions engine_options;
    engine_options.plan_late = arguments.plan_late;
    Engine engine(engine_options, *std::move(executor), std::move(callbacks));
    load.Start(&engine);
    engine.Start();
    load.Wait();
    engine.Stop();
  }
  table->destroy(device);
  if (load.failed()) return 1;
  load.Print();
  return 0;
}

}  // namespace
}  // namespace phalanx::worker

int main(int argc, char** argv) { return phalanx::worker::Main(phalanx::worker::Parse(argc, argv)); }
