// worker/ranks_terms.h: what every rank of a group must have equal, as names and values for people: version, model, and the flags that
// shape a step. A rank with another value is refused with the name and both values.
// Refuses to know: how ranks meet. Thread: main. Neighbours: worker/tp/hello.h compares, ranks.h passes them on.
#pragma once

#include <string>

#include "services/status.h"
#include "worker/back_end.h"
#include "worker/exec/executor.h"
#include "worker/model/model.h"
#include "worker/tp/hello.h"

namespace phalanx::worker {

absl::StatusOr<tp::Terms> MakeTerms(const std::string& version, const model::ModelConfig& config, const exec::ExecutorOptions& executor,
                                    const BackEnd& back_end);

// Tells the weights of one model from those of another, in a few milliseconds: hashes size and sixteen pieces of 64 KiB of each weight file
// of a folder, or of a .gguf file. Not proof against malice: the secret is. Errors: kNotFound, kUnavailable naming the file.
absl::StatusOr<std::string> WeightsDigest(const std::string& path);

}  // namespace phalanx::worker
