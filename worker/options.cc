#include "worker/options.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace phalanx::worker {
namespace {

constexpr std::pair<const char*, kernels::CpuIsa> kIsas[] = {
    {"auto", kernels::kIsaAuto},         {"portable", kernels::kIsaPortable},     {"avx2", kernels::kIsaAvx2},
    {"avx512", kernels::kIsaAvx512},     {"avx512_bf16", kernels::kIsaAvx512Bf16}, {"amx_bf16", kernels::kIsaAmxBf16},
};

constexpr std::pair<const char*, model::LoadFormat> kLoadFormats[] = {
    {"auto", model::LoadFormat::kAuto},
    {"safetensors", model::LoadFormat::kSafetensors},
    {"gguf", model::LoadFormat::kGguf},
    {"dummy", model::LoadFormat::kDummy},
};

absl::StatusOr<kernels::DType> ResolveDType(const std::string& dtype) {
  if (dtype == "auto" || dtype == "bfloat16") return kernels::kBF16;
  if (dtype == "float32" || dtype == "float") return kernels::kF32;
  return absl::UnimplementedError(absl::StrCat("--dtype ", dtype, " is not served yet: use bfloat16 or float32"));
}

absl::StatusOr<int32_t> ResolveContext(const WorkerOptions& options, const model::ModelConfig& config) {
  if (!options.max_model_len) return config.max_position;
  if (*options.max_model_len > config.max_position) {
    return absl::InvalidArgumentError(absl::StrCat("--max-model-len ", *options.max_model_len, " is more than the model was made for: ",
                                                   config.max_position, " (max_position_embeddings)"));
  }
  return static_cast<int32_t>(*options.max_model_len);
}

constexpr uint64_t kLargeGpu = uint64_t{70} << 30;  // from here on vLLM takes its larger defaults

int32_t ResolveSequences(const WorkerOptions& options, const DeviceKind& device) {
  if (options.max_num_seqs) return static_cast<int32_t>(*options.max_num_seqs);
  return device.gpu && device.memory_total >= kLargeGpu ? 1024 : 256;
}

// Without chunks a prompt is computed in one step, so a step must hold the longest one.
absl::StatusOr<int32_t> ResolveStepTokens(const WorkerOptions& options, const DeviceKind& device, int32_t context, int32_t sequences) {
  if (!options.max_num_batched_tokens) {
    const int32_t usual = !device.gpu ? kCpuStepTokens : device.memory_total >= kLargeGpu ? 8192 : 2048;
    return std::max(options.enable_chunked_prefill ? usual : context, sequences);
  }
  const int64_t tokens = *options.max_num_batched_tokens;
  if (tokens < sequences) {
    return absl::InvalidArgumentError(absl::StrCat("--max-num-batched-tokens ", tokens, " is less than --max-num-seqs ", sequences,
                                                   ": each running sequence needs one token a step"));
  }
  if (!options.enable_chunked_prefill && tokens < context) {
    return absl::InvalidArgumentError(absl::StrCat("--max-num-batched-tokens ", tokens, " is less than the context of ", context,
                                                   ", which --no-enable-chunked-prefill needs in one step"));
  }
  return static_cast<int32_t>(tokens);
}

}  // namespace

void BindOptions(services::OptionSet& set, WorkerOptions& o) {
  set.Group("Server");
  set.Add("listen", &o.listen, "where to listen: unix:PATH or HOST:PORT");
  set.Add("served-model-name", &o.served_model_name, "name in GetInfo and in the metrics", {.shown_default = "the model as typed"});
  set.Add("max-num-queued-reqs", &o.max_num_queued_reqs, "waiting sequences; more are refused", {.min = 1});
  set.Add("shutdown-timeout", &o.shutdown_timeout_s, "running sequences may finish for so long after SIGTERM", {.unit = "s", .min = 0});
  set.Group("Model");
  set.Add("model", &o.model, "folder in Hugging Face layout, or a .gguf file");
  set.Add("load-format", &o.load_format,
          "auto, safetensors or gguf: what the model must be; dummy: made-up weights, only its configuration is read",
          {.choices = {"auto", "safetensors", "gguf", "dummy"}});
  set.Add("dtype", &o.dtype, "of weights, activations and KV cache; auto = bfloat16",
          {.choices = {"auto", "bfloat16", "float32", "float", "float16", "half"}});
  set.Add("max-model-len", &o.max_model_len, "prompt and output of one sequence",
          {.unit = "tokens", .shown_default = "from the model", .min = 2, .max = 1 << 24, .suffixes = true});
  set.Group("Device");
  set.Add("device", &o.device, "where the model runs", {.choices = {"auto", "cpu", "cuda"}});
  set.Add("threads", &o.threads, "of the CPU back end; 0 = all cores this process may run on", {.min = 0, .max = 1024});
  set.Add("cpu-isa", &o.cpu_isa, "highest instruction set to use",
          {.choices = {"auto", "portable", "avx2", "avx512", "avx512_bf16", "amx_bf16"}});
  set.Add("enforce-eager", &o.enforce_eager, "do not record decode steps as graphs (the CPU has none anyway)");
  set.Group("Ranks");
  set.Add("tensor-parallel-size", &o.tensor_parallel_size, "ranks that share one model, a process each (on the CPU so far)",
          {.alias = "-tp", .min = 1, .max = 64});
  set.Add("nnodes", &o.nnodes, "hosts that the ranks are on; also LWS_GROUP_SIZE", {.alias = "-n", .min = 1, .max = 64});
  set.Add("node-rank", &o.node_rank, "which of them this is; above 0 it serves nothing itself; also LWS_WORKER_INDEX",
          {.alias = "-r", .min = 0, .max = 63});
  set.Add("master-addr", &o.master_addr, "address of host 0, to which the ranks come; also LWS_LEADER_ADDRESS");
  set.Add("master-port", &o.master_port, "its port for that",
          {.shown_default = "29501, any free one with one host", .min = 0, .max = 65535});
  set.Add("distributed-timeout-seconds", &o.distributed_timeout_s, "until all ranks must have come, and until all must have loaded",
          {.unit = "s", .min = 1, .max = 86400});
  set.Add("tp-interface", &o.tp_interface, "interface or address that this host's ranks use among themselves",
          {.shown_default = "the one of --master-addr"});
  set.Add("tp-secret-file", &o.tp_secret_file, "file with the secret by which the ranks of several hosts know each other; also PHALANX_TP_SECRET",
          {.shown_default = "none"});
  set.Add("tp-rank", &o.tp_rank, "", {.hidden = true});
  set.Group("Cache and scheduler");
  set.Add("max-num-seqs", &o.max_num_seqs, "sequences in one step",
          {.shown_default = "256, 1024 on a GPU of 70 GiB or more", .min = 1, .max = 65536});
  set.Add("max-num-batched-tokens", &o.max_num_batched_tokens, "tokens in one step",
          {.unit = "tokens", .shown_default = "512 on a CPU, 2048 on a GPU, 8192 on one of 70 GiB or more", .min = 1, .max = 1 << 20, .suffixes = true});
  set.Add("block-size", &o.block_size, "tokens in a KV block", {.unit = "tokens", .choices = {"8", "16", "32", "64", "128"}});
  set.Add("gpu-memory-utilization", &o.gpu_memory_utilization, "share of the device's memory to use", {.min = 0.01, .max = 1});
  set.Add("kv-cache-memory-bytes", &o.kv_cache_memory_bytes, "size of the KV cache; overrides --gpu-memory-utilization",
          {.unit = "bytes", .shown_default = "from --gpu-memory-utilization", .min = 1, .suffixes = true});
  set.Add("enable-prefix-caching", &o.enable_prefix_caching, "reuse KV blocks of equal prefixes");
  set.Add("enable-chunked-prefill", &o.enable_chunked_prefill, "compute long prompts in parts, beside running sequences");
  set.Add("max-logprobs", &o.max_logprobs, "highest logprobs a request may ask for; -1 = all that the kernels give", {.min = -1});
  set.Group("Log");
  set.Add("log-level", &o.log.level, "least level that is written", {.choices = {"debug", "info", "warning", "error"}});
  set.Add("log-format", &o.log.format, "of log lines", {.choices = {"text", "json"}});
}

absl::StatusOr<exec::ExecutorOptions> ResolveExecutor(const WorkerOptions& options, const model::ModelConfig& config,
                                                      const DeviceKind& device) {
  exec::ExecutorOptions out;
  out.model_path = options.model;
  for (const auto& [name, format] : kLoadFormats) {
    if (options.load_format == name) out.load_format = format;
  }
  PHX_ASSIGN_OR_RETURN(out.dtype, ResolveDType(options.dtype));
  out.kv_dtype = out.dtype;
  PHX_ASSIGN_OR_RETURN(out.max_model_len, ResolveContext(options, config));
  out.max_num_seqs = ResolveSequences(options, device);
  PHX_ASSIGN_OR_RETURN(out.max_num_batched_tokens, ResolveStepTokens(options, device, out.max_model_len, out.max_num_seqs));
  out.block_size = options.block_size;
  out.graphs = !options.enforce_eager;
  out.kv_cache_bytes = static_cast<uint64_t>(options.kv_cache_memory_bytes.value_or(0));
  out.gpu_memory_utilization = options.gpu_memory_utilization;
  return out;
}

ServeOptions ResolveServe(const WorkerOptions& options, const model::ModelConfig& config, const exec::ExecutorOptions& executor) {
  ServeOptions out;
  out.listen = options.listen;
  out.model_name = options.served_model_name.empty() ? options.model : options.served_model_name;
  out.architecture = config.architecture;
  out.dtype = executor.dtype == kernels::kBF16 ? "bfloat16" : "float32";
  out.eos_ids = config.eos_token_ids;
  out.max_logprobs = options.max_logprobs < 0 ? kernels::kMaxTopLogprobs : std::min(options.max_logprobs, kernels::kMaxTopLogprobs);
  out.prefix_caching = options.enable_prefix_caching;
  out.chunked_prefill = options.enable_chunked_prefill;
  out.max_queued = options.max_num_queued_reqs;
  out.gpu_memory_utilization = options.gpu_memory_utilization;
  out.shutdown_timeout_s = options.shutdown_timeout_s;
  return out;
}

kernels::DeviceOptions ResolveDevice(const WorkerOptions& options) {
  kernels::DeviceOptions out{0, options.threads, kernels::kIsaAuto};
  for (const auto& [name, isa] : kIsas) {
    if (options.cpu_isa == name) out.isa_cap = isa;
  }
  return out;
}

}  // namespace phalanx::worker
