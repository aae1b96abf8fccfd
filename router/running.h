// router/running.h: one client request while it is in the router: its choices, what was received for each, what it has been told.
// Refuses to know: JSON, gRPC, which worker is best. Thread: the relay's, but for the atomics, which the door's Call writes too.
// Neighbours: dispatch.h moves it on, relay.h makes it, reply/ holds the text state of each choice.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "router/core/handler.h"
#include "router/prompt.h"
#include "router/reply/reply.h"
#include "services/clock.h"

namespace phalanx::router {

// One sequence. Its text state is in the router, so it outlives the worker it runs on.
struct Choice {
  explicit Choice(reply::Reply made) : reply(std::move(made)) {}

  reply::Reply reply;
  int32_t prompt = 0;                        // which of the request's prompts
  uint32_t draw = 0;                         // separates its draws from the other choices'
  uint64_t id = 0;                           // of its submission now at `worker`; 0 = at none
  int worker = -1;                           // where it is, or was last; -1 = nowhere yet
  std::vector<int32_t> ids;                  // output received: what another worker goes on from
  std::vector<core::TokenScore> prompt_scores;
  uint32_t credit = 0;                       // tokens the worker may still send
  bool started = false;                      // some worker has begun with it
  core::Finish finish = core::Finish::kNone;
  services::Time first_token{}, last_token{};
};

struct Running {
  core::ValidRequest request;                // messages and prompts are dropped once they are ids
  std::shared_ptr<core::ReplySink> sink;     // null after OnEnd
  uint64_t seed = 0;
  bool seed_is_own = false;                  // the client gave it
  services::Time arrived{};
  int64_t counted_choices = 0;               // as admission counted it; 0 = refused there

  std::vector<PreparedPrompt> prompts;
  std::vector<std::vector<int32_t>> bad_words;
  core::ValidSampling wire;                  // the sampling as workers get it, without text
  std::vector<Choice> choices;
  core::Usage usage;                         // as told to the sink; completion_tokens is what `consumed` catches up with
  size_t unfinished = 0;                     // choices
  int losses = 0;                            // times that a worker was lost under it

  // Within one batch of events.
  bool touched = false, lost = false;
  std::vector<core::ReplyPart> parts;
  absl::Status failure;

  // Written by the door.
  std::atomic<bool> cancelled{false};
  std::atomic<int64_t> consumed{0};          // tokens written to the client

  bool ended() const { return sink == nullptr; }
};

}  // namespace phalanx::router
