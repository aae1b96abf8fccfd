// The two texts around options: the config file they are read from, and the help they are shown in.
#include <fstream>
#include <sstream>

#include <yaml-cpp/yaml.h>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "services/options.h"

namespace phalanx::services {
namespace {

constexpr size_t kConfigBytesMax = 1 << 20;
constexpr size_t kHelpWidth = 100;

// Words of `text`, wrapped to `width`, each line after the first indented by `indent`.
std::string Wrap(const std::string& text, size_t indent, size_t width) {
  std::string out;
  size_t column = indent;
  for (const auto word : absl::StrSplit(text, ' ', absl::SkipEmpty())) {
    if (column > indent && column + 1 + word.size() > width) {
      absl::StrAppend(&out, "\n", std::string(indent, ' '));
      column = indent;
    } else if (column > indent) {
      out += ' ';
      ++column;
    }
    absl::StrAppend(&out, word);
    column += word.size();
  }
  return out;
}

absl::StatusOr<std::string> ReadSmallFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::InvalidArgumentError(absl::StrCat("--config: cannot read '", path, "'"));
  std::string text(kConfigBytesMax + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  if (text.size() > kConfigBytesMax) return absl::InvalidArgumentError(absl::StrCat("--config: '", path, "' is larger than 1 MiB"));
  return text;
}

}  // namespace

// JSON is read as YAML: every JSON object is one.
absl::Status OptionSet::ReadConfigFile(const std::string& path, std::vector<Assignment>& out) {
  PHX_ASSIGN_OR_RETURN(const std::string text, ReadSmallFile(path));
  const std::string where = absl::StrCat(" in ", path);
  try {
    const YAML::Node root = YAML::Load(text);
    if (root.IsNull()) return absl::OkStatus();
    if (!root.IsMap()) return absl::InvalidArgumentError(absl::StrCat("--config: '", path, "' is not a list of `name: value`"));
    for (const auto& item : root) {
      const std::string key = item.first.as<std::string>();
      Option* option = Find(absl::StrReplaceAll(key, {{"_", "-"}}));
      if (option == nullptr) return UnknownFlag(key, where);
      const size_t index = static_cast<size_t>(option - options_.data());
      const std::string as_typed = absl::StrCat(key, where);
      if (item.second.IsNull()) continue;  // `name:` alone leaves the default
      if (item.second.IsScalar()) {
        out.push_back({index, item.second.Scalar(), as_typed});
      } else if (item.second.IsSequence() && option->kind == Option::Kind::kList) {
        for (const auto& element : item.second) out.push_back({index, element.as<std::string>(), as_typed});
      } else {
        return absl::InvalidArgumentError(absl::StrCat(as_typed, ": not a plain value"));
      }
    }
  } catch (const std::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("--config: '", path, "': ", error.what()));
  }
  return absl::OkStatus();
}

std::string OptionSet::Help() const {
  std::string out = absl::StrCat("Usage: ", program_, " ", usage_, "\n\n", Wrap(summary_, 0, kHelpWidth), "\n");
  std::string group;
  for (const Option& option : options_) {
    if (option.spec.hidden) continue;
    if (option.group != group) {
      group = option.group;
      absl::StrAppend(&out, "\n", group, ":\n");
    }
    std::string head = absl::StrCat("  --", option.name);
    if (option.kind == Option::Kind::kFlag) absl::StrAppend(&head, ", --no-", option.name);
    if (!option.spec.alias.empty()) absl::StrAppend(&head, ", ", option.spec.alias);
    if (!option.spec.choices.empty()) {
      absl::StrAppend(&head, " {", absl::StrJoin(option.spec.choices, ","), "}");
    } else if (option.kind != Option::Kind::kFlag) {
      absl::StrAppend(&head, " ", option.spec.unit.empty() ? "VALUE" : absl::AsciiStrToUpper(option.spec.unit), option.kind == Option::Kind::kList ? "..." : "");
    }
    std::vector<std::string> notes;
    if (!option.spec.unit.empty()) notes.push_back(absl::StrCat("in ", option.spec.unit));
    if (option.spec.secret) {
      notes.push_back("default: none");
    } else {
      notes.push_back(absl::StrCat("default: ", option.default_text.empty() ? "none" : option.default_text));
    }
    if (!option.spec.env.empty()) notes.push_back(absl::StrCat("environment: ", option.spec.env));
    absl::StrAppend(&out, head, "\n        ", Wrap(absl::StrCat(option.help, " (", absl::StrJoin(notes, "; "), ")"), 8, kHelpWidth), "\n");
  }
  if (config_allowed_) absl::StrAppend(&out, "\nOther:\n  --config FILE\n        the same flags as `name: value` lines of YAML, or as a JSON object; flags win over it\n");
  absl::StrAppend(&out, config_allowed_ ? "" : "\nOther:\n", "  -h, --help\n        this text\n");
  return out;
}

}  // namespace phalanx::services
