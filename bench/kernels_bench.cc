// phalanx-bench-kernels: times each operation of a model's step on a back end and holds it against the machine's roof: the time that its
// bytes take at the memory rate, or its floating operations at the arithmetic peak, whichever is longer. On the CPU both are measured here;
// a GPU plug-in (--plugin) is held against what large copies and products reach on its card.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/kernels_cases.h"
#include "bench/kernels_plugin.h"
#include "bench/kernels_roof.h"
#include "kernels/cpu/isa.h"
#include "kernels/load.h"
#include "services/json.h"
#include "services/options.h"

namespace phalanx::bench {
namespace {

using kernels::Device;
using services::Json;

struct Flags {
  std::string model = "smollm2";
  std::string isa_cap = "auto";
  std::string filter;
  std::vector<std::string> decode = {"1", "16", "64"};
  std::vector<std::string> prefill = {"512"};
  int threads = 0;
  int context = 512;
  int budget_ms = 200;
  std::string clock = "wall";
  std::string plugin;
  bool graph = true;
  double roof_copy_gbs = 0;
  double roof_tflops = 0;
  bool json = false;

  Clock which_clock() const { return clock == "thread" ? Clock::kThread : Clock::kWall; }
};

void Bind(services::OptionSet& set, Flags& f) {
  set.Add("model", &f.model, "whose shapes", {.choices = {"smollm2", "1.5b", "7b"}});
  set.Add("decode", &f.decode, "numbers of sequences that decode together; 0 = no decode");
  set.Add("context", &f.context, "tokens in the cache of each of them", {.min = 1, .max = 1 << 20});
  set.Add("prefill", &f.prefill, "lengths of one prompt; 0 = no prefill");
  set.Add("filter", &f.filter, "only operations whose name has this in it");
  set.Add("budget-ms", &f.budget_ms, "time for each row", {.unit = "ms", .min = 1});
  set.Add("json", &f.json, "one JSON object instead of tables");
  set.Group("CPU");
  set.Add("isa-cap", &f.isa_cap, "highest instruction set level",
          {.choices = {"auto", "portable", "avx2", "avx512", "avx512_bf16", "amx_bf16"}});
  set.Add("threads", &f.threads, "threads; 0 = all cores this process may run on", {.min = 0, .max = 1024});
  set.Add("clock", &f.clock, "thread: the CPU time of one thread (use --threads 1), for a machine that is not quiet",
          {.choices = {"wall", "thread"}});
  set.Group("GPU");
  set.Add("plugin", &f.plugin, "a back end's shared object (build/libphalanx_cuda.so) instead of the CPU");
  set.Add("graph", &f.graph, "replay the repeats from one graph; --no-graph launches them one by one, which shows the host's cost too");
  set.Add("roof-copy-gbs", &f.roof_copy_gbs,
          "rate of a large copy, bytes read + written; 0 = by the card's name, else measured with gather_rows",
          {.unit = "GB/s", .min = 0});
  set.Add("roof-tflops", &f.roof_tflops, "rate of a large bf16 product; 0 = by the card's name, else measured with linear",
          {.unit = "TFLOP/s", .min = 0});
}

// The machine, the device under test, and what it is held against.
struct Stand {
  const kernels::Table* table = kernels::CpuTable();
  Device* device = nullptr;
  kernels::DeviceInfo info{};
  bool gpu = false;
  Roof roof;               // on a GPU: read_bytes is the copy rate, fma_flops the rate of bf16 products
  std::string roof_from;   // GPU: where they come from
  double gemm_flops = 0;   // what linear reaches on a large product
  double copy_bytes = 0;   // GPU: what gather_rows reaches on a large copy
  std::unique_ptr<ColdWeights> weights;

  Stand() = default;
  Stand(const Stand&) = delete;
  ~Stand() {
    weights.reset();
    if (device != nullptr) table->destroy(device);
  }
};

absl::StatusOr<Timing> Time(const Flags& f, const Stand& stand, const Case& c, double budget_s) {
  if (stand.gpu) {
    auto timing = MeasureOnDevice(*stand.table, stand.device, f.graph ? Launch::kGraph : Launch::kPlain, budget_s, c.run);
    return timing.ok() ? timing : absl::InternalError(absl::StrCat(c.name, ": ", timing.status().message()));
  }
  kernels::Code failed = kernels::kOk;
  const Timing t = Measure(f.which_clock(), budget_s, [&](int repeat) {
    if (const kernels::Code code = c.run(repeat); code != kernels::kOk) failed = code;
  });
  if (failed != kernels::kOk) return absl::InternalError(absl::StrCat(c.name, ": ", stand.table->last_error(stand.device)));
  return t;
}

absl::Status Open(const Flags& f, Stand* stand) {
  kernels::CpuIsa isa = kernels::kIsaAuto;
  if (!kernels::cpu::ParseIsa(f.isa_cap, &isa)) return absl::InvalidArgumentError(absl::StrCat("--isa-cap: no such level: ", f.isa_cap));
  if (!f.plugin.empty()) {
    PHX_ASSIGN_OR_RETURN(stand->table, kernels::OpenPlugin(f.plugin));
    stand->gpu = true;
  }
  const kernels::DeviceOptions options{0, f.threads, isa};
  char error[256] = "";
  if (stand->table->create(&options, &stand->device, error, sizeof(error)) != kernels::kOk) return absl::FailedPreconditionError(error);
  stand->table->info(stand->device, &stand->info);
  stand->weights = std::make_unique<ColdWeights>(*stand->table, stand->device);
  return absl::OkStatus();
}

absl::Status ProbeCpu(const Flags& f, Stand* stand) {
  stand->roof = ProbeRoof(f.which_clock(), *FindLevel(stand->info.isa), stand->info.num_threads);
  Arena arena(*stand->table, stand->device);
  const Case peak = PeakCase(arena, *stand->weights, 768, 2048, 2048);
  PHX_ASSIGN_OR_RETURN(const Timing t, Time(f, *stand, peak, std::max(0.5, f.budget_ms * 1e-3)));
  stand->gemm_flops = peak.flops / t.low;
  return absl::OkStatus();
}

absl::Status ProbeGpu(const Flags& f, Stand* stand) {
  {
    Arena arena(*stand->table, stand->device);
    ColdWeights weights(*stand->table, stand->device);
    const Case copy = CopyCase(arena, int64_t{512} << 20), peak = PeakCase(arena, weights, 8192, 8192, 8192);
    PHX_ASSIGN_OR_RETURN(const Timing copied, Time(f, *stand, copy, 0.05));
    PHX_ASSIGN_OR_RETURN(const Timing multiplied, Time(f, *stand, peak, 0.1));
    stand->copy_bytes = copy.bytes / copied.median;
    stand->gemm_flops = peak.flops / multiplied.median;
  }
  const CardRoof card = FindCardRoof(stand->info.name);
  const auto choose = [&](const char* what, double given, double by_name, double measured, double* out) {
    *out = given > 0 ? given : by_name > 0 ? by_name : measured;
    const char* from = given > 0 ? " as given" : by_name > 0 ? " by the card's name" : " measured";
    absl::StrAppend(&stand->roof_from, stand->roof_from.empty() ? "" : ", ", what, from);
  };
  choose("copy", f.roof_copy_gbs * 1e9, card.copy_bytes, stand->copy_bytes, &stand->roof.read_bytes);
  choose("product", f.roof_tflops * 1e12, card.bf16_flops, stand->gemm_flops, &stand->roof.fma_flops);
  return absl::OkStatus();
}

double RoofSeconds(const Stand& stand, double bytes, double flops) {
  return std::max(bytes / stand.roof.read_bytes, flops / stand.roof.fma_flops);
}

void PrintHead(const Flags& f, const Stand& s) {
  absl::PrintF("%s\n", s.info.name);
  if (s.gpu) {
    absl::PrintF("roof: copy %.0f GB/s, bf16 product %.0f TFLOP/s (%s)\n", s.roof.read_bytes / 1e9, s.roof.fma_flops / 1e12, s.roof_from);
    absl::PrintF("measured now: gather_rows of 512 MiB %.0f GB/s, linear of 8192^3 %.0f TFLOP/s\n", s.copy_bytes / 1e9,
                 s.gemm_flops / 1e12);
    absl::PrintF("repeats %s\n", f.graph ? "replayed from a graph" : "launched one by one");
    return;
  }
  absl::PrintF("stream read   %6.1f GB/s    (median pass %.1f)\n", s.roof.read_bytes / 1e9, s.roof.read_bytes_median / 1e9);
  absl::PrintF("f32 fma peak  %6.1f GFLOP/s (median pass %.1f)\n", s.roof.fma_flops / 1e9, s.roof.fma_flops_median / 1e9);
  absl::PrintF("bf16 product  %6.1f GFLOP/s: %.0f %% of the fma peak\n", s.gemm_flops / 1e9, 100 * s.gemm_flops / s.roof.fma_flops);
}

// Sums over the calls of one step.
struct Sums {
  double seconds = 0, products = 0, product_flops = 0;
  double roof = 0;  // every operation at its roof
};

void PrintSums(const Stand& stand, const ModelShape& model, const StepShape& step, const Sums& sums) {
  absl::PrintF("sum of a step: %.2f ms, products %.2f ms = %.0f %% of it; every operation at its roof %.2f ms: %.0f %%\n",
               sums.seconds * 1e3, sums.products * 1e3, 100 * sums.products / sums.seconds, sums.roof * 1e3,
               100 * sums.roof / sums.seconds);
  if (step.rows == 1) {
    const double floor = model.weight_bytes() / stand.roof.read_bytes;
    absl::PrintF("weights %.1f MB at the %s rate: %.2f ms, share %.0f %%\n", model.weight_bytes() / 1e6, stand.gpu ? "copy" : "read",
                 floor * 1e3, 100 * floor / sums.seconds);
  } else {
    const double rate = sums.product_flops / sums.seconds, scale = stand.gpu ? 1e12 : 1e9;
    absl::PrintF("products' operations over the whole step: %.1f %s: %.0f %% of the large bf16 product, %.0f %% of the %s peak\n",
                 rate / scale, stand.gpu ? "TFLOP/s" : "GFLOP/s", 100 * rate / stand.gemm_flops, 100 * rate / stand.roof.fma_flops,
                 stand.gpu ? "card's" : "fma");
  }
}

// Times all cases of one step and prints their rows. The step's own figures follow from the sums.
absl::StatusOr<Json> RunStep(const Flags& f, const Stand& stand, const ModelShape& model, const StepShape& step) {
  Arena arena(*stand.table, stand.device);
  const std::string title = step.rows == 1 ? absl::StrFormat("decode, %d sequences, context %d", step.sequences, step.context)
                                           : absl::StrFormat("prefill, %d tokens", step.rows);
  if (!f.json) {
    absl::PrintF("\n%s: %s\n%-26s %5s %10s %8s %8s %9s %6s\n", model.name, title, "operation", "calls", "median us", "+-", "GB/s",
                 stand.gpu ? "TFLOP/s" : "GFLOP/s", "roof");
  }
  Json rows = Json::array();
  Sums sums;
  for (const Case& c : StepCases(arena, *stand.weights, model, step)) {
    if (c.name.find(f.filter) == std::string::npos) continue;
    PHX_ASSIGN_OR_RETURN(const Timing t, Time(f, stand, c, f.budget_ms * 1e-3));
    const double share = RoofSeconds(stand, c.bytes, c.flops) / t.median;
    sums.seconds += c.calls * t.median;
    sums.roof += c.calls * t.median * share;
    if (c.product) sums.products += c.calls * t.median, sums.product_flops += c.calls * c.flops;
    rows.push_back({{"operation", c.name}, {"calls", c.calls}, {"median_us", t.median * 1e6}, {"p10_us", t.low * 1e6},
                    {"p90_us", t.high * 1e6}, {"repeats", t.repeats}, {"bytes", c.bytes}, {"flops", c.flops}, {"roof_share", share}});
    if (f.json) continue;
    absl::PrintF("%-26s %5d %10.*f %6.0f %% %8.1f %9.1f %4.0f %%\n", c.name, c.calls, stand.gpu ? 2 : 1, t.median * 1e6,
                 50 * (t.high - t.low) / t.median, c.bytes / t.median / 1e9, c.flops / t.median / (stand.gpu ? 1e12 : 1e9), 100 * share);
  }
  if (f.filter.empty() && !f.json) PrintSums(stand, model, step, sums);
  return Json{{"step", title}, {"sequences", step.sequences}, {"rows", step.rows}, {"context", step.context}, {"sum_s", sums.seconds},
              {"roof_s", sums.roof}, {"products_s", sums.products}, {"products_flops", sums.product_flops}, {"operations", rows}};
}

Json HeadJson(const Flags& f, const Stand& s, const ModelShape& model) {
  Json head = {{"device", s.info.name}, {"back_end", s.table->name}, {"model", f.model}, {"weight_bytes", model.weight_bytes()},
               {"token_flops", model.token_flops()}, {"gemm_flops_per_s", s.gemm_flops}};
  const Json more = s.gpu ? Json{{"graph", f.graph}, {"roof_from", s.roof_from}, {"roof_copy_bytes_per_s", s.roof.read_bytes},
                                 {"roof_flops_per_s", s.roof.fma_flops}, {"copy_bytes_per_s", s.copy_bytes}}
                          : Json{{"isa", kernels::cpu::IsaName(static_cast<kernels::CpuIsa>(s.info.isa))}, {"threads", s.info.num_threads},
                                 {"read_bytes_per_s", s.roof.read_bytes}, {"read_bytes_per_s_median", s.roof.read_bytes_median},
                                 {"fma_flops_per_s", s.roof.fma_flops}, {"fma_flops_per_s_median", s.roof.fma_flops_median}};
  head.update(more);
  return head;
}

// The words of a list flag as whole numbers in [0, max]; zeros are dropped.
absl::StatusOr<std::vector<int>> ReadNumbers(const char* flag, const std::vector<std::string>& words, int max) {
  std::vector<int> numbers;
  for (const std::string& word : words) {
    int number = 0;
    if (!absl::SimpleAtoi(word, &number) || number < 0 || number > max) {
      return absl::InvalidArgumentError(absl::StrCat("--", flag, ": not a number from 0 to ", max, ": ", word));
    }
    if (number > 0) numbers.push_back(number);
  }
  return numbers;
}

absl::Status Run(int argc, char** argv) {
  Flags f;
  services::OptionSet set("phalanx-bench-kernels", "[flags]", "Times the operations of a model's step and shows their share of the roof.");
  Bind(set, f);
  PHX_RETURN_IF_ERROR(set.Parse(argc, argv));
  if (set.help_requested()) {
    absl::PrintF("%s", set.Help());
    return absl::OkStatus();
  }
  const ModelShape& model = *FindShape(f.model);
  std::vector<StepShape> steps;
  PHX_ASSIGN_OR_RETURN(const std::vector<int> decode, ReadNumbers("decode", f.decode, 1024));
  PHX_ASSIGN_OR_RETURN(const std::vector<int> prefill, ReadNumbers("prefill", f.prefill, 1 << 16));
  for (const int sequences : decode) steps.push_back({sequences, 1, f.context});
  for (const int tokens : prefill) {
    if (tokens > 1) steps.push_back({1, tokens, tokens});
  }
  Stand stand;
  PHX_RETURN_IF_ERROR(Open(f, &stand));
  PHX_RETURN_IF_ERROR(stand.gpu ? ProbeGpu(f, &stand) : ProbeCpu(f, &stand));
  if (!f.json) PrintHead(f, stand);
  Json all = HeadJson(f, stand, model);
  for (const StepShape& step : steps) {
    PHX_ASSIGN_OR_RETURN(Json one, RunStep(f, stand, model, step));
    all["steps"].push_back(std::move(one));
  }
  if (f.json) absl::PrintF("%s\n", services::WriteJson(all));
  return absl::OkStatus();
}

}  // namespace
}  // namespace phalanx::bench

int main(int argc, char** argv) {
  const absl::Status status = phalanx::bench::Run(argc, argv);
  if (status.ok()) return 0;
  absl::FPrintF(stderr, "phalanx-bench-kernels: %s\n", status.message());
  return 1;
}
