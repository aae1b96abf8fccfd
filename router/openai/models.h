// router/openai/models.h: GET /v1/models, /v1/models/{id} and /version.
// Refuses to know: where models come from. Thread: pure functions. Neighbours: router/rpc.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "services/status.h"

namespace phalanx::router::openai {

struct ModelCard {
  std::string id;                            // a served name
  std::string root;                          // the model argument of the server
  int64_t created = 0;                       // seconds since 1970
  int32_t max_model_len = 0;                 // 0 = not known yet, written as null
};

std::string WriteModelList(const std::vector<ModelCard>& models);
// Errors: kNotFound with code model_not_found.
absl::StatusOr<std::string> WriteModel(const std::vector<ModelCard>& models, std::string_view id);
std::string WriteVersion(std::string_view version);

}  // namespace phalanx::router::openai
