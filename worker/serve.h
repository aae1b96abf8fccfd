// worker/serve.h: the life of a worker process around a given executor: engine, door, health, signals, end.
// Refuses to know: how the executor was made. Thread: main calls Serve and waits in it.
// Neighbours: worker/main.cc with the real executor, tests/fakes/fake_worker_main.cc with a hash.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "services/status.h"
#include "worker/core/executor.h"

namespace phalanx::worker {

struct ServeOptions {
  std::string listen = "127.0.0.1:0";       // unix:PATH or host:port
  std::string model_name;                   // served name
  std::string architecture;
  std::string dtype;
  std::string device;
  std::string version;
  std::vector<int32_t> eos_ids;
  int32_t max_logprobs = 20;
  bool prefix_caching = true;
  bool chunked_prefill = true;
  int32_t max_queued = 4096;                // waiting sequences; more are refused
  double gpu_memory_utilization = 0;        // shown in vllm:cache_config_info
  double shutdown_timeout_s = 30;           // running sequences may finish for so long after SIGTERM
  double stall_timeout_s = 120;             // no step for so long with work pending: health says "not serving"
  bool check_invariants = false;
};

// Serves until SIGTERM or SIGINT, then lets running sequences finish and returns OK. A second signal ends at once.
// Errors: the address cannot be bound; a device error, which ends the process because nothing can be served any more.
absl::Status Serve(const ServeOptions& options, std::unique_ptr<core::Executor> executor);

}  // namespace phalanx::worker
