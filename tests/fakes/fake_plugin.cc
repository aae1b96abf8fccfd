// libphalanx_fake_plugin.so: a GPU for tests on machines without one: the CPU's table under the name "cuda", with faults on demand.
//
// The environment says what goes wrong; without it nothing does:
//   PHALANX_FAKE_NAME=cuda            name of the table
//   PHALANX_FAKE_VERSION=N            version of the table
//   PHALANX_FAKE_NO_TABLE=1           the back end cannot work on this machine at all
//   PHALANX_FAKE_CREATE=CODE:TEXT     `create` fails
//   PHALANX_FAKE_MEMORY=TOTAL:FREE    bytes; what is taken counts, and more is refused. Default: 2 GiB, all free
//   PHALANX_FAKE_LACKS=OPERATION      that entry is null
//   PHALANX_FAKE_FAIL=OPERATION:N     its N-th call (from 1) and all later ones fail with kDeviceError
//   PHALANX_FAKE_NAN=N                the N-th call of `linear` from bf16 into f32 (the logits) writes NaN
//   PHALANX_FAKE_PACK_MS=N            `pack_weight` takes that much longer
//   PHALANX_FAKE_WHEN=FILE            FAIL and NAN happen only while FILE is there
//   PHALANX_FAKE_ONCE=FILE            FAIL and NAN happen only while FILE is not there; it is made when one happens
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <string>

#include "kernels/kernels.h"

namespace phalanx::kernels::fake {
namespace {

std::string Env(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

struct Faults {
  std::string fail_operation;
  int64_t fail_at = -1;
  int64_t nan_at = -1;
  std::string when;
  std::string once;
  uint64_t memory_total = uint64_t{2} << 30;
  uint64_t memory_free = uint64_t{2} << 30;

  Faults() {
    const std::string fail = Env("PHALANX_FAKE_FAIL"), memory = Env("PHALANX_FAKE_MEMORY"), nan = Env("PHALANX_FAKE_NAN");
    when = Env("PHALANX_FAKE_WHEN");
    once = Env("PHALANX_FAKE_ONCE");
    if (const size_t colon = fail.find(':'); colon != std::string::npos) {
      fail_operation = fail.substr(0, colon);
      fail_at = std::atoll(fail.c_str() + colon + 1);
    }
    if (!nan.empty()) nan_at = std::atoll(nan.c_str());
    if (const size_t colon = memory.find(':'); colon != std::string::npos) {
      memory_total = std::strtoull(memory.c_str(), nullptr, 10);
      memory_free = std::strtoull(memory.c_str() + colon + 1, nullptr, 10);
    }
  }

  // True if a fault may still happen; the first one that does leaves its mark.
  bool Allowed() {
    if (!when.empty() && ::access(when.c_str(), F_OK) != 0) return false;
    if (struck_ || once.empty()) return true;
    const int fd = ::open(once.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
    if (fd < 0) return false;
    ::close(fd);
    struck_ = true;
    return true;
  }

 private:
  bool struck_ = false;
};

Faults& TheFaults() {
  static Faults faults;
  return faults;
}

std::string last_error;  // ours, if it is not empty; one thread calls a device

// ---- operations that may fail ---------------------------------------------------------------------------------------

// Operation<&Table::linear>::Call is the CPU's, counted.
template <auto kMember, class Function>
struct Operation;
template <auto kMember, class... Args>
struct Operation<kMember, Code (*)(Device*, Args...)> {
  static inline const char* name = "";
  static inline int64_t calls = 0;
  static Code Call(Device* device, Args... args) {
    ++calls;
    Faults& faults = TheFaults();
    if (faults.fail_operation == name && calls >= faults.fail_at && faults.Allowed()) {
      last_error = std::string(name) + ": an illegal memory access was encountered (a planted fault)";
      return kDeviceError;
    }
    return (CpuTable()->*kMember)(device, args...);
  }
};

template <auto kMember, class Function>
void Wrap(Table* table, Function Table::*, const char* name) {
  using Op = Operation<kMember, Function>;
  Op::name = name;
  if (table->*kMember != nullptr) table->*kMember = Op::Call;
}
#define PHX_WRAP(entry) Wrap<&Table::entry>(&table, &Table::entry, #entry)

Code (*counted_linear)(Device*, const LinearArgs*, Stream) = nullptr;

Code LinearWithNan(Device* device, const LinearArgs* args, Stream stream) {
  const Code code = counted_linear(device, args, stream);
  static int64_t logits = 0;
  if (code != kOk || args->out.dtype != kF32 || args->x.dtype == kF32) return code;
  if (++logits != TheFaults().nan_at || !TheFaults().Allowed()) return code;
  for (int64_t i = 0; i < args->out.shape[0] * args->out.shape[1]; ++i) {
    static_cast<float*>(args->out.data)[i] = std::numeric_limits<float>::quiet_NaN();
  }
  return code;
}

Code (*counted_pack)(Device*, Weight*, const void*, void*, Stream) = nullptr;

Code SlowPack(Device* device, Weight* weight, const void* rows, void* to, Stream stream) {
  static const int wait_ms = std::atoi(Env("PHALANX_FAKE_PACK_MS").c_str());
  ::usleep(static_cast<useconds_t>(wait_ms) * 1000);
  return counted_pack(device, weight, rows, to, stream);
}

// ---- memory ---------------------------------------------------------------------------------------------------------

std::map<void*, size_t> taken;
uint64_t taken_bytes = 0;

Code Alloc(Device* device, size_t bytes, void** out) {
  *out = nullptr;
  if (bytes > TheFaults().memory_free - taken_bytes) {
    last_error = "out of memory (a planted limit)";
    return kOutOfMemory;
  }
  const Code code = CpuTable()->alloc(device, bytes, out);
  if (code == kOk) {
    taken[*out] = bytes;
    taken_bytes += bytes;
  }
  return code;
}

void Free(Device* device, void* memory) {
  if (const auto it = taken.find(memory); it != taken.end()) {
    taken_bytes -= it->second;
    taken.erase(it);
  }
  CpuTable()->free(device, memory);
}

Code Info(Device* device, DeviceInfo* out) {
  const Code code = CpuTable()->info(device, out);
  std::snprintf(out->name, sizeof(out->name), "a fake GPU");
  out->memory_total = TheFaults().memory_total;
  out->memory_free = TheFaults().memory_free - taken_bytes;
  return code;
}

Code Create(const DeviceOptions* options, Device** device, char* error, size_t error_size) {
  const std::string fault = Env("PHALANX_FAKE_CREATE");
  const size_t colon = fault.find(':');
  if (colon == std::string::npos) return CpuTable()->create(options, device, error, error_size);
  std::snprintf(error, error_size, "%s", fault.c_str() + colon + 1);
  return static_cast<Code>(std::atoi(fault.c_str()));
}

const char* LastError(Device* device) { return last_error.empty() ? CpuTable()->last_error(device) : last_error.c_str(); }

// ---- the table ------------------------------------------------------------------------------------------------------

void Drop(Table* table, const std::string& name) {
  if (name == "attention") table->attention = nullptr;
  if (name == "sample") table->sample = nullptr;
}

Table MakeTable() {
  static const std::string name = Env("PHALANX_FAKE_NAME").empty() ? "cuda" : Env("PHALANX_FAKE_NAME");
  Table table = *CpuTable();
  table.name = name.c_str();
  if (const std::string version = Env("PHALANX_FAKE_VERSION"); !version.empty()) table.version = std::strtoul(version.c_str(), nullptr, 10);
  PHX_WRAP(copy_to_device);
  PHX_WRAP(copy_to_host);
  PHX_WRAP(stream_synchronize);
  PHX_WRAP(pack_weight);
  PHX_WRAP(embedding);
  PHX_WRAP(rms_norm);
  PHX_WRAP(add_rms_norm);
  PHX_WRAP(linear);
  PHX_WRAP(rope_append);
  PHX_WRAP(attention);
  PHX_WRAP(gather_rows);
  PHX_WRAP(sampling_state_set);
  PHX_WRAP(sample);
  PHX_WRAP(logprobs);
  PHX_WRAP(rope_attention);
  PHX_WRAP(take_ids);
  counted_linear = table.linear;
  table.linear = LinearWithNan;
  counted_pack = table.pack_weight;
  table.pack_weight = SlowPack;
  table.create = Create;
  table.info = Info;
  table.last_error = LastError;
  table.alloc = Alloc;
  table.free = Free;
  Drop(&table, Env("PHALANX_FAKE_LACKS"));
  return table;
}

}  // namespace
}  // namespace phalanx::kernels::fake

extern "C" __attribute__((visibility("default"))) const phalanx::kernels::Table* PhalanxKernelTable(uint32_t /*host_version*/) {
  static const phalanx::kernels::Table table = phalanx::kernels::fake::MakeTable();
  return std::getenv("PHALANX_FAKE_NO_TABLE") != nullptr ? nullptr : &table;
}
