#include "router/fleet/fleet.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace phalanx::router::fleet {

absl::Status Fleet::Up(int worker, uint64_t epoch, const core::WorkerInfo& info) {
  if (served_.vocab_size == 0) {
    served_ = info;
  } else if (info.vocab_size != served_.vocab_size) {
    return absl::FailedPreconditionError(absl::StrCat("a worker serves another model: its vocabulary has ", info.vocab_size,
                                                      " ids, the fleet's has ", served_.vocab_size));
  }
  served_.max_model_len = std::min(served_.max_model_len, info.max_model_len);
  served_.max_logprobs = std::min(served_.max_logprobs, info.max_logprobs);
  WorkerView& view = snapshot_.workers[worker];
  view = {.ready = true, .epoch = epoch, .info = info};
  return absl::OkStatus();
}

void Fleet::Report(int worker, const core::WorkerLoad& load) {
  WorkerView& view = snapshot_.workers[worker];
  view.load = load;
  view.sent_tokens = 0;
}

void Fleet::Down(int worker) { snapshot_.workers[worker] = {}; }

void Fleet::Sent(int worker, int64_t prompt_tokens) {
  snapshot_.workers[worker].in_flight += 1;
  snapshot_.workers[worker].sent_tokens += prompt_tokens;
}

void Fleet::Gone(int worker) {
  WorkerView& view = snapshot_.workers[worker];
  view.in_flight = std::max(0, view.in_flight - 1);
}

int Fleet::ready_count() const {
  return static_cast<int>(std::count_if(snapshot_.workers.begin(), snapshot_.workers.end(),
                                        [](const WorkerView& view) { return view.ready && !view.load.draining; }));
}

}  // namespace phalanx::router::fleet
