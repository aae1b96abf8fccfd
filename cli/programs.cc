#include "cli/programs.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <vector>

#include <fmt/format.h>

#include "absl/strings/str_join.h"

namespace phalanx::cli {

absl::StatusOr<std::string> FindProgram(std::string_view name) {
  namespace fs = std::filesystem;
  std::vector<std::string> folders;
  const char* given = std::getenv("PHALANX_BIN_DIR");
  if (given != nullptr && *given != '\0') {
    folders = {given};
  } else {
    std::error_code error;
    const fs::path here = fs::read_symlink("/proc/self/exe", error).parent_path();
    folders = {here.string(), (here / "../libexec/phalanx").lexically_normal().string(), (here / "../bin").lexically_normal().string()};
  }
  for (const std::string& folder : folders) {
    std::string path = fmt::format("{}/{}", folder, name);
    if (access(path.c_str(), X_OK) == 0) return path;
  }
  return absl::NotFoundError(fmt::format("cannot find the program {} in {}", name, absl::StrJoin(folders, ", ")));
}

}  // namespace phalanx::cli
