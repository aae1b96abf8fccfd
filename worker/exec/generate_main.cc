// A developer's helper, not shipped: generates greedily from token ids on a chosen back end and prints ids and figures.
//   generate MODEL [--ids 1,2,3] [--tokens N] [--prompt N] [--batch N] [--f32] [--eager] [--ahead 0|1] [--random]
//            [--reference | --plugin FILE] [--threads N] [--debug]
// --ahead 1 launches each step before the last is collected, as the engine does on a GPU; 0 waits for each. The step time is the median
// over the last half of the decode steps, from one collected result to the next. --random draws at temperature 1 instead of greedily.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "kernels/load.h"
#include "services/log.h"
#include "worker/exec/executor.h"

namespace phalanx::worker::exec {
namespace {

struct Arguments {
  ExecutorOptions options;
  std::vector<int32_t> ids = {1};
  int tokens = 32;
  int batch = 1;
  bool reference = false;
  bool random = false;
  bool debug = false;
  std::string plugin;                 // a back end's shared object
  kernels::DeviceOptions device{};
};

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Arguments Parse(int argc, char** argv) {
  Arguments out;
  out.options.model_path = argc > 1 ? argv[1] : "";
  for (int i = 2; i < argc; ++i) {
    const std::string_view flag = argv[i];
    const char* value = i + 1 < argc ? argv[i + 1] : "";
    if (flag == "--f32") {
      out.options.dtype = out.options.kv_dtype = kernels::kF32;
    } else if (flag == "--eager") {
      out.options.graphs = false;
    } else if (flag == "--ahead") {
      out.options.steps_ahead = std::atoi(argv[++i]);
    } else if (flag == "--random") {
      out.random = true;
    } else if (flag == "--debug") {
      out.debug = true;
    } else if (flag == "--reference") {
      out.reference = true;
    } else if (flag == "--ids") {
      out.ids.clear();
      for (const auto id : absl::StrSplit(argv[++i], ',')) {
        if (!absl::SimpleAtoi(id, &out.ids.emplace_back())) std::fprintf(stderr, "--ids wants numbers\n"), std::exit(2);
      }
    } else if (flag == "--prompt") {
      out.ids.resize(std::atoi(value));
      for (size_t j = 0; j < out.ids.size(); ++j) out.ids[j] = static_cast<int32_t>(j * 37 % 500);
      ++i;
    } else if (flag == "--plugin") {
      out.plugin = argv[++i];
    } else if (flag == "--tokens") {
      out.tokens = std::atoi(argv[++i]);
    } else if (flag == "--batch") {
      out.batch = std::atoi(argv[++i]);
    } else if (flag == "--threads") {
      out.device.num_threads = std::atoi(argv[++i]);
    }
  }
  return out;
}

const kernels::Table* ChooseTable(const Arguments& arguments) {
  if (arguments.plugin.empty()) return arguments.reference ? kernels::ReferenceTable() : kernels::CpuTable();
  auto table = kernels::OpenPlugin(arguments.plugin);
  if (!table.ok()) std::fprintf(stderr, "%s\n", std::string(table.status().message()).c_str()), std::exit(1);
  return *table;
}

// What came of all steps.
struct Run {
  std::string text;                  // ids of the first row
  uint64_t hash = 14695981039346656037u;
  std::vector<double> collected;     // [steps] seconds from the start

  double median_ms() const {
    std::vector<double> steps;
    for (size_t i = collected.size() / 2 + 1; i < collected.size(); ++i) steps.push_back(collected[i] - collected[i - 1]);
    if (steps.empty()) return 0;
    std::nth_element(steps.begin(), steps.begin() + static_cast<std::ptrdiff_t>(steps.size() / 2), steps.end());
    return steps[steps.size() / 2] * 1e3;
  }
};

// The prompts of all rows, `blocks` KV blocks for each.
core::StepPlan PromptPlan(const Arguments& arguments, int blocks) {
  core::StepPlan plan;
  const int prompt = static_cast<int>(arguments.ids.size());
  for (int row = 0; row < arguments.batch; ++row) {
    core::AddedSequence added;
    added.row = row;
    added.prompt_length = prompt;
    added.sampling.temperature = arguments.random ? 1.0f : 0.0f;
    added.sampling.seed = static_cast<uint64_t>(row);
    plan.added.push_back(added);
    core::NewBlocks fresh{row, {}};
    for (int b = 0; b < blocks; ++b) fresh.blocks.push_back(row * blocks + b);
    plan.new_blocks.push_back(fresh);
    plan.slices.push_back({row, 0, prompt, static_cast<int32_t>(plan.tokens.size()), true, false});
    plan.tokens.insert(plan.tokens.end(), arguments.ids.begin(), arguments.ids.end());
  }
  plan.num_tokens = prompt * arguments.batch;
  return plan;
}

absl::StatusOr<Run> Steps(core::Executor& executor, const Arguments& arguments, int blocks) {
  Run run;
  const int prompt = static_cast<int>(arguments.ids.size());
  core::StepPlan plan = PromptPlan(arguments, blocks);
  const double begin = Seconds();
  for (int launched = 0; static_cast<int>(run.collected.size()) < arguments.tokens;) {
    if (launched < arguments.tokens) {
      PHX_RETURN_IF_ERROR(executor.Launch(plan));
      plan = {};
      for (int row = 0; row < arguments.batch; ++row) plan.slices.push_back({row, prompt + launched, 1, -1, true, false});
      plan.num_tokens = arguments.batch;
      ++launched;
      if (launched - static_cast<int>(run.collected.size()) <= executor.info().steps_ahead) continue;
    }
    PHX_ASSIGN_OR_RETURN(const core::StepResult result, executor.Collect());
    run.collected.push_back(Seconds() - begin);
    if (result.device_ms >= 0) std::fprintf(stderr, "device %.3f ms, draws %.3f ms\n", result.device_ms, result.sample_ms);
    run.text += std::to_string(result.slices[0].token.id) + ",";
    for (const core::SliceResult& slice : result.slices) run.hash = (run.hash ^ static_cast<uint32_t>(slice.token.id)) * 1099511628211u;
  }
  return run;
}

int Generate(const Arguments& arguments) {
  const kernels::Table& table = *ChooseTable(arguments);
  kernels::Device* device = nullptr;
  char error[256] = "";
  if (table.create(&arguments.device, &device, error, sizeof error) != kernels::kOk) return std::fprintf(stderr, "%s\n", error), 1;
  const int prompt = static_cast<int>(arguments.ids.size());
  ExecutorOptions options = arguments.options;
  options.max_model_len = prompt + arguments.tokens;
  options.max_num_seqs = arguments.batch;
  if (arguments.reference) options.kv_cache_bytes = uint64_t{1} << 30;  // the twin does not know how much memory there is
  options.max_num_batched_tokens = std::max(2048, prompt * arguments.batch);
  if (arguments.debug && !services::InitLog({.level = "debug"}).ok()) return 1;
  const double begin = Seconds();
  auto executor = MakeExecutor(table, device, options);
  if (!executor.ok()) return std::fprintf(stderr, "%s\n", std::string(executor.status().message()).c_str()), 1;
  std::printf("load %.3f s, %d blocks\n", Seconds() - begin, (*executor)->info().num_blocks);
  const absl::StatusOr<Run> run = Steps(**executor, arguments, (options.max_model_len + options.block_size - 1) / options.block_size);
  if (!run.ok()) return std::fprintf(stderr, "%s\n", std::string(run.status().message()).c_str()), 1;
  std::printf("%s\nhash %016llx of all rows\n", run->text.c_str(), static_cast<unsigned long long>(run->hash));
  const double decode = run->collected.back() - run->collected.front();
  std::printf("prefill %.1f ms, %.0f tokens/s; decode %.3f ms a step, %.1f tokens/s; median of the last half %.3f ms, ahead %d\n",
              run->collected.front() * 1e3, prompt * arguments.batch / run->collected.front(),
              decode * 1e3 / std::max(1, arguments.tokens - 1), arguments.batch * (arguments.tokens - 1) / decode, run->median_ms(),
              (*executor)->info().steps_ahead);
  executor->reset();
  table.destroy(device);
  return 0;
}

}  // namespace
}  // namespace phalanx::worker::exec

int main(int argc, char** argv) { return phalanx::worker::exec::Generate(phalanx::worker::exec::Parse(argc, argv)); }
