// services/options.h: one struct of fields becomes flags, environment variables, a config file and --help.
// Refuses to know: what an option means. Thread: main, before other threads start.
// Neighbours: each process declares a struct with defaults and binds its fields once. First wins: flag, environment,
// config file, default.
//
//   OptionSet options("phalanx-thing", "[flags]", "Does a thing.");
//   options.Group("Server");
//   options.Add("port", &fields.port, "where to listen", {.min = 0, .max = 65535});
//   PHX_RETURN_IF_ERROR(options.Parse(argc, argv));
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "services/status.h"

namespace phalanx::services {

// How one option is read, beside its type.
struct OptionSpec {
  std::string alias;                       // a second spelling with its dashes: "-tp"
  std::string unit;                        // shown in --help: "bytes", "s"
  std::string shown_default;               // what --help says instead of the field's value ("from the model")
  std::string env;                         // environment variable that sets it
  std::vector<std::string> choices;        // allowed texts; empty = any
  double min = std::numeric_limits<double>::lowest();
  double max = std::numeric_limits<double>::max();
  bool suffixes = false;                   // integers may end in k, m, g (thousands) or K, M, G, KiB ... (1024s)
  bool hidden = false;                     // accepted, not in --help
  bool secret = false;                     // the default is not shown, a bad value is not quoted
};

class OptionSet {
 public:
  OptionSet(std::string program, std::string usage, std::string summary);

  // Options added next stand under `title` in --help.
  void Group(std::string title);

  // Binds --name to `field`, whose present value is the default. Names use dashes; underscores are accepted for them.
  // bool: --name, --no-name, --name=true|false. vector: the flag takes all following words that are not flags, and repeats add.
  // optional: unset until given.
  void Add(std::string name, bool* field, std::string help, OptionSpec spec = {});
  void Add(std::string name, std::string* field, std::string help, OptionSpec spec = {});
  void Add(std::string name, int* field, std::string help, OptionSpec spec = {});
  void Add(std::string name, int64_t* field, std::string help, OptionSpec spec = {});
  void Add(std::string name, uint64_t* field, std::string help, OptionSpec spec = {});
  void Add(std::string name, double* field, std::string help, OptionSpec spec = {});
  void Add(std::string name, std::vector<std::string>* field, std::string help, OptionSpec spec = {});
  void Add(std::string name, std::optional<bool>* field, std::string help, OptionSpec spec = {});
  void Add(std::string name, std::optional<std::string>* field, std::string help, OptionSpec spec = {});
  void Add(std::string name, std::optional<int64_t>* field, std::string help, OptionSpec spec = {});
  void Add(std::string name, std::optional<double>* field, std::string help, OptionSpec spec = {});

  // Accepts --config FILE: `name: value` lines of YAML, or a JSON object, with the names of the flags.
  void AllowConfigFile();
  // Accepts up to `max` words that are not flags; without this call none is accepted.
  void AllowPositional(size_t max);

  // Reads the words after argv[0]. Errors: kInvalidArgument with one sentence that names the flag (and the nearest known
  // name for an unknown one). After --help or -h nothing else is checked.
  absl::Status Parse(int argc, const char* const* argv);
  absl::Status Parse(const std::vector<std::string>& words);

  bool help_requested() const { return help_requested_; }
  const std::vector<std::string>& positional() const { return positional_; }
  // True if --name was set by flag, environment or config file.
  bool given(std::string_view name) const;
  // The options set by flag, environment or config file, in the order they were added.
  std::vector<std::string> given_names() const;

  std::string Help() const;

 private:
  struct Option {
    std::string name;
    std::string help;
    std::string group;
    std::string default_text;
    OptionSpec spec;
    enum class Kind { kFlag, kValue, kList } kind = Kind::kValue;
    std::function<absl::Status(const std::string& text)> set;  // of a list: adds one
    std::function<void()> clear;                               // of a list: empties it before the first word
    bool given = false;
  };
  struct Assignment {
    size_t option = 0;
    std::string text;
    std::string as_typed;  // for errors
  };

  void AddOption(std::string name, std::string help, OptionSpec spec, Option::Kind kind, std::string default_text,
                 std::function<absl::Status(const std::string&)> set, std::function<void()> clear = {});
  Option* Find(std::string_view name);
  absl::Status ReadWords(const std::vector<std::string>& words);
  absl::Status ReadFlag(const std::vector<std::string>& words, size_t& at);
  absl::Status ReadEnvironment(std::vector<Assignment>& out) const;
  absl::Status ReadConfigFile(const std::string& path, std::vector<Assignment>& out);
  absl::Status Apply(const std::vector<Assignment>& assignments, std::vector<bool>& taken);
  absl::Status UnknownFlag(const std::string& typed, const std::string& where) const;

  const std::string program_;
  const std::string usage_;
  const std::string summary_;
  std::string group_ = "Options";
  std::vector<Option> options_;
  std::vector<Assignment> flags_;
  std::vector<std::string> positional_;
  size_t positional_max_ = 0;
  bool config_allowed_ = false;
  std::string config_path_;
  bool help_requested_ = false;
};

// Fewest single-letter edits that turn one word into the other; for suggestions.
size_t EditDistance(std::string_view a, std::string_view b);

// "4k" = 4000, "4K" = "4KiB" = 4096. Errors: kInvalidArgument if it is not a whole number with an optional suffix or overflows.
absl::StatusOr<int64_t> ParseInteger(std::string_view text, bool suffixes);

}  // namespace phalanx::services
