// A developer's helper, not shipped: generates greedily from token ids on a chosen back end and prints ids and figures.
//   generate MODEL [--ids 1,2,3] [--tokens N] [--prompt N] [--batch N] [--f32] [--eager] [--reference | --plugin FILE] [--threads N]
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "kernels/load.h"
#include "worker/exec/executor.h"

namespace phalanx::worker::exec {
namespace {

struct Arguments {
  ExecutorOptions options;
  std::vector<int32_t> ids = {1};
  int tokens = 32;
  int batch = 1;
  bool reference = false;
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
  const double begin = Seconds();
  auto executor = MakeExecutor(table, device, options);
  if (!executor.ok()) return std::fprintf(stderr, "%s\n", std::string(executor.status().message()).c_str()), 1;
  std::printf("load %.3f s, %d blocks\n", Seconds() - begin, (*executor)->info().num_blocks);

  core::StepPlan plan;
  const int blocks = (options.max_model_len + options.block_size - 1) / options.block_size;
  for (int row = 0; row < arguments.batch; ++row) {
    core::AddedSequence added;
    added.row = row;
    added.prompt_length = prompt;
    added.sampling.temperature = 0;
    plan.added.push_back(added);
    core::NewBlocks fresh{row, {}};
    for (int b = 0; b < blocks; ++b) fresh.blocks.push_back(row * blocks + b);
    plan.new_blocks.push_back(fresh);
    plan.slices.push_back({row, 0, prompt, static_cast<int32_t>(plan.tokens.size()), true, false});
    plan.tokens.insert(plan.tokens.end(), arguments.ids.begin(), arguments.ids.end());
  }
  plan.num_tokens = prompt * arguments.batch;
  std::string text;
  double prefill = 0, decode = 0;
  for (int step = 0; step < arguments.tokens; ++step) {
    const double start = Seconds();
    auto result = (*executor)->Run(plan);
    (step == 0 ? prefill : decode) += Seconds() - start;
    if (!result.ok()) return std::fprintf(stderr, "%s\n", std::string(result.status().message()).c_str()), 1;
    text += std::to_string(result->slices[0].token.id) + ",";
    plan = {};
    for (int row = 0; row < arguments.batch; ++row) plan.slices.push_back({row, prompt + step, 1, -1, true, false});
    plan.num_tokens = arguments.batch;
  }
  std::printf("%s\n", text.c_str());
  std::printf("prefill %.1f ms, %.0f tokens/s; decode %.3f ms a step, %.1f tokens/s\n", prefill * 1e3, prompt * arguments.batch / prefill,
              decode * 1e3 / std::max(1, arguments.tokens - 1), arguments.batch * (arguments.tokens - 1) / decode);
  executor->reset();
  table.destroy(device);
  return 0;
}

}  // namespace
}  // namespace phalanx::worker::exec

int main(int argc, char** argv) { return phalanx::worker::exec::Generate(phalanx::worker::exec::Parse(argc, argv)); }
