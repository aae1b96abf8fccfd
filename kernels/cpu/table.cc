// The CPU's table: device, memory, weights; the operations are in their own files.
#include <sys/sysinfo.h>

#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <system_error>

#include "kernels/cpu/device.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/pack.h"

namespace phalanx::kernels {
namespace cpu {
namespace {

const Level* LevelFor(CpuIsa isa) {
  switch (isa) {
    case kIsaAmxBf16: return AmxLevel();
    case kIsaAvx512Bf16: return Avx512Bf16Level();
    case kIsaAvx512: return Avx512Level();
    case kIsaAvx2: return Avx2Level();
    default: return PortableLevel();
  }
}

Code Create(const DeviceOptions* options, Device** device, char* error, size_t error_size) {
  CpuIsa isa;
  if (!ChooseIsa(static_cast<CpuIsa>(options->isa_cap), std::getenv("PHALANX_CPU_ISA"), DetectIsa(), &isa, error, error_size)) {
    return kUnsupported;
  }
  const int threads = options->num_threads > 0 ? options->num_threads : UsableCores();
  if (threads > 1024) {
    std::snprintf(error, error_size, "num_threads %d is out of range", threads);
    return kUnsupported;
  }
  try {
    *device = new Device(LevelFor(isa), threads);
    return kOk;
  } catch (const std::bad_alloc&) {
    std::snprintf(error, error_size, "out of memory");
  } catch (const std::system_error& e) {
    std::snprintf(error, error_size, "cannot start %d threads: %s", threads, e.what());
  }
  return kOutOfMemory;
}

void Destroy(Device* device) { delete device; }

void ModelName(char* out, size_t size) {
  std::snprintf(out, size, "CPU");
  FILE* file = std::fopen("/proc/cpuinfo", "r");
  if (file == nullptr) return;
  char line[256];
  while (std::fgets(line, sizeof(line), file) != nullptr) {
    if (std::strncmp(line, "model name", 10) != 0) continue;
    const char* value = std::strchr(line, ':');
    if (value == nullptr) break;
    while (*value == ':' || *value == ' ') ++value;
    std::snprintf(out, size, "%.*s", static_cast<int>(std::strcspn(value, "\n")), value);
    break;
  }
  std::fclose(file);
}

// MemAvailable, which counts the page cache that can be dropped; the container's own limit is the engine's to apply.
uint64_t MemoryAvailable(uint64_t fallback) {
  FILE* file = std::fopen("/proc/meminfo", "r");
  if (file == nullptr) return fallback;
  char line[128];
  unsigned long long kib = 0;
  while (std::fgets(line, sizeof(line), file) != nullptr) {
    if (std::sscanf(line, "MemAvailable: %llu", &kib) == 1) break;
  }
  std::fclose(file);
  return kib == 0 ? fallback : kib * 1024;
}

Code Info(Device* device, DeviceInfo* out) {
  *out = DeviceInfo{};
  char model[80];
  ModelName(model, sizeof(model));
  std::snprintf(out->name, sizeof(out->name), "%s, %s, %d thread%s", model, IsaName(device->level->isa), device->pool.threads(),
                device->pool.threads() == 1 ? "" : "s");
  struct sysinfo s {};
  if (sysinfo(&s) == 0) {
    out->memory_total = static_cast<uint64_t>(s.totalram) * s.mem_unit;
    out->memory_free = MemoryAvailable(static_cast<uint64_t>(s.freeram) * s.mem_unit);
  }
  out->num_threads = device->pool.threads();
  out->isa = device->level->isa;
  return kOk;
}

const char* LastError(Device* device) { return device->error; }

Code Alloc(Device* device, size_t bytes, void** out) {
  *out = device->slabs.Take(bytes);
  return *out == nullptr ? device->Fail(kOutOfMemory, "alloc: no memory for %zu bytes", bytes) : kOk;
}
void Free(Device* device, void* memory) { device->slabs.Give(memory); }
Code Copy(Device*, void* to, const void* from, size_t bytes, Stream) {
  if (bytes > 0) std::memcpy(to, from, bytes);
  return kOk;
}
Code FillZero(Device*, void* memory, size_t bytes, Stream) {
  if (bytes > 0) std::memset(memory, 0, bytes);
  return kOk;
}

Code StreamCreate(Device*, Stream* out) {
  *out = nullptr;
  return kOk;
}
void StreamDestroy(Device*, Stream) {}
Code StreamSynchronize(Device*, Stream) { return kOk; }
Code EventCreate(Device*, Event* out) {
  *out = nullptr;
  return kOk;
}
void EventDestroy(Device*, Event) {}
Code EventRecord(Device*, Event, Stream) { return kOk; }
Code EventDone(Device*, Event) { return kOk; }

uint64_t PackedSize(Device*, int64_t n, int64_t k, DType dtype) { return PackedBytes(n, k, dtype); }

Code PackWeight(Device* device, Weight* weight, const void* rows, void* to, Stream) {
  if (!IsModelDType(weight->dtype) || weight->n < 1 || weight->k < 1) {
    return device->Fail(kBadShape, "pack_weight: [%lld, %lld] of dtype %d", static_cast<long long>(weight->n),
                        static_cast<long long>(weight->k), weight->dtype);
  }
  device->pool.For(static_cast<int>(Panels(weight->n)),
                   [&](int panel, int) { PackPanel(rows, weight->n, weight->k, weight->dtype, panel, to); });
  weight->data = to;
  weight->layout = weight->dtype == kBF16 ? kLayoutBf16 : kLayoutF32;
  weight->bytes = PackedBytes(weight->n, weight->k, weight->dtype);
  return kOk;
}

Table MakeTable() {
  Table t{};
  t.version = kTableVersion;
  t.size = sizeof(Table);
  t.name = "cpu";
  t.create = Create;
  t.destroy = Destroy;
  t.info = Info;
  t.last_error = LastError;
  t.alloc = t.host_alloc = Alloc;
  t.free = t.host_free = Free;
  t.copy_to_device = t.copy_to_host = Copy;
  t.fill_zero = FillZero;
  t.stream_create = StreamCreate;
  t.stream_destroy = StreamDestroy;
  t.stream_synchronize = StreamSynchronize;
  t.event_create = EventCreate;
  t.event_destroy = EventDestroy;
  t.event_record = EventRecord;
  t.event_wait = t.event_query = EventDone;
  t.packed_bytes = PackedSize;
  t.pack_weight = PackWeight;
  t.embedding = Embedding;
  t.rms_norm = RmsNorm;
  t.add_rms_norm = AddRmsNorm;
  t.linear = Linear;
  t.rope_append = RopeAppend;
  t.attention = Attention;
  t.silu_mul = SiluMul;
  t.gather_rows = GatherRows;
  t.take_ids = TakeIds;
  t.sampling_state_set = SamplingStateSet;
  t.sample = Sample;
  t.logprobs = Logprobs;
  return t;
}

}  // namespace
}  // namespace cpu

const Table* CpuTable() {
  static const Table table = cpu::MakeTable();
  return &table;
}

}  // namespace phalanx::kernels
