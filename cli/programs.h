// cli/programs.h: finds the other programs of Phalanx, wherever the tree was installed.
// Refuses to know: what they do. Thread: any. Neighbours: main.cc and serve.cc.
#pragma once

#include <string>
#include <string_view>

#include "services/status.h"

namespace phalanx::cli {

// The path of `name`: in the folder PHALANX_BIN_DIR if that is set (and then only there), else beside this program, in
// ../libexec/phalanx or in ../bin. Errors: kNotFound naming the program and where was looked.
absl::StatusOr<std::string> FindProgram(std::string_view name);

}  // namespace phalanx::cli
