// Stop strings against the plainest search there is: every cut of a text, overlaps, characters cut in two, what is held back.
#include "router/reply/stop.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

namespace phalanx::router::reply {
namespace {

struct Outcome {
  std::string text;
  int stop = -1;
  bool operator==(const Outcome&) const = default;
};

void PrintTo(const Outcome& outcome, std::ostream* out) { *out << '"' << outcome.text << "\" stop " << outcome.stop; }

bool EndsWith(std::string_view text, std::string_view tail) {
  return text.size() >= tail.size() && text.substr(text.size() - tail.size()) == tail;
}

// The oracle: of all matches that end after `unarmed` bytes the one that ends first, of those the longest, of equal ones the first.
Outcome Search(const std::vector<std::string>& stops, std::string_view text, size_t unarmed = 0) {
  for (size_t end = unarmed + 1; end <= text.size(); ++end) {
    int best = -1;
    for (size_t i = 0; i < stops.size(); ++i) {
      if (EndsWith(text.substr(0, end), stops[i]) && (best < 0 || stops[i].size() > stops[best].size())) best = static_cast<int>(i);
    }
    if (best >= 0) return {std::string(text.substr(0, end - stops[best].size())), best};
  }
  return {std::string(text), -1};
}

// The longest end of `text` that is a proper start of a stop string: all that may be held back.
size_t MostHeld(const std::vector<std::string>& stops, std::string_view text) {
  size_t most = 0;
  for (const std::string& stop : stops) {
    for (size_t length = std::min(stop.size() - 1, text.size()); length > most; --length) {
      if (EndsWith(text, std::string_view(stop).substr(0, length))) most = length;
    }
  }
  return most;
}

// Feeds `text` cut at `cuts`; chunks that end at or before `unarmed` are not armed. Checks after each chunk that nothing is held in vain.
Outcome FeedAll(const std::vector<std::string>& stops, std::string_view text, const std::vector<size_t>& cuts, size_t unarmed = 0) {
  StopMachine machine(stops);
  Outcome out;
  size_t at = 0;
  for (size_t i = 0; i <= cuts.size(); ++i) {
    const size_t end = i < cuts.size() ? cuts[i] : text.size();
    const StopMachine::Result result = machine.Append(text.substr(at, end - at), end > unarmed);
    out.text += result.text;
    out.stop = result.stop;
    if (out.stop >= 0) {
      EXPECT_EQ(machine.Flush(), "") << "something is held after a match";
      return out;
    }
    at = end;
    EXPECT_EQ(end - out.text.size(), MostHeld(stops, text.substr(0, end))) << text.substr(0, end);
  }
  out.text += machine.Flush();
  EXPECT_EQ(machine.Flush(), "");
  return out;
}

std::vector<size_t> EveryByte(std::string_view text) {
  std::vector<size_t> cuts;
  for (size_t at = 1; at < text.size(); ++at) cuts.push_back(at);
  return cuts;
}

TEST(StopMachine, EveryCutOfEveryTextEqualsTheWhole) {
  const std::vector<std::vector<std::string>> stop_lists = {
      {"stop"}, {"\n\n"}, {"aa", "ab", "aab"}, {"abab"}, {"he", "she", "hers", "his"}, {"</s>", "</", "s>x"}, {"é", "日本"}, {"👍🏽"},
      {"a"}, {"abc", "bc", "c"}, {"same", "same"}, {std::string("a\0b", 3)}, {"aaaaab", "aaab"}};
  const std::vector<std::string> texts = {
      "", "x", "stop", "it stops here", "sto", "stostop", "a\n\nb\n\n", "aaab", "aabaab", "ababab", "ushers", "this is his", "x</s>y",
          "x</ s>x",
      "caféé", "今日本日", "ok 👍👍🏽!", "abcabc", "the same same", std::string("xa\0a\0bc", 7), "aaaaaaab", "aaaaaab", "bcbcabc"};
  for (const auto& stops : stop_lists) {
    for (const std::string& text : texts) {
      const Outcome expected = Search(stops, text);
      EXPECT_EQ(FeedAll(stops, text, {}), expected) << text;
      EXPECT_EQ(FeedAll(stops, text, EveryByte(text)), expected) << text << " byte by byte";
      for (size_t cut = 0; cut <= text.size(); ++cut) EXPECT_EQ(FeedAll(stops, text, {cut}), expected) << text << " cut at " << cut;
    }
  }
}

TEST(StopMachine, RandomStopsTextsAndCuts) {
  std::mt19937 random(11);
  const auto word = [&](size_t least, size_t most) {
    std::string out(least + random() % (most - least + 1), 'a');
    for (char& c : out) c = "abc"[random() % (random() % 4 == 0 ? 3 : 2)];
    return out;
  };
  int matched = 0;
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::string> stops(1 + random() % 5);
    for (std::string& stop : stops) stop = word(1, 7);
    const std::string text = word(0, 24);
    std::vector<size_t> cuts;
    for (size_t at = 0; at < text.size(); ++at) {
      if (random() % 3 == 0) cuts.push_back(at);
    }
    const size_t unarmed = cuts.empty() || random() % 2 == 0 ? 0 : cuts[random() % cuts.size()];
    const Outcome expected = Search(stops, text, unarmed);
    matched += expected.stop >= 0;
    const Outcome got = FeedAll(stops, text, cuts, unarmed);
    ASSERT_EQ(got.text, expected.text) << text << " unarmed " << unarmed;
    ASSERT_EQ(got.stop < 0 ? "" : stops[got.stop], expected.stop < 0 ? "" : stops[expected.stop]) << text;
  }
  EXPECT_GT(matched, 5000);
}

TEST(StopMachine, WholeCharactersInWholeCharactersOut) {
  const std::vector<std::string> stops = {"éa", "è!", "日x"};
  StopMachine machine(stops);
  for (const char* chunk : {"ê", "é", "é", "è", "日", "月", "x"}) {
    const std::string text = machine.Append(chunk, true).text;
    EXPECT_TRUE(text.empty() || (static_cast<unsigned char>(text[0]) & 0xC0) != 0x80) << text;
  }
  EXPECT_EQ(machine.Append("日", true).text, "");
  EXPECT_EQ(machine.Append("x", true).stop, 2);
}

TEST(StopMachine, AStopThatBeganBeforeItWasArmedCounts) {
  StopMachine machine({"END"});
  EXPECT_EQ(machine.Append("END EN", false).text, "END ");
  const StopMachine::Result result = machine.Append("Dx", true);
  EXPECT_EQ(result.stop, 0);
  EXPECT_EQ(result.text, "");
}

TEST(StopMachine, NoStopsPassEverything) {
  StopMachine machine({});
  EXPECT_TRUE(machine.empty());
  EXPECT_EQ(machine.Append("any \xff bytes", true).text, "any \xff bytes");
  EXPECT_EQ(machine.Flush(), "");
}

}  // namespace
}  // namespace phalanx::router::reply
