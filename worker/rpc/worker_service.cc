#include "worker/rpc/worker_service.h"

#include <cstdio>
#include <utility>

#include "worker/rpc/translate.h"

namespace phalanx::worker::rpc {
namespace {

constexpr std::chrono::milliseconds kDrainPoll{20};
constexpr std::chrono::milliseconds kIdlePoll{500};

int64_t NowNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

WorkerService::WorkerService(ServiceOptions options, core::Mailbox* mailbox)
    : options_(std::move(options)), mailbox_(mailbox), reports_(options_.max_reports), last_report_ns_(NowNs()) {
  sender_ = std::thread([this] { SendLoop(); });
}

WorkerService::~WorkerService() { Stop(std::chrono::milliseconds(0)); }

void WorkerService::Deliver(core::StepReport&& report) {
  last_report_ns_ = NowNs();
  // The sender thread only translates and hands over, so this means a machine without any time left for it. Events are lost then,
  // and no router may go on as if they were not.
  if (!reports_.TryPush(std::move(report))) overrun_ = true;
}

double WorkerService::seconds_since_report() const { return static_cast<double>(NowNs() - last_report_ns_.load()) * 1e-9; }

void WorkerService::BeginDrain() {
  draining_ = true;
  mailbox_->BeginDrain();
}

std::vector<std::shared_ptr<Session>> WorkerService::sessions() const {
  std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<Session>> out;
  out.reserve(peers_.size());
  for (const auto& [number, peer] : peers_) out.push_back(peer.session);
  return out;
}

size_t WorkerService::live() const {
  size_t live = 0;
  for (const auto& session : sessions()) live += session->live();
  return live;
}

void WorkerService::SendLoop() {
  while (true) {
    bool waiting_for_drain = false;
    {
      std::lock_guard lock(mutex_);
      waiting_for_drain = !drains_.empty();
    }
    auto report = reports_.PopFor(waiting_for_drain ? kDrainPoll : kIdlePoll);
    if (report) Route(*report);
    if (overrun_.exchange(false)) {
      std::fprintf(stderr, "the sender thread fell behind by %zu steps; all routers are disconnected\n", options_.max_reports);
      for (const auto& session : sessions()) {
        session->CancelAll();
        session->Close({grpc::StatusCode::RESOURCE_EXHAUSTED, "the worker could not send its events in time"}, Session::Rest::kDrop);
      }
    }
    if (waiting_for_drain) CheckDrains();
    if (!report && reports_.closed()) return;
  }
}

// One message a step for every router that has events in it; the others get the load now and then.
void WorkerService::Route(const core::StepReport& report) {
  struct Outgoing {
    std::shared_ptr<Session> session;
    v1::WorkerMessage message;
  };
  absl::flat_hash_map<uint64_t, Outgoing> outgoing;
  const auto now = Clock::now();
  {
    std::lock_guard lock(mutex_);
    for (const core::SequenceEvent& event : report.events) {
      const uint64_t number = SessionOf(event.id);
      auto it = peers_.find(number);
      if (it != peers_.end()) outgoing[number].session = it->second.session;
    }
    for (auto& [number, peer] : peers_) {
      if (now - peer.last_load >= options_.load_interval) outgoing[number].session = peer.session;
      if (outgoing.contains(number)) peer.last_load = now;
    }
  }
  for (const core::SequenceEvent& event : report.events) {
    auto it = outgoing.find(SessionOf(event.id));
    if (it != outgoing.end()) it->second.session->Translate(event, it->second.message);
  }
  for (auto& [number, out] : outgoing) {
    out.message.set_step(report.step);
    ToProto(report.load, out.message.mutable_load());
    out.session->Send(std::move(out.message));
  }
}

grpc::ServerBidiReactor<v1::RouterMessage, v1::WorkerMessage>* WorkerService::Attach(grpc::CallbackServerContext* context) {
  Session::Wiring wiring;
  wiring.mailbox = mailbox_;
  wiring.limits = &options_.limits;
  wiring.outbox = options_.outbox;
  wiring.draining = [this] { return draining(); };
  wiring.on_done = [this](uint64_t number) {
    std::shared_ptr<Session> last;  // destroyed after the lock is released
    std::lock_guard lock(mutex_);
    auto it = peers_.find(number);
    if (it == peers_.end()) return;
    last = std::move(it->second.session);
    peers_.erase(it);
  };
  std::shared_ptr<Session> session;
  {
    std::lock_guard lock(mutex_);
    wiring.number = next_session_++;
    session = std::make_shared<Session>(std::move(wiring));
    peers_[next_session_ - 1] = Peer{session, {}};
  }
  session->Start();
  if (stopping_) session->Close({grpc::StatusCode::UNAVAILABLE, "the worker is shutting down"}, Session::Rest::kDrop);
  return session.get();
}

grpc::ServerUnaryReactor* WorkerService::Drain(grpc::CallbackServerContext* context, const v1::DrainRequest* request,
                                               v1::DrainResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  BeginDrain();
  if (stopping_) {
    reactor->Finish({grpc::StatusCode::UNAVAILABLE, "the worker is shutting down"});
    return reactor;
  }
  std::lock_guard lock(mutex_);
  drains_.push_back({reactor, response, Clock::now() + std::chrono::milliseconds(request->deadline_ms())});
  return reactor;
}

void WorkerService::CheckDrains() {
  const size_t left = live();
  const auto now = Clock::now();
  std::vector<PendingDrain> ended;
  bool abort = false;
  {
    std::lock_guard lock(mutex_);
    for (PendingDrain& drain : drains_) {
      if (left > 0 && now >= drain.deadline && !drain.aborted) {
        drain.aborted = abort = true;
        drain.response->set_aborted(static_cast<uint32_t>(left));
      }
    }
    if (left == 0) ended.swap(drains_);
  }
  if (abort) {
    for (const auto& session : sessions()) session->CancelAll();
  }
  for (PendingDrain& drain : ended) drain.reactor->Finish(grpc::Status::OK);
}

void WorkerService::FinishDrains() {
  std::vector<PendingDrain> ended;
  {
    std::lock_guard lock(mutex_);
    ended.swap(drains_);
  }
  for (PendingDrain& drain : ended) drain.reactor->Finish(grpc::Status::OK);
}

grpc::ServerUnaryReactor* WorkerService::GetInfo(grpc::CallbackServerContext* context, const v1::GetInfoRequest* request,
                                                 v1::GetInfoResponse* response) {
  *response = options_.info;
  response->set_draining(draining());
  auto* reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerUnaryReactor* WorkerService::GetMetrics(grpc::CallbackServerContext* context, const v1::GetMetricsRequest* request,
                                                    v1::GetMetricsResponse* response) {
  if (options_.metrics_text) response->set_text(options_.metrics_text());
  auto* reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

void WorkerService::Stop(std::chrono::milliseconds flush) {
  if (stopping_.exchange(true)) return;
  reports_.Close();
  sender_.join();
  FinishDrains();
  const auto until = Clock::now() + flush;
  for (const auto& session : sessions()) {
    while (!session->idle() && Clock::now() < until) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    session->Close({grpc::StatusCode::UNAVAILABLE, "the worker is shutting down"}, Session::Rest::kFlush);
  }
}

}  // namespace phalanx::worker::rpc
