#include "router/rpc/worker_client.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "phalanx/worker/v1/worker.grpc.pb.h"
#include "router/rpc/translate.h"
#include "services/check.h"
#include "services/grpc_status.h"
#include "services/log.h"

namespace phalanx::router::rpc {
namespace {

using std::chrono::milliseconds;

constexpr size_t kSmallBytes = 16;  // a cancel or a credit on the wire, about
constexpr milliseconds kDrainMax{1000};

// What a completion stands for.
enum Tag : intptr_t { kStart = 1, kRead, kWrite, kFinish };
void* AsTag(Tag tag) { return reinterpret_cast<void*>(static_cast<intptr_t>(tag)); }

gpr_timespec After(std::chrono::nanoseconds time) {
  return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_nanos(time.count(), GPR_TIMESPAN));
}

}  // namespace

// One life of the stream. A caller that writes holds it, so it outlives the life by as much as that call needs.
struct WorkerClient::Connection {
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<worker::v1::Worker::Stub> stub;
  grpc::ClientContext info_context;
  grpc::ClientContext context;
  grpc::CompletionQueue queue;                  // polled by the own thread alone
  std::unique_ptr<grpc::ClientAsyncReaderWriter<worker::v1::RouterMessage, worker::v1::WorkerMessage>> stream;
  worker::v1::RouterMessage outgoing;           // owned by the write in flight
  worker::v1::WorkerMessage incoming;           // owned by the read in flight
  bool reading = false;

  void Cancel() {
    info_context.TryCancel();
    context.TryCancel();
  }
  void Read() {
    incoming.Clear();
    reading = true;
    stream->Read(&incoming, AsTag(kRead));
  }
};

WorkerClient::WorkerClient(WorkerClientOptions options) : options_(std::move(options)), random_(std::random_device{}()) {}

WorkerClient::~WorkerClient() {
  std::shared_ptr<Connection> connection;
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    up_ = false;
    connection = connection_;
  }
  stop_.notify_all();
  if (connection != nullptr) connection->Cancel();
  if (thread_.joinable()) thread_.join();
}

void WorkerClient::Start(core::WorkerListener* listener) {
  PHX_CHECK(!thread_.joinable());
  listener_ = listener;
  thread_ = std::thread([this] { Loop(); });
}

bool WorkerClient::stopping() const {
  std::lock_guard lock(mutex_);
  return stopping_;
}

bool WorkerClient::SleepFor(milliseconds time) {
  std::unique_lock lock(mutex_);
  return !stop_.wait_for(lock, time, [this] { return stopping_; });
}

void WorkerClient::Loop() {
  milliseconds wait = options_.backoff_min;
  bool told = false;
  while (true) {
    const Time begun = std::chrono::steady_clock::now();
    bool was_up = false;
    const absl::Status why = Live(&was_up);
    if (stopping()) return;
    // A worker that stays away is mentioned once, and one that has not come up yet is no reason to worry: they start together.
    if (was_up) {
      services::LogWarning("worker {} at {}: {}", options_.worker, options_.address, std::string(why.message()));
    } else if (!told) {
      services::LogInfo("waiting for worker {} at {}", options_.worker, options_.address);
    }
    told = true;
    // A worker that comes up and fails at once is treated like one that does not come up.
    if (was_up && std::chrono::steady_clock::now() - begun > options_.backoff_max) wait = options_.backoff_min;
    const auto jitter = std::uniform_int_distribution<int64_t>(wait.count() / 2, wait.count())(random_);
    if (!SleepFor(milliseconds(jitter))) return;
    wait = std::min(wait * 2, options_.backoff_max);
  }
}

absl::Status WorkerClient::Live(bool* was_up) {
  // A channel of its own: the address is resolved anew, and waiting between attempts is this object's affair alone.
  auto connection = std::make_shared<Connection>();
  connection->channel = services::MakeChannel(options_.address, options_.channel);
  connection->stub = worker::v1::Worker::NewStub(connection->channel);
  {
    std::lock_guard lock(mutex_);
    if (stopping_) return absl::CancelledError("stopping");
    connection_ = connection;
  }
  absl::StatusOr<core::WorkerInfo> info = Connect(*connection);
  if (!info.ok()) return Disconnect(*connection, info.status());
  const int32_t vocab_size = info->vocab_size;
  services::LogInfo("worker {} at {} is up: {}, context {}", options_.worker, options_.address, info->model, info->max_model_len);
  const uint64_t epoch = Publish();
  *was_up = true;
  load_ = {};
  listener_->OnUp(options_.worker, epoch, *std::move(info));
  const absl::Status why = Disconnect(*connection, Serve(*connection, epoch, vocab_size));
  if (!stopping()) listener_->OnDown(options_.worker, epoch, why);
  return why;
}

absl::StatusOr<core::WorkerInfo> WorkerClient::Connect(Connection& connection) {
  services::SetDeadline(connection.info_context, options_.connect_limit);
  worker::v1::GetInfoResponse response;
  PHX_RETURN_IF_ERROR(services::FromGrpc(connection.stub->GetInfo(&connection.info_context, {}, &response)));
  PHX_ASSIGN_OR_RETURN(core::WorkerInfo info, FromProto(response));
  connection.stream = connection.stub->AsyncAttach(&connection.context, &connection.queue, AsTag(kStart));
  void* tag = nullptr;
  bool ok = false;
  if (connection.queue.AsyncNext(&tag, &ok, After(options_.connect_limit)) == grpc::CompletionQueue::TIMEOUT) {
    connection.Cancel();
    connection.queue.Next(&tag, &ok);
    ok = false;
  }
  if (!ok) return absl::UnavailableError("the stream could not be started");
  return info;
}

uint64_t WorkerClient::Publish() {
  std::lock_guard lock(mutex_);
  up_ = !stopping_;
  asked_ = busy_ = overrun_ = false;
  return ++epoch_;
}

milliseconds WorkerClient::silence_max() const {
  std::lock_guard lock(mutex_);
  return asked_ || busy_ ? options_.busy_silence_max : options_.idle_silence_max;
}

absl::Status WorkerClient::Serve(Connection& connection, uint64_t epoch, int32_t vocab_size) {
  heard_ = std::chrono::steady_clock::now();
  connection.Read();
  while (true) {
    const auto left = heard_ + silence_max() - std::chrono::steady_clock::now();
    if (left <= milliseconds(0)) {
      connection.Cancel();
      return absl::UnavailableError(absl::StrCat("the worker was silent for ", silence_max().count(), " ms"));
    }
    void* tag = nullptr;
    bool ok = false;
    if (connection.queue.AsyncNext(&tag, &ok, After(left)) != grpc::CompletionQueue::GOT_EVENT) continue;
    if (tag == AsTag(kWrite)) {
      WriteDone(connection);  // one that failed is the end of the stream, which the read will tell
      continue;
    }
    connection.reading = false;
    if (!ok) return absl::OkStatus();  // the stream's own status says why
    absl::Status handled = HandleMessage(connection, epoch, vocab_size);
    if (!handled.ok()) {
      connection.Cancel();
      return handled;
    }
    connection.Read();
  }
}

absl::Status WorkerClient::HandleMessage(Connection& connection, uint64_t epoch, int32_t vocab_size) {
  const worker::v1::WorkerMessage& message = connection.incoming;
  PHX_ASSIGN_OR_RETURN(std::vector<core::WorkerEvent> events, FromProto(message, epoch, vocab_size));
  if (message.has_load()) load_ = FromProto(message.load());
  heard_ = std::chrono::steady_clock::now();
  {
    std::lock_guard lock(mutex_);
    asked_ = false;
    if (message.has_load()) busy_ = load_.running > 0 || load_.waiting > 0;
  }
  listener_->OnBatch(options_.worker, epoch, std::move(events), load_);
  return absl::OkStatus();
}

// Takes the connection out of use and brings every operation on it to its end. The stream's own status counts if `why` is OK.
absl::Status WorkerClient::Disconnect(Connection& connection, absl::Status why) {
  bool overrun = false;
  {
    std::lock_guard lock(mutex_);
    up_ = false;
    overrun = overrun_;
    outbox_.clear();
    outbox_bytes_ = 0;
  }
  grpc::Status status;
  bool finishing = false;
  bool finished = connection.stream == nullptr;
  const auto writing = [this] {
    std::lock_guard lock(mutex_);
    return writing_;
  };
  while (!finished) {
    if (!finishing && !connection.reading && !writing()) {
      finishing = true;
      connection.stream->Finish(&status, AsTag(kFinish));
    }
    void* tag = nullptr;
    bool ok = false;
    if (connection.queue.AsyncNext(&tag, &ok, After(kDrainMax)) == grpc::CompletionQueue::TIMEOUT) {
      connection.Cancel();
      continue;
    }
    if (tag == AsTag(kRead)) connection.reading = false;
    if (tag == AsTag(kWrite)) WriteDone(connection);
    finished = tag == AsTag(kFinish);
  }
  connection.queue.Shutdown();
  void* tag = nullptr;
  bool ok = false;
  while (connection.queue.Next(&tag, &ok)) continue;
  {
    std::lock_guard lock(mutex_);
    connection_.reset();
  }
  if (overrun) return absl::ResourceExhaustedError("the worker does not take what the router sends");
  if (!why.ok()) return why;
  return status.ok() ? absl::UnavailableError("the worker ended the stream") : services::FromGrpc(status);
}

bool WorkerClient::TakeNext() {
  if (writing_ || outbox_.empty() || !up_ || overrun_) return false;
  connection_->outgoing.Swap(&outbox_.front().message);
  outbox_bytes_ -= outbox_.front().bytes;
  outbox_.pop_front();
  return writing_ = true;
}

void WorkerClient::WriteDone(Connection& connection) {
  bool write = false;
  {
    std::lock_guard lock(mutex_);
    writing_ = false;
    connection.outgoing.Clear();
    write = TakeNext();
  }
  if (write) connection.stream->Write(connection.outgoing, AsTag(kWrite));
}

// Adds to what waits and writes it, unless a write is in flight.
template <typename Fill>
void WorkerClient::Say(uint64_t epoch, size_t bytes, Fill fill) {
  std::shared_ptr<Connection> connection;
  bool write = false;
  bool overrun = false;
  {
    std::lock_guard lock(mutex_);
    if (!up_ || epoch != epoch_ || overrun_) return;
    connection = connection_;
    overrun = overrun_ = outbox_bytes_ + bytes > options_.outbox_bytes_max;
    if (!overrun) {
      if (outbox_.empty() || outbox_.back().bytes + bytes > options_.message_bytes_max) outbox_.emplace_back();
      fill(outbox_.back().message);
      outbox_.back().bytes += bytes;
      outbox_bytes_ += bytes;
      write = TakeNext();
    }
  }
  if (overrun) connection->Cancel();
  if (write) connection->stream->Write(connection->outgoing, AsTag(kWrite));
}

void WorkerClient::Submit(uint64_t epoch, core::Submission submission) {
  PHX_CHECK(submission.id != 0);
  auto submit = std::make_unique<worker::v1::Submit>();  // made before the lock is taken: a prompt may be long
  ToProto(submission, epoch, submit.get());
  const size_t bytes = submit->ByteSizeLong() + kSmallBytes;
  Say(epoch, bytes, [this, &submit](worker::v1::RouterMessage& message) {
    message.mutable_submits()->AddAllocated(submit.release());
    asked_ = true;
  });
}

void WorkerClient::Cancel(uint64_t epoch, uint64_t id) {
  Say(epoch, kSmallBytes, [id](worker::v1::RouterMessage& message) { message.add_cancels(id); });
}

void WorkerClient::Credit(uint64_t epoch, uint64_t id, uint32_t tokens) {
  Say(epoch, kSmallBytes, [id, tokens](worker::v1::RouterMessage& message) {
    auto* credits = message.mutable_credits();
    const bool again = !credits->empty() && credits->rbegin()->request_id() == id;
    worker::v1::Credit& credit = again ? *credits->rbegin() : *credits->Add();
    credit.set_request_id(id);
    credit.set_tokens(credit.tokens() + tokens);
  });
}

absl::StatusOr<std::string> WorkerClient::Metrics(milliseconds limit) {
  std::shared_ptr<Connection> connection;
  {
    std::lock_guard lock(mutex_);
    if (!up_) return absl::UnavailableError("the worker is not connected");
    connection = connection_;
  }
  grpc::ClientContext context;
  services::SetDeadline(context, limit);
  worker::v1::GetMetricsResponse response;
  PHX_RETURN_IF_ERROR(services::FromGrpc(connection->stub->GetMetrics(&context, {}, &response)));
  return std::move(*response.mutable_text());
}

}  // namespace phalanx::router::rpc
