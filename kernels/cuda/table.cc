// The CUDA plug-in's table: device, memory, streams, events, graphs; the operations are in their own files.
//
// The one exported symbol is PhalanxKernelTable (kernels/load.h). No exception leaves: nothing here throws, and memory is asked for with
// nothrow. CUDA keeps a current device per host thread, so every entry sets it first.
#include <nvtx3/nvToolsExt.h>

#include <cstdlib>
#include <new>

#include "kernels/cuda/device.h"
#include "kernels/cuda/gemm.h"

namespace phalanx::kernels::cuda {
namespace {

cudaError_t Use(const Device* device) {
  thread_local int current = -1;  // nothing else in the process uses CUDA
  if (current == device->index) return cudaSuccess;
  const cudaError_t status = cudaSetDevice(device->index);
  current = status == cudaSuccess ? device->index : -1;
  return status;
}

// OnDevice<f>::Call is f with its device made current.
template <auto kFunction>
struct OnDevice;
template <class... Args, Code (*kFunction)(Device*, Args...)>
struct OnDevice<kFunction> {
  static Code Call(Device* device, Args... args) {
    Use(device);
    return kFunction(device, args...);
  }
};

cudaEvent_t EventOf(Event event) { return reinterpret_cast<cudaEvent_t>(event); }
cudaGraphExec_t GraphOf(Graph graph) { return reinterpret_cast<cudaGraphExec_t>(graph); }

// ---- device ---------------------------------------------------------------------------------------------------------

void Destroy(Device* device) {
  if (device == nullptr) return;
  Use(device);
  if (device->stream != nullptr) cudaStreamSynchronize(device->stream);
  GemmDestroy(device);
  cudaFree(device->scratch);
  if (device->stream != nullptr) cudaStreamDestroy(device->stream);
  delete device;
}

Code Open(Device* device, int index) {
  int count = 0;
  // Without a driver this is "driver too old" (35), without a card "no device" (100): both mean that there is no GPU here.
  if (const cudaError_t status = cudaGetDeviceCount(&count); status != cudaSuccess || count == 0) {
    const char* reason = status == cudaSuccess ? "the driver lists none" : cudaGetErrorString(status);
    return device->Fail(kUnsupported, "no usable NVIDIA GPU: %s", reason);
  }
  if (index < 0 || index >= count) return device->Fail(kUnsupported, "GPU %d: this machine has %d", index, count);
  device->index = index;
  int major = 0, minor = 0;
  Code code = device->Check(Use(device), "cudaSetDevice");
  const auto get = [&](int* to, cudaDeviceAttr attribute) {
    if (code == kOk) code = device->Check(cudaDeviceGetAttribute(to, attribute, index), "cudaDeviceGetAttribute");
  };
  get(&device->sm_count, cudaDevAttrMultiProcessorCount);
  get(&device->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  get(&major, cudaDevAttrComputeCapabilityMajor);
  get(&minor, cudaDevAttrComputeCapabilityMinor);
  if (code != kOk) return code;
  device->capability = major * 10 + minor;
  if (const cudaError_t status = ProbeCode(); status != cudaSuccess) {
    return device->Fail(kUnsupported, "GPU %d has compute capability %d.%d, for which this plug-in was not built (CUDA_ARCHS): %s", index,
                        major, minor, cudaGetErrorString(status));
  }
  if (code = device->Check(cudaStreamCreateWithFlags(&device->stream, cudaStreamNonBlocking), "cudaStreamCreate"); code != kOk) return code;
  if (code = device->Check(cudaMalloc(&device->scratch, kScratchBytes), "scratch memory"); code != kOk) return code;
  device->scratch_bytes = kScratchBytes;
  if (code = GemmCreate(device); code != kOk) return code;
  code = device->Check(cudaMemsetAsync(device->scratch, 0, kScratchBytes, device->stream), "scratch memory");
  return code == kOk ? device->Check(cudaStreamSynchronize(device->stream), "scratch memory") : code;
}

Code Create(const DeviceOptions* options, Device** out, char* error, size_t error_size) {
  Device* device = new (std::nothrow) Device;
  if (device == nullptr) {
    std::snprintf(error, error_size, "out of memory");
    return kOutOfMemory;
  }
  const Code code = Open(device, options->device_index);
  if (code == kOk) {
    *out = device;
    return kOk;
  }
  std::snprintf(error, error_size, "%s", device->error);
  Destroy(device);
  cudaGetLastError();  // a failed create leaves nothing behind
  return code;
}

Code Info(Device* device, DeviceInfo* out) {
  *out = DeviceInfo{};
  cudaDeviceProp properties;
  Code code = device->Check(cudaGetDeviceProperties(&properties, device->index), "cudaGetDeviceProperties");
  if (code != kOk) return code;
  int runtime = 0;
  cudaRuntimeGetVersion(&runtime);
  const unsigned library = static_cast<unsigned>(LibraryVersion() % 1000000);
  std::snprintf(out->name, sizeof(out->name), "%.40s, compute %d.%d, CUDA %d.%d, cuBLASLt %u.%u.%u", properties.name,
                device->capability / 10, device->capability % 10, runtime / 1000, runtime % 1000 / 10, library / 10000, library / 100 % 100,
                library % 100);
  size_t free = 0, total = 0;
  if (code = device->Check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo"); code != kOk) return code;
  out->memory_free = free;
  out->memory_total = total;
  out->num_threads = 1;
  return kOk;
}

const char* LastError(Device* device) { return device->error; }

// ---- memory ---------------------------------------------------------------------------------------------------------

// A request that cannot be met is the caller's to handle; CUDA's record of it must not fail the next launch.
Code Taken(Device* device, cudaError_t status, const char* what, size_t bytes) {
  if (status == cudaSuccess) return kOk;
  if (status != cudaErrorMemoryAllocation && status != cudaErrorInvalidValue) return device->Check(status, what);
  cudaGetLastError();
  return device->Fail(kOutOfMemory, "%s: no memory for %zu bytes", what, bytes);
}

Code Alloc(Device* device, size_t bytes, void** out) {
  *out = nullptr;
  return Taken(device, cudaMalloc(out, bytes == 0 ? 1 : bytes), "alloc", bytes);
}
void Free(Device* device, void* memory) {
  Use(device);
  cudaFree(memory);
}
Code HostAlloc(Device* device, size_t bytes, void** out) {
  *out = nullptr;
  return Taken(device, cudaHostAlloc(out, bytes == 0 ? 1 : bytes, cudaHostAllocDefault), "host_alloc", bytes);
}
void HostFree(Device* device, void* memory) {
  Use(device);
  cudaFreeHost(memory);
}
Code CopyToDevice(Device* device, void* to, const void* from, size_t bytes, Stream stream) {
  if (bytes == 0) return kOk;
  return device->Check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, device->StreamOf(stream)), "copy_to_device");
}
Code CopyToHost(Device* device, void* to, const void* from, size_t bytes, Stream stream) {
  if (bytes == 0) return kOk;
  return device->Check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, device->StreamOf(stream)), "copy_to_host");
}
Code FillZero(Device* device, void* memory, size_t bytes, Stream stream) {
  if (bytes == 0) return kOk;
  return device->Check(cudaMemsetAsync(memory, 0, bytes, device->StreamOf(stream)), "fill_zero");
}

// ---- streams, events ------------------------------------------------------------------------------------------------

Code StreamCreate(Device* device, Stream* out) {
  cudaStream_t stream = nullptr;
  const Code code = device->Check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream_create");
  *out = reinterpret_cast<Stream>(stream);
  return code;
}
void StreamDestroy(Device* device, Stream stream) {
  Use(device);
  if (stream != nullptr) cudaStreamDestroy(device->StreamOf(stream));
}
Code StreamSynchronize(Device* device, Stream stream) {
  return device->Check(cudaStreamSynchronize(device->StreamOf(stream)), "stream_synchronize");
}

Code EventCreate(Device* device, Event* out) {
  cudaEvent_t event = nullptr;
  const Code code = device->Check(cudaEventCreate(&event), "event_create");
  *out = reinterpret_cast<Event>(event);
  return code;
}
void EventDestroy(Device* device, Event event) {
  Use(device);
  if (event != nullptr) cudaEventDestroy(EventOf(event));
}
Code EventRecord(Device* device, Event event, Stream stream) {
  return device->Check(cudaEventRecord(EventOf(event), device->StreamOf(stream)), "event_record");
}
Code EventWait(Device* device, Event event) { return device->Check(cudaEventSynchronize(EventOf(event)), "event_wait"); }
Code EventQuery(Device* device, Event event) {
  const cudaError_t status = cudaEventQuery(EventOf(event));
  if (status != cudaErrorNotReady) return device->Check(status, "event_query");
  cudaGetLastError();  // "not ready" is no failure of the next launch
  return kNotReady;
}

Code EventElapsed(Device* device, Event begin, Event end, float* ms) {
  return device->Check(cudaEventElapsedTime(ms, EventOf(begin), EventOf(end)), "event_elapsed");
}

// NVTX: nothing but a null check unless a profiler is attached.
void RangePush(const char* name) { nvtxRangePushA(name); }
void RangePop() { nvtxRangePop(); }

// ---- graphs ---------------------------------------------------------------------------------------------------------

// Thread-local mode: what other threads of the process do (copies, allocations) cannot break the capture. Run the operations once before
// the first capture: CUDA loads a kernel at its first launch.
Code GraphBegin(Device* device, Stream stream) {
  return device->Check(cudaStreamBeginCapture(device->StreamOf(stream), cudaStreamCaptureModeThreadLocal), "graph_begin");
}

Code GraphEnd(Device* device, Stream stream, Graph* out) {
  *out = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t instance = nullptr;
  Code code = device->Check(cudaStreamEndCapture(device->StreamOf(stream), &graph), "graph_end: capture");
  if (code == kOk) code = device->Check(cudaGraphInstantiate(&instance, graph, 0), "graph_end: instantiate");
  if (graph != nullptr) cudaGraphDestroy(graph);
  if (code == kOk) code = device->Check(cudaGraphUpload(instance, device->StreamOf(stream)), "graph_end: upload");
  if (code == kOk) {
    *out = reinterpret_cast<Graph>(instance);
  } else if (instance != nullptr) {
    cudaGraphExecDestroy(instance);
  }
  return code;
}

Code GraphLaunch(Device* device, Graph graph, Stream stream) {
  return device->Check(cudaGraphLaunch(GraphOf(graph), device->StreamOf(stream)), "graph_launch");
}
void GraphDestroy(Device* device, Graph graph) {
  Use(device);
  if (graph != nullptr) cudaGraphExecDestroy(GraphOf(graph));
}

// ---- the table ------------------------------------------------------------------------------------------------------

void FillHost(Table* t) {
  t->version = kTableVersion;
  t->size = sizeof(Table);
  t->name = "cuda";
  t->create = Create;
  t->destroy = Destroy;
  t->info = OnDevice<Info>::Call;
  t->last_error = LastError;
  t->alloc = OnDevice<Alloc>::Call;
  t->free = Free;
  t->host_alloc = OnDevice<HostAlloc>::Call;
  t->host_free = HostFree;
  t->copy_to_device = OnDevice<CopyToDevice>::Call;
  t->copy_to_host = OnDevice<CopyToHost>::Call;
  t->fill_zero = OnDevice<FillZero>::Call;
  t->stream_create = OnDevice<StreamCreate>::Call;
  t->stream_destroy = StreamDestroy;
  t->stream_synchronize = OnDevice<StreamSynchronize>::Call;
  t->event_create = OnDevice<EventCreate>::Call;
  t->event_destroy = EventDestroy;
  t->event_record = OnDevice<EventRecord>::Call;
  t->event_wait = OnDevice<EventWait>::Call;
  t->event_query = OnDevice<EventQuery>::Call;
  t->event_elapsed = OnDevice<EventElapsed>::Call;
  t->range_push = RangePush;
  t->range_pop = RangePop;
  t->graph_begin = OnDevice<GraphBegin>::Call;
  t->graph_end = OnDevice<GraphEnd>::Call;
  t->graph_launch = OnDevice<GraphLaunch>::Call;
  t->graph_destroy = GraphDestroy;
}

// The build says which families it holds (CMakeLists.txt); a missing one is null and is found at load.
void FillOperations(Table* t) {
  t->packed_bytes = PackedBytes;
  t->pack_weight = OnDevice<PackWeight>::Call;
  t->embedding = OnDevice<Embedding>::Call;
  t->rms_norm = OnDevice<RmsNorm>::Call;
  t->add_rms_norm = OnDevice<AddRmsNorm>::Call;
  t->linear = OnDevice<Linear>::Call;
  t->rope_append = OnDevice<RopeAppend>::Call;
  t->silu_mul = OnDevice<SiluMul>::Call;
  t->gather_rows = OnDevice<GatherRows>::Call;
  t->take_ids = OnDevice<TakeIds>::Call;
#ifdef PHALANX_CUDA_ATTENTION
  t->attention = OnDevice<Attention>::Call;
  t->rope_attention = OnDevice<RopeAttention>::Call;
#endif
#ifdef PHALANX_CUDA_SAMPLING
  t->sampling_state_set = OnDevice<SamplingStateSet>::Call;
  t->sample = OnDevice<Sample>::Call;
#endif
#ifdef PHALANX_CUDA_LOGPROBS
  t->logprobs = OnDevice<Logprobs>::Call;
#endif
}

}  // namespace
}  // namespace phalanx::kernels::cuda

extern "C" __attribute__((visibility("default"))) const phalanx::kernels::Table* PhalanxKernelTable(uint32_t /*host_version*/) {
  static const phalanx::kernels::Table table = [] {
    phalanx::kernels::Table t{};
    phalanx::kernels::cuda::FillHost(&t);
    phalanx::kernels::cuda::FillOperations(&t);
    return t;
  }();
  return &table;
}
