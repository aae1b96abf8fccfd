#include "router/metrics_merge.h"

#include <algorithm>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace phalanx::router {
namespace {

struct Family {
  std::string head;                          // HELP and TYPE lines
  std::string samples;
};

absl::string_view Absl(std::string_view text) { return {text.data(), text.size()}; }

// "# TYPE name counter" -> "name"; "" if the line is another comment.
std::string_view CommentedName(std::string_view line) {
  constexpr size_t kPrefix = 7;              // "# HELP " and "# TYPE "
  if (!absl::StartsWith(Absl(line), "# HELP ") && !absl::StartsWith(Absl(line), "# TYPE ")) return {};
  const size_t end = line.find(' ', kPrefix);
  return line.substr(kPrefix, end == std::string_view::npos ? end : end - kPrefix);
}

std::string_view SampleName(std::string_view line) { return line.substr(0, line.find_first_of("{ ")); }

class Merger {
 public:
  void Add(const MetricsText& source) {
    std::string_view rest = source.text;
    std::string_view current;                // the family of the last comment: its samples may have suffixes (_bucket, _sum)
    bool head_is_new = false;
    while (!rest.empty()) {
      const size_t end = rest.find('\n');
      const std::string_view line = rest.substr(0, end);
      rest = end == std::string_view::npos ? std::string_view() : rest.substr(end + 1);
      if (line.empty()) continue;
      if (line.front() == '#') {
        const std::string_view name = CommentedName(line);
        if (name.empty()) continue;
        if (name != current) {
          current = name;
          head_is_new = !families_.contains(std::string(name));
        }
        if (head_is_new) absl::StrAppend(&Get(name).head, Absl(line), "\n");
        continue;
      }
      const std::string_view name = SampleName(line);
      if (current.empty() || !absl::StartsWith(Absl(name), Absl(current))) current = name;
      absl::StrAppend(&Get(current).samples, source.engine.empty() ? std::string(line) : WithEngine(line, source.engine), "\n");
    }
  }

  std::string Text() const {
    std::string out;
    for (const std::string& name : order_) absl::StrAppend(&out, families_.at(name).head, families_.at(name).samples);
    return out;
  }

 private:
  Family& Get(std::string_view name) {
    const auto [it, fresh] = families_.try_emplace(std::string(name));
    if (fresh) order_.emplace_back(name);
    return it->second;
  }

  std::map<std::string, Family> families_;
  std::vector<std::string> order_;
};

}  // namespace

std::string WithEngine(std::string_view sample, std::string_view engine) {
  const size_t open = sample.find('{');
  const size_t space = sample.find(' ');
  if (open == std::string_view::npos || open > space) {  // no labels
    return absl::StrCat(Absl(sample.substr(0, space)), "{engine=\"", Absl(engine), "\"}",
                        Absl(sample.substr(std::min(space, sample.size()))));
  }
  // Inside a label's value a quote is written \", so this finds the label alone.
  constexpr std::string_view kLabel = "engine=\"";
  for (size_t at = sample.find(kLabel, open); at != std::string_view::npos; at = sample.find(kLabel, at + 1)) {
    if (sample[at - 1] != '{' && sample[at - 1] != ',') continue;
    const size_t from = at + kLabel.size();
    const size_t to = sample.find('"', from);
    if (to == std::string_view::npos) break;
    return absl::StrCat(Absl(sample.substr(0, from)), Absl(engine), Absl(sample.substr(to)));
  }
  return absl::StrCat(Absl(sample.substr(0, open + 1)), "engine=\"", Absl(engine), sample[open + 1] == '}' ? "\"" : "\",",
                      Absl(sample.substr(open + 1)));
}

std::string MergeMetrics(const std::vector<MetricsText>& texts) {
  Merger merger;
  for (const MetricsText& text : texts) merger.Add(text);
  return merger.Text();
}

}  // namespace phalanx::router
