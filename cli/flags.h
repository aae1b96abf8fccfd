// cli/flags.h: every flag of `phalanx serve`: vLLM's names and defaults, who serves each one, and why the others are refused.
// Refuses to know: how a flag is carried out. Thread: any; the tables are constant.
// Neighbours: options.h reads words by these tables, commands.h passes values on to the processes that own them. A flag that is named
// here is served, accepted because its one value is what Phalanx does anyway, or refused with its reason: none is ignored.
#pragma once

#include <limits>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace phalanx::cli {

// What the launcher itself needs; everything else is passed on as it was typed.
struct ServeFlags {
  std::string model;         // --model or the positional MODEL, as typed
  std::string revision;      // of an org/name in the cache; "" = main
  std::string download_dir;  // an org/name is looked up here; "" = the Hugging Face cache
  std::string tokenizer;     // as typed; "" = the model's
  std::string load_format = "auto";
  std::vector<std::string> served_model_name;  // empty = the model as typed
  std::string host;          // "" = all addresses
  int port = 8000;           // 0 = any free one
  int grpc_port = 0;         // 0 = no port for native clients
  std::string grpc_host = "127.0.0.1";
  std::vector<std::string> api_key;
  std::string ssl_certfile;
  std::string ssl_keyfile;
  double shutdown_timeout_s = 30;
  int num_workers = 1;
  int threads = 0;           // of all workers together; 0 = every core this process may run on
  double gpu_memory_utilization = 0.92;
  std::string log_level = "info";
  std::string log_format = "text";
};

enum class Kind { kText, kWhole, kReal, kSwitch, kList };

// The processes that take the flag under the same name; kLauncher: ServeFlags holds it.
enum Owner : unsigned { kLauncher = 1, kWorker = 2, kRouter = 4, kGateway = 8 };

using Field = std::variant<std::monostate, std::string ServeFlags::*, int ServeFlags::*, double ServeFlags::*,
                           std::vector<std::string> ServeFlags::*>;

struct Flag {
  std::string_view group;  // title in --help
  std::string_view name;   // without dashes
  Kind kind = Kind::kText;
  unsigned owners = 0;     // Owner bits; 0: only the values in `only` are accepted, and nothing has to be done for them
  std::string_view help;
  std::string_view shown_default;             // what --help says; of a flag of the launcher: instead of the field's value
  Field field;
  std::string_view alias;                     // with its dash: "-tp"
  std::string_view unit;
  double min = std::numeric_limits<double>::lowest();
  double max = std::numeric_limits<double>::max();
  bool suffixes = false;                      // "16k"
  std::vector<std::string> choices;
  bool secret = false;
  std::string_view env;
  std::vector<std::string> only;              // served values; empty = all of a flag with owners, none of one without
  std::string_view why;                       // of a refusal: a clause after "is not served"
  std::vector<std::string> unset;             // values that mean the same as leaving the flag out
  std::string_view note;                      // logged at start when the flag is set (a switch: set to true)
};

// A flag of vLLM that does nothing here: only the values in `only` are accepted. Not in the body of --help.
struct Refusal {
  std::string_view name;
  Kind kind = Kind::kText;  // a switch may always be turned off
  std::string_view why;
  std::vector<std::string> only = {};
  std::string_view alias = {};
  bool secret = false;
};

const std::vector<Flag>& Flags();
const std::vector<Refusal>& Refusals();

}  // namespace phalanx::cli
