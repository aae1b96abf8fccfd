#include "kernels/load.h"

#include <dlfcn.h>

#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace phalanx::kernels {
namespace {

struct OperationField {
  std::string_view name;
  size_t offset;
};

#define PHX_FIELD(name) {#name, offsetof(Table, name)}
constexpr OperationField kFields[] = {
    PHX_FIELD(create), PHX_FIELD(destroy), PHX_FIELD(info), PHX_FIELD(last_error), PHX_FIELD(alloc), PHX_FIELD(free),
    PHX_FIELD(host_alloc), PHX_FIELD(host_free), PHX_FIELD(copy_to_device), PHX_FIELD(copy_to_host), PHX_FIELD(fill_zero),
    PHX_FIELD(stream_create), PHX_FIELD(stream_destroy), PHX_FIELD(stream_synchronize), PHX_FIELD(event_create),
    PHX_FIELD(event_destroy), PHX_FIELD(event_record), PHX_FIELD(event_wait), PHX_FIELD(event_query), PHX_FIELD(graph_begin),
    PHX_FIELD(graph_end), PHX_FIELD(graph_launch), PHX_FIELD(graph_destroy), PHX_FIELD(packed_bytes), PHX_FIELD(pack_weight),
    PHX_FIELD(embedding), PHX_FIELD(rms_norm), PHX_FIELD(add_rms_norm), PHX_FIELD(linear), PHX_FIELD(rope_append),
    PHX_FIELD(attention), PHX_FIELD(silu_mul), PHX_FIELD(gather_rows), PHX_FIELD(sampling_state_set), PHX_FIELD(sample),
    PHX_FIELD(logprobs), PHX_FIELD(group_create), PHX_FIELD(all_reduce), PHX_FIELD(all_gather),
    PHX_FIELD(rope_attention), PHX_FIELD(take_ids), PHX_FIELD(event_elapsed), PHX_FIELD(range_push), PHX_FIELD(range_pop),
};
#undef PHX_FIELD

// All entries are function pointers of one size; a table that ends before a field lacks it.
bool HasField(const Table& table, const OperationField& field) {
  if (table.size < field.offset + sizeof(void*)) return false;
  void* pointer = nullptr;
  std::memcpy(&pointer, reinterpret_cast<const char*>(&table) + field.offset, sizeof(pointer));
  return pointer != nullptr;
}

}  // namespace

absl::Status CheckTable(const Table& table) {
  if (table.version != kTableVersion) {
    return absl::FailedPreconditionError(absl::StrCat("the kernel table is version ", table.version, ", this program needs version ",
                                                      kTableVersion));
  }
  // Entries are only ever added at the end, so a shorter table is an older one: RequireOperations finds what it lacks.
  if (table.size < offsetof(Table, embedding)) {
    return absl::FailedPreconditionError(absl::StrCat("the kernel table has ", table.size, " bytes, this program needs at least ",
                                                      offsetof(Table, embedding)));
  }
  if (table.name == nullptr) return absl::FailedPreconditionError("the kernel table has no name");
  return absl::OkStatus();
}

absl::StatusOr<const Table*> OpenPlugin(const std::string& path) {
  void* object = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (object == nullptr) {
    const char* reason = dlerror();
    return absl::NotFoundError(absl::StrCat(path, ": ", reason == nullptr ? "cannot be opened" : reason));
  }
  auto entry = reinterpret_cast<PluginEntry>(dlsym(object, kPluginSymbol));
  const Table* table = nullptr;
  absl::Status status;
  if (entry == nullptr) {
    status = absl::NotFoundError(absl::StrCat(path, ": exports no ", kPluginSymbol, ", so it is no kernel plug-in"));
  } else if (table = entry(kTableVersion); table == nullptr) {
    status = absl::NotFoundError(absl::StrCat(path, ": this back end cannot work on this machine"));
  } else if (absl::Status check = CheckTable(*table); !check.ok()) {
    status = absl::Status(check.code(), absl::StrCat(path, ": ", check.message()));
  }
  if (status.ok()) return table;
  dlclose(object);
  return status;
}

absl::StatusOr<const Table*> FindTable(std::string_view name, const LoadSources& sources) {
  std::vector<std::string> tried;
  for (const Table* table : sources.built_in) {
    if (table == nullptr) continue;
    if (absl::Status status = CheckTable(*table); !status.ok()) return status;
    if (name == table->name) return table;
    tried.push_back(absl::StrCat("built-in ", table->name));
  }
  for (const std::string& path : sources.plugin_paths) {
    absl::StatusOr<const Table*> table = OpenPlugin(path);
    if (absl::IsFailedPrecondition(table.status())) return table.status();
    if (table.ok() && name == (*table)->name) return table;
    tried.push_back(table.ok() ? absl::StrCat(path, ": is ", (*table)->name) : std::string(table.status().message()));
  }
  return absl::NotFoundError(absl::StrCat("no kernel back end called ", std::string(name), "; tried: ",
                                          tried.empty() ? "nothing" : absl::StrJoin(tried, "; ")));
}

absl::Status RequireOperations(const Table& table, const std::vector<std::string_view>& operations) {
  std::vector<std::string> missing;  // Debian's absl has its own string_view: std::string crosses
  for (std::string_view name : operations) {
    const OperationField* found = nullptr;
    for (const OperationField& field : kFields) {
      if (field.name == name) found = &field;
    }
    if (found == nullptr) return absl::InvalidArgumentError(absl::StrCat("no operation is called ", std::string(name)));
    if (!HasField(table, *found)) missing.emplace_back(name);
  }
  if (missing.empty()) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat("the ", table.name, " back end lacks: ", absl::StrJoin(missing, ", ")));
}

std::vector<std::string_view> OperationNames() {
  std::vector<std::string_view> names;
  for (const OperationField& field : kFields) names.push_back(field.name);
  return names;
}

}  // namespace phalanx::kernels
