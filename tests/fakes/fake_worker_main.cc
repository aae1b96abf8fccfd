// phalanx-fake-worker: a real worker (protocol, scheduler, engine) over a model without weights. For tests of what stands before it,
// and for benches of the front with a canned speed.
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "services/log.h"
#include "services/options.h"
#include "services/ready.h"
#include "tests/fakes/executor.h"
#include "worker/serve.h"

namespace phalanx::fakes {
namespace {

struct Flags {
  FakeExecutorOptions executor;
  worker::ServeOptions serve;
  std::vector<std::string> eos_ids = {"2"};
};

void Bind(services::OptionSet& set, Flags& f) {
  auto& info = f.executor.info;
  info = {4096, 16, 256, 8192, 16384, 592};
  f.serve.model_name = "fake";
  set.Group("Server");
  set.Add("listen", &f.serve.listen, "where to listen: unix:PATH or host:port");
  set.Add("served-model-name", &f.serve.model_name, "name in GetInfo and in the metrics");
  set.Add("shutdown-timeout", &f.serve.shutdown_timeout_s, "running sequences may finish for so long after SIGTERM", {.unit = "s"});
  set.Add("max-num-queued-reqs", &f.serve.max_queued, "waiting sequences; more are refused", {.min = 1});
  set.Add("check-invariants", &f.serve.check_invariants, "check the ledger's laws after every step");
  set.Group("Model");
  set.Add("vocab-size", &info.vocab_size, "ids are drawn below this", {.min = 1});
  set.Add("first-id", &f.executor.first_id, "and not below this", {.min = 0});
  set.Add("eos-ids", &f.eos_ids, "the model's end ids");
  set.Add("max-model-len", &info.max_model_len, "context", {.unit = "tokens", .min = 2});
  set.Add("max-num-seqs", &info.max_rows, "sequences at once", {.min = 1});
  set.Add("max-num-batched-tokens", &info.max_step_tokens, "token budget of a step", {.min = 1});
  set.Add("block-size", &info.block_size, "tokens in a KV block", {.min = 1});
  set.Add("num-blocks", &info.num_blocks, "KV blocks", {.min = 1});
  set.Add("enable-prefix-caching", &f.serve.prefix_caching, "reuse KV blocks of equal prefixes");
  set.Group("Behaviour");
  set.Add("step-delay-us", &f.executor.step_delay_us, "every step takes at least this", {.unit = "us", .min = 0});
  set.Add("token-delay-us", &f.executor.token_delay_us, "plus this for each token computed", {.unit = "us", .min = 0});
  set.Add("steps-ahead", &info.steps_ahead, "1: results come one step behind, as from a GPU", {.min = 0, .max = 1});
  set.Add("fail-at-step", &f.executor.fail_at_step, "the device fails at this step; -1 = never");
  set.Add("poison-id", &f.executor.poison_id, "a prompt that begins with this id gets NaN rows; -1 = none");
}

absl::Status Run(int argc, char** argv) {
  Flags flags;
  services::OptionSet set("phalanx-fake-worker", "[flags]", "A worker whose model is a hash of all tokens before.");
  Bind(set, flags);
  PHX_RETURN_IF_ERROR(set.Parse(argc, argv));
  if (set.help_requested()) {
    std::fputs(set.Help().c_str(), stdout);
    return absl::OkStatus();
  }
  if (flags.executor.first_id >= flags.executor.info.vocab_size) return absl::InvalidArgumentError("--first-id must be below --vocab-size");
  for (const std::string& text : flags.eos_ids) {
    int32_t id = 0;
    if (!absl::SimpleAtoi(text, &id)) return absl::InvalidArgumentError("--eos-ids: not a number: " + text);
    flags.serve.eos_ids.push_back(id);
  }
  PHX_RETURN_IF_ERROR(services::InitLog({.process = "worker"}));
  flags.serve.architecture = "HashLM";
  flags.serve.dtype = "none";
  flags.serve.device = "fake";
  flags.serve.version = "0.1.0";
  services::PrintProgress(1.0, "ready");
  return worker::Serve(flags.serve, std::make_unique<FakeExecutor>(flags.executor));
}

}  // namespace
}  // namespace phalanx::fakes

int main(int argc, char** argv) {
  const absl::Status status = phalanx::fakes::Run(argc, argv);
  if (status.ok()) return 0;
  phalanx::services::LogError("{}", std::string(status.message()));
  phalanx::services::PrintFailure(status);
  return 1;
}
