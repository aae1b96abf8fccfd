// bench/kernels_plugin.h: a GPU plug-in under the bench: how its operations are timed, and what its card can do at most.
// Refuses to know: operations, models, options. Thread: main.
// Neighbours: kernels_bench.cc. Everything goes through the table: no CUDA header here.
#pragma once

#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "bench/kernels_roof.h"
#include "kernels/kernels.h"

namespace phalanx::bench {

// How repeats reach the device: one by one, as an eager step does, or recorded once and replayed, as decode steps are. The second leaves
// the host's launch cost out, which is longer than a small kernel.
enum class Launch { kPlain, kGraph };

// Seconds of one call(0), call(1), ..., measured between two events around some milliseconds of them, until `budget_s` is used up (at
// least five times). The first calls are not counted: a back end may load code or choose an algorithm in them. Errors: kInternal with the
// back end's words.
absl::StatusOr<Timing> MeasureOnDevice(const kernels::Table& table, kernels::Device* device, Launch launch, double budget_s,
                                       const std::function<kernels::Code(int repeat)>& call);

// What copies (bytes read and written) and bf16 products on random data reach on a card of this name, as measured once with large
// operands; zeros for a card that is not in the list.
struct CardRoof {
  double copy_bytes = 0;  // a second
  double bf16_flops = 0;  // a second
};
CardRoof FindCardRoof(const std::string& name);

}  // namespace phalanx::bench
