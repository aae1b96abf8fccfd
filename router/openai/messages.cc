#include "router/openai/messages.h"

#include <array>
#include <utility>

#include "absl/strings/str_cat.h"

namespace phalanx::router::openai {
namespace {

using services::Json;

template <size_t N>
bool Contains(const std::array<std::string_view, N>& list, std::string_view word) {
  for (std::string_view one : list) {
    if (one == word) return true;
  }
  return false;
}

constexpr std::array<std::string_view, 6> kRoles = {"system", "user", "assistant", "tool", "developer", "function"};
constexpr std::array<std::string_view, 7> kEfforts = {"none", "minimal", "low", "medium", "high", "xhigh", "max"};
constexpr std::array<std::string_view, 3> kTextParts = {"text", "input_text", "output_text"};

// The string `key` of `object`; nullptr if it is absent, null or no string.
const std::string* StringAt(const Json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? &it->get_ref<const std::string&>() : nullptr;
}

const std::string* TextOfPart(const Json& part) {
  if (part.is_string()) return &part.get_ref<const std::string&>();
  if (!part.is_object()) return nullptr;
  const std::string* type = StringAt(part, "type");
  if (type == nullptr) return StringAt(part, "text");
  if (*type == "refusal") return StringAt(part, "refusal");
  return Contains(kTextParts, *type) ? StringAt(part, "text") : nullptr;
}

// "messages[3]": only made for an error.
std::string At(size_t index) { return absl::StrCat("messages[", index, "]"); }

class MessageReader {
 public:
  MessageReader(FieldReader* fields, size_t index) : fields_(fields), index_(index) {}

  bool Read(const Json& message, Json* out) {
    if (!message.is_object()) return Fail("", "must be an object.");
    const std::string* role = StringAt(message, "role");
    if (role == nullptr) return Fail(".role", "must be a string.");
    if (!Contains(kRoles, *role)) {
      return Fail(".role", "must be one of system, developer, user, assistant, tool, function.");
    }
    *out = Json::object();
    (*out)["role"] = *role;
    std::string content;
    if (!Content(message, &content)) return false;
    (*out)["content"] = std::move(content);
    return CopyString(message, "name", "name", out) && CopyString(message, "tool_call_id", "tool_call_id", out) &&
           CopyString(message, "reasoning", "reasoning_content", out) &&
           CopyString(message, "reasoning_content", "reasoning_content", out) && ToolCalls(message, out);
  }

 private:
  bool Fail(std::string_view where, std::string_view what) {
    const std::string name = absl::StrCat(At(index_), absl::string_view(where.data(), where.size()));
    fields_->Fail(name.c_str(), what);
    return false;
  }

  bool Content(const Json& message, std::string* out) {
    const auto it = message.find("content");
    if (it == message.end() || it->is_null()) return true;
    if (it->is_string()) {
      *out = it->get_ref<const std::string&>();
      return true;
    }
    if (!it->is_array()) return Fail(".content", "must be a string, null or a list of parts.");
    bool first = true;
    for (const Json& part : *it) {
      const std::string* text = TextOfPart(part);
      if (text == nullptr) return Fail(".content", "holds a part that is not text; only parts of type \"text\" are served.");
      if (!first) out->push_back('\n');
      first = false;
      out->append(*text);
    }
    return true;
  }

  bool CopyString(const Json& message, const char* from, const char* to, Json* out) {
    const auto it = message.find(from);
    if (it == message.end() || it->is_null()) return true;
    if (!it->is_string()) return Fail(absl::StrCat(".", from), "must be a string.");
    (*out)[to] = it->get_ref<const std::string&>();
    return true;
  }

  bool ToolCalls(const Json& message, Json* out) {
    const auto it = message.find("tool_calls");
    if (it == message.end() || it->is_null()) return true;
    if (!it->is_array()) return Fail(".tool_calls", "must be a list.");
    for (const Json& call : *it) {
      const auto function = call.is_object() ? call.find("function") : call.end();
      if (!call.is_object() || function == call.end() || !function->is_object() || StringAt(*function, "name") == nullptr) {
        return Fail(".tool_calls", "must hold objects with a function that has a name.");
      }
    }
    if (!it->empty()) (*out)["tool_calls"] = *it;
    return true;
  }

  FieldReader* fields_;
  size_t index_;
};

}  // namespace

void ReadMessages(FieldReader* fields, std::string* messages_json, std::string* last_assistant) {
  const Json* messages = fields->Find("messages");
  if (messages == nullptr) return fields->Fail("messages", "is required.");
  if (!messages->is_array()) return fields->Fail("messages", "must be a list of message objects.");
  if (messages->empty()) return fields->Fail("messages", "must hold at least one message.");
  Json checked = Json::array();
  for (size_t i = 0; i < messages->size(); ++i) {
    Json message;
    if (!MessageReader(fields, i).Read((*messages)[i], &message)) return;
    checked.push_back(std::move(message));
  }
  if (last_assistant != nullptr && checked.back()["role"] == "assistant") {
    *last_assistant = checked.back()["content"].get_ref<const std::string&>();
  }
  *messages_json = services::WriteJson(checked);
}

void ReadTemplateFields(FieldReader* fields, std::string* kwargs_json) {
  Json kwargs = Json::object();
  std::string effort;
  fields->String("reasoning_effort", &effort);
  if (!effort.empty()) {
    if (!Contains(kEfforts, effort)) {
      return fields->Fail("reasoning_effort", "must be one of none, minimal, low, medium, high, xhigh, max.");
    }
    kwargs["enable_thinking"] = effort != "none";
    kwargs["reasoning_effort"] = effort;
  }
  if (const Json* given = fields->Object("chat_template_kwargs")) {
    for (const auto& [key, value] : given->items()) kwargs[key] = value;
  }
  if (!kwargs.empty()) *kwargs_json = services::WriteJson(kwargs);
  fields->Refuse("chat_template", "is not served in requests: the server's own template is used.");
  fields->Refuse("documents", "is not served by this server.");
}

}  // namespace phalanx::router::openai
