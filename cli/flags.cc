// The table. To add a flag: a row here, a field in the options of the process that owns it.
#include "cli/flags.h"

namespace phalanx::cli {
namespace {

constexpr char kModel[] = "Model";
constexpr char kServer[] = "Server";
constexpr char kChat[] = "Text and chat";
constexpr char kCache[] = "Cache and scheduler";
constexpr char kDevice[] = "Device and processes";
constexpr char kLog[] = "Log";

std::vector<Flag> MakeFlags() {
  return {
      {.group = kModel, .name = "model", .owners = kLauncher, .help = "the same as the positional MODEL", .field = &ServeFlags::model},
      {.group = kModel, .name = "served-model-name", .kind = Kind::kList, .owners = kLauncher,
       .help = "names that requests may use for the model; the first one stands in replies and metrics",
       .shown_default = "MODEL as typed", .field = &ServeFlags::served_model_name},
      {.group = kModel, .name = "tokenizer", .owners = kLauncher,
       .help = "folder, org/name, tokenizer.json or .gguf file of another tokenizer", .shown_default = "the model's",
       .field = &ServeFlags::tokenizer},
      {.group = kModel, .name = "revision", .owners = kLauncher, .help = "branch, tag or commit of an org/name in the cache",
       .shown_default = "main", .field = &ServeFlags::revision},
      {.group = kModel, .name = "download-dir", .owners = kLauncher,
       .help = "where an org/name is looked up; nothing is downloaded", .shown_default = "the Hugging Face cache",
       .field = &ServeFlags::download_dir},
      {.group = kModel, .name = "load-format", .owners = kLauncher | kWorker,
       .help = "auto, safetensors or gguf: what MODEL must be; dummy: made-up weights, only its configuration and tokenizer are read",
       .shown_default = "auto", .field = &ServeFlags::load_format, .only = {"auto", "safetensors", "gguf", "dummy"},
       .why = "weights are read from these containers, or made up", .unset = {"auto"}},
      {.group = kModel, .name = "dtype", .owners = kWorker, .help = "of weights, activations and KV cache; auto = bfloat16",
       .shown_default = "auto", .choices = {"auto", "bfloat16", "float32", "float", "float16", "half"},
       .only = {"auto", "bfloat16", "float32", "float"}, .why = "the CPU computes in bfloat16 or float32"},
      {.group = kModel, .name = "max-model-len", .kind = Kind::kWhole, .owners = kWorker,
       .help = "prompt and output of one sequence; 16k = 16000, 16K = 16384, auto or -1 = from the model",
       .shown_default = "from the model", .unit = "tokens", .min = 2, .max = 1 << 24, .suffixes = true, .unset = {"auto", "-1"}},
      {.group = kModel, .name = "quantization", .help = "weights as they are; none is the one value served so far",
       .shown_default = "none", .alias = "-q", .only = {"none"},
       .why = "weights are computed in bfloat16 or float32 (a quantised .gguf file is widened while loading)", .unset = {"none"}},
      {.group = kModel, .name = "trust-remote-code", .kind = Kind::kSwitch, .help = "accepted; no code of a model is ever run",
       .shown_default = "off", .only = {"true", "false"},
       .note = "--trust-remote-code: accepted, but no code that comes with a model is ever run"},

      {.group = kServer, .name = "host", .owners = kLauncher, .help = "address to listen on", .shown_default = "all addresses",
       .field = &ServeFlags::host},
      {.group = kServer, .name = "port", .owners = kLauncher, .help = "HTTP port; 0 = any free one", .field = &ServeFlags::port, .min = 0,
       .max = 65535},
      {.group = kServer, .name = "api-key", .kind = Kind::kList, .owners = kLauncher,
       .help = "keys, one of which a request must carry as a bearer token; also VLLM_API_KEY", .field = &ServeFlags::api_key,
       .secret = true, .env = "PHALANX_API_KEY"},
      {.group = kServer, .name = "ssl-certfile", .owners = kLauncher, .help = "certificate chain (PEM); turns HTTPS on",
       .shown_default = "none", .field = &ServeFlags::ssl_certfile},
      {.group = kServer, .name = "ssl-keyfile", .owners = kLauncher, .help = "private key (PEM) of the certificate",
       .shown_default = "none", .field = &ServeFlags::ssl_keyfile},
      {.group = kServer, .name = "allowed-origins", .kind = Kind::kList, .owners = kGateway, .help = "origins that browsers may call from",
       .shown_default = "*"},
      {.group = kServer, .name = "allowed-methods", .kind = Kind::kList, .owners = kGateway, .help = "methods they may use",
       .shown_default = "*"},
      {.group = kServer, .name = "allowed-headers", .kind = Kind::kList, .owners = kGateway, .help = "headers they may send",
       .shown_default = "*"},
      {.group = kServer, .name = "allow-credentials", .kind = Kind::kSwitch, .owners = kGateway,
       .help = "they may send cookies and the like", .shown_default = "off"},
      {.group = kServer, .name = "max-body-bytes", .kind = Kind::kWhole, .owners = kGateway, .help = "largest request body",
       .shown_default = "16MiB", .unit = "bytes", .min = 1, .suffixes = true},
      {.group = kServer, .name = "max-connections", .kind = Kind::kWhole, .owners = kGateway,
       .help = "open HTTP connections; more are turned away", .shown_default = "4096", .min = 1, .max = 1 << 20},
      {.group = kServer, .name = "grpc-port", .kind = Kind::kWhole, .owners = kLauncher,
       .help = "port for native gRPC clients (phalanx.v1); plain text and without keys, so keep it inside your network",
       .shown_default = "off", .field = &ServeFlags::grpc_port, .min = 1, .max = 65535},
      {.group = kServer, .name = "grpc-host", .owners = kLauncher, .help = "address of --grpc-port", .field = &ServeFlags::grpc_host},
      {.group = kServer, .name = "shutdown-timeout", .kind = Kind::kReal, .owners = kLauncher,
       .help = "running requests may finish for so long after SIGINT or SIGTERM; a second signal ends all at once",
       .field = &ServeFlags::shutdown_timeout_s, .unit = "s", .min = 0, .max = 86400},

      {.group = kChat, .name = "chat-template", .owners = kRouter,
       .help = "Jinja file, or its text, to use instead of the model's template", .shown_default = "the model's"},
      {.group = kChat, .name = "generation-config", .owners = kRouter,
       .help = "sampling defaults: auto = the model's generation_config.json, vllm = neutral ones, or a folder", .shown_default = "auto"},
      {.group = kChat, .name = "max-logprobs", .kind = Kind::kWhole, .owners = kWorker | kRouter,
       .help = "highest logprobs a request may ask for; -1 = all that can be given", .shown_default = "20", .min = -1},
      {.group = kChat, .name = "seed", .kind = Kind::kWhole, .owners = kRouter,
       .help = "of requests that bring none: the same requests in the same order then give the same samples",
       .shown_default = "random"},
      {.group = kChat, .name = "reasoning-field", .owners = kRouter, .help = "name of the field that carries reasoning text",
       .shown_default = "reasoning_content", .choices = {"reasoning_content", "reasoning", "both"}},
      {.group = kChat, .name = "reasoning-parser", .help = "text between <think> and </think> is split off for every model that has them",
       .shown_default = "from the model", .only = {"deepseek_r1", "qwen3"}, .why = "only the <think> form is read"},
      {.group = kChat, .name = "enable-prompt-tokens-details", .kind = Kind::kSwitch, .owners = kRouter,
       .help = "usage says how many prompt tokens came from the cache", .shown_default = "off"},
      {.group = kChat, .name = "enable-force-include-usage", .kind = Kind::kSwitch, .owners = kRouter,
       .help = "every stream ends with its usage", .shown_default = "off"},

      {.group = kCache, .name = "max-num-seqs", .kind = Kind::kWhole, .owners = kWorker, .help = "sequences in one step of a worker",
       .shown_default = "256, 1024 on a GPU of 70 GiB or more", .min = 1, .max = 65536, .suffixes = true},
      {.group = kCache, .name = "max-num-batched-tokens", .kind = Kind::kWhole, .owners = kWorker, .help = "tokens in one step of a worker",
       .shown_default = "512 on a CPU, 2048 on a GPU, 8192 on one of 70 GiB or more", .unit = "tokens", .min = 1, .max = 1 << 20, .suffixes = true},
      {.group = kCache, .name = "max-num-queued-reqs", .kind = Kind::kWhole, .owners = kRouter,
       .help = "waiting and running requests together; more are refused with 429; 0 = no limit of its own", .shown_default = "0", .min = 0},
      {.group = kCache, .name = "resume-timeout", .kind = Kind::kReal, .owners = kRouter,
       .help = "how long a sequence that lost its worker waits for another", .shown_default = "5", .unit = "s", .min = 0, .max = 3600},
      {.group = kCache, .name = "block-size", .kind = Kind::kWhole, .owners = kWorker, .help = "tokens in a KV block",
       .shown_default = "16", .unit = "tokens", .choices = {"8", "16", "32", "64", "128"}},
      {.group = kCache, .name = "gpu-memory-utilization", .kind = Kind::kReal, .owners = kLauncher,
       .help = "share of the device's memory for weights and KV cache, of all workers together",
       .field = &ServeFlags::gpu_memory_utilization, .min = 0.01, .max = 1},
      {.group = kCache, .name = "kv-cache-memory-bytes", .kind = Kind::kWhole, .owners = kWorker,
       .help = "size of each worker's KV cache; overrides --gpu-memory-utilization", .shown_default = "from --gpu-memory-utilization",
       .unit = "bytes", .min = 1, .suffixes = true},
      {.group = kCache, .name = "enable-prefix-caching", .kind = Kind::kSwitch, .owners = kWorker,
       .help = "reuse KV blocks of equal prefixes", .shown_default = "on"},
      {.group = kCache, .name = "enable-chunked-prefill", .kind = Kind::kSwitch, .owners = kWorker,
       .help = "compute long prompts in parts, beside running sequences", .shown_default = "on"},
      {.group = kCache, .name = "kv-cache-dtype", .help = "of the KV cache: as --dtype", .shown_default = "auto", .only = {"auto"},
       .why = "the KV cache has the dtype of the model"},

      {.group = kDevice, .name = "device", .owners = kWorker, .help = "where the model runs", .shown_default = "auto",
       .choices = {"auto", "cpu", "cuda"}},
      {.group = kDevice, .name = "num-workers", .kind = Kind::kWhole, .owners = kLauncher,
       .help = "workers, each with the whole model; they share the cores", .field = &ServeFlags::num_workers, .min = 1, .max = 64},
      {.group = kDevice, .name = "threads", .kind = Kind::kWhole, .owners = kLauncher, .help = "compute threads of all workers together",
       .shown_default = "every core this process may run on", .field = &ServeFlags::threads, .min = 1, .max = 1024},
      {.group = kDevice, .name = "tokenizer-threads", .kind = Kind::kWhole, .owners = kRouter,
       .help = "threads of the router that render and encode prompts", .shown_default = "2", .min = 1, .max = 256},
      {.group = kDevice, .name = "cpu-isa", .owners = kWorker, .help = "highest instruction set to use", .shown_default = "auto",
       .choices = {"auto", "portable", "avx2", "avx512", "avx512_bf16", "amx_bf16"}},
      {.group = kDevice, .name = "enforce-eager", .kind = Kind::kSwitch, .owners = kWorker, .help = "do not record decode steps as graphs",
       .shown_default = "off", .note = "--enforce-eager: decode steps are not recorded as graphs (on the CPU they never are)"},
      {.group = kDevice, .name = "tensor-parallel-size", .kind = Kind::kWhole, .help = "devices that share one model",
       .shown_default = "1", .alias = "-tp", .min = 1, .only = {"1"}, .why = "a worker runs on one device"},
      {.group = kDevice, .name = "pipeline-parallel-size", .kind = Kind::kWhole, .help = "devices in a row", .shown_default = "1",
       .alias = "-pp", .min = 1, .only = {"1"}, .why = "a worker runs on one device"},
      {.group = kDevice, .name = "data-parallel-size", .kind = Kind::kWhole, .help = "replicas under vLLM's name; see --num-workers",
       .shown_default = "1", .alias = "-dp", .min = 1, .only = {"1"}, .why = "--num-workers gives replicas on one host"},

      {.group = kLog, .name = "log-level", .owners = kLauncher, .help = "least level that is written",
       .field = &ServeFlags::log_level, .choices = {"debug", "info", "warning", "error"}},
      {.group = kLog, .name = "log-format", .owners = kLauncher, .help = "of log lines", .field = &ServeFlags::log_format,
       .choices = {"text", "json"}},
  };
}

constexpr char kNoLora[] = "LoRA adapters are not loaded";
constexpr char kNoTools[] = "tool calls are not parsed";
constexpr char kOneHost[] = "a worker runs on one device of one host";
constexpr char kNoRequestLog[] = "a request is one log line, and its text is never logged";
constexpr char kNoDownload[] = "nothing is downloaded; MODEL must be on this machine";
constexpr char kFifo[] = "sequences are scheduled first come, first served";
constexpr char kNoSpeculation[] = "no tokens are guessed ahead";
constexpr char kNoCompile[] = "nothing is compiled at run time";
constexpr char kTextOnly[] = "only text generation is served";
constexpr char kNoOffload[] = "KV blocks and weights stay on the device";
constexpr char kNoMultimodal[] = "only text models are served";
constexpr char kNoPlugins[] = "no Python runs in the server";
constexpr char kRecompute[] = "a preempted sequence is computed again, not swapped";

std::vector<Refusal> MakeRefusals() {
  return {
      // Model and loading.
      {"task", Kind::kText, kTextOnly, {"auto", "generate"}},
      {"runner", Kind::kText, kTextOnly, {"auto", "generate"}},
      {"convert", Kind::kText, kTextOnly, {"auto", "none"}},
      {"model-impl", Kind::kText, "models are built in", {"auto", "vllm"}},
      {"config-format", Kind::kText, "config.json and GGUF metadata are read", {"auto", "hf"}},
      {"hf-config-path", Kind::kText, "the configuration is MODEL's own"},
      {"hf-overrides", Kind::kText, "the configuration is MODEL's own"},
      {"hf-token", Kind::kText, kNoDownload, {}, {}, true},
      {"code-revision", Kind::kText, "no code of a model is ever run"},
      {"tokenizer-mode", Kind::kText, "tokenizers are read from tokenizer.json or the .gguf file", {"auto", "hf"}},
      {"tokenizer-revision", Kind::kText, "give the folder as --tokenizer"},
      {"skip-tokenizer-init", Kind::kSwitch, "the router needs the tokenizer"},
      {"model-loader-extra-config", Kind::kText, "files are read in one way", {"{}"}},
      {"ignore-patterns", Kind::kList, kNoDownload},
      {"use-tqdm-on-load", Kind::kSwitch, "progress is shown when standard error is a terminal", {"true"}},
      {"rope-scaling", Kind::kText, "the configuration is MODEL's own"},
      {"rope-theta", Kind::kText, "the configuration is MODEL's own"},
      {"disable-sliding-window", Kind::kSwitch, "a model's own window is kept"},
      {"disable-cascade-attn", Kind::kSwitch, "there is no cascade attention", {"true"}},
      {"enable-sleep-mode", Kind::kSwitch, "a worker keeps its memory"},
      {"override-generation-config", Kind::kText, "give a folder whose generation_config.json has the values as --generation-config",
       {"{}"}},
      {"override-neuron-config", Kind::kText, "there is no such back end"},
      {"override-pooler-config", Kind::kText, kTextOnly},
      {"pooler-config", Kind::kText, kTextOnly},
      {"logits-processors", Kind::kList, kNoPlugins},
      {"logits-processor-pattern", Kind::kText, kNoPlugins},
      {"io-processor-plugin", Kind::kText, kNoPlugins},
      {"logprobs-mode", Kind::kText, "log-probabilities are those of the model, before sampling", {"raw_logprobs"}},
      {"enable-prompt-embeds", Kind::kSwitch, "prompts are text or token ids"},
      {"allowed-local-media-path", Kind::kText, kNoMultimodal},
      {"limit-mm-per-prompt", Kind::kText, kNoMultimodal},
      {"mm-processor-kwargs", Kind::kText, kNoMultimodal},
      {"mm-processor-cache-gb", Kind::kReal, kNoMultimodal},
      {"mm-encoder-tp-mode", Kind::kText, kNoMultimodal},
      {"skip-mm-profiling", Kind::kSwitch, kNoMultimodal, {"true"}},
      {"language-model-only", Kind::kSwitch, kNoMultimodal, {"true"}},

      // Server.
      {"uds", Kind::kText, "HTTP is served on a port"},
      {"root-path", Kind::kText, "paths begin at /; a proxy may strip a prefix", {""}},
      {"middleware", Kind::kList, kNoPlugins},
      {"ssl-ca-certs", Kind::kText, "client certificates are not asked for"},
      {"ssl-cert-reqs", Kind::kWhole, "client certificates are not asked for", {"0"}},
      {"ssl-ciphers", Kind::kText, "the cipher suites are fixed"},
      {"enable-ssl-refresh", Kind::kSwitch, "restart to read a new certificate"},
      {"enable-request-id-headers", Kind::kSwitch, "every reply carries x-request-id", {"true"}},
      {"api-server-count", Kind::kWhole, "one gateway serves all connections", {"1"}, "-asc"},
      {"headless", Kind::kSwitch, kOneHost},
      {"disable-frontend-multiprocessing", Kind::kSwitch, "gateway, router and worker are processes of their own"},
      {"h11-max-header-count", Kind::kWhole, "headers are limited by their bytes"},
      {"h11-max-incomplete-event-size", Kind::kWhole, "headers are limited by their bytes"},
      {"fingerprint-mode", Kind::kText, "replies carry no choice of fingerprints", {"full"}},
      {"enable-server-load-tracking", Kind::kSwitch, "GET /load is not served; /metrics has the numbers"},
      {"enable-per-request-metrics", Kind::kSwitch, "replies carry no metrics; /metrics has them"},
      {"enable-tokenizer-info-endpoint", Kind::kSwitch, "GET /tokenizer_info is not served"},
      {"enable-offline-docs", Kind::kSwitch, "there are no docs pages"},
      {"disable-fastapi-docs", Kind::kSwitch, "there are no docs pages", {"true"}},
      {"max-num-queued-tokens", Kind::kWhole, "the queue is limited by requests (--max-num-queued-reqs)"},

      // Text and chat.
      {"chat-template-content-format", Kind::kText, "the form is found in the template", {"auto"}},
      {"default-chat-template-kwargs", Kind::kText, "send chat_template_kwargs with the request", {"{}"}},
      {"trust-request-chat-template", Kind::kSwitch, "a request may not bring its own template"},
      {"response-role", Kind::kText, "replies come from the assistant", {"assistant"}},
      {"return-tokens-as-token-ids", Kind::kSwitch, "tokens are shown as text; ask with return_token_ids"},
      {"enable-auto-tool-choice", Kind::kSwitch, kNoTools},
      {"tool-call-parser", Kind::kText, kNoTools},
      {"tool-parser-plugin", Kind::kText, kNoPlugins},
      {"tool-server", Kind::kText, kNoTools},
      {"exclude-tools-when-tool-choice-none", Kind::kSwitch, kNoTools},
      {"reasoning-parser-plugin", Kind::kText, kNoPlugins},
      {"reasoning-config", Kind::kText, "reasoning is read in one way"},
      {"guided-decoding-backend", Kind::kText, "structured outputs are not served", {"auto"}},
      {"structured-outputs-config", Kind::kText, "structured outputs are not served"},
      {"structured-outputs-config.backend", Kind::kText, "structured outputs are not served", {"auto"}},

      // Cache and scheduler.
      {"scheduling-policy", Kind::kText, kFifo, {"fcfs"}},
      {"scheduler-cls", Kind::kText, kNoPlugins},
      {"async-scheduling", Kind::kSwitch, "the next step is planned after this one"},
      {"stream-interval", Kind::kWhole, "every token is sent at once", {"1"}},
      {"long-prefill-token-threshold", Kind::kWhole, "prompts are cut by --max-num-batched-tokens alone", {"0"}},
      {"max-num-partial-prefills", Kind::kWhole, "prompts are cut by --max-num-batched-tokens alone", {"1"}},
      {"max-long-partial-prefills", Kind::kWhole, "prompts are cut by --max-num-batched-tokens alone", {"1"}},
      {"scheduler-reserve-full-isl", Kind::kSwitch, "blocks are taken as they are needed"},
      {"preemption-mode", Kind::kText, kRecompute, {"recompute"}},
      {"swap-space", Kind::kReal, kRecompute, {"0"}},
      {"num-gpu-blocks-override", Kind::kWhole, "size the cache in bytes (--kv-cache-memory-bytes)"},
      {"num-scheduler-steps", Kind::kWhole, "a step is one token", {"1"}},
      {"num-lookahead-slots", Kind::kWhole, kNoSpeculation, {"0"}},
      {"prefix-caching-hash-algo", Kind::kText, "blocks are named by SHA-256", {"sha256"}},
      {"calculate-kv-scales", Kind::kSwitch, "the KV cache has the dtype of the model"},
      {"cpu-offload-gb", Kind::kReal, kNoOffload, {"0"}},
      {"kv-offloading-size", Kind::kReal, kNoOffload},
      {"kv-offloading-backend", Kind::kText, kNoOffload},
      {"kv-transfer-config", Kind::kText, "prefill and decode are not split"},
      {"kv-events-config", Kind::kText, "KV events go to the router only"},
      {"kv-sharing-fast-prefill", Kind::kSwitch, "layers keep their own cache"},
      {"speculative-config", Kind::kText, kNoSpeculation},
      {"speculative-model", Kind::kText, kNoSpeculation},
      {"num-speculative-tokens", Kind::kWhole, kNoSpeculation},
      {"disable-hybrid-kv-cache-manager", Kind::kSwitch, "there is one kind of KV cache", {"true"}},

      // Device and processes.
      {"compilation-config", Kind::kText, kNoCompile, {}, "-O"},
      {"max-seq-len-to-capture", Kind::kWhole, "graphs are recorded when a shape recurs, whatever its size"},
      {"cuda-graph-sizes", Kind::kList, "graphs are recorded when a shape recurs, whatever its size"},
      {"attention-backend", Kind::kText, "the device's kernels are chosen at start"},
      {"distributed-executor-backend", Kind::kText, kOneHost, {"mp", "uni"}},
      {"worker-cls", Kind::kText, kNoPlugins},
      {"worker-extension-cls", Kind::kText, kNoPlugins},
      {"max-parallel-loading-workers", Kind::kWhole, kOneHost},
      {"disable-custom-all-reduce", Kind::kSwitch, kOneHost, {"true"}},
      {"ray-workers-use-nsight", Kind::kSwitch, kOneHost},
      {"nnodes", Kind::kWhole, kOneHost, {"1"}, "-n"},
      {"node-rank", Kind::kWhole, kOneHost, {"0"}, "-r"},
      {"master-addr", Kind::kText, kOneHost},
      {"master-port", Kind::kWhole, kOneHost},
      {"data-parallel-rank", Kind::kWhole, kOneHost, {}, "-dpn"},
      {"data-parallel-start-rank", Kind::kWhole, kOneHost, {}, "-dpr"},
      {"data-parallel-size-local", Kind::kWhole, kOneHost, {"1"}, "-dpl"},
      {"data-parallel-address", Kind::kText, kOneHost, {}, "-dpa"},
      {"data-parallel-rpc-port", Kind::kWhole, kOneHost, {}, "-dpp"},
      {"data-parallel-backend", Kind::kText, kOneHost, {"mp"}, "-dpb"},
      {"decode-context-parallel-size", Kind::kWhole, kOneHost, {"1"}, "-dcp"},
      {"prefill-context-parallel-size", Kind::kWhole, kOneHost, {"1"}, "-pcp"},
      {"enable-expert-parallel", Kind::kSwitch, "models with experts are not served"},
      {"enable-eplb", Kind::kSwitch, "models with experts are not served"},
      {"enable-dbo", Kind::kSwitch, kOneHost},
      {"additional-config", Kind::kText, "there is no such back end", {"{}"}},
      {"enable-lora", Kind::kSwitch, kNoLora},
      {"lora-modules", Kind::kList, kNoLora},
      {"max-loras", Kind::kWhole, kNoLora},
      {"max-lora-rank", Kind::kWhole, kNoLora},
      {"max-cpu-loras", Kind::kWhole, kNoLora},
      {"lora-dtype", Kind::kText, kNoLora, {"auto"}},
      {"fully-sharded-loras", Kind::kSwitch, kNoLora},

      // Log.
      {"enable-log-requests", Kind::kSwitch, kNoRequestLog},
      {"disable-log-requests", Kind::kSwitch, kNoRequestLog, {"true"}},
      {"enable-log-outputs", Kind::kSwitch, kNoRequestLog},
      {"enable-log-deltas", Kind::kSwitch, kNoRequestLog},
      {"max-log-len", Kind::kWhole, kNoRequestLog},
      {"disable-log-stats", Kind::kSwitch, "there are no lines of statistics to turn off; /metrics stays", {"true"}},
      {"aggregate-engine-logging", Kind::kSwitch, "there are no lines of statistics"},
      {"log-config-file", Kind::kText, "use --log-level and --log-format"},
      {"uvicorn-log-level", Kind::kText, "use --log-level", {"info"}},
      {"disable-uvicorn-access-log", Kind::kSwitch, "use --log-level warning"},
      {"disable-access-log-for-endpoints", Kind::kText, "use --log-level warning"},
      {"log-error-stack", Kind::kSwitch, "errors are sentences"},
      {"show-hidden-metrics-for-version", Kind::kText, "no metric is hidden"},
      {"otlp-traces-endpoint", Kind::kText, "traces are not exported"},
      {"collect-detailed-traces", Kind::kText, "traces are not exported"},
      {"kv-cache-metrics", Kind::kSwitch, "the metrics are fixed"},
  };
}

}  // namespace

const std::vector<Flag>& Flags() {
  static const std::vector<Flag> flags = MakeFlags();
  return flags;
}

const std::vector<Refusal>& Refusals() {
  static const std::vector<Refusal> refusals = MakeRefusals();
  return refusals;
}

}  // namespace phalanx::cli
