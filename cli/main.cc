// phalanx: the one command of a user: serve a model, measure a server, say the version.
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/programs.h"
#include "cli/serve.h"
#include "services/options.h"

namespace phalanx::cli {
namespace {

constexpr char kHelp[] =
    "Usage: phalanx COMMAND [arguments]\n"
    "\n"
    "Serves large language models behind an OpenAI-compatible API.\n"
    "\n"
    "Commands:\n"
    "  serve MODEL [flags]      start worker, router and gateway on this host and keep them running\n"
    "  bench serve [flags]      measure an OpenAI-compatible server\n"
    "  bench kernels [flags]    measure the kernels of this machine\n"
    "  version                  print the version\n"
    "  help                     this text\n"
    "\n"
    "phalanx serve --help lists its flags; they carry vLLM's names.\n";

int Fail(const std::string& sentence) {
  std::fputs(absl::StrCat("phalanx: ", sentence, "\n").c_str(), stderr);
  return 2;
}

// The commands nearest to a word that is none of them.
std::string Unknown(const std::string& word, const std::vector<std::string>& commands) {
  for (const std::string& command : commands) {
    if (services::EditDistance(word, command) <= 2) return absl::StrCat("unknown command '", word, "'; did you mean ", command, "?");
  }
  return absl::StrCat("unknown command '", word, "'; see phalanx help");
}

// Becomes phalanx-bench-KIND with the rest of the words.
int Bench(const std::vector<std::string>& words) {
  static constexpr char kUsage[] = "Usage: phalanx bench serve|kernels [flags]; `phalanx bench serve --help` lists the flags\n";
  if (words.empty() || words[0] == "--help" || words[0] == "-h") {
    std::fputs(kUsage, words.empty() ? stderr : stdout);
    return words.empty() ? 2 : 0;
  }
  if (words[0] != "serve" && words[0] != "kernels") return Fail(Unknown(words[0], {"serve", "kernels"}));
  absl::StatusOr<std::string> program = FindProgram(absl::StrCat("phalanx-bench-", words[0]));
  if (!program.ok()) return Fail(std::string(program.status().message()));
  std::vector<std::string> copies(words.begin() + 1, words.end());
  copies.insert(copies.begin(), *program);
  std::vector<char*> argv;
  for (std::string& copy : copies) argv.push_back(copy.data());
  argv.push_back(nullptr);
  execv(program->c_str(), argv.data());
  return Fail(absl::StrCat("cannot start ", *program, ": ", std::strerror(errno)));
}

int Run(const std::vector<std::string>& words) {
  const std::string command = words.empty() ? "" : words[0];
  const std::vector<std::string> rest(words.begin() + (words.empty() ? 0 : 1), words.end());
  if (command == "serve") return Serve(rest);
  if (command == "bench") return Bench(rest);
  if (command == "version" || command == "--version" || command == "-v") {
    std::puts("phalanx " PHALANX_VERSION);
    return 0;
  }
  if (command.empty() || command == "help" || command == "--help" || command == "-h") {
    std::fputs(kHelp, command.empty() ? stderr : stdout);
    return command.empty() ? 2 : 0;
  }
  return Fail(Unknown(command, {"serve", "bench", "version", "help"}));
}

}  // namespace
}  // namespace phalanx::cli

int main(int argc, char** argv) { return phalanx::cli::Run(std::vector<std::string>(argv + 1, argv + argc)); }
