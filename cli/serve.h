// cli/serve.h: `phalanx serve`: from its words to a running group of processes, and to their end.
// Refuses to know: how anything is served. Thread: main, which stays the only one.
// Neighbours: options.h, model_path.h, programs.h and commands.h prepare; services/supervisor runs; probe.h says when it answers.
#pragma once

#include <string>
#include <vector>

namespace phalanx::cli {

// Runs until it is told to stop. Returns the exit code: 0 after a clean stop, 2 for wrong words, 1 for everything else; the reason is
// then one sentence on standard error.
int Serve(const std::vector<std::string>& words);

}  // namespace phalanx::cli
