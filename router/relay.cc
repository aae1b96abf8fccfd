#include "router/relay.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "router/metrics_merge.h"
#include "services/log.h"

namespace phalanx::router {
namespace {

using services::Seconds;
using services::Time;

absl::Status ShuttingDown() { return NotServing("The server is shutting down.", {}); }

absl::Status EncodersBusy() {
  absl::Status status = absl::ResourceExhaustedError("The server has too many requests that wait to be encoded.");
  return core::WithRetryAfter(core::WithErrorCode(std::move(status), "queue_full"), 1);
}

// SplitMix64: neighbouring inputs give unrelated seeds.
uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

uint64_t RandomBase() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

}  // namespace

// What a door holds of a request. It may outlive the relay: a closed mailbox drops what comes.
class Relay::RunningCall final : public core::Call {
 public:
  RunningCall(Request request, std::shared_ptr<Notes> notes, int64_t note_every)
      : request_(std::move(request)), notes_(std::move(notes)), note_every_(note_every) {}

  void Cancel() override {
    if (!request_->cancelled.exchange(true)) notes_->Post(CancelNote{request_});
  }

  // The relay reads `consumed` whenever tokens come, so it needs a note only now and then: when a quarter of the window was read.
  void Consumed(int tokens) override {
    if (tokens <= 0) return;
    const int64_t before = request_->consumed.fetch_add(tokens);
    if (!request_->request.draft.stream || before / note_every_ == (before + tokens) / note_every_) return;
    notes_->Post(ConsumedNote{request_});
  }

 private:
  const Request request_;
  const std::shared_ptr<Notes> notes_;
  const int64_t note_every_;
};

Relay::Relay(RelayOptions options, std::shared_ptr<const PromptMaker> prompts, RouterMetrics* metrics, const services::Clock* clock)
    : options_(std::move(options)),
      prompts_(std::move(prompts)),
      metrics_(metrics),
      clock_(clock),
      jobs_(options_.prompt_queue_max),
      seed_base_(options_.seed ? *options_.seed : RandomBase()) {
  limits_.served_names = options_.served_names;
  limits_.defaults = options_.defaults;
  limits_.max_logprobs = options_.max_logprobs;
}

Relay::~Relay() { Stop(); }

void Relay::Run(std::vector<core::WorkerLink*> links) {
  links_ = std::move(links);
  up_ = std::make_unique<std::atomic<bool>[]>(links_.size());
  dispatch_ = std::make_unique<Dispatch>(options_.dispatch, links_, prompts_->tokenizer(), metrics_,
                                         [this](const Running& request, const absl::Status& status) { Ended(request, status); });
  for (int i = 0; i < options_.prompt_threads; ++i) prompt_threads_.emplace_back([this] { PromptLoop(); });
  thread_ = std::thread([this] { Loop(); });
}

void Relay::BeginDrain() {
  if (!draining_.exchange(true)) notes_->Post(DrainNote{});
}

int64_t Relay::live() const {
  std::lock_guard lock(admission_mutex_);
  return admitted_.requests;
}

// In the order in which work flows, so that each stage hands on what it still holds.
void Relay::Stop() {
  draining_ = true;
  if (stopping_.exchange(true)) return;
  jobs_.Close();
  for (std::thread& thread : prompt_threads_) thread.join();
  notes_->Close();
  if (thread_.joinable()) thread_.join();
}

core::Limits Relay::limits() const {
  std::lock_guard lock(limits_mutex_);
  return limits_;
}

absl::Status Relay::Admit(Running& request) {
  const core::ValidRequest& valid = request.request;
  const int64_t prompts = valid.draft.kind == core::Kind::kChat ? 1 : static_cast<int64_t>(valid.draft.prompts.size());
  const int64_t choices = prompts * valid.sampling.n;
  std::lock_guard lock(admission_mutex_);
  AdmissionState state = admitted_;
  state.ready_workers = ready_workers_;
  state.draining = draining_;
  state.finished_per_second = finish_rate_.PerSecond(request.arrived);
  ++admitted_.turn;
  PHX_RETURN_IF_ERROR(Enter(state, options_.admission, choices));
  request.counted_choices = choices;
  ++admitted_.requests;
  admitted_.choices += choices;
  metrics_->SetRequests(admitted_.requests);
  return absl::OkStatus();
}

uint64_t Relay::NextSeed() { return Mix(seed_base_ + seeds_.fetch_add(1)); }

std::shared_ptr<core::Call> Relay::Start(core::ValidRequest request, std::shared_ptr<core::ReplySink> sink) {
  auto running = std::make_shared<Running>();
  running->request = std::move(request);
  running->sink = std::move(sink);
  running->arrived = clock_->Now();
  running->seed_is_own = running->request.sampling.seed.has_value();
  running->seed = running->seed_is_own ? *running->request.sampling.seed : NextSeed();
  auto call = std::make_shared<RunningCall>(running, notes_, std::max<int64_t>(1, options_.dispatch.credit_window / 4));
  absl::Status status = Admit(*running);
  Request job = running;
  if (status.ok() && !jobs_.TryPush(std::move(job))) {
    status = stopping_ ? ShuttingDown() : EncodersBusy();
  }
  if (status.ok()) return call;
  metrics_->Refused();
  Note refusal = PreparedNote{running, status};
  if (notes_->Post(std::move(refusal))) return call;
  // The relay thread is gone.
  const std::shared_ptr<core::ReplySink> last = std::exchange(running->sink, nullptr);
  Ended(*running, status);
  last->OnEnd(status, {});
  return call;
}

void Relay::PromptLoop() {
  while (std::optional<Request> job = jobs_.Pop()) {
    Running& request = **job;
    absl::StatusOr<PreparedRequest> prepared = ShuttingDown();
    if (request.cancelled) {
      prepared = absl::CancelledError("The client left.");
    } else if (!stopping_) {
      const core::Limits now = limits();
      prepared = prompts_->Prepare(request.request, {now.max_model_len, now.vocab_size});
    }
    // They are ids now, and may be large.
    request.request.draft.messages_json = {};
    request.request.draft.prompts = {};
    notes_->Post(PreparedNote{*std::move(job), std::move(prepared)});
  }
}

void Relay::Loop() {
  std::vector<Note> notes;
  while (notes_->Take(&notes, dispatch_->next_deadline())) {
    for (Note& note : notes) std::visit([this](auto&& one) { Handle(std::move(one)); }, std::move(note));
    dispatch_->Expire(clock_->Now());
  }
  dispatch_->EndAll(ShuttingDown(), clock_->Now());
}

void Relay::Handle(PreparedNote&& note) {
  if (!note.prepared.ok()) return dispatch_->End(*note.request, note.prepared.status(), clock_->Now());
  dispatch_->Begin(std::move(note.request), *std::move(note.prepared), clock_->Now());
}

void Relay::Handle(CancelNote&& note) { dispatch_->End(*note.request, absl::CancelledError("The client left."), clock_->Now()); }

void Relay::Handle(ConsumedNote&& note) {
  if (!note.request->ended()) dispatch_->Consumed(*note.request);
}

void Relay::Handle(DrainNote&&) { PublishReadiness(); }

void Relay::Handle(UpNote&& note) {
  const std::string& address = links_[note.worker]->address();
  const absl::Status status = dispatch_->Up(note.worker, note.epoch, note.info);
  if (!status.ok()) return services::LogError("worker {} ({}) is not used: {}", note.worker, address, std::string(status.message()));
  if (note.info.vocab_size < prompts_->tokenizer()->vocab_size()) {
    services::LogWarning("worker {} takes ids below {}, the tokenizer makes ids below {}: is it another model?", note.worker,
                         note.info.vocab_size, prompts_->tokenizer()->vocab_size());
  }
  services::LogDebug("worker {} ({}) is in the fleet: {}, context {}", note.worker, address, note.info.model, note.info.max_model_len);
  up_[note.worker] = true;
  PublishLimits();
  PublishReadiness();
}

void Relay::Handle(BatchNote&& note) {
  dispatch_->Batch(note.worker, note.epoch, std::move(note.events), note.load, clock_->Now());
  PublishReadiness();
}

void Relay::Handle(DownNote&& note) {
  services::LogDebug("worker {} ({}) is out of the fleet: {}", note.worker, links_[note.worker]->address(),
                     std::string(note.why.message()));
  up_[note.worker] = false;
  dispatch_->Down(note.worker, note.epoch, clock_->Now());
  PublishReadiness();
}

void Relay::PublishLimits() {
  const core::WorkerInfo& served = dispatch_->fleet().served();
  std::lock_guard lock(limits_mutex_);
  limits_.vocab_size = served.vocab_size;
  limits_.max_model_len = served.max_model_len;
  limits_.max_logprobs = options_.max_logprobs < 0 ? served.max_logprobs : std::min(options_.max_logprobs, served.max_logprobs);
}

void Relay::PublishReadiness() {
  const int ready = dispatch_->fleet().ready_count();
  if (ready != ready_workers_.load(std::memory_order_relaxed)) {
    ready_workers_ = ready;
    metrics_->SetReadyWorkers(ready);
  }
  const bool serving = ready > 0 && !draining_.load(std::memory_order_relaxed);
  if (std::exchange(told_ready_, serving) != serving && options_.on_ready) options_.on_ready(serving);
}

void Relay::Ended(const Running& request, const absl::Status& status) {
  LogRequest(request, status);
  if (request.counted_choices == 0) return;
  std::lock_guard lock(admission_mutex_);
  --admitted_.requests;
  admitted_.choices -= request.counted_choices;
  finish_rate_.Add(clock_->Now());
  metrics_->SetRequests(admitted_.requests);
}

// Counts and times; never what was said.
void Relay::LogRequest(const Running& request, const absl::Status& status) const {
  if (!services::LogEnabled(services::LogLevel::kInfo)) return;
  const core::Draft& draft = request.request.draft;
  std::vector<services::LogField> fields = {{"id", draft.request_id},
                                            {"kind", std::string(draft.kind == core::Kind::kChat ? "chat" : "completion")},
                                            {"stream", draft.stream},
                                            {"prompt_tokens", int64_t{request.usage.prompt_tokens}},
                                            {"cached_tokens", int64_t{request.usage.cached_tokens}},
                                            {"output_tokens", int64_t{request.usage.completion_tokens}},
                                            {"e2e_ms", 1e3 * Seconds(clock_->Now() - request.arrived)}};
  Time first{};
  for (const Choice& choice : request.choices) {
    if (choice.first_token != Time{} && (first == Time{} || choice.first_token < first)) first = choice.first_token;
  }
  if (first != Time{}) fields.push_back({"ttft_ms", 1e3 * Seconds(first - request.arrived)});
  if (!request.choices.empty()) fields.push_back({"worker", int64_t{request.choices.front().worker}});
  if (request.losses > 0) fields.push_back({"workers_lost", int64_t{request.losses}});
  if (status.ok()) {
    fields.push_back({"finish", std::string(request.choices.front().finish == core::Finish::kStop ? "stop" : "length")});
  } else {
    fields.push_back({"finish", std::string(absl::IsCancelled(status) ? "abort" : "error")});
    fields.push_back({"code", absl::StatusCodeToString(status.code())});
  }
  services::LogLine(services::LogLevel::kInfo, "request", fields);
}

absl::StatusOr<core::TokenizeResult> Relay::Tokenize(const core::Draft& draft) {
  core::TokenizeResult out;
  PHX_ASSIGN_OR_RETURN(out.ids, prompts_->Encode(draft));
  out.pieces.reserve(out.ids.size());
  for (const int32_t id : out.ids) out.pieces.push_back(prompts_->tokenizer()->TokenText(id));
  out.max_model_len = limits().max_model_len;
  return out;
}

absl::StatusOr<std::string> Relay::Detokenize(const std::vector<int64_t>& ids) {
  PHX_RETURN_IF_ERROR(core::CheckTokenIds("tokens", ids, limits()));
  return prompts_->tokenizer()->Decode(std::vector<int32_t>(ids.begin(), ids.end()), /*skip_special=*/false);
}

std::string Relay::Metrics() {
  std::vector<MetricsText> texts = {{metrics_->Text(), ""}};
  for (size_t i = 0; i < links_.size(); ++i) {
    if (!up_[i]) continue;
    absl::StatusOr<std::string> text = links_[i]->Metrics(options_.metrics_wait);
    if (text.ok()) texts.push_back({*std::move(text), absl::StrCat(i)});
  }
  return MergeMetrics(texts);
}

void Relay::OnUp(int worker, uint64_t epoch, core::WorkerInfo info) { notes_->Post(UpNote{worker, epoch, std::move(info)}); }

void Relay::OnBatch(int worker, uint64_t epoch, std::vector<core::WorkerEvent> events, const core::WorkerLoad& load) {
  notes_->Post(BatchNote{worker, epoch, std::move(events), load});
}

void Relay::OnDown(int worker, uint64_t epoch, absl::Status why) { notes_->Post(DownNote{worker, epoch, std::move(why)}); }

}  // namespace phalanx::router
