// router/reply/reasoning.h: splits text that comes in chunks into reasoning and content at <think> and </think>.
// Refuses to know: tokens, JSON, model names. Thread: one owner. Neighbours: reply.cc.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace phalanx::router::reply {

// States: kStart (only white space so far: a leading <think> opens reasoning), kReasoning (until </think>), kAfter (newlines after
// </think> are dropped), kContent (everything passes; a later <think> is plain text).
class ReasoningMachine {
 public:
  enum class State : uint8_t { kStart, kReasoning, kAfter, kContent };
  explicit ReasoningMachine(State state) : state_(state) {}

  // Appends what is certain; holds back at most the white space and marker bytes that may still belong to a marker.
  void Append(std::string_view text, std::string* reasoning, std::string* content);
  // The end of the text: what was held goes where it would have gone.
  void Flush(std::string* reasoning, std::string* content);
  State state() const { return state_; }

 private:
  // One transition on held_; false when more text is needed.
  bool Advance(std::string* reasoning, std::string* content);

  State state_;
  bool trim_ = true;           // newlines right after <think> are dropped
  std::string held_;
};

}  // namespace phalanx::router::reply
