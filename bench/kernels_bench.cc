// phalanx-bench-kernels: times each operation of a model's step on the CPU back end and holds it against this machine's roof: the time
// that its bytes take at the measured read rate, or its multiply-adds at the measured peak, whichever is longer.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/kernels_cases.h"
#include "bench/kernels_roof.h"
#include "kernels/cpu/isa.h"
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
  int threads = 0;
  int context = 512;
  int prefill = 512;
  int budget_ms = 200;
  std::string clock = "wall";
  bool json = false;

  Clock which_clock() const { return clock == "thread" ? Clock::kThread : Clock::kWall; }
};

void Bind(services::OptionSet& set, Flags& f) {
  set.Add("model", &f.model, "whose shapes", {.choices = {"smollm2", "1.5b"}});
  set.Add("isa-cap", &f.isa_cap, "highest instruction set level",
          {.choices = {"auto", "portable", "avx2", "avx512", "avx512_bf16", "amx_bf16"}});
  set.Add("threads", &f.threads, "threads; 0 = all cores this process may run on", {.min = 0, .max = 1024});
  set.Add("decode", &f.decode, "numbers of sequences that decode together");
  set.Add("context", &f.context, "tokens in the cache of each of them", {.min = 1, .max = 1 << 20});
  set.Add("prefill", &f.prefill, "tokens of one prompt; 0 = no prefill", {.min = 0, .max = 1 << 16});
  set.Add("filter", &f.filter, "only operations whose name has this in it");
  set.Add("budget-ms", &f.budget_ms, "time for each row", {.unit = "ms", .min = 1});
  set.Add("clock", &f.clock, "thread: the CPU time of one thread (use --threads 1), for a machine that is not quiet",
          {.choices = {"wall", "thread"}});
  set.Add("json", &f.json, "one JSON object instead of tables");
}

// The machine, the device under test, and what it is held against.
struct Stand {
  const kernels::Table* table = kernels::CpuTable();
  Device* device = nullptr;
  kernels::DeviceInfo info{};
  Roof roof;
  double gemm_flops = 0;  // what linear reaches on a large product

  ~Stand() {
    if (device != nullptr) table->destroy(device);
  }
};

absl::Status Open(const Flags& f, Stand* stand) {
  kernels::CpuIsa isa = kernels::kIsaAuto;
  if (!kernels::cpu::ParseIsa(f.isa_cap, &isa)) return absl::InvalidArgumentError(absl::StrCat("--isa-cap: no such level: ", f.isa_cap));
  const kernels::DeviceOptions options{0, f.threads, isa};
  char error[256] = "";
  if (stand->table->create(&options, &stand->device, error, sizeof(error)) != kernels::kOk) return absl::FailedPreconditionError(error);
  stand->table->info(stand->device, &stand->info);
  stand->roof = ProbeRoof(f.which_clock(), *FindLevel(stand->info.isa), stand->info.num_threads);
  return absl::OkStatus();
}

absl::StatusOr<Timing> Time(Clock clock, const Stand& stand, const Case& c, double budget_s) {
  kernels::Code failed = kernels::kOk;
  const Timing t = Measure(clock, budget_s, [&](int repeat) {
    if (const kernels::Code code = c.run(repeat); code != kernels::kOk) failed = code;
  });
  if (failed != kernels::kOk) return absl::InternalError(absl::StrCat(c.name, ": ", stand.table->last_error(stand.device)));
  return t;
}

double RoofSeconds(const Stand& stand, double bytes, double flops) {
  return std::max(bytes / stand.roof.read_bytes, flops / stand.roof.fma_flops);
}

void PrintHead(const Stand& s) {
  absl::PrintF("%s\n", s.info.name);
  absl::PrintF("stream read   %6.1f GB/s    (median pass %.1f)\n", s.roof.read_bytes / 1e9, s.roof.read_bytes_median / 1e9);
  absl::PrintF("f32 fma peak  %6.1f GFLOP/s (median pass %.1f)\n", s.roof.fma_flops / 1e9, s.roof.fma_flops_median / 1e9);
  absl::PrintF("bf16 product  %6.1f GFLOP/s: %.0f %% of the fma peak\n", s.gemm_flops / 1e9, 100 * s.gemm_flops / s.roof.fma_flops);
}

// Times all cases of one step and prints their rows. The step's own figures follow from the sums.
absl::StatusOr<Json> RunStep(const Flags& f, const Stand& stand, const ModelShape& model, const StepShape& step) {
  Arena arena(*stand.table, stand.device);
  const std::string title = step.rows == 1 ? absl::StrFormat("decode, %d sequences, context %d", step.sequences, step.context)
                                           : absl::StrFormat("prefill, %d tokens", step.rows);
  if (!f.json) {
    absl::PrintF("\n%s: %s\n%-22s %5s %10s %8s %8s %9s %6s\n", model.name, title, "operation", "calls", "median us", "+-", "GB/s", "GFLOP/s", "roof");
  }
  Json rows = Json::array();
  double total = 0, products = 0, product_flops = 0;
  for (const Case& c : StepCases(arena, model, step)) {
    if (c.name.find(f.filter) == std::string::npos) continue;
    PHX_ASSIGN_OR_RETURN(const Timing t, Time(f.which_clock(), stand, c, f.budget_ms * 1e-3));
    const double share = RoofSeconds(stand, c.bytes, c.flops) / t.median;
    total += c.calls * t.median;
    if (c.product) products += c.calls * t.median, product_flops += c.calls * c.flops;
    rows.push_back({{"operation", c.name}, {"calls", c.calls}, {"median_us", t.median * 1e6},
                    {"p10_us", t.low * 1e6}, {"p90_us", t.high * 1e6}, {"repeats", t.repeats}, {"bytes", c.bytes}, {"flops", c.flops}, {"roof_share", share}});
    if (f.json) continue;
    absl::PrintF("%-22s %5d %10.1f %6.0f %% %8.1f %9.1f %4.0f %%\n", c.name, c.calls, t.median * 1e6, 50 * (t.high - t.low) / t.median,
                 c.bytes / t.median / 1e9, c.flops / t.median / 1e9, 100 * share);
  }
  Json out = {{"step", title}, {"sequences", step.sequences}, {"rows", step.rows}, {"context", step.context}, {"sum_s", total},
              {"products_s", products}, {"products_flops", product_flops}, {"operations", rows}};
  if (!f.filter.empty() || f.json) return out;
  const double floor = model.weight_bytes() / stand.roof.read_bytes;
  absl::PrintF("sum of a step: %.2f ms, products %.2f ms", total * 1e3, products * 1e3);
  if (step.rows == 1) {
    absl::PrintF(" = %.0f %% of it; weights %.1f MB at the read rate: %.2f ms, share %.0f %%\n", 100 * products / total,
                 model.weight_bytes() / 1e6, floor * 1e3, 100 * floor / total);
  } else {
    absl::PrintF("; %.1f GFLOP/s: %.0f %% of the bf16 product peak, %.0f %% of the fma peak\n", product_flops / total / 1e9,
                 100 * product_flops / total / stand.gemm_flops, 100 * product_flops / total / stand.roof.fma_flops);
  }
  return out;
}

Json HeadJson(const Flags& f, const Stand& s, const ModelShape& model) {
  return {{"device", s.info.name},
          {"isa", kernels::cpu::IsaName(static_cast<kernels::CpuIsa>(s.info.isa))}, {"threads", s.info.num_threads},
          {"model", f.model}, {"weight_bytes", model.weight_bytes()}, {"token_flops", model.token_flops()},
          {"read_bytes_per_s", s.roof.read_bytes}, {"read_bytes_per_s_median", s.roof.read_bytes_median},
          {"fma_flops_per_s", s.roof.fma_flops}, {"fma_flops_per_s_median", s.roof.fma_flops_median}, {"gemm_flops_per_s", s.gemm_flops}};
}

absl::Status Run(int argc, char** argv) {
  Flags f;
  services::OptionSet set("phalanx-bench-kernels", "[flags]",
                          "Times the CPU operations of a model's step and shows their share of the roof.");
  Bind(set, f);
  PHX_RETURN_IF_ERROR(set.Parse(argc, argv));
  if (set.help_requested()) {
    absl::PrintF("%s", set.Help());
    return absl::OkStatus();
  }
  const ModelShape& model = *FindShape(f.model);
  std::vector<StepShape> steps;
  for (const std::string& text : f.decode) {
    int sequences = 0;
    if (!absl::SimpleAtoi(text, &sequences) || sequences < 0 || sequences > 1024) {
      return absl::InvalidArgumentError(absl::StrCat("--decode: not a number of sequences: ", text));
    }
    if (sequences > 0) steps.push_back({sequences, 1, f.context});
  }
  if (f.prefill > 1) steps.push_back({1, f.prefill, f.prefill});
  Stand stand;
  PHX_RETURN_IF_ERROR(Open(f, &stand));
  {
    Arena arena(*stand.table, stand.device);
    const Case peak = PeakCase(arena, 768, 2048, 2048);
    PHX_ASSIGN_OR_RETURN(const Timing t, Time(f.which_clock(), stand, peak, std::max(0.5, f.budget_ms * 1e-3)));
    stand.gemm_flops = peak.flops / t.low;
  }
  if (!f.json) PrintHead(stand);
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
