#include "worker/tp/monitor.h"

#include <sys/eventfd.h>
#include <sys/uio.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "services/check.h"

namespace phalanx::worker::tp {
namespace {

constexpr size_t kPulseBytesMax = kStoreKeyBytesMax + kStoreValueBytesMax + 64;
constexpr size_t kOutboxBytesMax = 64 << 20;     // a peer that takes nothing is found by its silence long before
constexpr milliseconds kGoodbyeWait(200);        // for the last bytes to leave

std::string SecondsText(std::chrono::nanoseconds span) { return absl::StrCat(span / milliseconds(100) / 10.0, " s"); }

std::string StoreBytes(std::string_view key, std::string_view value) {
  Writer out;
  out.Text(key);
  out.Text(value);
  return out.Take();
}

}  // namespace

Monitor::Peer::Peer(PulseLink link)
    : rank(link.rank), socket(std::move(link.socket)), reader(kPulseBytesMax), heard(Now()), advanced(heard) {}

Monitor::Monitor(int rank, std::vector<PulseLink> links, const MonitorOptions& options, Fault& fault)
    : rank_(rank), options_(options), fault_(fault), wake_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
  PHX_CHECK(wake_.open());
  for (PulseLink& link : links) peers_.push_back(std::make_unique<Peer>(std::move(link)));
  if (!peers_.empty()) thread_ = std::thread([this] { Run(); });
}

Monitor::~Monitor() {
  leaving_ = !fault_.broken();
  fault_.Break(absl::CancelledError(absl::StrCat("rank ", rank_, " left the group")));
  if (thread_.joinable()) thread_.join();
}

void Monitor::SetStep(uint64_t step) {
  step_.store(step, std::memory_order_release);
}

uint64_t Monitor::step_of(int rank) const {
  for (const auto& peer : peers_) {
    if (peer->rank == rank) return peer->step.load(std::memory_order_relaxed);
  }
  return 0;
}

void Monitor::Wake() { eventfd_write(wake_.fd(), 1); }

// The life of the thread: beat, listen, judge, until the group is broken; then tell everybody and stay until the owner goes.
void Monitor::Run() {
  Time beat = Now();
  while (!fault_.broken()) {
    const Time now = Now();
    if (now >= beat) {
      Beat(now);
      beat = now + milliseconds(options_.heartbeat_ms);
    }
    Time until = beat;
    for (const auto& peer : peers_) until = std::min(until, peer->heard + milliseconds(options_.silence_ms + 1));
    Wait(until);
    TakeStoreRequests();
    CheckPeers(Now());
  }
  {
    std::lock_guard lock(mutex_);  // nobody is between looking at the fault and waiting
    store_changed_.notify_all();
  }
  TellVerdict();
  if (options_.on_broken && !leaving_) options_.on_broken(fault_.status());
  for (const auto& peer : peers_) peer->socket.Close();
}

void Monitor::Beat(Time now) {
  for (const auto& peer : peers_) Post(*peer, FrameKind::kPulse, {});
}

// Hands everybody the reason; over when all of it has left, or after kGoodbyeWait.
void Monitor::TellVerdict() {
  for (const auto& peer : peers_) Post(*peer, FrameKind::kBroken, StatusBytes(fault_.status()));
  const Time goodbye = Now() + kGoodbyeWait;
  while (!Flushed() && Now() < goodbye) std::this_thread::sleep_for(milliseconds(1));
  for (const auto& peer : peers_) {
    shutdown(peer->socket.fd(), SHUT_WR);
    // A socket that is closed with bytes unread takes back what is still under way to its peer.
    size_t count = 0;
    while (ReadSome(peer->socket.fd(), peer->reader.Space().data(), peer->reader.Space().size(), &count) == Transfer::kDone) continue;
  }
}

bool Monitor::Flushed() {
  bool all = true;
  for (const auto& peer : peers_) {
    Flush(*peer);
    all = all && peer->outbox.empty();
  }
  return all;
}

void Monitor::CheckPeers(Time now) {
  const uint64_t step = step_.load(std::memory_order_acquire);
  for (const auto& peer : peers_) {
    const uint64_t theirs = peer->step.load(std::memory_order_relaxed);
    if (theirs >= step) peer->advanced = now;
    if (now - peer->heard > milliseconds(options_.silence_ms)) {
      fault_.Break(absl::UnavailableError(
          absl::StrCat("rank ", peer->rank, " has said nothing for ", SecondsText(now - peer->heard), ", its last step was ", theirs)));
    } else if (rank_ == 0 && options_.progress_ms > 0 && now - peer->advanced > milliseconds(options_.progress_ms)) {
      fault_.Break(absl::UnavailableError(absl::StrCat("rank ", peer->rank, " is alive but stands at step ", theirs, " for ",
                                                       SecondsText(now - peer->advanced), ", rank 0 is at ", step)));
    }
  }
}

void Monitor::Wait(Time until) {
  std::vector<pollfd> entries = {{wake_.fd(), POLLIN, 0}, {fault_.fd(), POLLIN, 0}};
  for (const auto& peer : peers_) {
    entries.push_back({peer->socket.fd(), static_cast<short>(peer->outbox.empty() ? POLLIN : POLLIN | POLLOUT), 0});
  }
  PollUntil(entries, until);
  eventfd_t ignored = 0;
  if (entries[0].revents != 0) eventfd_read(wake_.fd(), &ignored);
  for (size_t i = 0; i < peers_.size() && !fault_.broken(); ++i) {
    const short events = entries[i + 2].revents;
    if ((events & POLLOUT) != 0) Flush(*peers_[i]);
    if ((events & ~POLLOUT) != 0) Hear(*peers_[i]);
  }
}

void Monitor::Hear(Peer& peer) {
  const std::span<char> space = peer.reader.Space();
  size_t count = 0;
  const Transfer transfer = ReadSome(peer.socket.fd(), space.data(), space.size(), &count);
  if (transfer == Transfer::kWouldBlock) return;
  if (transfer == Transfer::kClosed) {
    fault_.Break(absl::UnavailableError(absl::StrCat("rank ", peer.rank, " is gone, its last step was ", peer.step.load())));
    return;
  }
  peer.reader.Commit(count);
  peer.heard = Now();
  Frame frame;
  while (!fault_.broken()) {
    const absl::StatusOr<bool> whole = peer.reader.Next(&frame);
    if (!whole.ok()) {
      fault_.Break(absl::InternalError(absl::StrCat("rank ", peer.rank, " sent ", whole.status().message())));
      return;
    }
    if (!*whole) return;
    Take(peer, frame);
  }
}

void Monitor::Take(Peer& peer, const Frame& frame) {
  if (frame.step > peer.step.load(std::memory_order_relaxed)) {
    peer.step.store(frame.step, std::memory_order_relaxed);
    peer.advanced = Now();
  }
  Reader in(frame.bytes);
  const std::string key(frame.kind == FrameKind::kPulse || frame.kind == FrameKind::kBroken ? "" : in.Text(kStoreKeyBytesMax));
  switch (frame.kind) {
    case FrameKind::kPulse:
      return;
    case FrameKind::kBroken:
      fault_.Break(StatusFromBytes(frame.bytes));
      return;
    case FrameKind::kStoreSet:
    case FrameKind::kStoreValue: {
      const std::string value(in.Text(kStoreValueBytesMax));
      const bool to_rank_0 = frame.kind == FrameKind::kStoreSet;
      if (in.done() && to_rank_0 == (rank_ == 0) && Keep(key, value)) return;
      break;
    }
    case FrameKind::kStoreGet:
      if (in.done() && rank_ == 0 && waiters_.size() < kStoreEntriesMax) {
        std::lock_guard lock(mutex_);
        const auto found = values_.find(key);
        if (found == values_.end()) {
          waiters_.emplace_back(&peer, key);
        } else {
          Post(peer, FrameKind::kStoreValue, StoreBytes(key, found->second));
        }
        return;
      }
      break;
    default:
      break;
  }
  fault_.Break(absl::InternalError(absl::StrCat("rank ", peer.rank, " sent a frame of kind ", static_cast<int>(frame.kind),
                                                " that has no place on the pulse connection")));
}

void Monitor::Flush(Peer& peer) {
  while (!peer.outbox.empty()) {
    const iovec piece = {peer.outbox.data(), peer.outbox.size()};
    size_t count = 0;
    const Transfer transfer = WriteSome(peer.socket.fd(), {&piece, 1}, &count);
    if (transfer == Transfer::kWouldBlock) return;
    if (transfer == Transfer::kClosed) {
      // The reading side has the reason, if there is one.
      peer.outbox.clear();
      return;
    }
    peer.outbox.erase(0, count);
  }
}

void Monitor::Post(Peer& peer, FrameKind kind, std::string_view bytes) {
  if (peer.outbox.size() < kOutboxBytesMax) peer.outbox += FrameBytes({kind, step_.load(std::memory_order_acquire), bytes});
  Flush(peer);
}

void Monitor::TakeStoreRequests() {
  std::vector<std::pair<FrameKind, std::string>> requests;
  {
    std::lock_guard lock(mutex_);
    requests.swap(store_outbox_);
    for (auto waiter = waiters_.begin(); waiter != waiters_.end();) {
      const auto found = values_.find(waiter->second);
      if (found == values_.end()) {
        ++waiter;
        continue;
      }
      Post(*waiter->first, FrameKind::kStoreValue, StoreBytes(found->first, found->second));
      waiter = waiters_.erase(waiter);
    }
  }
  for (const auto& [kind, bytes] : requests) Post(*peers_[0], kind, bytes);
}

bool Monitor::Keep(const std::string& key, const std::string& value) {
  std::lock_guard lock(mutex_);
  if (values_.size() >= kStoreEntriesMax) return false;
  values_.emplace(key, value);
  store_changed_.notify_all();
  return true;
}

absl::Status Monitor::Set(std::string_view key, std::string_view value) {
  if (key.size() > kStoreKeyBytesMax || value.size() > kStoreValueBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("the store takes ", kStoreKeyBytesMax, " bytes of key and ", kStoreValueBytesMax, " of value"));
  }
  if (fault_.broken()) return fault_.status();
  if (rank_ == 0) {
    if (!Keep(std::string(key), std::string(value))) return absl::ResourceExhaustedError("the store is full");
  } else {
    std::lock_guard lock(mutex_);
    store_outbox_.emplace_back(FrameKind::kStoreSet, StoreBytes(key, value));
  }
  Wake();
  return absl::OkStatus();
}

absl::StatusOr<std::string> Monitor::Get(std::string_view key, Time deadline) {
  std::unique_lock lock(mutex_);
  if (rank_ != 0 && !values_.contains(key)) {
    Writer request;
    request.Text(key);
    store_outbox_.emplace_back(FrameKind::kStoreGet, request.Take());
    Wake();
  }
  store_changed_.wait_until(lock, deadline, [&] { return values_.contains(key) || fault_.broken(); });
  if (const auto found = values_.find(key); found != values_.end()) return found->second;
  if (fault_.broken()) return fault_.status();
  return absl::DeadlineExceededError(absl::StrCat("no rank has set '", std::string(key), "'"));
}

}  // namespace phalanx::worker::tp
