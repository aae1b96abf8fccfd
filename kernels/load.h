// kernels/load.h: finds a back end by name and checks that its table fits this program.
// Refuses to know: what the operations do, which device is best, models. A back end is either handed in or a shared object.
// Thread: any, once at start. A shared object that was opened stays open until the process ends.
// Neighbours: worker/main calls it with CpuTable(); kernels/cuda builds the shared object.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/kernels.h"

namespace phalanx::kernels {

// The one symbol that a plug-in exports, with C linkage. It gets the version the host was built for and returns its table,
// also when its own version is another (the head of Table never moves, so the host can name both numbers), or null when the
// back end cannot work on this machine at all.
using PluginEntry = const Table* (*)(uint32_t host_version);
inline constexpr char kPluginSymbol[] = "PhalanxKernelTable";

// Where back ends come from.
struct LoadSources {
  std::vector<const Table*> built_in;     // tables linked into this program, found by Table::name
  std::vector<std::string> plugin_paths;  // shared objects tried in order for a name that is not built in; a bare file name goes
                                          // through the dynamic loader's search path
};

// Returns the table called `name` ("cpu", "cuda"). Errors: kNotFound (no such table; the message lists what was tried and the
// loader's reason for each), kFailedPrecondition (a table of another version; the message has both numbers).
absl::StatusOr<const Table*> FindTable(std::string_view name, const LoadSources& sources);

// Opens one shared object and returns its table. Errors as FindTable.
absl::StatusOr<const Table*> OpenPlugin(const std::string& path);

// Compares the head of `table` with this program. kFailedPrecondition names both versions or both sizes.
absl::Status CheckTable(const Table& table);

// kUnimplemented, naming every operation of `operations` (field names of Table) that `table` lacks; kInvalidArgument for a name
// that is no operation.
absl::Status RequireOperations(const Table& table, const std::vector<std::string_view>& operations);

// Every field name that RequireOperations knows, in table order.
std::vector<std::string_view> OperationNames();

}  // namespace phalanx::kernels
