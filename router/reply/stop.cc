#include "router/reply/stop.h"

#include <deque>

namespace phalanx::router::reply {

StopMachine::StopMachine(const std::vector<std::string>& stops) : stops_(stops), nodes_(1) {
  for (size_t i = 0; i < stops_.size(); ++i) Insert(static_cast<int>(i));
  Link();
  for (const auto& [byte, node] : nodes_[0].next) first_byte_[byte] = true;
}

int32_t StopMachine::Child(int32_t node, uint8_t byte) const {
  for (const auto& [edge, child] : nodes_[node].next) {
    if (edge == byte) return child;
  }
  return -1;
}

void StopMachine::Insert(int stop) {
  int32_t node = 0;
  for (const char c : stops_[stop]) {
    const auto byte = static_cast<uint8_t>(c);
    int32_t child = Child(node, byte);
    if (child < 0) {
      child = static_cast<int32_t>(nodes_.size());
      nodes_[node].next.emplace_back(byte, child);
      nodes_.push_back({.depth = nodes_[node].depth + 1});
    }
    node = child;
  }
  if (node != 0 && nodes_[node].stop < 0) nodes_[node].stop = stop;
}

void StopMachine::Link() {
  std::deque<int32_t> queue = {0};
  while (!queue.empty()) {
    const int32_t node = queue.front();
    queue.pop_front();
    for (const auto& [byte, child] : nodes_[node].next) {
      nodes_[child].fail = node == 0 ? 0 : Step(nodes_[node].fail, byte);
      if (nodes_[child].stop < 0) nodes_[child].stop = nodes_[nodes_[child].fail].stop;
      queue.push_back(child);
    }
  }
}

int32_t StopMachine::Step(int32_t node, uint8_t byte) const {
  while (true) {
    const int32_t child = Child(node, byte);
    if (child >= 0) return child;
    if (node == 0) return 0;
    node = nodes_[node].fail;
  }
}

StopMachine::Result StopMachine::Append(std::string_view chunk, bool armed) {
  Result result;
  if (stops_.empty()) {
    result.text.assign(chunk);
    return result;
  }
  size_t i = 0;
  for (; i < chunk.size(); ++i) {
    const auto byte = static_cast<uint8_t>(chunk[i]);
    if (state_ == 0 && !first_byte_[byte]) continue;
    state_ = Step(state_, byte);
    const int32_t stop = nodes_[state_].stop;
    if (stop >= 0 && armed) {
      result.stop = stop;
      held_.append(chunk.substr(0, i + 1));
      held_.resize(held_.size() - stops_[stop].size());
      result.text.swap(held_);
      held_.clear();
      state_ = 0;
      return result;
    }
    // A path that leads no further holds nothing back by itself, only by its suffix.
    while (state_ != 0 && nodes_[state_].next.empty()) state_ = nodes_[state_].fail;
  }
  held_.append(chunk);
  const size_t keep = nodes_[state_].depth;
  result.text.assign(held_, 0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return result;
}

std::string StopMachine::Flush() {
  state_ = 0;
  std::string text;
  text.swap(held_);
  return text;
}

}  // namespace phalanx::router::reply
