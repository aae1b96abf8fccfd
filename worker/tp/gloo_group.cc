#include "worker/tp/gloo_group.h"

#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/store.h>
#include <gloo/transport/buffer.h>
#include <gloo/transport/tcp/device.h>

#include <signal.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <stdexcept>

#include "absl/strings/str_cat.h"
#include "worker/tp/reduce.h"

namespace phalanx::worker::tp {
namespace {

// Our store as Gloo wants it. A failure leaves as an exception, which Gloo passes on to Guard.
class GlooStore final : public gloo::rendezvous::Store {
 public:
  GlooStore(tp::Store& store, Time deadline) : store_(store), deadline_(deadline) {}

  void set(const std::string& key, const std::vector<char>& data) override {
    const absl::Status status = store_.Set(absl::StrCat("gloo/", key), std::string_view(data.data(), data.size()));
    if (!status.ok()) throw std::runtime_error(std::string(status.message()));
  }
  std::vector<char> get(const std::string& key) override {
    const absl::StatusOr<std::string> value = store_.Get(absl::StrCat("gloo/", key), deadline_);
    if (!value.ok()) throw std::runtime_error(std::string(value.status().message()));
    return std::vector<char>(value->begin(), value->end());
  }
  void wait(const std::vector<std::string>& keys) override {
    for (const std::string& key : keys) get(key);
  }
  void wait(const std::vector<std::string>& keys, const std::chrono::milliseconds&) override { wait(keys); }

 private:
  tp::Store& store_;
  const Time deadline_;
};

// Bytes of one rank's message in a round.
struct Part {
  const char* data = nullptr;
  size_t size = 0;
};

class GlooGroup final : public Group {
 public:
  GlooGroup(Control& control, const GroupOptions& options)
      : Group(control.rank(), control.size()), timeout_(options.collective_timeout_ms), fault_(control.fault()),
        outgoing_(static_cast<size_t>(control.size()) * kPieceBytes), incoming_(outgoing_.size()),
        links_(static_cast<size_t>(control.size())) {}

  absl::Status Connect(Control& control, const GroupOptions& options) {
    const Time deadline = Now() + 5 * timeout_;
    int peer = -1;
    const absl::Status connected = Guard(&peer, "connecting to", [&] {
      gloo::transport::tcp::attr attr;
      attr.hostname = control.local_host();
      device_ = gloo::transport::tcp::CreateDevice(attr);
      context_ = std::make_shared<gloo::rendezvous::Context>(rank(), size());
      context_->setTimeout(timeout_);
      GlooStore store(control.store(), deadline);
      context_->connectFullMesh(store, device_);
      for (peer = 0; peer < size(); ++peer) {
        if (peer != rank()) Open(peer, options.busy_poll);
      }
      peer = -1;
    });
    PHX_RETURN_IF_ERROR(connected);
    return MeetAgain(control, deadline);
  }

  absl::Status AllReduce(kernels::Tensor buffer, kernels::Stream) override {
    PHX_RETURN_IF_ERROR(CheckReduce(buffer));
    if (fault_->broken()) return fault_->status();
    const size_t bytes = static_cast<size_t>(Elements(buffer)) * kernels::DTypeBytes(buffer.dtype);
    return TwoShot(size(), bytes) ? SumPart(buffer, bytes) : SumAll(buffer, bytes);
  }

  absl::Status AllGather(kernels::Tensor shard, kernels::Tensor out, kernels::Stream) override {
    PHX_RETURN_IF_ERROR(CheckGather(shard, out, rank(), size()));
    if (fault_->broken()) return fault_->status();
    const size_t bytes = static_cast<size_t>(Elements(shard)) * kernels::DTypeBytes(shard.dtype);
    const char* const from = static_cast<const char*>(shard.data);
    char* const to = static_cast<char*>(out.data);
    if (bytes > 0 && to + static_cast<size_t>(rank()) * bytes != from) std::memcpy(to + static_cast<size_t>(rank()) * bytes, from, bytes);
    for (size_t begin = 0; begin < bytes; begin += kPieceBytes) {
      const size_t size = std::min(kPieceBytes, bytes - begin);
      PHX_RETURN_IF_ERROR(Round([&](int) { return Part{from + begin, size}; }, Same::kYes));
      for (int peer = 0; peer < this->size(); ++peer) {
        if (peer != rank()) std::memcpy(to + static_cast<size_t>(peer) * bytes + begin, Received(peer), size);
      }
    }
    return absl::OkStatus();
  }

 private:
  struct Link {
    std::unique_ptr<gloo::transport::Buffer> send;
    std::unique_ptr<gloo::transport::Buffer> receive;
  };
  enum class Same { kYes, kNo };

  // What Gloo throws, as a status that breaks the group. `peer` is the rank that was being waited for, or -1.
  template <typename Action>
  absl::Status Guard(const int* peer, const char* what, Action action) {
    const Time begin = Now();
    std::string reason;
    try {
      action();
      return absl::OkStatus();
    } catch (const std::exception& e) {
      reason = e.what();
    }
    const bool late = Now() - begin >= timeout_;
    const std::string who = *peer >= 0 ? absl::StrCat("rank ", *peer) : "the other ranks";
    return fault_->BreakUnlessKnown(absl::Status(late ? absl::StatusCode::kDeadlineExceeded : absl::StatusCode::kUnavailable,
                                                 absl::StrCat("rank ", rank(), " failed in ", what, " ", who, ": ", reason)));
  }

  void Open(int peer, bool busy_poll) {
    Link& link = links_[static_cast<size_t>(peer)];
    const auto& pair = context_->getPair(peer);
    link.send = pair->createSendBuffer(0, outgoing_.data(), outgoing_.size());
    link.receive = pair->createRecvBuffer(0, Received(peer), kPieceBytes);
    pair->setSync(true, busy_poll);
  }

  // A piece must not come before its buffer is registered on the other side.
  absl::Status MeetAgain(Control& control, Time deadline) {
    absl::Status status = control.store().Set(absl::StrCat("gloo/open/", rank()), "");
    for (int peer = 0; peer < size() && status.ok(); ++peer) {
      status = control.store().Get(absl::StrCat("gloo/open/", peer), deadline).status();
      if (status.ok()) continue;
      status = absl::Status(status.code(), absl::StrCat("rank ", peer, " did not connect: ", std::string(status.message())));
    }
    return status.ok() ? status : fault_->BreakUnlessKnown(status);
  }

  // What `peer` sent in the last round.
  char* Received(int peer) { return incoming_.data() + static_cast<size_t>(peer) * kPieceBytes; }

  // Sends part(peer) to every peer and takes what each sends here. Parts are at most a piece; an empty one goes as one byte that nobody
  // looks at: since every rank hears from every other in each round, none runs ahead by more than a round, and the sockets never fill.
  template <typename PartFor>
  absl::Status Round(PartFor part, Same same) {
    int peer = -1;
    return Guard(&peer, "a sum or gather with", [&] {
      for (peer = 0; peer < size(); ++peer) {
        if (peer == rank()) continue;
        const Part mine = part(peer);
        const size_t offset = same == Same::kYes ? 0 : static_cast<size_t>(peer) * kPieceBytes;
        const bool staged = same == Same::kYes && peer > (rank() == 0 ? 1 : 0);
        if (mine.size > 0 && !staged) std::memcpy(outgoing_.data() + offset, mine.data, mine.size);
        links_[static_cast<size_t>(peer)].send->send(offset, std::max<size_t>(mine.size, 1), 0);
      }
      for (peer = 0; peer < size(); ++peer) {
        if (peer == rank()) continue;
        links_[static_cast<size_t>(peer)].receive->waitRecv();
        links_[static_cast<size_t>(peer)].send->waitSend();
      }
    });
  }

  // One-shot.
  absl::Status SumAll(const kernels::Tensor& buffer, size_t bytes) {
    char* const data = static_cast<char*>(buffer.data);
    for (size_t begin = 0; begin < bytes; begin += kPieceBytes) {
      const size_t size = std::min(kPieceBytes, bytes - begin);
      PHX_RETURN_IF_ERROR(Round([&](int) { return Part{data + begin, size}; }, Same::kYes));
      Add(buffer.dtype, data + begin, size);
    }
    return absl::OkStatus();
  }

  // Two-shot: rank r adds up bytes [r * share, (r + 1) * share), piece by piece, and each sum goes round at once.
  absl::Status SumPart(const kernels::Tensor& buffer, size_t bytes) {
    char* const data = static_cast<char*>(buffer.data);
    const size_t width = kernels::DTypeBytes(buffer.dtype);
    const size_t share = (bytes / width + static_cast<size_t>(size()) - 1) / static_cast<size_t>(size()) * width;
    for (size_t begin = 0; begin < share; begin += kPieceBytes) {
      const auto piece = [&](int owner) {
        const size_t first = std::min(bytes, static_cast<size_t>(owner) * share + begin);
        const size_t end = std::min({bytes, static_cast<size_t>(owner + 1) * share, first + kPieceBytes});
        return Part{data + first, end - first};
      };
      PHX_RETURN_IF_ERROR(Round(piece, Same::kNo));
      const Part mine = piece(rank());
      Add(buffer.dtype, const_cast<char*>(mine.data), mine.size);
      PHX_RETURN_IF_ERROR(Round([&](int) { return mine; }, Same::kYes));
      for (int peer = 0; peer < size(); ++peer) {
        const Part theirs = piece(peer);
        if (peer != rank() && theirs.size > 0) std::memcpy(const_cast<char*>(theirs.data), Received(peer), theirs.size);
      }
    }
    return absl::OkStatus();
  }

  // The sum of what the last round brought and our own `data`, into `data`.
  void Add(kernels::DType dtype, char* data, size_t bytes) {
    const void* parts[kRanksMax];
    for (int peer = 0; peer < size(); ++peer) parts[peer] = peer == rank() ? data : Received(peer);
    SumInRankOrder(dtype, {parts, static_cast<size_t>(size())}, data, static_cast<int64_t>(bytes / kernels::DTypeBytes(dtype)));
  }

  const milliseconds timeout_;
  const std::shared_ptr<Fault> fault_;
  // In this order, so that buffers go before their memory and their connections, and those before the event thread.
  std::vector<char> outgoing_;  // [size][kPieceBytes]
  std::vector<char> incoming_;  // [size][kPieceBytes]
  std::shared_ptr<gloo::transport::Device> device_;
  std::shared_ptr<gloo::rendezvous::Context> context_;
  std::vector<Link> links_;
};

}  // namespace

bool TwoShot(int size, size_t bytes) {
  // With two ranks both ways move the same bytes, and one hop is enough.
  return size > 2 && bytes >= (64 << 10);
}

absl::StatusOr<std::unique_ptr<Group>> MakeGlooGroup(Control& control, const GroupOptions& options) {
  signal(SIGPIPE, SIG_IGN);
  auto group = std::make_unique<GlooGroup>(control, options);
  PHX_RETURN_IF_ERROR(group->Connect(control, options));
  return group;
}

}  // namespace phalanx::worker::tp
