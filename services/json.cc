#include "services/json.h"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace phalanx::services {
namespace {

constexpr size_t kMaxReasonBytes = 200;  // what is quoted back of a bad text

using Object = Json::object_t;
using Members = std::vector<Object::value_type>;  // what an Object is built on; appending to it does not search

// Builds the value while it counts, so that a cap stops the work where it is passed.
class Builder : public nlohmann::json_sax<Json> {
 public:
  explicit Builder(const JsonLimits& limits) : limits_(limits) {}

  bool null() override { return Put(Json(nullptr)) != nullptr; }
  bool boolean(bool value) override { return Put(Json(value)) != nullptr; }
  bool number_integer(number_integer_t value) override { return Put(Json(value)) != nullptr; }
  bool number_unsigned(number_unsigned_t value) override { return Put(Json(value)) != nullptr; }
  bool number_float(number_float_t value, const string_t&) override { return Put(Json(value)) != nullptr; }
  bool string(string_t& value) override { return Put(Json(std::move(value))) != nullptr; }
  bool binary(binary_t&) override { return Fail("binary values are not JSON"); }
  bool start_object(size_t) override { return Open(Json::object()); }
  bool start_array(size_t) override { return Open(Json::array()); }
  bool end_array() override {
    open_.pop_back();
    return true;
  }
  bool end_object() override {
    DropRepeatedKeys(open_.back()->get_ref<Object&>());
    open_.pop_back();
    return true;
  }
  bool key(string_t& name) override {
    if (open_.back()->size() >= limits_.max_members) {
      return Fail(absl::StrCat("an object has more than ", limits_.max_members, " members"));
    }
    key_ = std::move(name);
    return true;
  }
  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& error) override {
    std::string reason = error.what();
    if (const size_t end = reason.find("] "); end != std::string::npos) reason.erase(0, end + 2);
    if (reason.size() > kMaxReasonBytes) reason = reason.substr(0, kMaxReasonBytes) + "...";
    return Fail(absl::StrCat("at byte ", position, ": ", reason));
  }

  Json& root() { return root_; }
  const std::string& reason() const { return reason_; }

 private:
  bool Fail(std::string reason) {
    if (reason_.empty()) reason_ = std::move(reason);
    return false;
  }

  bool Open(Json empty) {
    if (open_.size() >= limits_.max_depth) return Fail(absl::StrCat("nested deeper than ", limits_.max_depth, " levels"));
    Json* placed = Put(std::move(empty));
    if (placed != nullptr) open_.push_back(placed);
    return placed != nullptr;
  }

  // The address stays good while the value is open: its parent grows only after it is closed.
  Json* Put(Json value) {
    if (++values_ > limits_.max_values) {
      Fail(absl::StrCat("more than ", limits_.max_values, " values"));
      return nullptr;
    }
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& parent = *open_.back();
    if (parent.is_array()) {
      auto& items = parent.get_ref<Json::array_t&>();
      items.push_back(std::move(value));
      return &items.back();
    }
    auto& members = static_cast<Members&>(parent.get_ref<Object&>());
    members.emplace_back(std::move(key_), std::move(value));
    return &members.back().second;
  }

  // Of equal keys the first place and the last value stay, as in Python. Sorting keeps hostile objects cheap.
  static void DropRepeatedKeys(Object& object) {
    auto& members = static_cast<Members&>(object);
    std::vector<size_t> order(members.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return members[a].first < members[b].first; });
    std::vector<bool> repeated(members.size(), false);
    bool any = false;
    for (size_t i = 0; i + 1 < order.size();) {
      size_t last = i;
      while (last + 1 < order.size() && members[order[last + 1]].first == members[order[i]].first) repeated[order[++last]] = true;
      if (last > i) {
        members[order[i]].second = std::move(members[order[last]].second);
        any = true;
      }
      i = last + 1;
    }
    if (!any) return;
    Object kept;
    for (size_t i = 0; i < members.size(); ++i) {
      if (!repeated[i]) static_cast<Members&>(kept).emplace_back(members[i].first, std::move(members[i].second));
    }
    object = std::move(kept);
  }

  const JsonLimits limits_;
  Json root_;
  std::vector<Json*> open_;
  std::string key_;
  std::string reason_;
  size_t values_ = 0;
};

}  // namespace

absl::StatusOr<Json> ParseJson(std::string_view text, const JsonLimits& limits) {
  if (text.size() > limits.max_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("JSON of ", text.size(), " bytes is longer than ", limits.max_bytes));
  }
  try {
    Builder builder(limits);
    if (!Json::sax_parse(text.begin(), text.end(), &builder)) {
      return absl::InvalidArgumentError(absl::StrCat("invalid JSON: ", builder.reason()));
    }
    return std::move(builder.root());
  } catch (const std::exception& error) {  // the library's contract is narrower than ours
    return absl::InvalidArgumentError(absl::StrCat("invalid JSON: ", error.what()));
  }
}

std::string WriteJson(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace phalanx::services
