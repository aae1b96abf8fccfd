// cli/commands.h: options -> the command line of every child, as plain data.
// Refuses to know: processes, files, time. Thread: any; pure.
// Neighbours: serve.cc hands the result to services/supervisor; the flags it writes are those of worker, router and gateway.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli/options.h"
#include "services/supervisor/group.h"

namespace phalanx::cli {

// What this machine adds to the options.
struct ServePlaces {
  std::string worker;         // programs
  std::string router;
  std::string gateway;
  std::string socket_folder;  // for the unix sockets between the children
  std::string model_path;
  std::string tokenizer_path;  // "" = the model's
  int cores = 1;              // that this process may run on
};

struct ServePlan {
  std::vector<services::supervisor::ChildSpec> children;  // workers, then router, then gateway; the worker alone on a follower host
  std::optional<size_t> router;
  std::optional<size_t> gateway;
};

// Keys travel in the gateway's environment, never on a command line, and are kept from every other child.
ServePlan MakePlan(const ServeOptions& options, const ServePlaces& places);

// `args` with the port that --port=0 became, so that a restarted gateway comes back at the same address.
std::vector<std::string> WithPort(std::vector<std::string> args, const std::string& port);

// Threads of each worker when `total` are shared out: at least one each.
std::vector<int> ShareThreads(int total, int workers);

}  // namespace phalanx::cli
