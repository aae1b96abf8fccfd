#include "services/options.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "services/check.h"

namespace phalanx::services {
namespace {

std::string Canonical(std::string name) {
  std::replace(name.begin(), name.end(), '_', '-');
  return name;
}

// "-1" and "-.5" are values, "-x" and "--x" are flags.
bool LooksLikeFlag(const std::string& word) {
  return word.size() > 1 && word[0] == '-' && !absl::ascii_isdigit(word[1]) && word[1] != '.';
}

absl::StatusOr<bool> ParseBool(const std::string& text) {
  const std::string lower = absl::AsciiStrToLower(text);
  if (lower == "true" || lower == "1" || lower == "yes" || lower == "on") return true;
  if (lower == "false" || lower == "0" || lower == "no" || lower == "off") return false;
  return absl::InvalidArgumentError("is not true or false");
}

absl::StatusOr<double> ParseDouble(const std::string& text) {
  double value = 0;
  if (!absl::SimpleAtod(text, &value) || !std::isfinite(value)) return absl::InvalidArgumentError("is not a number");
  return value;
}

std::string Number(double value) { return absl::StrCat(value == std::floor(value) && std::abs(value) < 1e15 ? absl::StrCat(static_cast<int64_t>(value)) : absl::StrCat(value)); }

absl::Status CheckRange(double value, const OptionSpec& spec) {
  if (value >= spec.min && value <= spec.max) return absl::OkStatus();
  if (spec.max == std::numeric_limits<double>::max()) return absl::InvalidArgumentError(absl::StrCat("is less than ", Number(spec.min)));
  if (spec.min == std::numeric_limits<double>::lowest()) return absl::InvalidArgumentError(absl::StrCat("is more than ", Number(spec.max)));
  return absl::InvalidArgumentError(absl::StrCat("is not between ", Number(spec.min), " and ", Number(spec.max)));
}

template <typename T>
absl::StatusOr<T> ParseWhole(const std::string& text, const OptionSpec& spec) {
  PHX_ASSIGN_OR_RETURN(const int64_t value, ParseInteger(text, spec.suffixes));
  PHX_RETURN_IF_ERROR(CheckRange(static_cast<double>(value), spec));
  if constexpr (std::is_unsigned_v<T>) {
    if (value < 0) return absl::InvalidArgumentError("is less than 0");
  } else if (value < std::numeric_limits<T>::min() || value > std::numeric_limits<T>::max()) {
    return absl::InvalidArgumentError("is out of range");
  }
  return static_cast<T>(value);
}

absl::StatusOr<double> ParseReal(const std::string& text, const OptionSpec& spec) {
  PHX_ASSIGN_OR_RETURN(const double value, ParseDouble(text));
  PHX_RETURN_IF_ERROR(CheckRange(value, spec));
  return value;
}

template <typename T, typename Parse>
std::function<absl::Status(const std::string&)> Setter(T* field, Parse parse) {
  return [field, parse](const std::string& text) -> absl::Status {
    PHX_ASSIGN_OR_RETURN(auto value, parse(text));
    *field = std::move(value);
    return absl::OkStatus();
  };
}

}  // namespace

absl::StatusOr<int64_t> ParseInteger(std::string_view text, bool suffixes) {
  int64_t scale = 1;
  std::string_view digits = text;
  if (suffixes && !text.empty()) {
    const size_t end = text.find_first_not_of("+-0123456789.");
    const std::string_view suffix = end == std::string_view::npos ? "" : text.substr(end);
    digits = text.substr(0, text.size() - suffix.size());
    static constexpr std::pair<std::string_view, int64_t> kScales[] = {
        {"", 1}, {"k", 1000}, {"m", 1000000}, {"g", 1000000000}, {"t", 1000000000000}, {"K", int64_t{1} << 10}, {"M", int64_t{1} << 20},
        {"G", int64_t{1} << 30}, {"T", int64_t{1} << 40}, {"KiB", int64_t{1} << 10}, {"MiB", int64_t{1} << 20}, {"GiB", int64_t{1} << 30},
        {"TiB", int64_t{1} << 40}, {"KB", 1000}, {"MB", 1000000}, {"GB", 1000000000}, {"TB", 1000000000000}, {"B", 1}};
    const auto* found = std::find_if(std::begin(kScales), std::end(kScales), [&](const auto& item) { return item.first == suffix; });
    if (found == std::end(kScales)) return absl::InvalidArgumentError("is not a whole number");
    scale = found->second;
  }
  if (scale > 1 && digits.find('.') != std::string_view::npos) {  // 1.5GiB
    double value = 0;
    if (!absl::SimpleAtod(std::string(digits), &value) || !std::isfinite(value) || std::abs(value * static_cast<double>(scale)) >= 9.2e18) {
      return absl::InvalidArgumentError("is not a whole number");
    }
    return static_cast<int64_t>(value * static_cast<double>(scale));
  }
  int64_t value = 0;
  if (!absl::SimpleAtoi(std::string(digits), &value)) return absl::InvalidArgumentError("is not a whole number");
  int64_t scaled = 0;
  if (__builtin_mul_overflow(value, scale, &scaled)) return absl::InvalidArgumentError("is out of range");
  return scaled;
}

size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replace = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replace});
    }
  }
  return row[b.size()];
}

OptionSet::OptionSet(std::string program, std::string usage, std::string summary)
    : program_(std::move(program)), usage_(std::move(usage)), summary_(std::move(summary)) {}

void OptionSet::Group(std::string title) { group_ = std::move(title); }

void OptionSet::AddOption(std::string name, std::string help, OptionSpec spec, Option::Kind kind, std::string default_text,
                          std::function<absl::Status(const std::string&)> set, std::function<void()> clear) {
  PHX_CHECK(Find(name) == nullptr && name == Canonical(name));
  Option option{std::move(name), std::move(help), group_, std::move(default_text), std::move(spec), kind, std::move(set), std::move(clear)};
  if (!option.spec.shown_default.empty()) option.default_text = option.spec.shown_default;
  options_.push_back(std::move(option));
}

void OptionSet::Add(std::string name, bool* field, std::string help, OptionSpec spec) {
  AddOption(std::move(name), std::move(help), std::move(spec), Option::Kind::kFlag, *field ? "on" : "off", Setter(field, ParseBool));
}
void OptionSet::Add(std::string name, std::optional<bool>* field, std::string help, OptionSpec spec) {
  AddOption(std::move(name), std::move(help), std::move(spec), Option::Kind::kFlag, "", Setter(field, ParseBool));
}
void OptionSet::Add(std::string name, std::string* field, std::string help, OptionSpec spec) {
  AddOption(std::move(name), std::move(help), std::move(spec), Option::Kind::kValue, *field,
            Setter(field, [](const std::string& text) -> absl::StatusOr<std::string> { return text; }));
}
void OptionSet::Add(std::string name, std::optional<std::string>* field, std::string help, OptionSpec spec) {
  AddOption(std::move(name), std::move(help), std::move(spec), Option::Kind::kValue, "",
            Setter(field, [](const std::string& text) -> absl::StatusOr<std::string> { return text; }));
}
void OptionSet::Add(std::string name, int* field, std::string help, OptionSpec spec) {
  auto set = Setter(field, [spec](const std::string& text) { return ParseWhole<int>(text, spec); });
  AddOption(std::move(name), std::move(help), std::move(spec), Option::Kind::kValue, absl::StrCat(*field), std::move(set));
}
void OptionSet::Add(std::string name, int64_t* field, std::string help, OptionSpec spec) {
  auto set = Setter(field, [spec](const std::string& text) { return ParseWhole<int64_t>(text, spec); });
  AddOption(std::move(name), std::move(help), std::move(spec), Option::Kind::kValue, absl::StrCat(*field), std::move(set));
}
void OptionSet::Add(std::string name, uint64_t* field, std::string help, OptionSpec spec) {
  auto set = Setter(field, [spec](const std::string& text) { return ParseWhole<uint64_t>(text, spec); });
  AddOption(std::move(name), std::move(help), std::move(spec), Option::Kind::kValue, absl::StrCat(*field), std::move(set));
}
void OptionSet::Add(std::string name, std::optional<int64_t>* field, std::string help, OptionSpec spec) {
  auto set = Setter(field, [spec](const std::string& text) { return ParseWhole<int64_t>(text, spec); });
  AddOption(std::move(name), std::move(help), std::move(spec), Option::Kind::kValue, "", std::move(set));
}
void OptionSet::Add(std::string name, double* field, std::string help, OptionSpec spec) {
  auto set = Setter(field, [spec](const std::string& text) { return ParseReal(text, spec); });
  AddOption(std::move(name), std::move(help), std::move(spec), Option::Kind::kValue, absl::StrCat(*field), std::move(set));
}
void OptionSet::Add(std::string name, std::optional<double>* field, std::string help, OptionSpec spec) {
  auto set = Setter(field, [spec](const std::string& text) { return ParseReal(text, spec); });
  AddOption(std::move(name), std::move(help), std::move(spec), Option::Kind::kValue, "", std::move(set));
}
void OptionSet::Add(std::string name, std::vector<std::string>* field, std::string help, OptionSpec spec) {
  auto set = [field](const std::string& text) {
    field->push_back(text);
    return absl::OkStatus();
  };
  AddOption(std::move(name), std::move(help), std::move(spec), Option::Kind::kList, absl::StrJoin(*field, " "), std::move(set),
            [field] { field->clear(); });
}

void OptionSet::AllowConfigFile() { config_allowed_ = true; }
void OptionSet::AllowPositional(size_t max) { positional_max_ = max; }

OptionSet::Option* OptionSet::Find(std::string_view name) {
  for (Option& option : options_) {
    if (option.name == name) return &option;
  }
  return nullptr;
}

bool OptionSet::given(std::string_view name) const {
  for (const Option& option : options_) {
    if (option.name == name) return option.given;
  }
  return false;
}

std::vector<std::string> OptionSet::given_names() const {
  std::vector<std::string> names;
  for (const Option& option : options_) {
    if (option.given) names.push_back(option.name);
  }
  return names;
}

absl::Status OptionSet::UnknownFlag(const std::string& typed, const std::string& where) const {
  const std::string name = Canonical(typed.substr(std::min(typed.find_first_not_of('-'), typed.size())));
  size_t best = std::max<size_t>(3, name.size() / 3) + 1;  // farther than this is not a slip of the finger
  std::string nearest;
  for (const Option& option : options_) {
    if (option.spec.hidden) continue;
    const size_t distance = EditDistance(name, option.name);
    if (distance < best) {
      best = distance;
      nearest = option.name;
    }
  }
  std::string message = absl::StrCat("unknown flag ", typed, where);
  if (!nearest.empty()) absl::StrAppend(&message, "; did you mean --", nearest, "?");
  return absl::InvalidArgumentError(message);
}

absl::Status OptionSet::ReadFlag(const std::vector<std::string>& words, size_t& at) {
  const std::string word = words[at++];
  const size_t equals = word.find('=');
  const std::string typed = word.substr(0, equals);
  std::optional<std::string> value;
  if (equals != std::string::npos) value = word.substr(equals + 1);
  const std::string name = absl::StartsWith(typed, "--") ? Canonical(typed.substr(2)) : "";

  if (typed == "-h" || name == "help") {
    help_requested_ = true;
    return absl::OkStatus();
  }
  if (config_allowed_ && name == "config") {
    if (!value && at < words.size()) value = words[at++];
    if (!value) return absl::InvalidArgumentError("--config needs a file");
    config_path_ = *value;
    return absl::OkStatus();
  }
  for (size_t i = 0; i < options_.size(); ++i) {
    Option& option = options_[i];
    const bool named = option.name == name || (!option.spec.alias.empty() && option.spec.alias == typed);
    if (option.kind == Option::Kind::kFlag && (named || name == "no-" + option.name)) {
      if (!named && value) return absl::InvalidArgumentError(absl::StrCat(typed, " takes no value"));
      flags_.push_back({i, named ? value.value_or("true") : "false", typed});
      return absl::OkStatus();
    }
    if (!named) continue;
    if (!value && (at >= words.size() || LooksLikeFlag(words[at]))) return absl::InvalidArgumentError(absl::StrCat(typed, " needs a value"));
    flags_.push_back({i, value ? *value : words[at++], typed});
    while (option.kind == Option::Kind::kList && !value && at < words.size() && !LooksLikeFlag(words[at])) flags_.push_back({i, words[at++], typed});
    return absl::OkStatus();
  }
  return UnknownFlag(typed, "");
}

absl::Status OptionSet::ReadWords(const std::vector<std::string>& words) {
  bool only_positional = false;
  for (size_t at = 0; at < words.size();) {
    if (!only_positional && words[at] == "--") {
      only_positional = true;
      ++at;
    } else if (!only_positional && LooksLikeFlag(words[at])) {
      PHX_RETURN_IF_ERROR(ReadFlag(words, at));
      if (help_requested_) return absl::OkStatus();
    } else if (positional_.size() < positional_max_) {
      positional_.push_back(words[at++]);
    } else {
      return absl::InvalidArgumentError(absl::StrCat("unexpected argument '", words[at], "'"));
    }
  }
  return absl::OkStatus();
}

absl::Status OptionSet::ReadEnvironment(std::vector<Assignment>& out) const {
  for (size_t i = 0; i < options_.size(); ++i) {
    const OptionSpec& spec = options_[i].spec;
    if (spec.env.empty()) continue;
    const char* value = std::getenv(spec.env.c_str());
    if (value != nullptr && *value != '\0') out.push_back({i, value, spec.env});
  }
  return absl::OkStatus();
}

// Sets what no stronger source has `taken`; a later assignment of one source replaces an earlier one, a list's adds.
absl::Status OptionSet::Apply(const std::vector<Assignment>& assignments, std::vector<bool>& taken) {
  const std::vector<bool> stronger = taken;
  for (const Assignment& assignment : assignments) {
    Option& option = options_[assignment.option];
    if (stronger[assignment.option]) continue;
    if (!taken[assignment.option] && option.clear) option.clear();
    taken[assignment.option] = true;
    option.given = true;
    absl::Status status;
    const auto& choices = option.spec.choices;
    if (!choices.empty() && std::find(choices.begin(), choices.end(), assignment.text) == choices.end()) {
      status = absl::InvalidArgumentError(absl::StrCat("is not one of ", absl::StrJoin(choices, ", ")));
    } else {
      status = option.set(assignment.text);
    }
    if (!status.ok()) {
      const std::string quoted = option.spec.secret ? "the value" : absl::StrCat("'", assignment.text.substr(0, 200), "'");
      return absl::InvalidArgumentError(absl::StrCat(assignment.as_typed, ": ", quoted, " ", std::string(status.message())));
    }
  }
  return absl::OkStatus();
}

absl::Status OptionSet::Parse(int argc, const char* const* argv) {
  return Parse(std::vector<std::string>(argv + std::min(argc, 1), argv + argc));
}

absl::Status OptionSet::Parse(const std::vector<std::string>& words) {
  PHX_RETURN_IF_ERROR(ReadWords(words));
  if (help_requested_) return absl::OkStatus();
  std::vector<Assignment> environment;
  std::vector<Assignment> config;
  PHX_RETURN_IF_ERROR(ReadEnvironment(environment));
  if (!config_path_.empty()) PHX_RETURN_IF_ERROR(ReadConfigFile(config_path_, config));
  std::vector<bool> taken(options_.size(), false);
  PHX_RETURN_IF_ERROR(Apply(flags_, taken));
  PHX_RETURN_IF_ERROR(Apply(environment, taken));
  return Apply(config, taken);
}

}  // namespace phalanx::services
