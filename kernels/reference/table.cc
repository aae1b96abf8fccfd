// The twin's table: host memory, no streams, no threads.
#include <cstdio>
#include <cstdlib>
#include <new>

#include "kernels/reference/reference.h"

namespace phalanx::kernels {

struct Device {
  int unused = 0;
};

namespace reference {
namespace {

Code Create(const DeviceOptions*, Device** device, char* error, size_t error_size) {
  *device = new (std::nothrow) Device;
  if (*device != nullptr) return kOk;
  std::snprintf(error, error_size, "out of memory");
  return kOutOfMemory;
}
void Destroy(Device* device) { delete device; }
Code Info(Device*, DeviceInfo* out) {
  *out = DeviceInfo{};
  std::snprintf(out->name, sizeof(out->name), "reference");
  out->num_threads = 1;
  out->isa = kIsaPortable;
  return kOk;
}
const char* LastError(Device*) { return "shapes or dtypes that the operation does not take"; }
Code Alloc(Device*, size_t bytes, void** out) {
  *out = std::aligned_alloc(64, (bytes + 64) / 64 * 64);
  return *out == nullptr ? kOutOfMemory : kOk;
}
void Free(Device*, void* memory) { std::free(memory); }
Code CopyToDevice(Device*, void* to, const void* from, size_t bytes, Stream) {
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
uint64_t PackedBytes(Device*, int64_t n, int64_t k, DType dtype) { return static_cast<uint64_t>(n * k) * DTypeBytes(dtype); }
Code PackWeight(Device* device, Weight* weight, const void* rows, void* to, Stream) {
  if (!IsModelDType(weight->dtype)) return kUnsupported;
  weight->bytes = PackedBytes(device, weight->n, weight->k, weight->dtype);
  weight->layout = 0;
  weight->data = to;
  std::memcpy(to, rows, weight->bytes);
  return kOk;
}

Table MakeTable() {
  Table t{};
  t.version = kTableVersion;
  t.size = sizeof(Table);
  t.name = "reference";
  t.create = Create;
  t.destroy = Destroy;
  t.info = Info;
  t.last_error = LastError;
  t.alloc = t.host_alloc = Alloc;
  t.free = t.host_free = Free;
  t.copy_to_device = t.copy_to_host = CopyToDevice;
  t.fill_zero = FillZero;
  t.stream_create = StreamCreate;
  t.stream_destroy = StreamDestroy;
  t.stream_synchronize = StreamSynchronize;
  t.event_create = EventCreate;
  t.event_destroy = EventDestroy;
  t.event_record = EventRecord;
  t.event_wait = t.event_query = EventDone;
  t.packed_bytes = PackedBytes;
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
}  // namespace reference

const Table* ReferenceTable() {
  static const Table table = reference::MakeTable();
  return &table;
}

}  // namespace phalanx::kernels
