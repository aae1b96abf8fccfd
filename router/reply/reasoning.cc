#include "router/reply/reasoning.h"

#include <algorithm>

namespace phalanx::router::reply {
namespace {

constexpr std::string_view kOpen = "<think>";
constexpr std::string_view kClose = "</think>";
constexpr std::string_view kSpace = " \t\r\n";
constexpr std::string_view kNewlines = "\r\n";

// Bytes at the end of `text` that may still become `marker`.
size_t PartialMarker(std::string_view text, std::string_view marker) {
  for (size_t length = std::min(text.size(), marker.size() - 1); length > 0; --length) {
    if (text.substr(text.size() - length) == marker.substr(0, length)) return length;
  }
  return 0;
}

// Drops leading newlines; true if something else is left.
bool TrimNewlines(std::string* text) {
  text->erase(0, std::min(text->find_first_not_of(kNewlines), text->size()));
  return !text->empty();
}

}  // namespace

bool ReasoningMachine::Advance(std::string* reasoning, std::string* content) {
  switch (state_) {
    case State::kStart: {
      const size_t start = held_.find_first_not_of(kSpace);
      if (start == std::string::npos) return false;
      const std::string_view rest = std::string_view(held_).substr(start);
      if (rest.substr(0, kOpen.size()) == kOpen) {
        held_.erase(0, start + kOpen.size());
        state_ = State::kReasoning;
        return true;
      }
      if (rest.size() < kOpen.size() && kOpen.substr(0, rest.size()) == rest) return false;
      state_ = State::kContent;
      return true;
    }
    case State::kReasoning: {
      if (trim_ && !TrimNewlines(&held_)) return false;
      trim_ = false;
      const size_t close = held_.find(kClose);
      if (close == std::string::npos) {
        const size_t keep = PartialMarker(held_, kClose);
        reasoning->append(held_, 0, held_.size() - keep);
        held_.erase(0, held_.size() - keep);
        return false;
      }
      reasoning->append(held_, 0, close);
      held_.erase(0, close + kClose.size());
      state_ = State::kAfter;
      return true;
    }
    case State::kAfter:
      if (!TrimNewlines(&held_)) return false;
      state_ = State::kContent;
      return true;
    case State::kContent:
      content->append(held_);
      held_.clear();
      return false;
  }
  return false;
}

void ReasoningMachine::Append(std::string_view text, std::string* reasoning, std::string* content) {
  if (text.empty()) return;
  if (state_ == State::kContent) {
    content->append(text);
    return;
  }
  held_.append(text);
  while (Advance(reasoning, content)) {
  }
}

void ReasoningMachine::Flush(std::string* reasoning, std::string* content) {
  if (state_ == State::kReasoning) reasoning->append(held_);
  if (state_ == State::kStart || state_ == State::kContent) content->append(held_);
  held_.clear();
}

}  // namespace phalanx::router::reply
