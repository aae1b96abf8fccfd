// router/reply/stop.h: finds stop strings in text that comes in chunks, and holds back only what may still become one.
// Refuses to know: tokens, JSON. Thread: one owner. Neighbours: reply.cc.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace phalanx::router::reply {

// An Aho-Corasick automaton over bytes: the match that ends first wins; of those that end together the longest (it starts first).
class StopMachine {
 public:
  explicit StopMachine(const std::vector<std::string>& stops);  // none, or non-empty strings

  struct Result {
    std::string text;          // certain now: cannot be part of a stop string any more
    int stop = -1;             // index of the stop string that matched; `text` ends before it
  };
  // Takes the next text. `armed` false: matches do not end the text (min_tokens), but it is still followed.
  Result Append(std::string_view chunk, bool armed);
  // What is held back; nothing is held afterwards.
  std::string Flush();
  bool empty() const { return stops_.empty(); }

 private:
  struct Node {
    int32_t fail = 0;          // the longest proper suffix that is a path too
    int32_t depth = 0;         // bytes of the path = bytes to hold back in this state
    int32_t stop = -1;         // longest stop string that ends here
    std::vector<std::pair<uint8_t, int32_t>> next;
  };
  int32_t Child(int32_t node, uint8_t byte) const;  // -1 if there is none
  int32_t Step(int32_t node, uint8_t byte) const;   // along the links that lead to shorter suffixes until a child fits
  void Insert(int stop);
  void Link();

  std::vector<std::string> stops_;
  std::vector<Node> nodes_;
  bool first_byte_[256] = {};  // bytes that leave the root
  int32_t state_ = 0;
  std::string held_;           // the last depth(state_) bytes
};

}  // namespace phalanx::router::reply
