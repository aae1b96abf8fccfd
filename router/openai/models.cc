#include "router/openai/models.h"

#include "absl/strings/str_cat.h"
#include "router/core/validate.h"
#include "router/openai/json_text.h"

namespace phalanx::router::openai {
namespace {

void AppendCard(const ModelCard& card, std::string* out) {
  out->append("{\"id\":");
  AppendJsonString(card.id, out);
  out->append(",\"object\":\"model\",\"created\":");
  AppendInt(card.created, out);
  out->append(",\"owned_by\":\"phalanx\",\"root\":");
  AppendJsonString(card.root, out);
  out->append(",\"parent\":null,\"max_model_len\":");
  card.max_model_len > 0 ? AppendInt(card.max_model_len, out) : static_cast<void>(out->append("null"));
  // vLLM's fixed list of one; nothing but sampling, log-probabilities and reading is granted there either.
  out->append(",\"permission\":[{\"id\":\"modelperm-0\",\"object\":\"model_permission\",\"created\":");
  AppendInt(card.created, out);
  out->append(",\"allow_create_engine\":false,\"allow_sampling\":true,\"allow_logprobs\":true,\"allow_search_indices\":false,"
              "\"allow_view\":true,\"allow_fine_tuning\":false,\"organization\":\"*\",\"group\":null,\"is_blocking\":false}]}");
}

}  // namespace

std::string WriteModelList(const std::vector<ModelCard>& models) {
  std::string out = "{\"object\":\"list\",\"data\":[";
  for (size_t i = 0; i < models.size(); ++i) {
    if (i > 0) out.push_back(',');
    AppendCard(models[i], &out);
  }
  return out.append("]}");
}

absl::StatusOr<std::string> WriteModel(const std::vector<ModelCard>& models, std::string_view id) {
  core::Limits names;
  for (const ModelCard& card : models) {
    if (card.id == id) {
      std::string out;
      AppendCard(card, &out);
      return out;
    }
    names.served_names.push_back(card.id);
  }
  // The same words as for an unknown `model` in a request. An empty id never gets here as "the default".
  if (id.empty()) return core::WithErrorCode(absl::NotFoundError("The model `` does not exist."), "model_not_found");
  return core::ServedName(std::string(id), names).status();
}

std::string WriteVersion(std::string_view version) {
  std::string out = "{\"version\":";
  AppendJsonString(version, &out);
  return out.append("}");
}

}  // namespace phalanx::router::openai
