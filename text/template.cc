#include <sys/stat.h>

#include <ctime>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "text/gguf_tokenizer.h"
#include "text/impl.h"

namespace phalanx::text {
namespace {

constexpr size_t kMaxTemplateBytes = 4u << 20;

struct Source {
  std::string text;
  bool is_config = false;  // a JSON object that holds chat_template
  std::string where;       // for errors
};

bool Exists(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0;
}

// vLLM's rule: a path if such a file is there, else the template itself if it looks like one.
absl::StatusOr<Source> Override(const std::string& given) {
  if (given.size() < 4096 && Exists(given)) {
    PHX_ASSIGN_OR_RETURN(std::string text, ReadFile(given, kMaxTemplateBytes));
    return Source{std::move(text), false, given};
  }
  if (given.find_first_of("{}\n") == std::string::npos) {
    return absl::NotFoundError(absl::StrCat("chat template ", given, ": no such file, and not a template either"));
  }
  return Source{given, false, "chat template"};
}

// The places of a model, in order. A place that is there but holds no template is passed over.
absl::StatusOr<std::vector<Source>> Places(const std::string& model_path) {
  if (absl::EndsWithIgnoreCase(model_path, ".gguf")) {
    PHX_ASSIGN_OR_RETURN(std::string text, ChatTemplateOfGguf(model_path));
    if (text.empty()) return std::vector<Source>{};
    return std::vector<Source>{{std::move(text), false, model_path + ": tokenizer.chat_template"}};
  }
  const std::string folder = absl::EndsWith(model_path, ".json") ? ParentOf(model_path) : model_path;
  std::vector<Source> out;
  for (const char* name : {"chat_template.jinja", "chat_template.json", "tokenizer_config.json"}) {
    std::string path = absl::StrCat(folder, "/", name);
    if (!Exists(path)) continue;
    PHX_ASSIGN_OR_RETURN(std::string text, ReadFile(path, kMaxTokenizerBytes));
    const bool is_config = absl::EndsWith(path, ".json");
    out.push_back({std::move(text), is_config, std::move(path)});
  }
  return out;
}

}  // namespace

struct ChatTemplate::Impl {
  ~Impl() { phx_template_free(handle); }
  PhxTemplate* handle = nullptr;
  std::function<int64_t()> unix_time;
};

ChatTemplate::ChatTemplate() : impl_(std::make_unique<Impl>()) {}
ChatTemplate::~ChatTemplate() = default;

absl::StatusOr<std::shared_ptr<const ChatTemplate>> ChatTemplate::Load(const std::string& model_path, const Tokenizer& tokenizer,
                                                                       const Options& options) {
  std::vector<Source> places;
  if (!options.override_path.empty()) {
    PHX_ASSIGN_OR_RETURN(Source source, Override(options.override_path));
    places.push_back(std::move(source));
  } else {
    PHX_ASSIGN_OR_RETURN(places, Places(model_path));
  }
  std::shared_ptr<ChatTemplate> out(new ChatTemplate());
  out->impl_->unix_time = options.unix_time;
  for (const Source& place : places) {
    PhxBytes error = {};
    const int32_t code = phx_template_load(tokenizer.impl_->handle, Slice(place.text), place.is_config ? 1 : 0,
                                           &out->impl_->handle, &error);
    const absl::Status status = StatusOf(code, error, place.where);
    if (absl::IsNotFound(status)) continue;
    PHX_RETURN_IF_ERROR(status);
    return std::shared_ptr<const ChatTemplate>(std::move(out));
  }
  return absl::NotFoundError(absl::StrCat(model_path, ": no chat template"));
}

absl::StatusOr<std::string> ChatTemplate::Render(const TemplateInput& input) const {
  PhxRenderInput raw = {};
  raw.messages = Slice(input.messages_json);
  raw.tools = Slice(input.tools_json);
  raw.kwargs = Slice(input.kwargs_json);
  raw.add_generation_prompt = input.add_generation_prompt ? 1 : 0;
  raw.continue_final_message = input.continue_final_message ? 1 : 0;
  raw.unix_time = impl_->unix_time ? impl_->unix_time() : static_cast<int64_t>(time(nullptr));
  PhxBytes text = {};
  PhxBytes error = {};
  PHX_RETURN_IF_ERROR(StatusOf(phx_template_render(impl_->handle, &raw, &text, &error), error, ""));
  return TakeBytes(text);
}

}  // namespace phalanx::text
