#include "cli/options.h"

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "services/options.h"

namespace phalanx::cli {
namespace {

using services::OptionSet;
using services::OptionSpec;

// Where a flag that ServeFlags does not hold is read into.
struct Slot {
  std::optional<std::string> text;
  std::optional<int64_t> whole;
  std::optional<double> real;
  std::optional<bool> on;
  std::vector<std::string> list;
};

OptionSpec SpecOf(const Flag& flag) {
  return {.alias = std::string(flag.alias), .unit = std::string(flag.unit), .shown_default = std::string(flag.shown_default),
          .env = std::string(flag.env), .choices = flag.choices, .min = flag.min, .max = flag.max, .suffixes = flag.suffixes,
          .secret = flag.secret};
}

void AddSlot(OptionSet& set, std::string_view name, Kind kind, Slot& slot, std::string_view help, OptionSpec spec) {
  const std::string n(name), h(help);
  switch (kind) {
    case Kind::kText: return set.Add(n, &slot.text, h, std::move(spec));
    case Kind::kWhole: return set.Add(n, &slot.whole, h, std::move(spec));
    case Kind::kReal: return set.Add(n, &slot.real, h, std::move(spec));
    case Kind::kSwitch: return set.Add(n, &slot.on, h, std::move(spec));
    case Kind::kList: return set.Add(n, &slot.list, h, std::move(spec));
  }
}

void AddFlag(OptionSet& set, const Flag& flag, ServeFlags& own, Slot& slot) {
  set.Group(std::string(flag.group));
  const std::string name(flag.name), help(flag.help);
  if (const auto* text = std::get_if<std::string ServeFlags::*>(&flag.field)) return set.Add(name, &(own.**text), help, SpecOf(flag));
  if (const auto* whole = std::get_if<int ServeFlags::*>(&flag.field)) return set.Add(name, &(own.**whole), help, SpecOf(flag));
  if (const auto* real = std::get_if<double ServeFlags::*>(&flag.field)) return set.Add(name, &(own.**real), help, SpecOf(flag));
  if (const auto* list = std::get_if<std::vector<std::string> ServeFlags::*>(&flag.field)) {
    return set.Add(name, &(own.**list), help, SpecOf(flag));
  }
  // Words beside the numbers, such as `auto`: read as text, checked by ReadWhole.
  AddSlot(set, flag.name, flag.unset.empty() ? flag.kind : Kind::kText, slot, flag.help, SpecOf(flag));
}

// The value as text; nullopt if it was not given. `own` holds it if the launcher does.
std::optional<std::string> TextOf(const Slot& slot) {
  if (slot.text) return slot.text;
  if (slot.whole) return absl::StrCat(*slot.whole);
  if (slot.real) return fmt::format("{}", *slot.real);
  if (slot.on) return *slot.on ? "true" : "false";
  if (!slot.list.empty()) return absl::StrJoin(slot.list, " ");
  return std::nullopt;
}

bool Contains(const std::vector<std::string>& list, const std::string& text) {
  return std::find(list.begin(), list.end(), text) != list.end();
}

absl::Status Refused(std::string_view name, Kind kind, const std::string& text, const std::vector<std::string>& only, std::string_view why,
                     bool secret, std::string_view served) {
  std::string what = fmt::format("--{}{}", kind == Kind::kSwitch && text == "false" ? "no-" : "", name);
  if (kind != Kind::kSwitch && !secret && !only.empty()) absl::StrAppend(&what, " '", text.substr(0, 200), "'");
  std::string hint;
  if (kind != Kind::kSwitch && !only.empty()) hint = absl::StrCat(" (accepted: ", absl::StrJoin(only, ", "), ")");
  return absl::UnimplementedError(fmt::format("{} is not {}: {}{}", what, served, why, hint));
}

absl::Status CheckFlag(const Flag& flag, const std::string& text) {
  if ((flag.owners != 0 && flag.only.empty()) || Contains(flag.only, text)) return absl::OkStatus();
  return Refused(flag.name, flag.kind, text, flag.only, flag.why, flag.secret, "served yet");
}

absl::Status CheckRefusal(const Refusal& refusal, const std::string& text) {
  if (Contains(refusal.only, text)) return absl::OkStatus();
  if (refusal.kind == Kind::kSwitch && text == "false" && refusal.only.empty()) return absl::OkStatus();
  return Refused(refusal.name, refusal.kind, text, refusal.only, refusal.why, refusal.secret, "served");
}

// A number that was read as text because of the words in flag.unset.
absl::StatusOr<std::string> ReadWhole(const Flag& flag, const std::string& text) {
  absl::StatusOr<int64_t> value = services::ParseInteger(text, flag.suffixes);
  if (value.ok() && (static_cast<double>(*value) < flag.min || static_cast<double>(*value) > flag.max)) {
    value = absl::InvalidArgumentError(fmt::format("is not between {:.0f} and {:.0f}", flag.min, flag.max));
  }
  if (!value.ok()) {
    return absl::InvalidArgumentError(fmt::format("--{}: '{}' {}", flag.name, text.substr(0, 200), std::string(value.status().message())));
  }
  return absl::StrCat(*value);
}

absl::Status TakeFlag(const Flag& flag, const Slot& slot, ServeOptions& out) {
  std::optional<std::string> text = TextOf(slot);
  if (const auto* own = std::get_if<std::string ServeFlags::*>(&flag.field)) text = out.own.**own;
  if (!text) return absl::OkStatus();
  PHX_RETURN_IF_ERROR(CheckFlag(flag, *text));
  if (!flag.note.empty() && *text != "false") out.notes.emplace_back(flag.note);
  if ((flag.owners & ~static_cast<unsigned>(kLauncher)) == 0 || Contains(flag.unset, *text)) return absl::OkStatus();
  if (flag.kind == Kind::kWhole && !flag.unset.empty()) {
    PHX_ASSIGN_OR_RETURN(text, ReadWhole(flag, *text));
  }
  out.passed.push_back({&flag, flag.kind == Kind::kList ? slot.list : std::vector<std::string>{*text}});
  return absl::OkStatus();
}

// One key or several in a word; vLLM's variable counts too, because a server that was closed must not become open.
absl::Status TakeApiKeys(ServeFlags& own) {
  const char* vllm = std::getenv("VLLM_API_KEY");
  if (own.api_key.empty() && vllm != nullptr && *vllm != '\0') own.api_key.emplace_back(vllm);
  std::vector<std::string> keys;
  for (const std::string& word : own.api_key) {
    for (std::string& key : std::vector<std::string>(absl::StrSplit(word, ','))) {
      if (key.empty()) return absl::InvalidArgumentError("--api-key: a key is empty");
      keys.push_back(std::move(key));
    }
  }
  own.api_key = std::move(keys);
  return absl::OkStatus();
}

absl::Status TakeModel(const OptionSet& set, ServeFlags& own) {
  if (!set.positional().empty()) {
    if (!own.model.empty() && own.model != set.positional()[0]) {
      return absl::InvalidArgumentError(
          absl::StrCat("two models are given: '", set.positional()[0], "', and '", own.model, "' as --model"));
    }
    own.model = set.positional()[0];
  }
  if (own.model.empty()) {
    return absl::InvalidArgumentError("no MODEL is given: a folder, a .gguf file, or an org/name in the Hugging Face cache");
  }
  if (own.served_model_name.empty()) own.served_model_name = {own.model};
  return absl::OkStatus();
}

std::string PassedText(const ServeOptions& options, std::string_view name) {
  for (const PassedFlag& passed : options.passed) {
    if (passed.flag->name == name) return passed.values[0];
  }
  return "";
}

// What a group of ranks changes for the launcher. The worker checks the rest.
absl::Status TakeRanks(ServeOptions& out) {
  const std::string size = PassedText(out, "tensor-parallel-size");
  if (!size.empty() && PassedText(out, "device") == "cuda") {
    return absl::UnimplementedError(
        absl::StrCat("--tensor-parallel-size '", size,
                     "' is not served yet with --device cuda: ranks are on the CPU so far (--device cpu)"));
  }
  std::string nodes = PassedText(out, "nnodes"), rank = PassedText(out, "node-rank");
  if (nodes.empty() && rank.empty()) {
    const auto variable = [](const char* name) { return std::getenv(name) == nullptr ? "" : std::getenv(name); };
    nodes = variable("LWS_GROUP_SIZE");
    rank = variable("LWS_WORKER_INDEX");
  }
  out.follower_host = !rank.empty() && rank != "0";
  if (!nodes.empty() && nodes != "1" && out.own.num_workers > 1) {
    return absl::InvalidArgumentError("--num-workers is for one host: a group of ranks over several hosts is one worker");
  }
  return absl::OkStatus();
}

std::string HelpText(const OptionSet& set) {
  std::string out = set.Help();
  absl::StrAppend(&out, "\nKnown from vLLM, accepted only with the value that is always in force here, else refused with the reason:\n ");
  size_t column = 1;
  for (const Refusal& refusal : Refusals()) {
    if (column + refusal.name.size() + 3 > 100) {
      absl::StrAppend(&out, "\n ");
      column = 1;
    }
    out += fmt::format(" --{}", refusal.name);
    column += refusal.name.size() + 3;
  }
  return out + "\n";
}

}  // namespace

absl::StatusOr<ServeOptions> ParseServe(const std::vector<std::string>& words) {
  ServeOptions out;
  OptionSet set("phalanx serve", "MODEL [flags]",
                "Serves a model behind an OpenAI-compatible API: starts worker, router and gateway on this host and keeps them running. "
                "MODEL is a folder in Hugging Face layout, a .gguf file, or an org/name in the local Hugging Face cache. Flags carry "
                "vLLM's names.");
  std::deque<Slot> slots;
  for (const Flag& flag : Flags()) AddFlag(set, flag, out.own, slots.emplace_back());
  for (const Refusal& refusal : Refusals()) {
    AddSlot(set, refusal.name, refusal.kind, slots.emplace_back(), "",
            {.alias = std::string(refusal.alias), .hidden = true, .secret = refusal.secret});
  }
  set.AllowConfigFile();
  set.AllowPositional(1);
  PHX_RETURN_IF_ERROR(set.Parse(words));
  if (set.help_requested()) {
    ServeOptions help;
    help.help = HelpText(set);
    return help;
  }
  size_t at = 0;
  for (const Flag& flag : Flags()) PHX_RETURN_IF_ERROR(TakeFlag(flag, slots[at++], out));
  for (const Refusal& refusal : Refusals()) {
    const std::optional<std::string> text = TextOf(slots[at++]);
    if (text) PHX_RETURN_IF_ERROR(CheckRefusal(refusal, *text));
  }
  PHX_RETURN_IF_ERROR(TakeRanks(out));
  PHX_RETURN_IF_ERROR(TakeApiKeys(out.own));
  PHX_RETURN_IF_ERROR(TakeModel(set, out.own));
  if (out.own.ssl_certfile.empty() != out.own.ssl_keyfile.empty()) {
    return absl::InvalidArgumentError("--ssl-certfile and --ssl-keyfile are needed together");
  }
  return out;
}

}  // namespace phalanx::cli
