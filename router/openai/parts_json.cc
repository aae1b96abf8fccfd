#include "router/openai/parts_json.h"

#include <string_view>

#include "router/openai/json_text.h"

namespace phalanx::router::openai {
namespace {

void AppendToken(int32_t id, const std::string& bytes, bool as_ids, std::string* out) {
  if (!as_ids) return AppendJsonString(bytes, out);
  out->append("\"token_id:");
  AppendInt(id, out);
  out->push_back('"');
}

void AppendChatToken(int32_t id, const std::string& bytes, float logprob, bool as_ids, std::string* out) {
  out->append("{\"token\":");
  AppendToken(id, bytes, as_ids, out);
  out->append(",\"logprob\":");
  AppendLogprob(logprob, out);
  out->append(",\"bytes\":");
  AppendByteList(bytes, out);
}

void Comma(std::string* list) {
  if (!list->empty()) list->push_back(',');
}

// {"token":logprob,...} best first. Tokens with the same text keep the better value; the chosen token is always there.
void AppendTops(const core::TokenLogprob& token, bool as_ids, std::string* out) {
  const auto same = [as_ids](const core::TokenLogprob::Top& top, int32_t id, const std::string& bytes) {
    return as_ids ? top.id == id : top.bytes == bytes;
  };
  out->push_back('{');
  bool chosen = false;
  for (size_t i = 0; i < token.top.size(); ++i) {
    const auto& top = token.top[i];
    bool seen = false;
    for (size_t j = 0; j < i && !seen; ++j) seen = same(token.top[j], top.id, top.bytes);
    chosen = chosen || same(top, token.id, token.bytes);
    if (seen) continue;
    if (i > 0) out->push_back(',');
    AppendToken(top.id, top.bytes, as_ids, out);
    out->push_back(':');
    AppendLogprob(top.logprob, out);
  }
  if (!chosen) {
    if (!token.top.empty()) out->push_back(',');
    AppendToken(token.id, token.bytes, as_ids, out);
    out->push_back(':');
    AppendLogprob(token.logprob, out);
  }
  out->push_back('}');
}

void AppendRanked(int32_t id, const std::string& bytes, float logprob, int32_t rank, std::string* out) {
  out->push_back('"');
  AppendInt(id, out);
  out->append("\":{\"logprob\":");
  AppendLogprob(logprob, out);
  out->append(",\"rank\":");
  AppendInt(rank, out);
  out->append(",\"decoded_token\":");
  AppendJsonString(bytes, out);
  out->push_back('}');
}

}  // namespace

void AppendUsage(const core::Usage& usage, const WriteOptions& options, std::string* out) {
  out->append("{\"prompt_tokens\":");
  AppendInt(usage.prompt_tokens, out);
  out->append(",\"total_tokens\":");
  AppendInt(int64_t{usage.prompt_tokens} + usage.completion_tokens, out);
  out->append(",\"completion_tokens\":");
  AppendInt(usage.completion_tokens, out);
  if (options.prompt_tokens_details) {
    out->append(",\"prompt_tokens_details\":{\"cached_tokens\":");
    AppendInt(usage.cached_tokens, out);
    out->push_back('}');
  }
  if (usage.reasoning_tokens > 0) {
    out->append(",\"completion_tokens_details\":{\"reasoning_tokens\":");
    AppendInt(usage.reasoning_tokens, out);
    out->push_back('}');
  }
  out->push_back('}');
}

void AppendIds(const std::vector<int32_t>& ids, std::string* out) {
  out->push_back('[');
  for (size_t i = 0; i < ids.size(); ++i) {
    if (i > 0) out->push_back(',');
    AppendInt(ids[i], out);
  }
  out->push_back(']');
}

void AppendFinish(core::Finish finish, std::string* out) {
  out->append(finish == core::Finish::kStop ? "\"stop\"" : finish == core::Finish::kLength ? "\"length\"" : "null");
}

void AppendStopReason(const std::string& stop_string, int32_t stop_token, std::string* out) {
  if (!stop_string.empty()) {
    AppendJsonString(stop_string, out);
  } else if (stop_token >= 0) {
    AppendInt(stop_token, out);
  } else {
    out->append("null");
  }
}

void AppendChatLogprobs(const std::vector<core::TokenLogprob>& tokens, bool as_ids, std::string* out) {
  for (const core::TokenLogprob& token : tokens) {
    if (!out->empty() && out->back() != '[') out->push_back(',');
    AppendChatToken(token.id, token.bytes, token.logprob, as_ids, out);
    out->append(",\"top_logprobs\":[");
    for (size_t i = 0; i < token.top.size(); ++i) {
      if (i > 0) out->push_back(',');
      AppendChatToken(token.top[i].id, token.top[i].bytes, token.top[i].logprob, as_ids, out);
      out->push_back('}');
    }
    out->append("]}");
  }
}

void CompletionLogprobs::Append(const std::vector<core::TokenLogprob>& tokens, bool as_ids) {
  for (const core::TokenLogprob& token : tokens) {
    Comma(&offsets_);
    AppendInt(token.text_offset, &offsets_);
    Comma(&tokens_);
    AppendToken(token.id, token.bytes, as_ids, &tokens_);
    Comma(&logprobs_);
    Comma(&tops_);
    if (token.has_logprob) {
      AppendLogprob(token.logprob, &logprobs_);
      AppendTops(token, as_ids, &tops_);
    } else {
      logprobs_.append("null");
      tops_.append("null");
    }
  }
}

void CompletionLogprobs::WriteTo(std::string* out) const {
  out->append("{\"text_offset\":[").append(offsets_);
  out->append("],\"token_logprobs\":[").append(logprobs_);
  out->append("],\"tokens\":[").append(tokens_);
  out->append("],\"top_logprobs\":[").append(tops_);
  out->append("]}");
}

void AppendPromptLogprobs(const std::vector<core::TokenLogprob>& tokens, std::string* out) {
  out->push_back('[');
  for (size_t i = 0; i < tokens.size(); ++i) {
    const core::TokenLogprob& token = tokens[i];
    if (i > 0) out->push_back(',');
    if (!token.has_logprob) {
      out->append("null");
      continue;
    }
    out->push_back('{');
    AppendRanked(token.id, token.bytes, token.logprob, token.rank, out);
    for (size_t k = 0; k < token.top.size(); ++k) {
      if (token.top[k].id == token.id) continue;
      out->push_back(',');
      AppendRanked(token.top[k].id, token.top[k].bytes, token.top[k].logprob, static_cast<int32_t>(k) + 1, out);
    }
    out->push_back('}');
  }
  out->push_back(']');
}

}  // namespace phalanx::router::openai
