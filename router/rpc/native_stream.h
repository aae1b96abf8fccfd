// router/rpc/native_stream.h: reply parts as chunks of the native door, one per choice at most waiting at a time.
// Refuses to know: how a request was parsed. Thread: as reply_stream.h says.
// Neighbours: inference_service.cc makes one per RPC.
//
// New parts of a choice are added to its waiting chunk, so a slow reader gets fewer and larger chunks. The chunk that ends the last
// choice waits for OnEnd, which follows at once: it carries the usage.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "phalanx/v1/inference.pb.h"
#include "router/rpc/reply_stream.h"

namespace phalanx::router::rpc {

// The fields that are the same in all chunks of a reply.
struct NativeHead {
  std::string id;
  std::string model;                           // the served name
  int32_t choices = 1;
};

void AddText(core::ReplyPart& part, v1::ChatChunk* chunk);
void AddText(core::ReplyPart& part, v1::CompleteChunk* chunk);
void AddLogprob(core::TokenLogprob& token, v1::TokenLogprob* out);
void SetUsage(const core::Usage& usage, v1::Usage* out);
v1::FinishReason ToProto(core::Finish finish);
// The status a native client gets: payloads kept, the message cut at 1,000 bytes; our own failures keep their words for the log.
grpc::Status NativeStatus(const absl::Status& status);

template <typename Chunk>
class NativeStream final : public ReplyStream<Chunk> {
 public:
  using ReplyStream<Chunk>::ReplyStream;
  using ReplyStream<Chunk>::context;

  void SetHead(NativeHead head) {
    head_ = std::move(head);
    unfinished_ = head_.choices;
  }

 protected:
  void Add(std::vector<core::ReplyPart>& parts, const core::Usage&) override {
    for (core::ReplyPart& part : parts) {
      Chunk& chunk = ChunkOf(part.index);
      const size_t text = part.text.size() + part.reasoning.size() + part.echo_text.size();
      bytes_ += text + part.ids.size() * sizeof(int32_t) + part.logprobs.size() * sizeof(core::TokenLogprob);
      AddText(part, &chunk);
      chunk.mutable_token_ids()->Add(part.ids.begin(), part.ids.end());
      for (core::TokenLogprob& token : part.prompt_logprobs) AddLogprob(token, chunk.add_logprobs());
      for (core::TokenLogprob& token : part.logprobs) AddLogprob(token, chunk.add_logprobs());
      if (part.finish == core::Finish::kNone) continue;
      chunk.set_finish_reason(ToProto(part.finish));
      if (!part.stop_string.empty()) chunk.set_stop_reason(part.stop_string);
      if (part.stop_token >= 0) chunk.set_stop_reason(std::to_string(part.stop_token));
      --unfinished_;
    }
  }

  grpc::Status End(const absl::Status& status, const core::Usage& usage) override {
    if (!status.ok()) return NativeStatus(status);
    if (waiting_.empty()) ChunkOf(0);
    SetUsage(usage, waiting_.back().mutable_usage());
    return grpc::Status::OK;
  }

  bool Take(bool ended, Chunk* out, int* tokens) override {
    if (waiting_.empty() || (!ended && unfinished_ == 0 && waiting_.size() == 1)) return false;
    out->Swap(&waiting_.front());
    waiting_.pop_front();
    if (waiting_.empty()) bytes_ = 0;
    *tokens = out->token_ids_size();
    return true;
  }

  // A chunk with nothing but its head counts, too.
  size_t waiting_bytes() const override { return bytes_ + waiting_.size(); }

  void Drop() override {
    waiting_.clear();
    bytes_ = 0;
  }

 private:
  // The waiting chunk of a choice; a new one if there is none.
  Chunk& ChunkOf(int32_t index) {
    for (auto it = waiting_.rbegin(); it != waiting_.rend(); ++it) {
      if (it->index() == static_cast<uint32_t>(index)) return *it;
    }
    Chunk& chunk = waiting_.emplace_back();
    chunk.set_id(head_.id);
    chunk.set_model(head_.model);
    chunk.set_index(static_cast<uint32_t>(index));
    return chunk;
  }

  NativeHead head_;
  int32_t unfinished_ = 1;
  std::deque<Chunk> waiting_;
  size_t bytes_ = 0;                           // about what `waiting_` holds; an upper bound while it shrinks
};

}  // namespace phalanx::router::rpc
