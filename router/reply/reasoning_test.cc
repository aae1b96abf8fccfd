// Reasoning and content: what a whole text gives, and that every cut of it gives the same.
#include "router/reply/reasoning.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace phalanx::router::reply {
namespace {

using State = ReasoningMachine::State;

struct Split {
  std::string reasoning;
  std::string content;
  bool operator==(const Split&) const = default;
};

void PrintTo(const Split& split, std::ostream* out) { *out << "reasoning \"" << split.reasoning << "\" content \"" << split.content << '"';
    }

Split FeedAll(State state, std::string_view text, const std::vector<size_t>& cuts) {
  ReasoningMachine machine(state);
  Split out;
  size_t at = 0;
  for (size_t i = 0; i <= cuts.size(); ++i) {
    const size_t end = i < cuts.size() ? cuts[i] : text.size();
    machine.Append(text.substr(at, end - at), &out.reasoning, &out.content);
    at = end;
  }
  machine.Flush(&out.reasoning, &out.content);
  return out;
}

struct Case {
  State state;
  std::string text;
  Split expected;
};

const std::vector<Case>& Cases() {
  static const auto& cases = *new std::vector<Case>{
      // A model that may open with <think>.
      {State::kStart, "", {"", ""}},
      {State::kStart, "plain answer", {"", "plain answer"}},
      {State::kStart, "<think>why</think>so", {"why", "so"}},
      {State::kStart, "<think>\nwhy\n</think>\n\nso", {"why\n", "so"}},
      {State::kStart, " \n<think>why</think>so", {"why", "so"}},
      {State::kStart, " \n plain", {"", " \n plain"}},
      {State::kStart, " \n ", {"", " \n "}},
      {State::kStart, "<thin", {"", "<thin"}},
      {State::kStart, "<thinker>x", {"", "<thinker>x"}},
      {State::kStart, "<thinking></think>", {"", "<thinking></think>"}},
      {State::kStart, "a<think>b</think>", {"", "a<think>b</think>"}},
      {State::kStart, "<think></think>so", {"", "so"}},
      {State::kStart, "<think>\n\n</think>\n\n", {"", ""}},
      {State::kStart, "<think>never closed", {"never closed", ""}},
      {State::kStart, "<think>almost</thin", {"almost</thin", ""}},
      {State::kStart, "<think>a</thi</think>b", {"a</thi", "b"}},
      {State::kStart, "<think>a<</think>b", {"a<", "b"}},
      {State::kStart, "<think>a<think>b</think>c</think>d", {"a<think>b", "c</think>d"}},
      {State::kStart, "<think>é日</think>\r\n👍", {"é日", "👍"}},
      {State::kStart, "<think>a</think>\n x\n", {"a", " x\n"}},
      // The prompt ended with <think>: only </think> appears.
      {State::kReasoning, "why</think>so", {"why", "so"}},
      {State::kReasoning, "\n\nwhy</think>\nso", {"why", "so"}},
      {State::kReasoning, "</think>so", {"", "so"}},
      {State::kReasoning, "no end", {"no end", ""}},
      {State::kReasoning, "\n", {"", ""}},
      {State::kReasoning, "<think>x</think>y", {"<think>x", "y"}},
      {State::kReasoning, "x</think></think>y", {"x", "</think>y"}},
      // No reasoning.
      {State::kContent, "<think>x</think>y", {"", "<think>x</think>y"}},
      {State::kContent, "\n\n", {"", "\n\n"}}};
  return cases;
}

TEST(ReasoningMachine, WholeText) {
  for (const Case& one : Cases()) EXPECT_EQ(FeedAll(one.state, one.text, {}), one.expected) << one.text;
}

TEST(ReasoningMachine, EveryTwoAndThreeWayCutEqualsTheWhole) {
  for (const Case& one : Cases()) {
    for (size_t first = 0; first <= one.text.size(); ++first) {
      for (size_t second = first; second <= one.text.size(); ++second) {
        EXPECT_EQ(FeedAll(one.state, one.text, {first, second}), one.expected) << one.text << " cut at " << first << ", " << second;
      }
    }
  }
}

TEST(ReasoningMachine, ByteByByteEqualsTheWhole) {
  for (const Case& one : Cases()) {
    std::vector<size_t> cuts;
    for (size_t at = 1; at < one.text.size(); ++at) cuts.push_back(at);
    EXPECT_EQ(FeedAll(one.state, one.text, cuts), one.expected) << one.text;
  }
}

// What cannot belong to a marker any more is not held.
TEST(ReasoningMachine, HoldsOnlyWhatMayBeAMarker) {
  ReasoningMachine machine(State::kStart);
  std::string reasoning, content;
  machine.Append("<think>because", &reasoning, &content);
  EXPECT_EQ(reasoning, "because");
  EXPECT_EQ(machine.state(), State::kReasoning);
  machine.Append(" it</th", &reasoning, &content);
  EXPECT_EQ(reasoning, "because it");
  machine.Append("e", &reasoning, &content);
  EXPECT_EQ(reasoning, "because it</the");
  machine.Append("</think>", &reasoning, &content);
  EXPECT_EQ(machine.state(), State::kAfter);
  machine.Append("\n", &reasoning, &content);
  machine.Append("answer", &reasoning, &content);
  EXPECT_EQ(content, "answer");
  EXPECT_EQ(machine.state(), State::kContent);
  EXPECT_EQ(reasoning, "because it</the");
}

TEST(ReasoningMachine, ContentAtTheStartIsNotDelayed) {
  ReasoningMachine machine(State::kStart);
  std::string reasoning, content;
  machine.Append("T", &reasoning, &content);
  EXPECT_EQ(content, "T");
}

}  // namespace
}  // namespace phalanx::router::reply
