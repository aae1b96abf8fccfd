// cli/options.h: the words after `phalanx serve` -> what the launcher needs, what is passed on, and what is said at start.
// Refuses to know: processes, files; it only reads words, the environment and --config. Thread: main.
// Neighbours: flags.h is the table it works by, commands.h uses the result.
#pragma once

#include <string>
#include <vector>

#include "cli/flags.h"
#include "services/status.h"

namespace phalanx::cli {

// A flag that was set, and whose owner is another process.
struct PassedFlag {
  const Flag* flag = nullptr;
  std::vector<std::string> values;  // one, or those of a list
};

struct ServeOptions {
  ServeFlags own;
  std::vector<PassedFlag> passed;
  bool follower_host = false;      // --node-rank or LWS_WORKER_INDEX above 0: ranks only, whose router and gateway are on host 0
  std::vector<std::string> notes;  // sentences for the log, about flags that are accepted without effect
  std::string help;                // the text that was asked for; everything else is then empty
};

// Errors: kInvalidArgument for what is wrong, kUnimplemented for what is refused; one sentence that names the flag.
absl::StatusOr<ServeOptions> ParseServe(const std::vector<std::string>& words);

}  // namespace phalanx::cli
