// router/rpc/model_cards.h: the models a client may list: every served name, with the context of the workers seen so far.
// Refuses to know: workers. Thread: pure functions. Neighbours: both doors' ListModels and GetModel.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "router/core/validate.h"
#include "router/openai/models.h"

namespace phalanx::router::rpc {

// What the process knows of its model from its start.
struct ModelSource {
  std::string root;                            // the model argument of the server
  int64_t created = 0;                         // seconds since 1970: when this server started
};

inline std::vector<openai::ModelCard> ModelCards(const core::Limits& limits, const ModelSource& source) {
  std::vector<openai::ModelCard> cards;
  for (const std::string& name : limits.served_names) cards.push_back({name, source.root, source.created, limits.max_model_len});
  return cards;
}

}  // namespace phalanx::router::rpc
