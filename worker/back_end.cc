#include "worker/back_end.h"

#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/load.h"

namespace phalanx::worker {
namespace {

constexpr char kPluginFile[] = "libphalanx_cuda.so";

absl::StatusOr<BackEnd> Open(const kernels::Table* table, const kernels::DeviceOptions& options) {
  kernels::Device* device = nullptr;
  char error[256] = "";
  if (table->create(&options, &device, error, sizeof(error)) != kernels::kOk) {
    return absl::FailedPreconditionError(absl::StrCat("the ", table->name, " back end cannot start: ", error));
  }
  BackEnd out{table, DevicePtr(device, table->destroy)};
  if (table->info(device, &out.info) != kernels::kOk) return absl::InternalError(table->last_error(device));
  out.gpu = std::string_view(table->name) == "cuda";
  return out;
}

absl::StatusOr<BackEnd> OpenGpu(const kernels::DeviceOptions& options, const std::vector<std::string>& plugins) {
  if (plugins.empty()) return absl::FailedPreconditionError("there is no CUDA plug-in (make cuda builds it)");
  if (plugins.size() == 1 && access(plugins[0].c_str(), R_OK) != 0) {
    return absl::FailedPreconditionError(absl::StrCat("there is no CUDA plug-in at ", plugins[0], ": ", std::strerror(errno)));
  }
  absl::StatusOr<const kernels::Table*> table = kernels::FindTable("cuda", {{}, plugins});
  if (!table.ok()) return absl::FailedPreconditionError(table.status().message());
  return Open(*table, options);
}

std::string ProgramFolder() {
  char path[PATH_MAX];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof(path));
  const std::string program(path, length > 0 ? static_cast<size_t>(length) : 0);
  return program.substr(0, program.rfind('/'));
}

}  // namespace

absl::StatusOr<BackEnd> OpenBackEnd(std::string_view wish, const kernels::DeviceOptions& options,
                                    const std::vector<std::string>& plugins) {
  if (wish == "cpu") return Open(kernels::CpuTable(), options);
  absl::StatusOr<BackEnd> gpu = OpenGpu(options, plugins);
  if (gpu.ok()) return gpu;
  if (wish == "cuda") return absl::FailedPreconditionError(absl::StrCat("--device cuda: ", gpu.status().message()));
  PHX_ASSIGN_OR_RETURN(BackEnd cpu, Open(kernels::CpuTable(), options));
  cpu.note = absl::StrCat("on the CPU: ", gpu.status().message());
  return cpu;
}

std::vector<std::string> PluginPaths() {
  if (const char* path = std::getenv("PHALANX_CUDA_PLUGIN"); path != nullptr && *path != '\0') return {path};
  const std::string folder = ProgramFolder();
  std::vector<std::string> out;
  for (const std::string& path : {absl::StrCat(folder, "/", kPluginFile), absl::StrCat(folder, "/../lib/", kPluginFile)}) {
    if (access(path.c_str(), R_OK) == 0) out.push_back(path);
  }
  return out;
}

}  // namespace phalanx::worker
